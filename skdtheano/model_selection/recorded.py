"""scikit-learn's own search over fits that have been made: it ranks, averages and warns.

What `sklearn.model_selection` makes of scores, failed fits, several metrics and a `refit`
that is a function is left to it. The rows that it splits are row numbers, a fit looks its
outcome up, and so does the scorer.
"""

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import joblib
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV

from skdtheano.model_selection.fold_fits import Outcome
from skdtheano.model_selection.jobs import Split

#: The parameter by which a candidate's number travels through a search.
_NUMBER = "__number"


class _RowNumbers:
    """All rows of a table, by number, as scikit-learn splits them up.

    It asks what has an ``iloc`` for rows by ``take``. What has none it asks first whether it
    is one of many kinds of data frame, which would be half of the time of a search whose fits
    are there; the rows are the same.
    """

    iloc = None

    def __init__(self, n: int) -> None:
        self.shape = (n,)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: np.ndarray, axis: int = 0) -> np.ndarray:
        return rows

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return rows

    def tobytes(self) -> bytes:
        """As an array's, for the last fit, of all rows."""
        return np.arange(len(self)).tobytes()


class _Recorded(BaseEstimator):
    """Stands for the models of a search; fitted ones know candidate and rows."""

    def __init__(
        self,
        outcomes: Mapping[tuple[int, bytes], list[tuple[bytes, Outcome]]],
        tracebacks: Mapping[int, TracebackType | None],
    ) -> None:
        self.outcomes, self.tracebacks = outcomes, tracebacks

    def __sklearn_clone__(self) -> "_Recorded":
        return _Recorded(self.outcomes, self.tracebacks)

    def set_params(self, **params: Any) -> "_Recorded":
        self.number = params[_NUMBER]
        return self

    def fit(self, X: np.ndarray, y: None = None) -> "_Recorded":
        self.train = X.tobytes()
        for _, outcome in self.outcomes.get((self.number, self.train), []):
            if outcome.fit_error is not None:
                # One of several candidates' is raised again: without what was added to it.
                raise outcome.fit_error.with_traceback(self.tracebacks[id(outcome.fit_error)])
        return self


def _score(model: _Recorded, X: np.ndarray, y: None = None) -> Any:
    rows = X.tobytes()
    outcomes = model.outcomes[model.number, model.train]
    of_test = [outcome for test, outcome in outcomes if test == rows]
    side = of_test[0].test if of_test else outcomes[0][1].train
    assert side is not None
    return side.score


class RecordedSearch(GridSearchCV):
    """A search whose fits have been made.

    Parameters
    ----------
    candidates : sequence of dict
    splits : sequence of tuple of ndarray
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
        splits: Sequence[Split],
        outcomes: Sequence[Outcome],
        *,
        refit: bool | str | Callable[..., int],
        error_score: Any,
        return_train_score: bool,
    ) -> None:
        keys = [tuple(np.ascontiguousarray(rows).tobytes() for rows in s) for s in splits]
        by_rows: dict[tuple[int, bytes], list[tuple[bytes, Outcome]]] = {}
        for outcome in outcomes:
            train, test = keys[outcome.split]
            by_rows.setdefault((outcome.candidate, train), []).append((test, outcome))
        errors = [o.fit_error for o in outcomes if o.fit_error is not None]
        super().__init__(
            _Recorded(by_rows, {id(error): error.__traceback__ for error in errors}),
            {},  # `_run_search` has the candidates
            scoring=_score,
            refit=(lambda results: refit(self._tidied(results))) if callable(refit) else refit,
            cv=list(splits),
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.candidates, self.splits, self.outcomes = candidates, splits, outcomes

    def _run_search(self, evaluate_candidates: Callable[..., Any]) -> None:
        evaluate_candidates(
            [{**params, _NUMBER: i} for i, params in enumerate(self.candidates)]
        )

    def run(self, n_rows: int) -> "RecordedSearch":
        """Look all outcomes up and set the attributes of a search."""
        with joblib.parallel_config("sequential"):
            self.fit(_RowNumbers(n_rows))
        self.cv_results_: dict[str, Any] = self._tidied(self.cv_results_)
        if hasattr(self, "best_index_"):
            self.best_params_ = self.cv_results_["params"][self.best_index_]
        return self

    def _tidied(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Without the candidates' numbers, and with the times that fits and scores took."""
        tidied = {name: v for name, v in results.items() if name != f"param_{_NUMBER}"}
        tidied["params"] = [dict(params) for params in self.candidates]
        times = np.zeros((2, len(self.candidates), len(self.splits)))
        for outcome in self.outcomes:
            place = (outcome.candidate, outcome.split)
            times[0][place], times[1][place] = outcome.fit_seconds, outcome.score_seconds
        for name, seconds in zip(("fit_time", "score_time"), times, strict=True):
            tidied[f"mean_{name}"] = seconds.mean(axis=1)
            tidied[f"std_{name}"] = seconds.std(axis=1)
        return tidied
