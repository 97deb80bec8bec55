"""Which candidates go on, and for how long: successive halving, and Hyperband's brackets.

Nothing here trains or waits: a `Bracket` is told scores and says who trains on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count


@dataclass(frozen=True)
class Rung:
    """So many models, each trained until it has had so many calls of `partial_fit`."""

    n_models: int
    n_calls: int


def halving_rungs(
    n_models: int, n_calls: int, aggressiveness: float, max_iter: int | None
) -> list[Rung]:
    r"""Rungs of successive halving.

    Rung :math:`i` keeps :math:`\lfloor n \eta^{-i} \rfloor` models and trains each to
    :math:`r \eta^i` calls, until one model is left or `max_iter` is reached.

    Parameters
    ----------
    n_models, n_calls : int
        The :math:`n` and :math:`r` of the first rung.
    aggressiveness : float
        The :math:`\eta`.
    max_iter : int or None
        Calls that no model gets more of.

    References
    ----------
    Jamieson and Talwalkar, Non-stochastic best arm identification and hyperparameter
    optimization, 2016, https://arxiv.org/abs/1502.07943
    """
    rungs: list[Rung] = []
    for i in count():
        at_most = math.inf if max_iter is None else max_iter
        calls = round(n_calls * aggressiveness**i)
        rungs.append(Rung(math.floor(n_models / aggressiveness**i), int(min(calls, at_most))))
        if calls >= at_most or n_models / aggressiveness ** (i + 1) < 1:
            return rungs
    raise AssertionError


def hyperband_brackets(max_iter: int, aggressiveness: float) -> dict[int, list[Rung]]:
    r"""Hyperband's brackets: from 0, which halves nothing, to the most adaptive.

    With :math:`s_\max = \lfloor \log_\eta R \rfloor`, bracket :math:`s` begins with
    :math:`\lceil (s_\max + 1) \eta^s / (s + 1) \rceil` models and
    :math:`\lfloor R \eta^{-s} \rfloor` calls each.

    References
    ----------
    Li et al., Hyperband: a novel bandit-based approach to hyperparameter optimization,
    2018, https://arxiv.org/abs/1603.06560
    """
    s_max = 0
    while aggressiveness ** (s_max + 1) <= max_iter:  # a logarithm of 243 rounds to below 5
        s_max += 1
    brackets = {}
    for s in range(s_max + 1):
        n_models = math.ceil((s_max + 1) * aggressiveness**s / (s + 1))
        n_calls = math.floor(max_iter / aggressiveness**s)
        brackets[s] = halving_rungs(n_models, n_calls, aggressiveness, max_iter)
    return brackets


def n_calls_of(rungs: Sequence[Rung]) -> int:
    """Calls of `partial_fit` that some rungs make, of all models together."""
    before = [0, *(rung.n_calls for rung in rungs)]
    return sum(
        rung.n_models * (rung.n_calls - done)
        for rung, done in zip(rungs, before, strict=False)
    )


def best_of(scores: Mapping[int, float], n: int) -> list[int]:
    """The `n` best models; of equal ones the first, and NaN is worse than any."""

    def rank(model: int) -> tuple[float, int]:
        score = scores[model]
        return (math.inf if math.isnan(score) else -score, model)

    return sorted(scores, key=rank)[:n]


@dataclass
class Bracket:
    """Successive halving of some models, step by step.

    Attributes
    ----------
    rungs : list of Rung
    n_models : int
        How many there are; fewer than the first rung wants, where a grid is smaller.
    patience : int or None
        Calls in which a model's score must have risen, or it trains no further.
    tol : float
        By how much.
    retained : list of int
        Models of the present rung; of the last one, in the end.
    n_rungs : int
        Rungs that have begun.
    """

    rungs: list[Rung]
    n_models: int
    patience: int | None = None
    tol: float = 1e-3
    retained: list[int] = field(init=False)
    n_rungs: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.retained = list(range(self.n_models))
        self._history: dict[int, list[tuple[int, float]]] = {i: [] for i in self.retained}
        self._stale: set[int] = set()
        self._training: set[int] = set()

    def begin(self) -> dict[int, int]:
        """Calls that each model of the first rung makes before it is scored."""
        return self._next_rung()

    def take(self, model: int, n_calls: int, score: float) -> dict[int, int]:
        """Take note of the score of a model after so many calls in all.

        Returns
        -------
        dict of int to int
            Models that train on now, with the further calls that each makes; empty while
            others of the rung are trained, and when all is over.
        """
        self._history[model].append((n_calls, score))
        if self._is_stale(model):
            self._stale.add(model)
        more = self._calls_left(model)
        if more:
            return {model: more}
        self._training.discard(model)
        return {} if self._training else self._next_rung()

    @property
    def is_over(self) -> bool:
        return not self._training and self.n_rungs == len(self.rungs)

    def score(self, model: int) -> float:
        """Its last score, or NaN."""
        return self._history[model][-1][1] if self._history[model] else math.nan

    def _next_rung(self) -> dict[int, int]:
        while self.n_rungs < len(self.rungs):
            rung = self.rungs[self.n_rungs]
            self.n_rungs += 1
            if self.n_rungs > 1:
                scores = {model: self.score(model) for model in self.retained}
                self.retained = best_of(scores, rung.n_models)
            calls = {model: self._calls_left(model) for model in self.retained}
            calls = {model: n for model, n in calls.items() if n}
            if calls:
                self._training = set(calls)
                return calls
        return {}

    def _calls_left(self, model: int) -> int:
        """Until its next score, within this rung."""
        if model in self._stale or math.isnan(self._last_valid(model)):
            return 0
        done = self._history[model][-1][0] if self._history[model] else 0
        left = self.rungs[self.n_rungs - 1].n_calls - done
        if self.patience is not None:  # as many scores as can tell that nothing rises
            left = min(left, max(self.patience // 3, 1))
        return left

    def _last_valid(self, model: int) -> float:
        return self._history[model][-1][1] if self._history[model] else 0.0

    def _is_stale(self, model: int) -> bool:
        if self.patience is None:
            return False
        history = self._history[model]
        recent = [score for calls, score in history if calls > history[-1][0] - self.patience]
        before = [score for _, score in history[: len(history) - len(recent)]]
        return bool(before) and max(recent) <= max(before) + self.tol
