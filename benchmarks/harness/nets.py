"""The networks that are measured, and rows for them."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

N_CLASSES = 10


@dataclass(frozen=True)
class Net:
    """A classifier's layers and minibatch, how many rows make an epoch, and how many to time.

    Rows are a multiple of the batch, so that all steps are equal, and of 8 blocks.
    """

    name: str
    hidden: tuple[int, ...]
    n_features: int
    batch: int
    rows: int
    epochs: int

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.n_features, *self.hidden, N_CLASSES)

    @property
    def n_parameters(self) -> int:
        return sum((a + 1) * b for a, b in pairwise(self.sizes))

    @property
    def layers(self) -> str:
        return "-".join(map(str, self.sizes))

    def __str__(self) -> str:
        return f"{self.layers}, batch {self.batch}"


NETS = {
    net.name: net
    for net in (
        Net("small", (100,), 64, 200, 64_000, 20),
        Net("medium", (256, 128), 784, 256, 20_480, 10),
        Net("large", (1000, 1000), 784, 1024, 5_120, 6),
    )
}


def chosen(names: str) -> list[Net]:
    """The nets of a list of names with commas; ValueError for one that is unknown."""
    unknown = set(names.split(",")) - set(NETS)
    if unknown:
        raise ValueError(f"No net {sorted(unknown)}: choose from {','.join(NETS)}.")
    return [NETS[name] for name in names.split(",")]


def table(net: Net, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Float32 rows, and classes that can be learned from them in part; always the same."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows or net.rows, net.n_features), dtype=np.float32)
    scores = X @ rng.standard_normal((net.n_features, N_CLASSES), dtype=np.float32)
    return X, scores.argmax(axis=1)
