"""Which client a fit uses, and how it behaves where it runs in a task itself."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager

from distributed import Client, get_client, rejoin, secede
from distributed.threadpoolexecutor import thread_state

from skdtheano.runtime.workers import seconds_of


def resolve_client(client: Client | None) -> Client | None:
    """The client to use for dask input: the one given, else the current one, else None.

    Raises
    ------
    TypeError, ValueError
        If the client given is not a `distributed.Client` of this thread, is closed or
        asynchronous, or its cluster has no workers and starts none.
    """
    if client is None:
        try:
            client = get_client()
        except ValueError:
            return None
    if not isinstance(client, Client):
        raise TypeError(
            f"client={client!r} is a {type(client).__name__}. Give a distributed.Client, for "
            "example Client(cluster) or Client('tcp://scheduler:8786'), or None."
        )
    if client.asynchronous and not _in_task():
        raise ValueError(
            f"client={client!r} is asynchronous, and fit is not. Make it with "
            "Client(..., asynchronous=False)."
        )
    if client.status != "running":
        raise ValueError(
            f"client={client!r} is {client.status}. Make a new Client, or use client=None to "
            "take the current one."
        )
    if not client.nthreads():
        _ask_for_worker(client)
    return client


def _ask_for_worker(client: Client) -> None:
    """Let a cluster start a worker that does so only once there is a task for it."""
    patience = seconds_of("skdtheano.no-worker-timeout", 30.0)
    task = client.submit(bool, pure=False)
    try:
        task.result(patience)
    except (TimeoutError, CancelledError):  # cancelled by a restart of the cluster
        raise ValueError(
            f"client={client!r} has no workers, and none came within {patience:g} s. Start "
            "some (cluster.scale(2)), or wait longer for those of an adaptive cluster: "
            "dask.config.set({'skdtheano.no-worker-timeout': '1 hour'})."
        ) from None
    finally:
        task.release()  # the frames of the error hold it


def _in_task() -> bool:
    """Whether this thread runs a task and holds one of its worker's slots."""
    pool = getattr(thread_state, "executor", None)
    return pool is not None and threading.current_thread() in pool._threads


@contextmanager
def outside_the_slots() -> Iterator[None]:
    """Give a task's thread slot back while it waits for tasks of its own.

    A fit inside a task would otherwise hold the slot that its rounds wait for.
    """
    if not _in_task():
        yield
        return
    secede()
    try:
        yield
    finally:
        rejoin()
