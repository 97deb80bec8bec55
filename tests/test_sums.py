"""Sums among ranks that are threads: exact, alike on every rank, and counted."""

from collections.abc import Sequence
from functools import partial, reduce
from itertools import chain
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skdtheano.runtime.collective import Solo
from skdtheano.runtime.mailbox import PeerLost, RoundAborted
from skdtheano.runtime.threads import Board, Seated, ThreadsWire, run_ranks
from skdtheano.runtime.wire import slices_of

STEPS = 3
ALWAYS, NEVER = 0, 2**62  # bytes above which slices pay

HOSTS = {
    "one rank": [[0]],
    "2 of a host": [[0, 1]],
    "3 of a host": [[0, 1, 2]],
    "5 of a host": [[0, 1, 2, 3, 4]],
    "2 hosts": [[0], [1]],
    "3 hosts": [[0], [1], [2]],
    "5 hosts": [[0], [1], [2], [3], [4]],
    "2 hosts of 2": [[0, 2], [1, 3]],
    "3 ragged hosts": [[0, 3, 4], [1], [2, 5]],
}


def vector_of(rank: int, step: int, n: int, dtype: str) -> np.ndarray:
    return np.random.RandomState(100 * step + rank).standard_normal(n).astype(dtype)


def total_of(hosts: Sequence[Sequence[int]], step: int, n: int, dtype: str) -> np.ndarray:
    """Ranks added in order on each host, then the hosts in order."""
    sums = [reduce(np.add, [vector_of(r, step, n, dtype) for r in ranks]) for ranks in hosts]
    return reduce(np.add, sums)


def stepped(seated: Seated, n: int, dtype: str) -> list[Any]:
    """As a step of training: two vectors in turn, a share in place, and the others'."""
    sums, kind = seated.sums, np.dtype(dtype)
    vectors, whole = [sums.room(n, kind) for _ in range(2)], sums.room(n, kind)
    share, told = sums.share(n, kind), []
    for step in range(STEPS):
        vectors[step % 2][...] = vector_of(sums.rank, step, n, dtype)
        scalars, total = sums.sum((float(sums.rank), 1.0), vectors[step % 2])
        whole[share] = total
        counted = sums.complete((1.0,), whole)
        told.append((scalars, whole.copy(), counted))
    return told


@pytest.mark.parametrize("local_pays", [ALWAYS, NEVER], ids=["shared", "whole"])
@pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)
def test_each_entry_counts_once(hosts: list[list[int]], local_pays: int) -> None:
    kind = np.dtype("f8")
    for n in (2, 7, 1003):

        def counted(seated: Seated, n: int = n) -> np.ndarray:
            times = np.zeros(n)
            times[seated.sums.share(n, kind)] = seated.sums.counts(n, kind)
            return times

        assert_array_equal(sum(run_ranks(hosts, counted, local_pays, NEVER)), np.ones(n))
    assert Solo().counts(7, kind)


@pytest.mark.parametrize("between_pays", [ALWAYS, NEVER], ids=["by slices", "all to all"])
@pytest.mark.parametrize("local_pays", [ALWAYS, NEVER], ids=["shared", "whole"])
@pytest.mark.parametrize("dtype", ["f8", "f4"])
@pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)
def test_every_rank_has_the_sum_in_the_order_of_ranks_and_hosts(
    hosts: list[list[int]], dtype: str, local_pays: int, between_pays: int
) -> None:
    n_ranks = len(list(chain(*hosts)))
    for n in (2, 7, 1003):  # fewer than ranks, and what they do not divide
        act = partial(stepped, n=n, dtype=dtype)
        results = run_ranks(hosts, act, local_pays, between_pays)
        for rank, told in enumerate(results):
            [sharers] = [len(ranks) for ranks in hosts if rank in ranks]
            for step, (scalars, whole, counted) in enumerate(told):
                assert scalars == (sum(range(n_ranks)), n_ranks)
                assert_array_equal(whole, total_of(hosts, step, n, dtype))
                # Whole shares need no message, and each of the others counts once.
                assert counted == (float(sharers) if local_pays == ALWAYS else 1.0,)


