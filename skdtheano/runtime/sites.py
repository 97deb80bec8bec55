"""Where blocks live and functions of blocks run: in this process, or on a dask cluster."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Container, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as futures_wait
from contextvars import copy_context
from functools import reduce
from operator import add
from typing import Any, Protocol

from dask.base import compute, persist
from dask.delayed import Delayed
from distributed import Client, wait

from skdtheano.runtime.failures import ValueLost
from skdtheano.runtime.mailbox import ExchangePlugin
from skdtheano.runtime.workers import (
    Heartbeats,
    first_owners,
    restart,
    seconds_of,
    stuck_workers,
)

logger = logging.getLogger(__name__)

#: Seconds between looks at the cluster while something is awaited from it.
_POLL_SECONDS = 1.0

Handle = Any

#: Called with the workers' addresses about once a second; ends a wait by raising.
Check = Callable[[list[str]], None]

#: Values that one task adds up.
_FAN_IN = 8


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

    Attributes
    ----------
    deadline : float
        Seconds of silence after which a worker counts as lost, by the setting
        ``skdtheano.worker-deadline`` of dask's configuration. What waits for it goes on
        without it.
    patience : float
        Seconds for which the cluster may have no worker before a wait ends in an error, by
        the setting ``skdtheano.no-worker-timeout``.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.deadline = seconds_of("skdtheano.worker-deadline", 30.0)
        self.patience = seconds_of("skdtheano.no-worker-timeout", 30.0)
        self._heartbeats = Heartbeats()
        self._watched(lambda: client.register_plugin(ExchangePlugin()))

    def keep(self, collections: Sequence[Any]) -> list[Any]:
        return list(self.client.persist(list(collections)))

    def load(self, blocks: Sequence[Delayed]) -> list[Handle]:
        futures: list[Handle] = self.client.compute(list(blocks))
        return futures

    def put(self, blocks: Sequence[Any]) -> list[Handle]:
        # hash=False: hashed keys of two fits would be one key (distributed#3703).
        futures: list[Handle] = self.scatter(list(blocks), None)
        return futures

    def scatter(self, values: Any, worker: str | None) -> Any:
        """Send values that are in this process to a worker, or to any.

        Raises
        ------
        ValueLost
            If the worker is not there.
        """
        workers = None if worker is None else [worker]
        try:
            return self._watched(
                lambda: self.client.scatter(values, hash=False, workers=workers)
            )
        except (KeyError, TimeoutError) as error:
            left = f"worker {worker}" if worker else "every worker"
            raise ValueLost(f"{left} was gone before it was sent anything") from error

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
            values = self._watched(lambda: self.client.gather(list(handles)), check, handles)
        except (CancelledError, asyncio.CancelledError) as error:
            # The worker went between the two lines above.
            raise ValueLost(f"a result was lost with its worker ({error})") from error
        return list(values)

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
        workers = self.available_workers()
        chosen = first_owners(lengths, self.holders(handles, workers), workers)
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
        look = self._look(check)
        futures = list(handles)
        while futures:
            try:
                wait(futures, timeout=_POLL_SECONDS)
                return
            except (TimeoutError, CancelledError, asyncio.CancelledError):
                futures = [future for future in futures if not future.done()]
            look(futures)

    def _watched(
        self,
        call: Callable[[], Any],
        check: Check | None = None,
        handles: Sequence[Handle] | None = None,
    ) -> Any:
        """Call what waits for workers, in a thread, and look after these meanwhile.

        `handles` are what it waits for; None if it waits for all workers.
        """
        called: Future[Any] = Future()
        context = copy_context()  # dask tells by it whether this is inside a task

        def run() -> None:
            try:
                called.set_result(context.run(call))
            except BaseException as error:
                called.set_exception(error)

        threading.Thread(target=run, name="skdtheano-call", daemon=True).start()
        look = self._look(check)
        while not futures_wait([called], timeout=_POLL_SECONDS).done:
            look(handles)
        return called.result()

    def _look(self, check: Check | None) -> Callable[[Sequence[Handle] | None], None]:
        """What to do about once a second while something is awaited from the workers.

        A frozen process keeps its connections, so whoever waits for it waits for good. One
        that no heartbeat came from for the deadline is restarted, which ends that.
        """
        had_worker = time.monotonic()

        def look(handles: Sequence[Handle] | None) -> None:
            nonlocal had_worker
            workers = self.workers()
            if workers:
                had_worker = time.monotonic()
            elif time.monotonic() - had_worker > self.patience:
                raise RuntimeError(
                    f"The cluster has had no worker for {self.patience:g} s, and tasks wait "
                    "for one. Start workers and fit again; if that takes longer, "
                    "dask.config.set({'skdtheano.no-worker-timeout': '1 hour'}) before."
                )
            known = self.client.scheduler_info(n_workers=-1)["workers"]
            last_seen = {address: worker["last_seen"] for address, worker in known.items()}
            silent = self._heartbeats.silent(last_seen, self.deadline)
            if silent:
                keys = None if handles is None else [handle.key for handle in handles]
                for worker in restart(self.client, silent, keys):
                    logger.warning(
                        "Worker %s was silent for %g s and is restarted.",
                        worker,
                        self.deadline,
                    )
                workers = self.workers()
            if check is not None:
                check(workers)

        return look

    def available_workers(self) -> list[str]:
        """Addresses of the workers that take tasks; of all, if none does.

        Those that are paused, their memory nearly full, take none, nor do those that are
        about to leave. Waits for a worker if the cluster has none.
        """
        look = self._look(None)
        while not (workers := self.workers()):
            look([])
            time.sleep(_POLL_SECONDS)
        known = self.client.scheduler_info(n_workers=-1)["workers"]
        running = [a for a in workers if known.get(a, {}).get("status") == "running"]
        return running or workers

    def stuck_workers(self, addresses: Sequence[str], tasks: Sequence[Handle]) -> list[str]:
        """Workers that are paused, with some of the tasks not begun."""
        return stuck_workers(self.client, addresses, [task.key for task in tasks])

    def holders(self, handles: Sequence[Handle], among: Container[str]) -> list[str | None]:
        """One of some workers that holds each block; None where none of them does."""
        kept = [handle for handle in handles if handle.status == "finished"]
        try:
            who_has = self.client.who_has(kept) if kept else {}
        except CancelledError:  # one was lost between the two lines above
            return self.holders(handles, among)
        return [
            min((a for a in who_has.get(handle.key, ()) if a in among), default=None)
            for handle in handles
        ]
