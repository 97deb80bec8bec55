"""Successive halving: many candidates a little, the better ones on."""

from numbers import Integral
from typing import Any

from sklearn.utils._param_validation import Interval

from skdtheano.model_selection.adaptive import AdaptiveSearch
from skdtheano.model_selection.halving import Bracket, Rung, halving_rungs, n_calls_of


class SuccessiveHalvingSearchCV(AdaptiveSearch):
    r"""Train candidates a little, keep the best third, train these three times as long.

    Rung :math:`i` keeps the best :math:`\lfloor n \eta^{-i} \rfloor` of ``n =
    n_initial_parameters`` candidates and trains each to :math:`r \eta^i` calls of
    ``partial_fit`` in all, with ``r = n_initial_iter`` and :math:`\eta` the
    `aggressiveness`. On a dask client, if one is current, the candidates of a rung train
    side by side; otherwise in this process. Names of parameters and attributes are those of
    `dask_ml.model_selection.SuccessiveHalvingSearchCV`.

    Parameters
    ----------
    estimator : estimator
        Any with ``partial_fit``, and with ``score`` unless `scoring` is given. It trains
        inside one task; candidates without a ``random_state`` get one from that of the search.
    parameters : dict or list of dict
        As of `sklearn.model_selection.ParameterSampler`: lists, or distributions.
    n_initial_parameters : int, default=10
        Candidates to begin with; a grid that has fewer is taken whole.
    n_initial_iter : int
        Calls that each of them gets.
    max_iter : int, default=None
        Calls that none gets more of.
    aggressiveness : float, default=3
        Of how many candidates one goes on. Above 1.
    test_size : float or int, default=None
        Rows to score on: a share, or a number. A fifth by default; of dask collections at
        most one block's worth. They have to fit into the memory of one worker.
    patience : int or bool, default=False
        A candidate whose score has not risen by more than `tol` within so many calls trains
        no further. True is ``max_iter / aggressiveness``.
    tol : float, default=0.001
    random_state : int, RandomState or None, default=None
        Of the draws of candidates, rows and blocks, and of the candidates' own seeds. With an
        int the same search finds the same again, on any number of workers.
    scoring : str, callable or None, default=None
        As of `sklearn.metrics.check_scoring`; by default the estimator's ``score``.
    verbose : bool or float, default=False
        Print a line when a rung has ended. They are logged in any case.
    prefix : str, default=""
        Of these lines.

    Attributes
    ----------
    best_estimator_ : estimator
        Of the last rung, the one with the best score, trained as far as it was scored.
    best_score_ : float
    best_params_ : dict
    best_index_ : int
        Its place in `cv_results_`.
    cv_results_ : dict of ndarray
        One entry a candidate: ``model_id``, ``params``, ``param_...``, ``test_score``,
        ``rank_test_score``, ``partial_fit_calls``, ``mean_partial_fit_time``,
        ``std_partial_fit_time``, ``mean_score_time``, ``std_score_time``, ``bracket``.
    history_ : list of dict
        One entry each time that a candidate was scored, by time: ``model_id``, ``params``,
        ``partial_fit_calls``, ``score``, ``partial_fit_time``, ``score_time`` and
        ``elapsed_wall_time`` in seconds, ``bracket``, ``error``.
    model_history_ : dict of list of dict
        The same by ``model_id``.
    metadata_ : dict
        What was done: ``n_models``, ``partial_fit_calls``, ``max_iter``.
    scorer_ : callable
    n_splits_ : int
        1: all are scored on the same held-out rows.

    References
    ----------
    Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter
    optimization, 2016, https://arxiv.org/abs/1502.07943

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skdtheano import DistributedMLPClassifier
    >>> from skdtheano.model_selection import SuccessiveHalvingSearchCV
    >>> X, y = load_iris(return_X_y=True)
    >>> search = SuccessiveHalvingSearchCV(
    ...     DistributedMLPClassifier((10,)),
    ...     {"learning_rate_init": [1e-4, 1e-3, 1e-2, 1e-1]},
    ...     n_initial_parameters=4, n_initial_iter=5, aggressiveness=2, random_state=0,
    ... )
    >>> search.metadata
    {'partial_fit_calls': 40, 'n_models': 4, 'max_iter': 20}
    >>> search.fit(X, y).best_params_["learning_rate_init"] >= 1e-2
    True
    """

    _parameter_constraints: dict[str, Any] = {
        **AdaptiveSearch._parameter_constraints,
        "n_initial_parameters": [Interval(Integral, 1, None, closed="left")],
        "n_initial_iter": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left"), None],
    }

    def __init__(
        self,
        estimator,
        parameters,
        n_initial_parameters=10,
        n_initial_iter=None,
        max_iter=None,
        aggressiveness=3,
        test_size=None,
        patience=False,
        tol=1e-3,
        random_state=None,
        scoring=None,
        verbose=False,
        prefix="",
    ):
        self.estimator = estimator
        self.parameters = parameters
        self.n_initial_parameters = n_initial_parameters
        self.n_initial_iter = n_initial_iter
        self.max_iter = max_iter
        self.aggressiveness = aggressiveness
        self.test_size = test_size
        self.patience = patience
        self.tol = tol
        self.random_state = random_state
        self.scoring = scoring
        self.verbose = verbose
        self.prefix = prefix

    def _brackets(self) -> dict[int, list[Rung]]:
        return {
            0: halving_rungs(
                self.n_initial_parameters,
                self.n_initial_iter,
                self.aggressiveness,
                self.max_iter,
            )
        }

    def _model_id(self, bracket: int, number: int) -> int:
        return number

    def _keep_metadata(self, brackets: dict[int, Bracket], n_calls: dict[int, int]) -> None:
        self.metadata_ = {
            "partial_fit_calls": n_calls[0],
            "n_models": brackets[0].n_models,
            "max_iter": int(self.cv_results_["partial_fit_calls"].max()),
        }

    @property
    def metadata(self):
        """What `fit` will do without `patience`: calls of all models, models, most calls."""
        rungs = self._brackets()[0]
        return {
            "partial_fit_calls": n_calls_of(rungs),
            "n_models": self.n_initial_parameters,
            "max_iter": rungs[-1].n_calls,
        }
