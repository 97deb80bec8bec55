"""The decisions of a fit by minibatches: how to take the next epoch's steps, when to stop."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from skdtheano.graphs.optimizers import Optimizer
from skdtheano.runtime.steps import StepSettings


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


class Course:
    """From one epoch's loss to the next epoch's steps, or to the end.

    Nothing but losses and scores is looked at, and these all ranks have bit for bit. So a
    round of several epochs carries a copy along, and each rank decides as the caller will.

    Parameters
    ----------
    schedule : Schedule
    progress : Progress
        Is brought up to date.
    n_rows : int
        Training rows of an epoch.
    """

    def __init__(self, schedule: Schedule, progress: Progress, n_rows: int) -> None:
        self.schedule, self.progress, self.n_rows = schedule, progress, n_rows

    def silent_copy(self) -> "Course":
        """One that goes ahead by itself, and prints nothing; without the history."""
        progress = replace(self.progress, loss_curve=[])
        return Course(replace(self.schedule, verbose=False), progress, self.n_rows)

    @property
    def n_left(self) -> int:
        """Epochs at most from now on."""
        if self.progress.stopped:
            return 0
        return max(self.schedule.max_iter - self.progress.n_iter, 0)

    def settings(self) -> StepSettings:
        """Of the next epoch's steps."""
        schedule, progress = self.schedule, self.progress
        return StepSettings(
            schedule.optimizer,
            progress.learning_rate,
            schedule.alpha,
            progress.n_iter + 1,
            may_diverge=schedule.early_stopping,
            sync_every=schedule.sync_every,
            outer_momentum=schedule.outer_momentum,
        )

    def take(self, loss_sum: float, score: Callable[[], float] | None = None) -> bool:
        """Take note of an epoch.

        Parameters
        ----------
        loss_sum : float
            Sum of loss times rows.
        score : callable, optional
            The score of the held-out rows now, with early stopping.

        Returns
        -------
        bool
            Whether the score is the best so far.
        """
        self._record(loss_sum / self.n_rows)
        is_best = False
        if score is None:
            self._judge_loss()
        else:
            is_best = self._judge_score(score())
        schedule, progress = self.schedule, self.progress
        if schedule.learning_rate == "invscaling":
            progress.learning_rate = (
                schedule.learning_rate_init / (progress.rows_seen + 1) ** schedule.power_t
            )
        if progress.no_improvement > schedule.n_iter_no_change:
            progress.stopped = self._stops()
            if not progress.stopped:
                progress.no_improvement = 0
        return is_best

    def _record(self, loss: float) -> None:
        progress = self.progress
        progress.n_iter += 1
        progress.loss = loss
        progress.rows_seen += self.n_rows
        progress.loss_curve.append(loss)
        if self.schedule.verbose:  # a text takes longer than the rest
            self._say(f"Iteration {progress.n_iter}, loss = {loss:.8f}")

    def _judge_loss(self) -> None:
        progress = self.progress
        assert progress.best_loss is not None
        if progress.loss > progress.best_loss - self.schedule.tol:
            progress.no_improvement += 1
        else:
            progress.no_improvement = 0
        progress.best_loss = min(progress.best_loss, progress.loss)

    def _judge_score(self, score: float) -> bool:
        progress = self.progress
        assert progress.validation_scores is not None
        assert progress.best_validation_score is not None
        progress.validation_scores.append(score)
        self._say(f"Validation score: {score:f}")
        if score < progress.best_validation_score + self.schedule.tol:
            progress.no_improvement += 1
        else:
            progress.no_improvement = 0
        is_best = score > progress.best_validation_score  # of NaN it is not
        if is_best:
            progress.best_validation_score = score
        return is_best

    def _stops(self) -> bool:
        """Stop, or learn five times slower where the learning rate adapts."""
        schedule, progress = self.schedule, self.progress
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
        self._say(said)
        return stops

    def _say(self, text: str) -> None:
        if self.schedule.verbose:
            print(text, flush=True)
