"""What runs as a task on a dask worker during a fit."""

from dataclasses import dataclass

import numpy as np
from dask.sizeof import sizeof
from distributed import get_worker, secede

from skdtheano.runtime.blocks import Block
from skdtheano.runtime.collective import Peers
from skdtheano.runtime.mailbox import ExchangePlugin
from skdtheano.runtime.model import Model
from skdtheano.runtime.order import Batches
from skdtheano.runtime.parameters import TrainState
from skdtheano.runtime.program import Program
from skdtheano.runtime.scores import ScoreSums
from skdtheano.runtime.steps import LossSums, StepSettings, loss_sums, run_epoch, score_sums

#: A state of more bytes stays on the workers, which all have it.
_REPORTED_BYTES = 2**20


@dataclass(frozen=True)
class RoundResult:
    """What a round leaves on each of its workers: the same values, bit for bit.

    Attributes
    ----------
    state : TrainState
    loss : float
    best : ndarray or None
        The parameters to go back to, as of an earlier round.
    """

    state: TrainState
    loss: float
    best: np.ndarray | None = None

    def __sizeof__(self) -> int:
        # dask weighs by this what a worker holds, spills and moves.
        return sum(sizeof(a) for a in (self.state.theta, *self.state.slots, self.best))


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
    keep: bool,
    seat: Seat,
) -> RoundResult:
    """One worker's part of an epoch; with `keep` its beginning is the best so far."""
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
    return RoundResult(state, loss, before.state.theta if keep else before.best)


def report_of(result: RoundResult) -> tuple[float, RoundResult | None]:
    """What the caller of a round gets: its loss; and all of it, where that is little.

    With it a fit survives the loss of all its workers.
    """
    return result.loss, result if sizeof(result) <= _REPORTED_BYTES else None


def score_blocks(
    model: Model, blocks: list[Block], rows: np.ndarray, result: RoundResult
) -> ScoreSums:
    """One worker's part of the validation score."""
    with Program(model.spec) as program:
        return score_sums(
            program, model.layout, model.rows_of(blocks), rows, result.state.theta
        )


def evaluate_blocks(model: Model, blocks: list[Block], theta: np.ndarray) -> LossSums:
    """One worker's part of the full loss and gradient."""
    with Program(model.spec) as program:
        return loss_sums(program, model.layout, model.rows_of(blocks), theta)
