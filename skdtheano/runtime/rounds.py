"""Training on a dask cluster: one round of tasks per epoch, one task per worker with rows.

The tasks of a round wait for each other, which dask does not schedule as a gang. So each
secedes at once (it then holds no thread slot), waits only for workers that answer, and
ends when its caller cancels it. A round that loses a worker is run again, from the state
that the last round left, on the workers that are there then.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from distributed import get_worker, secede
from distributed.scheduler import KilledWorker

from skdtheano.runtime.blocks import Block
from skdtheano.runtime.collective import ExchangePlugin, Peers, RoundAborted
from skdtheano.runtime.local import HeldOut
from skdtheano.runtime.model import Model
from skdtheano.runtime.order import Batches, Epoch, ListedBatches, RowMap
from skdtheano.runtime.parameters import TrainState
from skdtheano.runtime.program import Program
from skdtheano.runtime.scores import ScoreSums
from skdtheano.runtime.sites import ClusterSite, Handle
from skdtheano.runtime.steps import LossSums, StepSettings, loss_sums, run_epoch, score_sums

#: Seconds of silence, pings included, after which a worker counts as lost.
DEADLINE = 30.0

#: Failures of one round after which the fit ends in an error.
MAX_FAILURES = 3

#: Arguments of more bytes go to their worker as data, not through the scheduler's graph.
_SCATTER_BYTES = 2**20

#: Sums that one task adds up.
_FAN_IN = 8


@dataclass(frozen=True)
class RoundResult:
    """What a round leaves on each of its workers: the same state, the same loss."""

    state: TrainState
    loss: float


@dataclass(frozen=True)
class Seat:
    """A task's place in its round."""

    round_id: str
    rank: int
    addresses: list[str]
    deadline: float


def train_round(
    model: Model,
    blocks: list[Block],
    before: RoundResult,
    batches: Batches,
    settings: StepSettings,
    seat: Seat,
) -> RoundResult:
    """One worker's part of an epoch; runs as a task."""
    worker = get_worker()
    key = str(worker.get_current_task())
    secede()
    plugin = worker.plugins[ExchangePlugin.name]
    assert isinstance(plugin, ExchangePlugin)
    state = before.state.copy()
    with (
        Peers(plugin, seat.round_id, seat.rank, seat.addresses, seat.deadline, key) as peers,
        Program(model.spec) as program,
    ):
        rows = model.rows_of(blocks)
        loss = run_epoch(program, model.layout, rows, batches, state, settings, peers)
    return RoundResult(state, loss)


def loss_of(result: RoundResult) -> float:
    """The number of a round that its caller decides by; runs as a task."""
    return result.loss


def score_blocks(
    model: Model, blocks: list[Block], rows: np.ndarray, result: RoundResult
) -> ScoreSums:
    """One worker's part of the validation score; runs as a task."""
    with Program(model.spec) as program:
        return score_sums(
            program, model.layout, model.rows_of(blocks), rows, result.state.theta
        )


def evaluate_blocks(model: Model, blocks: list[Block], theta: np.ndarray) -> LossSums:
    """One worker's part of the full loss and gradient; runs as a task."""
    with Program(model.spec) as program:
        return loss_sums(program, model.layout, model.rows_of(blocks), theta)


def add_up(parts: list[Any]) -> Any:
    """Sum in the order given; runs as a task."""
    return reduce(add, parts)


class RoundFailed(Exception):
    """A round has to be run again; the text says why."""


