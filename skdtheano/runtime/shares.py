"""Which worker of a cluster holds which blocks of a fit."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from itertools import accumulate, zip_longest

from dask.utils import format_bytes
from distributed.scheduler import KilledWorker

from skdtheano.runtime.cluster import ClusterSite
from skdtheano.runtime.failures import WorkersLost
from skdtheano.runtime.order import RowMap
from skdtheano.runtime.sites import Check, Handle
from skdtheano.runtime.tasks import Stored, itself
from skdtheano.runtime.workers import assign_blocks, first_owners

#: Share of a worker's memory that rows may take; above it dask pauses workers by default.
_MOST_OF_MEMORY = 0.8


class Shares:
    """The blocks of one fit, each on one of the workers that are there now.

    Blocks are moved before they are needed, and each once: what dask moves for a task is a
    copy, which it may drop between two tasks, and move again.

    Parameters
    ----------
    site : ClusterSite
    blocks : list of Future
        A `Block` each.
    lengths : list of int
        Rows of each block.
    numbers : list of int
        What each block is called: its number in the table.
    one_by_one : bool
        Whether a task needs few of its blocks at a time, and is to read them one by one: the
        others may be on the workers' disks meanwhile.

    Attributes
    ----------
    workers : list of str
        Those that hold blocks, by rank.
    places : RowMap

    Raises
    ------
    ValueError
        If a worker has too little memory for all of its blocks, and needs them at once.
    WorkersLost
        If blocks are lost and cannot be made again; names their rows.
    """

    workers: list[str]
    places: RowMap

    def __init__(
        self,
        site: ClusterSite,
        blocks: list[Handle],
        lengths: list[int],
        numbers: list[int],
        one_by_one: bool = False,
    ) -> None:
        self.site = site
        self.one_by_one = one_by_one
        self._blocks = list(blocks)
        self._lengths = tuple(lengths)
        self._numbers = numbers
        self._choose: Callable[..., list[str]] = first_owners
        self._owners: list[str] = []
        #: For moves of blocks: whoever is silent is restarted, and the round run again.
        self._check: Check | None = None
        self.share_out()
        self._choose = assign_blocks  # from now on blocks move only as needed
        self._check = lambda workers: None
        if not one_by_one:
            self._check_room()

    def share_out(self) -> None:
        """Choose each block's worker among those that are there now, and number these.

        Moves the blocks to their workers.

        A block stays where it lies unless that worker would hold too much, or takes no task.
        """
        self.site.wait(self._blocks)
        self._raise_lost()
        known = self.site.crew_now()
        self._known = set(known)
        holders = self.site.holders(self._blocks, known)
        # Of a block that has moved the worker before has a copy too, and dask drops one of
        # the two some time: it stays with who had it last.
        stays = [
            owner if owner in known else holder
            for owner, holder in zip_longest(self._owners, holders)
        ]
        owners = self._moved(holders, self._choose(self._lengths, stays, known), known)
        self._owners = owners
        # Sums are added in this order: that of the blocks, not of addresses.
        self.workers = list(dict.fromkeys(owners))
        ranks = tuple(self.workers.index(owner) for owner in owners)
        self.places = RowMap(self._lengths, ranks, len(self.workers))

    def are_current(self) -> bool:
        """Whether no worker has joined or left since blocks were shared out."""
        return set(self.site.crew_now()) == self._known

    def blocks_of(self, rank: int) -> list[Handle] | Stored:
        """An argument for a task that stands for the rank's blocks."""
        own = self._of(rank)
        if self.one_by_one:
            return Stored([self._blocks[i].key for i in own], [self._lengths[i] for i in own])
        return [self._blocks[i] for i in own]

    def names(self, rank: int, blocks: Iterable[int]) -> list[int]:
        """What some of a rank's blocks are called, by their places among these."""
        own = self._of(rank)
        return [self._numbers[own[i]] for i in blocks]

    def _of(self, rank: int) -> list[int]:
        return [i for i, owner in enumerate(self.places.owners) if owner == rank]

    def _raise_lost(self) -> None:
        lost = [i for i, block in enumerate(self._blocks) if block.status != "finished"]
        if not lost:
            return
        self.site.workers()  # says so if it is the client that is gone
        error = self._blocks[lost[0]].exception()
        if error is not None and not isinstance(error, KilledWorker | CancelledError):
            raise error  # what its own loading says
        why = "" if error is None else f": {error}"
        raise WorkersLost(
            f"{rows_in_words(lost, self._lengths)} of the training data (blocks "
            f"{[self._numbers[i] for i in lost]}) cannot be had any more{why}. Rows that "
            "were scattered, or that came from memory, are lost with their worker; load them "
            "with dask.array or dask.dataframe, which can load them again."
        ) from error

    def _moved(
        self, holders: Sequence[str | None], owners: Sequence[str], known: Sequence[str]
    ) -> list[str]:
        """Move blocks to their owners; return where they are then."""
        for i, (holder, owner) in enumerate(zip(holders, owners, strict=True)):
            if holder != owner:
                self._blocks[i] = self.site.submit(
                    itself, self._blocks[i], workers=[owner], allow_other_workers=True
                )
        self.site.wait(self._blocks, self._check)
        now = self.site.holders(self._blocks, known)
        # One that was lost meanwhile is missed in the round, which is then run again.
        return [holder or owner for holder, owner in zip(now, owners, strict=True)]

    def _check_room(self) -> None:
        sizes, limits = self.site.sizes(self._blocks), self.site.memory_limits()
        for rank, worker in enumerate(self.workers):
            needed, limit = sum(sizes[i] for i in self._of(rank)), limits.get(worker, 0)
            if limit and needed > _MOST_OF_MEMORY * limit:
                raise ValueError(
                    f"Worker {worker} would hold {format_bytes(needed)} of rows at once, and "
                    f"may take {format_bytes(limit)} of memory. Fit with shuffle='blocks' and "
                    "solver='adam' or 'sgd', which needs a few blocks at a time and leaves "
                    "the others on disk; or with more workers, or more memory for each."
                )


def rows_in_words(blocks: Sequence[int], lengths: Sequence[int]) -> str:
    """The rows of some blocks in words, with neighbours put together."""
    ends = list(accumulate(lengths))
    ranges: list[tuple[int, int]] = []
    for i in blocks:
        start, stop = ends[i] - lengths[i], ends[i]
        if ranges and ranges[-1][1] == start:
            start = ranges.pop()[0]
        ranges.append((start, stop))
    return "Rows " + ", ".join(f"{start} to {stop - 1}" for start, stop in ranges)
