"""The exchange of sums between the processes of one round.

A collective has one verb, ``sum``. `Solo` is the collective
of one process; `Peers` talks from dask worker to dask worker over dask's own comms, and
so over TLS where the cluster uses it, on no port of its own.
"""

import asyncio
import time
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from distributed.comm.core import Comm
from distributed.protocol.serialize import to_serialize

from skdtheano.runtime.failures import NotFinite
from skdtheano.runtime.mailbox import ExchangePlugin, Part, PeerLost, RoundAborted

#: Above this many bytes saved on the wire of each rank, a sum by owned slices, which waits
#: for two messages in a row, beats one in which every rank sends all to all: a message
#: costs about 1 ms, and 1 MB each way about 2 ms (measured on two processes of one host).
_SLICES_PAY_BYTES = 2**19

#: A waiting rank looks this often (seconds) whether the others and its caller are there.
_WATCH_SECONDS = 0.5


class Collective(Protocol):
    """The processes that train one model together.

    Attributes
    ----------
    n_vectors : int
        How many vectors to compute in, in turn, so that none is written to while another
        rank may still read it.
    """

    n_vectors: int

    def held(self, vector: np.ndarray) -> np.ndarray:
        """The values of a vector where ranks of the same host can read them."""

    def room(self, n: int, dtype: np.dtype) -> np.ndarray:
        """A vector of zeros to compute in, there too."""

    def share(self, n: int, dtype: np.dtype) -> slice:
        """The part of a packed vector that this rank updates."""

    def complete(self, scalars: tuple[float, ...], vector: np.ndarray) -> tuple[float, ...]:
        """Fill in the parts of the vector that others have updated."""

    def sum(
        self, scalars: tuple[float, ...], vector: np.ndarray
    ) -> tuple[tuple[float, ...], np.ndarray]:
        """Sums over the ranks, bit for bit the same on each.

        `vector` may still be on its way out when this returns: it must not be written to
        before the next call has returned.
        """


class Solo:
    """One process: every sum is what it was given."""

    n_vectors = 1

    def held(self, vector: np.ndarray) -> np.ndarray:
        return vector

    def room(self, n: int, dtype: np.dtype) -> np.ndarray:
        return np.zeros(n, dtype)

    def share(self, n: int, dtype: np.dtype) -> slice:
        return slice(0, n)

    def sum(
        self, scalars: tuple[float, ...], vector: np.ndarray
    ) -> tuple[tuple[float, ...], np.ndarray]:
        return scalars, vector

    def complete(self, scalars: tuple[float, ...], vector: np.ndarray) -> tuple[float, ...]:
        return scalars


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
        self._sending: set[asyncio.Task[None]] = set()
        self._step = 0

    n_vectors = 2

    def held(self, vector: np.ndarray) -> np.ndarray:
        return vector

    def room(self, n: int, dtype: np.dtype) -> np.ndarray:
        return np.zeros(n, dtype)

    def share(self, n: int, dtype: np.dtype) -> slice:
        return slice(0, n)

    def complete(self, scalars: tuple[float, ...], vector: np.ndarray) -> tuple[float, ...]:
        return scalars

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
        # What is not finite all ranks find by themselves, in the same sum.
        is_told = error is not None and not isinstance(error, NotFinite)
        self._call_loop(self._leave(f"{type(error).__name__}: {error}" if is_told else None))

    def sum(
        self, scalars: tuple[float, ...], vector: np.ndarray
    ) -> tuple[tuple[float, ...], np.ndarray]:
        n = self.n_ranks
        if n == 1:
            self._check_on()
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
        self._check_on()
        step, self._step = self._step, self._step + 1
        if outgoing:
            self._call_loop(self._send(step, outgoing))
        return self._receive(step)

    def _receive(self, step: int) -> dict[int, Part]:
        """Wait for the parts of all, for as long as they and the caller are there."""
        pings: dict[int, tuple[Any, float]] = {}
        try:
            return self._receive_watching(step, pings)
        finally:
            for pong, _ in pings.values():
                pong.cancel()

    def _receive_watching(
        self, step: int, pings: dict[int, tuple[Any, float]]
    ) -> dict[int, Part]:
        missing, received = set(self._others), {}
        silent_since = time.monotonic()
        while missing:
            parts = self._mailbox.take(step, missing, timeout=_WATCH_SECONDS)
            now = time.monotonic()
            if parts:
                received.update(parts)
                missing -= set(parts)
                silent_since = now
                continue
            self._check_wanted()
            self._check_connected(missing)
            if now - silent_since > self._deadline / 3:
                for rank in missing - set(pings):
                    pings[rank] = self._call_loop(self._ping(self._addresses[rank])), now
            for rank, (pong, since) in list(pings.items()):
                # A slow worker answers from its event loop; a dead or frozen one does not.
                if pong.done() and pong.exception() is None:
                    del pings[rank]
                    silent_since = now
                elif rank in missing and pong.done():
                    raise PeerLost(
                        f"worker {self._addresses[rank]} cannot be reached "
                        f"({pong.exception()!r})"
                    )
                elif rank in missing and now - since > self._deadline:
                    raise PeerLost(
                        f"worker {self._addresses[rank]} has sent nothing and answered no "
                        f"ping for {self._deadline:g} s"
                    )
        return received

    def _check_on(self) -> None:
        """Raise if the round has failed elsewhere, or nobody wants it any more."""
        self._mailbox.check()
        self._check_wanted()

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
        for rank, part in outgoing.items():
            sending = asyncio.create_task(self._send_one(step, rank, part))
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)

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
        except Exception as error:  # whatever it is, the round's thread must hear of it
            self._mailbox.fail(PeerLost(f"worker {address} cannot be reached ({error!r})"))

    async def _leave(self, reason: str | None) -> None:
        """Tell the others why, if the round failed here, and give the comms back."""
        if self._sending:  # a comm is given back when its last part has left
            await asyncio.wait(set(self._sending), timeout=self._deadline)
        unfinished = [sending for sending in self._sending if not sending.done()]
        for sending in unfinished:
            sending.cancel()
        for rank, comm in list(self._comms.items()):
            try:
                if unfinished:  # half a message may have left: nobody is to read on
                    comm.abort()
                elif reason is not None:
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
            self._worker.rpc.reuse(self._addresses[rank], comm)

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
