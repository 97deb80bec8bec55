"""From a function and arguments to the plan that a call would run, and its blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
from dask.base import is_dask_collection

from skdtheano.engine import Variable
from skdtheano.functions.arguments import to_dask_or_numpy
from skdtheano.functions.graph_function import GraphFunction
from skdtheano.functions.lengths import SizedStage, sized_stages
from skdtheano.functions.options import Options
from skdtheano.functions.traced_function import TracedFunction
from skdtheano.graphs.plan import Plan

#: Blocks of arguments that are given in memory, or as shapes, where none are asked for.
DEFAULT_BLOCKS = 16


@dataclass(frozen=True)
class CutCall:
    """A call that is not made: the plan that it would run, and what it would run it on.

    Attributes
    ----------
    name : str
        Of the function.
    plan : Plan
    stages : list of SizedStage
        Of the plan.
    row_chunks : tuple of int
        Rows of each block.
    """

    name: str
    plan: Plan
    stages: list[SizedStage]
    row_chunks: tuple[int, ...]


def cut_call(
    f: Any,
    arguments: Sequence[Any],
    named: Mapping[str, Any],
    blocks: int | Sequence[int] | None,
) -> CutCall:
    """The plan of a call with such arguments, and its blocks; see `explain`."""
    if not isinstance(f, GraphFunction | TracedFunction):
        raise TypeError(
            f"{f!r} is not made by skdtheano.function. Decorate it: "
            "@skdtheano.function(target='dask')."
        )
    dtypes = [s.dtype for s in f.inputs] if isinstance(f, GraphFunction) else []
    given = [
        _empty(value, dtypes[place] if place < len(dtypes) else "float64")
        if _is_shape(value)
        else value
        for place, value in enumerate(arguments)
    ]
    stand_ins = [v for v, said in zip(given, arguments, strict=True) if _is_shape(said)]
    if isinstance(f, TracedFunction):
        graph, bound, _ = f.traced_for(given, named)
    else:
        graph, bound = f, f.bound(given, named)
    values = [
        to_dask_or_numpy(value, symbol, place)
        for place, (symbol, value) in enumerate(zip(graph.inputs, bound, strict=True))
    ]
    free = [any(value is stand_in for stand_in in stand_ins) for value in bound]
    values = _with_blocks(graph.inputs, values, free, graph.options)
    values += [np.asarray(shared.get_value()) for shared in graph.shared]
    options = graph.options
    cut = graph.cut(values)
    plan = graph.plan(cut.placements)
    chunks = _chunks(cut.row_chunks, blocks, any(is_dask_collection(v) for v in bound))
    return CutCall(options.name, plan, sized_stages(plan, cut.arguments), chunks)


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(n, int | np.integer) for n in value)


def _empty(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.broadcast_to(np.zeros((), dtype), shape)


def _with_blocks(
    symbols: Sequence[Variable], values: list[Any], free: Sequence[bool], options: Options
) -> list[Any]:
    """What is in memory and would be cut as a dask array; `free` are given as shapes."""
    lazy = [v for v in values if isinstance(v, da.Array) and v.ndim]
    candidates = lazy or [
        value
        for symbol, value in zip(symbols, values, strict=True)
        if value.ndim
        and symbol.name not in options.replicated
        and (options.rows is None or symbol.name in options.rows)
    ]
    if not candidates:
        return values
    # Of dask arrays, the one that has the blocks; see `arguments.cut_by_rows`.
    leads = max(candidates, key=lambda v: v.numblocks[0] if lazy else v.shape[0])
    n_rows = leads.shape[0]
    return [
        da.zeros(value.shape, dtype=value.dtype, chunks=-1)
        if not isinstance(value, da.Array)
        and value.ndim
        and (is_free or not lazy)
        and value.shape[0] == n_rows
        and symbol.name not in options.replicated
        else value
        for symbol, value, is_free in zip(symbols, values, free, strict=True)
    ]


def _chunks(
    own: Sequence[float], blocks: int | Sequence[int] | None, lazy: bool
) -> tuple[int, ...]:
    """Rows of each block: those that are asked for, or those of the arguments."""
    if blocks is None and not lazy:
        blocks = DEFAULT_BLOCKS
    if blocks is not None and not isinstance(blocks, int | np.integer):
        chunks = tuple(int(rows) for rows in blocks)
        if not chunks or min(chunks) < 0:
            raise ValueError(f"blocks={blocks!r} holds no numbers of rows.")
        if not np.isnan(own).any() and sum(chunks) != sum(own):
            raise ValueError(
                f"blocks= has {sum(chunks)} rows together, and the arguments {sum(own):g}."
            )
        return chunks
    if np.isnan(own).any():
        raise ValueError(
            "The numbers of rows are not known. Call compute_chunk_sizes() on the arguments, "
            "or say how many rows each block has: blocks=(1000, 1000)."
        )
    if blocks is None:
        return tuple(int(rows) for rows in own)
    if blocks < 1:
        raise ValueError(f"blocks={blocks!r} is no number of blocks. Give 1 or more.")
    edges = np.linspace(0, sum(own), int(blocks) + 1).round().astype(int)
    return tuple(int(rows) for rows in np.diff(edges))
