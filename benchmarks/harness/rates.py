"""How fast this machine does the parts of a step; the least of some repeats each.

Others who use the machine only add to what a part takes.
"""

import asyncio
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from distributed import Client
from exchange import timed_sums

from harness.contenders import ALPHA, N_BLOCKS, rows_of
from harness.nets import Net
from harness.traffic import shape_of
from skdtheano.graphs.network import Network
from skdtheano.graphs.optimizers import Adam
from skdtheano.runtime.blas import blas_threads
from skdtheano.runtime.blocks import Block
from skdtheano.runtime.collective import Solo
from skdtheano.runtime.mailbox import ExchangePlugin
from skdtheano.runtime.model import Model
from skdtheano.runtime.order import ListedBatches
from skdtheano.runtime.parameters import Layout, TrainState
from skdtheano.runtime.program import NUMPY, Program, ProgramSpec
from skdtheano.runtime.segments import Reading, Segment
from skdtheano.runtime.steps import StepSettings, Workspace, run_epoch

REPEATS = 5
SMALL = 1024  # bytes of a vector that takes no longer than none
N_BLOCKS_OF_ONE = N_BLOCKS // 2  # of a worker's rows, as where two share those of the fits
MOST_ROWS, MOST_FLOPS = 2**14, 2e10  # of one step that is timed
_BURST = 32


@dataclass(frozen=True)
class NetRates:
    """Of the steps of one net on one process.

    Attributes
    ----------
    n_bytes : int
        Of the parameters.
    rows, seconds : list
        Rows of a step, and what it takes without exchange and update.
    update : tuple of float
        Seconds of an update of no parameters, and of all.
    """

    n_bytes: int
    rows: list[int]
    seconds: list[float]
    update: tuple[float, float]

    def compute(self, n_rows: float) -> float:
        """Seconds of a step's products and all else on so many rows; log-log between rows."""
        most = self.rows[-1]
        if n_rows > most:
            return self.seconds[-1] * n_rows / most
        logs = np.log(self.rows), np.log(self.seconds)
        return float(np.exp(np.interp(np.log(n_rows), *logs)))


@dataclass(frozen=True)
class Links:
    """Of what is between processes; by net where it goes with the length of its vector.

    Attributes
    ----------
    barrier : float
        Seconds of a small sum of two ranks that share memory.
    reading : float
        Seconds that each further rank of a host adds to a barrier.
    latency : float
        Seconds of a small sum of two ranks over comms.
    message : float
        Seconds of an event loop that sends and receives each further small message.
    add, copy, send : dict of str to float
        Seconds per byte of another rank's vector: to add it and to copy it in shared memory,
        and to exchange and add it over comms.
    """

    barrier: float
    reading: float
    latency: float
    message: float
    add: dict[str, float]
    copy: dict[str, float]
    send: dict[str, float]


def least(act: Callable[[], Any], times: int = 1) -> float:
    """Seconds of a call."""
    spent = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(times):
            act()
        spent.append((time.perf_counter() - start) / times)
    return min(spent)


def model_of(net: Net) -> Model:
    n_products = len(net.sizes) - 1
    network = Network(n_products, "relu", "softmax", "float32", "float32")
    return Model(ProgramSpec(network, "log_loss", Adam.rule, NUMPY), Layout(net.sizes))


def flops(net: Net) -> float:
    """Of a row's products."""
    first, *others = (a * b for a, b in zip(net.sizes, net.sizes[1:], strict=False))
    return 2.0 * (2 * first + 3 * sum(others))


