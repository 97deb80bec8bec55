"""A grid search over a cluster, with our estimator and with scikit-learn's.

    python benchmarks/searches.py [--repeats N] [--dtype float32] [--hidden 10] \
        [--batch-size 50]

Digits, 24 candidates (alpha, learning_rate_init, beta_1) in 3 folds, 30 epochs each of one
hidden layer of 100, on two worker processes with one thread: by `GridSearchCV` under joblib's
dask backend with `MLPClassifier` and with ours, and by `BatchedGridSearchCV`. *Cold* is the
first search of new workers, with empty caches of what is compiled; *warm* is the next one on
the same workers. Each search has caller and workers of its own. All scores have to be the
same. Medians of interleaved repeats, in seconds.

Beside them, the limit of any search: the products of all steps alone, in one process, by the
number of workers.

Writes searches.json into `--out`.
"""

import argparse
import os
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from distributed import Client, LocalCluster
from harness import report
from numpy.testing import assert_allclose
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from skdtheano import DistributedMLPClassifier
from skdtheano.model_selection import BatchedGridSearchCV

GRID = {
    "alpha": [1e-5, 1e-4, 1e-3, 1e-2],
    "learning_rate_init": [3e-4, 1e-3, 3e-3],
    "beta_1": [0.8, 0.9],
}
N_FOLDS, N_WORKERS = 3, 2
WHEN = ("cold", "warm")
KINDS: dict[str, tuple[type, type]] = {
    "scikit-learn": (GridSearchCV, MLPClassifier),
    "ours": (GridSearchCV, DistributedMLPClassifier),
    "batched": (BatchedGridSearchCV, DistributedMLPClassifier),
}


@dataclass(frozen=True)
class Task:
    """What to search."""

    grid: dict[str, list[float]]
    epochs: int
    hidden: int
    batch_size: int
    dtype: str

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        X, y = load_digits(return_X_y=True)
        return (X / 16).astype(self.dtype), y


def searched(name: str, task: Task) -> tuple[float, np.ndarray]:
    """Seconds of a search, and the mean score of each candidate."""
    search_of, kind = KINDS[name]
    estimator = kind(
        (task.hidden,),
        batch_size=task.batch_size,
        max_iter=task.epochs,
        n_iter_no_change=task.epochs + 1,
        random_state=0,
    )
    search = search_of(estimator, task.grid, cv=N_FOLDS, refit=False)
    X, y = task.rows()
    began = time.perf_counter()
    with joblib.parallel_config("dask"):
        search.fit(X, y)
    return time.perf_counter() - began, search.cv_results_["mean_test_score"]


def measured(name: str, task: Task) -> dict[str, Any]:
    """A cold search and a warm one, of new worker processes."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    is_theano = os.environ.get("SKDTHEANO_ENGINE") == "theano"
    flag = "THEANO_FLAGS" if is_theano else "PYTENSOR_FLAGS"
    with tempfile.TemporaryDirectory() as folder:
        os.environ[flag] = f"base_compiledir={folder}/compiled"  # the workers inherit it
        with (
            LocalCluster(
                n_workers=N_WORKERS,
                threads_per_worker=1,
                dashboard_address="127.0.0.1:0",
                local_directory=folder,
            ) as cluster,
            Client(cluster) as client,
        ):
            client.run(_import, name)
            cold, scores = searched(name, task)
            warm, again = searched(name, task)
    assert_allclose(again, scores, rtol=1e-12)
    return {"cold": cold, "warm": warm, "scores": scores.tolist()}


def in_a_new_process(name: str, task: Task) -> dict[str, Any]:
    """The same, with a caller of its own, who collects no garbage of the others before it."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measured, name, task).result()


def _import(name: str) -> None:
    warnings.simplefilter("ignore", ConvergenceWarning)
    KINDS[name][1]()


def products_alone(task: Task) -> float:
    """Seconds of the products of all steps, if each worker has its share of them."""
    X, y = task.rows()
    n_rows = len(X) * (N_FOLDS - 1) // N_FOLDS
    n_steps = -(-n_rows // task.batch_size) * task.epochs
    n_fits = N_FOLDS * int(np.prod([len(values) for values in task.grid.values()]))
    rng = np.random.default_rng(0)
    sizes = [X.shape[1], task.hidden, len(np.unique(y))]
    rows, layer, scores = (
        rng.random((task.batch_size, size)).astype(task.dtype) for size in sizes
    )
    first, last = (rng.random(pair).astype(task.dtype) for pair in pairwise(sizes))
    forward, backward = [(rows, first), (layer, last)], [(scores, last.T)]
    pairs = [*forward, (layer.T, scores), *backward, (rows.T, layer)]
    outs = [np.empty((a.shape[0], b.shape[1]), task.dtype) for a, b in pairs]
    seconds = []
    with threadpool_limits(1):
        for _ in range(200):
            began = time.perf_counter()
            for (a, b), out in zip(pairs, outs, strict=True):
                np.dot(a, b, out=out)
            seconds.append(time.perf_counter() - began)
    return float(np.median(seconds)) * n_steps * n_fits / N_WORKERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"])
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="2 candidates of 2 epochs, once")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    given = parser.parse_args()
    grid, epochs, repeats = GRID, 30, given.repeats
    if given.quick:
        grid, epochs, repeats = {"alpha": [1e-4, 1.0]}, 2, 1
    task = Task(grid, epochs, given.hidden, given.batch_size, given.dtype)
    warnings.simplefilter("ignore", ConvergenceWarning)
    runs: list[dict[str, Any]] = []
    for _ in range(repeats):
        run: dict[str, Any] = {name: in_a_new_process(name, task) for name in KINDS}
        for name in ("ours", "batched"):
            rtol = 1e-7 if task.dtype == "float64" else 0.05  # float32 rounds to other bits
            assert_allclose(run[name]["scores"], run["scikit-learn"]["scores"], rtol=rtol)
        assert run["batched"]["scores"] == run["ours"]["scores"]
        run["products alone"] = products_alone(task)
        runs.append(run)
    cells = {}
    for name in KINDS:
        spreads = (report.spread(run[name][when] for run in runs) for when in WHEN)
        cells[name] = [f"{one:.2f}" for one in spreads]
    limit = report.spread(run["products alone"] for run in runs)
    cells["products alone"] = [f"{limit:.2f}"] * 2
    for name in ("ours", "batched"):
        ratios = ([r["scikit-learn"][when] / r[name][when] for r in runs] for when in WHEN)
        cells[f"scikit-learn / {name}"] = [f"{report.spread(one):.2f}" for one in ratios]
    limits = ([r["scikit-learn"][when] / r["products alone"] for r in runs] for when in WHEN)
    cells["scikit-learn / products"] = [f"{report.spread(one):.2f}" for one in limits]
    report.print_table("seconds of a search", WHEN, cells)
    report.write_json(given.out / "searches.json", {"runs": runs})


if __name__ == "__main__":
    main()
