"""Aligned blocks of rows in one process, and the minibatches gathered from them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse

#: Seconds that each block more adds to a gather, bytes a second that blocks are joined at,
#: and how many bytes of rows a process may hold a second copy of for it.
_BLOCK_SECONDS = 4e-6
_JOINED_PER_SECOND = 2e9
_MOST_JOINED_BYTES = 2**26

Rows = Any  # ndarray or csr_array; scipy.sparse has no types


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a table, with their targets and weights.

    Attributes
    ----------
    rows : ndarray or csr_array of shape (n, n_features)
        C-contiguous and of the network's row dtype.
    targets : ndarray of shape (n, n_outputs), or (n,) of int32
        Targets; class numbers where one class of several is true, which take 4 bytes a
        row where one-hot rows take one byte per class.
    weights : ndarray of shape (n,) or None
        Row weights; None where all are 1.
    """

    rows: Rows
    targets: np.ndarray
    weights: np.ndarray | None

    def __post_init__(self) -> None:
        if len(self.targets) != len(self):
            raise ValueError(f"{len(self)} rows have {len(self.targets)} targets.")

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    def __getitem__(self, chosen: slice | np.ndarray) -> "Block":
        weights = None if self.weights is None else self.weights[chosen]
        return Block(self.rows[chosen], self.targets[chosen], weights)

    def __sizeof__(self) -> int:
        # dask weighs by this what a worker holds, spills and moves.
        arrays = [self.rows, self.targets, self.weights]
        if scipy.sparse.issparse(self.rows):
            arrays += [self.rows.data, self.rows.indices, self.rows.indptr]
        return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


@dataclass(frozen=True)
class Batch:
    """Gathered rows: matrices (n, n_features) and (n, n_outputs), weights (n,)."""

    rows: Rows
    targets: np.ndarray
    weights: np.ndarray


def joined(parts: Sequence[Block]) -> Block:
    """The rows of some blocks, one after another."""
    if len(parts) == 1:
        return parts[0]
    weights = [part.weights for part in parts if part.weights is not None]
    return Block(
        _stack([part.rows for part in parts]),
        np.concatenate([part.targets for part in parts]),
        np.concatenate(weights) if weights else None,
    )


