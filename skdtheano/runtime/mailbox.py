"""What arrives on a dask worker for the rounds that it takes part in."""

import gc
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from distributed import Worker, WorkerPlugin

#: A worker's answer to a ping for a round that it has left.
ENDED = "ended"

#: Rounds that a worker remembers after their end, or before their task has begun.
_MAX_REMEMBERED = 1000


class RoundAborted(RuntimeError):
    """A round ended before its last minibatch because it could not go on."""


class PeerLost(RoundAborted):
    """A worker of the round is gone or does not answer; the message names it."""


Part = tuple[tuple[float, ...], np.ndarray]


class Mailbox:
    """What has arrived for one round on one worker; filled by the event loop's thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bell = threading.Lock()  # held, but for the moment in which it rings
        self._bell.acquire()
        self._parts: dict[tuple[int, int], Part] = {}
        self._awaited: set[tuple[int, int]] = set()
        self._failure: RoundAborted | None = None

    def put(self, step: int, source: int, part: Part) -> None:
        with self._lock:
            self._parts[step, source] = part
            if self._awaited:
                self._awaited.discard((step, source))
                if not self._awaited:
                    self._bell.release()

    def fail(self, failure: RoundAborted) -> None:
        """Let the round's thread raise `failure`, the first one of them, at once."""
        with self._lock:
            self._failure = self._failure or failure
            if self._awaited:
                self._awaited.clear()
                self._bell.release()

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def take(self, step: int, sources: set[int], timeout: float) -> dict[int, Part]:
        """Parts of `step` from all `sources`; fewer of them if `timeout` seconds pass.

        The round's thread is the only one that waits.
        """
        with self._lock:
            if self._failure is None:
                self._awaited = {(step, source) for source in sources} - self._parts.keys()
            waits = bool(self._awaited)
        if waits and not self._bell.acquire(timeout=timeout):
            with self._lock:
                # It may have rung since: whoever empties the set rings, and just once.
                if not self._awaited:
                    self._bell.acquire()
                self._awaited.clear()
        with self._lock:
            there = [source for source in sources if (step, source) in self._parts]
            if len(there) < len(sources):  # what all have sent counts, whoever failed since
                self.check()
            return {source: self._parts.pop((step, source)) for source in there}


class ExchangePlugin(WorkerPlugin):
    """Receives the messages of rounds on a dask worker.

    Registered once per cluster; workers that join later have it too. Idle, it costs
    nothing: it has no thread, no task and no port.
    """

    name = "skdtheano-exchange"
    idempotent = True

    def setup(self, worker: Worker) -> None:
        # Else the interpreter goes through all that has been imported, some 0.1 s, in one of
        # the first rounds, and all other workers wait.
        gc.collect()
        self.worker = worker
        self._lock = threading.Lock()  # the event loop and the rounds' threads meet here
        self._open: dict[str, Mailbox] = {}
        self._waiting: OrderedDict[str, Mailbox] = OrderedDict()
        self._ended: OrderedDict[str, str] = OrderedDict()
        worker.handlers["skdtheano_part"] = self.receive
        worker.handlers["skdtheano_abort"] = self.abort
        worker.handlers["skdtheano_ping"] = self.ping

    def teardown(self, worker: Worker) -> None:
        for round_id in list(self._open):
            self.abort(round_id, f"worker {worker.address} is closing")

    def open(self, round_id: str) -> Mailbox:
        """The mailbox of a round that a task of this worker takes part in.

        It holds what has arrived before the task began. For a round that has ended it
        raises at the first look.
        """
        with self._lock:
            mailbox = self._waiting.pop(round_id, None) or Mailbox()
            if round_id in self._ended:
                mailbox.fail(RoundAborted(self._ended[round_id]))
            self._open[round_id] = mailbox
            return mailbox

    def close(self, round_id: str) -> None:
        """Forget a round; what still arrives for it is dropped."""
        with self._lock:
            self._end(round_id, "the round has ended")

    def receive(
        self,
        round_id: str,
        step: int,
        source: int,
        scalars: list[float],
        vector: np.ndarray | bytes | memoryview,
        dtype: str = "<f8",
    ) -> None:
        if not isinstance(vector, np.ndarray):  # bytes; as they were within one process
            vector = np.frombuffer(vector, dtype)
        with self._lock:
            if round_id in self._ended:
                return
            mailbox = self._open.get(round_id)
            if mailbox is None:
                mailbox = self._waiting.setdefault(round_id, Mailbox())
                _keep_newest(self._waiting)
            mailbox.put(step, source, (tuple(scalars), vector))

    def abort(self, round_id: str, reason: str) -> None:
        with self._lock:
            if round_id in self._open:
                self._open[round_id].fail(RoundAborted(reason))
            elif round_id not in self._ended:
                self._end(round_id, reason)

    def _end(self, round_id: str, reason: str) -> None:
        self._open.pop(round_id, None)
        self._waiting.pop(round_id, None)
        self._ended[round_id] = reason
        _keep_newest(self._ended)

    def ping(self, round_id: str) -> str:
        """Whether this worker is still to be expected in a round."""
        return ENDED if round_id in self._ended else "alive"


def _keep_newest(rounds: OrderedDict[str, Any]) -> None:
    """Bound what is kept of rounds whose task never came, or that are over."""
    while len(rounds) > _MAX_REMEMBERED:
        rounds.popitem(last=False)
