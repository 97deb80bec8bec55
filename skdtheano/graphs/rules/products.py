"""Products of matrices."""

from typing import Any

from skdtheano.graphs.placement import (
    REPLICATED,
    SAME,
    NeedRows,
    Partial,
    Placement,
    Rows,
    Same,
    Verdict,
)
from skdtheano.graphs.rules.needs import (
    lengths_one,
    numbers_only,
    one_per_row,
    shown,
    whole_only,
)


def dot(node: Any, at: list[Placement]) -> Verdict:
    numbers_only(at)
    return [_product(node, at, batch=0)]


def blockwise(node: Any, at: list[Placement]) -> Verdict:
    """A core Op on each entry of leading batch axes; rows may be one of those."""
    numbers_only(at)
    whole_only(at)
    batch = node.outputs[0].ndim - node.op.outputs_sig[0].__len__()
    ndims = [batch + len(core) for core in node.op.inputs_sig]
    rows = [i for i, p in enumerate(at) if isinstance(p, Rows)]
    if not rows:
        return [SAME] * len(node.outputs)
    if type(node.op.core_op).__name__ == "Dot":
        return [_product(node, at, batch)]
    if any(p.axis >= batch for p in at if isinstance(p, Rows)):
        raise NeedRows(
            rows, f"{type(node.op.core_op).__name__} reads all rows of its input at once"
        )
    assert len(ndims) == len(at)
    return [_batched(node, at, batch)] * len(node.outputs)


def _batched(node: Any, at: list[Placement], batch: int) -> Placement:
    """Rows along one of the leading `batch` axes, aligned as by broadcasting."""
    rows = [i for i, p in enumerate(at) if isinstance(p, Rows)]
    axes = {p.axis for p in at if isinstance(p, Rows)}
    if len(axes) > 1:
        raise NeedRows(rows, "rows meet other rows along another axis")
    [axis] = axes
    for i, variable in enumerate(node.inputs):
        if i not in rows and not lengths_one(variable, axis):
            raise one_per_row(rows, variable)
    return Rows(axis)


def _product(node: Any, at: list[Placement], batch: int) -> Placement:
    """Placement of a product of matrices or vectors, behind `batch` leading axes."""
    whole_only(at)
    a, b = node.inputs
    rows = [i for i in (0, 1) if isinstance(at[i], Rows)]
    if not rows:
        return SAME if any(isinstance(p, Same) for p in at) else REPLICATED
    inner = (a.ndim - 1, max(b.ndim - 2, batch))
    axes = [p.axis if isinstance(p, Rows) else None for p in at[:2]]
    contracted = [axes[i] == inner[i] for i in (0, 1)]
    if all(contracted):
        return Partial("sum")
    if any(axis is not None and axis < batch for axis in axes):
        return _batched(node, at, batch)
    if any(contracted):
        other = node.inputs[1 - contracted.index(True)]
        raise NeedRows(
            rows,
            f"a product over the rows, and {shown(other)} is not cut as they are. Pass it as "
            "a dask array, or name it in rows=; if it is the other one that has no rows, name "
            "that one in replicated=",
        )
    if len(rows) == 2:
        raise NeedRows(
            rows,
            "a product of every row with every row, as in dot(X, X.T): its size grows with "
            "the square of the rows. Take dot(X.T, X) where that serves",
        )
    [i] = rows
    if i == 0:
        return Rows(batch)
    return Rows(node.outputs[0].ndim - 1)


def batched_dot(node: Any, at: list[Placement]) -> Verdict:
    numbers_only(at)
    whole_only(at)
    rows = [i for i, p in enumerate(at) if isinstance(p, Rows)]
    if not rows:
        return [SAME]
    if len(rows) == 2 and at[0] == at[1] == Rows(0):
        return [Rows(0)]
    raise NeedRows(rows, "a product over rows in a batch. Use dot or tensordot")
