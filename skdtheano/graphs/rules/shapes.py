"""Shapes, and what is made, joined, cut and checked by them."""

from typing import Any

from skdtheano import engine, symbolic
from skdtheano.graphs.placement import (
    PARTS,
    SAME,
    NeedNumbers,
    NeedRows,
    NeedWhole,
    Partial,
    Placement,
    Rewritten,
    RowCount,
    RowNumbers,
    Rows,
    RowShape,
    Verdict,
    of_rows,
)
from skdtheano.graphs.rules.needs import (
    holds_row_numbers,
    lengths_one,
    numbers_only,
    shown,
    whole_only,
)


def shape(node: Any, at: list[Placement]) -> Verdict:
    placed = at[0]
    if isinstance(placed, RowNumbers):
        return [RowShape(0)]
    return [RowShape(placed.axis) if isinstance(placed, Rows) else SAME]


def shape_i(node: Any, at: list[Placement]) -> Verdict:
    axis = at[0].axis if isinstance(at[0], Rows) else 0 if of_rows(at[0]) else None
    return [RowCount() if axis == node.op.i else SAME]


def alloc(node: Any, at: list[Placement]) -> Verdict:
    """A value, stretched to a shape; AllocEmpty has a shape alone."""
    has_value = type(node.op).__name__ != "AllocEmpty"
    first = 1 if has_value else 0
    lengths = at[first:]
    counted = [i for i, p in enumerate(lengths) if isinstance(p, RowCount)]
    if has_value and isinstance(at[0], PARTS):
        raise NeedWhole([0])
    numbers_only(at)
    whole_only(at, but=[first + i for i in counted])
    if not counted:
        if has_value and isinstance(at[0], Rows):
            raise NeedRows([0], "rows are stretched to a length that is not theirs")
        return [SAME]
    if len(counted) > 1:
        raise NeedRows(
            [first + i for i in counted], "an array of rows by rows grows with their square"
        )
    [axis] = counted
    if has_value:
        value, own = node.inputs[0], axis - (node.outputs[0].ndim - node.inputs[0].ndim)
        aligned = at[0] == Rows(own)
        if not aligned and (of_rows(at[0]) or (own >= 0 and not lengths_one(value, own))):
            raise NeedRows([0], f"{shown(value)} does not have its rows where the rows are")
    return [Rows(axis)]


def make_vector(node: Any, at: list[Placement]) -> Verdict:
    counted = [i for i, p in enumerate(at) if isinstance(p, RowCount)]
    if len(counted) == 1:
        whole_only(at, but=counted)
        return [RowShape(counted[0])]
    if isinstance(at[0], Partial) and all(p == at[0] for p in at):
        return [at[0]]
    whole_only(at)
    return [SAME]


def join(node: Any, at: list[Placement]) -> Verdict:
    """Inputs: the axis, which newer PyTensors keep in the Op, then what is joined along it."""
    numbers_only(at)
    first = 0 if hasattr(node.op, "axis") else 1
    parts = at[first:]
    alone = not any(isinstance(p, PARTS) or of_rows(p) for p in parts[1:])
    if isinstance(parts[0], RowShape) and alone:
        return [parts[0]]
    rows = [i + first for i, p in enumerate(parts) if isinstance(p, Rows)]
    if not rows:
        whole_axis = first == 0 or not isinstance(at[0], PARTS)
        if whole_axis and all(p == Partial("sum") for p in parts):
            return [Partial("sum")]
        whole_only(at)
        return [SAME]
    whole_only(at)
    axis = symbolic.constant_of(node.inputs[0]) if first else node.op.axis
    axes = {p.axis for p in parts if isinstance(p, Rows)}
    if axis is None or len(axes) > 1 or axes == {int(axis) % node.outputs[0].ndim}:
        raise NeedRows(rows, "tables are joined along their rows. Join them before the call")
    if len(rows) < len(parts):
        odd = next(i for i in range(first, len(at)) if i not in rows)
        raise NeedRows(
            rows,
            f"{shown(node.inputs[odd])} is joined to the rows and is not cut as they are. "
            "Pass it as a dask array, name it in rows=, or make it of x.shape[0] rows",
        )
    return [Rows(axes.pop())]


