"""How the ranks of a round add up: on each host first, then from host to host.

Nothing here knows what carries the parts. A *host* is a group of ranks on one wire, the
first of which, its leader, meets those of the other hosts on another.
"""

from collections.abc import Sequence

import numpy as np

from skdtheano.runtime.wire import Wire, added, slices_of


class Sums:
    """A `Collective` over wires.

    The ranks of a host are added in their order, then the hosts in the order of their
    leaders: whoever adds, the bits are the same.

    Parameters
    ----------
    rank : int
    hosts : sequence of sequence of int
        The ranks of each, ascending; the hosts by their first.
    local : Wire
        Between the ranks of this rank's host.
    between : Wire
        Between the leaders.
    """

    def __init__(
        self, rank: int, hosts: Sequence[Sequence[int]], local: Wire, between: Wire
    ) -> None:
        self.rank = rank
        self._host = next(ranks for ranks in hosts if rank in ranks)
        self._leaders = [ranks[0] for ranks in hosts]
        self._local, self._between = local, between
        self._turn = 0
        self._turns: dict[tuple[str, int, np.dtype], list[np.ndarray]] = {}

    def room(self, n: int, dtype: np.dtype) -> np.ndarray:
        return self._local.room(n, dtype)

    def share(self, n: int, dtype: np.dtype) -> slice:
        return self._shares(n, np.dtype(dtype))[self.rank]

    def counts(self, n: int, dtype: np.dtype) -> bool:
        # Those of the first host.
        first = self._host[0] if self._is_shared(n, np.dtype(dtype)) else self.rank
        return first == self._leaders[0]

    def _shares(self, n: int, dtype: np.dtype) -> dict[int, slice]:
        """What each rank of this host updates of a vector."""
        if self._is_shared(n, dtype):
            return dict(zip(self._host, slices_of(n, len(self._host)), strict=True))
        return dict.fromkeys(self._host, slice(0, n))

    def _is_shared(self, n: int, dtype: np.dtype) -> bool:
        n_ranks = len(self._host)
        return n_ranks > 1 and self._local.slices_pay(n * dtype.itemsize, n_ranks)

    def sum(
        self, scalars: tuple[float, ...], vector: np.ndarray
    ) -> tuple[tuple[float, ...], np.ndarray]:
        self._turn += 1
        if len(self._leaders) == 1:
            return self._sum_of_host(scalars, vector, None)
        if len(self._host) == 1:
            return self._sum_of_leaders(scalars, vector, None)
        return self._sum_of_hosts(scalars, vector)

    def complete(self, scalars: tuple[float, ...], vector: np.ndarray) -> tuple[float, ...]:
        if not self._is_shared(len(vector), vector.dtype):
            return scalars
        shares = self._shares(len(vector), vector.dtype)
        mine, others = shares[self.rank], self._others(self._host)
        parts = self._local.exchange(
            scalars, vector, dict.fromkeys(others, mine), {o: shares[o] for o in others}
        )
        for other, (_, theirs) in parts.items():
            vector[shares[other]] = theirs
        parts[self.rank] = scalars, vector
        numbers = zip(*(parts[rank][0] for rank in self._host), strict=True)
        return tuple(float(sum(values)) for values in numbers)

    def _others(self, ranks: Sequence[int]) -> list[int]:
        return [rank for rank in ranks if rank != self.rank]

    def _sum_of_host(
        self, scalars: tuple[float, ...], vector: np.ndarray, total: np.ndarray | None
    ) -> tuple[tuple[float, ...], np.ndarray]:
        """The host's sum of this rank's share, in its place in `total` if that is given."""
        shares = self._shares(len(vector), vector.dtype)
        mine, others = shares[self.rank], self._others(self._host)
        parts = self._local.exchange(
            scalars, vector, {o: shares[o] for o in others}, dict.fromkeys(others, mine)
        )
        if not others:
            return scalars, vector
        if total is None:
            # Nobody else reads a share of this rank's own vector, so the sum can take its
            # place, which is a quarter less to move; but not before it has been added.
            is_free = self.rank in self._host[:2]
            is_free = is_free and self._is_shared(len(vector), vector.dtype)
            total = vector if is_free else self._private("sum", vector)
        parts[self.rank] = scalars, vector[mine]
        return added([parts[rank] for rank in self._host], total[mine])

    def _sum_of_leaders(
        self, scalars: tuple[float, ...], vector: np.ndarray, total: np.ndarray | None
    ) -> tuple[tuple[float, ...], np.ndarray]:
        """The sum over the leaders, of whom this rank is one, in `total` if that is given."""
        ranks, n = self._leaders, len(vector)
        others = self._others(ranks)
        if not self._between.slices_pay(vector.nbytes, len(ranks)):
            to_all = dict.fromkeys(others, slice(0, n))
            parts = self._between.exchange(scalars, vector, to_all, to_all)
            if total is None:  # one of two places: who goes on with it is bound to them
                total = self._private("sum", vector)
            parts[self.rank] = scalars, vector
            return added([parts[rank] for rank in ranks], total)
        if total is None:
            total = self._private("sum", vector)
        owned = dict(zip(ranks, slices_of(n, len(ranks)), strict=True))
        mine, of_others = owned[self.rank], {other: owned[other] for other in others}
        to_all = dict.fromkeys(others, mine)
        parts = self._between.exchange(scalars, vector, of_others, to_all)
        parts[self.rank] = scalars, vector[mine]
        scalars, _ = added([parts[rank] for rank in ranks], total[mine])
        parts = self._between.exchange((), total, to_all, of_others)
        for other, (_, theirs) in parts.items():
            total[owned[other]] = theirs
        return scalars, total

    def _sum_of_hosts(
        self, scalars: tuple[float, ...], vector: np.ndarray
    ) -> tuple[tuple[float, ...], np.ndarray]:
        """The share of the sum over several hosts, by way of this one's leader.

        Sharing ranks add up a share each, and the leader puts these together; otherwise
        it adds by itself.
        """
        shares = self._shares(len(vector), vector.dtype)
        mine, leader = shares[self.rank], self._host[0]
        followers = self._host[1:]
        # All ranks make the same rooms, for what is at one place in those of all.
        of_host, total = self._shared("host", vector), self._shared("total", vector)
        is_shared = self._is_shared(len(vector), vector.dtype)
        sent = vector
        if is_shared:
            scalars, _ = self._sum_of_host(scalars, vector, of_host)
            sent = of_host
        if self.rank != leader:
            self._local.exchange(scalars, sent, {leader: mine}, {})
            parts = self._local.exchange((), total, {}, {leader: mine})
            return parts[leader]
        parts = self._local.exchange(scalars, sent, {}, {r: shares[r] for r in followers})
        if is_shared:
            for rank in followers:
                of_host[shares[rank]] = parts[rank][1]
        else:
            parts[leader] = scalars, vector
            scalars, _ = added([parts[rank] for rank in self._host], of_host)
        scalars, _ = self._sum_of_leaders(scalars, of_host, total)
        self._local.exchange(scalars, total, {rank: shares[rank] for rank in followers}, {})
        return scalars, total[mine]

    def _private(self, purpose: str, like: np.ndarray) -> np.ndarray:
        """A buffer for this turn; the one of the turn before may be on its way still."""
        key = (purpose, len(like), like.dtype)
        if key not in self._turns:
            self._turns[key] = [np.empty_like(like) for _ in range(2)]
        return self._turns[key][self._turn % 2]

    def _shared(self, purpose: str, like: np.ndarray) -> np.ndarray:
        """The same, in memory that the ranks of this host can read."""
        key = (purpose, len(like), like.dtype)
        if key not in self._turns:
            self._turns[key] = [self._local.room(len(like), like.dtype) for _ in range(2)]
        return self._turns[key][self._turn % 2]
