"""Parts as messages from dask worker to dask worker, over dask's own comms.

So they go over TLS where the cluster uses it, and through no port of our own.
"""

import asyncio
from collections.abc import Coroutine, Generator, Mapping
from functools import partial
from types import coroutine
from typing import Any

import numpy as np
from distributed.protocol.serialize import to_serialize

from skdtheano.runtime.mailbox import Part, PeerLost
from skdtheano.runtime.watch import WATCH_SECONDS, Vigil, Watch

#: Above this many bytes saved on the wire of each rank, a sum by owned slices, which waits
#: for two messages in a row, beats one in which every rank sends all to all: a message
#: costs about 1 ms, and 1 MB each way about 2 ms (measured on two processes of one host).
_SLICES_PAY_BYTES = 2**19

#: A vector of at most so many bytes goes as they are: as an array of 1 kB it takes dask 43 us
#: to pack and unpack, and so 14. Longer ones are copied too often, each time to new pages.
_BYTES_AS_THEY_ARE = 2**16


class CommsWire:
    """A `Wire` between all ranks of a round.

    Parameters
    ----------
    watch : Watch
    round_id : str
    rank : int
    """

    def __init__(self, watch: Watch, round_id: str, rank: int) -> None:
        self._watch = watch
        self._worker, self._mailbox = watch.worker, watch.mailbox
        self._round_id, self._rank = round_id, rank
        self._locks: dict[int, asyncio.Lock] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._step = 0

    def room(self, n: int, dtype: np.dtype) -> np.ndarray:
        return np.zeros(n, dtype)

    def slices_pay(self, n_bytes: int, n_ranks: int) -> bool:
        return n_bytes * (n_ranks - 1) * (n_ranks - 2) // n_ranks > _SLICES_PAY_BYTES

    def exchange(
        self,
        scalars: tuple[float, ...],
        vector: np.ndarray,
        outgoing: Mapping[int, slice],
        incoming: Mapping[int, slice],
    ) -> dict[int, Part]:
        self._watch.check()
        step, self._step = self._step, self._step + 1
        if outgoing:
            parts = {rank: (scalars, vector[part]) for rank, part in outgoing.items()}
            loop: Any = self._worker.loop  # a tornado IOLoop over asyncio's
            loop.asyncio_loop.call_soon_threadsafe(self._send, step, parts)
        return self._receive(step, set(incoming))

    def _receive(self, step: int, missing: set[int]) -> dict[int, Part]:
        """Wait for parts for as long as their senders and the caller are there."""
        received: dict[int, Part] = {}
        with Vigil(self._watch) as vigil:
            while missing:
                parts = self._mailbox.take(step, missing, timeout=WATCH_SECONDS)
                if parts:
                    received.update(parts)
                    missing -= set(parts)
                    vigil.heard()
                else:
                    vigil.look(missing)
        return received

    def _send(self, step: int, parts: dict[int, Part]) -> None:
        for rank, part in parts.items():
            writing = self._send_one(step, rank, part)
            is_open = rank in self._watch.comms  # a comm must be opened in a task
            sending = begun(writing) if is_open else asyncio.create_task(writing)
            if sending is not None:
                self._sending.add(sending)
                sending.add_done_callback(self._sending.discard)

    async def _send_one(self, step: int, rank: int, part: Part) -> None:
        scalars, vector = part
        is_small = vector.nbytes <= _BYTES_AS_THEY_ARE
        comms, address = self._watch.comms, self._watch.addresses[rank]
        try:
            # Messages to one worker leave in the order of the steps.
            async with self._locks.setdefault(rank, asyncio.Lock()):
                if rank not in comms:
                    comms[rank] = await self._worker.rpc.connect(address)
                await comms[rank].write(
                    {
                        "op": "skdtheano_part",
                        "reply": False,
                        "round_id": self._round_id,
                        "step": step,
                        "source": self._rank,
                        "scalars": list(scalars),
                        "vector": vector.data.cast("B") if is_small else to_serialize(vector),
                        "dtype": vector.dtype.str,
                    }
                )
        except Exception as error:  # whatever it is, the round's thread must hear of it
            self._mailbox.fail(PeerLost(f"worker {address} cannot be reached ({error!r})"))

    async def leave(self, reason: str | None) -> None:
        """Tell the others why, if the round failed here, and give the comms back."""
        watch = self._watch
        if self._sending:  # a comm is given back when its last part has left
            await asyncio.wait(set(self._sending), timeout=watch.deadline)
        unfinished = [sending for sending in self._sending if not sending.done()]
        for sending in unfinished:
            sending.cancel()
        for rank, comm in list(watch.comms.items()):
            try:
                if unfinished:  # half a message may have left: nobody is to read on
                    comm.abort()
                elif reason is not None:
                    text = f"worker {watch.addresses[self._rank]} failed: {reason}"
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
            self._worker.rpc.reuse(watch.addresses[rank], comm)


def begun(work: Coroutine[Any, Any, None]) -> "asyncio.Task[None] | None":
    """Run `work` until it waits, at once; a task for the rest of it, if there is any.

    As asyncio's eager tasks of Python 3.12, but that it begins in no task at all. A comm
    seldom waits to write, and a task would begin only after the event loop has given the
    interpreter to the round's thread and has it back: 100 us between two busy processors.
    """
    try:
        awaited = work.send(None)
    except StopIteration:
        return None
    return asyncio.create_task(_rest(work, awaited))


async def _rest(work: Coroutine[Any, Any, None], awaited: Any) -> None:
    await _steps(work, awaited)


@coroutine
def _steps(work: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    """Pass on what `work` waits for, and what its task is told meanwhile."""
    while True:
        try:
            yield awaited
        except BaseException as error:  # the task was cancelled
            step = partial(work.throw, error)
        else:
            step = partial(work.send, None)
        try:
            awaited = step()
        except StopIteration:
            return
