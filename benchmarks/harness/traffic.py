"""What the leader of a host sends in a step's `sum` and `complete`: counted, and in formulas.

Counts are of the real `Sums` over threads, for as many ranks as there can be threads; the
formulas go on from there, and have to agree with the counts where there are both.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from skdtheano.runtime.comms import CommsWire
from skdtheano.runtime.shared import SharedWire
from skdtheano.runtime.threads import Seated, run_ranks

ALWAYS, NEVER = 0, 2**62  # bytes above which slices pay


@dataclass(frozen=True)
class Shape:
    """Hosts with as many ranks each, which share memory, and how they sum vectors.

    Attributes
    ----------
    hosts, ranks : int
    is_shared : bool
        Whether the ranks of a host add up and update a slice each.
    is_sliced : bool
        Whether the hosts add up a slice each.
    """

    hosts: int
    ranks: int
    is_shared: bool
    is_sliced: bool


@dataclass(frozen=True)
class Traffic:
    """Of one rank, on one wire, in a step.

    Attributes
    ----------
    messages : int
    vectors : float
        Of the length of the parameters.
    waits : int
        In which the rank waited for others: latencies in a row.
    """

    messages: int
    vectors: float
    waits: int


def shape_of(n_workers: int, per_host: int, n_bytes: int) -> Shape:
    """That of a fit, by the rules that the wires have for vectors of so many bytes."""
    ranks = min(n_workers, per_host)
    hosts = n_workers // ranks
    # The rules need nothing of a wire but its class.
    no_wire: Any = None
    is_shared = ranks > 1 and SharedWire.slices_pay(no_wire, n_bytes, ranks)
    is_sliced = hosts > 1 and CommsWire.slices_pay(no_wire, n_bytes, hosts)
    return Shape(hosts, ranks, is_shared, is_sliced)


def counted(shape: Shape) -> tuple[Traffic, Traffic]:
    """What a leader sends on its host, and to other hosts."""
    n_ranks = shape.hosts * shape.ranks
    hosts = np.arange(n_ranks).reshape(shape.hosts, shape.ranks).tolist()

    def act(seated: Seated) -> tuple[Traffic, Traffic]:
        # No part of a slice: so vectors are counted exactly.
        vector, whole = (seated.sums.room(n_ranks, np.dtype("f4")) for _ in range(2))
        seated.sums.sum((1.0,), vector)
        seated.sums.complete((), whole)
        local, between = (
            Traffic(sent.messages, sent.n_bytes / vector.nbytes, sent.waits)
            for sent in (seated.local, seated.between)
        )
        return local, between

    pays = [ALWAYS if slices else NEVER for slices in (shape.is_shared, shape.is_sliced)]
    told = run_ranks(hosts, act, *pays)
    leaders = {told[ranks[0]] for ranks in hosts}
    if len(leaders) > 1:
        raise AssertionError(f"leaders send different things: {leaders}")
    return told[0]


def formulas(shape: Shape) -> tuple[Traffic, Traffic]:
    """The same without a run."""
    r, h = shape.ranks, shape.hosts
    local = between = Traffic(0, 0.0, 0)
    if r > 1 and shape.is_shared:
        # The sum of a slice, and `complete`; between hosts the leader also collects the
        # slices, for which it sends nothing, and gives back those of the total.
        n = 3 if h > 1 else 2
        local = Traffic(n * (r - 1), n * (r - 1) / r, n)
    elif r > 1:
        # All to all on one host; else the leader collects vectors, and gives back totals.
        local = Traffic(r - 1, float(r - 1), 1)
    if h > 1 and shape.is_sliced:
        between = Traffic(2 * (h - 1), 2 * (h - 1) / h, 2)
    elif h > 1:
        between = Traffic(h - 1, float(h - 1), 1)
    return local, between


def check(most_ranks: int) -> int:
    """Hold the formulas against counts for all shapes of powers of two; how many these are.

    Raises
    ------
    AssertionError
        If they differ; names the shape and both.
    """
    n_shapes = 0
    for shape in _shapes(most_ranks):
        found, expected = counted(shape), formulas(shape)
        for one, other in zip(found, expected, strict=True):
            is_same = (one.messages, one.waits) == (other.messages, other.waits)
            if not (is_same and abs(one.vectors - other.vectors) < 1e-9):
                raise AssertionError(f"{shape}: counted {found}, expected {expected}")
        n_shapes += 1
    return n_shapes


def _shapes(most_ranks: int) -> list[Shape]:
    powers = [2**i for i in range(most_ranks.bit_length())]
    return [
        Shape(hosts, ranks, is_shared, is_sliced)
        for hosts in powers
        for ranks in powers
        if 1 < hosts * ranks <= most_ranks
        for is_shared in ({True, False} if ranks > 1 else {False})
        for is_sliced in ({True, False} if hosts > 1 else {False})
    ]
