"""Reading and writing parts of arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from skdtheano import engine, symbolic
from skdtheano.engine import Variable
from skdtheano.graphs.placement import (
    PARTS,
    REPLICATED,
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
    lengths_one,
    numbers_only,
    one_per_row,
    shown,
    whole_only,
)


def _is_full(entry: Any) -> bool:
    return (
        isinstance(entry, slice)
        and (entry.start is None or symbolic.constant_of(entry.start) == 0)
        and entry.stop is None
        and (entry.step is None or symbolic.constant_of(entry.step) == 1)
    )


def subtensor(node: Any, at: list[Placement]) -> Verdict:
    numbers_only(at, but=[0])
    whole_only(at, but=[0])
    placed, entries = at[0], symbolic.index_entries(node, 1)
    if isinstance(placed, RowShape):
        return [_part_of_shape(node.inputs[0], placed, entries)]
    if isinstance(placed, RowCount | Partial):
        return [placed]  # the same entries of every part
    if isinstance(placed, RowNumbers):
        raise NeedNumbers([0])
    if not isinstance(placed, Rows):
        return [SAME]
    axis = placed.axis
    if axis < len(entries) and not _is_full(entries[axis]):
        raise NeedRows(
            [0],
            "it picks rows by their place in the table. Pick them before the call, as in "
            "f(X[10:20]), or select them with a weight or switch per row",
        )
    whole = sum(not isinstance(entry, slice) for entry in entries[:axis])
    return [Rows(axis - whole)]


def _part_of_shape(whole: Variable, placed: RowShape, entries: Sequence[Any]) -> Placement:
    [entry] = entries
    is_shape = whole.owner is not None and type(whole.owner.op).__name__ == "Shape"
    shape_of = whole.owner.inputs[0] if is_shape else None
    if not isinstance(entry, slice):
        place = symbolic.constant_of(entry)
        if place is not None and place < 0 and shape_of is not None:
            place += shape_of.ndim
        if place is None or place < 0:
            raise NeedWhole([0])
        if place != placed.axis:
            return SAME
        return RowCount()
    start = 0 if entry.start is None else symbolic.constant_of(entry.start)
    stop = np.inf if entry.stop is None else symbolic.constant_of(entry.stop)
    step = 1 if entry.step is None else symbolic.constant_of(entry.step)
    if start is None or stop is None or step != 1 or start < 0 or stop < 0:
        raise NeedWhole([0])
    return RowShape(placed.axis - int(start)) if start <= placed.axis < stop else SAME


def inc_subtensor(node: Any, at: list[Placement]) -> Verdict:
    """Add to, or set, a part of x; rows stay where they are."""
    numbers_only(at)
    x, y = node.inputs[:2]
    entries = symbolic.index_entries(node, 2)
    adds = not node.op.set_instead_of_inc
    if any(of_rows(p) for p in at[:2]):
        whole_only(at)
    else:
        whole_only(at, but=[0, 1])
        if adds and at[0] == at[1] == Partial("sum"):
            return [Partial("sum")]
        if adds and at[1] == Partial("sum") and symbolic.is_zero(x):
            return [Partial("sum")]
        whole_only(at)
        return [SAME]
    if not isinstance(at[0], Rows):
        raise NeedRows(
            [1], "it writes rows into a replicated array. Make it of the rows' shape"
        )
    axis = at[0].axis
    if axis < len(entries) and not _is_full(entries[axis]):
        raise NeedRows([0], "it writes to rows by their place in the table")
    inner = axis - sum(not isinstance(entry, slice) for entry in entries[:axis])
    ndim = x.ndim - sum(not isinstance(entry, slice) for entry in entries)
    own = inner - (ndim - y.ndim)  # where y has its rows
    aligned = at[1] == Rows(own)
    if not aligned and (isinstance(at[1], Rows) or (own >= 0 and not lengths_one(y, own))):
        raise NeedRows([0], f"{shown(y)} does not have its rows where the rows are")
    return [at[0]]


def _gathered_axes(entries: Sequence[Any], ndim: int) -> tuple[list[Any], int, int]:
    """The full index, where its arrays' axes go, and how many these are."""
    full = [*entries, *[slice(None)] * (ndim - len(entries))]
    arrays = [i for i, entry in enumerate(full) if not isinstance(entry, slice)]
    n_axes = max(full[i].ndim for i in arrays)
    adjacent = arrays == list(range(arrays[0], arrays[-1] + 1))
    return full, arrays[0] if adjacent else 0, n_axes


