"""One rule per Op: from where its inputs are to where its outputs are.

A rule takes a node and the placements of its inputs. It returns those of its outputs, or
other symbols that the node stands for (`Rewritten`), or raises what it needs first:
`NeedWhole`, `NeedNumbers`, `NeedRows`. Rules are found by the name of the Op's class or of
one of its bases; the names are those of both engines.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from skdtheano import engine, symbolic
from skdtheano.graphs.loops import scan
from skdtheano.graphs.placement import (
    PARTS,
    REPLICATED,
    SAME,
    NeedRows,
    NeedWhole,
    Partial,
    Placement,
    Rewritten,
    Same,
    Verdict,
    of_rows,
)
from skdtheano.graphs.rules.entrywise import (
    along_axis,
    argmax,
    dimshuffle,
    elemwise,
    reduction,
    softmax,
    softmax_gradient,
    unchanged,
)
from skdtheano.graphs.rules.indexing import (
    inc_subtensor,
    put,
    subtensor,
    take,
)
from skdtheano.graphs.rules.needs import (
    whole_only,
)
from skdtheano.graphs.rules.products import (
    batched_dot,
    blockwise,
    dot,
)
from skdtheano.graphs.rules.random import random_variable, row_generator
from skdtheano.graphs.rules.shapes import (
    alloc,
    arange,
    checked,
    join,
    make_vector,
    reshape,
    shape,
    shape_i,
    specified,
    split,
)

Rule = Callable[[Any, list[Placement]], Verdict]


def place_node(node: Any, at: list[Placement]) -> Verdict:
    """Placements of a node's outputs.

    Parameters
    ----------
    node : Apply
    at : list of Placement
        Of its inputs.

    Raises
    ------
    NeedWhole, NeedNumbers, NeedRows
    """
    if _stretches_nothing(node):
        # The gradient of a loss begins so, and is not to wait for the loss.
        return Rewritten([engine.cast(node.inputs[1], node.outputs[0].dtype)])
    if not any(of_rows(p) or isinstance(p, (*PARTS, Same)) for p in at):
        return [REPLICATED] * len(node.outputs)
    for kind in type(node.op).__mro__:
        if kind.__name__ in RULES:
            verdict = RULES[kind.__name__](node, at)
            if not isinstance(verdict, Rewritten):
                _combine_before_widening(node, at, verdict)
            return verdict
    whole_only(at)
    rows = [i for i, p in enumerate(at) if of_rows(p)]
    if not rows:
        return [SAME] * len(node.outputs)
    raise NeedRows(
        rows,
        f"{type(node.op).__name__} has no rule for rows. Write it with Ops that have one, or "
        "call it on replicated values only",
    )


def _combine_before_widening(
    node: Any, at: Sequence[Placement], verdict: Sequence[Placement]
) -> None:
    """Ask for the whole of parts that would go on as parts of another dtype.

    The whole of an integer wraps, and that of a bool is one "or" of all blocks, in their own
    dtype: in a wider one their blocks add up to something else.
    """
    for variable, placed in zip(node.outputs, verdict, strict=True):
        if isinstance(placed, Partial):
            early = [
                i
                for i, p in enumerate(at)
                if p == placed and not _goes_on(node.inputs[i].dtype, variable.dtype)
            ]
            if early:
                raise NeedWhole(early)


def _goes_on(old: str, new: str) -> bool:
    floats = np.dtype(old).kind in "fc" and np.dtype(new).kind in "fc"
    return old == new or (floats and np.can_cast(old, new))


def _stretches_nothing(node: Any) -> bool:
    """Whether a node is ``second(a, b)`` and that is b: a has one entry, b as many axes."""
    if type(getattr(node.op, "scalar_op", None)).__name__ != "Second":
        return False
    shape_of, value = node.inputs
    return value.ndim == shape_of.ndim and all(shape_of.type.broadcastable)


def inlined(node: Any, at: list[Placement]) -> Verdict:
    """An Op that is a graph itself stands for that graph."""
    return Rewritten(symbolic.inner_graph(node))


def loop(node: Any, at: list[Placement]) -> Verdict:
    """Scan: see `skdtheano.graphs.loops`."""
    return scan(node, at, place_node)


RULES: dict[str, Rule] = {
    "Elemwise": elemwise,
    "DimShuffle": dimshuffle,
    "CAReduce": reduction,
    "Argmax": argmax,
    "MaxAndArgmax": argmax,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "SoftmaxGrad": softmax_gradient,
    "Dot": dot,
    "Blockwise": blockwise,
    "BatchedDot": batched_dot,
    "Shape": shape,
    "Shape_i": shape_i,
    "Subtensor": subtensor,
    "IncSubtensor": inc_subtensor,
    "AdvancedSubtensor1": take,
    "AdvancedSubtensor": take,
    "AdvancedIncSubtensor1": put,
    "AdvancedIncSubtensor": put,
    "Alloc": alloc,
    "AllocEmpty": alloc,
    "MakeVector": make_vector,
    "Join": join,
    "Split": split,
    "Reshape": reshape,
    "ARange": arange,
    "CheckAndRaise": checked,
    "Assert": checked,
    "ViewOp": unchanged,
    "ZeroGrad": unchanged,
    "DisconnectedGrad": unchanged,
    "GradClip": unchanged,
    "GradScale": unchanged,
    "DeepCopyOp": unchanged,
    "TensorFromScalar": unchanged,
    "ScalarFromTensor": unchanged,
    "Rebroadcast": unchanged,
    "SpecifyShape": specified,
    "RandomVariable": random_variable,
    "RowGenerator": row_generator,
    "OpFromGraph": inlined,
    "CumOp": along_axis,
    "SortOp": along_axis,
    "ArgSortOp": along_axis,
    "Repeat": along_axis,
    "Scan": loop,
}
