"""How long a sum of vectors takes between dask workers of this machine.

    python benchmarks/exchange.py

Prints milliseconds per sum, median over the sums of a round, by workers and bytes.
"""

import statistics
import time
import uuid

import numpy as np
from distributed import Client, LocalCluster, get_worker, secede

from skdtheano.runtime.collective import Peers
from skdtheano.runtime.mailbox import ExchangePlugin

SIZES = {1_024: 300, 60_080: 300, 1_000_000: 100, 8_000_000: 20}


def timed_sums(rank: int, addresses: list[str], round_id: str, n_bytes: int, n: int) -> float:
    """Milliseconds per sum on one rank; runs as a task."""
    worker = get_worker()
    key = str(worker.get_current_task())
    secede()
    plugin = worker.plugins[ExchangePlugin.name]
    vectors = [np.ones(n_bytes // 8) for _ in range(2)]
    times = []
    with Peers(plugin, round_id, rank, addresses, 30.0, key) as peers:
        for step in range(n):
            start = time.perf_counter()
            peers.sum((1.0, 2.0), vectors[step % 2])
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    print("workers" + "".join(f"{n_bytes:>12,} B" for n_bytes in SIZES))
    for n_workers in (2, 3, 5):
        with (
            LocalCluster(
                n_workers=n_workers, threads_per_worker=1, dashboard_address="127.0.0.1:0"
            ) as cluster,
            Client(cluster) as client,
        ):
            client.register_plugin(ExchangePlugin())
            addresses = list(client.nthreads())
            row = []
            for n_bytes, n in SIZES.items():
                round_id = uuid.uuid4().hex
                tasks = [
                    client.submit(
                        timed_sums,
                        rank,
                        addresses,
                        round_id,
                        n_bytes,
                        n,
                        workers=[address],
                        pure=False,
                    )
                    for rank, address in enumerate(addresses)
                ]
                row.append(max(client.gather(tasks)))
            print(f"{n_workers:>7}" + "".join(f"{ms:>11.2f} ms" for ms in row), flush=True)


if __name__ == "__main__":
    main()
