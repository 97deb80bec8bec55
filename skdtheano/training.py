"""How a fit goes on: epoch after epoch, or evaluation after evaluation, of a runtime."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import scipy.optimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.optimize import _check_optimize_result

from skdtheano.course import Course, Progress
from skdtheano.notices import warn_user
from skdtheano.runtime.order import Epoch, Order
from skdtheano.runtime.parameters import Layout, TrainState
from skdtheano.runtime.scores import ScoreSums
from skdtheano.runtime.steps import LossSums


class Runtime(Protocol):
    """Where rows and state are; in this process or on a cluster."""

    def __enter__(self) -> Self:
        """Begin to hold what a fit needs."""

    def __exit__(self, *error: Any) -> None:
        """Give it back."""

    def n_at_once(self) -> int:
        """How many epochs to run at once: the more, the less do rounds cost."""

    def run_epochs(self, epochs: Sequence[Epoch], course: Course) -> list[float]:
        """Take the steps of some epochs, until the course ends.

        Returns
        -------
        list of float
            Of each epoch that was run, the sum of loss times rows.
        """

    def validation_sums(self) -> ScoreSums:
        """Score sums of the held-out rows at the present parameters."""

    def loss_sums(self, theta: np.ndarray) -> LossSums:
        """Loss and gradient sums of all rows at given parameters."""

    def keep_best(self) -> None:
        """Remember the present parameters."""

    def state(self) -> TrainState:
        """The present state."""

    def best(self) -> np.ndarray | None:
        """The parameters remembered, if any."""


class Save(Protocol):
    """Keeps how far a fit is."""

    def __call__(self, progress: Progress) -> None:
        """Keep it, if it is time to."""

    def epochs_left(self, progress: Progress) -> int:
        """In how many epochs it will be asked for, at the latest."""


def fit_stochastic(
    runtime: Runtime,
    order: Order,
    course: Course,
    score_of: Callable[[ScoreSums], float],
    one_epoch: bool = False,
    save: Save | None = None,
) -> None:
    """Train by minibatches until a stopping rule, the last epoch, or Ctrl-C.

    Parameters
    ----------
    runtime : Runtime
    order : Order
    course : Course
        Its progress is brought up to date.
    score_of : callable
        What early stopping watches.
    one_epoch : bool
        Whether to end after one, as `partial_fit` does.
    save : Save, optional
        Is given the progress each time that it is up to date.
    """
    progress = course.progress
    n_before = progress.n_iter
    early_stopping = course.schedule.early_stopping
    score = (lambda: _score(runtime, score_of)) if early_stopping else None
    try:
        while course.n_left:
            at_most = course.n_left
            if early_stopping or one_epoch:
                at_most = 1
            elif save is not None:
                at_most = min(at_most, save.epochs_left(progress))
            losses = _run_epochs(runtime, order, course, at_most)
            for loss in losses:
                if course.take(loss, score):
                    runtime.keep_best()
            if save is not None:
                save(progress)
            if one_epoch:
                return
        if progress.stopped:
            return
        warn_user(
            f"Stochastic Optimizer: Maximum iterations ({course.schedule.max_iter}) reached "
            "and the optimization hasn't converged yet.",
            ConvergenceWarning,
        )
    except KeyboardInterrupt:
        begun = progress.n_iter > n_before
        warn_user(
            "Training interrupted by user."
            if begun
            else "Training interrupted by user. No epoch has ended, or on a cluster no round "
            "of epochs: the parameters are those of the beginning."
        )


def _run_epochs(runtime: Runtime, order: Order, course: Course, at_most: int) -> list[float]:
    """Some epochs, as many as the runtime takes at once; the order is then after these.

    Whatever ends them early, it is as if the epochs that were not ended had not been drawn.
    """
    losses: list[float] = []
    try:
        losses = runtime.run_epochs(order.ahead(min(at_most, runtime.n_at_once())), course)
        return losses
    finally:
        order.take(len(losses))


def _score(runtime: Runtime, score_of: Callable[[ScoreSums], float]) -> float:
    sums = runtime.validation_sums()
    if sums.weight == 0:
        raise ValueError(
            "Sample weights must contain at least one non-zero number, and those of the "
            f"{sums.n_rows} rows that early_stopping held out sum to 0. Drop rows of weight 0 "
            "before fit, or use a larger validation_fraction."
        )
    return score_of(sums)


@dataclass(frozen=True)
class FullBatch:
    """Limits of a full-batch fit; names and meaning are scikit-learn's."""

    alpha: float
    max_iter: int
    max_fun: int
    tol: float


def fit_lbfgs(
    runtime: Runtime, theta: np.ndarray, layout: Layout, limits: FullBatch
) -> tuple[np.ndarray, float, int]:
    """Minimise the penalised mean loss over all rows with SciPy's L-BFGS-B.

    The optimizer runs here; every evaluation of loss and gradient runs where the rows are.

    Returns
    -------
    theta : ndarray of shape (n_parameters,), float64
    loss : float
    n_iter : int
    """
    penalty = layout.penalty(limits.alpha, np.dtype(np.float64))

    def objective(candidate: np.ndarray) -> tuple[float, np.ndarray]:
        return runtime.loss_sums(candidate).mean(candidate, penalty)

    result = scipy.optimize.minimize(
        objective,
        theta.astype(np.float64),
        method="L-BFGS-B",
        jac=True,
        options={"maxfun": limits.max_fun, "maxiter": limits.max_iter, "gtol": limits.tol},
    )
    n_iter = _check_optimize_result("lbfgs", result, limits.max_iter)
    return result.x, float(result.fun), n_iter
