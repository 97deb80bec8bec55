"""Searches that train the candidates of one architecture as one model."""

import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from numbers import Number
from typing import Any

import numpy as np
import sklearn
from dask.base import is_dask_collection
from sklearn.base import _fit_context, clone, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import (
    GridSearchCV,
    ParameterGrid,
    ParameterSampler,
    RandomizedSearchCV,
    check_cv,
)
from sklearn.utils import indexable
from sklearn.utils.validation import _check_method_params, _num_samples

from skdtheano.model_selection.calls import as_is
from skdtheano.model_selection.fold_fits import Outcome, Request, Side, fit_and_score
from skdtheano.model_selection.jobs import Split, jobs_of, prefix_of
from skdtheano.model_selection.places import InProcess, OnCluster, Place, can_travel_along
from skdtheano.model_selection.recorded import RecordedSearch
from skdtheano.notices import warn_user
from skdtheano.runtime.clients import resolve_client


class _Batched:
    """What the searches share; beside a search class of scikit-learn's."""

    estimator: Any
    cv: Any
    refit: Any
    error_score: Any
    verbose: int
    return_train_score: bool
    best_params_: dict[str, Any]
    _get_scorers: Any
    _get_routed_params_for_fit: Any

    @abstractmethod
    def _candidates(self) -> Iterable[Mapping[str, Any]]:
        """The parameters to try."""

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, **params):
        """Search.

        Parameters
        ----------
        X : array-like, sparse matrix or DataFrame of shape (n_samples, n_features)
            Rows in memory.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        **params : dict
            As of scikit-learn's searches: ``groups`` for the splits; what is as long as X,
            such as ``sample_weight``, is split with it.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError, TypeError
            For data or parameters that cannot be used, or if all fits failed.
        ConnectionError, RuntimeError
            If the cluster is gone, or has no workers any more.
        """
        for name, value in {"X": X, "y": y, **params}.items():
            if is_dask_collection(value):
                raise TypeError(
                    f"{name} is a dask {type(value).__name__}, and {type(self).__name__} "
                    "trains many models on rows in memory. Use scikit-learn's GridSearchCV, "
                    "whose fits of dask arrays are spread over the cluster one by one; of a "
                    "DataFrame give it to_dask_array(lengths=True)."
                )
        if getattr(self, "_skl_callbacks", None):
            raise ValueError(
                f"{type(self).__name__} calls no callbacks: its fits are not told apart. Use "
                "GridSearchCV, or set_callbacks() without any."
            )
        scorer, _ = self._get_scorers()
        X, y = indexable(X, y)
        params = _check_method_params(X, params=params)
        routed = self._get_routed_params_for_fit(params)
        cv = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        rows = np.arange(_num_samples(X))
        candidates = [dict(candidate) for candidate in self._candidates()]
        _check_names(self.estimator, candidates)
        splits = [
            (rows[train], rows[test])
            for train, test in cv.split(X, y, **routed.splitter.split)
        ]
        self._say(
            f"Fitting {len(splits)} folds for each of {len(candidates)} candidates, "
            f"totalling {len(splits) * len(candidates)} fits"
        )
        client = resolve_client(None)
        request = Request(
            self.estimator,
            scorer,
            routed.estimator.fit,
            routed.scorer.score,
            scores_train=self.return_train_score,
            stops_at_error=self.error_score == "raise",
            config=sklearn.get_config(),
            travels=client is not None,
        )
        place = InProcess() if client is None else OnCluster(client)
        outcomes = self._outcomes(place, request, X, y, splits, candidates)
        self._keep(
            RecordedSearch(
                candidates,
                len(splits),
                self._judged(outcomes),
                refit=self.refit,
                error_score=self.error_score,
                return_train_score=self.return_train_score,
            ).run()
        )
        self.scorer_ = getattr(scorer, "_scorers", scorer)
        self.n_batched_fits_ = sum(outcome.was_stacked for outcome in outcomes)
        if self.refit:
            self._refit(X, y, routed.estimator.fit)
        return self

    def _outcomes(
        self,
        place: Place,
        request: Request,
        X: Any,
        y: Any,
        splits: Sequence[Split],
        candidates: Sequence[Mapping[str, Any]],
    ) -> list[Outcome]:
        """Fit and score every candidate on every split."""
        prefix = prefix_of(self.estimator)
        jobs = jobs_of(candidates, len(splits), prefix, place.n_at_once())
        shared, rows = [request, X, y], list(splits)
        parts = (X, y, *chain.from_iterable(splits))
        if request.travels and not can_travel_along(len(jobs), request, *parts):
            shared = [place.submit(as_is, request), place.put(X), place.put(y)]
            rows = [place.submit(as_is, split) for split in splits]
        waiting = [place.submit(fit_and_score, *shared, rows[j.split], j) for j in jobs]
        outcomes: list[Outcome] = []
        try:
            while waiting:
                done = place.first_done(waiting)
                waiting = [handle for handle in waiting if handle is not done]
                outcomes += place.result(done)
                if self.error_score == "raise":
                    _raise_first(outcomes)
                if self.verbose > 1:
                    self._say(f"{len(outcomes)} of {len(splits) * len(candidates)} fits done")
        except BaseException:
            place.cancel(waiting)
            raise
        return sorted(outcomes, key=lambda outcome: (outcome.candidate, outcome.split))

    def _judged(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Outcomes with numbers for scores; warns of what has failed or not converged."""
        sides = [side for o in outcomes for side in (o.test, o.train) if side is not None]
        known = next((side.score for side in sides if isinstance(side.score, dict)), None)
        failed = self.error_score if known is None else dict.fromkeys(known, self.error_score)
        failures = [side.traceback for side in sides if side.error is not None]

        def numbered(side: Side | None) -> Side | None:
            if side is None:
                return None
            if side.error is not None:
                return Side(failed)
            # A scorer of several metrics tells of one that has failed by its traceback.
            several = side.score if isinstance(side.score, dict) else {"score": side.score}
            failures.extend(filter(_is_traceback, several.values()))
            found = {
                name: self.error_score if _is_traceback(value) else _as_number(value)
                for name, value in several.items()
            }
            return Side(found if isinstance(side.score, dict) else found["score"])

        judged = [replace(o, test=numbered(o.test), train=numbered(o.train)) for o in outcomes]
        if failures:
            warn_user(
                f"Scoring failed {len(failures)} times, and the score is "
                f"{self.error_score} there. Details of the first: \n{failures[0]}"
            )
        n_short = sum(outcome.ended_at_max_iter for outcome in outcomes)
        if n_short:
            warn_user(
                f"{n_short} of {len(outcomes)} fits reached their max_iter and had not "
                "converged, without those that were fitted alone. Raise max_iter, or "
                "learning_rate_init, if these are to converge.",
                ConvergenceWarning,
            )
        return judged

    def _keep(self, search: RecordedSearch) -> None:
        """Set what a search has found."""
        names = ("cv_results_", "n_splits_", "multimetric_", "best_index_", "best_score_")
        for name in (*names, "best_params_"):
            vars(self).pop(name, None)  # of an earlier search
            if hasattr(search, name):
                setattr(self, name, getattr(search, name))

    def _refit(self, X: Any, y: Any, fit_params: Mapping[str, Any]) -> None:
        began = time.time()
        params = clone(self.best_params_, safe=False)
        self.best_estimator_ = clone(clone(self.estimator).set_params(**params))
        args = (X,) if y is None else (X, y)
        self.best_estimator_.fit(*args, **fit_params)
        self.refit_time_ = time.time() - began
        if hasattr(self.best_estimator_, "feature_names_in_"):
            self.feature_names_in_ = self.best_estimator_.feature_names_in_

    def _say(self, text: str) -> None:
        if self.verbose:
            print(text, flush=True)


class BatchedGridSearchCV(_Batched, GridSearchCV):
    """A grid search that trains the candidates of one architecture as one model.

    What `sklearn.model_selection.GridSearchCV` finds, with the same numbers: with an int for
    ``random_state``, parameters, scores and curves are those of fits one by one, bit for
    bit. Candidates of
    `DistributedMLPClassifier` or `DistributedMLPRegressor`, or of a
    `sklearn.pipeline.Pipeline` that ends in one, are stacked where all but these parameters
    are equal: ``alpha``, ``learning_rate``, ``learning_rate_init``, ``power_t``,
    ``momentum``, ``beta_1``, ``beta_2``, ``epsilon``, ``max_iter``, ``tol``,
    ``n_iter_no_change`` and ``random_state``. Each step gathers its rows once and computes
    all of them, and one that has converged leaves the others. Steps of a pipeline before the
    network are fitted once for each fold and setting of theirs, in each task. Others are
    fitted one after another: with ``solver="lbfgs"``, early stopping, sparse rows, a compile
    mode of the engine or a checkpoint, and any other estimator, as a class with a ``fit``
    of its own is.

    The smaller the networks and minibatches, the more does this save. On a dask client, if
    one is current, the stacks are spread over its workers, and what a lost worker held is
    trained again; otherwise all runs in this process. So there is no ``n_jobs``.

    Parameters
    ----------
    estimator : estimator
    param_grid : dict or list of dict
        As of `sklearn.model_selection.ParameterGrid`.
    scoring : str, callable, list, tuple, dict or None, default=None
        As of scikit-learn's searches, several metrics included.
    refit : bool, str or callable, default=True
        Fit the best candidate to all rows; the metric to choose by, or a function from
        `cv_results_` to the index of the best.
    cv : int, splitter or iterable, default=None
        As of `sklearn.model_selection.check_cv`.
    verbose : int, default=0
        1 prints how many fits there are; 2 also how many are done.
    error_score : "raise" or numeric, default=np.nan
        Score of a fit that raises.
    return_train_score : bool, default=False
        Whether to score the rows that were trained on too.

    Attributes
    ----------
    cv_results_, best_estimator_, best_score_, best_params_, best_index_, scorer_, n_splits_, \
            refit_time_, multimetric_, classes_, n_features_in_, feature_names_in_
        As of `sklearn.model_selection.GridSearchCV`. Times in seconds; models that are
        trained together have equal shares.
    n_batched_fits_ : int
        How many of the fits of the search were trained together with others.

    See Also
    --------
    sklearn.model_selection.GridSearchCV : One fit after another, with our estimators too;
        the one for dask collections.
    HyperbandSearchCV : Trains the better candidates longer.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skdtheano import DistributedMLPClassifier
    >>> from skdtheano.model_selection import BatchedGridSearchCV
    >>> X, y = load_iris(return_X_y=True)
    >>> search = BatchedGridSearchCV(
    ...     DistributedMLPClassifier((10,), batch_size=20, max_iter=60, random_state=0,
    ...                              n_iter_no_change=60),
    ...     {"alpha": [1e-4, 1e-2], "learning_rate_init": [0.001, 0.01, 0.03]}, cv=3)
    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # 60 epochs are few
    ...     search = search.fit(X, y)
    >>> search.n_batched_fits_, search.best_params_["learning_rate_init"]
    (18, 0.03)
    """

    def __init__(
        self,
        estimator,
        param_grid,
        *,
        scoring=None,
        refit=True,
        cv=None,
        verbose=0,
        error_score=np.nan,
        return_train_score=False,
    ):
        super().__init__(
            estimator,
            param_grid,
            scoring=scoring,
            refit=refit,
            cv=cv,
            verbose=verbose,
            error_score=error_score,
            return_train_score=return_train_score,
        )

    def _candidates(self) -> Iterable[Mapping[str, Any]]:
        candidates: Iterable[Mapping[str, Any]] = ParameterGrid(self.param_grid)
        return candidates


class BatchedRandomizedSearchCV(_Batched, RandomizedSearchCV):
    """A search of drawn candidates that trains those of one architecture as one model.

    What `sklearn.model_selection.RandomizedSearchCV` finds; see `BatchedGridSearchCV` for
    what is trained together, where, and how.

    Parameters
    ----------
    estimator : estimator
    param_distributions : dict or list of dict
        As of `sklearn.model_selection.ParameterSampler`.
    n_iter : int, default=10
        How many candidates to draw.
    scoring, refit, cv, verbose, error_score, return_train_score
        As of `BatchedGridSearchCV`.
    random_state : int, RandomState or None, default=None
        Of the draws of candidates.

    Attributes
    ----------
    cv_results_, best_estimator_, best_score_, best_params_, best_index_, scorer_, n_splits_, \
            refit_time_, multimetric_, n_batched_fits_
        As of `BatchedGridSearchCV`.

    Examples
    --------
    >>> from scipy.stats import loguniform
    >>> from sklearn.datasets import load_iris
    >>> from skdtheano import DistributedMLPClassifier
    >>> from skdtheano.model_selection import BatchedRandomizedSearchCV
    >>> X, y = load_iris(return_X_y=True)
    >>> search = BatchedRandomizedSearchCV(
    ...     DistributedMLPClassifier((10,), batch_size=20, random_state=0, max_iter=300),
    ...     {"alpha": loguniform(1e-5, 1e-1), "learning_rate_init": loguniform(3e-3, 3e-2)},
    ...     n_iter=6, cv=3, random_state=0)
    >>> search.fit(X, y).best_score_ > 0.9
    True
    """

    def __init__(
        self,
        estimator,
        param_distributions,
        *,
        n_iter=10,
        scoring=None,
        refit=True,
        cv=None,
        verbose=0,
        random_state=None,
        error_score=np.nan,
        return_train_score=False,
    ):
        super().__init__(
            estimator,
            param_distributions,
            n_iter=n_iter,
            scoring=scoring,
            refit=refit,
            cv=cv,
            verbose=verbose,
            random_state=random_state,
            error_score=error_score,
            return_train_score=return_train_score,
        )

    def _candidates(self) -> Iterable[Mapping[str, Any]]:
        candidates: Iterable[Mapping[str, Any]] = ParameterSampler(
            self.param_distributions, self.n_iter, random_state=self.random_state
        )
        return candidates


def _raise_first(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error


def _is_traceback(score: Any) -> bool:
    return isinstance(score, str) and score.startswith("Traceback")


def _as_number(score: Any) -> Any:
    """A score that is one; arrays of one entry count, as in scikit-learn."""
    value = score.item() if hasattr(score, "item") and np.size(score) == 1 else score
    if not isinstance(value, Number):
        raise ValueError(
            f"A score is {score!r} of type {type(score).__name__}, and has to be a number. "
            "Let scoring= return one, or a dict of some."
        )
    return value


def _check_names(estimator: Any, candidates: Sequence[Mapping[str, Any]]) -> None:
    """Raise for a parameter that there is not, before any candidate is fitted."""
    known = set()
    for params in candidates:
        # Where a step is replaced its own parameters count.
        replaced = [value for value in params.values() if hasattr(value, "get_params")]
        names = (*params, *map(id, replaced))
        if names not in known:
            clone(estimator).set_params(**clone(params, safe=False))
            known.add(names)
