"""Compile time and time per step in this process, beside scikit-learn's.

    OMP_NUM_THREADS=1 python benchmarks/step.py [MODE ...]

Prints, for 64-100-10 at batch 200 and float64, the seconds until the first epoch of one
batch has run in a fresh process state, and the milliseconds per step of the epochs after.
"""

import statistics
import sys
import time
import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from skdtheano import DistributedMLPClassifier

EPOCHS, BATCH, ROWS = 3, 200, 20_000


def fit_seconds(estimator: Any, X: np.ndarray, y: np.ndarray) -> float:
    start = time.perf_counter()
    estimator.fit(X, y)
    return time.perf_counter() - start


def main(modes: list[str]) -> None:
    warnings.simplefilter("ignore", ConvergenceWarning)
    rng = np.random.RandomState(0)
    X, y = rng.rand(ROWS, 64), rng.randint(0, 10, ROWS)
    makers = {"scikit-learn": lambda n: MLPClassifier((100,), batch_size=BATCH, max_iter=n)}
    for mode in modes:
        makers[mode] = lambda n, mode=mode: DistributedMLPClassifier(
            (100,), batch_size=BATCH, max_iter=n, mode=mode
        )
    first = {name: fit_seconds(make(1), X[:BATCH], y[:BATCH]) for name, make in makers.items()}
    steps: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(5):  # interleaved: a machine that slows down does so for all
        for name, make in makers.items():
            seconds = fit_seconds(make(EPOCHS), X, y)
            steps[name].append(1e3 * seconds / (EPOCHS * ROWS / BATCH))
    for name in makers:
        print(
            f"{name:>14}: first epoch {first[name]:6.2f} s, "
            f"step {statistics.median(steps[name]):5.2f} ms"
        )


if __name__ == "__main__":
    main(sys.argv[1:] or ["FAST_COMPILE", "NUMBA"])
