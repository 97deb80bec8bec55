"""Batch order: which rows make up which minibatch, whoever holds them.

The order is a function of the random state, the epoch and the numbers of rows alone. A
global order is scikit-learn's own permutation; a block-wise order needs no array as long
as the table, and is a function of the lengths of the blocks as well.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import numpy as np
from sklearn.utils import check_random_state

from skdtheano.runtime.blocks import Batch, BatchRoom, Block

#: Above this number of rows a global permutation takes more than 2 GiB with its copy.
MAX_GLOBAL_ROWS = 2**27

#: Bytes of rows that a block-wise order mixes with each other, over the whole cluster,
WINDOW_BYTES = 2**27
#: or as many blocks, where these are larger.
WINDOW_BLOCKS = 16

#: What ``random_state=None`` stands for.
_NUMPYS_OWN = check_random_state(None)


@dataclass(frozen=True)
class RowMap:
    """Who holds which row.

    Parameters
    ----------
    lengths : tuple of int
        Rows of each block, in the order of the table.
    owners : tuple of int
        Rank of the process that holds each block. A process numbers its rows through
        its blocks, in the order of the table.
    n_ranks : int
    """

    lengths: tuple[int, ...]
    owners: tuple[int, ...]
    n_ranks: int = 1

    @cached_property
    def starts(self) -> np.ndarray:
        """Global number of each block's first row."""
        return np.cumsum([0, *self.lengths])[:-1].astype(np.int64)

    @cached_property
    def local_starts(self) -> np.ndarray:
        """Number of each block's first row among those of its owner."""
        next_row = [0] * self.n_ranks
        starts = []
        for length, owner in zip(self.lengths, self.owners, strict=True):
            starts.append(next_row[owner])
            next_row[owner] += length
        return np.asarray(starts, np.int64)

    @property
    def n_rows(self) -> int:
        return sum(self.lengths)

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rank and local number of each global row number."""
        if len(self.lengths) == 1:
            return np.full(len(rows), self.owners[0], np.uint16), rows
        # side="right" passes over empty blocks, which start where the next one does.
        block = np.searchsorted(self.starts, rows, side="right") - 1
        local = rows - (self.starts - self.local_starts)[block]
        # 16 bits: NumPy sorts these by counting.
        owners = np.asarray(self.owners, np.uint16 if self.n_ranks < 2**16 else np.int64)
        return owners[block], local

    @property
    def number_dtype(self) -> type[np.integer[Any]]:
        """Takes the number of any row, in 4 bytes if it can."""
        return np.uint32 if self.n_rows < 2**32 else np.int64

    def split(self, rows: np.ndarray) -> list[np.ndarray]:
        """Local numbers of global rows, for each rank, in the order given."""
        ranks, local = self.locate(rows)
        local = local.astype(self.number_dtype)
        return [local[ranks == rank] for rank in range(self.n_ranks)]


#: From who holds which row to the local numbers of each rank's validation rows.
HeldOut = Callable[[RowMap], list[np.ndarray]]


#: Local row numbers, size of the whole minibatch, the rows that are here, their weights' sum.
Gathered: TypeAlias = tuple[np.ndarray, int, Batch | None, float]


class Batches(Protocol):
    """One rank's share of an epoch."""

    @property
    def batch_size(self) -> int:
        """Rows of each whole minibatch, but for the last one."""

    def __len__(self) -> int:
        """How many minibatches there are."""

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yield, for each minibatch, local row numbers and the size of the whole batch."""

    def gathered(self, room: BatchRoom) -> Iterator[Gathered]:
        """The same, with the rows in the same arrays each time, and their sum of weights.

        The rows are None where this rank has none of the batch.
        """


@dataclass(frozen=True)
class ListedBatches:
    """Batches as row numbers, made by the caller: 4 bytes a row.

    Attributes
    ----------
    rows : ndarray of int
        Local numbers, batch after batch.
    counts : ndarray of int
        How many of each batch this rank holds.
    batch_size, n_rows : int
        Of the whole epoch; the last batch may be smaller.
    """

    rows: np.ndarray
    counts: np.ndarray
    batch_size: int
    n_rows: int

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.counts.nbytes

    def __len__(self) -> int:
        return len(self.counts)

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        remaining, start = self.n_rows, 0
        for count in self.counts.tolist():
            yield self.rows[start : start + count], min(self.batch_size, remaining)
            start += count
            remaining -= self.batch_size

    def gathered(self, room: BatchRoom) -> Iterator[Gathered]:
        for rows, size in self:
            yield rows, size, *(room.gather(rows) if len(rows) else (None, 0.0))


class Epoch(Protocol):
    """The order of one epoch, before anyone knows who holds the rows."""

    @property
    def batch_size(self) -> int:
        """Rows of each minibatch, but for the last one."""

    def shares(self, places: RowMap) -> list[Batches]:
        """Each rank's batches."""


