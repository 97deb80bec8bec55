"""Batch orders: scikit-learn's own, and the block-wise one."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, gen_batches, shuffle

from skdtheano.runtime.order import BlockOrder, Epoch, GlobalOrder, RowMap, held_out_counts


def global_batches(epoch: Epoch, places: RowMap) -> list[np.ndarray]:
    """Global row numbers of each minibatch, put together from the ranks' shares."""
    rank_rows = [
        np.concatenate(
            [np.arange(0)]
            + [
                np.arange(start, start + length)
                for start, length, owner in zip(
                    places.starts, places.lengths, places.owners, strict=True
                )
                if owner == rank
            ]
        )
        for rank in range(places.n_ranks)
    ]
    shares = [list(share) for share in epoch.shares(places)]
    batches = []
    for parts in zip(*shares, strict=True):
        rows = [rank_rows[rank][local] for rank, (local, _) in enumerate(parts)]
        sizes = {size for _, size in parts}
        batches.append(np.concatenate(rows))
        assert sizes == {len(batches[-1])}
    return batches


@st.composite
def row_maps(draw: st.DrawFn) -> RowMap:
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=8))
    n_ranks = draw(st.integers(1, 4))
    owners = draw(
        st.lists(st.integers(0, n_ranks - 1), min_size=len(lengths), max_size=len(lengths))
    )
    return RowMap(tuple(lengths), tuple(owners), n_ranks)


@given(row_maps())
def test_every_row_has_one_place(places: RowMap) -> None:
    rows = np.arange(places.n_rows)
    ranks, local = places.locate(rows)
    for rank in range(places.n_ranks):
        assert_array_equal(local[ranks == rank], np.arange((ranks == rank).sum()))


def next_epoch(order: Any) -> Any:
    [epoch] = order.ahead(1)
    order.take(1)
    return epoch


@given(row_maps(), st.integers(1, 9), st.integers(0, 99))
def test_minibatches_are_those_of_scikit_learn_wherever_the_rows_are(
    places: RowMap, batch_size: int, seed: int
) -> None:
    n = places.n_rows
    if n == 0:
        return
    order = GlobalOrder(np.arange(n), batch_size, True, np.random.RandomState(seed))
    rng, expected = np.random.RandomState(seed), np.arange(n)
    for n_before in range(3):
        expected = shuffle(expected, random_state=rng)
        epoch = next_epoch(order) if n_before % 2 else order.draw()
        batches = global_batches(epoch, places)
        slices = list(gen_batches(n, batch_size))
        assert len(batches) == len(slices)
        for batch, cut in zip(batches, slices, strict=True):
            assert_array_equal(np.sort(batch), np.sort(expected[cut]))


def test_a_draw_is_a_look_ahead_that_is_taken() -> None:
    places = RowMap((20, 10), (0, 1), 2)
    made = {
        "global": lambda: GlobalOrder(np.arange(30), 8, True, np.random.RandomState(0)),
        "as they are": lambda: GlobalOrder(np.arange(30), 8, False, np.random.RandomState(0)),
        "by blocks": lambda: BlockOrder((20, 10), 8, 0),
    }
    for name, make in made.items():
        one, other = make(), make()
        for _ in range(3):
            drawn, taken = one.draw(), next_epoch(other)
            for batch, expected in zip(
                global_batches(drawn, places), global_batches(taken, places), strict=True
            ):
                assert_array_equal(batch, expected, err_msg=name)