def sent_per_step(
    hosts: list[list[int]], n: int, local_pays: int, between_pays: int, completes: bool
) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Messages, vectors and waits of each rank per step, on its host and between hosts."""

    def act(seated: Seated) -> Any:
        vectors = [seated.sums.room(n, np.dtype("f8")) for _ in range(3)]
        for step in range(STEPS):
            seated.sums.sum((1.0,), vectors[step % 2])
            if completes:
                seated.sums.complete((0.0,), vectors[2])
        return tuple(
            (sent.messages / STEPS, sent.n_bytes / STEPS / (8 * n), sent.waits / STEPS)
            for sent in (seated.local, seated.between)
        )

    return run_ranks(hosts, act, local_pays, between_pays)


NOTHING = (0, 0, 0)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_what_a_rank_sends_grows_by_closed_forms(n: int) -> None:
    size = 60 * n
    hosts, host = [[rank] for rank in range(n)], [list(range(n))]
    expected = {
        # All to all: one latency, and the vector to every other rank.
        (NEVER, False): (n - 1, n - 1, 1),
        # By slices: two latencies, and 2 (n - 1) / n vectors.
        (ALWAYS, False): (2 * (n - 1), pytest.approx(2 * (n - 1) / n), 2),
    }
    for (pays, completes), sent in expected.items():
        for local, between in sent_per_step(hosts, size, NEVER, pays, completes):
            assert (local, between) == (NOTHING, sent)
    # On one host the second half of these is what `complete` copies, if it does.
    half = (n - 1, pytest.approx((n - 1) / n), 1)
    whole = (2 * (n - 1), pytest.approx(2 * (n - 1) / n), 2)
    for completes, sent in ((False, half), (True, whole)):
        for local, between in sent_per_step(host, size, ALWAYS, NEVER, completes):
            assert (local, between) == (sent, NOTHING)
    for local, between in sent_per_step(host, size, NEVER, NEVER, True):
        assert (local, between) == ((n - 1, n - 1, 1), NOTHING)


def test_only_leaders_send_from_host_to_host() -> None:
    """Two hosts of three: what a host sends does not grow with its ranks."""
    sent = sent_per_step([[0, 1, 2], [3, 4, 5]], 120, ALWAYS, NEVER, False)
    for rank, (local, between) in enumerate(sent):
        is_leader = rank in (0, 3)
        assert between == ((1, 1, 1) if is_leader else NOTHING)
        # A slice for each other rank and for the leader; it gives each its share back.
        n_slices = 4 if is_leader else 3
        assert local == (n_slices, pytest.approx(n_slices / 3), 2)


def test_slices_make_up_a_vector() -> None:
    for n in range(12):
        for n_ranks in range(1, 6):
            parts = [np.arange(n)[part] for part in slices_of(n, n_ranks)]
            assert_array_equal(np.concatenate(parts), np.arange(n))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_sums_nothing() -> None:
    solo, vector = Solo(), np.ones(3)
    assert_array_equal(solo.room(3, np.dtype("f4")), np.zeros(3, "f4"))
    assert solo.share(3, vector.dtype) == slice(0, 3)
    scalars, total = solo.sum((2.0,), vector)
    assert scalars == solo.complete((2.0,), vector) == (2.0,)
    assert total is vector


def test_a_rank_that_fails_ends_the_wait_of_the_others() -> None:
    def act(seated: Seated) -> str:
        vector = seated.sums.room(3, np.dtype("f8"))
        seated.sums.sum((), vector)
        if seated.sums.rank == 1:
            raise ZeroDivisionError("no rows")
        with pytest.raises(RoundAborted, match="no rows"):
            seated.sums.sum((), vector)
        return "told"

    with pytest.raises(ZeroDivisionError):
        run_ranks([[0, 1, 2]], act)


def test_a_rank_that_never_comes_is_named() -> None:
    wire = ThreadsWire(Board(), 0, patience=0.01)
    whole = {3: slice(None)}
    with pytest.raises(PeerLost, match="rank 3 left nothing"):
        wire.exchange((), np.zeros(2), whole, whole)
