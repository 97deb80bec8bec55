"""Walking, reading and rebuilding graphs, as both engines have them.

Nodes and variables are the engine's: a variable has an `owner`, the node that makes it; a node
has an `op`, `inputs` and `outputs`.
"""

import copy
import hashlib
import io
import pickle
from collections.abc import Collection, Sequence
from typing import Any

import cloudpickle
import numpy as np

from skdtheano import engine
from skdtheano.engine import Variable


def without_axes(variable: Variable, axes: tuple[int, ...]) -> Variable:
    """The variable without axes of length 1."""
    return variable.dimshuffle(*[axis for axis in range(variable.ndim) if axis not in axes])


def shared_variables(
    outputs: Sequence[Variable], known: Collection[Variable]
) -> list[Variable]:
    """Variables that `outputs` depend on, not behind `known`, and that hold a value."""
    found: dict[Variable, None] = {}
    for variable in outputs:
        if hasattr(variable, "get_value"):
            found[variable] = None
    for node in toposort(outputs, known):
        for variable in node.inputs:
            if variable.owner is None and hasattr(variable, "get_value"):
                found[variable] = None
    return list(found)


def substituted(
    outputs: Sequence[Variable], replacements: dict[Variable, Variable]
) -> list[Variable]:
    """The outputs, of a graph in which variables are replaced by others of their type."""
    there = dict(replacements)
    for node in toposort(outputs, set(replacements)):
        ours = rebuild(node, [there.get(v, v) for v in node.inputs])
        for old, new in zip(node.outputs, ours.outputs, strict=True):
            there.setdefault(old, new)
    return [there.get(v, v) for v in outputs]


def reached(outputs: Sequence[Variable], known: Collection[Variable]) -> set[Variable]:
    """All variables that `outputs` are made of, down to `known` and to leaves."""
    found = set(outputs)
    for node in toposort(outputs, known):
        found |= set(node.inputs)
    return found


def leaves(outputs: Sequence[Variable], known: Collection[Variable]) -> set[Variable]:
    """Variables without a node that `outputs` are made of, not looking behind `known`."""
    return {variable for variable in reached(outputs, known) if variable.owner is None}


def toposort(outputs: Sequence[Variable], known: Collection[Variable]) -> list[Any]:
    """Nodes that `outputs` depend on, each after those it reads; none behind `known`."""
    nodes: dict[Any, None] = {}
    stack = [variable.owner for variable in outputs if variable not in known]
    while stack:
        node = stack.pop()
        if node is None or node in nodes:
            continue
        waiting = [
            v.owner
            for v in node.inputs
            if v.owner is not None and v not in known and v.owner not in nodes
        ]
        if waiting:
            stack += [node, *waiting]
        else:
            nodes[node] = None
    return list(nodes)


def rebuild(node: Any, inputs: Sequence[Variable]) -> Any:
    """The node with other inputs; the same one where they are its own."""
    # Nodes inside an Op that is a graph are frozen in PyTensor 3.3: no graph but their
    # own takes them, and they have no clones.
    is_frozen = not hasattr(node, "clone_with_new_inputs")
    pairs = list(zip(inputs, node.inputs, strict=True))
    if not is_frozen and all(new is old for new, old in pairs):
        return node
    # Types are worked out anew: a block has another number of rows than a type may say.
    if not is_frozen and all(new.type == old.type for new, old in pairs):
        return node.clone_with_new_inputs(list(inputs))
    return node.op.make_node(*inputs)


def merged(inputs: Sequence[Variable], outputs: Sequence[Variable]) -> list[Variable]:
    """The outputs, of a graph in which equal nodes are one; over the same inputs."""
    graph = engine.graph_of(list(inputs), list(outputs), clone=True)
    engine.merge_equal_nodes(graph)
    back = dict(zip(graph.inputs, inputs, strict=True))
    for node in toposort(graph.outputs, back):
        ours = rebuild(node, [back.get(v, v) for v in node.inputs])
        back.update(zip(node.outputs, ours.outputs, strict=True))
    return [back.get(v, v) for v in graph.outputs]


