"""How many threads BLAS takes while a model is trained.

A product of two small matrices takes longer on two threads than on one, many times longer when
the other core is busy. And dask starts its workers with one BLAS thread, also those that are
given several cores.
"""

import threading
from collections.abc import Iterator
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


def threads_of_process() -> int:
    """Threads that BLAS takes by itself."""
    return max((library.num_threads for library in _LIBRARIES), default=1)


def threads_that_pay(layout: Layout, n_rows: int, n_available: int) -> int:
    """BLAS threads for minibatches of `n_rows`, of those that there are."""
    widest = max(a * b for a, b in zip(layout.units, layout.units[1:], strict=False))
    return max(1, min(n_available, int(2 * n_rows * widest / _FLOPS_PER_THREAD)))


@contextmanager
def blas_threads(n: int) -> Iterator[None]:
    """Let BLAS take `n` threads; the fewest that any thread of this process asks for.

    The number is one for the process: the last to leave puts back what the first one found.
    """
    with _lock:
        if not _asked:
            _before[:] = [library.num_threads for library in _LIBRARIES]
        _asked.append(n)
        _set_threads([min(_asked)] * len(_LIBRARIES))
    try:
        yield
    finally:
        with _lock:
            _asked.remove(n)
            _set_threads([min(_asked)] * len(_LIBRARIES) if _asked else _before)


def _set_threads(numbers: list[int]) -> None:
    # What threadpoolctl's own limits do takes 30 us, since they describe each library too.
    for library, number in zip(_LIBRARIES, numbers, strict=True):
        if library.num_threads != number:
            library.set_num_threads(number)
