"""Hyperband beside a full grid of the same candidates: the winner, and its epochs.

    python benchmarks/adaptive_search.py [--tables digits,flights] [--rows N]

The same candidates (drawn by Hyperband, with the same seeds) are scored on the same held-out
rows: once by `HyperbandSearchCV`, once by training each of them as far as Hyperband trains
its finalists, and once more by `HyperbandSearchCV` while one of the two workers is killed,
which has to give the same scores. Two worker processes of this machine. The flights are those
of `examples/flights.py` (all that arrived, `pip install 'skdtheano[examples]'`), in blocks of
a tenth: one call of `partial_fit` sees one block. An epoch is as many calls as there are
blocks.

Writes adaptive_search.json into `--out`.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
from distributed import Client, LocalCluster, wait
from harness import report
from numpy.testing import assert_allclose
from scipy.stats import loguniform
from sklearn.datasets import load_digits

from skdtheano import DistributedMLPClassifier
from skdtheano.model_selection import HyperbandSearchCV
from skdtheano.model_selection.halving import Rung

sys.path.append(str(Path(__file__).parents[1] / "examples"))

N_BLOCKS = 10
PARAMETERS = {
    "alpha": loguniform(1e-6, 1e-1),
    "learning_rate_init": loguniform(1e-4, 1e-1),
    "beta_1": [0.8, 0.9, 0.95],
}


class FullGrid(HyperbandSearchCV):
    """The same candidates, each trained to the end."""

    def _brackets(self) -> dict[int, list[Rung]]:
        return {
            s: [Rung(rungs[0].n_models, self.max_iter)]
            for s, rungs in super()._brackets().items()
        }


def digits(_: int | None) -> tuple[Any, Any, int]:
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y, 1


def flights(rows: int | None) -> tuple[Any, Any, int]:
    """Rows and targets in memory, encoded, then in blocks on the workers."""
    from flights import COLUMNS, data_folder, describe, read_flights

    table = describe(read_flights(data_folder(), 1).compute())
    table = table.sample(frac=1.0, random_state=0)[:rows]
    y = table["late"].to_numpy()
    described = table[COLUMNS]
    columns = ["month", "weekday", "hour", "carrier", "origin", "dest"]
    X = pd.get_dummies(described.fillna(described.mean(numeric_only=True)), columns=columns)
    X = X.to_numpy(np.float32)
    X = (X - X.mean(axis=0)) / X.std(axis=0).clip(1e-6)
    n = -(-len(X) // N_BLOCKS)
    blocks = da.from_array(X, (n, -1)).persist(), da.from_array(y, n).persist()
    wait(blocks)
    return (*blocks, N_BLOCKS)


TABLES = {
    "digits": (digits, {"hidden_layer_sizes": (50,)}, {"max_iter": 81, "aggressiveness": 3}),
    "flights": (
        flights,
        {"hidden_layer_sizes": (32,), "batch_size": 512},
        {"max_iter": 64, "aggressiveness": 4, "test_size": 0.1},
    ),
}


def scores(search: HyperbandSearchCV) -> dict[str, list[float]]:
    return {
        name: [record["score"] for record in history]
        for name, history in search.model_history_.items()
    }


def searched(search: HyperbandSearchCV, X: Any, y: Any) -> float:
    began = time.perf_counter()
    search.fit(X, y)
    return time.perf_counter() - began


def kill_one_after(search: HyperbandSearchCV, client: Client, n_rungs: int) -> None:
    """SIGKILL for a worker once so many rungs have ended."""
    pids = list(client.run(os.getpid).values())
    told: list[str] = []

    def say(text: str) -> None:
        told.append(text)
        if len(told) == n_rungs:
            os.kill(pids[0], signal.SIGKILL)

    search._say = say  # type: ignore[method-assign]


def measured(name: str, rows: int | None) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            local_directory=folder,
        ) as cluster,
        Client(cluster) as client,
    ):
        table, network, search = TABLES[name]
        X, y, calls_an_epoch = table(rows)
        estimator = DistributedMLPClassifier(**network)

        def made(kind: type[HyperbandSearchCV]) -> HyperbandSearchCV:
            return kind(estimator, PARAMETERS, random_state=0, **search)

        hyperband, full, killed = (
            made(HyperbandSearchCV),
            made(FullGrid),
            made(HyperbandSearchCV),
        )
        found: dict[str, Any] = {"rows": len(X)}
        for label, one in (("hyperband", hyperband), ("killed", killed), ("full grid", full)):
            if one is killed:
                kill_one_after(one, client, n_rungs=4)
            found[label] = {
                "seconds": searched(one, X, y),
                "models": one.metadata_["n_models"],
                "epochs": one.metadata_["partial_fit_calls"] / calls_an_epoch,
                "score": one.best_score_,
                "params": {k: float(v) for k, v in one.best_params_.items()},
            }
        expected = scores(hyperband)
        for model_id, again in scores(killed).items():
            assert_allclose(again, expected[model_id], rtol=1e-6)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tables", default=",".join(TABLES), help="of %(default)s")
    parser.add_argument(
        "--rows", type=int, default=None, help="of the flights, all by default"
    )
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    given = parser.parse_args()
    names = given.tables.split(",")
    if unknown := set(names) - set(TABLES):
        parser.error(f"No table {sorted(unknown)}: choose from {', '.join(TABLES)}.")
    warnings.filterwarnings("ignore", "Sending large graph")  # the rows, once
    tables = {name: measured(name, given.rows) for name in names}
    cells = {}
    for name, found in tables.items():
        full = found["full grid"]
        for label in ("hyperband", "killed", "full grid"):
            one = found[label]
            title = "Hyperband, a worker killed" if label == "killed" else label.capitalize()
            cells[f"{name}, {found['rows']:,} rows: {title}"] = [
                f"{one['models']}",
                f"{one['epochs']:,.0f}",
                f"{one['epochs'] / full['epochs']:.0%}",
                f"{one['score']:.4f}",
                f"{one['score'] - full['score']:+.4f}",
                f"{one['seconds']:.1f}",
            ]
    columns = (
        "candidates",
        "epochs",
        "of the grid's",
        "winner's score",
        "less the grid's",
        "s",
    )
    report.print_table("search", columns, cells)
    report.write_json(given.out / "adaptive_search.json", tables)


if __name__ == "__main__":
    main()
