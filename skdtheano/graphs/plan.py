"""A graph cut into stages: what runs once, what runs on each block, what is combined."""

from dataclasses import dataclass

from skdtheano.engine import Variable
from skdtheano.graphs.placement import Placement


@dataclass(frozen=True)
class Combine:
    """How the values of all blocks become one.

    Attributes
    ----------
    verb : {"sum", "prod", "max", "min", "all", "any", "same", "shape", "rows"}
        ``"same"``: any of them; ``"shape"``: any, with the sum of entry `axis`;
        ``"rows"``: all of them, joined along `axis`.
    axis : int or None
    """

    verb: str
    axis: int | None = None


@dataclass(frozen=True)
class Result:
    """What a piece computes, and the symbol that stands for it in later pieces.

    Attributes
    ----------
    value : Variable
    symbol : Variable
    combine : Combine or None
        None where it is used as it is: a value that is the same everywhere, or rows that
        stay on their block.
    axis : int or None
        Of the rows, in what one block gives; None if it has none.
    """

    value: Variable
    symbol: Variable
    combine: Combine | None = None
    axis: int | None = None


@dataclass(frozen=True)
class Piece:
    """A graph that is computed in one go: ``symbols = [result.value(inputs)]``.

    Attributes
    ----------
    inputs : tuple of Variable
    results : tuple of Result
    """

    inputs: tuple[Variable, ...]
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Stage:
    """``once(...)``, then ``block(...)`` on each block, then what is to combine.

    Attributes
    ----------
    once, block : Piece
        Without results where there is nothing to do.
    """

    once: Piece
    block: Piece


@dataclass(frozen=True)
class Plan:
    """A graph, cut by rows.

    The program that it stands for::

        known = dict(zip(inputs, arguments))            # rows: one value per block
        known |= {n_rows: number of all rows, first_row: by block, that of its first}
        for stage in stages:
            known |= stage.once(known)
            per_block = [stage.block(known, b) for b in blocks]
            known |= combine(per_block)
        return [known[symbol] for symbol in outputs]

    Attributes
    ----------
    inputs : tuple of Variable
    placements : tuple of Placement
        Of the inputs: `Rows` or `Replicated`.
    stages : tuple of Stage
    outputs : tuple of Variable
        Symbols of results, or inputs.
    row_axes : tuple of (int or None)
        The axis of the rows of each output; None for a value that is one.
    first_row : Variable or None
        Symbol for the number of the block's first row in the table, if any piece needs it.
    n_rows : Variable or None
        Symbol for the number of rows of the table, if it is needed.
    per_block : frozenset of Variable
        Symbols of which each block has a value of its own.
    """

    inputs: tuple[Variable, ...]
    placements: tuple[Placement, ...]
    stages: tuple[Stage, ...]
    outputs: tuple[Variable, ...]
    row_axes: tuple[int | None, ...]
    first_row: Variable | None
    n_rows: Variable | None
    per_block: frozenset[Variable]
