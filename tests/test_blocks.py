"""Rows gathered from blocks, and from blocks that were joined for it."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy.sparse import csr_array

from skdtheano.runtime.blocks import BatchRoom, Block, RowBlocks

LENGTHS = [3, 0, 4, 5]


def row_blocks(sparse: bool = False, weighted: bool = True) -> RowBlocks:
    rng = np.random.default_rng(0)
    blocks = []
    for n in LENGTHS:
        rows = rng.normal(size=(n, 2))
        weights = rng.random(n) if weighted else None
        blocks.append(
            Block(csr_array(rows) if sparse else rows, rng.integers(0, 3, n, "i4"), weights)
        )
    return RowBlocks(blocks, LENGTHS, 3, "float64")


@pytest.mark.parametrize("weighted", [True, False])
def test_joined_blocks_give_the_same_rows_in_the_same_order(weighted: bool) -> None:
    apart = row_blocks(weighted=weighted)
    joined = apart.for_gathers(10**9)
    assert len(apart.blocks) == 4 and len(joined.blocks) == 1
    rows = np.array([11, 0, 4, 3, 7, 2], np.uint32)
    for gather in (RowBlocks.gather, lambda blocks, rows: BatchRoom(blocks).gather(rows)[0]):
        one, other = gather(apart, rows), gather(joined, np.sort(rows))
        assert_array_equal(one.rows, other.rows)
        assert_array_equal(one.targets, other.targets)
        assert_array_equal(one.weights, other.weights)
    one, _ = BatchRoom(apart).gather(rows)
    other, _ = BatchRoom(joined).gather(rows)
    assert_array_equal(one.rows, other.rows)


def test_joined_blocks_are_told_apart_as_before() -> None:
    apart = row_blocks()
    joined = apart.for_gathers(10**9)
    rows = np.array([11, 0, 4, 3, 7, 2], np.uint32)
    named = list(apart.by_block(rows))
    assert [i for i, _ in named] == [0, 2, 3]
    for (i, one), (j, other) in zip(named, joined.by_block(rows), strict=True):
        assert i == j
        assert_array_equal(one.rows, other.rows)


def test_blocks_are_joined_only_where_it_pays() -> None:
    apart = row_blocks()
    assert apart.for_gathers(0) is apart
    assert row_blocks(sparse=True).for_gathers(10**9).lengths == LENGTHS
    # 64 MB: a copy of 32 ms, and three blocks less are 12 us a gather.
    wide = Block(np.zeros((1000, 8000)), np.zeros(1000, "i4"), None)
    table = RowBlocks([wide] * 4, [1000] * 4, 3, "float64")
    assert table.for_gathers(10**9) is table  # it would hold 256 MB twice
    table = RowBlocks([wide[:200]] * 4, [200] * 4, 3, "float64")
    assert len(table.for_gathers(10_000).blocks) == 1
    assert table.for_gathers(1_000) is table
