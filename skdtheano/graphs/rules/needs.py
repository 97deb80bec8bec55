"""What rules ask for, and how rows of several inputs meet."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from skdtheano import symbolic
from skdtheano.engine import Variable
from skdtheano.graphs.placement import (
    PARTS,
    REPLICATED,
    SAME,
    NeedNumbers,
    NeedRows,
    NeedWhole,
    Placement,
    RowNumbers,
    Rows,
    Same,
)


def whole_only(at: Sequence[Placement], but: Sequence[int] = ()) -> None:
    """Ask for the whole of each input that is a part."""
    parts = [i for i, p in enumerate(at) if isinstance(p, PARTS) and i not in but]
    if parts:
        raise NeedWhole(parts)


def numbers_only(at: Sequence[Placement], but: Sequence[int] = ()) -> None:
    """Ask for the table's row numbers wherever an input holds the block's."""
    local = [i for i, p in enumerate(at) if isinstance(p, RowNumbers) and i not in but]
    if local:
        raise NeedNumbers(local)


def holds_row_numbers(old: str, new: str) -> bool:
    """Whether row numbers survive a cast, so that those of a block may be cast instead.

    A narrow integer wraps, and a narrow float rounds, at other places in a block.
    """
    kind, size = np.dtype(new).kind, np.dtype(new).itemsize
    is_wide = size >= 4 if kind in "iu" else kind == "f" and size >= 8
    return is_wide and (old == new or np.can_cast(old, new))


def lengths_one(variable: Variable, axis: int) -> bool:
    """Whether a value is stretched along an axis, by its type."""
    stretched: bool = variable.type.broadcastable[axis]
    return stretched


def pointwise(node: Any, at: list[Placement], inputs: Sequence[int]) -> Placement:
    """Placement of what combines some inputs entry by entry, with broadcasting."""
    numbers_only(at)
    ndim = max(node.inputs[i].ndim for i in inputs)
    axes = {
        placed.axis + ndim - node.inputs[i].ndim
        for i in inputs
        if isinstance(placed := at[i], Rows)
    }
    if not axes:
        whole_only(at)
        return SAME if any(isinstance(at[i], Same) for i in inputs) else REPLICATED
    whole_only(at)
    rows = [i for i in inputs if isinstance(at[i], Rows)]
    if len(axes) > 1:
        raise NeedRows(
            rows,
            "rows meet other rows along another axis, so that every row meets every row. Sum "
            "over one of them first, as in dot(X.T, X); if one has no rows, name it in "
            "replicated=",
        )
    [axis] = axes
    for i in inputs:
        if isinstance(at[i], Rows):
            continue
        own = axis - (ndim - node.inputs[i].ndim)
        if own >= 0 and not lengths_one(node.inputs[i], own):
            raise one_per_row(rows, node.inputs[i])
    return Rows(axis)


def one_per_row(rows: Sequence[int], variable: Variable) -> NeedRows:
    return NeedRows(
        rows,
        f"{shown(variable)} is replicated and has one entry per row. Pass it as a dask "
        "array, or name it in rows=, so that it is cut as the rows are; make an input of it, "
        "if it is a constant or a shared variable",
    )


def shown(variable: Variable) -> str:
    if symbolic.is_constant(variable):
        return f"a constant of shape {np.shape(variable.data)}"
    if variable.name:
        return f"input {variable.name!r}"
    names = sorted(v.name for v in symbolic.leaves([variable], ()) if v.name)
    return f"a value made of {', '.join(map(repr, names))}" if names else f"{variable}"
