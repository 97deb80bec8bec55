"""How many workers take part in a fit: as many as make its steps faster.

Two workers halve the products of a minibatch and exchange a sum; for a small network the sum
takes longer than what they save. So before the rows are placed, a few steps on made-up rows
are timed on one worker, on two, four and so on, with all that belongs to a step.
"""

import logging
import math
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import dask

from skdtheano.runtime.cluster import ClusterSite
from skdtheano.runtime.failures import RoundFailed, SchedulerLost, WorkersLost
from skdtheano.runtime.hosts import may_share
from skdtheano.runtime.model import Model
from skdtheano.runtime.steps import StepSettings
from skdtheano.runtime.tasks import ROWS_HELD, Seat, timed_steps
from skdtheano.runtime.workers import packed

logger = logging.getLogger(__name__)

SETTING = "skdtheano.workers"

#: More workers have to save this share of a step, or fewer do as well: their rounds cost some
#: milliseconds more, and in a fit one of more ranks is late more often than in a short trial.
#: On two cores a small network's steps that a trial saw 23 % faster on two workers, 0.10 ms
#: against 0.13, were 10 % slower.
_WORTH = 0.2

#: Seconds of the steps that are timed at once, by a guess at what they take.
_TIMED_SECONDS = 0.03
_FLOPS_PER_SECOND, _STEP_SECONDS = 1e11, 1.5e-4
_MOST_STEPS = 200
#: Above so many a step, nothing is timed: then products are all that counts.
_MOST_FLOPS = 2e10

#: Share of a worker's memory that the made-up rows of a trial may take, with what is computed
#: of them.
_SHARE_OF_TRIAL = 0.25

#: Share of the workers' memory that rows may take where fewer are to hold them.
_SHARE_OF_MEMORY = 0.5

_MAX_KNOWN = 256
_known: OrderedDict[tuple[Any, ...], dict[int, float]] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class Trial:
    """The steps of a fit, without its rows.

    Attributes
    ----------
    model : Model
    batch_size : int
        Rows of a minibatch, over all workers.
    settings : StepSettings
    """

    model: Model
    batch_size: int
    settings: StepSettings

    def flops(self, n_rows: int) -> float:
        """Of the products of a step: forward, for the weights, and backward to the layer."""
        first, *others = [a * b for a, b in pairwise(self.model.layout.units)]
        return 2.0 * n_rows * (2 * first + 3 * sum(others))

    def n_bytes(self, n_rows: int) -> int:
        """Of made-up rows, their minibatch, and each layer's values and slopes."""
        units = self.model.layout.units
        return 8 * n_rows * (ROWS_HELD * (units[0] + units[-1]) + 2 * sum(units))


def asked_for() -> int | str:
    """The setting ``skdtheano.workers`` of dask's configuration.

    Raises
    ------
    ValueError
        If it is neither ``"auto"`` nor ``"all"`` nor a number of workers.
    """
    given = dask.config.get(SETTING, "auto")
    if given in ("auto", "all"):
        return str(given)
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return given
    raise ValueError(
        f"{SETTING}={given!r} of dask's configuration is no number of workers. Give 'auto', "
        f"'all', or a whole number above 0: dask.config.set({{{SETTING!r}: 'auto'}})."
    )


def crew_size(site: ClusterSite, trial: Trial, n_bytes: int) -> int | None:
    """How many workers at most are to hold the rows of a fit; None for all there are.

    Parameters
    ----------
    site : ClusterSite
    trial : Trial
    n_bytes : int
        Of the rows, which have to fit into half of these workers' memory.
    """
    wanted = asked_for()
    workers = packed(site.available_workers())
    n = len(workers)
    if isinstance(wanted, int):
        return wanted
    if n == 1 or wanted == "all":
        return None
    least = _least_for_memory(site, workers, n_bytes)
    if trial.model.spec.network.sparse:
        logger.info("All %d workers take part: what sparse rows cost is not tried.", n)
        return None
    if trial.flops(trial.batch_size) > _MOST_FLOPS or least == n:
        logger.info("All %d workers take part, by the size of the network or the rows.", n)
        return None
    began = time.perf_counter()
    times = _times(site, trial, workers, _sizes(site, trial, workers, least))
    if times is None:
        return None
    size = best_of(times)
    logger.info(
        "%d of %d workers take part in each step of %d rows (tried in %.2f s: %s). "
        "dask.config.set({%r: 'all'}), or a number, decides otherwise.",
        size,
        n,
        trial.batch_size,
        time.perf_counter() - began,
        ", ".join(f"{k} in {1e3 * seconds:.2f} ms" for k, seconds in times.items()),
        SETTING,
    )
    return size if size < n else None


