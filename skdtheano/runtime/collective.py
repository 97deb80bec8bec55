"""The exchange of sums between the processes of one round.

A collective is a rank, a number of ranks and one verb, ``sum``. `Solo` is the collective
of one process; `Peers` talks from dask worker to dask worker over dask's own comms, and
so over TLS where the cluster uses it, on no port of its own.
"""

import asyncio
import threading
import time
from collections import OrderedDict
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from distributed import Worker, WorkerPlugin
from distributed.comm.core import Comm
from distributed.protocol.serialize import to_serialize

#: Above this many bytes saved on the wire of each rank, a sum by owned slices, which waits
#: for two messages in a row, beats one in which every rank sends all to all: a message
#: costs about 1 ms, and 1 MB each way about 2 ms (measured on two processes of one host).
_SLICES_PAY_BYTES = 2**19

#: A waiting rank looks this often (seconds) whether the others and its caller are there.
_WATCH_SECONDS = 0.5

#: Rounds that a worker remembers after their end, or before their task has begun.
_MAX_REMEMBERED = 1000


class RoundAborted(RuntimeError):
    """A round ended before its last minibatch because it could not go on."""


class PeerLost(RoundAborted):
    """A worker of the round is gone or does not answer; the message names it."""


class Collective(Protocol):
    """The processes that train one model together."""

    rank: int
    n_ranks: int

    def sum(
        self, scalars: tuple[float, ...], vector: np.ndarray
    ) -> tuple[tuple[float, ...], np.ndarray]:
        """Sums over the ranks, bit for bit the same on each.

        `vector` may still be on its way out when this returns: it must not be written to
        before the next call has returned.
        """


class Solo:
    """One process: every sum is what it was given."""

    rank = 0
    n_ranks = 1

    def sum(
        self, scalars: tuple[float, ...], vector: np.ndarray
    ) -> tuple[tuple[float, ...], np.ndarray]:
        return scalars, vector


Part = tuple[tuple[float, ...], np.ndarray]


