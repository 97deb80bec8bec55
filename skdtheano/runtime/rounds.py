"""Training on a dask cluster: rounds of some epochs each, with a task per worker with rows.

The tasks of a round wait for each other, which dask does not schedule as a gang. So each
secedes at once (it then holds no thread slot), waits only for workers that answer, and
ends when its caller cancels it. A round that loses a worker is run again, from the state
that the last round left, on the workers that are there then.
"""

import time
import uuid
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from itertools import chain
from typing import Any, TypeVar

import numpy as np
from distributed.scheduler import KilledWorker

from skdtheano.runtime.failures import (
    EndedEarly,
    NotFinite,
    RoundFailed,
    RoundsFailed,
    ValueLost,
)
from skdtheano.runtime.hosts import may_share
from skdtheano.runtime.mailbox import RoundAborted
from skdtheano.runtime.model import Model
from skdtheano.runtime.order import Epoch, HeldOut
from skdtheano.runtime.pace import Pace
from skdtheano.runtime.parameters import TrainState
from skdtheano.runtime.scores import ScoreSums
from skdtheano.runtime.shares import Shares
from skdtheano.runtime.sites import Check, Handle
from skdtheano.runtime.steps import Course, LossSums
from skdtheano.runtime.tasks import (
    RoundResult,
    Seat,
    evaluate_blocks,
    is_reported,
    score_blocks,
    train_round,
    without_state,
)

Result = TypeVar("Result")

#: Failures of one round after which the fit ends in an error.
MAX_FAILURES = 3

#: Arguments of more bytes go to their worker as data, not through the scheduler's graph.
_SCATTER_BYTES = 2**20

_MODEL_LOST = (
    "All workers that held the model were lost at once, and its last state with them. Fit "
    "again; every worker that holds rows keeps a copy."
)


