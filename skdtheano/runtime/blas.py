"""How many threads BLAS takes while a model is trained.

A product of two small matrices takes longer on two threads than on one, many times longer when
the other core is busy. And dask starts its workers with one BLAS thread, also those that are
given several cores.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController

from skdtheano.runtime.parameters import Layout

#: Floating-point operations of a product from which another thread pays: about 0.2 ms.
_FLOPS_PER_THREAD = 2e7

_lock = threading.Lock()
_asked: list[int] = []
_before: list[int] = []

#: Looks through the libraries of the process, 12 ms for its 275: once, with the imports, as
#: NumPy's BLAS has been loaded by then.
_LIBRARIES: list[Any] = ThreadpoolController().select(user_api="blas").lib_controllers

#: With OpenMP each thread has a number of its own; else there is one for the process.
_BY_THREAD = [
    library for library in _LIBRARIES if getattr(library, "threading_layer", "") == "openmp"
]
_BY_PROCESS = [library for library in _LIBRARIES if library not in _BY_THREAD]


def threads_of_process() -> int:
    """Threads that BLAS takes where nobody asks `blas_threads` for fewer."""
    with _lock:
        shared = _before if _asked else [library.num_threads for library in _BY_PROCESS]
        return max([*shared, *(library.num_threads for library in _BY_THREAD)], default=1)


def threads_that_pay(layout: Layout, n_rows: int, n_available: int) -> int:
    """BLAS threads for minibatches of `n_rows`, of those that there are."""
    widest = max(a * b for a, b in zip(layout.units, layout.units[1:], strict=False))
    return max(1, min(n_available, int(2 * n_rows * widest / _FLOPS_PER_THREAD)))


@contextmanager
def blas_threads(n: int) -> Iterator[None]:
    """Let BLAS take `n` threads; the fewest that any thread of this process asks for.

    The last to leave puts back what the first one found.
    """
    own = [library.num_threads for library in _BY_THREAD]
    _set_threads(_BY_THREAD, [n] * len(own))
    with _lock:
        if not _asked:
            _before[:] = [library.num_threads for library in _BY_PROCESS]
        _asked.append(n)
        _set_threads(_BY_PROCESS, [min(_asked)] * len(_BY_PROCESS))
    try:
        yield
    finally:
        with _lock:
            _asked.remove(n)
            numbers = [min(_asked)] * len(_BY_PROCESS) if _asked else _before
            _set_threads(_BY_PROCESS, numbers)
        _set_threads(_BY_THREAD, own)


def _set_threads(libraries: Sequence[Any], numbers: Sequence[int]) -> None:
    # What threadpoolctl's own limits do takes 30 us, since they describe each library too.
    for library, number in zip(libraries, numbers, strict=True):
        if library.num_threads != number:
            # Since 3.7 it lets one thread alone set the number, and ignores all others: but
            # here whoever leaves last has to, and nobody sets it without the lock.
            getattr(library, "_real_set_num_threads", library.set_num_threads)(number)
