"""The processes that train one model together, as a step of training sees them.

`Solo` is the collective of one process; `skdtheano.runtime.peers` has that of dask workers.
"""

from typing import Protocol

import numpy as np


class Collective(Protocol):
    """The ranks of a round. All make the same calls in the same order.

    A step computes its gradient in one of `n_vectors` from `room`, in turn, and `sum`\\ s
    it; the optimizer then updates this rank's `share` of the parameters, which are from
    `room` too, in place; and `complete` fills in what the others have updated. A rank may
    update its share of a vector once `sum` has returned, and no sooner.

    What comes from `room` must not outlive the round: its memory is only given back with
    the last view of it.
    """

    @property
    def rank(self) -> int:
        """Which of them this is, from 0."""

    @property
    def n_ranks(self) -> int:
        """How many there are."""

    def n_vectors(self, n: int, dtype: np.dtype) -> int:
        """How many vectors (n,) to compute gradients in, in turn.

        One where ranks update a share each: then none goes on before all have read it.
        """

    def held(self, vector: np.ndarray) -> np.ndarray:
        """The values of a vector in one from `room`; itself where nobody else reads it."""

    def room(self, n: int, dtype: np.dtype) -> np.ndarray:
        """A vector of zeros (n,) to compute in.

        Ranks of the same host can read it without a copy on the wire.
        """

    def share(self, n: int, dtype: np.dtype) -> slice:
        """Which part of a packed vector this rank updates.

        All of it, ``slice(0, n)``, where one message is cheaper than two, or a slice of
        its own where sharing pays; the slices of the ranks of a host cover it.
        """

    def counts(self, n: int, dtype: np.dtype) -> bool:
        """Whether this rank's share counts: of those that do, one has each entry."""

    def sum(
        self, scalars: tuple[float, ...], vector: np.ndarray
    ) -> tuple[tuple[float, ...], np.ndarray]:
        """Sums over all ranks: of the scalars; and of this rank's share of the vector.

        Bit for bit the same as any other rank would get for that share. `vector` comes
        from `room`, and must not be written to before the next `sum` has returned, or,
        where ranks have a share each, `complete` has: use `n_vectors` in turn. Its share
        may have been overwritten with the sum. The result may be a view that is valid until
        the next call, and may not be written to.
        """

    def complete(self, scalars: tuple[float, ...], vector: np.ndarray) -> tuple[float, ...]:
        """Fill in the shares of the others, in place, once each has updated its own.

        Returns
        -------
        tuple of float
            Sums of the scalars over the ranks that share the vector. Where shares are
            whole nothing is sent, and they are what was given: as hosts may share a
            vector among different numbers of ranks, only what sums exactly, as counts
            do, is the same everywhere.
        """


class Solo:
    """One process: every sum is what it was given."""

    rank = 0
    n_ranks = 1

    def n_vectors(self, n: int, dtype: np.dtype) -> int:
        return 1

    def held(self, vector: np.ndarray) -> np.ndarray:
        return vector

    def room(self, n: int, dtype: np.dtype) -> np.ndarray:
        return np.zeros(n, dtype)

    def share(self, n: int, dtype: np.dtype) -> slice:
        return slice(0, n)

    def counts(self, n: int, dtype: np.dtype) -> bool:
        return True

    def sum(
        self, scalars: tuple[float, ...], vector: np.ndarray
    ) -> tuple[tuple[float, ...], np.ndarray]:
        return scalars, vector

    def complete(self, scalars: tuple[float, ...], vector: np.ndarray) -> tuple[float, ...]:
        return scalars