class ClusterRuntime(AbstractContextManager["ClusterRuntime"]):
    """Drives the rounds of one fit.

    Parameters
    ----------
    model : Model
    shares : Shares
    state : TrainState
        To begin with.
    best : ndarray or None
        The parameters with the best score so far.
    held_out : callable, optional
        From a `RowMap` to each rank's validation rows.
    kind : hashable, optional
        Of the epochs: equal for those of a model that take as long, on the same workers.
    """

    def __init__(
        self,
        model: Model,
        shares: Shares,
        state: TrainState,
        best: np.ndarray | None = None,
        held_out: HeldOut | None = None,
        kind: Hashable = None,
    ) -> None:
        self._site = shares.site
        self._model = model
        self._shares = shares
        self._held_out = held_out
        self._sent_held_out: list[Any] | None = None
        #: The last state, where it is here too; that of a large model is on the workers alone.
        self._here: RoundResult | None = RoundResult(state, best=best)
        self._copies: list[Handle] = []  # on workers, once a round asks for one
        self._keeps = False  # whether the state of now is the best
        #: Of parameters: those of now, the optimizer's, and the best.
        self._n_vectors = 2 + len(state.slots)
        #: What the next epoch is known to end in.
        self._error: NotFinite | None = None
        cluster = self._site.client.scheduler_info(n_workers=0)["id"]
        workers = frozenset(shares.workers)
        self._pace = Pace(
            shares.places.n_rows, (cluster, workers, model, shares.one_by_one, kind)
        )

    def __exit__(self, *error: object) -> None:
        """What the workers hold is the site's to release."""

    def n_at_once(self) -> int:
        return self._pace.n_at_once

    def run_epochs(self, epochs: Sequence[Epoch], course: Course) -> list[float]:
        """Run one round, again if it loses a worker.

        Raises
        ------
        RoundsFailed
            If the round failed ``MAX_FAILURES`` times; names the causes.
        NotFinite
            If a loss or a gradient is; names the blocks.
        """
        if self._error is not None:
            raise self._error
        course = course.silent_copy()  # which is smaller, too
        first = course.settings().epoch

        def attempt(epochs: Sequence[Epoch] = epochs) -> list[float]:
            if not self._shares.are_current() or _any_lost(self._copies):
                self._regroup()  # workers that have joined take their share
            return self._run_round(epochs, course)

        what = f"Epoch {first}" if len(epochs) == 1 else f"The round from epoch {first} on"
        try:
            return self._retried(what, attempt)
        except NotFinite as error:
            n_before = error.epoch - first
            if not n_before:
                raise
            # The epochs before it are to be kept: run again, they end before it.
            self._error = error
            return self._retried(what, lambda: attempt(epochs[:n_before]))

    def _retried(self, what: str, attempt: Callable[[], Result]) -> Result:
        causes: list[str] = []
        while True:
            try:
                if causes:
                    self._regroup()
                return attempt()
            except (RoundFailed, RoundAborted, ValueLost, KilledWorker) as failure:
                causes.append(str(failure))
                if len(causes) == MAX_FAILURES:
                    raise RoundsFailed(
                        f"{what} failed {MAX_FAILURES} times on the cluster:\n"
                        + "\n".join(f"{i + 1}. {cause}" for i, cause in enumerate(causes))
                        + "\nSee the workers' logs (client.get_worker_logs())."
                    ) from failure
            except EndedEarly:
                raise
            except Exception as error:
                # Of a client that was closed dask says this or that; the model is kept then.
                self._site.check_client(error)
                raise

    def _regroup(self) -> None:
        # In this order: a copy that was lost with its worker would be asked of dask again,
        # which would run its round again, on that worker.
        self._keep_living_copies()
        self._group()

    def _run_round(self, epochs: Sequence[Epoch], course: Course) -> list[float]:
        began = time.monotonic()
        round_id = f"skdtheano-epoch-{course.settings().epoch}-{uuid.uuid4().hex[:12]}"
        is_shared = may_share()
        tasks: list[Handle] = []
        try:
            shares = zip(*(epoch.shares(self._shares.places) for epoch in epochs), strict=True)
            for rank, batches in enumerate(shares):
                worker = self._shares.workers[rank]
                tasks.append(
                    self._site.submit(
                        train_round,
                        self._model,
                        self._shares.blocks_of(rank),
                        self._copy_for(rank),
                        self._sent(list(batches), worker),
                        course,
                        self._keeps,
                        Seat(
                            round_id,
                            rank,
                            self._shares.workers,
                            self._site.deadline,
                            is_shared,
                        ),
                        key=f"{round_id}-{rank}",
                        workers=[worker],
                        priority=10,
                    )
                )
            is_reported = self._is_reported(len(tasks))
            told = tasks[0] if is_reported else self._told(tasks[0], round_id)
            self._site.wait([*tasks, told], self._check(tasks))
            self._raise_failures(tasks)
            [result] = self._site.get([told], self._check(tasks))
        except BaseException:
            # Cancelled tasks leave their round at its next exchange. A closed client has
            # cancelled them by itself, and says so here in words that would hide ours.
            with suppress(Exception):
                self._site.client.cancel(tasks, force=True)
            raise
        self._copies, self._keeps = tasks, False
        self._here = result if is_reported else None
        self._pace.note(time.monotonic() - began, result.seconds)
        return list(result.losses)

    def _is_reported(self, n_copies: int) -> bool:
        layout, dtype = self._model.layout, np.dtype(self._model.dtype)
        return is_reported(layout.n_parameters * dtype.itemsize * self._n_vectors, n_copies)

    def _told(self, task: Handle, round_id: str) -> Handle:
        worker = self._shares.workers[0]
        key = f"{round_id}-report"
        return self._site.submit(without_state, task, workers=[worker], key=key)

    def _check(self, tasks: Sequence[Handle]) -> Check:
        """What to look at while waiting for tasks of the workers that hold rows."""
        copies = list(self._copies)
        raise_if_stuck = self._site.stuck_check(self._shares.workers, tasks)

        def check(workers: list[str]) -> None:
            lost = sorted(set(self._shares.workers) - set(workers))
            if lost:
                raise RoundFailed(f"lost worker {', '.join(lost)}")
            if _any_lost(copies):  # dask would run their round again, and alone
                raise RoundFailed("a copy of the model was lost with its worker")
            errors = [task.exception() for task in tasks if task.status == "error"]
            # Of a sum that is not finite all ranks say by themselves what they know of it.
            if any(not isinstance(error, NotFinite) for error in errors):
                # The others were told by their peer; those that cannot hear are cancelled.
                self._raise_failures(tasks)
            raise_if_stuck()

        return check

    def _raise_failures(self, tasks: Sequence[Handle]) -> None:
        failed = [rank for rank, task in enumerate(tasks) if task.status == "error"]
        errors = [tasks[rank].exception() for rank in failed]
        not_finite = {
            r: e for r, e in zip(failed, errors, strict=True) if type(e) is NotFinite
        }
        if not_finite:
            raise self._named(not_finite)
        own = [error for error in errors if not isinstance(error, RoundAborted | KilledWorker)]
        if own:
            raise own[0]
        if errors:
            raise RoundFailed("; ".join(sorted({str(error) for error in errors})))
        if any(task.status != "finished" for task in tasks):
            self._site.workers()  # says so if it is the client that is gone
            raise RoundFailed("the tasks of the round were cancelled")

    def _named(self, found: Mapping[int, NotFinite]) -> NotFinite:
        """What ranks found at one minibatch, with the blocks' numbers in the table."""
        names = [self._shares.names(rank, error.blocks) for rank, error in found.items()]
        first = next(iter(found.values()))
        return first.named(sorted(chain.from_iterable(names)))

    def validation_sums(self) -> ScoreSums:
        return self._retried("The validation score", self._validation_sums)

    def _validation_sums(self) -> ScoreSums:
        assert self._held_out is not None
        if self._sent_held_out is None:  # once for all epochs, while the blocks stay
            self._sent_held_out = [
                self._sent(rows, worker)
                for rows, worker in zip(
                    self._held_out(self._shares.places), self._shares.workers, strict=True
                )
            ]
        total: ScoreSums = self._total(
            self._site.submit(
                score_blocks,
                self._model,
                self._shares.blocks_of(rank),
                rows,
                self._copy_for(rank),
                workers=[self._shares.workers[rank]],
                # Who is not given the blocks must hold them.
                allow_other_workers=not self._shares.one_by_one,
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
                self._shares.blocks_of(rank),
                sent,
                workers=[worker],
                allow_other_workers=True,
            )
            for rank, worker in enumerate(self._shares.workers)
        )
        return total

    def keep_best(self) -> None:
        # The workers keep it, in the next round: futures of this one would keep all rounds
        # since in the scheduler's memory.
        self._keeps = True

    def state(self) -> TrainState:
        return (self._here or self._fetch(self._copies)).state

    def best(self) -> np.ndarray | None:
        last = self._here or self._fetch(self._copies)
        return last.state.theta if self._keeps else last.best

    def _fetch(self, copies: Sequence[Handle]) -> RoundResult:
        """The first of some copies that a worker still holds."""
        for copy in copies:
            [holder] = self._site.holders([copy], self._site.workers())
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
        if not self._copies:
            assert self._here is not None
            self._copies = self._site.put([self._here])
        return self._copies[rank % len(self._copies)]

    def _group(self) -> None:
        self._shares.share_out()
        self._sent_held_out = None

    def _keep_living_copies(self) -> None:
        """Keep the copies of the state that still lie on a worker.

        Raises
        ------
        RuntimeError
            If the model is large, and no worker that took part in the last round is left.
        """
        holders = self._site.holders(self._copies, self._site.workers())
        pairs = zip(self._copies, holders, strict=True)
        kept = [copy for copy, holder in pairs if holder is not None]
        if not kept and self._here is None:
            raise RuntimeError(_MODEL_LOST)
        self._copies = kept

    def _sent(self, argument: Any, worker: str | None) -> Any:
        """An argument as it is or, where it is large, as data on a worker."""
        parts = argument if isinstance(argument, list) else [argument]
        n_bytes = sum(getattr(part, "nbytes", 0) for part in parts)
        if n_bytes <= _SCATTER_BYTES:
            return argument
        # A list would be sent part by part.
        sent = self._site.scatter([argument], worker)
        return sent[0]

    def _total(self, parts: Iterable[Handle]) -> Any:
        tasks = list(parts)
        return self._site.total(tasks, self._check(tasks))


def _any_lost(futures: Iterable[Handle]) -> bool:
    """Whether some that had a value have none any more."""
    return any(future.status != "finished" for future in futures)
