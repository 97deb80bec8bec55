"""What the tasks of a search do: train a model by some calls, and score it."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Candidate:
    """A model on its way.

    Attributes
    ----------
    model : estimator
    n_calls : int
        Of `partial_fit` so far.
    seconds : list of float
        Of those since the last score.
    error : str or None
        What a call raised; the model then trains no further.
    """

    model: Any
    n_calls: int = 0
    seconds: list[float] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True)
class Judgement:
    """What the caller learns of a candidate.

    Attributes
    ----------
    score : float
        NaN where a call or the scorer raised.
    partial_fit_seconds : float
        Mean of the calls since the last score.
    score_seconds : float
    error : str or None
    """

    n_calls: int
    score: float
    partial_fit_seconds: float
    score_seconds: float
    error: str | None


def as_is(block: Any) -> Any:
    """Rows that travel in the arguments of a task, so that dask can place them again."""
    return block


def joined(*parts: np.ndarray) -> np.ndarray:
    """Rows that came in several tasks, each of a size that a scheduler bears."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def train(
    candidate: Candidate,
    X: Any,
    y: Any,
    n_calls: int,
    fit_params: Mapping[str, Any],
    anew: bool,
) -> Candidate:
    """Call `partial_fit` so many times with a block, on a copy: a task may run again.

    Parameters
    ----------
    anew : bool
        Whether this is the first block since the last score.
    """
    seconds = [] if anew else list(candidate.seconds)
    if candidate.error is not None:
        return replace(candidate, seconds=seconds)
    model = copy.deepcopy(candidate.model)
    error = None
    for _ in range(n_calls):
        began = time.perf_counter()
        try:
            model.partial_fit(X, y, **fit_params)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
            break
        seconds.append(time.perf_counter() - began)
    return Candidate(model, candidate.n_calls + n_calls, seconds, error)


def judge(candidate: Candidate, X: Any, y: Any, scorer: Callable[..., Any]) -> Judgement:
    """The score on held-out rows."""
    score, error = np.nan, candidate.error
    began = time.perf_counter()
    if error is None:
        try:
            score = float(scorer(candidate.model, X, y))
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
    took = time.perf_counter() - began
    mean = float(np.mean(candidate.seconds)) if candidate.seconds else 0.0
    return Judgement(candidate.n_calls, score, mean, took, error)


def model_of(candidate: Candidate) -> Any:
    return candidate.model


def calls_by_block(order: Sequence[int], start: int, n_calls: int) -> list[tuple[int, int]]:
    """Blocks for calls `start` and on, and how many calls in a row each gets.

    Examples
    --------
    >>> calls_by_block([0, 0, 1, 0], start=1, n_calls=3)
    [(0, 1), (1, 1), (0, 1)]
    >>> calls_by_block([0, 0, 0], start=0, n_calls=3)
    [(0, 3)]
    """
    runs: list[tuple[int, int]] = []
    for block in order[start : start + n_calls]:
        if runs and runs[-1][0] == block:
            runs[-1] = (block, runs[-1][1] + 1)
        else:
            runs.append((block, 1))
    return runs
