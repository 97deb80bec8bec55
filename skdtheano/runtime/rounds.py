"""Training on a dask cluster: one round of tasks per epoch, one task per worker with rows.

The tasks of a round wait for each other, which dask does not schedule as a gang. So each
secedes at once (it then holds no thread slot), waits only for workers that answer, and
ends when its caller cancels it. A round that loses a worker is run again, from the state
that the last round left, on the workers that are there then.
"""

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from distributed.scheduler import KilledWorker

from skdtheano.runtime.mailbox import RoundAborted
from skdtheano.runtime.model import Model
from skdtheano.runtime.order import Epoch, HeldOut, ListedBatches, RowMap
from skdtheano.runtime.parameters import TrainState
from skdtheano.runtime.scores import ScoreSums
from skdtheano.runtime.sites import Check, ClusterSite, Handle, ValueLost
from skdtheano.runtime.steps import LossSums, StepSettings
from skdtheano.runtime.tasks import (
    RoundResult,
    Seat,
    evaluate_blocks,
    loss_of,
    score_blocks,
    train_round,
)

Result = TypeVar("Result")

#: Seconds of silence, pings included, after which a worker counts as lost.
DEADLINE = 30.0

#: Failures of one round after which the fit ends in an error.
MAX_FAILURES = 3

#: Arguments of more bytes go to their worker as data, not through the scheduler's graph.
_SCATTER_BYTES = 2**20

