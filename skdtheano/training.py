"""The decisions of a fit: epochs, learning rate, when to stop. It is handed a runtime."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import scipy.optimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.optimize import _check_optimize_result

from skdtheano.graphs.optimizers import Optimizer
from skdtheano.notices import warn_user
from skdtheano.runtime.order import Epoch, Order
from skdtheano.runtime.parameters import Layout, TrainState
from skdtheano.runtime.scores import ScoreSums
from skdtheano.runtime.steps import LossSums, StepSettings


class Runtime(Protocol):
    """Where rows and state are; in this process or on a cluster."""

    def __enter__(self) -> Self:
        """Begin to hold what a fit needs."""

    def __exit__(self, *error: Any) -> None:
        """Give it back."""

    def run_epoch(self, epoch: Epoch, settings: StepSettings) -> float:
        """Take the steps of an epoch; return the sum of loss times rows."""

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


@dataclass(frozen=True)
class Schedule:
    """When to stop and how fast to learn; names and meaning are scikit-learn's."""

    optimizer: Optimizer
    learning_rate_init: float
    learning_rate: str
    power_t: float
    alpha: float
    max_iter: int
    tol: float
    n_iter_no_change: float
    early_stopping: bool
    one_epoch: bool
    verbose: bool
    sync_every: int
    outer_momentum: float


@dataclass
class Progress:
    """What a fit has seen so far; goes on over warm starts.

    Attributes
    ----------
    learning_rate : float
        In force for the next epoch; SGD's schedules change it.
    rows_seen : int
        Training rows in all epochs, scikit-learn's ``t_``.
    stopped : bool
        Whether a stopping rule has ended this fit.
    """

    learning_rate: float
    n_iter: int = 0
    rows_seen: int = 0
    loss: float = np.nan
    loss_curve: list[float] = field(default_factory=list)
    best_loss: float | None = np.inf
    validation_scores: list[float] | None = None
    best_validation_score: float | None = None
    no_improvement: int = 0
    stopped: bool = False


def fit_stochastic(
    runtime: Runtime,
    order: Order,
    schedule: Schedule,
    progress: Progress,
    score_of: Callable[[ScoreSums], float],
    save: Callable[[Progress], None] | None = None,
) -> None:
    """Train by minibatches until a stopping rule, the last epoch, or Ctrl-C.

    `progress` is brought up to date after each epoch, and then given to `save`. `score_of`
    is what early stopping watches.
    """
    try:
        while progress.n_iter < schedule.max_iter and not progress.stopped:
            loss = runtime.run_epoch(
                order.next_epoch(),
                StepSettings(
                    schedule.optimizer,
                    progress.learning_rate,
                    schedule.alpha,
                    progress.n_iter + 1,
                    may_diverge=schedule.early_stopping,
                    sync_every=schedule.sync_every,
                    outer_momentum=schedule.outer_momentum,
                ),
            )
            _record(progress, loss / order.n_rows, order.n_rows, schedule)
            if schedule.early_stopping:
                _judge_score(runtime, schedule, progress, score_of)
            else:
                _judge_loss(schedule, progress)
            if schedule.learning_rate == "invscaling":
                progress.learning_rate = (
                    schedule.learning_rate_init / (progress.rows_seen + 1) ** schedule.power_t
                )
            if progress.no_improvement > schedule.n_iter_no_change:
                progress.stopped = _stops(schedule, progress)
                if not progress.stopped:
                    progress.no_improvement = 0
            if save is not None:
                save(progress)
            if schedule.one_epoch:
                return
        if progress.stopped:
            return
        warn_user(
            f"Stochastic Optimizer: Maximum iterations ({schedule.max_iter}) reached and the "
            "optimization hasn't converged yet.",
            ConvergenceWarning,
        )
    except KeyboardInterrupt:
        warn_user("Training interrupted by user.")


def _record(progress: Progress, loss: float, n_rows: int, schedule: Schedule) -> None:
    progress.n_iter += 1
    progress.loss = loss
    progress.rows_seen += n_rows
    progress.loss_curve.append(loss)
    if schedule.verbose:
        print(f"Iteration {progress.n_iter}, loss = {loss:.8f}", flush=True)


def _judge_loss(schedule: Schedule, progress: Progress) -> None:
    assert progress.best_loss is not None
    if progress.loss > progress.best_loss - schedule.tol:
        progress.no_improvement += 1
    else:
        progress.no_improvement = 0
    progress.best_loss = min(progress.best_loss, progress.loss)


def _judge_score(
    runtime: Runtime,
    schedule: Schedule,
    progress: Progress,
    score_of: Callable[[ScoreSums], float],
) -> None:
    assert progress.validation_scores is not None
    assert progress.best_validation_score is not None
    sums = runtime.validation_sums()
    if sums.weight == 0:
        raise ValueError(
            "Sample weights must contain at least one non-zero number, and those of the "
            f"{sums.n_rows} rows that early_stopping held out sum to 0. Drop rows of weight 0 "
            "before fit, or use a larger validation_fraction."
        )
    score = score_of(sums)
    progress.validation_scores.append(score)
    if schedule.verbose:
        print(f"Validation score: {score:f}", flush=True)
    if score < progress.best_validation_score + schedule.tol:
        progress.no_improvement += 1
    else:
        progress.no_improvement = 0
    if score > progress.best_validation_score:
        progress.best_validation_score = score
        runtime.keep_best()


def _stops(schedule: Schedule, progress: Progress) -> bool:
    """Stop, or learn five times slower where the learning rate adapts."""
    measured = "Validation score" if schedule.early_stopping else "Training loss"
    said = (
        f"{measured} did not improve more than tol={schedule.tol:f} for "
        f"{schedule.n_iter_no_change} consecutive epochs."
    )
    stops = True
    if schedule.learning_rate != "adaptive":
        said += " Stopping."
    elif progress.learning_rate <= 1e-6:
        said += " Learning rate too small. Stopping."
    else:
        progress.learning_rate /= 5.0
        said += f" Setting learning rate to {progress.learning_rate:f}"
        stops = False
    if schedule.verbose:
        print(said, flush=True)
    return stops


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
