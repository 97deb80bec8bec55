"""Accuracy and R² as sums over rows, so that blocks of any sizes give the exact score."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np


@dataclass(frozen=True)
class ScoreSums:
    """What one set of rows contributes to a score.

    Attributes
    ----------
    n_rows : int
    weight : float
        Sum of the rows' weights.
    correct : float
        Weights of the rows whose every label is right; 0 for a regression.
    squared_error, mean, scatter : ndarray of shape (n_outputs,)
        Weighted sum of squared errors; weighted mean of the targets; weighted sum of
        squared differences from that mean.
    finite : bool
        No predicted number is NaN or infinite; labels always are finite.
    """

    n_rows: int
    weight: float
    correct: float
    squared_error: np.ndarray
    mean: np.ndarray
    scatter: np.ndarray
    finite: bool

    def __add__(self, other: "ScoreSums") -> "ScoreSums":
        # Means and scatters merge by Chan, Golub & LeVeque (1983), eq. 2.1: the sum of
        # squares less the square of the sum would lose every digit for a large mean.
        weight = self.weight + other.weight
        gap = other.mean - self.mean
        share = other.weight / weight if weight else 0.0
        return ScoreSums(
            n_rows=self.n_rows + other.n_rows,
            weight=weight,
            correct=self.correct + other.correct,
            squared_error=self.squared_error + other.squared_error,
            mean=self.mean + gap * share,
            scatter=self.scatter + other.scatter + gap**2 * self.weight * share,
            finite=self.finite and other.finite,
        )


def classification_sums(
    truth: np.ndarray, outputs: np.ndarray, weights: np.ndarray, one_of_many: bool
) -> ScoreSums:
    """Sums for the accuracy, from a network's outputs.

    Parameters
    ----------
    truth, outputs : ndarray of shape (n, n_outputs)
        One-hot or indicator targets; the network's probabilities.
    weights : ndarray of shape (n,)
    one_of_many : bool
        The class is the largest output; otherwise each output above 0.5 is a label.
    """
    if one_of_many:
        return label_sums(truth.argmax(axis=1), outputs.argmax(axis=1), weights)
    return label_sums(truth > 0.5, outputs > 0.5, weights)


def label_sums(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> ScoreSums:
    """Sums for the accuracy, from labels: vectors, or indicator matrices."""
    right = truth == predicted
    if right.ndim == 2:
        right = right.all(axis=1)
    none = np.zeros(1)
    return ScoreSums(
        n_rows=len(weights),
        weight=float(weights.sum(dtype=np.float64)),
        # Not weights[right].sum(): that rounds by the number of right rows, and two epochs
        # that differ in a row of weight 0 would not tie.
        correct=float((weights * right).sum(dtype=np.float64)),
        squared_error=none,
        mean=none,
        scatter=none,
        finite=True,
    )


def regression_sums(truth: np.ndarray, outputs: np.ndarray, weights: np.ndarray) -> ScoreSums:
    """Sums for R²; arguments as in `classification_sums`."""
    w = weights.astype(np.float64)[:, None]
    truth = truth.astype(np.float64, copy=False)
    weight = float(w.sum())
    mean = (w * truth).sum(axis=0) / weight if weight else np.zeros(truth.shape[1])
    return ScoreSums(
        n_rows=len(weights),
        weight=weight,
        correct=0.0,
        squared_error=(w * (truth - outputs) ** 2).sum(axis=0),
        mean=mean,
        scatter=(w * (truth - mean) ** 2).sum(axis=0),
        finite=bool(np.isfinite(outputs).all()),
    )


def merge(parts: Iterable[ScoreSums]) -> ScoreSums:
    """Sums of all rows, added in the order given."""
    return reduce(ScoreSums.__add__, parts)


def accuracy(sums: ScoreSums) -> float:
    """Weighted fraction of the rows that are right."""
    return sums.correct / sums.weight


def r2(sums: ScoreSums) -> float:
    """Mean over outputs of 1 - squared error / scatter, as `sklearn.metrics.r2_score`.

    An output whose targets are all equal counts 1 if it is matched exactly, else 0. Of
    fewer than two rows it is NaN.
    """
    if not sums.finite or sums.n_rows < 2:
        return float("nan")
    scores = np.where(sums.squared_error == 0, 1.0, 0.0)
    varied = sums.scatter != 0
    scores[varied] = 1 - sums.squared_error[varied] / sums.scatter[varied]
    return float(scores.mean())
