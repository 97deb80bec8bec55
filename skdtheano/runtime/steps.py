"""What a process does with the rows it holds: an epoch, an evaluation, a score.

The same functions run in this process and, with peers to sum with, on dask workers.
"""

from dataclasses import dataclass
from itertools import count

import numpy as np

from skdtheano.graphs.optimizers import Optimizer
from skdtheano.runtime.blocks import RowBlocks
from skdtheano.runtime.collective import Collective
from skdtheano.runtime.failures import NotFinite
from skdtheano.runtime.order import Batches
from skdtheano.runtime.parameters import Layout, TrainState
from skdtheano.runtime.program import Program
from skdtheano.runtime.scores import (
    ScoreSums,
    classification_sums,
    merge,
    regression_sums,
)

#: Rows per call where all rows are visited: bounds the memory for hidden layers, and the
#: time for which a call may keep a worker's event loop from answering.
PIECE_ROWS = 2**15


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
    """

    optimizer: Optimizer
    learning_rate: float
    alpha: float
    epoch: int
    may_diverge: bool


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


def run_epoch(
    program: Program,
    layout: Layout,
    blocks: RowBlocks,
    batches: Batches,
    state: TrainState,
    settings: StepSettings,
    collective: Collective,
) -> float:
    """Take one step per minibatch; `state` is replaced step by step.

    Every rank holds the same state, sums the same sums and takes the same steps.

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
    optimizer = settings.optimizer
    dtype = state.theta.dtype
    penalty = layout.penalty(settings.alpha, dtype)
    # Two, used in turn: a vector may still be on its way to a peer while the next is filled.
    vectors = [np.zeros(layout.n_parameters, dtype) for _ in range(2)]
    views = [layout.views(vector) for vector in vectors]
    total = 0.0
    numbers = count(1)  # enumerate would keep the batch, and so its window, for a step more
    for rows, size, batch in batches.gathered(blocks):
        number = next(numbers)
        vector, out = vectors[number % 2], views[number % 2]
        if batch is not None:
            loss = program.sums(
                layout.views(state.theta), batch.rows, batch.targets, batch.weights, out
            )
            weight = float(batch.weights.sum(dtype=np.float64))
            del batch
        else:
            vector[...] = 0
            loss = weight = 0.0
        (loss, weight), gradient = collective.sum((loss, weight), vector)
        if weight == 0:
            raise ValueError(
                f"The sample_weight of the {size} rows of minibatch {number} of epoch "
                f"{settings.epoch} sums to 0, so its mean loss is undefined. Drop rows of "
                "weight 0 before fit, or use a larger batch_size."
            )
        what = _what_is_not_finite(loss, gradient)
        if what is not None and not settings.may_diverge:
            held_it = _not_finite(program, layout, blocks, rows, state.theta)
            raise NotFinite(what, settings.epoch, number, held_it)
        coefs = state.theta[: layout.n_coefs]
        total += size * (loss / weight + 0.5 * settings.alpha * float(coefs @ coefs) / weight)
        step = state.step + 1
        scalars = (
            optimizer.step_size(settings.learning_rate, step),
            *optimizer.scalars(),
        )
        theta, slots = program.update(
            state.theta, gradient, penalty, weight, state.slots, scalars
        )
        state.theta, state.slots, state.step = theta, slots, step
    return total


def _what_is_not_finite(loss: float, gradient: np.ndarray) -> str | None:
    # One pass over the gradient, where a sum of finite entries does not overflow.
    if not (np.isfinite(gradient.sum()) or np.isfinite(gradient).all()):
        return "gradient"
    return None if np.isfinite(loss) else "loss"


def _not_finite(
    program: Program, layout: Layout, blocks: RowBlocks, rows: np.ndarray, theta: np.ndarray
) -> list[int]:
    """The blocks whose share of a minibatch has a loss or a gradient that is not finite."""
    part = np.zeros_like(theta)
    found = []
    for number, batch in blocks.by_block(rows):
        loss = program.sums(
            layout.views(theta), batch.rows, batch.targets, batch.weights, layout.views(part)
        )
        if _what_is_not_finite(loss, part) is not None:
            found.append(number)
    return found


def loss_sums(
    program: Program, layout: Layout, blocks: RowBlocks, theta: np.ndarray
) -> LossSums:
    """Sums of loss, weights and gradients over all rows that this process holds."""
    parameters = layout.views(theta)
    gradient = np.zeros(layout.n_parameters, theta.dtype)
    part = np.empty_like(gradient)
    out = layout.views(part)
    loss = weight = 0.0
    for batch in blocks.pieces(None, PIECE_ROWS):
        if batch.rows.shape[0]:
            loss += program.sums(parameters, batch.rows, batch.targets, batch.weights, out)
            weight += float(batch.weights.sum(dtype=np.float64))
            gradient += part
    return LossSums(loss, weight, gradient)


def score_sums(
    program: Program, layout: Layout, blocks: RowBlocks, rows: np.ndarray, theta: np.ndarray
) -> ScoreSums:
    """Sums of the score over rows by local number, ascending or not."""
    parameters = layout.views(theta)
    none = np.zeros(1)
    parts = [ScoreSums(0, 0.0, 0.0, none, none, none, True)]
    # Of the targets as they were given: float32 would round large ones.
    for batch in blocks.with_targets_of("float64").pieces(rows, PIECE_ROWS):
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
