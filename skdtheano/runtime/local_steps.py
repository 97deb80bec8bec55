"""Fewer exchanges for slow networks: steps on each worker's own rows, averaged now and then.

Not the exact mode: between two averages the workers' parameters differ, and the result depends
on how many workers there are and which rows each holds.
"""

import math

import numpy as np

from skdtheano.runtime.collective import Collective
from skdtheano.runtime.failures import NotFinite
from skdtheano.runtime.order import Batches
from skdtheano.runtime.parameters import TrainState
from skdtheano.runtime.steps import StepSettings, Workspace, is_finite, not_finite, quietly

#: Step size of the outer momentum, as in DiLoCo.
_OUTER_STEP = 0.7


@quietly
def run_local_epoch(
    workspace: Workspace,
    batches: Batches,
    state: TrainState,
    settings: StepSettings,
    collective: Collective,
) -> float:
    r"""Take a step per minibatch on this rank's share of it; average every `sync_every`.

    With the weights :math:`w_i` of the rows that rank :math:`i` has trained on since the
    last average :math:`\theta`, and its parameters :math:`\theta_i` now,

    .. math::

        \bar\theta = \sum_i w_i \theta_i / \sum_i w_i, \qquad
        \Delta = \theta - \bar\theta, \qquad v' = \mu v + \Delta, \qquad
        \theta' = \theta - \eta (\Delta + \mu v')

    where :math:`\eta = 0.7`, or without momentum (:math:`\mu = 0`) 1, which gives
    :math:`\bar\theta`. The momentum begins anew with each epoch. The optimizer's moments are
    each rank's own, and are averaged at the end of an epoch.

    Returns
    -------
    float
        As `run_epoch`: each rank's losses before its steps, penalised at the last average.

    References
    ----------
    Stich, "Local SGD converges fast and communicates little", ICLR 2019; Douillard et al.,
    "DiLoCo: distributed low-communication training of language models", 2023.
    """
    own = workspace.private(state)
    theta, *slots = own.vectors
    parameters, gradient, out = own.parameters, own.gradient, own.out
    average = _Average(workspace, theta, settings, collective)
    layout, program, optimizer = workspace.layout, workspace.program, settings.optimizer
    # Of its rows alone a rank's mean is over fewer: so much weaker is its penalty.
    alpha = settings.alpha / collective.n_ranks
    total, since = 0.0, 0
    for number, (rows, size, batch, weight) in enumerate(batches.gathered(workspace.room), 1):
        state.step += 1
        average.n_rows += size
        since += 1
        if batch is not None and weight > 0 and average.bad is None:
            loss = program.sums(parameters, batch.rows, batch.targets, batch.weights, out)
            if not settings.may_diverge and not (math.isfinite(loss) and is_finite(gradient)):
                average.bad = not_finite(workspace, rows, theta)
            else:
                step_size = optimizer.step_size(settings.learning_rate, state.step)
                scalars = (weight, step_size, *optimizer.scalars())
                program.update((theta, gradient, *slots), layout.n_coefs, alpha, scalars)
                average.loss += loss
                average.weight += weight
        if since == settings.sync_every:
            total += average.take(number, since)
            since = 0
    if since:
        total += average.take(number, since)
    state.theta, state.slots = theta, [average.of(slot) for slot in slots]
    return total


class _Average:
    """The parameters that all ranks had last, and how to come to the next."""

    def __init__(
        self,
        workspace: Workspace,
        theta: np.ndarray,
        settings: StepSettings,
        collective: Collective,
    ) -> None:
        self._settings, self._collective = settings, collective
        self._workspace = workspace
        self._n_coefs = workspace.layout.n_coefs
        self._theta = theta
        n, dtype = len(theta), theta.dtype
        *self._rooms, self._result = workspace.rooms(3, collective)
        self._share = collective.share(n, dtype)
        self._before = theta[self._share].copy()
        self._squares = self._squares_now()
        self._velocity = np.zeros_like(self._before)
        self._epoch_weight = 0.0
        self.loss = self.weight = 0.0
        self.n_rows = 0
        self.bad: list[int] | None = None

    def take(self, number: int, n_steps: int) -> float:
        """Go on from the average; return the loss of the steps since, times their rows."""
        # The squares are the first rank's, for all: others' may have other bits.
        squares = self._squares if self._collective.rank == 0 else 0.0
        scalars = (self.loss, self.weight, float(self.bad is not None), squares)
        self._epoch_weight += self.weight
        (loss, weight, n_bad, squares), mean = self._sum(scalars, self._theta, self.weight)
        if n_bad:
            raise NotFinite("gradient", self._settings.epoch, number, self.bad or [])
        if weight == 0:
            raise ValueError(
                f"The sample_weight of the {self.n_rows} rows of minibatches "
                f"{number - n_steps + 1} to {number} of epoch {self._settings.epoch} sums to "
                "0, so their mean loss is undefined. Drop rows of weight 0 before fit, or "
                "use a larger batch_size."
            )
        mean /= weight
        momentum = self._settings.outer_momentum
        if momentum:
            change = self._before - mean
            self._velocity = momentum * self._velocity + change
            mean = self._before - _OUTER_STEP * (change + momentum * self._velocity)
        self._before = mean.copy()
        self._fill(self._theta, mean)
        penalty = 0.5 * self._settings.alpha * squares * n_steps
        total = self.n_rows * (loss + penalty) / weight
        self._squares = self._squares_now()
        self.loss = self.weight = 0.0
        self.n_rows = 0
        return total

    def _squares_now(self) -> float:
        coefs = self._theta[: self._n_coefs]
        return float(coefs @ coefs)

    def of(self, vector: np.ndarray) -> np.ndarray:
        """A vector's average over the ranks, by the weights of their rows of the epoch."""
        (weight,), mean = self._sum((self._epoch_weight,), vector, self._epoch_weight)
        self._fill(vector, mean / weight)
        return vector

    def _sum(
        self, scalars: tuple[float, ...], vector: np.ndarray, weight: float
    ) -> tuple[tuple[float, ...], np.ndarray]:
        room = self._rooms[self._workspace.turn()]
        np.multiply(vector, weight, out=room)
        scalars, part = self._collective.sum(scalars, room)
        return scalars, part.copy()

    def _fill(self, vector: np.ndarray, share: np.ndarray) -> None:
        # By way of a room: others may still read it when this rank goes on stepping.
        self._result[self._share] = share
        self._collective.complete((), self._result)
        vector[...] = self._result
