"""What a process does with the rows it holds: an epoch, an evaluation, a score.

The same functions run in this process and, with peers to sum with, on dask workers.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from skdtheano.graphs.optimizers import Optimizer
from skdtheano.runtime.blocks import BatchRoom, RowBlocks
from skdtheano.runtime.collective import Collective
from skdtheano.runtime.failures import NotFinite
from skdtheano.runtime.order import Batches
from skdtheano.runtime.parameters import Layout, TrainState
from skdtheano.runtime.program import Program, rows_per_call
from skdtheano.runtime.scores import (
    ScoreSums,
    classification_sums,
    merge,
    regression_sums,
)


@dataclass(frozen=True)
class StepSettings:
    """The numbers of an epoch's steps.

    Attributes
    ----------
    optimizer : Optimizer
    learning_rate : float
    alpha : float
        Strength of the L2 penalty.
    epoch : int
        Counts from 1; for messages.
    may_diverge : bool
        Whether to go on where a loss or a gradient is not finite: with early stopping, which
        goes back to the best parameters in the end.
    sync_every : int
        Steps from one exchange between workers to the next; more than 1 are
        `skdtheano.runtime.local_steps`.
    outer_momentum : float
        Of the averages then.
    """

    optimizer: Optimizer
    learning_rate: float
    alpha: float
    epoch: int
    may_diverge: bool
    sync_every: int = 1
    outer_momentum: float = 0.0


class Course(Protocol):
    """What follows from the losses of epochs: the same wherever it is asked."""

    @property
    def n_left(self) -> int:
        """Epochs at most from now on."""

    def silent_copy(self) -> "Course":
        """One that goes ahead by itself, and tells nobody."""

    def settings(self) -> StepSettings:
        """Of the next epoch's steps."""

    def take(self, loss_sum: float) -> bool:
        """Take note of an epoch's sum of loss times rows."""


@dataclass(frozen=True)
class LossSums:
    r"""Sums over rows at fixed parameters.

    Attributes
    ----------
    loss : float
        :math:`\sum_r w_r \ell_r`, without penalty.
    weight : float
        :math:`\sum_r w_r`.
    gradient : ndarray of shape (n_parameters,)
        :math:`\sum_r w_r \nabla \ell_r`, packed.
    """

    loss: float
    weight: float
    gradient: np.ndarray

    def __add__(self, other: "LossSums") -> "LossSums":
        return LossSums(
            self.loss + other.loss, self.weight + other.weight, self.gradient + other.gradient
        )

    def mean(self, theta: np.ndarray, penalty: np.ndarray) -> tuple[float, np.ndarray]:
        """Penalised mean loss and its gradient, as scikit-learn's L-BFGS minimises them."""
        squares = float(penalty * theta @ theta)
        loss = self.loss / self.weight + 0.5 * squares / self.weight
        return loss, (self.gradient + penalty * theta) / self.weight


@dataclass(frozen=True)
class Private:
    """Parameters and the optimizer's slots in `vectors`, a gradient, and the parts of both."""

    vectors: list[np.ndarray]
    parameters: list[np.ndarray]
    gradient: np.ndarray
    out: list[np.ndarray]


