"""Where blocks live and functions of blocks run: in this process, or on a dask cluster."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import reduce
from operator import add
from typing import Any, Protocol

from dask.base import compute, persist
from dask.delayed import Delayed
from distributed import Client, Worker, get_client, rejoin, secede, wait
from distributed.threadpoolexecutor import thread_state

from skdtheano.runtime.mailbox import ExchangePlugin

#: Seconds between looks at the cluster while something is awaited from it.
_POLL_SECONDS = 1.0

Handle = Any

#: Called with the workers' addresses about once a second; ends a wait by raising.
Check = Callable[[list[str]], None]

#: Values that one task adds up.
_FAN_IN = 8


class ValueLost(RuntimeError):
    """A value cannot be had: its task was cancelled, or lost with its worker."""


def add_up(parts: list[Any]) -> Any:
    """Sum in the order given."""
    return reduce(add, parts)


class Site(Protocol):
    """A place that holds blocks behind handles and calls functions on them."""

    def keep(self, collections: Sequence[Any]) -> list[Any]:
        """Compute collections in one go and keep their blocks here; what they share once."""

    def load(self, blocks: Sequence[Delayed]) -> list[Handle]:
        """Compute lazy blocks and keep them here."""

    def put(self, blocks: Sequence[Any]) -> list[Handle]:
        """Keep blocks that are in this process here."""

    def submit(self, function: Callable[..., Any], *args: Any, **where: Any) -> Handle:
        """Call a function; handles among `args`, or in lists there, stand for blocks."""

    def get(self, handles: Sequence[Handle], check: Check | None = None) -> list[Any]:
        """Bring values into this process, waiting for them."""

    def wait(self, handles: Sequence[Handle], check: Check | None = None) -> None:
        """Wait until every handle stands for a value or an error."""

    def n_workers(self) -> int:
        """How many processes can work at the same time."""

    def spread(
        self, handles: Sequence[Handle], lengths: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Where to call a function of each block, in even shares: keywords of `submit`."""


class LocalSite:
    """The calling process: handles are the blocks themselves."""

    def keep(self, collections: Sequence[Any]) -> list[Any]:
        return list(persist(*collections))

    def load(self, blocks: Sequence[Delayed]) -> list[Handle]:
        return list(compute(*blocks))

    def put(self, blocks: Sequence[Any]) -> list[Handle]:
        return list(blocks)

    def submit(self, function: Callable[..., Any], *args: Any, **where: Any) -> Handle:
        return function(*args)

    def get(self, handles: Sequence[Handle], check: Check | None = None) -> list[Any]:
        return list(handles)

    def wait(self, handles: Sequence[Handle], check: Check | None = None) -> None:
        """Nothing to wait for: `load` and `submit` have called already."""

    def n_workers(self) -> int:
        return 1

    def spread(
        self, handles: Sequence[Handle], lengths: Sequence[int]
    ) -> list[dict[str, Any]]:
        return [{} for _ in handles]


