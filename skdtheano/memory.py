"""Memory that is used again: for one array after another, by one thread after another."""

import math
from functools import cache

import numpy as np

#: Bytes of an array's beginning: AVX-512 loads that cross a cache line take twice as long.
_ALIGNMENT = 64


class Memory:
    """Slots, each for one value at a time."""

    def __init__(self) -> None:
        self._slots: list[np.ndarray] = []
        #: Goes up when a slot was replaced by a larger one: what has the old one, keeps it.
        self.generation = 0

    def __len__(self) -> int:
        return len(self._slots)

    def size_of(self, slot: int) -> int:
        """Bytes of a slot."""
        return len(self._slots[slot])

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return sum(map(len, self._slots))

    def array(self, slot: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        return self._slots[slot][: nbytes_of(dtype, shape)].view(dtype).reshape(shape)

    def make_room(self, slot: int, nbytes: int) -> None:
        """Make a slot, or replace one that is too small."""
        if slot == len(self._slots):
            self._slots.append(_aligned(nbytes))
        elif self.size_of(slot) < nbytes:
            # An eighth more: other batches may have a few more rows.
            self._slots[slot] = _aligned(nbytes + nbytes // 8)
            self.generation += 1


def _aligned(nbytes: int) -> np.ndarray:
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + nbytes]


def nbytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of an array."""
    return math.prod(shape) * dtype_of(dtype).itemsize


@cache
def dtype_of(name: str) -> np.dtype:
    """A dtype by its name; NumPy takes a microsecond for it."""
    return np.dtype(name)
