"""What runs as a task on a dask worker during a fit."""

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from dask.sizeof import sizeof
from distributed import Worker, get_worker, secede
from distributed.core import Status

from skdtheano.runtime.background import is_asked_for, training_thread
from skdtheano.runtime.blas import blas_threads, threads_that_pay
from skdtheano.runtime.blocks import Block, RowBlocks
from skdtheano.runtime.local_steps import run_local_epoch
from skdtheano.runtime.mailbox import ExchangePlugin, RoundAborted
from skdtheano.runtime.model import Model
from skdtheano.runtime.order import Batches, KeyedBatches, ListedBatches
from skdtheano.runtime.parameters import TrainState
from skdtheano.runtime.peers import Peers
from skdtheano.runtime.program import Program
from skdtheano.runtime.scores import ScoreSums
from skdtheano.runtime.steps import (
    Course,
    LossSums,
    StepSettings,
    Workspace,
    complete_slots,
    loss_sums,
    run_epoch,
    score_sums,
)

#: A state of more bytes stays on the workers, which all have it.
_REPORTED_BYTES = 2**20
_REPORTED_BYTES_OF_ONE = 2**26

#: A worker's share of a minibatch is filled up to a multiple of so many rows.
_ROWS_AT_ONCE = 8

#: Seconds within which blocks come from the disk, or go there, or the round is given up.
_DISK_SECONDS = 60.0


@dataclass(frozen=True)
class RoundResult:
    """What a round leaves on each of its workers: the same values, bit for bit.

    Attributes
    ----------
    state : TrainState
    losses : list of float
        Of each epoch of the round.
    seconds : list of float
        That each epoch took.
    best : ndarray or None
        The parameters to go back to, as of an earlier round.
    """

    state: TrainState
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best: np.ndarray | None = None

    def __sizeof__(self) -> int:
        # dask weighs by this what a worker holds, spills and moves.
        return sum(sizeof(a) for a in (self.state.theta, *self.state.slots, self.best))


@dataclass(frozen=True)
class Stored:
    """Blocks that a worker holds, in memory or spilled to its disk.

    A task that is given blocks has them all in memory; one that is given this reads each
    when it needs it.

    Attributes
    ----------
    keys : list of str
        Of dask's tasks that made the blocks.
    lengths : list of int
    """

    keys: list[str]
    lengths: list[int]


