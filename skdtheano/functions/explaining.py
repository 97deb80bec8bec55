"""`explain`: what a function costs over the blocks of rows, before it is called."""

from collections.abc import Callable, Sequence
from typing import Any

from skdtheano.engine import Variable
from skdtheano.functions.costs import Cost, is_listed, op_name
from skdtheano.functions.cut_calls import CutCall, cut_call
from skdtheano.functions.explanation import Explanation, speedup_of
from skdtheano.functions.stage_tasks import StageTasks, nodes_of


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
        dtype, of float64 where `f` is traced; a tuple that is an option goes by name. Dask
        arrays are cut by rows as in a call. If there is none, the longest argument
        along axis 0 is cut, and those as long, but for what the function's `rows` and
        `replicated` say.
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


def _explained(call: CutCall, workers: int) -> Explanation:
    stages = [StageTasks(stage, call.row_chunks) for stage in call.stages]
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
    nodes = [node for piece in pieces for node in nodes_of(piece)]
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


def _span(call: CutCall, stages: Sequence[StageTasks], spent: Callable[[Cost], int]) -> int:
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
