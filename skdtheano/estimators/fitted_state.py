"""What training reads from an estimator and leaves in it: parameters, history, optimizer."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from skdtheano.course import Progress
from skdtheano.graphs.optimizers import SGD, Adam, Optimizer
from skdtheano.runtime.parameters import Layout, TrainState

#: What a fit that begins anew forgets.
_LEARNED = (
    "loss_curve_",
    "best_loss_",
    "validation_scores_",
    "best_validation_score_",
    "_no_improvement_count",
    "_optimizer",
)


@dataclass(frozen=True)
class OptimizerState:
    """What a fitted model keeps so that `partial_fit` can go on.

    As in scikit-learn, `partial_fit` goes on with the optimizer that it finds, whatever
    parameters have been set since; `fit` makes a new one.

    Attributes
    ----------
    rule : Optimizer
        With its numbers.
    schedule : {"constant", "invscaling", "adaptive"}
    learning_rate_init, power_t : float
        Of the schedule.
    learning_rate : float
        In force now.
    step : int
        Steps taken.
    slots : list of ndarray of shape (n_parameters,)
        Adam's first and second moments, or SGD's velocity, packed as
        `skdtheano.runtime.parameters.Layout` says.
    """

    rule: Optimizer
    schedule: str
    learning_rate_init: float
    power_t: float
    learning_rate: float
    step: int
    slots: list[np.ndarray]


def initialize(
    estimator: Any, layout: Layout, row_dtype: str, rng: np.random.RandomState
) -> None:
    """Draw parameters by Glorot & Bengio (2010), in scikit-learn's order of draws."""
    factor = 2.0 if estimator.activation == "logistic" else 6.0
    estimator.coefs_, estimator.intercepts_ = [], []
    for fan_in, fan_out in zip(layout.units, layout.units[1:], strict=False):
        bound = np.sqrt(factor / (fan_in + fan_out))
        coef = rng.uniform(-bound, bound, (fan_in, fan_out))
        intercept = rng.uniform(-bound, bound, fan_out)
        estimator.coefs_.append(coef.astype(row_dtype, copy=False))
        estimator.intercepts_.append(intercept.astype(row_dtype, copy=False))
    estimator.n_layers_ = len(layout.units)
    estimator.n_iter_ = 0
    estimator.t_ = 0
    for learned in _LEARNED:
        vars(estimator).pop(learned, None)


def new_rule(estimator: Any) -> Optimizer:
    """The optimizer of a fit by steps, as its parameters say."""
    if estimator.solver == "adam":
        return Adam(estimator.beta_1, estimator.beta_2, estimator.epsilon)
    return SGD(estimator.momentum, bool(estimator.nesterovs_momentum))


def optimizer_of(estimator: Any, theta: np.ndarray, going_on: bool) -> OptimizerState | None:
    """The optimizer to train with: a new one, or with `partial_fit` the last one."""
    kept: OptimizerState | None = getattr(estimator, "_optimizer", None)
    if going_on and kept is not None:
        slots = [slot.astype(theta.dtype, copy=False) for slot in kept.slots]
        return replace(kept, slots=slots)
    if estimator.solver == "lbfgs":
        return None
    rule = new_rule(estimator)
    return OptimizerState(
        rule=rule,
        # Adam has no schedule: as in scikit-learn, learning_rate is SGD's alone.
        schedule=estimator.learning_rate if estimator.solver == "sgd" else "constant",
        learning_rate_init=float(estimator.learning_rate_init),
        power_t=float(estimator.power_t),
        learning_rate=float(estimator.learning_rate_init),
        step=0,
        slots=[np.zeros_like(theta) for _ in range(rule.n_slots)],
    )


def progress_of(estimator: Any) -> Progress:
    """The history that a warm start goes on with."""
    progress = Progress(float(estimator.learning_rate_init), rows_seen=estimator.t_)
    progress.loss_curve = list(getattr(estimator, "loss_curve_", []))
    progress.no_improvement = getattr(estimator, "_no_improvement_count", 0)
    if estimator.early_stopping:
        progress.best_loss = None
        progress.validation_scores = list(getattr(estimator, "validation_scores_", None) or [])
        best = getattr(estimator, "best_validation_score_", None)
        progress.best_validation_score = -np.inf if best is None else best
    else:
        best = getattr(estimator, "best_loss_", None)
        progress.best_loss = np.inf if best is None else best
    return progress


def keep(
    estimator: Any, progress: Progress, optimizer: OptimizerState, final: TrainState
) -> None:
    """Set the fitted attributes that tell of training by steps."""
    estimator._optimizer = replace(
        optimizer,
        learning_rate=progress.learning_rate,
        step=final.step,
        slots=final.slots,
    )
    estimator.n_iter_ = progress.n_iter
    estimator.t_ = progress.rows_seen
    estimator.loss_ = progress.loss
    estimator.loss_curve_ = progress.loss_curve
    estimator.best_loss_ = progress.best_loss
    estimator.validation_scores_ = progress.validation_scores
    estimator.best_validation_score_ = progress.best_validation_score
    estimator._no_improvement_count = progress.no_improvement
