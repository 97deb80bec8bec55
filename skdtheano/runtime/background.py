"""What dask does beside training, kept small.

An event loop that wakes up takes the core of a thread that computes, finds its memory
driven out of the caches, and drives out that thread's. Where ranks wait for each other a
pause of one is one of all.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import dask
from distributed import Client, SpecCluster, get_worker
from distributed.core import Server, tick_maximum_delay

#: Whether dask's profiler and clocks go on as ever beside training, by dask's configuration:
#: of who waits for it, and in a worker that of the caller for the rounds of a distributed fit,
#: else its own.
SETTING = "skdtheano.profile"

#: Milliseconds from one wake-up of a slow clock to the next.
_SLOW_MS = 200.0


class Clock(Protocol):
    """One of an event loop's, which calls a function again and again."""

    #: Milliseconds from one call to the next; it is read after each.
    callback_time: float


_lock = threading.Lock()

#: By clock: how many want it slow, its own pace and the slow one, in milliseconds.
_slow: dict[Clock, tuple[int, float, float]] = {}


def is_asked_for() -> bool:
    """Whether the configuration of this process wants dask's profiler and clocks as ever."""
    return bool(dask.config.get(SETTING, False))


@contextmanager
def training_thread(is_profiled: bool | None = None) -> Iterator[None]:
    """Keep dask's profiler off this thread, if it is a worker's, and slow its clocks down.

    The profiler holds the interpreter for 0.3 ms a hundred times a second. That is 4 % of a
    search's time and, as the ranks of a round wait for each other, 5 % of that of two
    workers' steps on two cores. `distributed.Client.call_stack` does not see the thread
    either, nor does `get_current_task` there. On a worker of one thread the profiler is slow
    for what else runs there meanwhile: beside a round, which has given its slot back, others'
    tasks may.

    Parameters
    ----------
    is_profiled : bool, optional
        Whether to let it all be; by the configuration if None.
    """
    worker = None
    if not (is_asked_for() if is_profiled is None else is_profiled):
        with suppress(ValueError):  # this is no worker
            worker = get_worker()
    if worker is None:
        yield
        return
    thread = threading.get_ident()
    with worker.active_threads_lock:
        key = worker.active_threads.pop(thread, None)
    try:
        names = ["tick", "profile"] if worker.state.nthreads == 1 else ["tick"]
        with _slowed(_clocks_of(worker, names)):
            yield
    finally:
        if key is not None:  # dask takes it away itself when the task ends
            with worker.active_threads_lock:
                worker.active_threads[thread] = key


@contextmanager
def waiting_for(client: Client) -> Iterator[None]:
    """Slow down how often event loops measure themselves that this process runs for a client.

    Those are the scheduler's of a `LocalCluster` and its nannies', or its workers' where they
    are threads.
    """
    own: list[Any] = []
    # Other clusters have other attributes, and these of some are handles of processes.
    if isinstance(client.cluster, SpecCluster) and not is_asked_for():
        own = [client.cluster.scheduler, *list(client.cluster.workers.values())]
    with _slowed(clock for server in own for clock in _clocks_of(server, ["tick"])):
        yield


def _clocks_of(server: object, names: Sequence[str]) -> list[Clock]:
    """Of the clocks that wake an event loop up many times a second, for nothing urgent.

    ``tick`` measures how late the loop is, every 20 ms, and ``profile`` samples the threads
    that the profiler sees, every 10 ms. Looks at memory, heartbeats and all that moves data go
    on as ever.
    """
    if not isinstance(server, Server):
        return []
    clocks = server.periodic_callbacks
    return [clocks[name] for name in names if name in clocks]


@contextmanager
def _slowed(clocks: Iterable[Clock]) -> Iterator[None]:
    """Let clocks wake up rarely until nobody wants that any more."""
    slowed = list(clocks)
    # dask tells of a loop that is later than its limit.
    slow_ms = min(_SLOW_MS, 1e3 * tick_maximum_delay / 4)
    with _lock:
        for clock in slowed:
            n, own, slow = _slow.get(clock, (0, clock.callback_time, slow_ms))
            if n and clock.callback_time != slow:  # somebody has set it since
                own = clock.callback_time
            slow = max(own, slow)
            _slow[clock] = n + 1, own, slow
            clock.callback_time = slow  # which it reads when it next wakes up
    try:
        yield
    finally:
        with _lock:
            for clock in slowed:
                n, own, slow = _slow.pop(clock)
                if n > 1:
                    _slow[clock] = n - 1, own, slow
                elif clock.callback_time == slow:  # nobody else has set it since
                    clock.callback_time = own
