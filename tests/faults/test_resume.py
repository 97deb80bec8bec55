"""A fit whose processes are all killed, again and again, ends as if nothing had been."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from time import sleep

import numpy as np
import pytest

#: Fits in two worker processes until it is killed; says when training begins.
SCRIPT = dedent(
    """
    import os, sys
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    import dask
    import dask.array as da
    import numpy as np
    from distributed import Client, LocalCluster
    from skdtheano import DistributedMLPClassifier

    checkpoint, result, epochs = sys.argv[1:]

    def main():
        X = np.random.RandomState(0).normal(size=(400, 5))
        y = (X[:, 0] + X[:, 1] ** 2 > 0.5).astype(int)
        table, targets = da.from_array(X, chunks=(70, 5)), da.from_array(y, chunks=70)
        dask.config.set({"distributed.worker.multiprocessing-method": "fork"})
        cluster = LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        )
        with cluster, Client(cluster):
            clf = DistributedMLPClassifier(
                (8,),
                batch_size=32,
                max_iter=int(epochs),
                early_stopping=True,
                n_iter_no_change=np.inf,
                random_state=0,
                checkpoint=None if checkpoint == "none" else checkpoint,
                checkpoint_every=1,
            )
            print("training", flush=True)
            clf.fit(table, targets)
        learned = [*clf.coefs_, *clf.intercepts_, clf.loss_curve_, clf.validation_scores_]
        np.savez(result, *learned)

    if __name__ == "__main__":
        main()
    """
)


class Fit:
    """The script in a session of its own, which dies as a whole."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        (folder / "fit.py").write_text(SCRIPT)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(folder / "fit.py"), *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"training\n"

    def wait_for_an_epoch(self) -> None:
        before = self._written()
        while self._written() == before:
            assert self.process.poll() is None, "it has ended before it was killed"
            sleep(0.01)

    def _written(self) -> int | None:
        file = self.folder / "fit.npz"
        return file.stat().st_mtime_ns if file.exists() else None

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def end(self) -> None:
        self.process.communicate(timeout=240)
        assert self.process.returncode == 0


@pytest.mark.cluster
@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("n_kills", "epochs"),
    [
        pytest.param(1, 50),
        pytest.param(20, 500),
    ],
)
def test_killed_with_its_cluster_and_resumed_each_time(
    n_kills: int, epochs: int, tmp_path: Path
) -> None:
    Fit(tmp_path, "none", "whole.npz", str(epochs)).end()
    draw = random.Random(1)
    reached = []
    for _ in range(n_kills):
        fit = Fit(tmp_path, "fit.npz", "resumed.npz", str(epochs))
        if draw.random() < 0.8:  # in a round, or in a write
            fit.wait_for_an_epoch()
            sleep(draw.uniform(0, 0.5))
        else:  # while it loads rows, or compiles
            sleep(draw.uniform(0, 2))
        fit.kill()
        if (tmp_path / "fit.npz").exists():
            with np.load(tmp_path / "fit.npz") as archive:
                reached.append(len(archive["loss_curve"]))
    assert not (tmp_path / "resumed.npz").exists(), "it has ended before it was killed"
    assert reached == sorted(reached)
    assert len(set(reached)) > n_kills / 2, reached
    Fit(tmp_path, "fit.npz", "resumed.npz", str(epochs)).end()
    with np.load(tmp_path / "whole.npz") as whole, np.load(tmp_path / "resumed.npz") as ours:
        for name in whole.files:
            np.testing.assert_array_equal(ours[name], whole[name])
    assert not list(tmp_path.glob("*.part"))