class Workspace:
    """What the steps of one process compute with, kept from epoch to epoch.

    Parameters
    ----------
    program : Program
    layout : Layout
    blocks : RowBlocks
    multiple_of : int
        See `BatchRoom`.
    """

    def __init__(
        self, program: Program, layout: Layout, blocks: RowBlocks, multiple_of: int = 1
    ) -> None:
        self.program = program
        self.layout = layout
        self.room = BatchRoom(blocks, multiple_of)
        self._theta: np.ndarray | None = None
        self._turn = 0
        self._rooms: list[np.ndarray] = []
        self._private: Private | None = None

    def gradient(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """A vector for the next gradient, and its parts.

        In turn, across epochs too, where there are two: others may still read the last one.
        """
        return self.gradients[self.turn() % len(self.gradients)]

    def private(self, state: TrainState) -> "Private":
        """A state's values in vectors that no other rank reads: the same ones each time."""
        given = [state.theta, *state.slots]
        if self._private is None:
            gradient, *own = [np.empty_like(vector) for vector in [state.theta, *given]]
            views = self.layout.views
            self._private = Private(own, views(own[0]), gradient, views(gradient))
        for vector, value in zip(self._private.vectors, given, strict=True):
            np.copyto(vector, value)
        return self._private

    def turn(self) -> int:
        """0 and 1 in turn."""
        self._turn = 1 - self._turn
        return self._turn

    def rooms(self, n: int, collective: Collective) -> list[np.ndarray]:
        """Some vectors like the parameters, the same ones each time."""
        while len(self._rooms) < n:
            n_parameters, dtype = self.layout.n_parameters, self.program.spec.network.dtype
            self._rooms.append(collective.room(n_parameters, np.dtype(dtype)))
        return self._rooms[:n]

    def arrange(self, state: TrainState, collective: Collective) -> None:
        """Cut the vectors of a state up; the same ones are not cut again."""
        if self._theta is state.theta:
            return
        state.theta = self._theta = theta = collective.held(state.theta)
        state.slots = [collective.held(slot) for slot in state.slots]
        n = len(theta)
        self.parameters = self.layout.views(theta)
        vectors = [
            collective.room(n, theta.dtype)
            for _ in range(collective.n_vectors(n, theta.dtype))
        ]
        self.gradients = [(vector, self.layout.views(vector)) for vector in vectors]
        share = collective.share(n, theta.dtype)
        self.share = [vector[share] for vector in (theta, *state.slots)]
        self.n_penalised = min(
            max(self.layout.n_coefs - share.start, 0), share.stop - share.start
        )
        #: Of all weights, those that this rank sums the squares of.
        n_counted = self.n_penalised if collective.counts(n, theta.dtype) else 0
        self.counted = theta[share][:n_counted]


#: What is not finite is looked for, and told with its minibatch: NumPy's warnings would come
#: before, of a line that no user knows.
quietly = np.errstate(all="ignore")


@quietly
def run_epoch(
    workspace: Workspace,
    batches: Batches,
    state: TrainState,
    settings: StepSettings,
    collective: Collective,
) -> float:
    """Take one step per minibatch; the state is that of the collective's vectors then.

    Every rank sums the same sums, and updates its share of the parameters, which all have
    then. Of the optimizer's slots it has but its own share, until `complete_slots`.

    Returns
    -------
    float
        Sum over the minibatches of (penalised mean loss before the step, times rows).

    Raises
    ------
    ValueError
        If the weights of a minibatch sum to 0.
    NotFinite
        If a loss or a gradient is, and may not be; names those of these blocks that held it.
    """
    optimizer, program = settings.optimizer, workspace.program
    workspace.arrange(state, collective)
    parameters, counted = workspace.parameters, workspace.counted
    theta, *slots = workspace.share
    total = 0.0
    for number, (rows, size, batch, weight) in enumerate(batches.gathered(workspace.room), 1):
        vector, out = workspace.gradient()
        if batch is not None:
            loss = program.sums(parameters, batch.rows, batch.targets, batch.weights, out)
        else:
            vector[...] = 0
            loss = 0.0
        is_bad = not settings.may_diverge and not is_finite(vector)
        # Of each weight one rank's, for all: BLAS rounds by threads and processor, and ranks
        # that went by losses with other bits could end at other epochs.
        squares = float(counted @ counted)
        scalars = (loss, weight, is_bad, squares)
        (loss, weight, n_bad, squares), gradient = collective.sum(scalars, vector)
        if weight == 0:
            raise ValueError(
                f"The sample_weight of the {size} rows of minibatch {number} of epoch "
                f"{settings.epoch} sums to 0, so its mean loss is undefined. Drop rows of "
                "weight 0 before fit, or use a larger batch_size."
            )
        if (n_bad or not math.isfinite(loss)) and not settings.may_diverge:
            what = "gradient" if n_bad else "loss"
            held_it = not_finite(workspace, rows, state.theta)
            raise NotFinite(what, settings.epoch, number, held_it)
        total += size * (loss / weight + 0.5 * settings.alpha * squares / weight)
        state.step += 1
        step_size = optimizer.step_size(settings.learning_rate, state.step)
        numbers = (weight, step_size, *optimizer.scalars())
        program.update(
            (theta, gradient, *slots), workspace.n_penalised, settings.alpha, numbers
        )
        collective.complete((), state.theta)
    return total


def complete_slots(state: TrainState, collective: Collective) -> None:
    """After the last of some epochs: let each rank have all of the optimizer's slots."""
    for slot in state.slots:
        collective.complete((), slot)


def is_finite(vector: np.ndarray) -> bool:
    """Whether all entries are."""
    # One pass, where a sum of squares does not overflow; of BLAS, in a quarter of the time
    # that a sum takes.
    return math.isfinite(np.dot(vector, vector)) or bool(np.isfinite(vector).all())


@quietly
def not_finite(workspace: Workspace, rows: np.ndarray, theta: np.ndarray) -> list[int]:
    """The blocks whose share of a minibatch has a loss or a gradient that is not finite."""
    layout, part = workspace.layout, np.zeros_like(theta)
    parameters, out = layout.views(theta), layout.views(part)
    found = []
    for number, batch in workspace.room.blocks.by_block(rows):
        loss = workspace.program.sums(
            parameters, batch.rows, batch.targets, batch.weights, out, is_repeated=False
        )
        if not (math.isfinite(loss) and is_finite(part)):
            found.append(number)
    return found


def _rows_at_once(layout: Layout, theta: np.ndarray) -> int:
    """It also bounds the time for which a worker's event loop may have to wait."""
    return rows_per_call(max(layout.units), theta.dtype.name)


@quietly
def loss_sums(
    program: Program, layout: Layout, blocks: RowBlocks, theta: np.ndarray
) -> LossSums:
    """Sums of loss, weights and gradients over all rows that this process holds."""
    parameters = layout.views(theta)
    gradient = np.zeros(layout.n_parameters, theta.dtype)
    part = np.empty_like(gradient)
    out = layout.views(part)
    loss = weight = 0.0
    for batch in blocks.pieces(None, _rows_at_once(layout, theta)):
        if batch.rows.shape[0]:
            loss += program.sums(
                parameters, batch.rows, batch.targets, batch.weights, out, is_repeated=False
            )
            weight += float(batch.weights.sum(dtype=np.float64))
            gradient += part
    return LossSums(loss, weight, gradient)


@quietly
def score_sums(
    program: Program, layout: Layout, blocks: RowBlocks, rows: np.ndarray, theta: np.ndarray
) -> ScoreSums:
    """Sums of the score over rows by local number, ascending or not."""
    parameters = layout.views(theta)
    none = np.zeros(1)
    parts = [ScoreSums(0, 0.0, 0.0, none, none, none, True)]
    # Of the targets as they were given: float32 would round large ones.
    blocks = blocks.with_targets_of("float64")
    for batch in blocks.pieces(rows, _rows_at_once(layout, theta)):
        outputs = program.outputs(parameters, batch.rows)
        activation = program.spec.network.output
        parts.append(output_sums(activation, batch.targets, outputs, batch.weights))
    return merge(parts)


def output_sums(
    output: str, truth: np.ndarray, outputs: np.ndarray, weights: np.ndarray
) -> ScoreSums:
    """Sums for the score that belongs to an output activation: accuracy or R²."""
    if output in ("softmax", "logistic"):
        return classification_sums(truth, outputs, weights, one_of_many=output == "softmax")
    return regression_sums(truth, outputs, weights)
