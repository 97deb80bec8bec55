"""What fewer exchanges cost in loss and accuracy: the exact mode beside local steps.

    python benchmarks/local_steps.py [--epochs N] [--seeds N]

Digits (1797 x 64), three quarters of which train on two workers: one hidden layer of 100,
Adam, batches of 32 rows, so 43 steps an epoch. Beside the exact mode, in which the workers sum
after each step, stand those that average parameters every `sync_every` steps, without and
with `outer_momentum=0.9`. Prints the training loss and the accuracy on the other quarter after
some epochs, means over seeds of the split and the fit. The loss is what training reports: with
local steps, of each worker's own parameters. The accuracy is of the averaged ones. *Averages*
are those of parameters; at the end of an epoch Adam's two moments are averaged too.

Nothing is timed, so others may use the machine.

Writes local_steps.json into `--out`.
"""

import argparse
import math
import tempfile
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
from distributed import Client
from harness import report
from harness.contenders import TwoWorkers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from skdtheano import DistributedMLPClassifier

BATCH = 32
CASES = ((1, 0.0), (4, 0.0), (4, 0.9), (16, 0.0), (16, 0.9))


def label_of(sync_every: int, outer_momentum: float) -> str:
    if sync_every == 1:
        return "exact"
    added = f", outer_momentum={outer_momentum}" if outer_momentum else ""
    return f"sync_every={sync_every}{added}"


def curves(
    client: Client, sync_every: int, outer_momentum: float, seed: int, epochs: int
) -> tuple[list[float], list[float]]:
    """Training loss and held-out accuracy after each epoch."""
    X, y = load_digits(return_X_y=True)
    X, X_held_out, y, y_held_out = train_test_split(X / 16, y, random_state=seed)
    # Shuffled, in two blocks: each worker's rows are like the other's.
    n = -(-len(X) // 2)
    X, y = da.from_array(X, (n, -1)), da.from_array(y, n)
    clf = DistributedMLPClassifier(
        batch_size=BATCH,
        random_state=seed,
        client=client,
        sync_every=sync_every,
        outer_momentum=outer_momentum,
    )
    accuracy = []
    for _ in range(epochs):
        clf.partial_fit(X, y, classes=np.arange(10))
        accuracy.append(clf.score(X_held_out, y_held_out))
    return clf.loss_curve_, accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    given = parser.parse_args()
    warnings.filterwarnings("ignore", "Sending large graph")
    found: dict[str, dict[str, Any]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(TwoWorkers(0, 1, folder)) as two,
        dask.config.set({"skdtheano.workers": "all"}),
    ):
        for case in CASES:
            told = [
                curves(two.client, *case, seed, given.epochs) for seed in range(given.seeds)
            ]
            loss, accuracy = np.mean(told, axis=0)
            found[label_of(*case)] = {"loss": loss.tolist(), "accuracy": accuracy.tolist()}
    n_steps = math.ceil(0.75 * 1797 / BATCH)
    shown = sorted({n for n in (1, 2, 5, 10, 20) if n <= given.epochs} | {given.epochs})
    cells = {
        label: [
            f"{math.ceil(n_steps / sync_every)}",
            *(f"{of['loss'][n - 1]:.4f} ({of['accuracy'][n - 1]:.2%})" for n in shown),
        ]
        for (label, of), (sync_every, _) in zip(found.items(), CASES, strict=True)
    }
    columns = ["averages an epoch", *(f"epoch {n}" for n in shown)]
    report.print_table("loss (held-out accuracy)", columns, cells)
    content = {"epochs": given.epochs, "seeds": given.seeds, "curves": found}
    report.write_json(given.out / "local_steps.json", content)


if __name__ == "__main__":
    main()
