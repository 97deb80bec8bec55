"""What a step would take on many workers, from rates of parts and counts of messages."""

from dataclasses import dataclass

import numpy as np

from harness import traffic
from harness.rates import Links, NetRates

ROWS_AT_ONCE = 8  # to a multiple of which a worker's share of a minibatch is filled up


@dataclass(frozen=True)
class Network:
    """What a network adds to this machine's comms.

    Attributes
    ----------
    latency : float
        Seconds that it adds to each wait.
    per_byte : float
        Seconds per byte, at the least.
    """

    latency: float = 0.0
    per_byte: float = 0.0


@dataclass(frozen=True)
class StepTime:
    """Modelled seconds of a step."""

    compute: float
    update: float
    exchange: float

    @property
    def total(self) -> float:
        return self.compute + self.update + self.exchange


def fullest(batch: int, n_workers: int, draws: int = 200) -> float:
    """Rows that the worker with most of a minibatch computes on, on average."""
    if n_workers == 1:
        return float(batch)
    shares = np.full(n_workers, 1 / n_workers)
    most = np.random.default_rng(0).multinomial(batch, shares, size=draws).max(axis=1)
    return float(np.mean(-(-most // ROWS_AT_ONCE) * ROWS_AT_ONCE))


def exchange_seconds(
    shape: traffic.Shape, net: str, n_bytes: int, links: Links, network: Network
) -> float:
    """Of `sum` and `complete`, by what the leader of a host does."""
    local, between = traffic.formulas(shape)
    r, is_alone = shape.ranks, shape.hosts == 1
    # The others wait once more, for what their leader gives back.
    waits = local.waits + (r > 1 and not is_alone)
    seconds = waits * links.barrier + (local.messages - local.waits) * links.reading
    part = n_bytes / r if shape.is_shared else n_bytes
    copied = 0 if not shape.is_shared else 1 if is_alone else 2  # `complete`; and collected
    seconds += (r - 1) * part * (links.add[net] + copied * links.copy[net])
    seconds += between.waits * (links.latency + network.latency)
    seconds += (between.messages - between.waits) * links.message
    return seconds + between.vectors * n_bytes * max(links.send[net], network.per_byte)


def step_time(
    net: str,
    batch: int,
    n_workers: int,
    per_host: int,
    rated: NetRates,
    links: Links,
    network: Network,
) -> StepTime:
    shape = traffic.shape_of(n_workers, per_host, rated.n_bytes)
    none, whole = rated.update
    update = none + (whole - none) / (shape.ranks if shape.is_shared else 1)
    exchange = 0.0
    if n_workers > 1:
        exchange = exchange_seconds(shape, net, rated.n_bytes, links, network)
    return StepTime(rated.compute(fullest(batch, n_workers)), update, exchange)
