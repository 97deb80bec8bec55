"""What a call of a distributed function costs beside the same NumPy code in dask by hand.

    python benchmarks/overhead.py

Prints milliseconds for building and computing, medians of interleaved repeats, and their
ratio: the gradient of a logistic regression over 8 blocks, of few rows (where overhead is
all there is) and of many.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

import skdtheano
from skdtheano import engine

N_BLOCKS, N_COLUMNS, REPEATS = 8, 50, 30


def block_gradient(X: np.ndarray, y: np.ndarray, b: np.ndarray) -> np.ndarray:
    p = 1 / (1 + np.exp(-X.dot(b)))
    return X.T.dot(p - y.ravel())[None, :]


def by_hand(X: da.Array, y: da.Array, b: np.ndarray) -> da.Array:
    chunks = ((1,) * X.numblocks[0], (X.shape[1],))
    parts = da.map_blocks(block_gradient, X, y[:, None], b, chunks=chunks, dtype=float)
    return parts.sum(axis=0)


@skdtheano.function(target="dask")
def by_graph(X: Any, y: Any, b: Any) -> Any:
    p = 1 / (1 + engine.exp(-engine.dot(X, b)))
    return engine.dot(X.T, p - y)


def timed(function: Callable[..., da.Array], *arguments: Any) -> float:
    start = time.perf_counter()
    function(*arguments).compute()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster),
    ):
        print(f"{'rows':>10} {'by hand':>10} {'function':>10} {'ratio':>7}")
        for rows in (800, 80_000, 800_000):
            rng = da.random.RandomState(0)
            X = rng.normal(size=(rows, N_COLUMNS), chunks=(rows // N_BLOCKS, N_COLUMNS))
            X = X.persist()
            y = (X[:, 0] > 0).astype(float).persist()
            b = np.zeros(N_COLUMNS)
            times: dict[str, list[float]] = {"hand": [], "graph": []}
            for repeat in range(REPEATS + 3):
                b[0] = repeat  # another graph each time: nothing is remembered
                hand = timed(by_hand, X, y, b)
                graph = timed(by_graph, X, y, b)
                if repeat >= 3:
                    times["hand"].append(hand)
                    times["graph"].append(graph)
            hand, graph = (statistics.median(times[key]) for key in ("hand", "graph"))
            print(f"{rows:>10,} {hand:>10.1f} {graph:>10.1f} {graph / hand:>7.2f}", flush=True)


if __name__ == "__main__":
    main()
