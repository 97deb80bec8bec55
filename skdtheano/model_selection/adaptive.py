"""Searches that train many candidates a little, and the better ones on."""

import logging
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import numpy as np
from dask.array import unique
from dask.base import is_dask_collection
from dask_ml.wrappers import ParallelPostFit
from sklearn.base import BaseEstimator, MetaEstimatorMixin, _fit_context, clone, is_classifier
from sklearn.exceptions import FitFailedWarning, NotFittedError
from sklearn.metrics import check_scoring
from sklearn.model_selection import ParameterSampler
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, RealNotInt
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skdtheano.estimators.perceptron import DistributedPerceptron
from skdtheano.model_selection.calls import Candidate, model_of
from skdtheano.model_selection.halving import Bracket, Rung
from skdtheano.model_selection.held_out import split
from skdtheano.model_selection.places import InProcess, OnCluster, Place
from skdtheano.model_selection.results import cv_results
from skdtheano.model_selection.search_run import SearchRun, Trainee
from skdtheano.notices import warn_user
from skdtheano.runtime.clients import resolve_client

logger = logging.getLogger(__name__)

_MAX_SEED = 2**31 - 1


def _best_can(method: str) -> Any:
    """Whether the best estimator has a method, or the one to be searched with."""

    def check(search: "AdaptiveSearch") -> bool:
        getattr(getattr(search, "best_estimator_", search.estimator), method)
        return True

    return check