_MODEL_LOST = (
    "All workers that held the model were lost at once, and its last state with them. Fit "
    "again; every worker that holds rows keeps a copy."
)


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
        self._initial: RoundResult | None = RoundResult(state, 0.0)
        self._copies: list[Handle] = self._site.put([self._initial])
        self._keeps = False  # whether the state of now is the best
        self._sent_held_out: list[Any] | None = None
        self._group()

    def run_epoch(self, epoch: Epoch, settings: StepSettings) -> float:
        """Run one round, again if it loses a worker.

        Raises
        ------
        RuntimeError
            If the round failed ``MAX_FAILURES`` times; names the causes.
        """
        return self._retried(
            f"Epoch {settings.epoch}", lambda: self._run_round(epoch, settings)
        )

    def _retried(self, what: str, attempt: Callable[[], Result]) -> Result:
        causes: list[str] = []
        while True:
            try:
                return attempt()
            except (RoundFailed, ValueLost) as failure:
                causes.append(str(failure))
                if len(causes) == MAX_FAILURES:
                    raise RuntimeError(
                        f"{what} failed {MAX_FAILURES} times on the cluster:\n"
                        + "\n".join(f"{i + 1}. {cause}" for i, cause in enumerate(causes))
                        + "\nSee the workers' logs (client.get_worker_logs())."
                    ) from failure
                self._keep_living_copies()
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
                        self._copy_for(rank),
                        self._sent(batches, worker),
                        settings,
                        self._keeps,
                        Seat(round_id, rank, self._workers, self._deadline),
                        key=f"{round_id}-{rank}",
                        workers=[worker],
                        priority=10,
                    )
                )
            report = self._site.submit(
                loss_of, tasks[0], workers=[self._workers[0]], key=f"{round_id}-loss"
            )
            self._site.wait([*tasks, report], self._check(tasks))
            self._raise_failures(tasks)
            [loss] = self._site.get([report], self._check(tasks))
        except BaseException:
            # Cancelled tasks leave their round at its next exchange. A closed client has
            # cancelled them by itself, and says so here in words that would hide ours.
            with suppress(Exception):
                self._site.client.cancel(tasks, force=True)
            raise
        self._copies, self._initial, self._keeps = tasks, None, False
        return float(loss)

    def _check(self, tasks: Sequence[Handle]) -> Check:
        """What to look at while waiting for tasks of the workers that hold rows."""
        began, patience = time.monotonic(), self._site.patience / 2
        stuck_since: dict[str, float] = {}

        def check(workers: list[str]) -> None:
            lost = sorted(set(self._workers) - set(workers))
            if lost:
                raise RoundFailed(f"lost worker {', '.join(lost)}")
            if any(task.status == "error" for task in tasks):
                # The others were told by their peer; those that cannot hear are cancelled.
                self._raise_failures(tasks)
            now = time.monotonic()
            if now - began < patience:
                return
            stuck = self._site.stuck_workers(self._workers, tasks)
            for worker in set(stuck_since) - set(stuck):
                del stuck_since[worker]
            for worker in stuck:
                if now - stuck_since.setdefault(worker, now) > patience:
                    raise RuntimeError(
                        f"Worker {worker} has been paused for {patience:g} s: its memory is "
                        "nearly full, and it starts no task. Give the workers more "
                        "memory (memory_limit=), use more of them, or smaller blocks."
                    )

        return check

    def _raise_failures(self, tasks: Sequence[Handle]) -> None:
        errors = [task.exception() for task in tasks if task.status == "error"]
        own = [error for error in errors if not isinstance(error, RoundAborted | KilledWorker)]
        if own:
            raise own[0]
        if errors:
            raise RoundFailed("; ".join(sorted({str(error) for error in errors})))
        if any(task.status != "finished" for task in tasks):
            self._site.workers()  # says so if it is the client that is gone
            raise RoundFailed("the tasks of the round were cancelled")

    def validation_sums(self) -> ScoreSums:
        return self._retried("The validation score", self._validation_sums)

    def _validation_sums(self) -> ScoreSums:
        assert self._held_out is not None
        if self._sent_held_out is None:  # once for all epochs, while the blocks stay
            self._sent_held_out = [
                self._sent(rows, worker)
                for rows, worker in zip(self._held_out, self._workers, strict=True)
            ]
        total: ScoreSums = self._total(
            self._site.submit(
                score_blocks,
                self._model,
                self._blocks_of(rank),
                rows,
                self._copy_for(rank),
                workers=[self._workers[rank]],
                allow_other_workers=True,
            )
            for rank, rows in enumerate(self._sent_held_out)
        )
        return total

    def loss_sums(self, theta: np.ndarray) -> LossSums:
        return self._retried("An evaluation of the loss", lambda: self._loss_sums(theta))

    def _loss_sums(self, theta: np.ndarray) -> LossSums:
        sent = self._sent(theta, None)
        total: LossSums = self._total(
            self._site.submit(
                evaluate_blocks,
                self._model,
                self._blocks_of(rank),
                sent,
                workers=[worker],
                allow_other_workers=True,
            )
            for rank, worker in enumerate(self._workers)
        )
        return total

    def keep_best(self) -> None:
        # The workers keep it, in the next round: futures of this one would keep all rounds
        # since in the scheduler's memory.
        self._keeps = True

    def state(self) -> TrainState:
        if self._initial is not None:
            return self._initial.state
        return self._fetch(self._copies).state

    def best(self) -> np.ndarray | None:
        last = self._initial or self._fetch(self._copies)
        return last.state.theta if self._keeps else last.best

    def _fetch(self, copies: Sequence[Handle]) -> RoundResult:
        """The first of some copies that a worker still holds."""
        for copy in copies:
            [holder] = self._site.holders([copy])
            if holder is None:
                continue

            def check(workers: list[str], holder: str = holder) -> None:
                if holder not in workers:
                    raise RoundFailed(f"lost worker {holder}")

            with suppress(RoundFailed, ValueLost):
                [result] = self._site.get([copy], check)
                assert isinstance(result, RoundResult)
                return result
        raise RuntimeError(_MODEL_LOST)

    def _copy_for(self, rank: int) -> Handle:
        """A copy of the state, the one on the rank's own worker if all have one."""
        return self._copies[rank % len(self._copies)]

    def _group(self) -> None:
        """Find out who holds which block now, and number those workers."""
        self._site.wait(self._blocks)
        broken = [i for i, block in enumerate(self._blocks) if block.status != "finished"]
        if broken:
            self._site.workers()  # says so if it is the client that is gone
            error = self._blocks[broken[0]].exception()
            if error is not None and not isinstance(error, KilledWorker | CancelledError):
                raise error  # what its own loading says
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
        self._sent_held_out = None

    def _keep_living_copies(self) -> None:
        """Keep the copies of the state that still lie on a worker.

        Raises
        ------
        RuntimeError
            If no worker that took part in the last round is left.
        """
        workers = self._site.workers()
        holders = self._site.holders(self._copies)
        pairs = zip(self._copies, holders, strict=True)
        kept = [copy for copy, holder in pairs if holder in workers]
        if not kept and self._initial is not None:
            kept = self._site.put([self._initial])
        if not kept:
            raise RuntimeError(_MODEL_LOST)
        self._copies = kept

    def _blocks_of(self, rank: int) -> list[Handle]:
        return [
            block
            for block, owner in zip(self._blocks, self._places.owners, strict=True)
            if owner == rank
        ]

    def _sent(self, argument: Any, worker: str | None) -> Any:
        """An argument as it is or, where it is large, as data on a worker."""
        is_large = isinstance(argument, np.ndarray | ListedBatches)
        if is_large and argument.nbytes > _SCATTER_BYTES:
            try:
                return self._site.client.scatter(
                    argument, hash=False, workers=None if worker is None else [worker]
                )
            except (KeyError, TimeoutError) as error:
                raise RoundFailed(f"worker {worker} left before the round") from error
        return argument

    def _total(self, parts: Iterable[Handle]) -> Any:
        tasks = list(parts)
        return self._site.total(tasks, self._check(tasks))