class _Pickler(cloudpickle.Pickler):
    """Pickles graphs that have been compiled: some Ops then keep a function that does not."""

    def reducer_override(self, thing: Any) -> Any:
        if "_ufunc" in getattr(thing, "__dict__", ()):
            thing = copy.copy(thing)
            del thing._ufunc
            return thing.__reduce_ex__(2)
        return super().reducer_override(thing)


def dumps(thing: Any) -> bytes:
    """Pickle what holds symbols; ``pickle.loads`` reads it."""
    file = io.BytesIO()
    _Pickler(file).dump(thing)
    return file.getvalue()


def graph_key(inputs: Sequence[Variable], outputs: Sequence[Variable]) -> str:
    """A hash of what a graph computes, equal in any process; names do not count."""
    digest = hashlib.sha256(engine.ENGINE.encode())
    numbers: dict[Any, int] = {}
    for variable in inputs:
        numbers[variable] = len(numbers)
        digest.update(repr(variable.type).encode())

    def number_of(variable: Any) -> int:
        if variable not in numbers:  # a constant
            numbers[variable] = len(numbers)
            data = variable.data
            # Theano's types do not tell lengths.
            digest.update(f"constant {variable.type!r} {np.shape(data)}".encode())
            digest.update(
                data.tobytes() if isinstance(data, np.ndarray) else pickle.dumps(data)
            )
        return numbers[variable]

    for node in toposort(outputs, set(inputs)):
        read = [number_of(variable) for variable in node.inputs]
        digest.update(dumps(node.op))
        digest.update(repr(read).encode())
        for variable in node.outputs:
            numbers[variable] = len(numbers)
            digest.update(repr(variable.type).encode())
    digest.update(repr([number_of(variable) for variable in outputs]).encode())
    return digest.hexdigest()


def identity_of(variable: Variable) -> Any:
    """Equal for two constants of one type and value; else the variable itself."""
    if not is_constant(variable):
        return variable
    data = variable.data
    if isinstance(data, np.ndarray):
        return variable.type, data.dtype.str, data.shape, data.tobytes()
    return variable.type, repr(data)


def same_graph(
    inputs: Sequence[Variable], first: Sequence[Variable], second: Sequence[Variable]
) -> bool:
    """Whether two graphs over the same inputs are equal, node by node."""
    numbers: tuple[dict[Variable, Any], ...] = ({}, {})
    for known in numbers:
        known.update({variable: place for place, variable in enumerate(inputs)})

    def read(known: dict[Variable, Any], variables: Sequence[Variable]) -> list[Any]:
        return [known.get(v, identity_of(v)) for v in variables]

    nodes = [toposort(outputs, set(inputs)) for outputs in (first, second)]
    if len(nodes[0]) != len(nodes[1]):
        return False
    for pair in zip(*nodes, strict=True):
        ours, theirs = (read(k, n.inputs) for k, n in zip(numbers, pair, strict=True))
        if pair[0].op != pair[1].op or ours != theirs:
            return False
        for known, node in zip(numbers, pair, strict=True):
            known.update({v: (len(known), i) for i, v in enumerate(node.outputs)})
    ours, theirs = (read(k, o) for k, o in zip(numbers, (first, second), strict=True))
    return ours == theirs


def is_constant(variable: Variable) -> bool:
    return variable.owner is None and hasattr(variable, "data")


def is_made_of_constants(variable: Variable, known: Collection[Variable] = ()) -> bool:
    """Whether a variable depends on no input but those in `known`."""
    return all(is_constant(v) or v in known for v in leaves([variable], known))


