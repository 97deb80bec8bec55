"""Where a value is: the same everywhere, cut along the rows, or a part of a total."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from skdtheano.engine import Variable


@dataclass(frozen=True)
class Replicated:
    """The same everywhere, and known without any block."""


@dataclass(frozen=True)
class Same:
    """Equal on all blocks, but only a block can tell it: the number of columns, say."""


@dataclass(frozen=True)
class Rows:
    """Block b holds its own rows, along one axis.

    Attributes
    ----------
    axis : int
    """

    axis: int


@dataclass(frozen=True)
class RowNumbers:
    """The numbers of the rows; a block counts its own from 0."""


@dataclass(frozen=True)
class Partial:
    """Each block holds a value of the shape of the whole; the whole combines them.

    Attributes
    ----------
    combine : {"sum", "prod", "max", "min", "all", "any"}
    """

    combine: str


@dataclass(frozen=True)
class RowCount:
    """The number of rows, of any rank: here of the block's own, and known of the table."""


@dataclass(frozen=True)
class RowShape:
    """A shape whose entry `axis` is the number of rows; the others are the same everywhere."""

    axis: int


Placement: TypeAlias = Replicated | Same | Rows | RowNumbers | Partial | RowCount | RowShape

REPLICATED = Replicated()
SAME = Same()

#: Placements of which every block holds a value of the whole's shape, that is not the whole.
PARTS = (Partial, RowCount, RowShape)


class PlacementError(ValueError):
    """A graph cannot be cut by rows as it is; the message names the node and what to do."""


class Need(Exception):
    """A node cannot be placed as its inputs are.

    Attributes
    ----------
    inputs : tuple of int
        Those that it needs in another way.
    """

    def __init__(self, inputs: Sequence[int]) -> None:
        super().__init__(inputs)
        self.inputs = tuple(inputs)


class NeedWhole(Need):
    """A node needs the whole of some inputs that are parts."""


class NeedNumbers(Need):
    """A node needs the rows' numbers in the table, not in the block."""


class NeedRows(Need):
    """A node needs all rows of some inputs at one place.

    Attributes
    ----------
    reason : str
        Why, and what the user can write instead.
    """

    def __init__(self, inputs: Sequence[int], reason: str) -> None:
        super().__init__(inputs)
        self.reason = reason


@dataclass(frozen=True)
class Rewritten:
    """A node stands for other symbols, which are placed in its stead.

    Attributes
    ----------
    outputs : list of Variable
    """

    outputs: list[Variable]


Verdict: TypeAlias = list[Placement] | Rewritten


def combine_of(placement: Placement) -> tuple[str, int | None]:
    """How the parts of a value become the whole: a verb and, for some, an axis."""
    if isinstance(placement, Partial):
        return placement.combine, None
    if isinstance(placement, RowShape):
        return "shape", placement.axis
    if isinstance(placement, Same):
        return "same", None
    if isinstance(placement, Rows):
        return "rows", placement.axis
    raise TypeError(f"{placement} has no parts")


def of_rows(placement: Any) -> bool:
    """Whether a value has an axis of rows."""
    return isinstance(placement, Rows | RowNumbers)
