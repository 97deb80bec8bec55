"""A dask cluster as the place of a fit: waiting for its workers, and looking after them."""

import asyncio
import threading
import time
from collections.abc import Callable, Container, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as futures_wait
from contextlib import AbstractContextManager, suppress
from contextvars import copy_context
from functools import reduce
from operator import add
from types import TracebackType
from typing import Any
from weakref import WeakValueDictionary

from dask.delayed import Delayed
from distributed import Client, futures_of
from distributed.client import _wait

from skdtheano.runtime.background import waiting_for
from skdtheano.runtime.failures import (
    EndedEarly,
    RoundFailed,
    SchedulerLost,
    ValueLost,
    WorkersLost,
)
from skdtheano.runtime.mailbox import ExchangePlugin
from skdtheano.runtime.sites import Check, Handle
from skdtheano.runtime.workers import (
    Heartbeats,
    first_owners,
    packed,
    restart,
    seconds_of,
    stuck_workers,
)

#: Seconds between looks at the cluster while something is awaited from it.
_POLL_SECONDS = 1.0

#: Times that the workers are told of the exchange before a fit gives up.
_ATTEMPTS = 3

#: Seconds after which a scheduler that does not answer counts as lost, as for dask a worker.
_SCHEDULER_SECONDS = 300.0

#: Values that one task adds up.
_FAN_IN = 8


def add_up(parts: list[Any]) -> Any:
    """Sum in the order given."""
    return reduce(add, parts)


