"""Training threads of dask workers, out of reach of dask's profiler."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import dask
from distributed import get_worker

#: Whether dask's profiler sees training threads too, by dask's configuration: that of the
#: caller for the rounds of a distributed fit, else that of the worker.
SETTING = "skdtheano.profile"


def is_asked_for() -> bool:
    """Whether the configuration of this process wants training threads profiled."""
    return bool(dask.config.get(SETTING, False))


@contextmanager
def out_of_the_profile(is_profiled: bool | None = None) -> Iterator[None]:
    """Keep dask's profiler off this thread, if it is one of a worker.

    It holds the interpreter for 0.3 ms a hundred times a second. That is 4 % of a search's
    time and, as the ranks of a round wait for each other, 5 % of that of two workers' steps
    on two cores. `distributed.Client.call_stack` does not see the thread either, nor does
    `get_current_task` there.

    Parameters
    ----------
    is_profiled : bool, optional
        Whether to let it be; by the configuration if None.
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
        yield
    finally:
        if key is not None:  # dask takes it away itself when the task ends
            with worker.active_threads_lock:
                worker.active_threads[thread] = key
