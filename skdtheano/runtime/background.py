"""What dask does beside training, out of the way of those who train.

An event loop that wakes up takes the core of a thread that computes, finds its memory
driven out of the caches, and drives out that thread's. Where ranks wait for each other a
pause of one is one of all.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import dask
from distributed import Client, Worker, get_worker
from distributed.core import Server, tick_maximum_delay
from tornado.ioloop import PeriodicCallback

#: Whether dask's profiler and clocks go on as ever beside training, by dask's configuration:
#: that of the caller for the rounds of a distributed fit, else that of the worker.
SETTING = "skdtheano.profile"

#: Milliseconds from one wake-up of a slow clock to the next.
_SLOW_MS = 200.0

_lock = threading.Lock()

#: By clock: how many want it slow, its own pace and the slow one, in milliseconds.
_slow: dict[PeriodicCallback, tuple[int, float, float]] = {}


def is_asked_for() -> bool:
    """Whether the configuration of this process wants dask's profiler and clocks as ever."""
    return bool(dask.config.get(SETTING, False))


@contextmanager
def training_thread(is_profiled: bool | None = None) -> Iterator[None]:
    """Keep dask's profiler off this thread, and its event loop asleep, if it is a worker's.

    The profiler holds the interpreter for 0.3 ms a hundred times a second. That is 4 % of a
    search's time and, as the ranks of a round wait for each other, 5 % of that of two
    workers' steps on two cores. `distributed.Client.call_stack` does not see the thread
    either, nor does `get_current_task` there.

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
        with _slowed(_clocks_of(worker)):
            yield
    finally:
        if key is not None:  # dask takes it away itself when the task ends
            with worker.active_threads_lock:
                worker.active_threads[thread] = key


@contextmanager
def waiting_for(client: Client) -> Iterator[None]:
    """Slow the clocks down of what this process runs of a client's cluster.

    That is the scheduler and the nannies of a `LocalCluster`.
    """
    cluster = None if is_asked_for() else client.cluster
    own = [getattr(cluster, "scheduler", None), *getattr(cluster, "workers", {}).values()]
    # Elsewhere these are handles of processes, or nothing.
    with _slowed(clock for server in own for clock in _clocks_of(server)):
        yield


def _clocks_of(server: object) -> list[PeriodicCallback]:
    """Those that wake an event loop up many times a second, for nothing that is urgent.

    One measures how late the loop is, every 20 ms. The other one samples the threads that
    the profiler sees, every 10 ms: of a worker with one thread, which trains, that is none.
    Looks at memory, heartbeats and all that moves data go on as ever.
    """
    if not isinstance(server, Server):
        return []
    names = ["tick"]
    if isinstance(server, Worker) and server.state.nthreads == 1:
        names.append("profile")
    clocks = server.periodic_callbacks
    return [clocks[name] for name in names if name in clocks]


@contextmanager
def _slowed(clocks: Iterable[PeriodicCallback]) -> Iterator[None]:
    """Let clocks wake up rarely until nobody wants that any more."""
    slowed = list(clocks)
    # dask tells of a loop that is later than its limit.
    slow_ms = min(_SLOW_MS, 1e3 * tick_maximum_delay / 4)
    with _lock:
        for clock in slowed:
            n, own, slow = _slow.get(clock, (0, clock.callback_time, slow_ms))
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