@pytest.mark.parametrize("random_state", [0, None])
def test_epochs_that_are_seen_and_not_taken_were_never_drawn(random_state: int | None) -> None:
    """Also where others draw from NumPy's own generator meanwhile: it never goes back."""
    places = RowMap((30,), (0,))
    rng = check_random_state(random_state)
    before = rng.get_state(legacy=False)
    try:
        rng.seed(7)
        order = GlobalOrder(np.arange(30), 8, True, rng)
        seen = [np.concatenate(global_batches(e, places)) for e in order.ahead(4)]
        if random_state is None:
            other = np.random.random()
        order.take(2)
        expected = np.random.RandomState(7)
        if random_state is None:
            assert other == expected.random_sample()
        for _ in range(2):
            expected.permutation(30)
        assert_array_equal(rng.get_state()[1], expected.get_state()[1])
        if random_state is not None:
            taken = np.concatenate(global_batches(next_epoch(order), places))
            assert_array_equal(taken, seen[2])
    finally:
        rng.set_state(before)


def test_one_rank_keeps_the_order_within_a_minibatch() -> None:
    order = GlobalOrder(np.arange(20), 7, True, np.random.RandomState(0))
    expected = shuffle(np.arange(20), random_state=np.random.RandomState(0))
    batches = global_batches(next_epoch(order), RowMap((20,), (0,)))
    assert_array_equal(np.concatenate(batches), expected)


def test_without_shuffle_the_order_is_that_of_the_table() -> None:
    order = GlobalOrder(np.arange(10), 4, False, np.random.RandomState(0))
    batches = global_batches(next_epoch(order), RowMap((10,), (0,)))
    assert [batch.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@given(
    row_maps(),
    st.integers(1, 9),
    st.integers(0, 99),
    st.sampled_from([0.0, 0.1, 0.4]),
    st.integers(1, 40),
)
def test_a_block_wise_order_visits_each_trained_row_once(
    places: RowMap, batch_size: int, seed: int, held_out: float, window: int
) -> None:
    order = BlockOrder(places.lengths, batch_size, seed, held_out=held_out, n_windows=window)
    left_out = []
    for rank, local in enumerate(order.held_out_rows(places)):
        owned = np.flatnonzero(places.locate(np.arange(places.n_rows))[0] == rank)
        left_out.append(owned[local.astype(int)])
    for _ in range(2):
        batches = global_batches(next_epoch(order), places)
        if order.n_rows == 0:
            assert batches == []
            continue
        rows = np.concatenate(batches)
        assert_array_equal(
            np.sort(np.concatenate([rows, *left_out])), np.arange(places.n_rows)
        )
        assert all(len(batch) == batch_size for batch in batches[:-1])


@given(row_maps(), st.integers(1, 9))
def test_a_block_wise_order_does_not_depend_on_who_holds_the_blocks(
    places: RowMap, batch_size: int
) -> None:
    alone = RowMap(places.lengths, (0,) * len(places.lengths))
    one, many = (BlockOrder(places.lengths, batch_size, 5, n_windows=3) for _ in range(2))
    for _ in range(2):
        here = global_batches(next_epoch(one), alone)
        there = global_batches(next_epoch(many), places)
        assert [np.sort(b).tolist() for b in here] == [np.sort(b).tolist() for b in there]


def test_a_block_wise_order_mixes_the_blocks_of_a_window_and_changes_by_epoch() -> None:
    lengths = (50,) * 8
    order = BlockOrder(lengths, 100, seed=1, n_windows=2)
    places = RowMap(lengths, (0,) * 8)
    first, second = (global_batches(next_epoch(order), places) for _ in range(2))
    blocks = [set(batch // 50) for batch in first]
    assert all(len(found) == 4 for found in blocks)
    assert blocks[0] == blocks[1] != blocks[2]
    # One of each two neighbours: whoever holds some neighbours has a share of each window.
    assert sorted(b // 2 for b in blocks[0]) == [0, 1, 2, 3]
    assert [b.tolist() for b in first] != [b.tolist() for b in second]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 1 / 3])
def test_held_out_rows_are_as_many_as_of_one_table(fraction: float) -> None:
    lengths = (7, 0, 1, 30, 12)
    counts = held_out_counts(lengths, fraction)
    assert sum(counts) == len(train_test_split(range(50), test_size=fraction)[1])
    assert all(count <= length for count, length in zip(counts, lengths, strict=True))
