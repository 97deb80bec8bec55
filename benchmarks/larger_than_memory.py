"""Train on an array four times as large as the memory of all workers.

    python benchmarks/larger_than_memory.py

Prints the throughput of an epoch and the most memory that a worker took, once with the rows
on disk, and once with the same rows in the memory of workers that may take all there is.
Needs 6 GiB of disk and 10 GiB of memory, and some 6 minutes.
"""

import argparse
import os
import threading
import time

import dask.array as da
import numpy as np
import psutil
from distributed import Client, LocalCluster

from skdtheano import DistributedMLPClassifier
from skdtheano.runtime.rounds import ClusterRuntime

MIB = 2**20


class Peak:
    """The most resident memory, in bytes, that each process had while this was open."""

    def __init__(self, pids):
        self.processes = [psutil.Process(pid) for pid in pids]
        self.bytes = dict.fromkeys(pids, 0)
        self.ended = threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self):
        while not self.ended.wait(0.05):
            for process in self.processes:
                memory = process.memory_info().rss
                self.bytes[process.pid] = max(self.bytes[process.pid], memory)

    def __exit__(self, *error):
        self.ended.set()
        self.thread.join()


def table(n_bytes, n_features, block_bytes):
    """Rows that are made by their blocks' tasks, so that nothing is in the caller's memory."""
    block_rows = block_bytes // (8 * n_features)
    n_rows = n_bytes // (8 * n_features) // block_rows * block_rows
    X = da.random.default_rng(0).normal(
        size=(n_rows, n_features), chunks=(block_rows, n_features)
    )
    return X, (X[:, 0] * X[:, 1] + X[:, 2] > 0).astype(np.int8)


def seconds_of_epochs():
    """A list that takes the seconds of each epoch from now on."""
    seconds, run_epoch = [], ClusterRuntime.run_epoch

    def timed(self, epoch, settings):
        began = time.perf_counter()
        loss = run_epoch(self, epoch, settings)
        seconds.append(time.perf_counter() - began)
        return loss

    ClusterRuntime.run_epoch = timed
    return seconds


def run(name, memory_limit, options, seconds, shuffle="blocks"):
    n_bytes = int(options.times * options.workers * options.limit * MIB)
    X, y = table(n_bytes, 50, options.block * MIB)
    clf = DistributedMLPClassifier(
        (32,),
        batch_size=2000,
        max_iter=options.epochs,
        shuffle=shuffle,
        random_state=0,
        tol=0,
    )
    with (
        LocalCluster(
            n_workers=options.workers,
            threads_per_worker=1,
            memory_limit=memory_limit,
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        seconds.clear()
        with Peak(client.run(os.getpid).values()) as peak:
            began = time.perf_counter()
            clf.fit(X, y)
            whole = time.perf_counter() - began
    rate = len(X) / min(seconds)
    most = max(peak.bytes.values()) / MIB
    print(
        f"{name:24} {X.nbytes / MIB:6.0f} MiB in {X.npartitions} blocks: loading "
        f"{whole - sum(seconds):5.1f} s, an epoch {min(seconds):5.1f} s, {rate:7.0f} rows/s, "
        f"a worker at most {most:5.0f} MiB, loss {clf.loss_:.6f}",
        flush=True,
    )
    return rate, clf.loss_curve_


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=int, default=768, help="MiB of each worker")
    parser.add_argument("--times", type=float, default=4, help="array over memory of all")
    parser.add_argument("--block", type=int, default=8, help="MiB of a block")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument(
        "--global-order", action="store_true", help="in memory, shuffle=True as well"
    )
    options = parser.parse_args()
    seconds = seconds_of_epochs()
    if options.global_order:
        run("in memory, global order", 0, options, seconds, shuffle=True)
    here, curve = run("in memory", 0, options, seconds)
    name = f"on disk, {options.limit} MiB a worker"
    stored, same_curve = run(name, options.limit * MIB, options, seconds)
    np.testing.assert_allclose(same_curve, curve, rtol=1e-9)
    print(
        f"Throughput on disk over that in memory: {stored / here:.2f}; the same loss_curve_ "
        "to 1e-9."
    )


if __name__ == "__main__":
    main()
