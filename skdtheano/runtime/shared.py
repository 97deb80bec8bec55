"""Parts in memory that the ranks of one host share.

Nothing is sent: each rank writes to its own segment, shows by a counter that it has, and
reads those of the others. A rank that waits looks at the counters for a moment, then
sleeps on a pipe that whoever it waits for rings: it takes no processor from the one that
it waits for, and its event loop has the interpreter.
"""

import os
import select
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from skdtheano.runtime.mailbox import Part
from skdtheano.runtime.segments import Place, Reading, Segment, open_of
from skdtheano.runtime.watch import Vigil, Watch

#: Seconds for which a rank looks at counters before it sleeps, if each rank has a processor.
_SPIN_SECONDS = 400e-6

#: Seconds after which a sleeping rank looks up by itself: an abort comes by another way.
_SLEEP_SECONDS = 0.1

#: Above this many bytes ranks sum a slice each, and copy what the others have updated.
_SLICES_PAY_BYTES = 2**18


class SharedWire:
    """A `Wire` between the ranks of one host.

    An exchange `n` overwrites the scalars of `n - 4`, which all have read by then: in any
    four exchanges in a row there is one that a rank leaves only when all have begun it, or
    when the leader has, for which the leader had waited for all.

    Parameters
    ----------
    watch : Watch
    rank : int
    """

    def __init__(self, watch: Watch, rank: int) -> None:
        self._watch, self._rank = watch, rank
        self._segment = Segment()
        try:
            self._bell, self._button = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # too many are open
            self._segment.close()
            raise
        self._readings: dict[int, Reading] = {}
        self._buttons: dict[int, int] = {}
        self._places: dict[int, Place] = {}  # of rooms, by their address
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self._spin = _SPIN_SECONDS
        self._step = 0

    def card(self) -> dict[str, Any]:
        """What others need to know to `connect`."""
        return {
            "pid": os.getpid(),
            "segment": self._segment.descriptor,
            "token": self._segment.token.hex(),
            "button": self._button,
        }

    def connect(self, cards: Mapping[int, dict[str, Any]]) -> bool:
        """Open the segments of other ranks; whether all of them could be."""
        try:
            for rank, card in cards.items():
                pid, token = card["pid"], bytes.fromhex(card["token"])
                self._readings[rank] = Reading(pid, card["segment"], token)
                self._buttons[rank] = open_of(pid, card["button"], os.O_WRONLY, stat.S_ISFIFO)
        except (OSError, ValueError):
            return False
        pids = {os.getpid(), *(card["pid"] for card in cards.values())}
        n_ranks = len(cards) + 1
        if n_ranks > len(os.sched_getaffinity(0)) or len(pids) < n_ranks:
            self._spin = 0.0  # it would only keep from work whom it waits for
        return True

    def room(self, n: int, dtype: np.dtype) -> np.ndarray:
        vector, place = self._segment.room(n, np.dtype(dtype))
        self._places[_address(vector)] = place
        return vector

    def slices_pay(self, n_bytes: int, n_ranks: int) -> bool:
        return n_bytes > _SLICES_PAY_BYTES

    def exchange(
        self,
        scalars: tuple[float, ...],
        vector: np.ndarray,
        outgoing: Mapping[int, slice],
        incoming: Mapping[int, slice],
    ) -> dict[int, Part]:
        self._watch.check()
        self._step += 1
        self._segment.post(self._step, scalars)
        for rank in self._readings:
            # Who has nothing to get of this rank may wait for it later.
            if self._readings[rank].awaits(self._rank):
                self._ring(rank)
        self._wait(incoming)
        place = self._places.get(_address(vector))
        if incoming and place is None:
            raise ValueError("The vector is not from `room`, so no other rank can find it.")
        received = {}
        for rank, part in incoming.items():
            assert place is not None
            reading = self._readings[rank]
            received[rank] = reading.scalars(self._step), reading.vector(place)[part]
        return received

    def _wait(self, incoming: Mapping[int, slice]) -> None:
        step = self._step
        missing = [rank for rank in incoming if self._readings[rank].step() < step]
        if not missing:
            return
        end = time.perf_counter() + self._spin
        while missing and time.perf_counter() < end:
            missing = [rank for rank in missing if self._readings[rank].step() < step]
        if not missing:
            return
        with Vigil(self._watch) as vigil:
            for i, rank in enumerate(missing):
                self._sleep_until(rank, missing[i:], vigil)

    def _sleep_until(self, rank: int, missing: list[int], vigil: Vigil) -> None:
        reading, step = self._readings[rank], self._step
        self._segment.await_rank(rank)
        try:
            # Looked at after the owner can see that it is awaited: either it rings, or
            # what it has posted is seen here.
            while reading.step() < step:
                if self._poll.poll(1e3 * _SLEEP_SECONDS):
                    self._drain()
                else:
                    vigil.look([r for r in missing if self._readings[r].step() < step])
        finally:
            self._segment.await_rank(None)
        vigil.heard()

    def _ring(self, rank: int) -> None:
        # It has been rung often enough, or is gone, which the watch will find.
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self._buttons[rank], b"!")

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._bell, 4096)

    def close(self) -> None:
        """Give all descriptors back; memory goes with the last view of it."""
        for reading in self._readings.values():
            reading.close()
        for descriptor in (*self._buttons.values(), self._bell, self._button):
            os.close(descriptor)
        self._segment.close()
        self._readings, self._buttons, self._places = {}, {}, {}


def _address(vector: np.ndarray) -> int:
    address: int = vector.__array_interface__["data"][0]
    return address
