"""A task of a batched search: fit some candidates to folds, those that can be together."""

import copy
import pickle
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from traceback import format_exc
from types import TracebackType
from typing import Any

import sklearn
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.validation import _check_method_params

from skdtheano.estimators.fits_together import Fit, Table, fit_each
from skdtheano.estimators.perceptron import DistributedPerceptron
from skdtheano.model_selection.jobs import Job, Split


@dataclass(frozen=True)
class Side:
    """What the scorer has made of some rows: its score, or what it has raised, as text too."""

    score: Any = None
    error: Exception | None = None
    traceback: str = ""


@dataclass(frozen=True)
class Outcome:
    """What the caller learns of a candidate on a split.

    Attributes
    ----------
    candidate, split : int
    test, train : Side or None
        Of the rows to score on, and of those to train on; None where the fit has raised, or
        nobody asked.
    fit_seconds, score_seconds : float
    fit_error : Exception or None
    was_stacked : bool
        Whether the model was trained together with others.
    ended_at_max_iter : bool
        Whether such a model had not converged.
    """

    candidate: int
    split: int
    test: Side | None = None
    train: Side | None = None
    fit_seconds: float = 0.0
    score_seconds: float = 0.0
    fit_error: Exception | None = None
    was_stacked: bool = False
    ended_at_max_iter: bool = False

    @property
    def error(self) -> Exception | None:
        """The first that there was."""
        sides = [side.error for side in (self.test, self.train) if side is not None]
        return next((e for e in (self.fit_error, *sides) if e is not None), None)


@dataclass(frozen=True)
class Request:
    """What all jobs of a search have in common.

    Attributes
    ----------
    estimator : estimator
    scorer : callable
    fit_params, score_params : dict
        By row where they are as long as the table.
    scores_train : bool
        Whether to score the rows that were trained on as well.
    stops_at_error : bool
        Whether a fit that raises ends the search: then a job ends there too.
    config : dict
        scikit-learn's, of the caller's thread.
    travels : bool
        Whether outcomes go to another process.
    """

    estimator: Any
    scorer: Callable[..., Any]
    fit_params: Mapping[str, Any]
    score_params: Mapping[str, Any]
    scores_train: bool
    stops_at_error: bool
    config: Mapping[str, Any]
    travels: bool


@dataclass
class _Candidate:
    """A candidate on its way."""

    number: int
    model: Any = None
    fit: Fit | None = None
    error: Exception | None = None
    seconds: float = 0.0


def fit_and_score(request: Request, X: Any, y: Any, split: Split, job: Job) -> list[Outcome]:
    """Fit a job's candidates to the rows of its split and score them, as they are done.

    A model is forgotten once it is scored. A job that stops at an error ends with that.
    """
    outcomes: list[Outcome] = []
    with sklearn.config_context(**request.config):
        for outcome in _outcomes(request, job, _Fold(request, X, y, split)):
            outcomes.append(outcome)
            if request.stops_at_error and outcome.error is not None:
                break
    return outcomes


def _outcomes(request: Request, job: Job, fold: "_Fold") -> Iterator[Outcome]:
    pending: dict[int, _Candidate] = {}
    for number, steps, params in job.candidates:
        candidate = _begun(number, steps, params, request, fold)
        if candidate.fit is None:
            yield _scored(request, job, candidate, fold)
        else:
            pending[id(candidate.fit)] = candidate
    for done in fit_each(c.fit for c in list(pending.values()) if c.fit is not None):
        yield _scored(request, job, pending.pop(id(done)), fold)


