"""Whether the workers that one waits for are still there, and still wanted."""

import asyncio
import time
from collections.abc import Collection
from types import TracebackType
from typing import Any

from distributed import Worker
from distributed.comm.core import Comm

from skdtheano.runtime.mailbox import ENDED, Mailbox, PeerLost, RoundAborted

#: A waiting rank looks this often (seconds) whether the others and its caller are there.
WATCH_SECONDS = 0.5


class Watch:
    """What one rank of a round can tell of the others.

    Parameters
    ----------
    worker : Worker
        That this runs on.
    mailbox : Mailbox
        Of the round.
    addresses : list of str
        Of the workers, by rank.
    deadline : float
        Seconds for which a worker may be silent and its event loop answer no ping.
    task_key : str
        Key of the task; when dask cancels it, the round ends.
    round_id : str

    Attributes
    ----------
    comms : dict of int to Comm
        By rank, those that are open for the round.
    """

    def __init__(
        self,
        worker: Worker,
        mailbox: Mailbox,
        addresses: list[str],
        deadline: float,
        task_key: str,
        round_id: str,
    ) -> None:
        self.worker, self.mailbox = worker, mailbox
        self.addresses, self.deadline = addresses, deadline
        self.comms: dict[int, Comm] = {}
        self._task_key, self._round_id = task_key, round_id

    def check(self) -> None:
        """Raise if the round has failed elsewhere, or nobody wants it any more."""
        self.mailbox.check()
        task = self.worker.state.tasks.get(self._task_key)
        if task is None or task.state in ("cancelled", "released", "forgotten"):
            raise RoundAborted("the round was cancelled by its caller")

    def check_connected(self, ranks: Collection[int]) -> None:
        """The system closes a dead process's sockets at once; a dead host's it does not."""
        for rank in ranks:
            comm = self.comms.get(rank)
            if comm is not None and comm.closed():
                raise PeerLost(f"worker {self.addresses[rank]} closed its connection")

    async def ping(self, address: str) -> str:
        """What a worker says of the round, from its event loop."""
        comm = await self.worker.rpc.connect(address)
        try:
            await comm.write(
                {"op": "skdtheano_ping", "reply": True, "round_id": self._round_id}
            )
            return str(await comm.read())
        except BaseException:
            comm.abort()
            raise
        finally:
            self.worker.rpc.reuse(address, comm)

    def call_loop(self, coroutine: Any) -> Any:
        loop: Any = self.worker.loop  # a tornado IOLoop over asyncio's
        return asyncio.run_coroutine_threadsafe(coroutine, loop.asyncio_loop)


class Vigil:
    """One wait for some ranks, in a ``with`` block: for as long as they are there."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._pings: dict[int, tuple[Any, float]] = {}
        self._silent_since = self._looked = time.monotonic()

    def __enter__(self) -> "Vigil":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pong, _ in self._pings.values():
            pong.cancel()

    def heard(self) -> None:
        """Something has come of those that are waited for."""
        self._silent_since = time.monotonic()

    def look(self, missing: Collection[int]) -> None:
        """Look after ranks, at most every half second.

        Raises
        ------
        RoundAborted
            If there is nothing to wait for: `PeerLost` names the worker that is gone.
        """
        watch, now = self._watch, time.monotonic()
        watch.mailbox.check()
        if now - self._looked < WATCH_SECONDS:
            return
        self._looked = now
        watch.check()
        watch.check_connected(missing)
        if now - self._silent_since > watch.deadline / 3:
            for rank in set(missing) - set(self._pings):
                self._pings[rank] = watch.call_loop(watch.ping(watch.addresses[rank])), now
        for rank, (pong, since) in list(self._pings.items()):
            # A slow worker answers from its event loop; a dead or frozen one does not.
            if pong.done() and pong.exception() is None:
                if pong.result() != ENDED:
                    del self._pings[rank]
                    self._silent_since = now
                # What it sent before it left may still be on its way.
                elif rank in missing and now - since > watch.deadline:
                    raise PeerLost(f"worker {watch.addresses[rank]} has left the round")
            elif rank in missing and pong.done():
                raise PeerLost(
                    f"worker {watch.addresses[rank]} cannot be reached ({pong.exception()!r})"
                )
            elif rank in missing and now - since > watch.deadline:
                raise PeerLost(
                    f"worker {watch.addresses[rank]} has sent nothing and answered no "
                    f"ping for {watch.deadline:g} s"
                )