def best_of(times: dict[int, float]) -> int:
    """The fewest workers whose steps are as fast as any, or nearly.

    Parameters
    ----------
    times : dict of int to float
        Seconds of a step, by number of workers.
    """
    fastest = min(times.values())
    return min(k for k, seconds in times.items() if seconds * (1 - _WORTH) <= fastest)


def _least_for_memory(site: ClusterSite, workers: Sequence[str], n_bytes: int) -> int:
    limits = site.memory_limits()
    room = 0.0
    for number, worker in enumerate(workers, 1):
        room += _SHARE_OF_MEMORY * (limits.get(worker, 0) or math.inf)
        if n_bytes <= room:
            return number
    return len(workers)


def _sizes(
    site: ClusterSite, trial: Trial, workers: Sequence[str], least: int
) -> tuple[int, ...]:
    """How many workers to try: `least`, then twice as many and so on, then all.

    Fewer than can hold a trial's own rows are not tried.
    """
    n = len(workers)
    doubled = [least * 2**i for i in range(n.bit_length()) if least * 2**i < n]
    limits = site.memory_limits()
    room = _SHARE_OF_TRIAL * min(limits.get(worker, 0) or math.inf for worker in workers)
    return tuple(
        k for k in [*doubled, n] if k == n or trial.n_bytes(-(-trial.batch_size // k)) <= room
    )


def _times(
    site: ClusterSite, trial: Trial, workers: Sequence[str], sizes: tuple[int, ...]
) -> dict[int, float] | None:
    """Seconds of a step by number of workers; None if they cannot be told."""
    if len(sizes) == 1:
        logger.info("All %d workers take part, by the rows of a step.", len(workers))
        return None
    settings = replace(trial.settings, epoch=0, may_diverge=True)
    trial = replace(trial, settings=settings)
    # Of the optimizer its rule counts, which is in the model's spec, and not its numbers.
    cluster = site.client.scheduler_info(n_workers=0)["id"]
    key = (cluster, tuple(workers), trial.model, trial.batch_size, may_share(), sizes)
    with _lock:
        if key in _known:
            _known.move_to_end(key)
            return _known[key]
    times: dict[int, float] = {}
    try:
        for size in sizes:
            times[size] = _timed(site, trial, workers[:size])
            if times[size] > 2 * min(times.values()):
                break  # with still more it would be no better
    except (SchedulerLost, WorkersLost):
        raise
    except Exception as error:  # a fit may do what a trial cannot: it goes on
        site.check_client(error)
        logger.info("All %d workers take part: a trial failed (%s).", len(workers), error)
        return None
    with _lock:
        _known[key] = times
        while len(_known) > _MAX_KNOWN:
            _known.popitem(last=False)
    return times


def _timed(site: ClusterSite, trial: Trial, workers: Sequence[str]) -> float:
    n_rows = -(-trial.batch_size // len(workers))
    guessed = _STEP_SECONDS + trial.flops(n_rows) / _FLOPS_PER_SECOND
    n_steps = int(min(max(_TIMED_SECONDS / guessed, 1), _MOST_STEPS))
    round_id = f"skdtheano-trial-{len(workers)}-{uuid.uuid4().hex[:12]}"
    tasks = [
        site.submit(
            timed_steps,
            trial.model,
            n_rows,
            n_steps,
            trial.settings,
            Seat(round_id, rank, list(workers), site.deadline, may_share()),
            key=f"{round_id}-{rank}",
            workers=[worker],
            priority=10,
        )
        for rank, worker in enumerate(workers)
    ]

    raise_if_stuck = site.stuck_check(workers, tasks)

    def check(now: list[str]) -> None:
        if lost := sorted(set(workers) - set(now)):
            raise RoundFailed(f"lost worker {', '.join(lost)}")
        raise_if_stuck()

    try:
        times = site.get(tasks, check)
    except BaseException:
        site.client.cancel(tasks, force=True)
        raise
    return float(max(times))
