"""`explain`: what a function costs over the blocks of rows, before it is called."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import dask.array as da
import numpy as np
from dask.base import is_dask_collection

from skdtheano.engine import Variable
from skdtheano.functions.arguments import to_dask_or_numpy
from skdtheano.functions.costs import Cost, cost_of, is_listed, op_name
from skdtheano.functions.explanation import (
    CombineCost,
    Explanation,
    PieceCost,
    StageCost,
    speedup_of,
)
from skdtheano.functions.graph_function import GraphFunction
from skdtheano.functions.lengths import Shape, SizedPiece, SizedStage, sized_stages
from skdtheano.functions.options import Options
from skdtheano.functions.traced_function import TracedFunction
from skdtheano.graphs.plan import Plan
from skdtheano.runtime.lazy import FAN_IN

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


def explain(
    f: Any,
    *arguments: Any,
    blocks: int | Sequence[int] | None = None,
    workers: int = 16,
    **named: Any,
) -> Explanation:
    """Tell what a function would do for such arguments; nothing is computed.

    Parameters
    ----------
    f : callable
        Made by `skdtheano.function`, with any target.
    *arguments : array, dask array or tuple of int
        As for a call; or, by position, shapes. A shape stands for an array of the input's
        dtype, of float64 where `f` is traced. Dask arrays are cut by rows as in a call. If
        there is none, the longest argument along axis 0 is cut, and those as long, but for
        what the function's `rows` and `replicated` say.
    blocks : int or sequence of int, optional
        How many blocks of rows, or how many rows each has. By default those of the dask
        arrays, and 16 where there are none.
    workers : int
        Speed-ups are predicted for 1 to so many.
    **named
        Further arguments by name, as for a call.

    Returns
    -------
    Explanation
        Operations (flops) and bytes by stage, those that run in parallel, the longest path
        and the predicted speed-ups. They are those of the graph as it is written: what the
        engine's compiler saves is not counted.

    Raises
    ------
    TypeError
        If `f` is not made by `skdtheano.function`.
    ValueError
        If the number of rows is not known; PlacementError if the graph cannot be cut.

    Examples
    --------
    >>> import skdtheano
    >>> @skdtheano.function(target="dask")
    ... def gram(X):
    ...     return X.T.dot(X)
    >>> skdtheano.explain(gram, (1000, 5), blocks=10, workers=4)
    gram: 1,000 rows in 10 blocks of 100, 1 stage
    stage  piece    runs  flops  bytes  Ops
        0  block      10   50 k   82 k  DimShuffle, Dot
        0  combine          225    2 k  sum: 200 B per block, 2 levels
    work 50.2 kflop, span (longest path) 5.2 kflop, 99.55 % of the work on blocks, 200 B \
