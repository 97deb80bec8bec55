"""Memory of one process that others of its host can read.

A segment is an anonymous file (``memfd_create``, so Linux): the system frees it with the
last process that has it open, and one that is killed leaves nothing behind. It begins with
a header: a random token, by which a reader knows that it is the right one, and words that
only the owner writes, each on a cache line of its own. *Rooms* for vectors follow.
"""

import mmap
import os
import secrets
import stat
import threading
from typing import Any

import numpy as np

_TOKEN_BYTES = 32
_LINE = 64

#: Bytes of the header: the token, the words, and the scalars of the last few steps.
_HEADER_BYTES = mmap.PAGESIZE
_COUNTER, _AWAITED = (i * _LINE // 8 for i in (1, 2))
_SCALARS = 4 * _LINE // 8

#: Scalars of this many steps are there at a time; see `skdtheano.runtime.shared`.
KEPT_STEPS = 4
MAX_SCALARS = 31

#: A chunk of a segment has room for so many vectors like the first one in it: the parameters,
#: one or two gradients and an optimizer's slots. Memory is taken only where something is
#: written, but each chunk takes two descriptors from each of its readers.
_VECTORS_PER_CHUNK = 8

_lock = threading.Lock()


def fence() -> None:
    """Let what was written before be seen by other processors before what comes after.

    x86 shows writes in their order, ARM64 in any. Nothing moves up across taking a lock, or
    down across giving it back; into the time that it is held both may move. So it is taken
    twice: what was before stays before the first return, what comes after the second taking.
    """
    for _ in range(2):
        with _lock:
            pass


class Segment:
    """What this process shares; `descriptor` and `token` are what a reader needs."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("skdtheano")
        self.token = secrets.token_bytes(_TOKEN_BYTES)
        os.ftruncate(self.descriptor, _HEADER_BYTES)
        self._n_bytes = _HEADER_BYTES
        header = mmap.mmap(self.descriptor, _HEADER_BYTES)
        header[:_TOKEN_BYTES] = self.token
        self._words = memoryview(header).cast("Q")
        self._numbers = memoryview(header).cast("d")
        self._chunk: mmap.mmap | None = None
        self._chunk_at = self._chunk_used = 0

    def post(self, step: int, scalars: tuple[float, ...]) -> None:
        """Show that step number `step`, from 1, is there, with what was written for it."""
        if len(scalars) > MAX_SCALARS:
            raise ValueError(f"{len(scalars)} scalars; a step has at most {MAX_SCALARS}.")
        start = _SCALARS + (step % KEPT_STEPS) * (MAX_SCALARS + 1)
        self._words[start] = len(scalars)
        for i, value in enumerate(scalars, start + 1):
            self._numbers[i] = value
        fence()
        self._words[_COUNTER] = step
        fence()

    def await_rank(self, rank: int | None) -> None:
        """Tell for whose post this process sleeps; None when it is awake."""
        self._words[_AWAITED] = 0 if rank is None else rank + 1
        fence()

    def room(self, n: int, dtype: np.dtype) -> tuple[np.ndarray, "Place"]:
        """A vector of zeros, and where readers find it."""
        n_bytes = -(-n * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
        n_bytes = max(n_bytes, mmap.PAGESIZE)
        if self._chunk is None or self._chunk_used + n_bytes > len(self._chunk):
            length = n_bytes * _VECTORS_PER_CHUNK
            os.ftruncate(self.descriptor, self._n_bytes + length)
            self._chunk = mmap.mmap(self.descriptor, length, offset=self._n_bytes)
            self._chunk_at, self._chunk_used = self._n_bytes, 0
            self._n_bytes += length
        offset, self._chunk_used = self._chunk_used, self._chunk_used + n_bytes
        place = Place(self._chunk_at, len(self._chunk), offset, n, dtype)
        return place.in_chunk(self._chunk), place

    def close(self) -> None:
        """Give the descriptor back; the memory goes with the last view of it."""
        os.close(self.descriptor)
        self._chunk = None


class Place:
    """Where a vector lies in a segment: the same in those of all ranks."""

    def __init__(self, chunk: int, length: int, offset: int, n: int, dtype: np.dtype) -> None:
        self.chunk, self.length = chunk, length
        self.offset, self.n, self.dtype = offset, n, dtype

    def in_chunk(self, chunk: mmap.mmap) -> np.ndarray:
        return np.frombuffer(chunk, self.dtype, self.n, self.offset)


class Reading:
    """The segment of another process, which this one cannot write to.

    Parameters
    ----------
    pid, descriptor : int
        Of the owner, who must be of the same user.
    token : bytes

    Raises
    ------
    OSError
        If it cannot be opened.
    ValueError
        If it is another file: numbers of processes mean another one in another container.
    """

    def __init__(self, pid: int, descriptor: int, token: bytes) -> None:
        self._descriptor = open_of(pid, descriptor, os.O_RDONLY, stat.S_ISREG)
        try:
            header = self._map(0, _HEADER_BYTES)
            if not secrets.compare_digest(header[:_TOKEN_BYTES], token):
                raise ValueError(f"/proc/{pid}/fd/{descriptor} is of somebody else")
        except BaseException:
            os.close(self._descriptor)
            raise
        self._words = memoryview(header).cast("Q")
        self._numbers = memoryview(header).cast("d")
        self._chunks: dict[int, mmap.mmap] = {}
        self._views: dict[tuple[int, int], np.ndarray] = {}

    def _map(self, start: int, length: int) -> mmap.mmap:
        return mmap.mmap(self._descriptor, length, offset=start, access=mmap.ACCESS_READ)

    def step(self) -> int:
        """The last step that the owner has posted."""
        return self._words[_COUNTER]

    def awaits(self, rank: int) -> bool:
        """Whether the owner sleeps until `rank` posts."""
        return self._words[_AWAITED] == rank + 1

    def scalars(self, step: int) -> tuple[float, ...]:
        fence()
        start = _SCALARS + (step % KEPT_STEPS) * (MAX_SCALARS + 1)
        n = self._words[start]
        return tuple(self._numbers[start + 1 : start + 1 + n])

    def vector(self, place: Place) -> np.ndarray:
        """What the owner has at a place, once it has posted a step since it made the room."""
        view = self._views.get((place.chunk, place.offset))
        if view is None:
            if place.chunk not in self._chunks:
                self._chunks[place.chunk] = self._map(place.chunk, place.length)
            view = place.in_chunk(self._chunks[place.chunk])
            self._views[place.chunk, place.offset] = view
        return view

    def close(self) -> None:
        os.close(self._descriptor)
        self._chunks, self._views = {}, {}


def open_of(pid: int, descriptor: int, flags: int, is_expected: Any) -> int:
    """A descriptor of this process for what is open in another one of the same user."""
    # Were it a device or a pipe of somebody else, opening it could wait.
    opened = os.open(f"/proc/{pid}/fd/{descriptor}", flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if not is_expected(os.fstat(opened).st_mode):
        os.close(opened)
        raise ValueError(f"/proc/{pid}/fd/{descriptor} is of somebody else")
    return opened
