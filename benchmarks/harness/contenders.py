"""What trains the same network on the same rows, each as its users would write it.

Packages are imported in the process that uses them, which has its own number of threads.
"""

import importlib.util
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from harness.nets import N_CLASSES, Net, table
from harness.processes import Host

ALPHA = 1e-4
N_BLOCKS = 8

rows_of = lru_cache(table)


def options(net: Net, epochs: int) -> dict[str, Any]:
    """Parameters of scikit-learn's estimator, and of ours: no fit ends early."""
    return {
        "hidden_layer_sizes": net.hidden,
        "batch_size": net.batch,
        "alpha": ALPHA,
        "max_iter": epochs,
        "n_iter_no_change": 10**6,
        "tol": 0.0,
        "random_state": 0,
    }


class Trainer:
    """Fits a net for a number of epochs, and says how long it took."""

    def __init__(self, rank: int, size: int, folder: str) -> None:
        self.rank, self.size, self.folder = rank, size, folder
        warnings.filterwarnings("ignore", "Stochastic Optimizer: Maximum iterations")

    def fit(self, net: Net, epochs: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what outlives this process."""

    def seconds(self, net: Net, epochs: int, how: str) -> float:
        fit = getattr(self, how)
        start = time.perf_counter()
        fit(net, epochs)
        return time.perf_counter() - start


class ScikitLearn(Trainer):
    def fit(self, net: Net, epochs: int) -> None:
        from sklearn.neural_network import MLPClassifier

        MLPClassifier(**options(net, epochs)).fit(*rows_of(net))


class InProcess(Trainer):
    def fit(self, net: Net, epochs: int) -> None:
        from skdtheano import DistributedMLPClassifier

        DistributedMLPClassifier(**options(net, epochs)).fit(*rows_of(net))


class Cluster(Trainer):
    """A cluster of this machine, and the rows in 8 blocks in its memory."""

    n_workers = 1

    def __init__(self, rank: int, size: int, folder: str) -> None:
        super().__init__(rank, size, folder)
        from distributed import Client, LocalCluster

        self.cluster = LocalCluster(
            n_workers=self.n_workers,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            local_directory=folder,
        )
        self.client = Client(self.cluster)
        self.tables: dict[Net, tuple[Any, Any]] = {}
        warnings.filterwarnings("ignore", "Sending large graph")  # the rows, once

    def close(self) -> None:
        self.client.close()
        self.cluster.close()

    def rows_of(self, net: Net) -> tuple[Any, Any]:
        import dask.array as da
        from distributed import wait

        if net not in self.tables:
            X, y = table(net)
            n = net.rows // N_BLOCKS
            rows = da.from_array(X, (n, -1)).persist(), da.from_array(y, n).persist()
            wait(rows)
            self.tables[net] = rows
        return self.tables[net]

    def fit(self, net: Net, epochs: int) -> None:
        from skdtheano import DistributedMLPClassifier

        DistributedMLPClassifier(**options(net, epochs)).fit(*self.rows_of(net))


class TwoWorkers(Cluster):
    n_workers = 2

    def fit_incremental(self, net: Net, epochs: int) -> None:
        from dask_ml.wrappers import Incremental
        from sklearn.neural_network import MLPClassifier

        X, y = self.rows_of(net)
        incremental = Incremental(MLPClassifier(**options(net, 1)))
        for _ in range(epochs):
            incremental.partial_fit(X, y, classes=np.arange(N_CLASSES))


class Torch(Trainer):
    """PyTorch, eager: one process, or several that share each batch by DDP over gloo."""

    def __init__(self, rank: int, size: int, folder: str) -> None:
        super().__init__(rank, size, folder)
        if size > 1:
            from torch import distributed

            meeting = f"file://{folder}/torch-ranks"
            distributed.init_process_group("gloo", meeting, rank=rank, world_size=size)

    def fit(self, net: Net, epochs: int) -> None:
        import torch
        from torch import nn
        from torch.nn.parallel import DistributedDataParallel

        torch.manual_seed(0)
        X, y = (torch.from_numpy(array) for array in rows_of(net))
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(net.sizes):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        model: nn.Module = nn.Sequential(*layers[:-1])
        if self.size > 1:
            model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        optimizer = torch.optim.Adam(
            model.parameters(), lr=1e-3, weight_decay=ALPHA / net.batch, fused=True
        )
        loss_of = nn.CrossEntropyLoss()
        for _ in range(epochs):
            total = 0.0
            for batch in torch.randperm(net.rows).split(net.batch):
                mine = batch[self.rank :: self.size]
                optimizer.zero_grad(set_to_none=True)
                loss = loss_of(model(X.index_select(0, mine)), y.index_select(0, mine))
                loss.backward()
                optimizer.step()
                total += loss.item()


@dataclass
class Products:
    """The products of one step, and nothing else, into memory that is there.

    The operands lie as scikit-learn's and ours do: activations, weights and deltas in C order,
    with transposes as views.
    """

    net: Net
    rows: int
    multiply: Callable[..., Any] = np.dot
    array: Callable[[np.ndarray], Any] = np.asarray
    activations: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)

        def made(*shape: int) -> Any:
            return self.array(rng.standard_normal(shape, dtype=np.float32))

        sizes = self.net.sizes
        self.activations = [made(self.rows, n) for n in sizes]
        self.deltas = [made(self.rows, n) for n in sizes]
        self.weights = [made(a, b) for a, b in pairwise(sizes)]
        self.gradients = [made(a, b) for a, b in pairwise(sizes)]

    def forward(self, X: Any) -> None:
        below = X
        for W, H in zip(self.weights, self.activations[1:], strict=True):
            self.multiply(below, W, out=H)
            below = H

    def step(self, X: Any) -> None:
        self.forward(X)
        for layer in reversed(range(len(self.weights))):
            below = self.activations[layer] if layer else X
            delta = self.deltas[layer + 1]
            self.multiply(below.T, delta, out=self.gradients[layer])
            if layer:
                self.multiply(delta, self.weights[layer].T, out=self.deltas[layer])


class Gemm(Trainer):
    """The limit: as many processes as share each batch, each on its part of the rows."""

    def products(self, net: Net) -> Products:
        return Products(net, net.batch // self.size)

    def fit(self, net: Net, epochs: int) -> None:
        products = self.products(net)
        X = products.array(rows_of(net)[0])
        for _ in range(epochs):
            for start in range(0, net.rows // self.size, products.rows):
                products.step(X[start : start + products.rows])


class TorchGemm(Gemm):
    """The same by PyTorch's BLAS, which is not NumPy's."""

    def products(self, net: Net) -> Products:
        import torch

        return Products(net, net.batch // self.size, torch.mm, torch.from_numpy)


@dataclass(frozen=True)
class Contender:
    """What is measured: a method of a host, which shares its processes with others of it."""

    name: str
    label: str
    host: Host
    how: str = "fit"
    needs: str | None = None

    @property
    def is_there(self) -> bool:
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("ours", "ours, in process", Host(InProcess)),
        Contender("ours-1w", "ours, 1 dask worker", Host(Cluster)),
        Contender("ours-2w", "ours, 2 dask workers", Host(TwoWorkers)),
        Contender("sklearn-1t", "scikit-learn, 1 thread", Host(ScikitLearn)),
        Contender("sklearn-2t", "scikit-learn, 2 threads", Host(ScikitLearn, threads=2)),
        Contender("torch-1t", "PyTorch, 1 thread", Host(Torch), needs="torch"),
        Contender("ddp-2p", "PyTorch DDP, 2 processes", Host(Torch, 1, 2), needs="torch"),
        Contender("incremental-2w", "dask-ml Incremental, 2 workers", Host(TwoWorkers),
                  "fit_incremental"),
        Contender("gemm-1t", "products alone, 1 thread", Host(Gemm)),
        Contender("gemm-2p", "products alone, 2 processes", Host(Gemm, 1, 2)),
        Contender("torch-gemm-1t", "products by PyTorch, 1 thread", Host(TorchGemm),
                  needs="torch"),
    )
}  # fmt: skip


def present(names: list[str]) -> list[Contender]:
    """Those of these names whose packages are there; one line for each of the others."""
    unknown = set(names) - set(CONTENDERS)
    if unknown:
        raise ValueError(
            f"No contender {sorted(unknown)}: choose from {', '.join(CONTENDERS)}."
        )
    for contender in (CONTENDERS[name] for name in names):
        if not contender.is_there:
            print(
                f"Left out {contender.label}: no {contender.needs}. "
                'Install it with: pip install "skdtheano[bench]"'
            )
    return [CONTENDERS[name] for name in names if CONTENDERS[name].is_there]