#: Ops that change the type of a value or how it is looked at, and not the value.
_VIEWS = frozenset(
    {"DimShuffle", "TensorFromScalar", "ScalarFromTensor", "ViewOp", "Rebroadcast"}
)


def is_view(node: Any) -> bool:
    """Whether a node gives its first input in another shape or order of axes, as a view."""
    return any(kind.__name__ in _VIEWS for kind in type(node.op).__mro__)


def constant_of(variable: Any) -> Any:
    """The value of a constant scalar or slice, seen through casts; None of anything else."""
    while getattr(variable, "owner", None) is not None:
        op = variable.owner.op
        scalar = type(getattr(op, "scalar_op", op)).__name__
        if scalar not in ("Cast", "Identity") and not is_view(variable.owner):
            return None
        variable = variable.owner.inputs[0]
    if isinstance(variable, int | float | np.generic):
        return variable
    data = getattr(variable, "data", None)
    return (
        data.item() if isinstance(data, np.ndarray | np.generic) and data.size == 1 else data
    )


def is_zero(variable: Variable) -> bool:
    """Whether every entry is known to be 0."""
    node = variable.owner
    if node is None:
        return is_constant(variable) and not np.any(variable.data)
    name = type(node.op).__name__
    scalar = type(getattr(node.op, "scalar_op", None)).__name__
    if name in ("Alloc", "Subtensor", "SpecifyShape") or is_view(node) or scalar == "Cast":
        return is_zero(node.inputs[0])
    if name == "IncSubtensor":
        return all(is_zero(variable) for variable in node.inputs[:2])
    return scalar == "Second" and is_zero(node.inputs[1])


def index_entries(node: Any, first: int) -> tuple[Any, ...]:
    """The index of a node that reads, or writes, a part of an array.

    Parameters
    ----------
    node : Apply
    first : int
        Where the indices begin among its inputs.

    Returns
    -------
    tuple
        By axis: a slice whose fields are None or variables, or a variable.
    """
    given = list(node.inputs[first:])
    listed = getattr(node.op, "idx_list", None)
    if listed is None:
        return tuple(_slice_of(entry) for entry in given)
    numbered = [0]

    def entry_of(entry: Any) -> Any:
        if entry is None:
            return None
        if isinstance(entry, slice):
            return slice(entry_of(entry.start), entry_of(entry.stop), entry_of(entry.step))
        if isinstance(entry, int | np.integer) and engine.INDICES_ARE_NUMBERED:
            return given[entry]
        if isinstance(entry, int | np.integer):
            return entry
        numbered[0] += 1
        return given[numbered[0] - 1]

    return tuple(entry_of(entry) for entry in listed)


def _slice_of(entry: Any) -> Any:
    """An entry of an advanced index; slices are symbols of a type of their own there."""
    if entry.owner is not None and type(entry.owner.op).__name__ == "MakeSlice":
        return slice(
            *(
                None
                if constant_of(v) is None and v.owner is None and hasattr(v, "data")
                else v
                for v in entry.owner.inputs
            )
        )
    if isinstance(getattr(entry, "data", None), slice):
        return entry.data
    return entry


def inner_graph(node: Any) -> list[Variable]:
    """The outputs of an Op that is a graph itself, over the node's inputs."""
    op = node.op
    graph = getattr(op, "fgraph", None)
    inside = graph.inputs if graph is not None else op.local_inputs
    outputs = graph.outputs if graph is not None else op.local_outputs
    return _over(inside, outputs, node.inputs)


def _over(
    inside: Sequence[Variable], outputs: Sequence[Variable], values: Sequence[Variable]
) -> list[Variable]:
    """The outputs of a graph over other inputs, of whatever types."""
    there = dict(zip(inside, values, strict=True))
    for inner in toposort(outputs, there):
        ours = rebuild(inner, [there.get(v, v) for v in inner.inputs])
        there.update(zip(inner.outputs, ours.outputs, strict=True))
    return [there.get(v, v) for v in outputs]
