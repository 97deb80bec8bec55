"""Ops that work entry by entry, or along axes: elementwise, reductions, softmax."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from skdtheano import engine, symbolic
from skdtheano.engine import Variable
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
    numbers_only,
    pointwise,
    whole_only,
)


def _stretches(node: Any, i: int) -> bool:
    """Whether broadcasting makes input `i` larger, as far as types tell."""
    out = node.outputs[0].type.broadcastable
    own = node.inputs[i].type.broadcastable
    return len(own) < len(out) or any(
        mine and not theirs for mine, theirs in zip(own, out, strict=True)
    )


def elemwise(node: Any, at: list[Placement]) -> Verdict:
    """Entry by entry; sums pass through what is linear, so that less is combined."""
    scalar = type(node.op.scalar_op).__name__
    if scalar == "Second" and isinstance(at[0], PARTS):
        at = [SAME, *at[1:]]  # only its shape is read, and that is the whole's
    parts = [i for i, p in enumerate(at) if isinstance(p, PARTS)]
    if parts and not any(of_rows(p) for p in at):
        through = _linear(node, scalar, at, parts)
        if through is not None:
            return [through]
    if scalar in ("Cast", "Identity") and isinstance(at[0], RowNumbers):
        if not holds_row_numbers(node.inputs[0].dtype, node.outputs[0].dtype):
            raise NeedNumbers([0])
        return [RowNumbers()]
    placed = pointwise(node, at, range(len(at)))
    return [placed] * len(node.outputs)


def _linear(node: Any, scalar: str, at: list[Placement], parts: list[int]) -> Placement | None:
    """Placement of a linear function of parts; None if it is none."""
    first = at[parts[0]]
    if scalar in ("Cast", "Identity"):
        old, new = node.inputs[0].dtype, node.outputs[0].dtype
        if isinstance(first, RowShape) and np.dtype(new).kind == "f":
            return first  # the mean over columns of float32 reads its length so
        # Integers wrap, and in other places once they are wider: those are combined first.
        wraps = np.dtype(old).kind in "iu" and not isinstance(first, RowCount)
        widens = old != "bool" and not wraps and np.can_cast(old, new)
        return first if old == new or widens else None
    sums = all(at[i] in (Partial("sum"), RowCount()) for i in parts)
    if not sums or any(_stretches(node, i) for i in parts):
        return None
    total = Partial("sum")
    factors = [symbolic.constant_of(v) for i, v in enumerate(node.inputs) if i not in parts]
    if all(at[i] == RowCount() for i in parts):
        # The number of all rows is known: a sum or a product of it needs no combining.
        still = scalar == "Mul" and len(parts) == 1 and all(np.all(f == 1) for f in factors)
        return first if still else None
    if scalar in ("Add", "Sub"):
        return total if len(parts) == len(at) else None
    if scalar == "Neg":
        return total
    # inf * 0 and 0 / 0 are no numbers, and a block may have a 0 where the whole has none.
    if scalar == "Mul" and len(parts) == 1 and _are_finite(factors):
        return total
    if scalar == "TrueDiv" and parts == [0] and _are_finite(factors):
        return total if np.all(factors[0] != 0) else None
    if scalar == "Second":
        return total if parts == [1] else None
    return None


def _are_finite(factors: Sequence[Any]) -> bool:
    return all(factor is not None and np.all(np.isfinite(factor)) for factor in factors)


def dimshuffle(node: Any, at: list[Placement]) -> Verdict:
    order = list(node.op.new_order)
    placed = at[0]
    if isinstance(placed, RowNumbers):
        if order == [0]:
            return [placed]
        raise NeedNumbers([0])
    if isinstance(placed, Rows):
        if placed.axis not in order:
            raise NeedRows([0], "the axis of the rows is taken away as if there were one row")
        return [Rows(order.index(placed.axis))]
    if isinstance(placed, RowShape):
        if order == [0]:
            return [placed]
        raise NeedWhole([0])
    return [placed]


#: The combine of a reduction over rows, by the class of its scalar Op in either engine.
REDUCTIONS = {
    "Add": "sum",
    "Mul": "prod",
    "Maximum": "max",
    "ScalarMaximum": "max",
    "Minimum": "min",
    "ScalarMinimum": "min",
    "AND": "all",
    "OR": "any",
}


def reduction(node: Any, at: list[Placement]) -> Verdict:
    numbers_only(at)
    combine = REDUCTIONS.get(type(node.op.scalar_op).__name__)
    if combine in ("all", "any") and node.inputs[0].dtype != "bool":
        combine = None  # of the bits of integers
    placed, ndim = at[0], node.inputs[0].ndim
    axes = range(ndim) if node.op.axis is None else [axis % ndim for axis in node.op.axis]
    if isinstance(placed, Rows):
        if placed.axis not in axes:
            return [Rows(placed.axis - sum(axis < placed.axis for axis in axes))]
        if type(node.op.scalar_op).__name__ == "MulWithoutZeros":
            [x], [out] = node.inputs, node.outputs
            others = engine.switch(engine.equal(x, 0), 1, x)
            return Rewritten([others.prod(axis=list(axes), dtype=out.dtype)])
        if combine is None:
            raise NeedRows([0], f"{node.op} over rows does not follow from those of blocks")
        return _summed_wide(node, combine, axes) or [Partial(combine)]
    if combine is not None and placed == Partial(combine):
        return [placed]
    whole_only(at)
    return [SAME]


def _summed_wide(node: Any, combine: str, axes: Iterable[int]) -> Rewritten | None:
    """A sum or product that is cast once it is whole, where a block's would lose more.

    Ops accumulate in a wide dtype and cast in the end: to whole numbers, or to floats that a
    part of the rows may overflow. None where parts may be of the output's dtype.
    """
    [x], [out] = node.inputs, node.outputs
    wide = getattr(node.op, "acc_dtype", None)
    rounds = x.dtype == out.dtype and np.dtype(out.dtype).itemsize > 2
    if combine not in ("sum", "prod") or wide in (None, out.dtype) or rounds:
        return None
    if np.dtype(wide).kind in "iub":
        return None  # whole numbers wrap alike in parts
    whole = getattr(x, combine)(axis=list(axes), dtype=wide, acc_dtype=wide)
    return Rewritten([engine.cast(whole, out.dtype)])


def argmax(node: Any, at: list[Placement]) -> Verdict:
    """Over rows: the smallest row number among those that hold the maximum."""
    whole_only(at)
    numbers_only(at)
    [x] = node.inputs
    placed = at[0]
    axes = range(x.ndim) if node.op.axis is None else [axis % x.ndim for axis in node.op.axis]
    outputs = len(node.outputs)
    if not isinstance(placed, Rows):
        return [SAME] * outputs
    if placed.axis not in axes:
        moved = Rows(placed.axis - sum(axis < placed.axis for axis in axes))
        return [moved] * outputs
    if list(axes) == [placed.axis]:
        number = engine.arange(x.shape[placed.axis])
        number = _along(number, placed.axis, x.ndim)
    elif len(axes) == x.ndim and placed.axis == 0:
        # The place in C order: rows come first.
        number = _along(engine.arange(x.shape[0]), 0, x.ndim)
        for axis in range(1, x.ndim):
            length = x.shape[axis]
            number = number * length + _along(engine.arange(length), axis, x.ndim)
    else:
        raise NeedRows(
            [0], "argmax over rows and other axes at once. Take one after the other"
        )
    over = tuple(axes)
    highest = engine.maximum_over(x, over)
    # NaN is the maximum for NumPy, and equals nothing.
    hit = engine.either(engine.equal(x, highest), engine.isnan(x))
    # Row numbers are below 2**63, and the smallest is the largest of their negatives.
    place = -engine.maximum_over(
        engine.switch(hit, -number, np.int64(np.iinfo(np.int64).min)), over
    )
    found, best = (symbolic.without_axes(value, over) for value in (place, highest))
    found = engine.cast(found, node.outputs[-1].dtype)
    return Rewritten([best, found] if outputs == 2 else [found])


def _along(vector: Variable, axis: int, ndim: int) -> Variable:
    """A vector as an array of a rank, along one of its axes."""
    order: list[Any] = ["x"] * ndim
    order[axis] = 0
    return vector.dimshuffle(*order)


def softmax(node: Any, at: list[Placement]) -> Verdict:
    """Over rows: by the maximum and the sum of all blocks."""
    whole_only(at)
    numbers_only(at)
    [x], placed = node.inputs, at[0]
    axes = _softmax_axes(node.op, x.ndim)
    if not isinstance(placed, Rows) or placed.axis not in axes:
        return [placed]
    shifted = x - engine.maximum_over(x, axes)
    total = engine.exp(shifted).sum(axis=axes, keepdims=True)
    if type(node.op).__name__ == "LogSoftmax":
        return Rewritten([shifted - engine.log(total)])
    return Rewritten([engine.exp(shifted) / total])


def _softmax_axes(op: Any, ndim: int) -> tuple[int, ...]:
    axis = getattr(op, "axis", -1)  # Theano's have none: they are of each row of a matrix
    if axis is None:
        return tuple(range(ndim))
    return tuple(a % ndim for a in (axis if isinstance(axis, tuple | list) else (axis,)))


def softmax_gradient(node: Any, at: list[Placement]) -> Verdict:
    whole_only(at)
    numbers_only(at)
    axes = _softmax_axes(node.op, node.inputs[0].ndim)
    placed = pointwise(node, at, (0, 1))
    if not isinstance(placed, Rows) or placed.axis not in axes:
        return [placed]
    slope, y = node.inputs
    if type(node.op).__name__ == "LogSoftmaxGrad":
        total = slope.sum(axis=axes, keepdims=True)
        return Rewritten([slope - total * y])
    product = slope * y
    return Rewritten([product - product.sum(axis=axes, keepdims=True) * y])


def unchanged(node: Any, at: list[Placement]) -> Verdict:
    """The first input, as it is."""
    whole_only(at, but=[0])
    return [at[0]] * len(node.outputs)


#: What there is for the rows of a dask array.
_INSTEAD = {
    "CumOp": ". Give the function what da.cumsum or da.cumprod makes of the rows",
    "SortOp": ". For the largest rows there is da.topk, for quantiles da.percentile, and a "
    "dask DataFrame has sort_values; call them before",
    "ArgSortOp": ". For the places of the largest rows there is da.argtopk; call it before",
}


def along_axis(node: Any, at: list[Placement]) -> Verdict:
    """Ops that read a whole line along one axis, which must not be that of the rows."""
    numbers_only(at)
    whole_only(at)
    placed = at[0]
    if any(isinstance(p, Rows) for p in at[1:]):
        rows = [i for i, p in enumerate(at) if isinstance(p, Rows)]
        raise NeedRows(rows, "rows say how often, so that the length depends on their values")
    if not isinstance(placed, Rows):
        return [SAME] * len(node.outputs)
    axis = getattr(node.op, "axis", None)
    if type(node.op).__name__ in ("SortOp", "ArgSortOp") and len(node.inputs) > 1:
        axis = symbolic.constant_of(node.inputs[1])
    if axis is None or int(axis) % node.inputs[0].ndim == placed.axis:
        name = type(node.op).__name__
        raise NeedRows(
            [0],
            f"{name} along the rows needs all of them in their order" + _INSTEAD.get(name, ""),
        )
    return [placed] * len(node.outputs)
