"""Whether a plan computes what its graph does: a check that knows no rule of any Op.

On a table of one block every combine gives what it is given, so the pieces of a plan, put
into each other, must be the graph again, node by node. And whatever the blocks, a piece may
read only what is known where and when it runs, and nothing is computed by two pieces.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from skdtheano import symbolic
from skdtheano.engine import Variable
from skdtheano.graphs.plan import Piece, Plan


def verify(
    plan: Plan,
    inputs: Sequence[Variable],
    outputs: Sequence[Variable],
    rewritten: Mapping[Variable, Variable],
    numbered: Mapping[Variable, Variable],
    counted: Mapping[tuple[Any, int], Variable],
) -> None:
    """Check a plan against the graph that it was made from.

    Parameters
    ----------
    plan : Plan
    inputs, outputs : sequence of Variable
        Of the graph.
    rewritten : dict
        Variables of the graph, and what a rule has put in their place.
    numbered : dict
        Row numbers of the table that were made from those of a block.
    counted : dict
        Nodes of the graph and their inputs that were the number of rows of a block, and
        that of the table, which they read instead. Outputs have None for a node.

    Raises
    ------
    AssertionError
        If the plan is wrong, which is a fault of this package.
    """
    _check_order(plan)
    _check_once(plan)
    pieces = _Inliner(
        {symbol: symbol for symbol in plan.inputs}, rewritten, numbered, {}, plan.first_row
    )
    for stage in plan.stages:
        for piece in (stage.once, stage.block):
            for result in piece.results:
                pieces.known[result.symbol] = pieces.inlined(result.value)
    theirs = [pieces.inlined(symbol) for symbol in plan.outputs]
    # What a rule has put in is written with the symbols of combined values.
    known = {**pieces.known, **dict(zip(inputs, plan.inputs, strict=True))}
    whole = _Inliner(known, rewritten, numbered, counted, plan.first_row)
    ours = [
        counted.get((None, k), whole.inlined(variable)) for k, variable in enumerate(outputs)
    ]
    leaves = [*plan.inputs, *([] if plan.n_rows is None else [plan.n_rows])]
    graphs = [symbolic.merged(leaves, graph) for graph in (ours, theirs)]
    assert symbolic.same_graph(leaves, *graphs), (
        "the pieces of the plan do not add up to the graph"
    )


def _check_order(plan: Plan) -> None:
    """Every piece reads only what is known, and a piece that runs once reads no block."""
    known = {*plan.inputs, plan.first_row, plan.n_rows}
    for number, stage in enumerate(plan.stages):
        for what, piece in (("once", stage.once), ("block", stage.block)):
            unknown = [v for v in piece.inputs if v not in known]
            assert not unknown, f"{what} of stage {number} reads {unknown}"
            free = symbolic.leaves([r.value for r in piece.results], set(piece.inputs))
            odd = [v for v in free if v not in piece.inputs and not symbolic.is_constant(v)]
            assert not odd, f"{what} of stage {number} depends on {odd}"
            if what == "once":
                of_blocks = plan.per_block & set(piece.inputs)
                assert not of_blocks, f"once of stage {number} reads {of_blocks} of a block"
                known |= {result.symbol for result in piece.results}
        for result in stage.block.results:
            stays = result.symbol in plan.per_block
            assert stays == (result.combine is None), f"{result.value} stays and is combined"
        known |= {result.symbol for result in stage.block.results}
    assert set(plan.outputs) <= known, "an output is not computed"


def _check_once(plan: Plan) -> None:
    """No two results of a plan are equal, so that nothing is computed twice."""
    seen: set[tuple[str, str]] = set()
    for stage in plan.stages:
        for piece in (stage.once, stage.block):
            for result in piece.results:
                key = symbolic.graph_key(_inputs_in_order(plan, piece), [result.value])
                entry = (key, str(result.combine))
                assert entry not in seen, f"{result.value} is computed by two pieces"
                seen.add(entry)


def _inputs_in_order(plan: Plan, piece: Piece) -> list[Variable]:
    symbols = [*plan.inputs, *(v for v in (plan.first_row, plan.n_rows) if v is not None)]
    for stage in plan.stages:
        symbols += [r.symbol for r in (*stage.once.results, *stage.block.results)]
    return symbols


class _Inliner:
    """Writes variables out in terms of the plan's inputs."""

    def __init__(
        self,
        known: dict[Variable, Variable],
        rewritten: Mapping[Variable, Variable],
        numbered: Mapping[Variable, Variable],
        counted: Mapping[tuple[Any, int], Variable],
        first_row: Variable | None,
    ) -> None:
        self.known = known
        self.counted = counted
        self.replaced = {**rewritten, **numbered}
        self.first_row = first_row

    def inlined(self, variable: Variable) -> Variable:
        stack = [variable]
        while stack:
            top = stack[-1]
            if top in self.known:
                stack.pop()
                continue
            other = self.replaced.get(top)
            if other is not None:
                waiting = [other] if other not in self.known else []
            else:
                inputs = top.owner.inputs if top.owner is not None else ()
                waiting = [v for v in inputs if v not in self.known]
            if waiting:
                stack += waiting
            elif other is not None:
                self.known[top] = self.known[other]
            elif top.owner is None:
                self.known[top] = top
            else:
                inputs = [
                    self.counted.get((top.owner, i), self.known[v])
                    for i, v in enumerate(top.owner.inputs)
                ]
                same = self._unnumbered(top.owner, inputs)
                if same is not None:
                    self.known[top] = same
                    continue
                node = symbolic.rebuild(top.owner, inputs)
                for old, new in zip(top.owner.outputs, node.outputs, strict=True):
                    self.known.setdefault(old, new)
        return self.known[variable]

    def _unnumbered(self, node: Any, inputs: Sequence[Variable]) -> Variable | None:
        """The rows' numbers in the block, of those in the table: the same in one block."""
        scalar = type(getattr(node.op, "scalar_op", None)).__name__
        if self.first_row is None:
            return None
        if scalar == "Cast" and inputs[0].dtype == node.outputs[0].dtype:
            return inputs[0]
        if scalar != "Add" or len(inputs) != 2:
            return None
        for number, added in (inputs, inputs[::-1]):
            if symbolic.leaves([added], ()) == {self.first_row}:
                return number
        return None
