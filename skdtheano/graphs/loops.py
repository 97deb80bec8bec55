"""The rule of Scan: rows may lie along any axis but that of the steps.

Each step is placed as a graph of its own. What it reads of a sequence, and of a state, has
its rows one axis before those of the whole, since the first axis there is the steps'.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from skdtheano import scans, symbolic
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
    RowNumbers,
    Rows,
    Same,
    Verdict,
    of_rows,
)

PlaceNode = Callable[[Any, list[Placement]], Verdict]

#: States that may be sums over rows, each tried both ways: more would take long.
_MAX_SUMS = 6


ALONG_ROWS = (
    "the loop steps along the rows, one after another. Compute on all rows at once, without "
    "the loop, or let it step along another axis"
)


def scan(node: Any, at: list[Placement], place_node: PlaceNode) -> Verdict:
    """Place a loop by placing one of its steps."""
    loop = scans.loop_of(node)
    rows = [i for i, p in enumerate(at) if of_rows(p)]
    if any(isinstance(at[i], RowNumbers) for i in rows):
        raise NeedNumbers([i for i in rows if isinstance(at[i], RowNumbers)])
    parts = [i for i, p in enumerate(at) if isinstance(p, PARTS)]
    sums = [
        k
        for k, state in enumerate(loop.states)
        if not of_rows(at[state.outer])
        and (at[state.outer] == Partial("sum") or symbolic.is_zero(node.inputs[state.outer]))
    ]
    allowed = {loop.states[k].outer for k in sums}
    if any(i not in allowed for i in parts):
        raise NeedWhole([i for i in parts if i not in allowed])
    if loop.is_while and rows:
        raise NeedRows(rows, "the loop ends by a condition, which each block would meet alone")
    timed = [*loop.sequences, *(state.outer for state in loop.states)]
    along = [i for i in timed if at[i] == Rows(0)]
    if along:
        raise NeedRows(along, ALONG_ROWS)
    reason = "no placement of its states fits"
    for chosen in product((False, True), repeat=min(len(sums), _MAX_SUMS)):
        summed = {k for k, is_sum in zip(sums, chosen, strict=False) if is_sum}
        try:
            return _placed(node, loop, at, summed, place_node)
        except _Misfit as misfit:
            reason = str(misfit)
    if parts:
        raise NeedWhole(parts)
    raise NeedRows(
        rows or [0],
        f"a step of the loop cannot be computed by block: {reason}. A "
        "Python loop over the steps, unrolled while the function is traced, can",
    )


class _Misfit(Exception):
    """A step does not fit the placement that its states are taken to have."""


def _placed(
    node: Any, loop: scans.Loop, at: list[Placement], summed: set[int], place_node: PlaceNode
) -> list[Placement]:
    known: dict[Variable, Placement] = {}
    for outer, inner in zip(loop.sequences, loop.inner_sequences, strict=True):
        known[inner] = _of_one_step(at[outer])
    for k, state in enumerate(loop.states):
        placed = Partial("sum") if k in summed else _of_one_step(at[state.outer])
        if isinstance(placed, PARTS) and k not in summed:
            raise _Misfit("a state is a part")
        known.update(dict.fromkeys(state.inner, placed))
    for outer, inner in zip(loop.constants, loop.inner_constants, strict=True):
        known[inner] = at[outer]
    outputs: list[Placement] = []
    for k, state in enumerate(loop.states):
        held = Partial("sum") if k in summed else _of_one_step(at[state.outer])
        for variable in state.inner_outputs:
            found = _place(variable, known, place_node)
            if _is_plain(found) and k in summed:
                raise _Misfit("a state is no sum over the rows")
            if found != held and not (_is_plain(found) and _is_plain(held)):
                raise _Misfit(
                    "a state begins without rows and gets some. Begin with zeros_like"
                )
        outputs.append(_of_all_steps(held))
    for variable in loop.traced:
        outputs.append(_of_all_steps(_place(variable, known, place_node)))
    rest = len(node.outputs) - len(outputs)
    return [*outputs, *[SAME] * rest]


def _is_plain(placement: Placement) -> bool:
    return placement in (REPLICATED, SAME)


def _of_one_step(placement: Placement) -> Placement:
    return Rows(placement.axis - 1) if isinstance(placement, Rows) else placement


def _of_all_steps(placement: Placement) -> Placement:
    if isinstance(placement, Rows):
        return Rows(placement.axis + 1)
    if isinstance(placement, RowNumbers):
        raise _Misfit("a step gives row numbers")
    if isinstance(placement, PARTS) and not isinstance(placement, Partial):
        raise _Misfit("a step gives the number of rows")
    return placement if isinstance(placement, Partial | Same) else SAME


def _place(
    variable: Variable, known: dict[Variable, Placement], place_node: PlaceNode
) -> Placement:
    """Placement of a variable of a step; its combines would need the other blocks."""
    for node in symbolic.toposort([variable], set(known)):
        if all(v in known for v in node.outputs):
            continue
        inputs: Sequence[Placement] = [known.get(v, REPLICATED) for v in node.inputs]
        try:
            verdict = place_node(node, list(inputs))
        except (NeedWhole, NeedNumbers) as need:
            raise _Misfit(f"{node} needs values of all rows") from need
        except NeedRows as need:
            raise _Misfit(f"{node}: {need.reason}") from need
        if isinstance(verdict, Rewritten):
            verdict = [_place(new, known, place_node) for new in verdict.outputs]
        known.update(zip(node.outputs, verdict, strict=True))
    return known.get(variable, REPLICATED)
