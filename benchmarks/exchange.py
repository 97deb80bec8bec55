"""How long a sum takes between dask workers of this machine, by what carries it.

    python benchmarks/exchange.py [--workers 2 4] [--sizes 1024 8000000] [--repeats 3]
        [--json FILE] [--anywhere]

Workers that share memory are moved about by the system, as on any host. For messages, sums
over comms and bare ones, each has a core of its own, as on a host of its own, if there are
so many. With ``--anywhere`` none has: on two cores the two threads of a worker, its event
loop and the one that waits for a sum, then get into the other worker's way, and take up to
twice as long.

For each number of workers and of bytes, microseconds per sum (median over the sums of a
round, the slowest rank, the best of some repeats), and beside them what bounds them here:

- *shared memory*: `sum`, and `sum` with the `complete` that fills in the others' shares;
- *memory*: what must move for these, by as many processes that do not wait for each other:
  for the sum, adding the share of each other rank; with `complete`, copying the others';
- *comms*: `sum` over dask's comms from worker to worker, and the exchange without adding;
- *bare message*: messages of that size from every worker to every other one at a time, sent
  by their event loops as they are, without threads or sums;
- *raw TCP*: the same between two processes over sockets of their own, both ways at once;
- *in memory*: the sum among as many threads of one process, with messages and bytes per sum.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, LocalCluster, get_worker, secede
from distributed.protocol.serialize import to_serialize

from skdtheano.runtime.mailbox import ExchangePlugin
from skdtheano.runtime.peers import Peers
from skdtheano.runtime.threads import Seated, run_ranks

SIZES = (1_024, 60_080, 262_144, 1_000_000, 8_000_000)
F8 = np.dtype("f8")


def times_for(n_bytes: int) -> int:
    return max(20, min(500, 200_000_000 // (n_bytes + 400_000)))


def microseconds(act: Callable[[int], Any], times: int) -> float:
    """Median of what a call takes."""
    act(0)
    act(1)
    spent = []
    for i in range(times):
        start = time.perf_counter()
        act(i)
        spent.append(time.perf_counter() - start)
    return 1e6 * statistics.median(spent)


def timed_sums(
    rank: int, addresses: list[str], round_id: str, n_bytes: int, shared_memory: bool
) -> tuple[float, float, float]:
    """Microseconds on one rank; runs as a task.

    Per sum; per sum and `complete`; and per exchange over comms of what is not added up.
    """
    worker = get_worker()
    key = str(worker.get_current_task())
    secede()
    plugin = worker.plugins[ExchangePlugin.name]
    n, times = n_bytes // 8, times_for(n_bytes)
    with Peers(plugin, round_id, rank, addresses, 30.0, key, shared_memory) as peers:
        vectors = [peers.room(n, F8) for _ in range(2)]
        whole = peers.room(n, F8)
        for vector in (*vectors, whole):
            vector[...] = 1

        def both(i: int) -> None:
            peers.sum((1.0, 2.0), vectors[i % 2])
            peers.complete((0.0,), whole)

        alone = microseconds(lambda i: peers.sum((1.0, 2.0), vectors[i % 2]), times)
        whole_of = dict.fromkeys((r for r in range(len(addresses)) if r != rank), slice(None))

        def exchange(i: int) -> None:
            peers._comms_wire.exchange((1.0, 2.0), vectors[i % 2], whole_of, whole_of)

        return alone, microseconds(both, times), microseconds(exchange, times)


def memory_rank(_: int, n_bytes: int, n_ranks: int, is_shared: bool, told: Any) -> None:
    """Microseconds of the additions of a rank, and of these and its copies."""
    n = n_bytes // 8
    turns = [[np.ones(n) for _ in range(n_ranks)] for _ in range(2)]
    end = n // n_ranks if is_shared else n
    out, wholes = np.ones(end), [np.ones(n) for _ in range(2)]

    def add(i: int) -> None:
        vectors = turns[i % 2]
        total = vectors[0][:end] if is_shared else out
        np.add(vectors[0][:end], vectors[1][:end], out=total)
        for vector in vectors[2:]:
            np.add(total, vector[:end], out=total)

    def both(i: int) -> None:
        add(i)
        if is_shared:
            wholes[0][end:] = wholes[1][end:]

    times = times_for(n_bytes)
    told.send((microseconds(add, times), microseconds(both, times)))


def memory_bound(n_bytes: int, n_ranks: int, is_shared: bool) -> tuple[float, float]:
    """The slowest of so many processes at once, which do not wait for each other."""
    told = in_processes(memory_rank, range(n_ranks), n_bytes, n_ranks, is_shared)
    return max(alone for alone, _ in told), max(both for _, both in told)


def in_processes(run: Callable[..., None], each: Iterable[Any], *given: Any) -> list[Any]:
    """What functions send through the pipe that is their last argument, run side by side."""
    context = multiprocessing.get_context("fork")
    ends, processes = [], []
    for one in each:
        here, there = context.Pipe()
        ends.append(here)
        processes.append(context.Process(target=run, args=(one, *given, there)))
        processes[-1].start()
    told = [end.recv() for end in ends]
    for process in processes:
        process.join()
    return told


async def bare_messages(
    peers: list[str], round_id: str, n_bytes: int, dask_worker: Any
) -> float:
    """Microseconds per exchange between event loops, on one of them."""
    arrived: dict[int, list[Any]] = dask_worker.bare_arrived
    more = dask_worker.bare_event
    others = [address for address in peers if address != dask_worker.address]
    comms = [await dask_worker.rpc.connect(address) for address in others]
    vectors = [np.ones(n_bytes // 8) for _ in range(2)]
    spent = []
    for step in range(times_for(n_bytes) + 2):
        start = time.perf_counter()
        vector = to_serialize(vectors[step % 2])
        message = {"op": "bare", "reply": False, "step": step, "vector": vector}
        sending = asyncio.gather(*(comm.write(dict(message)) for comm in comms))
        while len(arrived.get(step, ())) < len(others):
            more.clear()
            await more.wait()
        del arrived[step]
        await sending
        spent.append(time.perf_counter() - start)
    for address, comm in zip(others, comms, strict=True):
        dask_worker.rpc.reuse(address, comm)
    return 1e6 * statistics.median(spent[2:])


async def prepare_bare(dask_worker: Any) -> None:
    arrived: dict[int, list[Any]] = {}
    event = asyncio.Event()
    dask_worker.bare_arrived, dask_worker.bare_event = arrived, event

    def bare(step: int, vector: np.ndarray) -> None:
        arrived.setdefault(step, []).append(vector)
        event.set()

    dask_worker.handlers["bare"] = bare


def tcp_rank(connection: socket.socket, n_bytes: int, told: Any) -> None:
    """One end of a socket: sends and receives so many bytes, again and again."""
    sent, received = memoryview(bytearray(n_bytes)), memoryview(bytearray(n_bytes))

    def exchange(_: int) -> None:
        if n_bytes < 2**16:  # fits in the socket's buffer
            connection.sendall(sent)
            sender = None
        else:
            sender = threading.Thread(target=connection.sendall, args=(sent,))
            sender.start()
        got = 0
        while got < n_bytes:
            got += connection.recv_into(received[got:])
        if sender is not None:
            sender.join()

    told.send(microseconds(exchange, times_for(n_bytes)))


def raw_tcp(n_bytes: int) -> float:
    """Microseconds of an exchange between two processes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ends = [socket.create_connection(server.getsockname()), server.accept()[0]]
    for end in ends:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return float(max(in_processes(tcp_rank, ends, n_bytes)))


