"""Hyperband: successive halvings side by side, from impatient to patient."""

from numbers import Integral
from typing import Any

from sklearn.utils._param_validation import Interval

from skdtheano.model_selection.adaptive import AdaptiveSearch
from skdtheano.model_selection.halving import Bracket, Rung, hyperband_brackets, n_calls_of


class HyperbandSearchCV(AdaptiveSearch):
    r"""Successive halving with several trade-offs between many candidates and long training.

    With :math:`s_\max = \lfloor \log_\eta R \rfloor`, where :math:`R` is `max_iter` and
    :math:`\eta` the `aggressiveness`, bracket :math:`s` of :math:`0, \dots, s_\max` is a
    `SuccessiveHalvingSearchCV` of :math:`\lceil (s_\max + 1) \eta^s / (s + 1) \rceil`
    candidates that get :math:`\lfloor R \eta^{-s} \rfloor` calls of ``partial_fit`` at first.
    All brackets run side by side on a dask client, if one is current, with the same held-out
    rows. Names of parameters and attributes are those of
    `dask_ml.model_selection.HyperbandSearchCV`.

    Parameters
    ----------
    estimator, parameters, aggressiveness, test_size, patience, tol, random_state, scoring, \
            verbose, prefix
        As of `SuccessiveHalvingSearchCV`.
    max_iter : int, default=81
        Calls of ``partial_fit`` that the longest trained candidates get. It also decides how
        many there are: `metadata` tells.

    Attributes
    ----------
    best_estimator_, best_score_, best_params_, best_index_, cv_results_, history_, \
            model_history_, scorer_, n_splits_
        As of `SuccessiveHalvingSearchCV`; ``model_id`` is ``"bracket=3-7"``.
    metadata_ : dict
        What was done: ``n_models``, ``partial_fit_calls``, and ``brackets`` with the same of
        each.

    References
    ----------
    Li et al., Hyperband: a novel bandit-based approach to hyperparameter optimization,
    2018, https://arxiv.org/abs/1603.06560
    """

    _parameter_constraints: dict[str, Any] = {
        **AdaptiveSearch._parameter_constraints,
        "max_iter": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        estimator,
        parameters,
        max_iter=81,
        aggressiveness=3,
        patience=False,
        tol=1e-3,
        test_size=None,
        random_state=None,
        scoring=None,
        verbose=False,
        prefix="",
    ):
        self.estimator = estimator
        self.parameters = parameters
        self.max_iter = max_iter
        self.aggressiveness = aggressiveness
        self.patience = patience
        self.tol = tol
        self.test_size = test_size
        self.random_state = random_state
        self.scoring = scoring
        self.verbose = verbose
        self.prefix = prefix

    def _brackets(self) -> dict[int, list[Rung]]:
        return hyperband_brackets(self.max_iter, self.aggressiveness)

    def _model_id(self, bracket: int, number: int) -> str:
        return f"bracket={bracket}-{number}"

    def _keep_metadata(self, brackets: dict[int, Bracket], n_calls: dict[int, int]) -> None:
        each = [
            {"bracket": b, "n_models": brackets[b].n_models, "partial_fit_calls": n_calls[b]}
            for b in sorted(brackets)
        ]
        self.metadata_ = {
            "n_models": sum(bracket["n_models"] for bracket in each),
            "partial_fit_calls": sum(n_calls.values()),
            "brackets": each,
        }

    @property
    def metadata(self):
        """What `fit` will do without `patience`: of all brackets, and of each."""
        each = [
            {
                "bracket": b,
                "n_models": rungs[0].n_models,
                "partial_fit_calls": n_calls_of(rungs),
                "decisions": [rung.n_calls for rung in rungs],
            }
            for b, rungs in sorted(self._brackets().items())
        ]
        return {
            "n_models": sum(bracket["n_models"] for bracket in each),
            "partial_fit_calls": sum(bracket["partial_fit_calls"] for bracket in each),
            "brackets": each,
        }
