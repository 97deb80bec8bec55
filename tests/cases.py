"""The parity table: every kind of fit that must equal scikit-learn's, and its data."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np
from sklearn.datasets import make_classification, make_multilabel_classification
from sklearn.neural_network import MLPClassifier, MLPRegressor

from skdtheano import DistributedMLPClassifier, DistributedMLPRegressor

N_ROWS = 90
EPOCHS = 30
LBFGS_ITERATIONS = 25

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {"solver": "adam", "learning_rate_init": 0.01},
    **{
        f"sgd-{kind}-{schedule}": {
            "solver": "sgd",
            "learning_rate": schedule,
            "learning_rate_init": 0.05,
            "power_t": 0.1,
            **momentum,
        }
        for kind, momentum in {
            "plain": {"momentum": 0.0},
            "momentum": {"momentum": 0.8, "nesterovs_momentum": False},
            "nesterov": {"momentum": 0.8, "nesterovs_momentum": True},
        }.items()
        for schedule in ("constant", "invscaling", "adaptive")
    },
    "lbfgs": {"solver": "lbfgs"},
}
ACTIVATIONS = ("relu", "tanh", "logistic", "identity")
TASKS = ("binary", "multiclass", "multilabel", "regression", "multioutput", "poisson")

#: Rows of each block: one, four and seven blocks, ragged, with an empty and a one-row block.
CHUNKS: dict[str, tuple[int, ...]] = {
    "1-chunk": (N_ROWS,),
    "4-chunks": (40, 7, 31, 12),
    "7-chunks": (13, 1, 30, 0, 22, 5, 19),
}
WORKERS = (1, 2, 3)


@dataclass(frozen=True)
class Case:
    """One fit of the table."""

    optimizer: str
    activation: str
    task: str
    weighted: bool
    early_stopping: bool

    def __str__(self) -> str:
        flags = ["weighted"] * self.weighted + ["early"] * self.early_stopping
        return "-".join([self.task, self.optimizer, self.activation, *flags])

    @property
    def classifies(self) -> bool:
        return self.task in ("binary", "multiclass", "multilabel")

    def parameters(self) -> dict[str, Any]:
        chosen = {
            "hidden_layer_sizes": (7, 4),
            "activation": self.activation,
            "alpha": 0.01,
            "batch_size": 48,
            "random_state": 3,
            "early_stopping": self.early_stopping,
            "validation_fraction": 0.2,
            # No stop before the last epoch; three bad ones in a row make "adaptive" adapt.
            "tol": 1e-3 if self.optimizer.endswith("adaptive") else 0.0,
            "n_iter_no_change": 3 if self.optimizer.endswith("adaptive") else EPOCHS,
            "max_iter": LBFGS_ITERATIONS if self.optimizer == "lbfgs" else EPOCHS,
            **OPTIMIZERS[self.optimizer],
        }
        if self.task == "poisson":
            # exp() of an untrained network's output: a larger step diverges.
            chosen["loss"] = "poisson"
            chosen["learning_rate_init"] = 0.005
        return chosen

    def theirs(self) -> Any:
        """scikit-learn's estimator."""
        return (MLPClassifier if self.classifies else MLPRegressor)(**self.parameters())

    def ours(self, **more: Any) -> Any:
        chosen = {**self.parameters(), **more}
        if self.classifies:
            return DistributedMLPClassifier(**chosen)
        return DistributedMLPRegressor(**chosen)


def table() -> list[Case]:
    """Every combination; L-BFGS has no early stopping."""
    return [
        Case(optimizer, activation, task, weighted, early)
        for optimizer, activation, task, weighted, early in product(
            OPTIMIZERS, ACTIVATIONS, TASKS, (False, True), (False, True)
        )
        if not (early and optimizer == "lbfgs")
    ]


def places() -> list[tuple[int, str]]:
    """Every number of workers with every chunking."""
    return list(product(WORKERS, CHUNKS))


def covering(
    cases: list[Case], places: list[tuple[int, str]]
) -> Iterator[tuple[Case, tuple[int, str]]]:
    """A selection in which every pair of values of the table meets at least once.

    The values are those of a case's five fields and of the place, which pairs a number of
    workers with a chunking; chosen greedily from a seeded sample.
    """

    def pairs(case: Case, place: tuple[int, str]) -> frozenset[Any]:
        values = (*vars(case).items(), ("place", place))
        return frozenset(combinations(values, 2))

    everything = list(product(cases, places))
    missing = set().union(*(pairs(case, place) for case, place in everything))
    rng = np.random.RandomState(0)
    while missing:
        sample = [everything[i] for i in rng.randint(len(everything), size=200)]
        gains = [len(pairs(*choice) & missing) for choice in sample]
        if max(gains) == 0:
            continue
        best = sample[int(np.argmax(gains))]
        missing -= pairs(*best)
        yield best


@cache
def data(task: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and targets of a task."""
    if task == "multilabel":
        counts, y = make_multilabel_classification(N_ROWS, 6, n_classes=3, random_state=0)
        return counts / 10, y
    X, y = make_classification(
        N_ROWS, 6, n_informative=4, n_classes=3, n_redundant=0, random_state=0
    )
    if task == "binary":
        return X, np.array(["late", "on time"])[(y == 1).astype(int)]
    if task == "multiclass":
        return X, y * 10 - 5
    rng = np.random.RandomState(0)
    smooth = np.sin(X[:, :3]) + 0.1 * rng.standard_normal((N_ROWS, 3))
    if task == "poisson":
        return X, rng.poisson(np.exp(smooth[:, 0])).astype(float)
    return X, smooth if task == "multioutput" else smooth[:, 0]


@cache
def weights() -> np.ndarray:
    """Row weights, some of them 0."""
    drawn = np.random.RandomState(1).uniform(0.2, 3.0, N_ROWS)
    drawn[::11] = 0
    return drawn


@cache
def expected(case: Case) -> Any:
    """scikit-learn's fitted estimator."""
    X, y = data(case.task)
    return case.theirs().fit(X, y, sample_weight=weights() if case.weighted else None)