class ClusterSite(AbstractContextManager["ClusterSite"]):
    """The workers of a client's cluster: handles are futures.

    Parameters
    ----------
    client : Client

    Attributes
    ----------
    deadline : float
        Seconds of silence after which a worker counts as lost for a round, by the setting
        ``skdtheano.worker-deadline`` of dask's configuration.
    patience : float
        Seconds for which the cluster may have no worker before a wait ends in an error, by
        the setting ``skdtheano.no-worker-timeout``.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.deadline = seconds_of("skdtheano.worker-deadline", 30.0)
        self.patience = seconds_of("skdtheano.no-worker-timeout", 30.0)
        #: How many of the workers are to hold blocks, None for all; see `crew_now`.
        self.crew: Callable[[], int | None] = lambda: None
        self._crew_size: int | None = None
        self._crew_of: set[str] = set()
        self._n_asked_of = 0
        self._members: list[str] = []
        self._heartbeats = Heartbeats()
        self._futures: WeakValueDictionary[int, Handle] = WeakValueDictionary()
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                self._watched(lambda: client.register_plugin(ExchangePlugin()))
                return
            except OSError:  # a worker went before it had answered; the others have it
                self.workers()
                if not attempts_left:
                    raise

    def keep(self, collections: Sequence[Any]) -> list[Any]:
        kept = list(self.client.persist(list(collections)))
        self._made(futures_of(kept))
        return kept

    def load(self, blocks: Sequence[Delayed]) -> list[Handle]:
        return self._made(self.client.compute(list(blocks)))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Whoever keeps an error keeps the frames that it went through, and in them futures:
        # a task that failed would stay on the scheduler, and fail in the next fit unrun.
        for future in list(self._futures.values()):
            with suppress(RuntimeError):  # the client's event loop is closed
                future.release()
        # What dask says of a client that was closed depends on what was asked of it.
        is_said = isinstance(error, EndedEarly | ValueError | TypeError)
        if isinstance(error, Exception) and not is_said:
            self.check_client(error)

    def _made(self, futures: list[Handle]) -> list[Handle]:
        self._futures.update((id(future), future) for future in futures)
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
            If the worker is not there, or takes nothing.
        """
        workers = None if worker is None else [worker]
        target = "a worker" if worker is None else f"worker {worker}"

        def check(now: list[str]) -> None:
            if worker is not None and worker not in now:
                raise ValueLost(f"{target} left while it was sent data")

        try:
            sent = self._watched(
                lambda: self.client.scatter(values, hash=False, workers=workers), check
            )
            self._made(sent if isinstance(sent, list) else [sent])
            return sent
        except (KeyError, OSError) as error:  # a timeout is an OSError too
            error.__traceback__ = None  # as in `wait`
            self.workers()  # says so if it is the client that is gone
            raise ValueLost(f"{target} is gone or paused, and was sent no data") from error

    def submit(self, function: Callable[..., Any], *args: Any, **where: Any) -> Handle:
        [future] = self._made([self.client.submit(function, *args, pure=False, **where)])
        return future

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
            error.__traceback__ = None  # as in `wait`
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
        workers = self.crew_now()
        chosen = first_owners(lengths, self.holders(handles, workers), workers)
        # allow_other_workers: a block whose worker is lost is made again elsewhere.
        return [{"workers": [worker], "allow_other_workers": True} for worker in chosen]

    def workers(self) -> list[str]:
        """Addresses of the workers that the scheduler knows now.

        Raises
        ------
        SchedulerLost
            If the client has lost its scheduler.
        """
        return list(self._workers_now())

    def _workers_now(self) -> dict[str, dict[str, Any]]:
        """What the scheduler knows of each worker."""
        self.check_client()
        # Not client.scheduler_info(), which gives what another thread may have fetched.
        scheduler: Any = self.client.scheduler
        try:
            told = self.client.sync(
                scheduler.identity, n_workers=-1, callback_timeout=_SCHEDULER_SECONDS
            )
        except TimeoutError as error:
            raise SchedulerLost(
                f"The scheduler has not answered for {_SCHEDULER_SECONDS:g} s. Make a new "
                "Client, of a scheduler that does, and fit again."
            ) from error
        known: dict[str, dict[str, Any]] = told["workers"]
        return known

    def check_client(self, cause: BaseException | None = None) -> None:
        """Raise `SchedulerLost` if the client was closed, or has lost its scheduler."""
        if self.client.status != "running":
            raise SchedulerLost(
                f"The client lost its cluster while it was used (its status is "
                f"{self.client.status!r}). Make a new Client and fit again."
            ) from cause

    def wait(self, handles: Sequence[Handle], check: Check | None = None) -> None:
        """Wait until every future has ended, well or not.

        Parameters
        ----------
        handles : sequence of Future
        check : Check, optional

        Raises
        ------
        WorkersLost
            If the cluster has had no worker for ``patience`` seconds.
        ValueLost
            With `check`, if a worker that the futures need was silent for the deadline; it
            is restarted.
        """
        look = self._look(check)
        futures = list(handles)
        while futures:
            try:
                # As distributed.wait, which asks for a current client, and that may be none
                # or another one; to make ours the current one changes it for all threads.
                with waiting_for(self.client):
                    self.client.sync(_wait, futures, timeout=_POLL_SECONDS)
                return
            except (TimeoutError, CancelledError, asyncio.CancelledError) as error:
                # dask's frames and the error hold each other, and the futures, which would
                # keep every round of more than a second until the garbage collector runs.
                error.__traceback__ = None
                futures = [future for future in futures if not future.done()]
            look(futures)

    def _watched(
        self,
        call: Callable[[], Any],
        check: Check | None = None,
        handles: Sequence[Handle] | None = None,
    ) -> Any:
        """Call what waits for workers, in a thread, and look after these meanwhile.

        `handles` are the tasks that it waits for, if any.
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

        A frozen process keeps its connections, so whoever waits for it waits for good. In a
        wait for tasks of our own, one that no heartbeat came from for the deadline is
        restarted, which ends that. Others, which may hold the GIL in a user's code, are left
        to dask, which takes the silent off the cluster after its own
        ``distributed.scheduler.worker-ttl``.
        """
        had_worker = time.monotonic()

        def look(handles: Sequence[Handle] | None) -> None:
            nonlocal had_worker
            known = self._workers_now()
            if any(map(_is_at_work, known.values())):
                had_worker = time.monotonic()
            elif time.monotonic() - had_worker > self.patience:
                if known:
                    raise WorkersLost(
                        f"All workers have been paused for {self.patience:g} s: their memory "
                        "is nearly full. Give the workers more memory (memory_limit=), use "
                        "more of them, or fit with shuffle='blocks' and smaller blocks."
                    )
                raise WorkersLost(
                    f"The cluster has had no worker for {self.patience:g} s, and tasks wait "
                    "for one. Start workers and fit again; if that takes longer, "
                    "dask.config.set({'skdtheano.no-worker-timeout': '1 hour'}) before."
                )
            if check is None:
                return
            last_seen = {address: worker["last_seen"] for address, worker in known.items()}
            silent = self._heartbeats.silent(last_seen, self.deadline)
            if silent and handles is not None:
                gone = restart(self.client, silent, [handle.key for handle in handles])
                if gone:
                    raise ValueLost(
                        f"worker {', '.join(gone)} was silent for {self.deadline:g} s and was "
                        "restarted, or taken off the cluster if its nanny was silent too; if "
                        "it was only busy, raise the setting skdtheano.worker-deadline of "
                        "dask's configuration"
                    )
            check(list(known))

        return look

    def available_workers(self) -> list[str]:
        """Addresses of the workers that take tasks; of all, if none does.

        Those that are paused, their memory nearly full, take none, nor do those that are
        about to leave. Waits for a worker if the cluster has none.
        """
        look = self._look(None)
        while not (known := self._workers_now()):
            look(None)
            time.sleep(_POLL_SECONDS)
        running = [a for a, worker in known.items() if worker["status"] == "running"]
        return running or list(known)

    def crew_now(self) -> list[str]:
        """Of the workers that take tasks, those that are to hold blocks.

        Members stay as long as they live. How many there are to be is asked again when too
        few are left, and where it was not all, not before there are twice as many to choose
        from: to ask may take a trial, and to move rows more.
        """
        workers = self.available_workers()
        if set(workers) != self._crew_of:
            n = self._crew_size
            if n is None or len(workers) < n or len(workers) >= 2 * self._n_asked_of:
                n = self._crew_size = self.crew()
                self._n_asked_of = len(workers)
            kept = [worker for worker in self._members if worker in workers]
            others = [worker for worker in packed(workers) if worker not in kept]
            self._members = workers if n is None else [*kept, *others][:n]
            self._crew_of = set(workers)
        return self._members

    def stuck_check(
        self, addresses: Sequence[str], tasks: Sequence[Handle]
    ) -> Callable[[], None]:
        """What raises `RoundFailed` when a worker has been paused for half the patience.

        Only of workers with some of the tasks not begun.
        """
        began, patience = time.monotonic(), self.patience / 2
        stuck_since: dict[str, float] = {}

        def raise_if_stuck() -> None:
            now = time.monotonic()
            if now - began < patience:
                return
            stuck = self._stuck_workers(addresses, tasks)
            for worker in set(stuck_since) - set(stuck):
                del stuck_since[worker]
            for worker in stuck:
                if now - stuck_since.setdefault(worker, now) > patience:
                    raise RoundFailed(
                        f"worker {worker} has been paused for {patience:g} s: its memory is "
                        "nearly full, and it starts no task. Give the workers more "
                        "memory (memory_limit=), use more of them, or smaller blocks"
                    )

        return raise_if_stuck

    def _stuck_workers(self, addresses: Sequence[str], tasks: Sequence[Handle]) -> list[str]:
        """Workers that are paused, with some of the tasks not begun."""
        known = self._workers_now()
        paused = [a for a in addresses if known.get(a, {}).get("status") == "paused"]
        return stuck_workers(self.client, paused, [task.key for task in tasks])

    def sizes(self, handles: Sequence[Handle]) -> list[int]:
        """Bytes of memory that each value takes, as dask weighs it."""
        told = self.client.nbytes([handle.key for handle in handles], summary=False)
        return [told.get(handle.key, 0) for handle in handles]

    def memory_limits(self) -> dict[str, int]:
        """Bytes that each worker may take; 0 for one that may take all there are."""
        return {a: worker["memory_limit"] or 0 for a, worker in self._workers_now().items()}

    def holders(self, handles: Sequence[Handle], among: Container[str]) -> list[str | None]:
        """One of some workers that holds each block; None where none of them does."""
        kept = [handle for handle in handles if handle.status == "finished"]
        try:
            who_has = self.client.who_has(kept) if kept else {}
        except CancelledError as error:  # one was lost between the two lines above
            error.__traceback__ = None  # as in `wait`
            return self.holders(handles, among)
        return [
            min((a for a in who_has.get(handle.key, ()) if a in among), default=None)
            for handle in handles
        ]


def _is_at_work(worker: dict[str, Any]) -> bool:
    """Whether a worker takes tasks or, paused by its memory, still runs some."""
    return worker["status"] != "paused" or bool(worker["metrics"].get("executing"))
