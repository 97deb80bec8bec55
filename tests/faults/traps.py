"""What goes wrong in a worker when it comes to a place of a fit."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np
from distributed import Worker

from skdtheano.runtime import tasks

#: The topic on which a worker tells that it has come to the place.
TOPIC = "skdtheano-trap"

#: Set, it ends the fault "held" on this worker.
_LET_GO = Event()

#: Called where this worker loads rows that went through `loaded`.
_WHILE_LOADING: list[Callable[[Any], Any]] = []

_WRAPPED = ("run_epoch", "score_sums", "loss_sums")
_ORIGINAL = {name: getattr(tasks, name) for name in _WRAPPED}


@dataclass(frozen=True)
class Place:
    """A point of a fit on one worker.

    Attributes
    ----------
    function : {"load", "run_epoch", "score_sums", "loss_sums"}
        `loaded`, or one of `skdtheano.runtime.tasks`.
    time : int
        The epoch, or which call of the function; from 1.
    minibatch : int
        Of the epoch, from 1.
    """

    function: str
    time: int
    minibatch: int = 0


def set_trap(place: Place, fault: str, dask_worker: Worker) -> None:
    """Let a fault happen once, where this worker comes to a place."""
    clear_trap()
    _LET_GO.clear()
    calls = 0

    def run_epoch(*arguments: Any) -> Any:
        *before, settings, peers = arguments
        if settings.epoch != place.time:
            return original(*arguments)
        return original(*before, settings, _Trapped(peers, place.minibatch, spring))

    def called(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == place.time:
            spring(None)
        return original(*arguments)

    def spring(peers: Any) -> bool:
        clear_trap()
        dask_worker.log_event(TOPIC, {"address": dask_worker.address, "at": time.time()})
        happens: Callable[[Worker, Any], Any] = FAULTS[fault]
        return happens(dask_worker, peers) is not None

    if place.function == "load":
        _WHILE_LOADING.append(spring)
        return
    original = _ORIGINAL[place.function]
    setattr(tasks, place.function, run_epoch if place.function == "run_epoch" else called)


def clear_trap() -> None:
    _WHILE_LOADING.clear()
    for name, function in _ORIGINAL.items():
        setattr(tasks, name, function)


def loaded(rows: np.ndarray) -> np.ndarray:
    """A user's function that gives a block of rows."""
    if _WHILE_LOADING:
        _WHILE_LOADING[0](None)
    return rows


class _Trapped:
    """Peers, with a trap at one of their sums."""

    def __init__(self, peers: Any, at: int, spring: Callable[[Any], bool]) -> None:
        self.peers, self.at, self.spring = peers, at, spring
        self.n_sums = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.peers, name)

    def sum(self, scalars: tuple[float, ...], vector: np.ndarray) -> Any:
        self.n_sums += 1
        if self.n_sums == self.at and self.spring(self.peers):
            vector[0] = np.nan
            # A rank looks at its gradient before.
            scalars = (*scalars[:2], 1.0, *scalars[3:])
        return self.peers.sum(scalars, vector)


def _kill(worker: Worker, peers: Any) -> None:
    time.sleep(0.1)  # the event that was logged is to leave
    os.kill(os.getpid(), signal.SIGKILL)


def _freeze(worker: Worker, peers: Any) -> None:
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGSTOP)


def _cut(worker: Worker, peers: Any) -> None:
    """Abort the connections to the peers or, where there are none, to the scheduler."""
    time.sleep(0.1)  # until the event has left, and the peers are connected
    comms = [] if peers is None else list(peers._comms.values())
    for comm in comms or [worker.batched_stream.comm]:
        worker.loop.add_callback(comm.abort)


def _unplug(worker: Worker, peers: Any) -> None:
    """Take the only link of this worker's host down: nobody is told that it is gone."""
    time.sleep(0.1)
    subprocess.run(["ip", "link", "set", "eth0", "down"], check=True)


def _slow(worker: Worker, peers: Any) -> None:
    time.sleep(6)  # longer than the deadline: it is slow, and not lost


def _raise(worker: Worker, peers: Any) -> None:
    raise ZeroDivisionError("a fault of the tests")


def _spoil(worker: Worker, peers: Any) -> bool:
    return True


def _only_tell(worker: Worker, peers: Any) -> None:
    """What happens is up to who was told; the place is not left before it has begun."""
    time.sleep(0.5)


def _hold(worker: Worker, peers: Any) -> None:
    _LET_GO.wait(120)


def let_go() -> None:
    """Let what is held on this worker go on."""
    _LET_GO.set()


FAULTS: dict[str, Callable[[Worker, Any], Any]] = {
    "SIGKILL": _kill,
    "SIGSTOP": _freeze,
    "closed comm": _cut,
    "unplugged": _unplug,
    "slow worker": _slow,
    "held": _hold,
    "exception": _raise,
    "not finite": _spoil,
    "nanny restart": _only_tell,
    "retire": _only_tell,
    "join": _only_tell,
}
