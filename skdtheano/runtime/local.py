"""Training in this process: one rank, no dask."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from skdtheano.runtime.background import training_thread
from skdtheano.runtime.blas import blas_threads, threads_of_process, threads_that_pay
from skdtheano.runtime.blocks import Block
from skdtheano.runtime.collective import Solo
from skdtheano.runtime.failures import NotFinite
from skdtheano.runtime.model import Model
from skdtheano.runtime.order import Epoch, HeldOut, RowMap
from skdtheano.runtime.parameters import TrainState
from skdtheano.runtime.program import Program
from skdtheano.runtime.scores import ScoreSums
from skdtheano.runtime.steps import (
    Course,
    LossSums,
    StepSettings,
    Workspace,
    loss_sums,
    run_epoch,
    score_sums,
)


class LocalRuntime(AbstractContextManager["LocalRuntime"]):
    """Holds the rows and the state of one fit.

    Its program's pieces are another's when its ``with`` block has ended.

    Parameters
    ----------
    model : Model
    blocks : list of Block
    numbers : list of int
        What each block is called; empty if nothing.
    state : TrainState
    best : ndarray or None
        The parameters with the best score so far.
    held_out : callable, optional
        From a `RowMap` to each rank's validation rows.
    """

    def __init__(
        self,
        model: Model,
        blocks: list[Block],
        numbers: list[int],
        state: TrainState,
        best: np.ndarray | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        self._model = model
        self._numbers = numbers
        self._rows = model.rows_of(blocks)
        self._program = Program(model.spec)
        self._workspace = Workspace(self._program, model.layout, self._rows)
        self._places = RowMap(tuple(len(block) for block in blocks), (0,) * len(blocks))
        self._n_threads = threads_of_process()
        self._state = state.copy()  # an estimator keeps what it was given, should this fail
        self._before: TrainState | None = None  # as of the beginning of an epoch
        self._best = best
        self._held_out = None if held_out is None else held_out(self._places)[0]

    def __exit__(self, *error: Any) -> None:
        self._program.__exit__(*error)

    def n_at_once(self) -> int:
        return 1  # there is nothing between two epochs that more at once would save

    def run_epochs(self, epochs: Sequence[Epoch], course: Course) -> list[float]:
        [epoch] = epochs
        with training_thread():  # in a task of a search
            return [self._run_epoch(epoch, course.settings())]

    def _run_epoch(self, epoch: Epoch, settings: StepSettings) -> float:
        [batches] = epoch.shares(self._places)
        if self._before is None:
            self._before = self._state.copy()
        else:  # memory that is new each time would take several times as long
            self._before.fill(self._state)
        layout, n_rows = self._model.layout, epoch.batch_size
        n_threads = threads_that_pay(layout, n_rows, self._n_threads)
        try:
            with blas_threads(n_threads):
                return run_epoch(self._workspace, batches, self._state, settings, Solo())
        except NotFinite as error:
            self._state, self._before = self._before, None
            names = [self._numbers[i] for i in error.blocks] if self._numbers else []
            raise error.named(names) from None

    def validation_sums(self) -> ScoreSums:
        assert self._held_out is not None
        layout = self._model.layout
        return score_sums(self._program, layout, self._rows, self._held_out, self._state.theta)

    def loss_sums(self, theta: np.ndarray) -> LossSums:
        return loss_sums(self._program, self._model.layout, self._rows, theta)

    def keep_best(self) -> None:
        self._best = self._state.theta.copy()

    def state(self) -> TrainState:
        return self._state

    def best(self) -> np.ndarray | None:
        return self._best