combined per block
    predicted speed-up: 1 on 1 worker, 1.99 on 2 workers, 3.3 on 4 workers
    """
    if workers < 1:
        raise ValueError(f"workers={workers!r} is no number of workers. Give 1 or more.")
    return _explained(cut_call(f, arguments, named, blocks), workers)


# --- from arguments to a plan ---------------------------------------------------------------


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


# --- from a plan to its costs ---------------------------------------------------------------


def _explained(call: CutCall, workers: int) -> Explanation:
    stages = [_StageTasks(stage, call.row_chunks) for stage in call.stages]
    unit = "flops" if any(stage.cost.flops for stage in stages) else "bytes"
    spent: Callable[[Cost], int] = (
        (lambda cost: cost.flops) if unit == "flops" else (lambda cost: cost.bytes)
    )
    levels = tuple(
        tuple(sorted(map(spent, level), reverse=True))
        for stage in stages
        for level in stage.levels()
    )
    work = sum(map(sum, levels))
    on_blocks = sum(spent(cost) for stage in stages for cost in stage.block)
    counts = tuple(range(1, workers + 1))
    pieces = [piece for stage in call.stages for piece in (stage.once, stage.block)]
    nodes = [node for piece in pieces for node in _nodes(piece)]
    return Explanation(
        name=call.name,
        row_chunks=call.row_chunks,
        stages=tuple(stage.summary() for stage in stages),
        work=work,
        span=_span(call, stages, spent),
        unit=unit,
        parallel_fraction=on_blocks / work if work else 1.0,
        workers=counts,
        speedups=tuple(speedup_of(levels, p) for p in counts),
        unlisted=tuple(sorted({op_name(n.op) for n in nodes if not is_listed(n.op)})),
        levels=levels,
    )


class _StageTasks:
    """The tasks of one stage and what each costs.

    Attributes
    ----------
    once : Cost
    block : list of Cost
        By block.
    tree : list of list of (list of int, Cost)
        By level of the tree of combines: of each of its tasks, which it combines of the
        level below, the blocks at first, and its cost.
    """

    def __init__(self, stage: SizedStage, row_chunks: tuple[int, ...]) -> None:
        total = sum(row_chunks)
        self.stage = stage
        self.once = _piece_cost(stage.once, 0, total)
        by_rows = {
            rows: _piece_cost(stage.block, rows, total) for rows in dict.fromkeys(row_chunks)
        }
        self.block = [by_rows[rows] for rows in row_chunks]
        self.results = [r for r in stage.block.piece.results if r.combine is not None]
        parts = {
            rows: [
                (
                    _entries(stage.block.shapes[r.value], rows, total),
                    np.dtype(r.value.dtype).itemsize,
                )
                for r in self.results
            ]
            for rows in by_rows
        }
        self.part_bytes = [
            sum(entries * size for entries, size in parts[rows]) for rows in row_chunks
        ]
        joined = [r.combine is not None and r.combine.verb == "rows" for r in self.results]
        self.joined_bytes = [
            sum(
                n * size for (n, size), joins in zip(parts[rows], joined, strict=True) if joins
            )
            for rows in row_chunks
        ]
        # Verbs that pick, or that join rows, compute nothing.
        self.part_flops = sum(
            entries
            for r, (entries, _) in zip(self.results, parts[row_chunks[0]], strict=True)
            if r.combine is not None and r.combine.verb not in ("same", "rows")
        )
        self.tree = self._tree() if self.results else []

    def _tree(self) -> list[list[tuple[list[int], Cost]]]:
        """As `skdtheano.runtime.lazy` makes it."""
        levels: list[list[tuple[list[int], Cost]]] = []
        joined = self.joined_bytes
        fixed = self.part_bytes[0] - joined[0]
        while not levels or len(joined) > 1:
            groups = [
                list(range(i, min(i + FAN_IN, len(joined))))
                for i in range(0, len(joined), FAN_IN)
            ]
            joined = [sum(joined[i] for i in group) for group in groups]
            levels.append(
                [
                    (
                        group,
                        Cost((len(group) - 1) * self.part_flops, len(group) * fixed + rows),
                    )
                    for group, rows in zip(groups, joined, strict=True)
                ]
            )
        return levels

    @property
    def cost(self) -> Cost:
        return sum((c for level in self.levels() for c in level), Cost())

    def levels(self) -> list[list[Cost]]:
        return [
            [self.once],
            self.block,
            *([cost for _, cost in level] for level in self.tree),
        ]

    def summary(self) -> StageCost:
        runs = len(self.block)
        return StageCost(
            once=_summary(self.stage.once, 1, self.once),
            block=_summary(self.stage.block, runs, sum(self.block, Cost())),
            combine=CombineCost(
                verbs=tuple(r.combine.verb for r in self.results if r.combine is not None),
                block_bytes=max(self.part_bytes),
                bytes=sum(self.part_bytes),
                flops=sum(cost.flops for level in self.tree for _, cost in level),
                levels=len(self.tree),
            ),
        )


def _entries(shape: Shape, rows: int, total: int) -> int:
    return prod(length.at(rows, total) for length in shape)


def _nodes(piece: SizedPiece) -> list[Any]:
    """All nodes of a piece; of what a loop repeats, each once."""
    return [*piece.nodes, *(node for loop in piece.loops.values() for node in loop.nodes)]


def _piece_cost(piece: SizedPiece, rows: int, total: int) -> Cost:
    def sizes(variable: Variable) -> tuple[int, ...] | None:
        shape = piece.shapes.get(variable)
        return None if shape is None else tuple(n.at(rows, total) for n in shape)

    def cost(node: Any) -> Cost:
        loop = piece.loops.get(node)
        if loop is None:
            return cost_of(node, sizes)
        return sum(map(cost, loop.nodes), Cost()) * _entries(
            piece.shapes[loop.steps], rows, total
        )

    return sum(map(cost, piece.nodes), Cost())


def _summary(piece: SizedPiece, runs: int, cost: Cost) -> PieceCost:
    ops = Counter(op_name(node.op) for node in _nodes(piece))
    return PieceCost(tuple(ops.most_common()), runs if piece.piece.results else 0, cost)


def _span(call: CutCall, stages: Sequence[_StageTasks], spent: Callable[[Cost], int]) -> int:
    """The longest path: when the last output is there if no task waits for a worker."""
    known: dict[Variable, int] = {}
    here: list[dict[Variable, int]] = [{} for _ in call.row_chunks]
    for stage in stages:
        once, block = stage.stage.once.piece, stage.stage.block.piece
        start = max((known.get(symbol, 0) for symbol in once.inputs), default=0)
        for result in once.results:
            known[result.symbol] = start + spent(stage.once)
        ends = []
        for cost, there in zip(stage.block, here, strict=True):
            begin = max((there.get(s, known.get(s, 0)) for s in block.inputs), default=0)
            ends.append(begin + spent(cost))
            there.update({r.symbol: ends[-1] for r in block.results if r.combine is None})
        for level in stage.tree:
            ends = [max(ends[i] for i in group) + spent(cost) for group, cost in level]
        known.update({r.symbol: max(ends) for r in stage.results})
    outputs = call.plan.outputs
    return max(max([known.get(s, 0), *(there.get(s, 0) for there in here)]) for s in outputs)