class Mailbox:
    """What has arrived for one round on one worker; filled by the event loop's thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._parts: dict[tuple[int, int], Part] = {}
        self._failure: RoundAborted | None = None

    def put(self, step: int, source: int, part: Part) -> None:
        with self._changed:
            self._parts[step, source] = part
            self._changed.notify_all()

    def fail(self, failure: RoundAborted) -> None:
        """Let the round's thread raise `failure`, the first one of them, at once."""
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def take(self, step: int, sources: set[int], timeout: float) -> dict[int, Part]:
        """Parts of `step` from all `sources`; fewer of them if `timeout` seconds pass."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._failure or all((step, i) in self._parts for i in sources),
                timeout,
            )
            self.check()
            there = [source for source in sources if (step, source) in self._parts]
            return {source: self._parts.pop((step, source)) for source in there}


class ExchangePlugin(WorkerPlugin):
    """Receives the messages of rounds on a dask worker.

    Registered once per cluster; workers that join later have it too. Idle, it costs
    nothing: it has no thread, no task and no port.
    """

    name = "skdtheano-exchange"
    idempotent = True

    def setup(self, worker: Worker) -> None:
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
        self, round_id: str, step: int, source: int, scalars: list[float], vector: np.ndarray
    ) -> None:
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

    def ping(self) -> str:
        return "alive"


def _keep_newest(rounds: OrderedDict[str, Any]) -> None:
    """Bound what is kept of rounds whose task never came, or that are over."""
    while len(rounds) > _MAX_REMEMBERED:
        rounds.popitem(last=False)


class Peers:
    """The dask workers of one round, seen from one of them.

    Used by a task's thread, in a ``with`` block that first waits for all to be there.

    Parameters
    ----------
    plugin : ExchangePlugin
        Of the worker that this runs on.
    round_id : str
        Unique to the attempt: messages of an abandoned attempt are never mixed in.
    rank : int
    addresses : list of str
        Of the workers, by rank.
    deadline : float
        Seconds for which a worker may be silent and its event loop answer no ping.
    task_key : str
        Key of the task; when dask cancels it, the round ends.
    """

    def __init__(
        self,
        plugin: ExchangePlugin,
        round_id: str,
        rank: int,
        addresses: list[str],
        deadline: float,
        task_key: str,
    ) -> None:
        self.rank = rank
        self.n_ranks = len(addresses)
        self._plugin = plugin
        self._worker = plugin.worker
        self._round_id = round_id
        self._addresses = addresses
        self._others = {i for i in range(len(addresses)) if i != rank}
        self._deadline = deadline
        self._task_key = task_key
        self._mailbox = plugin.open(round_id)
        self._comms: dict[int, Comm] = {}
        self._locks: dict[int, asyncio.Lock] = {}
        self._step = 0

    def __enter__(self) -> "Peers":
        try:
            self._exchange({other: ((), np.empty(0)) for other in self._others})
        except BaseException as error:
            self._close(error)
            raise
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._close(error)

    def _close(self, error: BaseException | None) -> None:
        self._plugin.close(self._round_id)
        self._call_loop(
            self._leave(None if error is None else f"{type(error).__name__}: {error}")
        )

    def sum(
        self, scalars: tuple[float, ...], vector: np.ndarray
    ) -> tuple[tuple[float, ...], np.ndarray]:
        n = self.n_ranks
        if n == 1:
            return scalars, vector
        saved = vector.nbytes * (n - 1) * (n - 2) // n
        if saved <= _SLICES_PAY_BYTES:
            parts = self._exchange(dict.fromkeys(self._others, (scalars, vector)))
            parts[self.rank] = (scalars, vector)
            return _total([parts[rank] for rank in range(n)])
        cuts = np.linspace(0, len(vector), n + 1).astype(int)
        slices = [vector[start:stop] for start, stop in pairwise(cuts)]
        parts = self._exchange({other: (scalars, slices[other]) for other in self._others})
        parts[self.rank] = (scalars, slices[self.rank])
        scalars, owned = _total([parts[rank] for rank in range(n)])
        parts = self._exchange(dict.fromkeys(self._others, ((), owned)))
        parts[self.rank] = ((), owned)
        return scalars, np.concatenate([parts[rank][1] for rank in range(n)])

    def _exchange(self, outgoing: dict[int, Part]) -> dict[int, Part]:
        """Send each rank its part, and wait for the parts of all."""
        self._mailbox.check()
        self._check_wanted()
        step, self._step = self._step, self._step + 1
        if outgoing:
            self._call_loop(self._send(step, outgoing))
        missing, received = set(self._others), {}
        silent_since = time.monotonic()
        while missing:
            parts = self._mailbox.take(step, missing, timeout=_WATCH_SECONDS)
            if parts:
                received.update(parts)
                missing -= set(parts)
                continue
            self._check_wanted()
            self._check_connected(missing)
            if time.monotonic() - silent_since > self._deadline / 3:
                for rank in missing:
                    self._check_alive(rank)
                silent_since = time.monotonic()
        return received

    def _check_wanted(self) -> None:
        task = self._worker.state.tasks.get(self._task_key)
        if task is None or task.state in ("cancelled", "released", "forgotten"):
            raise RoundAborted("the round was cancelled by its caller")

    def _check_connected(self, ranks: set[int]) -> None:
        """The system closes a dead process's sockets at once; a dead host's it does not."""
        for rank in ranks:
            comm = self._comms.get(rank)
            if comm is not None and comm.closed():
                raise PeerLost(f"worker {self._addresses[rank]} closed its connection")

    def _check_alive(self, rank: int) -> None:
        """A slow worker answers from its event loop; a dead or frozen one does not."""
        address = self._addresses[rank]
        pong = self._call_loop(self._ping(address))
        try:
            pong.result(timeout=self._deadline)
        except Exception as error:
            pong.cancel()
            raise PeerLost(
                f"worker {address} has sent nothing and answered no ping for "
                f"{self._deadline:g} s"
            ) from error

    async def _ping(self, address: str) -> None:
        comm = await self._worker.rpc.connect(address)
        try:
            await comm.write({"op": "skdtheano_ping", "reply": True})
            await comm.read()
        except BaseException:
            comm.abort()
            raise
        finally:
            self._worker.rpc.reuse(address, comm)

    async def _send(self, step: int, outgoing: dict[int, Part]) -> None:
        await asyncio.gather(
            *(self._send_one(step, rank, part) for rank, part in outgoing.items())
        )

    async def _send_one(self, step: int, rank: int, part: Part) -> None:
        scalars, vector = part
        address = self._addresses[rank]
        try:
            # Messages to one worker leave in the order of the steps.
            async with self._locks.setdefault(rank, asyncio.Lock()):
                if rank not in self._comms:
                    self._comms[rank] = await self._worker.rpc.connect(address)
                await self._comms[rank].write(
                    {
                        "op": "skdtheano_part",
                        "reply": False,
                        "round_id": self._round_id,
                        "step": step,
                        "source": self.rank,
                        "scalars": list(scalars),
                        "vector": to_serialize(vector),
                    }
                )
        except OSError as error:
            self._mailbox.fail(PeerLost(f"worker {address} cannot be reached ({error})"))

    async def _leave(self, reason: str | None) -> None:
        """Tell the others why, if the round failed here, and give the comms back."""
        for rank, comm in self._comms.items():
            address = self._addresses[rank]
            try:
                if reason is not None:
                    text = f"worker {self._addresses[self.rank]} failed: {reason}"
                    await comm.write(
                        {
                            "op": "skdtheano_abort",
                            "reply": False,
                            "round_id": self._round_id,
                            "reason": text,
                        }
                    )
            except OSError:
                comm.abort()
            self._worker.rpc.reuse(address, comm)

    def _call_loop(self, coroutine: Any) -> Any:
        loop: Any = self._worker.loop  # a tornado IOLoop over asyncio's
        return asyncio.run_coroutine_threadsafe(coroutine, loop.asyncio_loop)


def _total(parts: list[Part]) -> Part:
    """Sum in the order of the ranks, so that all ranks round alike."""
    scalars = tuple(float(sum(values)) for values in zip(*(p[0] for p in parts), strict=True))
    vector = parts[0][1] + parts[1][1]
    for _, other in parts[2:]:
        vector += other
    return scalars, vector
