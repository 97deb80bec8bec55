"""Aligned blocks of rows in one process, and the minibatches gathered from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

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


class RowBlocks:
    """The blocks that one process holds, numbered through from 0.

    Parameters
    ----------
    blocks : sequence of Block
        In the order of the table. Blocks are kept as they are: no second copy is made.
    n_outputs : int
    dtype : str
        Of targets and weights in a batch.
    """

    def __init__(self, blocks: Sequence[Block], n_outputs: int, dtype: str) -> None:
        self.blocks = [block for block in blocks if len(block)] or list(blocks[:1])
        self.n_outputs = n_outputs
        self.dtype = np.dtype(dtype)
        self.starts = np.cumsum([0, *(len(block) for block in self.blocks)])

    def with_targets_of(self, dtype: str) -> "RowBlocks":
        """The same rows, with targets and weights in another dtype."""
        return RowBlocks(self.blocks, self.n_outputs, dtype)

    def gather(self, rows: np.ndarray) -> Batch:
        """Rows by number, in the order given."""
        if len(self.blocks) == 1:
            return self._take(self.blocks[0], rows)
        order = np.argsort(rows, kind="stable")
        cuts = np.searchsorted(rows[order], self.starts)
        held = [i for i in range(len(self.blocks)) if cuts[i] < cuts[i + 1]]
        if len(held) == 1:
            return self._take(self.blocks[held[0]], rows - self.starts[held[0]])
        parts = []
        for i in held:
            places = order[cuts[i] : cuts[i + 1]]
            parts.append(self._take(self.blocks[i], rows[places] - self.starts[i]))
        # In the order of the blocks, not of `rows`: a sum over the rows is the same.
        return Batch(
            _stack([part.rows for part in parts]),
            np.concatenate([part.targets for part in parts]),
            np.concatenate([part.weights for part in parts]),
        )

    def by_block(self, rows: np.ndarray) -> Iterator[tuple[int, Batch]]:
        """Rows by number, in a batch for each block that holds some of them."""
        for i, block in enumerate(self.blocks):
            held = rows[(rows >= self.starts[i]) & (rows < self.starts[i + 1])]
            if len(held):
                yield i, self._take(block, held - self.starts[i])

    def pieces(self, rows: np.ndarray | None, max_rows: int) -> Iterator[Batch]:
        """All rows, or some by number, in pieces of at most `max_rows`."""
        if rows is not None:
            for start in range(0, len(rows), max_rows):
                yield self.gather(rows[start : start + max_rows])
            return
        for block in self.blocks:
            for start in range(0, len(block), max_rows):
                cut = slice(start, start + max_rows)
                weights = None if block.weights is None else block.weights[cut]
                yield self._batch(block.rows[cut], block.targets[cut], weights)

    def _take(self, block: Block, rows: np.ndarray) -> Batch:
        weights = None if block.weights is None else block.weights[rows]
        return self._batch(block.rows[rows], block.targets[rows], weights)

    def _batch(self, rows: Rows, targets: np.ndarray, weights: np.ndarray | None) -> Batch:
        if weights is None:
            weights = np.ones(rows.shape[0], self.dtype)
        if isinstance(rows, np.ndarray):
            # Compiled functions are specialised for C order; a table in Fortran order is
            # kept as it is, and only its batches are turned.
            rows = np.ascontiguousarray(rows)
        return Batch(rows, self._dense(targets), weights.astype(self.dtype, copy=False))

    def _dense(self, targets: np.ndarray) -> np.ndarray:
        if targets.ndim == 1:
            one_hot = np.zeros((len(targets), self.n_outputs), self.dtype)
            one_hot[np.arange(len(targets)), targets] = 1
            return one_hot
        return targets.astype(self.dtype, copy=False)


def _stack(parts: list[Rows]) -> Rows:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return scipy.sparse.vstack(parts, format="csr")