class _StoredBlocks(Sequence[Block]):
    def __init__(self, keys: list[str], worker: Worker) -> None:
        self.keys, self.worker = keys, worker

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: Any) -> Any:
        return self._in_event_loop(self._read(self.keys[i]))

    def make_room(self, n_rows: int) -> None:
        """Let dask put as much on the disk as so many rows take, before they are read.

        By itself it does so once the memory is nearly full, and its nanny may be faster.
        """
        if len(self) and (first := self[0]) and len(first):
            self._in_event_loop(self._spill(n_rows * sizeof(first) // len(first)))

    def _in_event_loop(self, coroutine: Any) -> Any:
        # As dask itself reads and writes what it has on the disk.
        loop: Any = self.worker.loop
        call = asyncio.run_coroutine_threadsafe(coroutine, loop.asyncio_loop)
        try:
            return call.result(_DISK_SECONDS)
        except TimeoutError:
            call.cancel()
            raise RoundAborted(
                f"the disk of worker {self.worker.address} took more than {_DISK_SECONDS:g} s"
            ) from None

    async def _spill(self, n_bytes: int) -> None:
        data: Any = self.worker.data
        memory: Any = self.worker.memory_manager
        limit, fraction = memory.memory_limit, memory.memory_spill_fraction
        if not (limit and fraction and hasattr(data, "evict")):
            return  # it has no disk
        over = self.worker.monitor.get_process_memory() + n_bytes - fraction * limit
        while over > 0 and data.memory:
            freed = data.evict()
            if freed < 0:
                return  # dask has logged why
            over -= freed
            await asyncio.sleep(0)  # heartbeats go on

    async def _read(self, key: str) -> Any:
        data: Any = self.worker.data
        try:
            # What is asked of the buffer itself moves to memory, and something else from
            # there to the disk, which would write the whole table once an epoch.
            if key in getattr(data, "disk", ()):
                return data.disk[key]
            return data[key]
        except KeyError:
            raise RoundAborted(f"worker {self.worker.address} has lost a block") from None


def _rows(model: Model, blocks: list[Block] | Stored) -> RowBlocks:
    if isinstance(blocks, Stored):
        return model.rows_of(_StoredBlocks(blocks.keys, get_worker()), blocks.lengths)
    return model.rows_of(blocks)


@dataclass(frozen=True)
class Seat:
    """A task's place in its round."""

    round_id: str
    rank: int
    addresses: list[str]
    deadline: float
    shared_memory: bool
    is_profiled: bool = field(default_factory=is_asked_for)


def itself(block: Block) -> Block:
    """A block on the worker of the task."""
    return block


def train_round(
    model: Model,
    blocks: list[Block] | Stored,
    before: RoundResult,
    epochs: list[Batches],
    course: Course,
    keep: bool,
    seat: Seat,
) -> RoundResult:
    """One worker's part of some epochs; with `keep` their beginning is the best so far.

    Ends sooner where the course does, which all ranks find alike.
    """
    given = before.state
    state = TrainState(given.theta, list(given.slots), given.step)
    course = course.silent_copy()  # ranks that are threads are given the same one
    losses: list[float] = []
    seconds: list[float] = []
    with _taken(seat) as peers, Program(model.spec) as program:
        rows = _rows(model, blocks)
        if not isinstance(rows.blocks, _StoredBlocks):
            rows = rows.for_gathers(sum(map(len, epochs)))
        workspace = Workspace(program, model.layout, rows, _multiple_of(seat))
        with _threads(model, epochs[0].batch_size // len(seat.addresses)):
            for batches in epochs:
                if losses:
                    course.take(losses[-1])
                    if not course.n_left:
                        break
                began = time.perf_counter()
                if isinstance(rows.blocks, _StoredBlocks) and isinstance(
                    batches, KeyedBatches
                ):
                    rows.blocks.make_room(batches.most_rows())
                settings = course.settings()
                is_local = settings.sync_every > 1 and peers.n_ranks > 1
                run = run_local_epoch if is_local else run_epoch
                losses.append(run(workspace, batches, state, settings, peers))
                seconds.append(time.perf_counter() - began)
        if not is_local:  # where slots are averages, at the end of each epoch
            complete_slots(state, peers)
        # A copy: what the ranks share goes with the round.
        state = state.copy()
    return RoundResult(state, losses, seconds, given.theta if keep else before.best)


#: Made-up rows of a trial, by those of a minibatch that a rank has.
ROWS_HELD = 2


def timed_steps(
    model: Model, n_rows: int, n_steps: int, settings: StepSettings, seat: Seat
) -> float:
    """Seconds of a step on made-up rows, of which each rank has `n_rows`: the least of 3.

    Each rank in turn has a few rows more, for which all others wait: as many as, of rows that
    are drawn, the rank with most has above the mean.
    """
    rng = np.random.default_rng(seat.rank)
    layout, dtype = model.layout, model.dtype
    row_dtype = np.dtype(model.spec.network.row_dtype)
    wide = row_dtype if row_dtype.kind == "f" else np.dtype(np.float64)
    n_held = ROWS_HELD * n_rows
    rows = rng.random((n_held, layout.units[0]), wide).astype(row_dtype, copy=False)
    targets = rng.random((n_held, layout.units[-1])).astype(dtype)
    theta = np.random.default_rng(0).uniform(-0.1, 0.1, layout.n_parameters).astype(dtype)
    n_slots = settings.optimizer.n_slots
    state = TrainState(theta, [np.zeros_like(theta) for _ in range(n_slots)])
    size, n_ranks = n_rows * len(seat.addresses), len(seat.addresses)
    # Of n normal variables the largest is about 0.7 sqrt(2 log n) standard deviations up.
    most = n_rows + round(0.7 * math.sqrt(2 * math.log(n_ranks) * n_rows * (1 - 1 / n_ranks)))

    def batches(n: int) -> ListedBatches:
        counts = np.where(np.arange(n) % n_ranks == seat.rank, most, n_rows)
        return ListedBatches(rng.integers(n_held, size=counts.sum()), counts, size, n * size)

    with _taken(seat) as peers, Program(model.spec) as program:
        made_up = model.rows_of([Block(rows, targets, None)])
        workspace = Workspace(program, layout, made_up, _multiple_of(seat))
        times = []
        with _threads(model, size // n_ranks):
            for n in (n_ranks, *[n_steps] * 3):  # the first one binds, and compiles
                began = time.perf_counter()
                run_epoch(workspace, batches(n), state, settings, peers)
                times.append((time.perf_counter() - began) / n)
    return min(times[1:])


@contextmanager
def _taken(seat: Seat) -> Iterator[Peers]:
    """Give the task's thread slot up, and take part in the round of its seat."""
    worker = get_worker()
    key = str(worker.get_current_task())
    secede()
    plugin = worker.plugins[ExchangePlugin.name]
    assert isinstance(plugin, ExchangePlugin)
    peers = Peers(
        plugin,
        seat.round_id,
        seat.rank,
        seat.addresses,
        seat.deadline,
        key,
        seat.shared_memory,
    )
    with peers, training_thread(seat.is_profiled):
        yield peers


def _multiple_of(seat: Seat) -> int:
    # Of several workers each has a few rows more or less of every minibatch.
    return 1 if len(seat.addresses) == 1 else _ROWS_AT_ONCE


def _threads(model: Model, n_rows: int) -> AbstractContextManager[None]:
    n_own = _own_threads(get_worker())
    return blas_threads(threads_that_pay(model.layout, n_rows, n_own))


def _own_threads(worker: Worker) -> int:
    """Cores that are this worker's, as far as dask tells; of those that share a process, 1."""
    alone = len([w for w in Worker._instances if w.status is not Status.closed]) == 1
    return max(worker.state.nthreads, 1) if alone else 1


def is_reported(n_bytes: int, n_copies: int) -> bool:
    """Whether the caller of a round gets all of its result, of so many bytes.

    With it a fit survives the loss of all its workers. Where only one has a copy, more than
    a little is worth it.
    """
    return n_bytes <= (_REPORTED_BYTES if n_copies > 1 else _REPORTED_BYTES_OF_ONE)


def without_state(result: RoundResult) -> RoundResult:
    """What the caller gets otherwise."""
    return RoundResult(TrainState(np.empty(0)), result.losses, result.seconds)


def score_blocks(
    model: Model, blocks: list[Block] | Stored, rows: np.ndarray, result: RoundResult
) -> ScoreSums:
    """One worker's part of the validation score."""
    with Program(model.spec) as program:
        return score_sums(
            program, model.layout, _rows(model, blocks), rows, result.state.theta
        )


def evaluate_blocks(model: Model, blocks: list[Block], theta: np.ndarray) -> LossSums:
    """One worker's part of the full loss and gradient."""
    with Program(model.spec) as program:
        return loss_sums(program, model.layout, model.rows_of(blocks), theta)
