"""How many rows per second are predicted, here and by scikit-learn, and on two workers.

    python benchmarks/predict.py [--repeats N] [--nets small,medium]

Float32 rows in memory, one BLAS thread a process; medians of interleaved repeats. The limit is
the products of the forward pass alone, on pieces of a batch, into arrays that are there. On
the cluster a prediction of an array of 8 blocks there is computed, and comes back.

Writes predict.json into `--out`.
"""

import argparse
import tempfile
import time
import warnings
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

from harness import report
from harness.contenders import Products, TwoWorkers, options, rows_of
from harness.nets import NETS, Net, chosen, table
from harness.processes import Host, Running

#: Of the fit that makes a model: what it has learned does not matter.
FEW = 2000


class Predictor:
    """Models of each net in one process, and what they predict in a number of passes."""

    def __init__(self, rank: int, size: int, folder: str) -> None:
        warnings.filterwarnings("ignore", "Stochastic Optimizer: Maximum iterations")
        self.models: dict[Net, Any] = {}

    def close(self) -> None:
        pass

    def estimator(self, net: Net) -> Any:
        raise NotImplementedError

    def seconds(self, net: Net, method: str) -> float:
        if net not in self.models:
            self.models[net] = self.estimator(net).fit(*table(net, FEW))
        X, _ = rows_of(net)
        start = time.perf_counter()
        getattr(self.models[net], method)(X)
        return time.perf_counter() - start


class ScikitLearn(Predictor):
    def estimator(self, net: Net) -> Any:
        from sklearn.neural_network import MLPClassifier

        return MLPClassifier(**options(net, 1))


class Ours(Predictor):
    def estimator(self, net: Net) -> Any:
        from skdtheano import DistributedMLPClassifier

        return DistributedMLPClassifier(**options(net, 1))


class Cluster(Ours):
    def __init__(self, rank: int, size: int, folder: str) -> None:
        super().__init__(rank, size, folder)
        self.workers = TwoWorkers(rank, size, folder)

    def close(self) -> None:
        self.workers.close()

    def seconds(self, net: Net, method: str) -> float:
        X, _ = self.workers.rows_of(net)
        if net not in self.models:
            self.models[net] = self.estimator(net).fit(*table(net, FEW))
        start = time.perf_counter()
        getattr(self.models[net], method)(X).compute()
        return time.perf_counter() - start


class Forward(Predictor):
    """The products alone, whatever the method."""

    def seconds(self, net: Net, method: str) -> float:
        X, _ = rows_of(net)
        products = Products(net, net.batch)
        start = time.perf_counter()
        for first in range(0, net.rows, net.batch):
            products.forward(X[first : first + net.batch])
        return time.perf_counter() - start


HOSTS = {
    "ours, in process": Host(Ours),
    "ours, 2 dask workers": Host(Cluster),
    "scikit-learn": Host(ScikitLearn),
    "products alone": Host(Forward),
}
METHODS = ("predict", "predict_proba")


def measured(nets: list[Net], repeats: int) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Rows per second by method, net and who predicts, of each repeat."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {
        method: {net.name: {name: [] for name in HOSTS} for net in nets} for method in METHODS
    }
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        running = {
            name: stack.enter_context(Running(host, folder)) for name, host in HOSTS.items()
        }
        for repeat in range(repeats + 1):  # the first one compiles and loads
            for method, net, name in product(METHODS, nets, HOSTS):
                seconds = running[name].ask("seconds", net, method)[0]
                if repeat:
                    found[method][net.name][name].append(net.rows / seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--nets", default=",".join(NETS), help="of %(default)s")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    given = parser.parse_args()
    try:
        nets = chosen(given.nets)
    except ValueError as error:
        parser.error(str(error))
    found = measured(nets, given.repeats)
    pairs = [
        report.Ratio("ours / scikit-learn", "ours, in process", "scikit-learn"),
        report.Ratio("share that products take", "ours, in process", "products alone"),
        report.Ratio("2 workers / in process", "ours, 2 dask workers", "ours, in process"),
    ]
    for method, rates in found.items():
        cells = {
            name: [f"{report.spread(v / 1e3 for v in rates[n.name][name]):.0f}" for n in nets]
            for name in HOSTS
        }
        for label, by_net in report.ratios(rates, pairs).items():
            cells[label] = [f"{by_net[net.name]:.2f}" for net in nets]
        report.print_table(f"{method}, 1000 rows per second", [n.layers for n in nets], cells)
    report.write_json(given.out / "predict.json", {"unit": "rows per second", "rates": found})


if __name__ == "__main__":
    main()
