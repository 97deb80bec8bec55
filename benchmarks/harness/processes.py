"""Processes that hold what is measured, each with its own threads, memory and caches.

A process is started once, told over a pipe what to do, and stopped in between, with those that
it has started: so the measurements of many can be interleaved without one disturbing another.
A cluster that waits takes a tenth of a core.
"""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

#: What NumPy's BLAS, MKL, OpenMP and numba read, once, when they are loaded.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


#: Heartbeats and clocks of a cluster that was stopped are late then.
_SETTLED_SECONDS = 0.5


def thread_environment(threads: int) -> dict[str, str]:
    return dict.fromkeys(THREAD_VARIABLES, str(threads))


class Host(NamedTuple):
    """What runs in one process, or in several at once.

    ``factory(rank, size, folder)`` is called in each; folder is a scratch folder of all. What
    it makes has a method ``close``.
    """

    factory: Callable[[int, int, str], Any]
    threads: int = 1
    processes: int = 1


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(pipe: Connection, host: Host, rank: int, folder: str) -> None:
    os.setsid()  # a group of its own, with all processes that it starts
    try:
        held = host.factory(rank, host.processes, folder)
    except BaseException:
        pipe.send((False, traceback.format_exc()))
        return
    try:
        while True:
            method, arguments = pipe.recv()
            pipe.send((True, getattr(held, method)(*arguments)))
    except (EOFError, KeyboardInterrupt):  # the parent is done, or gone
        held.close()
    except BaseException:
        pipe.send((False, traceback.format_exc()))


class Running:
    """A host's processes, from `with` to its end."""

    def __init__(self, host: Host, folder: str) -> None:
        self.host, self.folder = host, folder

    def __enter__(self) -> "Running":
        spawn = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        with _environment(thread_environment(self.host.threads)):
            for rank in range(self.host.processes):
                pipe, theirs = spawn.Pipe()
                # Not a daemon: a host may have processes of its own, as a cluster has.
                process = spawn.Process(
                    target=_serve, args=(theirs, self.host, rank, self.folder)
                )
                process.start()
                theirs.close()
                self._pipes.append(pipe)
                self._processes.append(process)
        return self

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let the processes run for a ``with`` block; they are stopped after it."""
        self._signal(signal.SIGCONT)
        time.sleep(_SETTLED_SECONDS)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            assert process.pid is not None
            with suppress(ProcessLookupError):  # it has no group yet, or any more
                os.killpg(process.pid, number)

    def __exit__(self, *error: object) -> None:
        self._signal(signal.SIGCONT)
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(20)
            if process.is_alive():
                process.terminate()

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method in all processes at once, and wait for what each returns."""
        for pipe in self._pipes:
            pipe.send((method, arguments))
        return [self._answer(pipe) for pipe in self._pipes]

    def _answer(self, pipe: Connection) -> Any:
        what = f"{self.host.factory.__name__}, a process of this benchmark,"
        try:
            done, answer = pipe.recv()
        except EOFError:
            raise RuntimeError(f"{what} died; its last words may be above.") from None
        if not done:
            raise RuntimeError(f"{what} failed:\n{answer}")
        return answer