def net_rates(net: Net) -> NetRates:
    """Time the steps of training on this process, with one BLAS thread."""
    model, rng = model_of(net), np.random.default_rng(0)
    X, y = rows_of(net)
    theta = rng.uniform(-0.05, 0.05, model.layout.n_parameters).astype("f4")
    state = TrainState(theta, [np.zeros_like(theta) for _ in range(Adam.n_slots)])
    settings = StepSettings(Adam(), 1e-3, ALPHA, epoch=1, may_diverge=True)
    rows, seconds = [], []
    with blas_threads(1), Program(model.spec) as program:
        update = [update_seconds(program, n) for n in (SMALL // 4, len(theta))]
        cuts = zip(np.split(X, N_BLOCKS_OF_ONE), np.split(y, N_BLOCKS_OF_ONE), strict=True)
        blocks = [Block(rows_of_one, targets, None) for rows_of_one, targets in cuts]
        workspace = Workspace(program, model.layout, model.rows_of(blocks))
        n = 8  # to a multiple of which the share of a minibatch is filled up
        while n <= MOST_ROWS and n * flops(net) <= MOST_FLOPS:
            n_steps = int(min(max(2e9 / flops(net) / n, 2), 200))
            chosen = rng.integers(net.rows, size=n * n_steps)
            batches = ListedBatches(chosen, np.full(n_steps, n), n, n * n_steps)

            def epoch(batches: ListedBatches = batches) -> None:
                run_epoch(workspace, batches, state, settings, Solo())

            epoch()  # binds
            rows.append(n)
            seconds.append(max(least(epoch) / n_steps - update[1], 1e-9))
            n *= 2
    return NetRates(theta.nbytes, rows, seconds, (update[0], update[1]))


def update_seconds(program: Program, n: int) -> float:
    """Of the optimizer on so many parameters, once it is compiled."""
    vectors = [np.full(n, 0.1, "f4") for _ in range(2 + Adam.n_slots)]
    scalars = (100.0, 1e-3, *Adam().scalars())

    def act() -> None:
        program.update(vectors, n, ALPHA, scalars)

    end = time.perf_counter() + 1.0
    while time.perf_counter() < end:
        act()
    return least(act, max(1, 2_000_000 // (n + 10_000)))


def links(client: Client, nets: list[Net]) -> Links:
    """Time sums and messages between the two workers of a cluster of this machine."""
    client.register_plugin(ExchangePlugin())
    sizes = {net.name: 4 * net.n_parameters for net in nets}
    sums = {n_bytes: timed(client, n_bytes) for n_bytes in {SMALL, *sizes.values()}}
    barrier, latency = sums[SMALL]["shared"], sums[SMALL]["comms"]
    add, copy, send = {}, {}, {}
    for name, n_bytes in sizes.items():
        found = sums[n_bytes]
        # Where slices pay a rank adds and copies a half; else it adds all, in one wait.
        is_shared = shape_of(2, 2, n_bytes).is_shared
        part = n_bytes / 2 if is_shared else n_bytes
        add[name] = max(found["shared"] - barrier, 0) / part
        beyond = found["both"] - found["shared"] - barrier if is_shared else 0.0
        copy[name] = max(beyond, 0) / part
        send[name] = max(found["comms"] - latency, 0) / n_bytes
    return Links(barrier, reading_seconds(), latency, message_seconds(client), add, copy, send)


def timed(client: Client, n_bytes: int) -> dict[str, float]:
    """Seconds of a sum in shared memory, with `complete` too, and over comms."""
    addresses = sorted(client.nthreads())

    def told(shared_memory: bool) -> tuple[float, float]:
        round_id = uuid.uuid4().hex
        tasks = [
            client.submit(
                timed_sums, rank, addresses, round_id, n_bytes, shared_memory,
                workers=[address], pure=False,
            )
            for rank, address in enumerate(addresses)
        ]  # fmt: skip
        alone, both = (
            1e-6 * max(column) for column in zip(*client.gather(tasks), strict=True)
        )
        return alone, both

    runs = [(*told(True), told(False)[0]) for _ in range(3)]
    least_of = map(min, zip(*runs, strict=True))
    return dict(zip(("shared", "both", "comms"), least_of, strict=True))


def reading_seconds() -> float:
    """Of looking at another rank's counter and finding what it left."""
    segment = Segment()
    _, place = segment.room(SMALL, np.dtype("f4"))
    segment.post(1, (1.0, 2.0, 3.0))
    reading = Reading(os.getpid(), segment.descriptor, segment.token)
    total = np.zeros(SMALL // 8, "f4")

    def act() -> None:
        reading.awaits(0), reading.step(), reading.scalars(1)
        np.add(total, reading.vector(place)[: len(total)], out=total)

    seconds = least(act, 1000)
    reading.close()
    segment.close()
    return seconds


def message_seconds(client: Client) -> float:
    """Of each of many messages that two event loops send to each other at once."""
    addresses = sorted(client.nthreads())
    client.run(prepare_burst)
    return min(max(client.run(burst, addresses).values()) for _ in range(REPEATS))


async def prepare_burst(dask_worker: Any) -> None:
    arrived: list[Any] = []
    event = asyncio.Event()
    dask_worker.burst = arrived, event

    def one(**message: Any) -> None:
        arrived.append(np.frombuffer(message["vector"], "f4"))
        event.set()

    dask_worker.handlers["burst"] = one


async def burst(addresses: list[str], dask_worker: Any) -> float:
    """What each message beyond the first one takes; runs on the event loop of a worker."""
    arrived, event = dask_worker.burst
    [other] = [address for address in addresses if address != dask_worker.address]
    vector = np.zeros(SMALL // 4, "f4").tobytes()
    message = {"op": "burst", "reply": False, "scalars": [1.0, 2.0, 3.0], "vector": vector}
    # One comm each, as to as many workers.
    comms = [await dask_worker.rpc.connect(other) for _ in range(_BURST)]
    spent: dict[int, list[float]] = {1: [], _BURST: []}
    for n in (1, _BURST) * 20:
        start = time.perf_counter()
        await asyncio.gather(*(comm.write(dict(message)) for comm in comms[:n]))
        while len(arrived) < n:
            event.clear()
            await event.wait()
        del arrived[:n]
        spent[n].append(time.perf_counter() - start)
    for comm in comms:
        dask_worker.rpc.reuse(other, comm)
    return max(min(spent[_BURST]) - min(spent[1]), 0.0) / (_BURST - 1)
