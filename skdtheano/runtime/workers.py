"""What a cluster's workers are up to: who is silent, who is paused, who gets which block."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import dask
import numpy as np
from dask.utils import parse_timedelta
from distributed import Client
from distributed.core import Status

#: Seconds between two looks after which nothing is known of what was in between.
_GAP_SECONDS = 5.0

#: Seconds within which a nanny has to answer that is asked to restart its worker.
_NANNY_SECONDS = 10.0


def seconds_of(setting: str, default: float) -> float:
    """A time of dask's configuration, as by ``dask.config.set({setting: "2 minutes"})``.

    Raises
    ------
    ValueError
        If it is no time above 0.
    """
    given = dask.config.get(setting, default)
    try:
        seconds = float(parse_timedelta(given, default="s"))
    except (KeyError, TypeError, ValueError):
        seconds = 0.0
    if not seconds > 0:
        raise ValueError(
            f"{setting}={given!r} of dask's configuration is no time above 0. Give seconds, "
            f"or a text such as '2 minutes': dask.config.set({{{setting!r}: {default:g}}})."
        )
    return seconds


class Heartbeats:
    """For how long each worker has been silent, by the clock of who looks.

    Clocks of several hosts differ; so a worker is silent for as long as looks find the same
    last heartbeat. Time in which nobody looked, as while a laptop slept or the scheduler did
    not answer, is not counted.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Any, float]] = {}
        self._looked = -np.inf

    def silent(self, last_seen: Mapping[str, Any], limit: float) -> list[str]:
        """Workers that no look has heard of for more than `limit` seconds.

        Parameters
        ----------
        last_seen : mapping of str to float
            When the scheduler heard of each worker, as it says now.
        limit : float
        """
        now = time.monotonic()
        before, self._seen = self._seen, {}
        if now - self._looked > _GAP_SECONDS:
            before = {}
        self._looked = now
        for address, heard in last_seen.items():
            same = address in before and before[address][0] == heard
            self._seen[address] = before[address] if same else (heard, now)
        return [a for a, (_, since) in self._seen.items() if now - since > limit]


def restart(client: Client, silent: Sequence[str], keys: Sequence[Any]) -> list[str]:
    """Restart those of some workers that the tasks with these keys need.

    Their nannies kill them, frozen or not, and start others; a worker without one, or whose
    nanny does not answer, is removed from the cluster. What they held is made again.

    Returns
    -------
    list of str
        The addresses that are gone.
    """
    gone: list[str] = client.run_on_scheduler(
        _restart_needed, silent=list(silent), keys=list(keys)
    )
    return gone


async def _restart_needed(
    dask_scheduler: Any, silent: list[str], keys: list[Any]
) -> list[str]:
    needed = _workers_of(dask_scheduler, keys)
    known = [address for address in silent if address in needed]
    if known:
        await dask_scheduler.restart_workers(
            known,
            timeout=_NANNY_SECONDS,
            wait_for_workers=False,
            on_error="return",
            stimulus_id=f"skdtheano-silent-{time.time()}",
        )
    return known


def _workers_of(scheduler: Any, keys: list[Any]) -> set[str]:
    """Workers that run tasks, or hold what these need; back to what is in memory."""
    found: set[str] = set()
    seen: set[Any] = set()
    open_tasks = [scheduler.tasks[key] for key in keys if key in scheduler.tasks]
    while open_tasks:
        task = open_tasks.pop()
        if task in seen:
            continue
        seen.add(task)
        found.update(worker.address for worker in task.who_has or ())
        if task.processing_on is not None:
            found.add(task.processing_on.address)
        if not task.who_has:
            open_tasks.extend(task.dependencies)
    return found


def stuck_workers(client: Client, paused: Sequence[str], keys: Sequence[Any]) -> list[str]:
    """Those of some workers that are paused, and that some task waits for.

    A pause, by nearly full memory, stops no task that runs already.
    """
    if not paused:
        return []
    stuck: list[str] = client.run_on_scheduler(
        _with_waiting, paused=list(paused), keys=list(keys)
    )
    return stuck