class Order(Protocol):
    """Draws the orders of the epochs, one after another."""

    n_rows: int
    batch_size: int
    #: Whether a few blocks at a time hold the rows of the next minibatches.
    in_windows: bool

    def ahead(self, n_epochs: int) -> "Sequence[Epoch]":
        """The orders of the next epochs; `take` then says how many of them were run."""

    def take(self, n_epochs: int) -> None:
        """Go on to after so many of the epochs that were last seen `ahead`."""

    def draw(self) -> "Epoch":
        """The order of the next epoch, which is taken; not between `ahead` and its `take`."""


@dataclass(frozen=True)
class ListedEpoch:
    """An order as one array of global row numbers."""

    rows: np.ndarray
    batch_size: int

    def shares(self, places: RowMap) -> list[Batches]:
        n_rows, size = len(self.rows), self.batch_size
        ranks, local = places.locate(self.rows)
        local = local.astype(places.number_dtype)
        if places.n_ranks == 1:
            counts = np.full(-(-n_rows // size), size, np.min_scalar_type(size))
            if n_rows % size:
                counts[-1] = n_rows % size
            return [ListedBatches(local, counts, size, n_rows)]
        # Stable, so that each rank's rows stay in the order of the batches.
        by_rank = np.argsort(ranks, kind="stable")
        cuts = np.searchsorted(ranks[by_rank], np.arange(places.n_ranks + 1))
        shares: list[Batches] = []
        for start, stop in pairwise(cuts):
            held = by_rank[start:stop]
            counts = np.bincount(held // size, minlength=-(-n_rows // size))
            counts = counts.astype(np.min_scalar_type(size))
            shares.append(ListedBatches(local[held], counts, size, n_rows))
        return shares


class GlobalOrder:
    """scikit-learn's minibatches: consecutive slices of one permutation of all rows.

    Parameters
    ----------
    rows : ndarray of int
        Global numbers of the rows to train on.
    batch_size : int
    shuffle : bool
        Permute what the last epoch's permutation gave, as scikit-learn does.
    rng : RandomState
        Advanced by one permutation for each epoch that is taken.
    """

    in_windows = False

    def __init__(
        self, rows: np.ndarray, batch_size: int, shuffle: bool, rng: np.random.RandomState
    ) -> None:
        self.n_rows = len(rows)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.rng = rng
        self._rows = rows
        self._places = np.arange(len(rows))
        #: Who draws ahead; where it was before, and the places after each epoch.
        self._scout = copy.deepcopy(rng) if shuffle and rng is _NUMPYS_OWN else rng
        self._before: Any = None
        self._seen: list[np.ndarray] = []

    def ahead(self, n_epochs: int) -> list[ListedEpoch]:
        if not self.shuffle:
            return [ListedEpoch(self._rows, self.batch_size)] * n_epochs
        self._before = self.rng.get_state(legacy=False)
        if self._scout is not self.rng:
            self._scout.set_state(self._before)
        self._seen = []
        places = self._places
        for _ in range(n_epochs):
            places = places[self._permutation(self._scout)]
            self._seen.append(places)
        return [ListedEpoch(self._rows[seen], self.batch_size) for seen in self._seen]

    def take(self, n_epochs: int) -> None:
        if not self.shuffle:
            return
        n_seen = len(self._seen)
        if n_epochs:
            self._places = self._seen[n_epochs - 1]
        self._seen = []
        if self._scout is self.rng:
            if n_epochs == n_seen:
                return
            self.rng.set_state(self._before)
        # NumPy's own never goes back: others may have drawn from it meanwhile.
        for _ in range(n_epochs):
            self._permutation(self.rng)

    def draw(self) -> ListedEpoch:
        if not self.shuffle:
            return ListedEpoch(self._rows, self.batch_size)
        # The generator goes on: to keep where it was takes as long as a thousand numbers.
        self._places = self._places[self._permutation(self.rng)]
        return ListedEpoch(self._rows[self._places], self.batch_size)

    def _permutation(self, rng: np.random.RandomState) -> np.ndarray:
        permutation = np.arange(self.n_rows)
        rng.shuffle(permutation)
        return permutation


class BlockOrder:
    """A shuffle that needs memory for one window of blocks, not for the whole table.

    The table is cut into as many strata of neighbouring blocks as a window has blocks. Each
    epoch gives each window one block of each stratum, drawn without replacement, and permutes
    the rows of each window together. Workers hold neighbours, so all have a share of every
    window. Minibatches are consecutive slices, and may span two windows, so that all but the
    last are of one size. Every draw comes from a generator keyed by (seed, epoch, window):
    ranks agree without a message.

    Parameters
    ----------
    lengths : tuple of int
        Rows of each block.
    batch_size : int
    seed : int
    held_out : float
        Fraction of the rows, drawn per block, that no batch contains.
    n_windows : int
    """

    in_windows = True

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        *,
        held_out: float = 0.0,
        n_windows: int = 1,
    ) -> None:
        self.lengths = tuple(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.held_out = held_out
        self.n_windows = n_windows
        self.n_held_out = held_out_counts(self.lengths, held_out)
        self.n_rows = sum(self.lengths) - sum(self.n_held_out)
        self._epoch = 0

    def ahead(self, n_epochs: int) -> "list[KeyedEpoch]":
        return [KeyedEpoch(self, self._epoch + i) for i in range(n_epochs)]

    def take(self, n_epochs: int) -> None:
        self._epoch += n_epochs

    def draw(self) -> "KeyedEpoch":
        self._epoch += 1
        return KeyedEpoch(self, self._epoch - 1)

    def held_out_rows(self, places: RowMap) -> list[np.ndarray]:
        """Local numbers of the rows left out of training, for each rank, ascending."""
        rows: list[list[np.ndarray]] = [[] for _ in range(places.n_ranks)]
        for block, owner in enumerate(places.owners):
            rows[owner].append(places.local_starts[block] + self._held_out_in(block))
        return [np.concatenate(of_rank) if of_rank else np.arange(0) for of_rank in rows]

    def _held_out_in(self, block: int) -> np.ndarray:
        draw = np.random.default_rng([self.seed, 1, block])
        chosen = draw.choice(self.lengths[block], self.n_held_out[block], replace=False)
        return np.sort(chosen)

    def trained_in(self, block: int) -> np.ndarray:
        """Numbers, within their block, of the rows to train on."""
        kept = np.ones(self.lengths[block], bool)
        kept[self._held_out_in(block)] = False
        return np.flatnonzero(kept)

    def windows(self, epoch: int) -> Iterator[tuple[np.random.Generator, list[int]]]:
        """Blocks of each window, with the generator that permutes their rows."""
        draw = np.random.default_rng([self.seed, 2, epoch])
        windows: list[list[int]] = [[] for _ in range(self.n_windows)]
        for start in range(0, len(self.lengths), self.n_windows):
            stratum = range(start, min(start + self.n_windows, len(self.lengths)))
            chosen = draw.permutation(self.n_windows)[: len(stratum)]
            for block, window in zip(stratum, chosen.tolist(), strict=True):
                windows[window].append(block)
        for number, window in enumerate(windows):
            yield np.random.default_rng([self.seed, 3, epoch, number]), window


def n_windows_of(n_blocks: int, n_bytes: int) -> int:
    """How many windows a table is cut into, by its blocks and the bytes of its rows."""
    return max(1, min(-(-n_blocks // WINDOW_BLOCKS), -(-n_bytes // WINDOW_BYTES)))


@dataclass(frozen=True)
class KeyedEpoch:
    """An order as the key that every rank computes its batches from."""

    order: BlockOrder
    epoch: int

    @property
    def batch_size(self) -> int:
        return self.order.batch_size

    def shares(self, places: RowMap) -> list[Batches]:
        return [
            KeyedBatches(self.order, places, rank, self.epoch)
            for rank in range(places.n_ranks)
        ]


@dataclass(frozen=True)
class KeyedBatches:
    """One rank's batches of a block-wise order, computed where they are used."""

    order: BlockOrder
    places: RowMap
    rank: int
    epoch: int

    @property
    def batch_size(self) -> int:
        return self.order.batch_size

    def __len__(self) -> int:
        return -(-self.order.n_rows // self.order.batch_size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        for rows, size, _ in self._cut(lambda rows: None):
            yield rows, size

    def most_rows(self) -> int:
        """How many rows this rank holds of the window of which it holds most."""
        held = [
            length * (owner == self.rank)
            for length, owner in zip(self.order.lengths, self.places.owners, strict=True)
        ]
        windows = self.order.windows(self.epoch)
        return max(sum(held[block] for block in window) for _, window in windows)

    def gathered(self, room: BatchRoom) -> Iterator[Gathered]:
        for rows, size, parts in self._cut(room.blocks.in_order):
            batch, weight = room.copy(parts) if parts else (None, 0.0)
            parts.clear()  # views of their window, which is to go before the next one is read
            yield rows, size, batch, weight

    def _cut(
        self, read: Callable[[np.ndarray], Block | None]
    ) -> Iterator[tuple[np.ndarray, int, list[Block]]]:
        """Minibatches, with their rows in parts of what is read of each window at once."""
        size, remaining = self.order.batch_size, self.order.n_rows
        waiting: list[np.ndarray] = []  # local rows of the batch under way, -1 elsewhere
        parts: list[Block] = []  # those of them that are here
        n_waiting = 0
        for draw, window in self.order.windows(self.epoch):
            rows = np.concatenate([np.arange(0), *(self._local_rows(b) for b in window)])
            rows = draw.permutation(rows)
            here = rows >= 0
            read_rows = read(rows[here]) if here.any() else None
            # Of the window's first n rows, how many are here.
            n_here = np.concatenate([[0], np.cumsum(here)])
            start = 0
            while n_waiting + len(rows) - start >= min(size, remaining) > 0:
                stop = start + min(size, remaining) - n_waiting
                if read_rows is not None and n_here[start] < n_here[stop]:
                    parts.append(read_rows[n_here[start] : n_here[stop]])
                batch = np.concatenate([*waiting, rows[start:stop]])
                yield batch[batch >= 0], len(batch), parts
                remaining -= len(batch)
                parts = []
                start, waiting, n_waiting = stop, [], 0
            waiting.append(rows[start:])
            n_waiting += len(rows) - start
            if read_rows is not None and n_here[start] < n_here[-1]:
                # Not a view, which would keep the whole window while the next one is read.
                parts.append(read_rows[np.arange(n_here[start], n_here[-1])])
            del read_rows

    def _local_rows(self, block: int) -> np.ndarray:
        if self.places.owners[block] != self.rank:
            return np.full(self.order.lengths[block] - self.order.n_held_out[block], -1)
        rows: np.ndarray = self.places.local_starts[block] + self.order.trained_in(block)
        return rows


def held_out_counts(lengths: Sequence[int], fraction: float) -> tuple[int, ...]:
    """Rows to hold out of each block: as many in all as of one table of their rows."""
    ends = np.ceil(np.cumsum([0, *lengths]) * fraction - 1e-9).astype(int)
    counts = np.minimum(np.diff(ends), lengths)
    return tuple(counts.tolist())