class ClusterRuntime:
    """Drives the rounds of one fit.

    Parameters
    ----------
    model : Model
    site : ClusterSite
    blocks : list of Future
        A `Block` each.
    lengths : list of int
        Rows of each block.
    state : TrainState
        To begin with.
    held_out : callable, optional
        From a `RowMap` to each rank's validation rows.
    deadline : float
        Seconds; see `Peers`.
    """

    def __init__(
        self,
        model: Model,
        site: ClusterSite,
        blocks: list[Handle],
        lengths: list[int],
        state: TrainState,
        held_out: HeldOut | None = None,
        deadline: float = DEADLINE,
    ) -> None:
        self._site = site
        self._model = model
        self._blocks: list[Handle] = blocks
        self._lengths = tuple(lengths)
        self._draw_held_out = held_out
        self._deadline = deadline
        self._before: list[Handle] = self._site.put([RoundResult(state, 0.0)])
        self._best: Handle | None = None
        self._group()

    def run_epoch(self, epoch: Epoch, settings: StepSettings) -> float:
        """Run one round, again if it loses a worker.

        Raises
        ------
        RuntimeError
            If the round failed ``MAX_FAILURES`` times; names the causes.
        """
        causes: list[str] = []
        while True:
            try:
                return self._run_round(epoch, settings)
            except RoundFailed as failure:
                causes.append(str(failure))
                if len(causes) == MAX_FAILURES:
                    raise RuntimeError(
                        f"Epoch {settings.epoch} failed {MAX_FAILURES} times on the cluster:\n"
                        + "\n".join(f"{i + 1}. {cause}" for i, cause in enumerate(causes))
                        + "\nSee the workers' logs (client.get_worker_logs())."
                    ) from failure
                self._survivors()
                self._group()

    def _run_round(self, epoch: Epoch, settings: StepSettings) -> float:
        round_id = f"skdtheano-epoch-{settings.epoch}-{uuid.uuid4().hex[:12]}"
        tasks: list[Handle] = []
        try:
            for rank, batches in enumerate(epoch.shares(self._places)):
                worker = self._workers[rank]
                tasks.append(
                    self._site.submit(
                        train_round,
                        self._model,
                        self._blocks_of(rank),
                        self._before[rank % len(self._before)],
                        self._sent(batches, worker),
                        settings,
                        Seat(round_id, rank, self._workers, self._deadline),
                        key=f"{round_id}-{rank}",
                        workers=[worker],
                        priority=10,
                    )
                )
            report = self._site.submit(
                loss_of, tasks[0], workers=[self._workers[0]], key=f"{round_id}-loss"
            )
            self._site.wait([*tasks, report], self._check_round(tasks))
            self._raise_failures(tasks)
            loss: float = self._site.client.gather(report)
        except BaseException:
            # Cancelled tasks leave their round at its next exchange.
            self._site.client.cancel(tasks, force=True)
            raise
        self._before = tasks
        return loss

    def _check_round(self, tasks: list[Handle]) -> Callable[[list[str]], None]:
        def check(workers: list[str]) -> None:
            lost = sorted(set(self._workers) - set(workers))
            if lost:
                raise RoundFailed(f"lost worker {', '.join(lost)}")
            if any(task.status == "error" for task in tasks):
                # The others were told by their peer; those that cannot hear are cancelled.
                self._raise_failures(tasks)

        return check

    def _raise_failures(self, tasks: list[Handle]) -> None:
        errors = [task.exception() for task in tasks if task.status == "error"]
        own = [error for error in errors if not isinstance(error, RoundAborted | KilledWorker)]
        if own:
            raise own[0]
        if errors:
            raise RoundFailed("; ".join(sorted({str(error) for error in errors})))
        if any(task.status != "finished" for task in tasks):
            if self._site.client.status != "running":
                raise ConnectionError("The client was closed while it trained.")
            raise RoundFailed("the tasks of the round were cancelled")

    def validation_sums(self) -> ScoreSums:
        assert self._held_out is not None
        parts = [
            self._site.submit(
                score_blocks,
                self._model,
                self._blocks_of(rank),
                rows,
                self._before[rank % len(self._before)],
                workers=[self._workers[rank]],
                allow_other_workers=True,
            )
            for rank, rows in enumerate(self._held_out)
        ]
        total: ScoreSums = self._total(parts)
        return total

    def loss_sums(self, theta: np.ndarray) -> LossSums:
        sent = self._sent(theta, None)
        parts = [
            self._site.submit(
                evaluate_blocks,
                self._model,
                self._blocks_of(rank),
                sent,
                workers=[worker],
                allow_other_workers=True,
            )
            for rank, worker in enumerate(self._workers)
        ]
        total: LossSums = self._total(parts)
        return total

    def keep_best(self) -> None:
        self._best = self._before[0]

    def state(self) -> TrainState:
        [result] = self._site.get(self._before[:1])
        state: TrainState = result.state
        return state

    def best(self) -> np.ndarray | None:
        if self._best is None:
            return None
        [result] = self._site.get([self._best])
        theta: np.ndarray = result.state.theta
        return theta

    def _group(self) -> None:
        """Find out who holds which block now, and number those workers."""
        self._site.wait(self._blocks)
        broken = [i for i, block in enumerate(self._blocks) if block.status != "finished"]
        if broken:
            error = self._blocks[broken[0]].exception()
            raise RuntimeError(
                f"Blocks {broken} of the training rows cannot be had any more: {error}. Rows "
                "that were scattered, or that came from memory, are lost with their worker; "
                "load them with dask.array or dask.dataframe, which can load them again."
            ) from error
        workers = self._site.workers()
        holders = self._site.holders(self._blocks)
        owners = [holder if holder in workers else workers[0] for holder in holders]
        self._workers = sorted(set(owners))
        ranks = tuple(self._workers.index(owner) for owner in owners)
        self._places = RowMap(self._lengths, ranks, len(self._workers))
        draw = self._draw_held_out
        self._held_out = None if draw is None else draw(self._places)

    def _survivors(self) -> None:
        """Keep the copies of the state that still lie on a worker.

        Raises
        ------
        RuntimeError
            If no worker that took part in the last round is left.
        """
        workers = self._site.workers()
        holders = self._site.holders(self._before)
        kept = [
            result
            for result, holder in zip(self._before, holders, strict=True)
            if holder in workers
        ]
        if not kept:
            raise RuntimeError(
                "All workers that held the model were lost at once, and its last state with "
                "them. Fit again; more than one worker keeps a copy each."
            )
        self._before = kept

    def _blocks_of(self, rank: int) -> list[Handle]:
        return [
            block
            for block, owner in zip(self._blocks, self._places.owners, strict=True)
            if owner == rank
        ]

    def _sent(self, argument: Any, worker: str | None) -> Any:
        """An argument as it is or, where it is large, as data on a worker."""
        rows = argument.rows if isinstance(argument, ListedBatches) else argument
        if isinstance(rows, np.ndarray) and rows.nbytes > _SCATTER_BYTES:
            return self._site.client.scatter(
                argument, hash=False, workers=None if worker is None else [worker]
            )
        return argument

    def _total(self, parts: Sequence[Handle]) -> Any:
        level = list(parts)
        while len(level) > 1:
            level = [
                self._site.submit(add_up, level[i : i + _FAN_IN])
                for i in range(0, len(level), _FAN_IN)
            ]
        [total] = self._site.get(level)
        return total
