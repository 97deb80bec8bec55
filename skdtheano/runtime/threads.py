"""Ranks as threads of one process, and what they send: counted, and carried nowhere.

Tests run the sums of many ranks and hosts over it, and a model of how a fit scales takes
its messages and bytes from it.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from skdtheano.runtime.mailbox import Part, PeerLost, RoundAborted
from skdtheano.runtime.sums import Sums

Result = TypeVar("Result")

#: A part stays there for so many exchanges; see `skdtheano.runtime.shared`.
_KEPT = 4


@dataclass
class Sent:
    """What one rank has given others.

    Attributes
    ----------
    messages : int
    n_bytes : int
        Of vectors.
    waits : int
        Exchanges in which the rank waited for others: latencies in a row.
    """

    messages: int = 0
    n_bytes: int = 0
    waits: int = 0


class Board:
    """Where the ranks of one group leave what others read."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.parts: dict[tuple[int, int], Part] = {}
        self.failure: BaseException | None = None

    def fail(self, failure: BaseException) -> None:
        with self.changed:
            self.failure = self.failure or failure
            self.changed.notify_all()


class ThreadsWire:
    """A `Wire` over a board: parts are views of the sender's vector, nothing is copied.

    Parameters
    ----------
    board : Board
    rank : int
    pays_bytes : int
        A vector of more bytes is exchanged by slices.
    patience : float
        Seconds for which another rank may leave nothing.
    """

    def __init__(
        self, board: Board, rank: int, pays_bytes: int = 0, patience: float = 60.0
    ) -> None:
        self.sent = Sent()
        self._board, self._rank = board, rank
        self._pays_bytes, self._patience = pays_bytes, patience
        self._step = 0

    def room(self, n: int, dtype: np.dtype) -> np.ndarray:
        return np.zeros(n, dtype)

    def slices_pay(self, n_bytes: int, n_ranks: int) -> bool:
        return n_bytes > self._pays_bytes

    def exchange(
        self,
        scalars: tuple[float, ...],
        vector: np.ndarray,
        outgoing: Mapping[int, slice],
        incoming: Mapping[int, slice],
    ) -> dict[int, Part]:
        step, self._step = self._step, self._step + 1
        self.sent.messages += len(outgoing)
        self.sent.n_bytes += sum(vector[part].nbytes for part in outgoing.values())
        self.sent.waits += bool(incoming)
        board = self._board
        with board.changed:
            board.parts[step, self._rank] = scalars, vector
            board.parts.pop((step - _KEPT, self._rank), None)
            board.changed.notify_all()
            for rank in incoming:
                self._wait_for(step, rank)
            there = {rank: board.parts[step, rank] for rank in incoming}
        received = {}
        for rank, part in incoming.items():
            theirs, whole = there[rank]
            view = whole[part]
            view.flags.writeable = False
            received[rank] = theirs, view
        return received

    def _wait_for(self, step: int, rank: int) -> None:
        board = self._board

        def is_over() -> bool:
            return board.failure is not None or (step, rank) in board.parts

        board.changed.wait_for(is_over, self._patience)
        if (step, rank) in board.parts:
            return
        if board.failure is not None:
            raise RoundAborted(f"a rank failed: {board.failure!r}")
        raise PeerLost(f"rank {rank} left nothing for {self._patience:g} s")


@dataclass
class Seated:
    """A rank among threads: its sums, and what it sent on its host and from host to host."""

    sums: Sums
    local: Sent
    between: Sent


def run_ranks(
    hosts: Sequence[Sequence[int]],
    act: Callable[[Seated], Result],
    local_pays: int = 0,
    between_pays: int = 0,
) -> list[Result]:
    """What `act` returns on each rank, each a thread.

    Parameters
    ----------
    hosts : sequence of sequence of int
        The ranks of each.
    act : callable
        Of a `Seated`.
    local_pays, between_pays : int
        Bytes above which vectors are exchanged by slices.
    """
    boards = [Board() for _ in hosts]
    between = Board()

    def run(rank: int, board: Board) -> Result:
        wires = ThreadsWire(board, rank, local_pays), ThreadsWire(between, rank, between_pays)
        seated = Seated(Sums(rank, hosts, *wires), wires[0].sent, wires[1].sent)
        try:
            return act(seated)
        except BaseException as error:
            for one in (board, between):
                one.fail(error)
            raise

    ranks = sorted(
        ((rank, boards[i]) for i, ranks in enumerate(hosts) for rank in ranks),
        key=lambda seat: seat[0],
    )
    with ThreadPoolExecutor(len(ranks)) as pool:
        running: list[Any] = [pool.submit(run, rank, board) for rank, board in ranks]
        return [one.result() for one in running]