def _with_waiting(dask_scheduler: Any, paused: list[str], keys: list[Any]) -> list[str]:
    """Those of the workers that some task waits for, as they tell what they run."""
    tasks = [dask_scheduler.tasks[key] for key in keys if key in dask_scheduler.tasks]
    stuck = []
    for address in paused:
        worker = dask_scheduler.workers.get(address)
        if worker is None or worker.status != Status.paused:
            continue
        begun = {*worker.executing, *worker.long_running}
        if any(
            (task.processing_on is worker and task not in begun)
            # Meant for it alone, and not given to it as long as it takes none.
            or (task.state == "no-worker" and address in (task.worker_restrictions or ()))
            for task in tasks
        ):
            stuck.append(address)
    return stuck


def packed(workers: Sequence[str]) -> list[str]:
    """Workers with those of one host together: the first few are on as few hosts as can be."""
    hosts: dict[str, list[str]] = {}
    for worker in sorted(workers):
        hosts.setdefault(worker.rsplit(":", 1)[0], []).append(worker)
    largest_first = sorted(hosts.values(), key=len, reverse=True)
    return [worker for host in largest_first for worker in host]


def first_owners(
    lengths: Sequence[int], holders: Sequence[str | None], workers: Sequence[str]
) -> list[str]:
    """Choose each block's worker at the beginning of a fit: neighbours together, evenly.

    Which blocks are together, and so the rounding of sums, depends on the lengths and on the
    number of workers alone. Who gets which share depends on what lies where.

    Parameters
    ----------
    lengths, holders, workers
        As for `assign_blocks`.
    """
    n_shares, total = len(workers), max(sum(lengths), 1)
    middles = np.cumsum([0, *lengths])[:-1] + np.asarray(lengths) / 2
    shares = [min(int(middle * n_shares / total), n_shares - 1) for middle in middles]
    held = {(share, worker): 0 for share in range(n_shares) for worker in workers}
    for share, length, holder in zip(shares, lengths, holders, strict=True):
        if holder is not None and holder in workers:
            held[share, holder] += length
    taker: dict[int, str] = {}
    taken: set[str] = set()
    for share, worker in sorted(held, key=lambda pair: -held[pair]):
        if share not in taker and worker not in taken:
            taker[share] = worker
            taken.add(worker)
    return assign_blocks(lengths, [taker[share] for share in shares], workers)


def assign_blocks(
    lengths: Sequence[int], holders: Sequence[str | None], workers: Sequence[str]
) -> list[str]:
    """Choose each block's worker: where it lies, unless that worker holds too much.

    Parameters
    ----------
    lengths : sequence of int
        Rows of each block.
    holders : sequence of str or None
        A worker that holds the block now.
    workers : sequence of str
        All workers.

    Returns
    -------
    list of str
        A block moves only from a worker that would hold more than a tenth above the
        mean, and only if its new worker then holds less.
    """
    # In the order of the blocks, that of their addresses being another one every day.
    ordered = [holder for holder in holders if holder in set(workers)]
    load = dict.fromkeys([*ordered, *workers], 0)
    chosen: list[str] = []
    for length, holder in zip(lengths, holders, strict=True):
        chosen.append(holder if holder in load else min(load, key=lambda w: load[w]))
        load[chosen[-1]] += length
    limit = 1.1 * sum(lengths) / len(load)
    for block in sorted(range(len(lengths)), key=lambda b: (-lengths[b], b)):
        source = chosen[block]
        target = min(load, key=lambda w: load[w])
        if load[source] > limit and load[target] + lengths[block] < load[source]:
            load[source] -= lengths[block]
            load[target] += lengths[block]
            chosen[block] = target
    return chosen