def take(node: Any, at: list[Placement]) -> Verdict:
    """x[indices]: rows of the index pick from a replicated x; or columns from rows of x."""
    entries = symbolic.index_entries(node, 1)
    whole_only(at, but=[0])
    where = dict(zip(node.inputs, at, strict=True))
    _refuse_masks(entries, where, at)
    full, front, n_axes = _gathered_axes(entries, node.inputs[0].ndim)
    arrays = [entry for entry in full if not isinstance(entry, slice)]
    by_rows = [entry for entry in arrays if of_rows(where.get(entry, REPLICATED))]
    if not of_rows(at[0]):
        if by_rows:
            numbers_only(at)
            whole_only(at)
            return [Rows(front + _index_axis(arrays, where, n_axes, at))]
        if isinstance(at[0], RowShape | RowCount):
            raise NeedWhole([0])
        return [at[0] if isinstance(at[0], Partial) else SAME]
    if not isinstance(at[0], Rows):
        raise NeedNumbers([0])
    axis = at[0].axis
    if isinstance(full[axis], slice):
        if by_rows or not _is_full(full[axis]):
            raise NeedRows([0], "it picks rows by their place in the table")
        return [Rows(_kept_axis(full, axis, front, n_axes))]
    _own_rows(node, full, axis, where, n_axes)
    return [Rows(front)]


def _own_rows(
    node: Any, full: Sequence[Any], axis: int, where: dict[Any, Placement], n_axes: int
) -> None:
    """Check for x[arange(n), y]: each row picks from itself."""
    own = isinstance(where.get(full[axis]), RowNumbers) and n_axes == 1
    for place, entry in enumerate(full):
        placed = None if isinstance(entry, slice) else where.get(entry)
        if isinstance(placed, RowNumbers) and place != axis:
            earlier = sum(other is entry for other in full[:place])
            inputs = [i for i, variable in enumerate(node.inputs) if variable is entry]
            raise NeedNumbers([inputs[earlier]])
        is_other = own and not isinstance(entry, slice) and not of_rows(placed)
        if is_other and entry.ndim and not lengths_one(entry, 0):
            raise one_per_row([0], entry)
    if not own:
        raise NeedRows(
            [0],
            "rows are picked by number, from wherever they lie. Only x[arange(x.shape[0]), y] "
            "keeps each row on its own block",
        )


def _index_axis(
    arrays: Sequence[Any],
    where: dict[Any, Placement],
    n_axes: int,
    at: Sequence[Placement],
) -> int:
    """Where the indices, which meet by broadcasting, have their rows."""
    rows = [i for i, p in enumerate(at) if of_rows(p)]
    placed = {entry: where.get(entry, REPLICATED) for entry in arrays}
    axes = {p.axis + n_axes - e.ndim for e, p in placed.items() if isinstance(p, Rows)}
    if len(axes) > 1:
        raise NeedRows(rows, "indices have their rows along different axes")
    [axis] = axes
    for entry, p in placed.items():
        own = axis - (n_axes - entry.ndim)
        if not isinstance(p, Rows) and own >= 0 and not lengths_one(entry, own):
            raise one_per_row(rows, entry)
    return int(axis)


