"""A graph as plain data: what the table of Ops in `numpy_steps` reads of it.

A recipe comes from the engine, which derives and rewrites a graph, or from a file. Its text is
JSON, so that reading one runs nothing.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skdtheano import engine
from skdtheano.engine import Variable


@dataclass(frozen=True, eq=False)
class Value:
    """A symbol of a graph.

    Attributes
    ----------
    number : int
        Its place among the recipe's values.
    dtype : str
    ndim : int
    constant : ndarray or None
        Its value, if that is known.
    """

    number: int
    dtype: str
    ndim: int
    constant: np.ndarray | None = None


@dataclass(frozen=True)
class Node:
    """One Op and what it reads and makes.

    Attributes
    ----------
    kind : str
        The name of the Op's class.
    name : str
        For people.
    inputs, outputs : tuple of Value
    parameters : dict
        What is more to know of the Op; see `_PARAMETERS`.
    """

    kind: str
    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    parameters: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Recipe:
    """A graph, its nodes in an order in which they can be computed.

    Attributes
    ----------
    inputs, outputs : tuple of Value
    nodes : tuple of Node
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]

    def text(self) -> str:
        """The recipe as JSON; `recipe_of_text` reads it."""
        values: dict[int, Value] = {}
        for value in (*self.inputs, *self.outputs):
            values[value.number] = value
        for node in self.nodes:
            values.update((value.number, value) for value in (*node.inputs, *node.outputs))
        return json.dumps(
            {
                "values": [_packed(values[number]) for number in range(len(values))],
                "inputs": _numbers(self.inputs),
                "outputs": _numbers(self.outputs),
                "nodes": [
                    [n.kind, n.name, _numbers(n.inputs), _numbers(n.outputs), n.parameters]
                    for n in self.nodes
                ],
            }
        )


def recipe_of_text(text: str) -> Recipe:
    """The recipe of which this is the text.

    Raises
    ------
    ValueError, LookupError, TypeError
        If it is none.
    """
    data = json.loads(text)
    values = [_unpacked(number, packed) for number, packed in enumerate(data["values"])]

    def chosen(numbers: Sequence[int]) -> tuple[Value, ...]:
        return tuple(values[number] for number in numbers)

    nodes = tuple(
        Node(kind, name, chosen(inputs), chosen(outputs), parameters)
        for kind, name, inputs, outputs, parameters in data["nodes"]
    )
    return Recipe(chosen(data["inputs"]), chosen(data["outputs"]), nodes)


def derived(inputs: Sequence[Variable], outputs: Sequence[Variable], name: str) -> Recipe:
    """The recipe of a graph, as the engine rewrites it.

    Parameters
    ----------
    inputs, outputs : sequence of Variable
    name : str
        What `engine.compilations` tells of it.
    """
    graph_inputs, nodes, graph_outputs = engine.rewritten(inputs, outputs, name)
    values: dict[Any, Value] = {}

    def value_of(variable: Any) -> Value:
        if variable not in values:
            constant = np.asarray(variable.data) if hasattr(variable, "data") else None
            kind = getattr(variable.type, "dtype", None)  # a generator has none
            ndim = getattr(variable.type, "ndim", 0)
            values[variable] = Value(len(values), str(kind), ndim, constant)
        return values[variable]

    def values_of(variables: Sequence[Any]) -> tuple[Value, ...]:
        return tuple(map(value_of, variables))

    first = values_of(graph_inputs)
    made = []
    for node in nodes:
        kind = type(node.op).__name__
        parameters = _PARAMETERS.get(kind, lambda op: {})(node.op)
        made.append(
            Node(
                kind, str(node.op), values_of(node.inputs), values_of(node.outputs), parameters
            )
        )
    return Recipe(first, values_of(graph_outputs), tuple(made))


def _elementwise(op: Any) -> dict[str, Any]:
    spec = op.nfunc_spec or getattr(op.scalar_op, "nfunc_spec", None)
    return {"scalar": type(op.scalar_op).__name__, "function": spec and spec[0]}


def _dimensions(op: Any) -> dict[str, Any]:
    order = ["x" if axis == "x" else int(axis) for axis in op.new_order]
    return {"order": order, "drop": [int(axis) for axis in op.drop]}


def _length(op: Any) -> dict[str, Any]:
    return {"axis": int(op.i)}


def _reduction(op: Any) -> dict[str, Any]:
    axes = None if op.axis is None else [int(axis) for axis in np.atleast_1d(op.axis)]
    return {"function": op.scalar_op.nfunc_spec[0], "axes": axes}


#: What the table of Ops asks of one, by its class; of others it knows the class alone.
_PARAMETERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "Elemwise": _elementwise,
    "DimShuffle": _dimensions,
    "InplaceDimShuffle": _dimensions,
    "Shape_i": _length,
    "CAReduce": _reduction,
    "Sum": _reduction,
    "Max": _reduction,
}


def _numbers(values: Sequence[Value]) -> list[int]:
    return [value.number for value in values]


def _packed(value: Value) -> list[Any]:
    """A value for JSON; a constant by its bytes, which are exact."""
    constant = value.constant
    if constant is None:
        return [value.dtype, value.ndim]
    if constant.dtype.kind not in "biuf":
        raise TypeError(f"A constant of dtype {constant.dtype} has no text.")
    data = [constant.dtype.str, list(constant.shape), constant.tobytes().hex()]
    return [value.dtype, value.ndim, data]


def _unpacked(number: int, packed: list[Any]) -> Value:
    dtype, ndim, *data = packed
    if not data:
        return Value(number, dtype, ndim)
    [(kind, shape, content)] = data
    if np.dtype(kind).kind not in "biuf":
        raise TypeError(f"A constant of dtype {kind} has no text.")
    constant = np.frombuffer(bytes.fromhex(content), kind).reshape(shape)
    return Value(number, dtype, ndim, constant)