class AdaptiveSearch(MetaEstimatorMixin, BaseEstimator):
    """What the searches by successive halving share."""

    _parameter_constraints: dict[str, Any] = {
        "estimator": [HasMethods(["partial_fit"])],
        "parameters": [dict, list],
        "aggressiveness": [Interval(Real, 1, None, closed="neither")],
        "patience": ["boolean", Interval(Integral, 1, None, closed="left")],
        "tol": [Real, None],
        "test_size": [
            Interval(RealNotInt, 0, 1, closed="neither"),
            Interval(Integral, 1, None, closed="left"),
            None,
        ],
        "random_state": ["random_state"],
        "verbose": ["boolean", Interval(Real, 0, 1, closed="both")],
        "prefix": [str],
    }

    @abstractmethod
    def _brackets(self) -> dict[int, list[Rung]]:
        """The rungs of each bracket."""

    @abstractmethod
    def _model_id(self, bracket: int, number: int) -> Any:
        """What a candidate is called."""

    @abstractmethod
    def _keep_metadata(self, brackets: dict[int, Bracket], n_calls: dict[int, int]) -> None:
        """Set `metadata_`, of what was done."""

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, **fit_params):
        """Search.

        Parameters
        ----------
        X : array-like, dask Array or dask DataFrame of shape (n_samples, n_features)
            Rows in memory are one block: a call of ``partial_fit`` is an epoch. Of a dask
            collection each call sees one block, whose rows lie on a worker.
        y : array-like, dask Array or Series of shape (n_samples,) or (n_samples, n_outputs)
        **fit_params : dict
            For each call of ``partial_fit``. ``classes`` of a classifier are found in y if
            they are not given.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError, TypeError
            For data or parameters that cannot be used, or if no candidate could be trained.
        ConnectionError, RuntimeError
            If the cluster is gone, or has no workers any more.
        """
        scorer = check_scoring(self.estimator, scoring=self.scoring)
        rng = check_random_state(self.random_state)
        client = resolve_client(None)
        place = InProcess() if client is None else OnCluster(client)
        fit_params = self._with_classes(y, fit_params)
        seeds = rng.randint(_MAX_SEED, size=3)
        data = split(X, y, self.test_size, int(seeds[0]), place)
        rungs = self._brackets()
        candidates = {
            b: self._candidates(b, rungs[b][0].n_models, int(seeds[1]) + b, place)
            for b in sorted(rungs, reverse=True)
        }
        brackets = {
            b: Bracket(rungs[b], len(mine), self._patience(), self._tolerance())
            for b, mine in candidates.items()
        }
        order = self._block_order(len(data.blocks), rungs, int(seeds[2]))
        run = SearchRun(place, data, scorer, fit_params, order, self._say)
        with _stopped_by_user():
            run.all(brackets, candidates)
        self._keep(brackets, candidates, place, scorer)
        return self

    def _with_classes(self, y: Any, fit_params: dict[str, Any]) -> dict[str, Any]:
        if "classes" in fit_params or not is_classifier(self.estimator):
            return fit_params
        if hasattr(y, "to_dask_array"):
            y = y.to_dask_array()
        if getattr(y, "ndim", 1) > 1:
            return fit_params  # multilabel targets name their classes by their columns
        classes = unique(y).compute() if is_dask_collection(y) else np.unique(y)
        return {**fit_params, "classes": classes}

    def _candidates(self, bracket: int, n: int, seed: int, place: Place) -> list[Trainee]:
        rng = np.random.RandomState(seed)
        found = list(ParameterSampler(self.parameters, n, random_state=rng))
        trainees = []
        for number, params in enumerate(found):
            model = clone(self.estimator).set_params(**clone(params, safe=False))
            _set_seeds(model, rng)
            begun = place.submit(Candidate, model)
            trainees.append(Trainee(self._model_id(bracket, number), params, begun))
        return trainees

    def _block_order(
        self, n_blocks: int, rungs: dict[int, list[Rung]], seed: int
    ) -> list[int]:
        """Blocks by the number of the call: all of them in turn, each time drawn anew."""
        n_calls = max(rung.n_calls for some in rungs.values() for rung in some)
        rng = np.random.RandomState(seed)
        order: list[int] = []
        while len(order) < n_calls:
            order.extend(rng.permutation(n_blocks).tolist())
        return order

    def _patience(self) -> int | None:
        if self.patience is False:
            return None
        if self.patience is True:
            n_calls = max(rungs[-1].n_calls for rungs in self._brackets().values())
            return max(int(n_calls / self.aggressiveness), 1)
        return int(self.patience)

    def _tolerance(self) -> float:
        # dask-ml's way to say that a plateau of any height counts as none.
        return -np.inf if self.tol is None or np.isnan(self.tol) else float(self.tol)

    def _say(self, text: str) -> None:
        logger.info("%s%s", self.prefix, text)
        if self.verbose:
            print(f"{self.prefix}{text}", flush=True)

    def _keep(
        self,
        brackets: dict[int, Bracket],
        candidates: dict[int, list[Trainee]],
        place: Place,
        scorer: Any,
    ) -> None:
        """Set what a search has found."""
        judged = [(b, i) for b, mine in candidates.items() for i in range(len(mine))]
        judged = [(b, i) for b, i in judged if candidates[b][i].records]
        scores = {(b, i): brackets[b].score(i) for b, i in judged}
        failed = {key: _last_error(candidates[key[0]][key[1]]) for key in judged}
        failed = {key: error for key, error in failed.items() if error}
        if len(failed) == len(judged):
            why = next(iter(failed.values()), "the search was stopped before any was scored")
            raise ValueError(f"None of the {len(judged)} candidates could be trained: {why}")
        if failed:
            one = next(iter(failed.values()))
            warn_user(
                f"{len(failed)} of {len(judged)} candidates failed, and score NaN: {one}",
                FitFailedWarning,
            )
        trainees = [candidates[b][i] for b, i in judged]
        self.cv_results_ = cv_results(trainees, [scores[key] for key in judged])
        self.cv_results_["bracket"] = np.array([b for b, _ in judged])
        self.model_history_ = {trainee.model_id: trainee.records for trainee in trainees}
        records = [record for trainee in trainees for record in trainee.records]
        self.history_ = sorted(records, key=lambda record: record["elapsed_wall_time"])
        retained = [(b, i) for b, i in judged if i in set(brackets[b].retained)]
        retained = [key for key in retained if not np.isnan(scores[key])] or [
            key for key in judged if not np.isnan(scores[key])
        ]
        best = max(retained, key=lambda key: (scores[key], -judged.index(key)))
        self.best_index_ = judged.index(best)
        self.best_score_ = scores[best]
        self.best_params_ = dict(trainees[self.best_index_].params)
        handle = place.submit(model_of, trainees[self.best_index_].scored)
        self.best_estimator_ = place.result(handle)
        self.scorer_ = scorer
        self.n_splits_ = 1
        self.multimetric_ = False
        n_calls = {
            b: sum(t.records[-1]["partial_fit_calls"] for t in mine if t.records)
            for b, mine in candidates.items()
        }
        self._keep_metadata(brackets, n_calls)

    @property
    def classes_(self):
        """The class labels of the best estimator."""
        check_is_fitted(self, "best_estimator_")
        return self.best_estimator_.classes_

    @property
    def n_features_in_(self):
        """How many features the best estimator has seen."""
        if not hasattr(self, "best_estimator_"):
            raise AttributeError(f"This {type(self).__name__} is not fitted: call fit first.")
        return self.best_estimator_.n_features_in_

    def _of_best(self, method: str, X: Any) -> Any:
        check_is_fitted(self, "best_estimator_")
        best = self.best_estimator_
        if is_dask_collection(X) and not isinstance(best, DistributedPerceptron):
            best = ParallelPostFit(best)
        return getattr(best, method)(X)

    @available_if(_best_can("predict"))
    def predict(self, X):
        """Predict with the best estimator; lazily for a dask collection."""
        return self._of_best("predict", X)

    @available_if(_best_can("predict_proba"))
    def predict_proba(self, X):
        """Probabilities by the best estimator; lazily for a dask collection."""
        return self._of_best("predict_proba", X)

    @available_if(_best_can("predict_log_proba"))
    def predict_log_proba(self, X):
        """Logarithms of probabilities by the best estimator."""
        return self._of_best("predict_log_proba", X)

    @available_if(_best_can("decision_function"))
    def decision_function(self, X):
        """Decision function of the best estimator."""
        check_is_fitted(self, "best_estimator_")
        return self.best_estimator_.decision_function(X)

    @available_if(_best_can("transform"))
    def transform(self, X):
        """Transform with the best estimator; lazily for a dask collection."""
        return self._of_best("transform", X)

    def score(self, X, y=None):
        """Score of the best estimator, by the search's scorer.

        Parameters
        ----------
        X, y : array-like or dask collections

        Returns
        -------
        float
        """
        if not hasattr(self, "best_estimator_"):
            raise NotFittedError(f"This {type(self).__name__} is not fitted: call fit first.")
        return self.scorer_(self.best_estimator_, X, y)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        inner = self.estimator.__sklearn_tags__()
        tags.estimator_type = inner.estimator_type
        tags.classifier_tags, tags.regressor_tags = inner.classifier_tags, inner.regressor_tags
        return tags


@contextmanager
def _stopped_by_user() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        warn_user("Search interrupted by user: what was scored until then counts.")


def _set_seeds(model: Any, rng: np.random.RandomState) -> None:
    """Give a candidate the seeds it lacks, so that the search is the same again."""
    params = model.get_params(deep=True)
    names = [key for key in params if key == "random_state" or key.endswith("__random_state")]
    seeds = {key: int(rng.randint(_MAX_SEED)) for key in sorted(names)}
    missing = {key: seed for key, seed in seeds.items() if params[key] is None}
    if missing:
        model.set_params(**missing)


def _last_error(trainee: Trainee) -> str | None:
    error: str | None = trainee.records[-1]["error"]
    return error