def _places(rows: np.ndarray, starts: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks, by where they start, that hold some rows, with these rows' places."""
    order = np.argsort(rows, kind="stable")
    cuts = np.searchsorted(rows[order], starts)
    for i in np.flatnonzero(np.diff(cuts)).tolist():
        yield i, order[cuts[i] : cuts[i + 1]]


class RowBlocks:
    """The blocks that one process holds, numbered through from 0.

    Parameters
    ----------
    blocks : sequence of Block
        In the order of the table. Blocks are kept as they are: no second copy is made. Each
        is asked for only when some of its rows are.
    lengths : sequence of int
        Rows of each block.
    n_outputs : int
    dtype : str
        Of targets and weights in a batch.
    named : sequence of int, optional
        Rows of each of the blocks that `by_block` tells apart, where these are other ones.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        lengths: Sequence[int],
        n_outputs: int,
        dtype: str,
        named: Sequence[int] | None = None,
    ) -> None:
        self.blocks = blocks
        self.n_outputs = n_outputs
        self.dtype = np.dtype(dtype)
        self.lengths = lengths
        self.starts = np.cumsum([0, *lengths])
        self._named = lengths if named is None else named

    def with_targets_of(self, dtype: str) -> "RowBlocks":
        """The same rows, with targets and weights in another dtype."""
        return RowBlocks(self.blocks, self.lengths, self.n_outputs, dtype, self._named)

    def for_gathers(self, n: int) -> "RowBlocks":
        """The same rows in one block, if so many gathers save more than the copy takes."""
        if len(self.blocks) == 1 or not all(
            isinstance(block.rows, np.ndarray) for block in self.blocks
        ):
            return self
        n_bytes = sum(block.rows.nbytes for block in self.blocks)
        saved = n * (len(self.blocks) - 1) * _BLOCK_SECONDS
        if n_bytes > _MOST_JOINED_BYTES or saved < 2 * n_bytes / _JOINED_PER_SECOND:
            return self
        whole = joined(self.blocks)
        return RowBlocks([whole], [len(whole)], self.n_outputs, self.dtype.name, self._named)

    def gather(self, rows: np.ndarray) -> Batch:
        """Rows by number; their order is not kept, that of the blocks is.

        So a sum over the rows is the same wherever they are.
        """
        if len(self.blocks) == 1:
            return self.batch(self.blocks[0][rows])
        return self.batch(joined([part for _, part in self._parts(rows)]))

    def by_blocks(self, rows: np.ndarray) -> Iterator[tuple[Block, np.ndarray]]:
        """Blocks that hold some of the rows, with the numbers of these within them.

        Of one block they keep their order; of several they ascend, also where these were
        joined: sums are then the same.
        """
        if len(self._named) == 1:
            yield self.blocks[0], rows
            return
        rows = np.sort(rows)
        if len(self.blocks) == 1:
            yield self.blocks[0], rows
            return
        cuts = np.searchsorted(rows, self.starts).tolist()
        for i, (start, stop) in enumerate(pairwise(cuts)):
            if start < stop:
                yield self.blocks[i], rows[start:stop] - self.starts[i]

    def in_order(self, rows: np.ndarray) -> Block:
        """A copy of rows by number, in the order given."""
        whole: Block | None = None
        sparse: list[tuple[np.ndarray, Rows]] = []
        for places, part in self._parts(rows):
            if whole is None:
                whole = _room(part, len(rows))
            if isinstance(part.rows, np.ndarray):
                whole.rows[places] = part.rows
            else:
                sparse.append((places, part.rows))
            whole.targets[places] = part.targets
            if whole.weights is not None:
                whole.weights[places] = part.weights
            del part  # before the next block is read
        assert whole is not None
        if not sparse:
            return whole
        order = np.argsort(np.concatenate([places for places, _ in sparse]))
        stacked = _stack([part for _, part in sparse])[order]
        return Block(stacked, whole.targets, whole.weights)

    def by_block(self, rows: np.ndarray) -> Iterator[tuple[int, Batch]]:
        """Rows by number, in a batch for each block that holds some of them."""
        for i, places in _places(rows, np.cumsum([0, *self._named])):
            yield i, self.gather(rows[places])

    def _parts(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Block]]:
        """Rows by number, block by block, with their places among those asked for."""
        for i, places in _places(rows, self.starts):
            yield places, self.blocks[i][rows[places] - self.starts[i]]

    def pieces(self, rows: np.ndarray | None, max_rows: int) -> Iterator[Batch]:
        """All rows, or some by number, in pieces of at most `max_rows`."""
        if rows is not None:
            for start in range(0, len(rows), max_rows):
                yield self.gather(rows[start : start + max_rows])
            return
        for block in self.blocks:
            for start in range(0, len(block), max_rows):
                yield self.batch(block[start : start + max_rows])

    def batch(self, block: Block) -> Batch:
        """Rows as the compiled functions take them."""
        rows, weights = block.rows, block.weights
        if weights is None:
            weights = np.ones(len(block), self.dtype)
        if isinstance(rows, np.ndarray):
            # Compiled functions are specialised for C order; a table in Fortran order is
            # kept as it is, and only its batches are turned.
            rows = np.ascontiguousarray(rows)
        targets = self._dense(block.targets)
        return Batch(rows, targets, weights.astype(self.dtype, copy=False))

    def _dense(self, targets: np.ndarray) -> np.ndarray:
        if targets.ndim == 1:
            one_hot = np.zeros((len(targets), self.n_outputs), self.dtype)
            one_hot[np.arange(len(targets)), targets] = 1
            return one_hot
        return targets.astype(self.dtype, copy=False)


class BatchRoom:
    """Arrays that one minibatch after another is gathered into.

    Parameters
    ----------
    blocks : RowBlocks
    multiple_of : int
        Dense batches are filled up to a multiple of so many rows, by copies of their first
        row with weight 0, which change no sum. Where a process has another number of the
        rows of each minibatch, the same few arrays then serve all.
    """

    def __init__(self, blocks: RowBlocks, multiple_of: int = 1) -> None:
        self.blocks = blocks
        self._multiple_of = multiple_of
        self._whole: Batch | None = None
        self._batches: dict[int, Batch] = {}

    def gather(self, rows: np.ndarray) -> tuple[Batch, float]:
        """Rows by number, and the sum of their weights, until the next call.

        Their order is that of `RowBlocks.by_blocks`.
        """
        return self._filled(self.blocks.by_blocks(rows), len(rows))

    def copy(self, parts: Sequence[Block]) -> tuple[Batch, float]:
        """Rows that are gathered already, one part after another."""
        return self._filled(((part, slice(None)) for part in parts), sum(map(len, parts)))

    def _filled(
        self, parts: Iterable[tuple[Block, np.ndarray | slice]], n: int
    ) -> tuple[Batch, float]:
        batch, start, sparse, is_weighted = None, 0, [], False
        for block, chosen in parts:
            if batch is None:
                batch = self._batch(block, n)
            n_chosen = len(block) if isinstance(chosen, slice) else len(chosen)
            stop = start + n_chosen
            rows, flags = block.rows, getattr(block.rows, "flags", None)
            if flags is None:
                sparse.append(rows[chosen])
            elif not isinstance(chosen, slice) and flags.c_contiguous and flags.aligned:
                # "clip" writes straight into `out`; the numbers are those of rows.
                np.take(rows, chosen, axis=0, out=batch.rows[start:stop], mode="clip")
            else:  # of which `take` would copy the whole table first
                batch.rows[start:stop] = rows[chosen]
            self._put(batch, start, stop, block.targets[chosen])
            if block.weights is not None:
                is_weighted = True
                batch.weights[start:stop] = block.weights[chosen]
            start = stop
        if batch is None:
            raise ValueError("There are no rows to gather.")
        return self._finished(batch, n, sparse, is_weighted)

    def _put(self, batch: Batch, start: int, stop: int, targets: np.ndarray) -> None:
        if targets.ndim == 1:
            one_hot = batch.targets[start:stop]
            one_hot.fill(0)
            one_hot.reshape(-1)[self._first[: stop - start] + targets] = 1
        else:
            batch.targets[start:stop] = targets

    def _finished(
        self, batch: Batch, n: int, sparse: list[Rows], is_weighted: bool
    ) -> tuple[Batch, float]:
        weights = batch.weights
        if sparse:
            batch = Batch(_stack(sparse), batch.targets, weights)
        elif self._multiple_of > 1:
            if not is_weighted:
                weights[:n] = 1
            # A copy, and not zeros: finite if and only if a row is.
            batch.rows[n:], batch.targets[n:], weights[n:] = batch.rows[0], batch.targets[0], 0
        return batch, float(weights[:n].sum(dtype=np.float64)) if is_weighted else float(n)

    def _batch(self, like: Block, n: int) -> Batch:
        """Room for n rows, the same arrays each time."""
        if isinstance(like.rows, np.ndarray):
            n = -(-n // self._multiple_of) * self._multiple_of
        if self._whole is None or n > len(self._whole.weights):
            self._whole = self._larger(like, n)
            self._batches = {}
        batch = self._batches.get(n)
        if batch is None:
            whole = self._whole
            batch = Batch(whole.rows[:n], whole.targets[:n], whole.weights[:n])
            self._batches[n] = batch
        return batch

    def _larger(self, like: Block, n: int) -> Batch:
        n += n // 8  # other batches may have a few more rows here
        dtype, n_outputs = self.blocks.dtype, self.blocks.n_outputs
        n_features = like.rows.shape[1] if isinstance(like.rows, np.ndarray) else 0
        #: Place of each row's first output in the raveled targets.
        self._first = np.arange(n) * n_outputs
        return Batch(
            np.empty((n, n_features), like.rows.dtype),
            np.empty((n, n_outputs), dtype),
            np.ones(n, dtype),
        )


def _room(like: Block, n_rows: int) -> Block:
    """Room for as many rows as are asked for; for sparse ones, of their targets alone."""
    targets, weights = like.targets, like.weights
    if isinstance(like.rows, np.ndarray):
        rows = np.empty((n_rows, *like.rows.shape[1:]), like.rows.dtype)
    else:
        rows = np.empty((n_rows, 0))
    return Block(
        rows,
        np.empty((n_rows, *targets.shape[1:]), targets.dtype),
        None if weights is None else np.empty(n_rows, weights.dtype),
    )


def _stack(parts: list[Rows]) -> Rows:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return scipy.sparse.vstack(parts, format="csr")
