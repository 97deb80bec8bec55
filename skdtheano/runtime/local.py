"""Training in this process: one rank, no dask."""

import numpy as np

from skdtheano.runtime.blocks import Block
from skdtheano.runtime.collective import Solo
from skdtheano.runtime.failures import NotFinite
from skdtheano.runtime.model import Model
from skdtheano.runtime.order import Epoch, HeldOut, RowMap
from skdtheano.runtime.parameters import TrainState
from skdtheano.runtime.program import Program
from skdtheano.runtime.scores import ScoreSums
from skdtheano.runtime.steps import LossSums, StepSettings, loss_sums, run_epoch, score_sums


class LocalRuntime:
    """Holds the rows and the state of one fit.

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
        self._places = RowMap(tuple(len(block) for block in blocks), (0,) * len(blocks))
        self._state = state
        self._best = best
        self._held_out = None if held_out is None else held_out(self._places)[0]

    def run_epoch(self, epoch: Epoch, settings: StepSettings) -> float:
        [batches] = epoch.shares(self._places)
        before = self._state.copy()
        try:
            with Program(self._model.spec) as program:
                return run_epoch(
                    program,
                    self._model.layout,
                    self._rows,
                    batches,
                    self._state,
                    settings,
                    Solo(),
                )
        except NotFinite as error:
            self._state = before
            names = [self._numbers[i] for i in error.blocks] if self._numbers else []
            raise error.named(names) from None

    def validation_sums(self) -> ScoreSums:
        assert self._held_out is not None
        with Program(self._model.spec) as program:
            return score_sums(
                program, self._model.layout, self._rows, self._held_out, self._state.theta
            )

    def loss_sums(self, theta: np.ndarray) -> LossSums:
        with Program(self._model.spec) as program:
            return loss_sums(program, self._model.layout, self._rows, theta)

    def keep_best(self) -> None:
        self._best = self._state.theta

    def state(self) -> TrainState:
        return self._state

    def best(self) -> np.ndarray | None:
        return self._best
