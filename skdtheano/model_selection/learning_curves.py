"""Pictures of how losses and scores went."""

from collections.abc import Mapping
from typing import Any

import numpy as np


class LearningCurvesDisplay:
    """Curves of a fit's loss and validation score, or of a search's candidates.

    Make one with `from_estimator` or `from_search`; it needs matplotlib (``pip install
    'skdtheano[plot]'``).

    Parameters
    ----------
    curves : dict of str to (ndarray of shape (n,), ndarray of shape (n,))
        Of each label, the epochs or calls, and the values.
    xlabel, ylabel : str
    highlighted : str, default=None
        The label of the curve that is drawn stronger.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    lines_ : list of matplotlib Line2D
        In the order of `curves`.
    """

    def __init__(self, *, curves, xlabel, ylabel, highlighted=None):
        self.curves = curves
        self.xlabel = xlabel
        self.ylabel = ylabel
        self.highlighted = highlighted

    def plot(self, ax=None, *, legend="auto", **line_kw):
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; a new figure by default.
        legend : bool or "auto", default="auto"
            Whether to name the curves: by default if there are at most ten.
        **line_kw : dict
            For `matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : LearningCurvesDisplay
        """
        if ax is None:
            _, ax = _pyplot().subplots()
        self.lines_ = []
        for label, (x, y) in self.curves.items():
            style: dict[str, Any] = {"marker": "o" if len(x) < 2 else None}
            if self.highlighted is not None and label != self.highlighted:
                style |= {"alpha": 0.4, "linewidth": 1}
            elif self.highlighted is not None:
                style |= {"linewidth": 2.5, "zorder": 3}
            self.lines_.extend(ax.plot(x, y, label=label, **{**style, **line_kw}))
        ax.set(xlabel=self.xlabel, ylabel=self.ylabel)
        if len(self.curves) <= 10 if legend == "auto" else legend:
            ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self

    @classmethod
    def from_estimator(cls, estimator, *, ax=None, legend="auto", **line_kw):
        """Draw the loss of a fitted estimator, and its validation scores if there are any.

        Parameters
        ----------
        estimator : estimator
            With ``loss_curve_``: ours or scikit-learn's perceptrons, also as the last step
            of a pipeline, or the best of a search.
        ax, legend, **line_kw
            As of `plot`.

        Returns
        -------
        display : LearningCurvesDisplay
        """
        model = _fitted_model(estimator)
        curves = {"training loss": _curve(model.loss_curve_)}
        scores = getattr(model, "validation_scores_", None)
        if scores:
            curves["validation score"] = _curve(scores)
        ylabel = "loss" if len(curves) == 1 else "loss, score"
        display = cls(curves=curves, xlabel="epoch", ylabel=ylabel)
        return display.plot(ax, legend=legend, **line_kw)

    @classmethod
    def from_search(cls, search, *, ax=None, legend="auto", **line_kw):
        """Draw the score of each candidate of a search, by calls of ``partial_fit``.

        Parameters
        ----------
        search : HyperbandSearchCV or SuccessiveHalvingSearchCV
            Fitted; dask-ml's serve as well. The best candidate is drawn stronger.
        ax, legend, **line_kw
            As of `plot`.

        Returns
        -------
        display : LearningCurvesDisplay
        """
        histories = getattr(search, "model_history_", None)
        if histories is None:
            raise TypeError(
                f"search={type(search).__name__} has no model_history_. Give a fitted "
                "HyperbandSearchCV or SuccessiveHalvingSearchCV, or draw the best estimator "
                "of another search: LearningCurvesDisplay.from_estimator(search)."
            )
        curves = {_label(history[0]): _scores(history) for history in histories.values()}
        best = search.cv_results_["model_id"][search.best_index_]
        display = cls(
            curves=curves,
            xlabel="calls of partial_fit",
            ylabel="score",
            highlighted=_label(histories[best][0]),
        )
        return display.plot(ax, legend=legend, **line_kw)


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "LearningCurvesDisplay draws with matplotlib, which is not installed. Install it "
            "with: pip install 'skdtheano[plot]'"
        ) from error
    return plt


def _fitted_model(estimator: Any) -> Any:
    model = getattr(estimator, "best_estimator_", estimator)
    steps = getattr(model, "steps", None)
    model = steps[-1][1] if steps else model
    if not hasattr(model, "loss_curve_"):
        raise TypeError(
            f"estimator={type(estimator).__name__} has no loss_curve_. Give a perceptron that "
            "is fitted by adam or sgd, a pipeline that ends in one, or a search for one."
        )
    return model


def _curve(values: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(1, len(values) + 1), np.asarray(values)


def _scores(history: Any) -> tuple[np.ndarray, np.ndarray]:
    calls = np.array([record["partial_fit_calls"] for record in history])
    return calls, np.array([record["score"] for record in history])


def _label(record: Mapping[str, Any]) -> str:
    params = ", ".join(f"{k}={_short(value)}" for k, value in sorted(record["params"].items()))
    return f"{record['model_id']}: {params}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
