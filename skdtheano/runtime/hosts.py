"""Which ranks of a round are on one host, so that they can share memory."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import dask

#: Settings of dask's configuration: whether workers of one host share memory (read at the
#: caller and on the worker), and a name that a worker's host is to have.
SHARED_MEMORY = "skdtheano.shared-memory"
HOST = "skdtheano.host"


def may_share() -> bool:
    """Whether the configuration of this process lets workers share memory."""
    return bool(dask.config.get(SHARED_MEMORY, True))


def host_of_process() -> str | None:
    """A name that two processes have in common if they can read each other's memory.

    None where this one cannot share any: ``memfd_create`` is Linux's.
    """
    if not (hasattr(os, "memfd_create") and may_share()):
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The same descriptor under /proc only where processes have the same numbers.
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
    named = dask.config.get(HOST, None) or os.uname().nodename
    return f"{named} {boot} {numbers} {os.getuid()}"


def grouped(names: Mapping[int, str | None]) -> list[list[int]]:
    """Ranks by host, ascending; the hosts by their first rank. Who has no name is alone."""
    groups: dict[str, list[int]] = {}
    for rank in sorted(names):
        groups.setdefault(names[rank] or f"rank {rank}", []).append(rank)
    return list(groups.values())


def dissolved(hosts: Sequence[Sequence[int]], failed: set[int]) -> list[list[int]]:
    """The hosts, with each in which a rank failed taken apart into its ranks."""
    kept: list[list[int]] = []
    for ranks in hosts:
        kept += [[rank] for rank in ranks] if failed & set(ranks) else [list(ranks)]
    return sorted(kept)
