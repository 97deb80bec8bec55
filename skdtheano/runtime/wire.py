"""What carries parts of vectors between the ranks of a group."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Protocol

import numpy as np

from skdtheano.runtime.mailbox import Part


class Wire(Protocol):
    """Messages, or memory that several ranks can read.

    All ranks of a group make the same calls in the same order, so a receiver knows by
    itself which part of which vector comes next.
    """

    def room(self, n: int, dtype: np.dtype) -> np.ndarray:
        """A vector of zeros that can be given to `exchange`."""

    def exchange(
        self,
        scalars: tuple[float, ...],
        vector: np.ndarray,
        outgoing: Mapping[int, slice],
        incoming: Mapping[int, slice],
    ) -> dict[int, Part]:
        """Give ranks a part of `vector` each, and get parts of theirs.

        Parameters
        ----------
        scalars : tuple of float
            For each of those to whom a part goes.
        vector : ndarray
            From `room`. A rank that gets some of it may read it until it begins its next
            exchange, so it can be written to when all of them have: after an exchange in
            which this rank has got something of each, or with two vectors in turn.
        outgoing, incoming : mapping of int to slice
            By the other rank. Who has nothing incoming does not wait.

        Returns
        -------
        dict of int to Part
            By rank, for those in `incoming`. A vector is read-only if others read it too.
        """

    def slices_pay(self, n_bytes: int, n_ranks: int) -> bool:
        """Whether two exchanges of slices beat one of whole vectors."""


def slices_of(n: int, n_ranks: int) -> list[slice]:
    """Slices of nearly one length that make up a vector; the same for who asks the same."""
    cuts = [n * i // n_ranks for i in range(n_ranks + 1)]
    return [slice(start, stop) for start, stop in pairwise(cuts)]


def added(parts: list[Part], out: np.ndarray) -> Part:
    """The sum in the order of the list, so that all who add round alike.

    The sum of the vectors is written to `out`.
    """
    scalars = tuple(float(sum(values)) for values in zip(*(p[0] for p in parts), strict=True))
    vectors = [vector for _, vector in parts]
    if len(vectors) == 1:
        out[...] = vectors[0]
        return scalars, out
    np.add(vectors[0], vectors[1], out=out)
    for vector in vectors[2:]:
        out += vector
    return scalars, out
