"""Which fits of a batched search are made in which task."""

from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import cloudpickle
import joblib
import numpy as np
from sklearn.pipeline import Pipeline

from skdtheano.estimators.fits_together import NUMBERS
from skdtheano.estimators.perceptron import DistributedPerceptron

#: Row numbers to train on, and to score on.
Split = tuple[np.ndarray, np.ndarray]

#: Tasks for each thread of a cluster: so many that the last ones end at about the same time.
_TASKS_PER_THREAD = 3


@dataclass(frozen=True)
class Job:
    """Candidates that are fitted and scored on one split.

    Attributes
    ----------
    split : int
    candidates : sequence of (int, hashable, dict)
        Number, what is equal where the steps before the network are, and parameters.
    """

    split: int
    candidates: Sequence[tuple[int, Hashable, Mapping[str, Any]]]


def prefix_of(estimator: Any) -> str | None:
    """How the parameters of an estimator's network begin; None where it has none."""
    if isinstance(estimator, DistributedPerceptron):
        return ""
    if type(estimator) is Pipeline and isinstance(estimator[-1], DistributedPerceptron):
        return f"{estimator.steps[-1][0]}__"
    return None


def jobs_of(
    candidates: Sequence[Mapping[str, Any]], n_splits: int, prefix: str | None, n_at_once: int
) -> list[Job]:
    """Candidates by split, in even parts; those that can be trained together side by side.

    Parameters
    ----------
    prefix : str or None
        See `prefix_of`.
    n_at_once : int
        Tasks that run at the same time; 1 makes a job of each split.
    """
    numbers = {f"{prefix}{name}" for name in NUMBERS} if prefix is not None else set()
    order: list[tuple[int, int, int]] = []
    steps_known: dict[Any, int] = {}
    kinds_known: dict[Any, int] = {}
    for number, params in enumerate(candidates):
        kind = {name: value for name, value in params.items() if name not in numbers}
        steps = {n: v for n, v in kind.items() if not prefix or not n.startswith(prefix)}
        place = steps_known.setdefault(_settings(steps) if prefix else (), len(steps_known))
        kind_place = kinds_known.setdefault(_settings(kind), len(kinds_known))
        order.append((place, kind_place, number))
    order.sort()
    n_parts = 1
    if n_at_once > 1 and n_splits:
        n_parts = max(1, min(len(order), -(-_TASKS_PER_THREAD * n_at_once // n_splits)))
        # As many tasks for each thread: with one more, all others would wait for it.
        even = (
            n for n in range(n_parts, n_parts + n_at_once) if n * n_splits % n_at_once == 0
        )
        n_parts = min(next(even, n_parts), len(order))
    parts = np.array_split(np.arange(len(order)), n_parts)
    return [
        Job(split, [(order[i][2], order[i][0], candidates[order[i][2]]) for i in part])
        for split in range(n_splits)
        for part in parts
    ]


def _settings(params: Mapping[str, Any]) -> Any:
    """Equal for equal parameters."""
    for pickled in (joblib.hash, cloudpickle.dumps):  # the latter takes a script's own classes
        with suppress(Exception):
            return pickled(sorted(params.items()))
    return object()  # what cannot be pickled is like nothing else