def in_memory(n_bytes: int, n_ranks: int) -> dict[str, float]:
    """Of a sum among threads that share a vector by slices."""
    times = min(times_for(n_bytes), 100)

    def act(seated: Seated) -> tuple[float, float, float]:
        vectors = [seated.sums.room(n_bytes // 8, F8) for _ in range(2)]
        spent = microseconds(lambda i: seated.sums.sum((1.0,), vectors[i % 2]), times)
        sent = seated.local
        return spent, sent.messages / (times + 2), sent.n_bytes / (times + 2)

    told = run_ranks([list(range(n_ranks))], act, 2**18)
    return {
        "us": max(spent for spent, _, _ in told),
        "messages": told[0][1],
        "bytes": told[0][2],
    }


def best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of several runs, column by column: others use the machine, and they only add."""
    first = rows[0]
    found = {name: min(row[name] for row in rows) for name in first if name != "in memory"}
    found["in memory"] = min((row["in memory"] for row in rows), key=lambda told: told["us"])
    return found


def measured(client: Client, n_bytes: int, with_own_cores: bool) -> dict[str, Any]:
    addresses = sorted(client.nthreads())
    cores = sorted(os.sched_getaffinity(0))
    with_own_cores &= len(addresses) <= len(cores)
    row: dict[str, Any] = {"workers": len(addresses), "bytes": n_bytes}
    for name, shared_memory in (("shared", True), ("comms", False)):
        round_id = uuid.uuid4().hex
        if with_own_cores and not shared_memory:
            for core, address in zip(cores, addresses, strict=False):
                client.run(settle, {core}, workers=[address])
        arguments = [
            (rank, addresses, round_id, n_bytes, shared_memory)
            for rank in range(len(addresses))
        ]
        tasks = [
            client.submit(timed_sums, *given, workers=[addresses[given[0]]], pure=False)
            for given in arguments
        ]
        told = client.gather(tasks)
        row[f"{name} sum"] = max(alone for alone, *_ in told)
        row[f"{name} sum+complete"] = max(both for _, both, _ in told)
    row["comms exchange"] = max(exchange for *_, exchange in told)
    client.run(prepare_bare)
    bare = client.run(bare_messages, addresses, uuid.uuid4().hex, n_bytes)
    row["bare message"] = max(bare.values())
    client.run(settle, set(cores))
    bounds = memory_bound(n_bytes, len(addresses), n_bytes > 2**18)
    row["memory sum"], row["memory sum+complete"] = bounds
    row["raw tcp"] = raw_tcp(n_bytes)
    row["in memory"] = in_memory(n_bytes, len(addresses))
    return row


def settle(cores: set[int]) -> None:
    """Keep all threads of this process on some cores."""
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread), cores)


def cell(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['us']:.0f} ({value['messages']:g} x, {value['bytes']:,.0f} B)"
    return f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many counts")
    parser.add_argument("--anywhere", action="store_true", help="workers have no own cores")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    given = parser.parse_args()
    rows = []
    for n_workers in given.workers:
        with (
            LocalCluster(
                n_workers=n_workers, threads_per_worker=1, dashboard_address="127.0.0.1:0"
            ) as cluster,
            Client(cluster) as client,
        ):
            client.register_plugin(ExchangePlugin())
            for n_bytes in given.sizes:
                row = best(
                    [
                        measured(client, n_bytes, not given.anywhere)
                        for _ in range(given.repeats)
                    ]
                )
                if not rows:
                    print("| " + " | ".join(row) + " |")
                    print("|" + " --- |" * len(row))
                rows.append(row)
                print("| " + " | ".join(cell(value) for value in row.values()) + " |")
                if n_bytes >= 1_000_000:
                    rate = n_bytes / row["shared sum+complete"] / 1e3
                    wire = n_bytes / row["comms sum"] / 1e3
                    print(f"  {rate:.2f} GB/s in shared memory, {wire:.2f} GB/s over comms")
    print(f"{os.cpu_count()} cores")
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
