"""Cutting one piece out of a graph that is placed."""

from collections.abc import Callable, Container, Sequence
from dataclasses import replace

from skdtheano import symbolic
from skdtheano.engine import Variable
from skdtheano.graphs.plan import Piece, Result


def cut_out(
    results: Sequence[Result],
    symbols: Container[Variable],
    reads: Callable[[Variable], Variable | None],
) -> Piece:
    """Replace what other pieces compute by symbols, and list the symbols read.

    Parameters
    ----------
    results : sequence of Result
        Of the piece; their values are made of the whole graph.
    symbols : container of Variable
        Of the plan: where the graph ends.
    reads : callable
        From a variable to the symbol under which the piece finds it, or None if the piece
        computes it.
    """
    replaced: dict[Variable, Variable] = {}
    inputs: dict[Variable, None] = {}

    def visit(variable: Variable) -> Variable:
        stack = [variable]
        while stack:
            top = stack[-1]
            if top in replaced:
                stack.pop()
                continue
            symbol = top if top in symbols else reads(top)
            if symbol is not None:
                inputs[symbol] = None
                replaced[top] = symbol
                continue
            if top.owner is None:
                replaced[top] = top
                continue
            waiting = [v for v in top.owner.inputs if v not in replaced]
            if waiting:
                stack.extend(waiting)
                continue
            node = symbolic.rebuild(top.owner, [replaced[v] for v in top.owner.inputs])
            for old, new in zip(top.owner.outputs, node.outputs, strict=True):
                replaced.setdefault(old, new)
        return replaced[variable]

    cut = tuple(replace(result, value=visit(result.value)) for result in results)
    return Piece(tuple(inputs), cut)
