"""scikit-learn's own search over fits that have been made: it ranks, averages and warns.

What `sklearn.model_selection` makes of scores, failed fits, several metrics and a `refit`
that is a function is left to it. What it splits are numbers of splits, a fit looks its outcome
up, and so does the scorer.
"""

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import joblib
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV

from skdtheano.model_selection.fold_fits import Outcome

#: The parameter by which a candidate's number travels through a search.
_NUMBER = "__number"


class _Sides:
    """Stands for a table: of split k, 2 k is all rows to train on, 2 k + 1 those to score on.

    Splits may have the same rows, and their fits other outcomes.

    scikit-learn asks what has an ``iloc`` for rows by ``take``. What has none it asks first
    whether it is one of many kinds of data frame, which would be half of the time of a search
    whose fits are there.
    """

    iloc = None

    def __init__(self, n_splits: int) -> None:
        self.shape = (2 * n_splits,)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, sides: np.ndarray, axis: int = 0) -> np.ndarray:
        return sides

    def __getitem__(self, sides: np.ndarray) -> np.ndarray:
        return sides

    def splits(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(np.array([k]), np.array([k + 1])) for k in range(0, len(self), 2)]


class _Recorded(BaseEstimator):
    """Stands for the models of a search; fitted ones know candidate and split."""

    def __init__(
        self,
        outcomes: Mapping[tuple[int, int], Outcome],
        tracebacks: Mapping[int, TracebackType | None],
    ) -> None:
        self.outcomes, self.tracebacks = outcomes, tracebacks

    def __sklearn_clone__(self) -> "_Recorded":
        return _Recorded(self.outcomes, self.tracebacks)

    def set_params(self, **params: Any) -> "_Recorded":
        self.number = params[_NUMBER]
        return self

    def fit(self, X: "np.ndarray | _Sides", y: None = None) -> "_Recorded":
        if isinstance(X, _Sides):  # the last fit, of all rows, which nobody scores
            return self
        self.outcome = self.outcomes[self.number, int(X[0]) // 2]
        error = self.outcome.fit_error
        if error is not None:
            # One of several candidates' is raised again: without what was added to it.
            raise error.with_traceback(self.tracebacks[id(error)])
        return self


def _score(model: _Recorded, X: np.ndarray, y: None = None) -> Any:
    outcome = model.outcome
    side = outcome.test if X[0] % 2 else outcome.train
    assert side is not None
    return side.score


class RecordedSearch(GridSearchCV):
    """A search whose fits have been made.

    Parameters
    ----------
    candidates : sequence of dict
    n_splits : int
    outcomes : sequence of Outcome
        One for each candidate and split.
    refit : bool, str or callable
        As of `sklearn.model_selection.GridSearchCV`; nothing is fitted.
    error_score, return_train_score
        As there.
    """

    def __init__(
        self,
        candidates: Sequence[Mapping[str, Any]],
        n_splits: int,
        outcomes: Sequence[Outcome],
        *,
        refit: bool | str | Callable[..., int],
        error_score: Any,
        return_train_score: bool,
    ) -> None:
        self._sides = _Sides(n_splits)
        by_place = {(o.candidate, o.split): o for o in outcomes}
        errors = [o.fit_error for o in outcomes if o.fit_error is not None]
        super().__init__(
            _Recorded(by_place, {id(error): error.__traceback__ for error in errors}),
            {},  # `_run_search` has the candidates
            scoring=_score,
            refit=(lambda results: refit(self._tidied(results))) if callable(refit) else refit,
            cv=self._sides.splits(),
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.candidates, self.n_splits, self.outcomes = candidates, n_splits, outcomes

    def _run_search(self, evaluate_candidates: Callable[..., Any]) -> None:
        evaluate_candidates(
            [{**params, _NUMBER: i} for i, params in enumerate(self.candidates)]
        )

    def run(self) -> "RecordedSearch":
        """Look all outcomes up and set the attributes of a search."""
        with joblib.parallel_config("sequential"):
            self.fit(self._sides)
        self.cv_results_: dict[str, Any] = self._tidied(self.cv_results_)
        if hasattr(self, "best_index_"):
            self.best_params_ = self.cv_results_["params"][self.best_index_]
        return self

    def _tidied(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Without the candidates' numbers, and with the times that fits and scores took."""
        tidied = {name: v for name, v in results.items() if name != f"param_{_NUMBER}"}
        tidied["params"] = [dict(params) for params in self.candidates]
        times = np.zeros((2, len(self.candidates), self.n_splits))
        for outcome in self.outcomes:
            place = (outcome.candidate, outcome.split)
            times[0][place], times[1][place] = outcome.fit_seconds, outcome.score_seconds
        for name, seconds in zip(("fit_time", "score_time"), times, strict=True):
            tidied[f"mean_{name}"] = seconds.mean(axis=1)
            tidied[f"std_{name}"] = seconds.std(axis=1)
        return tidied
