"""A task of a batched search: fit some candidates to folds, those that can be together."""

import pickle
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.validation import _check_method_params

from skdtheano.estimators.fits_together import Fit, Table, fit_all
from skdtheano.estimators.perceptron import DistributedPerceptron

Split = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Job:
    """A candidate, and the split that it is fitted and scored on; both by number."""

    candidate: int
    split: int
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What the caller learns of a job.

    Attributes
    ----------
    candidate, split : int
    test, train : float, dict or None
        What the scorer has returned; None where the fit or the scorer has raised, and, of
        the rows to train on, where nobody asked.
    fit_seconds, score_seconds : float
    fit_error : Exception or None
    score_error : Exception or None
    score_traceback : str
    was_stacked : bool
        Whether the model was trained together with others.
    ended_at_max_iter : bool
        Whether such a model had not converged.
    """

    candidate: int
    split: int
    test: Any = None
    train: Any = None
    fit_seconds: float = 0.0
    score_seconds: float = 0.0
    fit_error: Exception | None = None
    score_error: Exception | None = None
    score_traceback: str = ""
    was_stacked: bool = False
    ended_at_max_iter: bool = False


@dataclass(frozen=True)
class Request:
    """What all jobs of a search have in common.

    Attributes
    ----------
    estimator : estimator
    scorer : callable
    fit_params, score_params : dict
        By row where they are as long as the table.
    return_train_score : bool
    """

    estimator: Any
    scorer: Callable[..., Any]
    fit_params: Mapping[str, Any]
    score_params: Mapping[str, Any]
    return_train_score: bool


@dataclass
class _Candidate:
    """A job on its way."""

    job: Job
    model: Any
    fit: Fit | None = None
    error: Exception | None = None
    seconds: float = 0.0


def fit_and_score(
    request: Request, X: Any, y: Any, splits: Sequence[Split], jobs: Sequence[Job]
) -> list[Outcome]:
    """Fit each job's candidate to its rows and score it, in the order of the jobs."""
    folds = _Folds(request, X, y, splits)
    candidates = [_begun(request, job, folds) for job in jobs]
    fit_all([c.fit for c in candidates if c.fit is not None])
    return [_scored(request, candidate, folds) for candidate in candidates]


class _Folds:
    """The rows of each split; and what a pipeline makes of them, once for all candidates."""

    def __init__(self, request: Request, X: Any, y: Any, splits: Sequence[Split]) -> None:
        self._request, self.X, self.y, self.splits = request, X, y, splits
        self._rows: dict[tuple[int, int], tuple[Any, Any]] = {}
        self._transformed: dict[Any, tuple[Any, Table | Exception]] = {}

    def rows(self, split: int, side: int) -> tuple[Any, Any]:
        """X and y to train on (side 0) or to score on (1)."""
        key = (split, side)
        if key not in self._rows:
            train, test = self.splits[split]
            indices = (train, None) if side == 0 else (test, train)
            self._rows[key] = _safe_split(
                self._request.estimator, self.X, self.y, indices[0], indices[1]
            )
        return self._rows[key]

    def params(self, params: Mapping[str, Any], split: int, side: int) -> dict[str, Any]:
        """Those of its parameters that are by row, of the rows of a split."""
        chosen: dict[str, Any] = _check_method_params(
            self.X, params=params, indices=self.splits[split][side]
        )
        return chosen

    def table(self, split: int, before: Pipeline | None, weight: str) -> tuple[Any, Table]:
        """The steps before a network, fitted to the rows of a split, and what they make."""
        key = (split, _settings(before))
        if key not in self._transformed:
            X, y = self.rows(split, 0)
            fit_params = self.params(self._request.fit_params, split, 0)
            try:
                rows = X if before is None else before.fit_transform(X, y)
                made: Table | Exception = Table(rows, y, fit_params.get(weight))
            except Exception as error:
                made = error
            self._transformed[key] = before, made
        fitted, made = self._transformed[key]
        if isinstance(made, Exception):
            raise made
        return fitted, made


def _settings(steps: Pipeline | None) -> Any:
    """Equal for steps that are set alike."""
    try:
        return joblib.hash(steps)
    except Exception:  # what cannot be pickled is like nothing else
        return object()


def _begun(request: Request, job: Job, folds: _Folds) -> _Candidate:
    """A candidate whose fit is to be part of others', or which is fitted already."""
    began = time.perf_counter()
    candidate = _Candidate(job, None)
    try:
        params = clone(dict(job.params), safe=False)
        model = candidate.model = clone(request.estimator).set_params(**params)
        before, network, weight = _parts(model)
        if network is None or not set(request.fit_params) <= {weight}:
            X, y = folds.rows(job.split, 0)
            args = (X,) if y is None else (X, y)
            model.fit(*args, **folds.params(request.fit_params, job.split, 0))
        else:
            fitted, table = folds.table(job.split, before, weight)
            if before is not None:
                model.steps[:-1] = fitted.steps
            candidate.fit = Fit(network, table)
    except Exception as error:
        candidate.error = error
    candidate.seconds = time.perf_counter() - began
    return candidate


def _parts(model: Any) -> tuple[Pipeline | None, DistributedPerceptron | None, str]:
    """Steps before the network, the network, and what the weights of its rows are called."""
    if isinstance(model, DistributedPerceptron):
        return None, model, "sample_weight"
    if isinstance(model, Pipeline) and isinstance(model[-1], DistributedPerceptron):
        before = clone(model[:-1]) if len(model) > 1 else None
        return before, model[-1], f"{model.steps[-1][0]}__sample_weight"
    return None, None, ""


def _scored(request: Request, candidate: _Candidate, folds: _Folds) -> Outcome:
    job, fit, error = candidate.job, candidate.fit, candidate.error
    seconds, was_stacked, at_max_iter = candidate.seconds, False, False
    if fit is not None:
        error, was_stacked = fit.error, fit.was_stacked
        seconds, at_max_iter = seconds + fit.seconds, fit.ended_at_max_iter
    told: dict[str, Any] = {
        "fit_seconds": seconds,
        "was_stacked": was_stacked,
        "ended_at_max_iter": at_max_iter,
    }
    if error is not None:
        return Outcome(job.candidate, job.split, fit_error=_portable(error), **told)
    began = time.perf_counter()
    scores: list[Any] = [None, None]
    try:
        for side in (1, 0) if request.return_train_score else (1,):
            X, y = folds.rows(job.split, side)
            params = folds.params(request.score_params, job.split, side)
            args = (X,) if y is None else (X, y)
            scores[side] = request.scorer(candidate.model, *args, **params)
            if side == 1:
                told["score_seconds"] = time.perf_counter() - began
    except Exception as raised:
        told["score_error"], told["score_traceback"] = (
            _portable(raised),
            traceback.format_exc(),
        )
    return Outcome(job.candidate, job.split, test=scores[1], train=scores[0], **told)


def _portable(error: Exception) -> Exception:
    """An exception that another process can read."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