def split(node: Any, at: list[Placement]) -> Verdict:
    """Inputs: what is split, the axis if the Op does not keep it, the lengths."""
    numbers_only(at)
    whole_only(at)
    in_op = hasattr(node.op, "axis")
    axis = node.op.axis if in_op else symbolic.constant_of(node.inputs[1])
    if isinstance(at[0], Rows):
        if axis is None or at[0].axis == int(axis) % node.inputs[0].ndim:
            raise NeedRows([0], "the rows are split by their place in the table")
        return [at[0]] * len(node.outputs)
    return [SAME] * len(node.outputs)


def reshape(node: Any, at: list[Placement]) -> Verdict:
    """The rows stay the first axis, or the last, where the new shape says so."""
    numbers_only(at)
    placed, target = at[0], at[1]
    if isinstance(placed, Rows):
        if placed.axis == 0 and target == RowShape(0):
            return [Rows(0)]
        lengths = list(getattr(node.inputs[1], "data", ()))
        if node.inputs[0].ndim == 1 and sorted(lengths) == [-1, *[1] * (len(lengths) - 1)]:
            return [Rows(lengths.index(-1))]
        last = node.outputs[0].ndim - 1
        if placed.axis == node.inputs[0].ndim - 1 and target == RowShape(last):
            return [Rows(last)]
        raise NeedRows(
            [0],
            "the new shape does not begin with the number of rows. Write "
            "x.reshape((x.shape[0], ...)), so that each row keeps its entries",
        )
    if isinstance(target, PARTS):
        raise NeedWhole([1])
    if isinstance(placed, RowShape | RowCount):
        raise NeedWhole([0])
    return [placed if isinstance(placed, Partial) else SAME]


def arange(node: Any, at: list[Placement]) -> Verdict:
    start, _, step = node.inputs
    if (
        isinstance(at[1], RowCount)
        and symbolic.constant_of(start) == 0
        and symbolic.constant_of(step) == 1
    ):
        [numbers] = node.outputs
        if not holds_row_numbers("int64", numbers.dtype):
            return Rewritten([engine.cast(engine.arange(node.inputs[1]), numbers.dtype)])
        return [RowNumbers()]
    whole_only(at)
    return [SAME]


def checked(node: Any, at: list[Placement]) -> Verdict:
    """An assertion; each block checks what its own rows say, if it holds some of them."""
    numbers_only(at, but=[0])
    if isinstance(at[0], RowCount | RowShape):
        raise NeedWhole([0])  # or the check would go where the count goes
    local = of_rows(at[0]) or isinstance(at[0], Partial)
    conditions = [
        i
        for i, p in enumerate(at)
        if i and isinstance(p, PARTS) and not (local and p == Partial("all"))
    ]
    if conditions:
        raise NeedWhole(conditions)
    return [at[0]]


def specified(node: Any, at: list[Placement]) -> Verdict:
    """A check of lengths: that of the rows may be their number, or be left open."""
    placed = at[0]
    if isinstance(placed, RowNumbers):
        raise NeedNumbers([0])
    if not isinstance(placed, Rows):
        whole_only(at, but=[0])
        return [placed]
    listed = getattr(node.inputs[1], "ndim", 0) == 0  # PyTensor's; Theano's is one vector
    own = 1 + placed.axis if listed else 1
    is_number = at[own] in (RowCount(), RowShape(placed.axis))
    if not is_number and getattr(node.inputs[own], "data", 0) is not None:
        raise NeedRows(
            [0], "it says how many rows there are, and a block has fewer. Give None for that"
        )
    whole_only(at, but=[0, own])
    return [placed]