class _Fold:
    """The rows of a split, and what a pipeline makes of them: once for all candidates."""

    def __init__(self, request: Request, X: Any, y: Any, split: Split) -> None:
        self._request, self._X, self._split = request, X, split
        train, test = split
        self._rows = [
            _safe_split(request.estimator, X, y, train),
            _safe_split(request.estimator, X, y, test, train),
        ]
        self._made: dict[Hashable, tuple[Any, Table]] = {}
        self._failed: dict[Hashable, tuple[Exception, TracebackType | None]] = {}

    def rows(self, side: int) -> tuple[Any, ...]:
        """X and, if there is one, y: to train on (side 0) or to score on (1)."""
        X, y = self._rows[side]
        return (X,) if y is None else (X, y)

    def params(self, params: Mapping[str, Any], side: int) -> dict[str, Any]:
        """Parameters, those that are by row of the rows of a side."""
        chosen: dict[str, Any] = _check_method_params(
            self._X, params=params, indices=self._split[side]
        )
        return chosen

    def table(
        self, steps: Hashable, before: Pipeline | None, weight: str
    ) -> tuple[Any, Table]:
        """The steps before a network, fitted to the rows to train on, and what they make.

        Fitted once for equal `steps`.
        """
        if steps in self._failed:
            error, traceback = self._failed[steps]
            raise error.with_traceback(traceback)  # else it grows each time
        if steps not in self._made:
            X, y = self._rows[0]
            weights = self.params(self._request.fit_params, 0).get(weight)
            try:
                rows = X if before is None else before.fit_transform(X, y)
            except Exception as error:
                self._failed[steps] = error, error.__traceback__
                raise
            self._made[steps] = before, Table(rows, y, weights)
        return self._made[steps]


def _begun(
    number: int, steps: Hashable, params: Mapping[str, Any], request: Request, fold: _Fold
) -> _Candidate:
    """A candidate whose fit is to be part of others', or which is fitted already."""
    began = time.perf_counter()
    candidate = _Candidate(number)
    try:
        params = clone(dict(params), safe=False)
        model = candidate.model = clone(request.estimator).set_params(**params)
        before, network, weight = _parts(model)
        if network is None or not set(request.fit_params) <= {weight}:
            model.fit(*fold.rows(0), **fold.params(request.fit_params, 0))
        else:
            fitted, table = fold.table(steps, before, weight)
            if before is not None:
                model.steps[:-1] = fitted.steps
            candidate.fit = Fit(network, table)
    except Exception as error:
        candidate.error = error
    candidate.seconds = time.perf_counter() - began
    return candidate


def _parts(model: Any) -> tuple[Pipeline | None, DistributedPerceptron | None, str]:
    """Steps before the network, the network, and what the weights of its rows are called.

    No network where the whole has a ``fit`` of its own: another class may do anything there.
    """
    if isinstance(model, DistributedPerceptron):
        return None, model, "sample_weight"
    if type(model) is Pipeline and isinstance(model[-1], DistributedPerceptron):
        before = clone(model[:-1]) if len(model) > 1 else None
        return before, model[-1], f"{model.steps[-1][0]}__sample_weight"
    return None, None, ""


def _scored(request: Request, job: Job, candidate: _Candidate, fold: _Fold) -> Outcome:
    fit, error = candidate.fit, candidate.error
    told: dict[str, Any] = {"fit_seconds": candidate.seconds}
    if fit is not None:
        error = fit.error
        told["fit_seconds"] += fit.seconds
        told |= {"was_stacked": fit.was_stacked, "ended_at_max_iter": fit.ended_at_max_iter}
    keep = _portable if request.travels else _as_it_is
    if error is not None:
        return Outcome(candidate.number, job.split, fit_error=keep(error), **told)
    began = time.perf_counter()
    test = _side(request, candidate.model, fold, 1, keep)
    told["score_seconds"] = time.perf_counter() - began
    train = _side(request, candidate.model, fold, 0, keep) if request.scores_train else None
    return Outcome(candidate.number, job.split, test, train, **told)


def _side(
    request: Request,
    model: Any,
    fold: _Fold,
    side: int,
    keep: Callable[[Exception], Exception],
) -> Side:
    try:
        params = fold.params(request.score_params, side)
        return Side(request.scorer(model, *fold.rows(side), **params))
    except Exception as raised:
        return Side(error=keep(raised), traceback=format_exc())


def _as_it_is(error: Exception) -> Exception:
    return error


def _portable(error: Exception) -> Exception:
    """An exception that another process can read."""
    try:
        pickle.dumps(error)
        copy.copy(error)  # made anew from its arguments, as by who unpickles it
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