class ClusterSite:
    """The workers of a client's cluster: handles are futures.

    Parameters
    ----------
    client : Client
    patience : float
        Seconds for which the cluster may have no worker before a wait ends in an error.
    """

    def __init__(self, client: Client, patience: float = 30.0) -> None:
        self.client = client
        self.patience = patience
        client.register_plugin(ExchangePlugin())

    def keep(self, collections: Sequence[Any]) -> list[Any]:
        return list(self.client.persist(list(collections)))

    def load(self, blocks: Sequence[Delayed]) -> list[Handle]:
        futures: list[Handle] = self.client.compute(list(blocks))
        return futures

    def put(self, blocks: Sequence[Any]) -> list[Handle]:
        # hash=False: hashed keys of two fits would be one key (distributed#3703).
        futures: list[Handle] = self.client.scatter(list(blocks), hash=False)
        return futures

    def submit(self, function: Callable[..., Any], *args: Any, **where: Any) -> Handle:
        return self.client.submit(function, *args, pure=False, **where)

    def get(self, handles: Sequence[Handle], check: Check | None = None) -> list[Any]:
        self.wait(handles, check)
        cancelled = [handle.key for handle in handles if handle.status == "cancelled"]
        if cancelled:
            raise ValueLost(
                f"{len(cancelled)} tasks were cancelled before they ended, the first of them "
                f"{cancelled[0]!r}: the client was closed, or data that they needed was lost "
                "with its worker and cannot be made again."
            )
        try:
            return list(self.client.gather(list(handles)))
        except (CancelledError, asyncio.CancelledError) as error:
            # The worker went between the two lines above.
            raise ValueLost(f"a result was lost with its worker ({error})") from error

    def total(self, parts: Iterable[Handle], check: Check | None = None) -> Any:
        """The sum of some values, added on the workers in the order given."""
        level = list(parts)
        while len(level) > 1:
            level = [
                self.submit(add_up, level[i : i + _FAN_IN])
                for i in range(0, len(level), _FAN_IN)
            ]
        [total] = self.get(level, check)
        return total

    def n_workers(self) -> int:
        return len(self.workers())

    def spread(
        self, handles: Sequence[Handle], lengths: Sequence[int]
    ) -> list[dict[str, Any]]:
        self.wait(handles)
        chosen = assign_blocks(lengths, self.holders(handles), self.workers())
        # allow_other_workers: a block whose worker is lost is made again elsewhere.
        return [{"workers": [worker], "allow_other_workers": True} for worker in chosen]

    def workers(self) -> list[str]:
        """Addresses of the workers that the scheduler knows now.

        Raises
        ------
        ConnectionError
            If the client has lost its scheduler.
        """
        if self.client.status != "running":
            raise ConnectionError(
                f"The client lost its cluster while it was used (its status is "
                f"{self.client.status!r}). Make a new Client and fit again."
            )
        return list(self.client.nthreads())

    def wait(self, handles: Sequence[Handle], check: Check | None = None) -> None:
        """Wait until every future has ended, well or not.

        Parameters
        ----------
        handles : sequence of Future
        check : Check, optional

        Raises
        ------
        RuntimeError
            If the cluster has had no worker for ``patience`` seconds.
        """
        last_seen = time.monotonic()
        futures = list(handles)
        while futures:
            try:
                wait(futures, timeout=_POLL_SECONDS)
                return
            except (TimeoutError, CancelledError, asyncio.CancelledError):
                futures = [future for future in futures if not future.done()]
            workers = self.workers()
            if workers:
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > self.patience:
                raise RuntimeError(
                    f"The cluster has had no worker for {self.patience:g} s, and "
                    f"{len(futures)} tasks wait for one. Start workers and fit again."
                )
            if check is not None:
                check(workers)

    def stuck_workers(self, addresses: Sequence[str], tasks: Sequence[Handle]) -> list[str]:
        """Workers that are paused, their memory nearly full, with some task not begun.

        A pause stops no task that runs already.
        """
        known = self.client.scheduler_info(n_workers=-1)["workers"]
        paused = [a for a in addresses if known.get(a, {}).get("status") == "paused"]
        if not paused:
            return []
        waiting = self.client.run(
            _has_waiting, keys=[task.key for task in tasks], workers=paused, on_error="ignore"
        )
        return [address for address in paused if waiting.get(address)]

    def holders(self, handles: Sequence[Handle]) -> list[str | None]:
        """A worker that holds each block, None where the block is lost for now."""
        kept = [handle for handle in handles if handle.status == "finished"]
        try:
            who_has = self.client.who_has(kept) if kept else {}
        except CancelledError:  # one was lost between the two lines above
            return self.holders(handles)
        return [min(who_has.get(handle.key, ()), default=None) for handle in handles]


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
    load = dict.fromkeys(workers, 0)
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


def _has_waiting(keys: list[Any], dask_worker: Worker) -> bool:
    """Whether a task of these was given to the worker and has not begun; runs there."""
    tasks = dask_worker.state.tasks
    return any(key in tasks and tasks[key].state in ("ready", "constrained") for key in keys)


def resolve_client(client: Client | None) -> Client | None:
    """The client to use for dask input: the one given, else the current one, else None.

    Raises
    ------
    TypeError, ValueError
        If the client given is not a `distributed.Client` of this thread, is closed or
        asynchronous, or its cluster has no workers.
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
        raise ValueError(
            f"client={client!r} has no workers. Start some (cluster.scale(2)) and call "
            "client.wait_for_workers(1) before fit."
        )
    return client


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
