"""How long a fresh process takes to its first epoch and its first fit.

    python benchmarks/cold_start.py [--repeats N]

Digits (1797 x 64) and default estimators: one hidden layer of 100. *Cold* begins with an empty
folder for all that the engine compiles and keeps, *warm* is the next process on that folder.
Each process has one BLAS thread. One of each repeat imports, fits one epoch and does so
again; another, with caches of its own, imports and fits to the end. Medians of interleaved
repeats, in seconds.

Writes cold_start.json into `--out`.
"""

# What a process imports before its clock starts is not measured: nothing but this.
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

IMPORT, FIRST, AGAIN, WHOLE = "import", "first epoch", "and again", "whole fit"
CLASSES = {
    "scikit-learn": ("sklearn.neural_network", "MLPClassifier"),
    "ours": ("skdtheano", "DistributedMLPClassifier"),
}


def fit_seconds(estimator: Any, X: Any, y: Any) -> float:
    start = time.perf_counter()
    estimator.fit(X, y)
    return time.perf_counter() - start


def seconds_here(name: str, whole: bool) -> dict[str, float]:
    """Import and fit in this process, which has done neither."""
    module, class_name = CLASSES[name]
    start = time.perf_counter()
    made = getattr(__import__(module, fromlist=[class_name]), class_name)
    seconds = {IMPORT: time.perf_counter() - start}

    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    warnings.filterwarnings("ignore", "Stochastic Optimizer: Maximum iterations")
    if whole:
        return {WHOLE: fit_seconds(made(random_state=0), X, y)}
    for what in (FIRST, AGAIN):
        seconds[what] = fit_seconds(made(max_iter=1, random_state=0), X, y)
    return seconds


def seconds_of_process(name: str, whole: bool, caches: str) -> dict[str, float]:
    from harness.processes import thread_environment

    flags = {
        variable: ",".join(
            filter(None, (os.environ.get(variable), f"base_compiledir={caches}"))
        )
        for variable in ("PYTENSOR_FLAGS", "THEANO_FLAGS")
    }
    environment = {
        **os.environ,
        **thread_environment(1),
        **flags,
        "NUMBA_CACHE_DIR": f"{caches}/numba",
        "XDG_CACHE_HOME": f"{caches}/cache",
    }
    command = [sys.executable, __file__, "--here", name, *(["--whole"] if whole else [])]
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if run.returncode:
        raise RuntimeError(f"The process of {name} failed; it says why above.")
    return json.loads(run.stdout.splitlines()[-1])


def repeat_once() -> dict[str, dict[str, float]]:
    """Seconds by contender and what was timed, of one turn of each."""
    found: dict[str, dict[str, float]] = {}
    for whole in (False, True):
        with tempfile.TemporaryDirectory() as caches:
            for row, name in (
                ("scikit-learn", "scikit-learn"),
                ("ours, cold", "ours"),
                ("ours, warm", "ours"),
            ):
                seconds = seconds_of_process(name, whole, caches)
                found.setdefault(row, {}).update(seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--here", choices=CLASSES, help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(seconds_here(given.here, given.whole)))
        return
    from harness import report

    repeats = [repeat_once() for _ in range(given.repeats)]
    columns = (IMPORT, FIRST, AGAIN, WHOLE)
    seconds = {
        row: {what: [repeat[row][what] for repeat in repeats] for what in columns}
        for row in repeats[0]
    }
    cells = {
        row: [f"{report.spread(values):.2f}" for values in by_what.values()]
        for row, by_what in seconds.items()
    }
    report.print_table("seconds", columns, cells)
    report.write_json(given.out / "cold_start.json", {"unit": "seconds", "seconds": seconds})


if __name__ == "__main__":
    main()
