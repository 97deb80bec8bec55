"""Where the tasks of a search run: in this process, or on a dask cluster."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import Any

import cloudpickle
import numpy as np
from dask.array import Array
from dask.base import compute
from dask.core import flatten
from distributed import Client, futures_of, wait
from distributed.scheduler import KilledWorker

from skdtheano.model_selection.calls import as_is, joined
from skdtheano.runtime.background import waiting_for
from skdtheano.runtime.clients import outside_the_slots
from skdtheano.runtime.workers import seconds_of

#: Rows travel to the scheduler in pieces of so many bytes.
_PIECE_BYTES = 2**22

#: Seconds after which who waits looks at the cluster.
_LOOK_SECONDS = 1.0


def can_travel_along(n_tasks: int, request: Any, *rows: Any) -> bool:
    """Whether each task can bring its own copy of some arrays, and of what is asked of it.

    Tasks of their own for these, which all others wait for, take 20 ms.
    """
    arrays = [p for p in rows if isinstance(p, np.ndarray) and not p.dtype.hasobject]
    nbytes = sum(array.nbytes for array in arrays)
    most = 2 * _PIECE_BYTES // max(n_tasks, 1)
    if len(arrays) < len(rows) or nbytes > most:
        return False
    try:
        return nbytes + len(cloudpickle.dumps(request)) <= most
    except Exception:  # whoever sends it says what is wrong
        return False


class Place(ABC):
    """Runs tasks; a handle of one may be an argument of the next."""

    @abstractmethod
    def n_at_once(self) -> int:
        """How many tasks run at the same time."""

    @abstractmethod
    def put(self, rows: Any) -> Any:
        """A handle of rows in memory."""

    @abstractmethod
    def blocks(self, arrays: Sequence[Array]) -> list[list[Any]]:
        """Handles of the blocks of rows of dask arrays."""

    @abstractmethod
    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A handle of what the function will have returned."""

    @abstractmethod
    def first_done(self, handles: Sequence[Any]) -> Any:
        """Wait for one of some handles."""

    @abstractmethod
    def result(self, handle: Any) -> Any:
        """What a handle stands for, here."""

    @abstractmethod
    def cancel(self, handles: Sequence[Any]) -> None:
        """Give up what has not run."""


class _Later:
    """A call that is made when its value is asked for."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call: tuple[Any, ...] | None = (function, *arguments)
        self._value: Any = None

    def value(self) -> Any:
        if self._call is not None:
            function, *arguments = self._call
            self._value = function(
                *(a.value() if isinstance(a, _Later) else a for a in arguments)
            )
            self._call = None  # and with it what only this call needed
        return self._value


class InProcess(Place):
    """One task after another, in the order in which they are waited for."""

    def n_at_once(self) -> int:
        return 1

    def put(self, rows: Any) -> Any:
        return rows

    def blocks(self, arrays: Sequence[Array]) -> list[list[Any]]:
        delayed = [array.to_delayed().ravel().tolist() for array in arrays]
        found: list[list[Any]] = compute(delayed)[0]
        return found

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return _Later(function, *arguments)

    def first_done(self, handles: Sequence[Any]) -> Any:
        handles[0].value()
        return handles[0]

    def result(self, handle: Any) -> Any:
        return handle.value()

    def cancel(self, handles: Sequence[Any]) -> None:
        """Nothing runs unless it is waited for."""


class OnCluster(Place):
    """Tasks of dask's.

    Rows travel in tasks, and no task changes its arguments: what a lost worker held, dask
    computes again, to the same bits.

    Parameters
    ----------
    client : Client
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._patience = seconds_of("skdtheano.no-worker-timeout", 30.0)

    def n_at_once(self) -> int:
        return max(2, sum(self._threads().values()))  # more of them may come

    def _threads(self) -> dict[str, int]:
        """Threads by worker."""
        try:
            n_threads: dict[str, int] = self._client.nthreads()
        except OSError as lost:  # it has gone since the client was looked at
            raise ConnectionError(
                f"{self._client!r} has lost its scheduler, and the search with it. Make a new "
                "Client and fit again."
            ) from lost
        return n_threads

    def put(self, rows: Any) -> Any:
        if not isinstance(rows, np.ndarray):
            return self.submit(as_is, rows)
        n = max(1, _PIECE_BYTES // max(1, rows[:1].nbytes))
        cuts = range(0, max(len(rows), 1), n)
        pieces = [self.submit(as_is, rows[start : start + n]) for start in cuts]
        return self.submit(joined, *pieces)

    def blocks(self, arrays: Sequence[Array]) -> list[list[Any]]:
        # In one graph: dask's scheduler stumbles over graphs that were optimised apart, with
        # other tasks under the same keys.
        kept = self._client.persist(list(arrays))
        futures = {future.key: future for future in futures_of(kept)}
        return [[futures[key] for key in flatten(array.__dask_keys__())] for array in kept]

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._client.submit(function, *arguments, pure=False)

    def first_done(self, handles: Sequence[Any]) -> Any:
        alone_since: float | None = None
        with outside_the_slots(), waiting_for(self._client):
            while True:
                try:
                    with self._closed_is_told():
                        wait(handles, timeout=_LOOK_SECONDS, return_when="FIRST_COMPLETED")
                except (TimeoutError, CancelledError) as error:
                    # Of what was cancelled `result` tells. dask's frames and the error hold
                    # each other, and the tasks of the search, which would stay on the cluster
                    # until the garbage collector runs.
                    error.__traceback__ = None
                for handle in handles:
                    if handle.status != "pending":
                        return handle
                alone_since = self._look(alone_since)

    @contextmanager
    def _closed_is_told(self) -> Iterator[None]:
        """What dask raises once the client is closed depends on when that is."""
        try:
            yield
        except ValueError:
            self._look(None)
            raise

    def _look(self, alone_since: float | None) -> float | None:
        if self._client.status != "running":
            raise ConnectionError(
                f"{self._client!r} is {self._client.status}, and the search with it. Make a "
                "new Client and fit again."
            )
        if self._threads():
            return None
        now = time.monotonic()
        if alone_since is not None and now - alone_since > self._patience:
            raise RuntimeError(
                f"The cluster has lost all its workers, and none came within "
                f"{self._patience:g} s. Start some (cluster.scale(2)) and fit again, or wait "
                "longer: dask.config.set({'skdtheano.no-worker-timeout': '1 hour'})."
            )
        return now if alone_since is None else alone_since

    def result(self, handle: Any) -> Any:
        gone = ConnectionError(
            "The cluster has cancelled the tasks of the search: its scheduler was restarted, "
            "or is gone. Make a new Client and fit again."
        )
        if handle.status == "cancelled":
            raise gone
        try:
            with outside_the_slots():
                return handle.result()
        except CancelledError as cancelled:
            raise gone from cancelled
        except KilledWorker as killed:
            raise RuntimeError(
                f"{killed} A task of the search that kills its workers may need more memory "
                "than they have: give them more (memory_limit=), or search with fewer rows, "
                "in smaller blocks if they are a dask collection."
            ) from killed

    def cancel(self, handles: Sequence[Any]) -> None:
        with suppress(Exception):  # of a client that is gone
            self._client.cancel(list(handles), force=True)
