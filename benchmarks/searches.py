"""A grid search over a cluster, with our estimator and with scikit-learn's.

    python benchmarks/searches.py [--repeats N]

Digits, 24 candidates (alpha, learning_rate_init, beta_1) in 3 folds, 30 epochs each of one
hidden layer of 100, by `GridSearchCV` under joblib's dask backend on two worker processes
with one thread. *Cold* is the first search of new workers, with empty caches of what is
compiled; *warm* is the next one on the same workers. Both estimators' scores have to be the
same. Medians of interleaved repeats, in seconds.

Writes searches.json into `--out`.
"""

import argparse
import os
import tempfile
import time
import warnings
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

from skdtheano import DistributedMLPClassifier

GRID = {
    "alpha": [1e-5, 1e-4, 1e-3, 1e-2],
    "learning_rate_init": [3e-4, 1e-3, 3e-3],
    "beta_1": [0.8, 0.9],
}
WHEN = ("cold", "warm")
KINDS = {"scikit-learn": MLPClassifier, "ours": DistributedMLPClassifier}


Grid = dict[str, list[float]]


def searched(kind: type, grid: Grid, epochs: int) -> tuple[float, np.ndarray]:
    """Seconds of a search, and the mean score of each candidate."""
    X, y = load_digits(return_X_y=True)
    estimator = kind(max_iter=epochs, n_iter_no_change=epochs + 1, random_state=0)
    search = GridSearchCV(estimator, grid, cv=3, refit=False)
    began = time.perf_counter()
    with joblib.parallel_config("dask"):
        search.fit(X / 16, y)
    return time.perf_counter() - began, search.cv_results_["mean_test_score"]


def measured(name: str, grid: Grid, epochs: int) -> dict[str, Any]:
    """A cold search and a warm one, of new worker processes."""
    is_theano = os.environ.get("SKDTHEANO_ENGINE") == "theano"
    flag = "THEANO_FLAGS" if is_theano else "PYTENSOR_FLAGS"
    with tempfile.TemporaryDirectory() as folder:
        os.environ[flag] = f"base_compiledir={folder}/compiled"  # the workers inherit it
        with (
            LocalCluster(
                n_workers=2,
                threads_per_worker=1,
                dashboard_address="127.0.0.1:0",
                local_directory=folder,
            ) as cluster,
            Client(cluster) as client,
        ):
            client.run(_import, name)
            cold, scores = searched(KINDS[name], grid, epochs)
            warm, again = searched(KINDS[name], grid, epochs)
    assert_allclose(again, scores, rtol=1e-12)
    return {"cold": cold, "warm": warm, "scores": scores.tolist()}


def _import(name: str) -> None:
    warnings.simplefilter("ignore", ConvergenceWarning)
    KINDS[name]()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="2 candidates of 2 epochs, once")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    given = parser.parse_args()
    grid, epochs, repeats = GRID, 30, given.repeats
    if given.quick:
        grid, epochs, repeats = {"alpha": [1e-4, 1.0]}, 2, 1
    warnings.simplefilter("ignore", ConvergenceWarning)
    runs: list[dict[str, Any]] = []
    for _ in range(repeats):
        run = {name: measured(name, grid, epochs) for name in KINDS}
        assert_allclose(run["ours"]["scores"], run["scikit-learn"]["scores"], rtol=1e-7)
        runs.append(run)
    cells = {}
    for name in KINDS:
        spreads = (report.spread(run[name][when] for run in runs) for when in WHEN)
        cells[name] = [f"{one:.2f}" for one in spreads]
    ratios = ([r["scikit-learn"][when] / r["ours"][when] for r in runs] for when in WHEN)
    cells["scikit-learn / ours"] = [f"{report.spread(one):.2f}" for one in ratios]
    report.print_table("seconds of a search", WHEN, cells)
    report.write_json(given.out / "searches.json", {"runs": runs})


if __name__ == "__main__":
    main()
