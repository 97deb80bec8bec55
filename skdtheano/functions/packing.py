"""From a plan, which holds symbols, to a staged one, which does not."""

from collections.abc import Iterator
from typing import Any

from skdtheano.engine import Variable
from skdtheano.graphs.placement import Rows
from skdtheano.graphs.plan import Piece, Plan
from skdtheano.runtime.pieces import source_of
from skdtheano.runtime.staged import Staged, Step


def pack(plan: Plan, mode: str, name: str) -> Staged:
    """Number the symbols of a plan and pack its pieces.

    Parameters
    ----------
    plan : Plan
    mode : str
        The engine's compile mode.
    name : str
        For people.
    """
    numbers = {symbol: i for i, symbol in enumerate(plan.inputs)}
    axes: dict[Variable, int | None] = {
        symbol: placement.axis if isinstance(placement, Rows) else None
        for symbol, placement in zip(plan.inputs, plan.placements, strict=True)
    }
    if plan.first_row is not None:
        numbers[plan.first_row] = len(numbers)
    if plan.n_rows is not None:
        numbers[plan.n_rows] = len(numbers)
    for result in _results(plan):
        numbers[result.symbol] = len(numbers)
        axes[result.symbol] = result.axis

    def step(piece: Piece, what: str) -> Step | None:
        if not piece.results:
            return None
        return Step(
            source=source_of(
                piece.inputs,
                [result.value for result in piece.results],
                mode,
                f"{name}-{what}",
            ),
            reads=tuple(numbers[symbol] for symbol in piece.inputs),
            writes=tuple(numbers[result.symbol] for result in piece.results),
            verbs=tuple(
                None if r.combine is None else (r.combine.verb, r.combine.axis)
                for r in piece.results
            ),
            read_axes=tuple(axes.get(symbol) for symbol in piece.inputs),
            write_axes=tuple(result.axis for result in piece.results),
            read_dtypes=tuple(str(symbol.dtype) for symbol in piece.inputs),
        )

    return Staged(
        once=tuple(step(stage.once, "once") for stage in plan.stages),
        block=tuple(step(stage.block, "rows") for stage in plan.stages),
        n_arguments=len(plan.inputs),
        row_axes=tuple(axes[symbol] for symbol in plan.inputs),
        first_row=None if plan.first_row is None else numbers[plan.first_row],
        n_rows=None if plan.n_rows is None else numbers[plan.n_rows],
        outputs=tuple(numbers[symbol] for symbol in plan.outputs),
        output_axes=plan.row_axes,
    )


def _results(plan: Plan) -> Iterator[Any]:
    for stage in plan.stages:
        yield from stage.once.results
        yield from stage.block.results
