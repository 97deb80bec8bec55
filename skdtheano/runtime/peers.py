"""The dask workers of one round, as a `Collective`: who is there, and on which wires.

A round opens with a hello from all to all over dask's comms. In it goes what a rank of the
same host needs to read the other's memory; whether it could is said in a second one, so
that all know the same hosts. Over comms, too, goes all of the watching.
"""

import json
from types import TracebackType
from typing import Any

import numpy as np

from skdtheano.runtime.comms import CommsWire
from skdtheano.runtime.failures import NotFinite
from skdtheano.runtime.hosts import dissolved, grouped, host_of_process
from skdtheano.runtime.mailbox import ExchangePlugin
from skdtheano.runtime.shared import SharedWire
from skdtheano.runtime.sums import Sums
from skdtheano.runtime.watch import Watch
from skdtheano.runtime.wire import Wire


class Peers:
    """The dask workers of one round, seen from one of them.

    A `Collective`, used by a task's thread, in a ``with`` block that first waits for all
    to be there.

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
    shared_memory : bool
        Whether workers of one host may share memory; all ranks are to be told the same.

    Attributes
    ----------
    hosts : list of list of int
        The ranks by host; each alone where they share no memory.
    """

    def __init__(
        self,
        plugin: ExchangePlugin,
        round_id: str,
        rank: int,
        addresses: list[str],
        deadline: float,
        task_key: str,
        shared_memory: bool = True,
    ) -> None:
        self.rank = rank
        self.n_ranks = len(addresses)
        self.hosts = [[other] for other in range(self.n_ranks)]
        self._plugin, self._round_id = plugin, round_id
        self._may_share = shared_memory
        self._others = [other for other in range(self.n_ranks) if other != rank]
        mailbox = plugin.open(round_id)
        self._watch = Watch(plugin.worker, mailbox, addresses, deadline, task_key, round_id)
        self._comms = self._watch.comms
        self._comms_wire = CommsWire(self._watch, round_id, rank)
        self._shared_wire: SharedWire | None = None
        self._sums: Sums

    def __enter__(self) -> "Peers":
        try:
            self._meet()
        except BaseException as error:
            self._close(error)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close(error)

    def _meet(self) -> None:
        """Find out who is on which host; all ranks find the same."""
        host = host_of_process() if self._may_share and self._others else None
        card: dict[str, Any] = {"host": host}
        if host is not None:
            try:
                self._shared_wire = SharedWire(self._watch, self.rank)
                card |= self._shared_wire.card()
            except OSError:  # no descriptor is left: who has no host is alone
                card["host"] = None
        cards = {rank: _unpacked(text) for rank, text in self._told(_packed(card)).items()}
        cards[self.rank] = card
        hosts = grouped({rank: known["host"] for rank, known in cards.items()})
        if any(len(ranks) > 1 for ranks in hosts):
            mine = next(ranks for ranks in hosts if self.rank in ranks)
            neighbours = {rank: cards[rank] for rank in mine if rank != self.rank}
            could = self._shared_wire is None or self._shared_wire.connect(neighbours)
            told = self._told(np.array([could]))
            failed = {rank for rank, could_too in told.items() if not could_too[0]}
            hosts = dissolved(hosts, failed if could else {*failed, self.rank})
        self.hosts = hosts
        local: Wire = self._comms_wire
        if self._shared_wire is not None:
            if [self.rank] in hosts:
                self._shared_wire.close()
                self._shared_wire = None
            else:
                local = self._shared_wire
        self._sums = Sums(self.rank, hosts, local, self._comms_wire)

    def _told(self, vector: np.ndarray) -> dict[int, np.ndarray]:
        """Tell all others, and hear what each tells."""
        whole = dict.fromkeys(self._others, slice(None))
        parts = self._comms_wire.exchange((), vector, whole, whole)
        return {rank: theirs for rank, (_, theirs) in parts.items()}

    def _close(self, error: BaseException | None) -> None:
        self._plugin.close(self._round_id)
        if self._shared_wire is not None:
            self._shared_wire.close()
            self._shared_wire = None
        # What is not finite all ranks find by themselves, in the same sum.
        is_told = error is not None and not isinstance(error, NotFinite)
        reason = f"{type(error).__name__}: {error}" if is_told else None
        self._watch.call_loop(self._comms_wire.leave(reason))

    def n_vectors(self, n: int, dtype: np.dtype) -> int:
        return 1 if self._sums.share(n, dtype) != slice(0, n) or not self._others else 2

    def held(self, vector: np.ndarray) -> np.ndarray:
        held = self.room(len(vector), vector.dtype)
        held[...] = vector
        return held

    def room(self, n: int, dtype: np.dtype) -> np.ndarray:
        return self._sums.room(n, dtype)

    def share(self, n: int, dtype: np.dtype) -> slice:
        return self._sums.share(n, dtype)

    def counts(self, n: int, dtype: np.dtype) -> bool:
        return self._sums.counts(n, dtype)

    def sum(
        self, scalars: tuple[float, ...], vector: np.ndarray
    ) -> tuple[tuple[float, ...], np.ndarray]:
        return self._sums.sum(scalars, vector)

    def complete(self, scalars: tuple[float, ...], vector: np.ndarray) -> tuple[float, ...]:
        return self._sums.complete(scalars, vector)


def _packed(card: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(json.dumps(card).encode(), np.uint8)


def _unpacked(text: np.ndarray) -> dict[str, Any]:
    card: dict[str, Any] = json.loads(text.tobytes())
    return card