def _kept_axis(full: Sequence[Any], axis: int, front: int, n_axes: int) -> int:
    """Where a sliced axis of x is in x[full]."""
    before = sum(isinstance(entry, slice) for entry in full[:axis])
    slices_before_front = sum(isinstance(entry, slice) for entry in full[:front])
    return before + (n_axes if before >= slices_before_front and axis >= front else 0)


def _refuse_masks(
    entries: Sequence[Any], where: dict[Any, Placement], at: Sequence[Placement]
) -> None:
    rows = [i for i, p in enumerate(at) if of_rows(p)]
    for entry in entries:
        if isinstance(entry, slice) or entry.dtype != "bool" or not rows:
            continue
        if of_rows(where.get(entry)) or entry.ndim != 1:
            raise NeedRows(
                rows,
                "a mask leaves a number of rows that the graph cannot know. Multiply by a "
                "weight of 0 or 1 per row, or filter before the call",
            )


def put(node: Any, at: list[Placement]) -> Verdict:
    """X with y added at indices: the gradient of `take`."""
    x, y = node.inputs[:2]
    entries = symbolic.index_entries(node, 2)
    whole_only(at, but=[0, 1])
    adds = not getattr(node.op, "set_instead_of_inc", False)
    where = dict(zip(node.inputs[2:], at[2:], strict=True))
    _refuse_masks(entries, where, at)
    full, front, n_axes = _gathered_axes(entries, x.ndim)
    arrays = [entry for entry in full if not isinstance(entry, slice)]
    by_rows = [entry for entry in arrays if of_rows(where.get(entry, REPLICATED))]
    if of_rows(at[0]):
        whole_only(at)
        numbers_only(at[:2])
    if isinstance(at[0], Rows):
        axis = at[0].axis
        ndim = n_axes + sum(isinstance(entry, slice) for entry in full)
        if isinstance(full[axis], slice):
            if by_rows or not _is_full(full[axis]):
                raise NeedRows([0], "it writes to rows by their place in the table")
            row = _kept_axis(full, axis, front, n_axes)
        else:
            _own_rows(node, full, axis, where, n_axes)
            row = front
        own = row - (ndim - y.ndim)
        if at[1] != Rows(own) and (of_rows(at[1]) or (own >= 0 and not lengths_one(y, own))):
            raise NeedRows([0], f"{shown(y)} does not have its rows where the rows are")
        return [at[0]]
    if by_rows or of_rows(at[1]):
        numbers_only(at)
        if not adds:
            raise NeedRows(
                [i for i, p in enumerate(at) if of_rows(p)],
                "rows set entries of a replicated array, and the last one wins. Add instead "
                "(inc_subtensor)",
            )
        if getattr(node.op, "ignore_duplicates", False):
            raise NeedRows(
                [i for i, p in enumerate(at) if of_rows(p)],
                "of rows with equal indices only the last one is added. Leave "
                "ignore_duplicates out, so that all are",
            )
        if isinstance(at[1], PARTS):
            raise NeedWhole([1])
        if not by_rows:
            raise NeedRows([1], "rows are added at places that are not theirs")
        row = front + _index_axis(arrays, where, n_axes, at)
        ndim = n_axes + sum(isinstance(entry, slice) for entry in full)
        own = row - (ndim - y.ndim)
        if at[1] != Rows(own) and (of_rows(at[1]) or (own >= 0 and not lengths_one(y, own))):
            raise NeedRows([1], f"{shown(y)} does not have its rows where the indices are")
        if at[0] == Partial("sum") or symbolic.is_zero(x):
            return [Partial("sum")]
        if isinstance(at[0], PARTS):
            raise NeedWhole([0])
        zeros = engine.zeros_like(x)
        return Rewritten([x + node.op(zeros, *node.inputs[1:])])
    if adds and at[1] == Partial("sum") and (at[0] == Partial("sum") or symbolic.is_zero(x)):
        return [Partial("sum")]
    whole_only(at)
    return [SAME]
