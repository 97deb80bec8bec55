"""Random variables: each block draws its own rows."""

from typing import Any

from skdtheano import draws, engine
from skdtheano.graphs.placement import (
    SAME,
    NeedRows,
    NeedWhole,
    Placement,
    Rewritten,
    RowCount,
    Rows,
    RowShape,
    Verdict,
)
from skdtheano.graphs.rules.needs import lengths_one, numbers_only, one_per_row, whole_only


def random_variable(node: Any, at: list[Placement]) -> Verdict:
    """Inputs: the generator, the size or None, the parameters."""
    numbers_only(at, but=[0])
    whole_only(at, but=[1])
    if isinstance(at[1], RowCount):
        raise NeedWhole([1])
    axis = _row_axis(node, at)
    if axis is None:
        whole_only(at)
        return [SAME] * len(node.outputs)
    if isinstance(at[0], Rows):
        return [Rows(0), Rows(axis)]  # the block's own generator, as written below
    return Rewritten(draws.of_rows(node, engine.arange(_row_count(node, at))))


def _row_axis(node: Any, at: list[Placement]) -> int | None:
    """The axis of the draws along which each row has its own."""
    size, parameters = at[1], list(range(2, len(at)))
    batch = node.outputs[1].ndim - node.op.ndim_supp
    core = dict(zip(parameters, node.op.ndims_params, strict=True))
    lead = {i: batch - (node.inputs[i].ndim - core[i]) for i in parameters}
    rows = [i for i in parameters if isinstance(at[i], Rows)]
    axes = {p.axis + lead[i] for i in rows if isinstance(p := at[i], Rows)}
    if isinstance(size, RowShape):
        axes.add(size.axis)
    if not axes:
        return None
    if len(axes) > 1 or max(axes) >= batch:
        raise NeedRows(rows or [1], f"a draw of {node.op.name} reads several rows at once")
    [axis] = axes
    for i in parameters:
        own = axis - lead[i]
        if i not in rows and own >= 0 and not lengths_one(node.inputs[i], own):
            raise one_per_row(rows or [1], node.inputs[i])
    if rows and not isinstance(size, RowShape) and hasattr(node.inputs[1], "ndim"):
        raise NeedRows(rows, "size= is not of the rows' number. Leave it out, or begin it so")
    return int(axis)


def _row_count(node: Any, at: list[Placement]) -> Any:
    if isinstance(at[1], RowShape):
        return node.inputs[1][at[1].axis]
    i, axis = next((i, p.axis) for i, p in enumerate(at) if i > 1 and isinstance(p, Rows))
    return node.inputs[i].shape[axis]


def row_generator(node: Any, at: list[Placement]) -> Verdict:
    """A generator of each block; see `skdtheano.draws.RowGenerator`."""
    numbers_only(at)
    whole_only(at)
    return [Rows(0)]
