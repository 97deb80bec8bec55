"""Graphs drawn at random: what a user might write over rows, with values that stay tame.

Every result is bounded, comparisons keep clear of values that rounding could turn over, and
maxima are of values that differ, so that sums taken in another order change a result by
little more than their rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from cutting import import_from, log_softmax, pt, softmax
from hypothesis import strategies as st

from skdtheano import engine
from skdtheano.graphs.placement import REPLICATED, Placement, Rows

ROWS = "n"
Length: TypeAlias = int | str

#: Nothing that is computed is near it.
ODD = 0.1234567

N_LABELS = 4


@dataclass(frozen=True)
class Value:
    """A symbol and its lengths, of which one may be the number of rows."""

    symbol: Any
    shape: tuple[Length, ...]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def row_axis(self) -> int | None:
        return self.shape.index(ROWS) if ROWS in self.shape else None


@dataclass
class Graph:
    """A graph as it grows.

    Attributes
    ----------
    inputs : list of Value
    labels : Value
        Integers below `N_LABELS`, one per row.
    made : list of Value
        Floats.
    needs_all_rows : bool
        Whether an Op was drawn that cannot be cut by rows.
    """

    inputs: list[Value]
    labels: Value
    made: list[Value] = field(default_factory=list)
    needs_all_rows: bool = False

    @property
    def floats(self) -> list[Value]:
        return [*self.inputs, *self.made]

    def symbols(self) -> list[Any]:
        return [value.symbol for value in [*self.inputs, self.labels]]

    def placements(self) -> list[Placement]:
        shapes = [value.shape for value in [*self.inputs, self.labels]]
        return [Rows(0) if shape[:1] == (ROWS,) else REPLICATED for shape in shapes]

    def arguments(self, n: int) -> list[np.ndarray]:
        rng = np.random.RandomState(n)
        shapes = [[n if k == ROWS else int(k) for k in v.shape] for v in self.inputs]
        floats = [np.asarray(rng.uniform(-1, 1, shape)) for shape in shapes]
        return [*floats, rng.randint(0, N_LABELS, n)]


def new_graph() -> Graph:
    def symbol(name: str, *shape: Length) -> Value:
        return Value(engine.tensor(name, "float64", len(shape)), shape)

    return Graph(
        [
            symbol("X", ROWS, 3),
            symbol("Z", ROWS, 4),
            symbol("y", ROWS),
            symbol("W", 3, 4),
            symbol("E", N_LABELS, 3),
            symbol("b", 3),
            symbol("c", 4),
            symbol("a"),
        ],
        Value(engine.tensor("labels", "int64", 1), (ROWS,)),
    )


Draw: TypeAlias = Callable[[Any], Any]
#: Gives a new value, or None where nothing in the graph fits.
Step: TypeAlias = Callable[[Draw, Graph], Value | None]


def pick(draw: Draw, values: Sequence[Any]) -> Any:
    """One of them; later ones, which are made of earlier ones, more often."""
    if not values:
        return None
    places = st.integers(0, len(values) - 1)
    return values[max(draw(places), draw(places))]


def like(draw: Draw, graph: Graph, shape: tuple[Length, ...]) -> Any:
    """A symbol that broadcasts to a shape."""
    found = [0.7]
    for value in graph.floats:
        if not value.ndim or value.shape == shape[len(shape) - value.ndim :]:
            found.append(value.symbol)
        elif value.ndim == 1 and len(shape) == 2 and value.shape == shape[:1]:
            found.append(value.symbol.dimshuffle(0, "x"))
    return pick(draw, found)


def some(draw: Draw, graph: Graph, least: int = 0, most: int = 3) -> Any:
    return pick(draw, [v for v in graph.floats if least <= v.ndim <= most])


def axis_of(draw: Draw, value: Value) -> int:
    return int(draw(st.integers(0, value.ndim - 1)))


def other_axis(draw: Draw, value: Value) -> Any:
    """One that is not that of the rows."""
    axes = [axis for axis in range(value.ndim) if value.shape[axis] != ROWS]
    return pick(draw, axes)


def without(shape: Sequence[Length], axes: Sequence[int]) -> tuple[Length, ...]:
    return tuple(k for axis, k in enumerate(shape) if axis not in axes)


def spread(graph: Graph, value: Value) -> Any:
    """The value plus some that tell its entries apart."""
    symbol = value.symbol
    for axis, k in enumerate(value.shape):
        own = graph.inputs[2].symbol if k == ROWS else pt.arange(k) * 0.0371
        order: list[Any] = ["x"] * value.ndim
        order[axis] = 0
        symbol = symbol + own.dimshuffle(*order)
    return symbol


# --- entry by entry -------------------------------------------------------------------------

UNARY: list[Callable[[Any], Any]] = [
    pt.sin,
    pt.tanh,
    pt.sqr,
    lambda x: pt.exp(pt.sin(x)),
    lambda x: pt.log(1.5 + pt.sqr(x)),
    lambda x: pt.log1p(pt.sqr(x)),
    lambda x: pt.sqrt(1 + pt.sqr(x)),
    lambda x: abs(x + ODD),
    lambda x: 1 / (1.5 + pt.sin(x)),
    lambda x: -x,
    lambda x: pt.cast(pt.cast(x * 4 + ODD, "int64"), "float64"),
    lambda x: pt.clip(x, -0.5137, 0.6137),
    engine.sigmoid,
    pt.zeros_like,
    pt.ones_like,
]
BINARY: list[Callable[[Any, Any], Any]] = [
    lambda x, z: x + z,
    lambda x, z: x - z,
    lambda x, z: x * z,
    lambda x, z: x / (1.5 + pt.sin(z)),
    lambda x, z: pt.maximum(x, z + ODD),
    lambda x, z: pt.minimum(x, z - ODD),
    lambda x, z: pt.switch(pt.lt(x, z + ODD), z, x),
    lambda x, z: pt.switch(pt.gt(z, ODD), x, 0.0),
    lambda x, z: pt.cast(pt.or_(pt.gt(x, ODD), pt.lt(z, ODD)), "float64"),
    lambda x, z: pt.cast(pt.le(x, z + ODD), "float64") * x,
]


def unary(draw: Draw, graph: Graph) -> Value:
    value = some(draw, graph)
    return Value(draw(st.sampled_from(UNARY))(value.symbol), value.shape)


def binary(draw: Draw, graph: Graph) -> Value:
    value = some(draw, graph)
    made = draw(st.sampled_from(BINARY))(value.symbol, like(draw, graph, value.shape))
    return Value(pt.clip(made, -9.137, 9.137), value.shape)


def equal_labels(draw: Draw, graph: Graph) -> Value:
    one_hot = pt.eq(graph.labels.symbol.dimshuffle(0, "x"), pt.arange(N_LABELS))
    return Value(pt.cast(one_hot, "float64"), (ROWS, N_LABELS))


# --- reductions -----------------------------------------------------------------------------

REDUCTIONS: dict[str, Callable[[Any, Any, bool], Any]] = {
    "sum": lambda x, axis, keep: pt.sin(x.sum(axis=axis, keepdims=keep)),
    "mean": lambda x, axis, keep: x.mean(axis=axis, keepdims=keep),
    "var": lambda x, axis, keep: x.var(axis=axis, keepdims=keep),
    "std": lambda x, axis, keep: pt.sqrt(ODD + x.var(axis=axis, keepdims=keep)),
    "norm": lambda x, axis, keep: pt.sqrt(ODD + pt.sqr(x).sum(axis=axis, keepdims=keep)),
    "prod": lambda x, axis, keep: (1 + pt.sin(x) / 9).prod(axis=axis, keepdims=keep),
    "any": lambda x, axis, keep: pt.cast(pt.any(x > ODD, axis=axis, keepdims=keep), "float64"),
    "all": lambda x, axis, keep: pt.cast(pt.all(x < ODD, axis=axis, keepdims=keep), "float64"),
}


def reduced(draw: Draw, graph: Graph) -> Value | None:
    value = some(draw, graph, least=1)
    every = [None, *[(axis,) for axis in range(value.ndim)]]
    if value.ndim == 3:
        every += [(0, 1), (0, 2), (1, 2)]
    axes, keep = draw(st.sampled_from(every)), draw(st.booleans())
    chosen = range(value.ndim) if axes is None else axes
    kept = [1 if axis in chosen else k for axis, k in enumerate(value.shape)]
    kind = draw(st.sampled_from([*REDUCTIONS, "max", "min"]))
    if kind in ("max", "min"):
        made = getattr(pt, kind)(spread(graph, value), axis=axes, keepdims=keep)
    else:
        made = REDUCTIONS[kind](value.symbol, axes, keep)
    return Value(made, tuple(kept) if keep else without(value.shape, chosen))


def place_of_extreme(draw: Draw, graph: Graph) -> Value | None:
    """Of values that are rounded, so that there are ties."""
    value = some(draw, graph, least=1)
    axes = [*range(value.ndim), *([None] if value.row_axis in (0, None) else [])]
    axis = draw(st.sampled_from(axes))
    flat = import_from("gradient", "disconnected_grad")(value.symbol)
    rounded = pt.cast(flat * 4 + ODD, "int64")
    if draw(st.booleans()):
        rounded = pt.cast(rounded, "float64")
    made = draw(st.sampled_from([pt.argmax, pt.argmin]))(rounded, axis=axis)
    gone = range(value.ndim) if axis is None else [axis]
    return Value(pt.sin(pt.cast(made, "float64")), without(value.shape, gone))


def normalised(draw: Draw, graph: Graph) -> Value | None:
    value = some(draw, graph, least=2, most=2)
    function, axis = draw(st.sampled_from([softmax, log_softmax])), axis_of(draw, value)
    if value.shape[axis] == 1:
        return None
    return Value(function(value.symbol, axis), value.shape)


# --- products -------------------------------------------------------------------------------


def product(draw: Draw, graph: Graph) -> Value | None:
    pairs = [
        (v, w)
        for v in graph.floats
        for w in graph.floats
        if 1 <= v.ndim <= 2 and 1 <= w.ndim <= 2
        if v.shape[-1] == w.shape[0] != 1
        if not (v.shape[:-1] == w.shape[1:] == (ROWS,))
    ]
    pair = pick(draw, pairs)
    if pair is None:
        return None
    v, w = pair
    return Value(pt.sin(pt.dot(v.symbol, w.symbol)), v.shape[:-1] + w.shape[1:])


def gram(draw: Draw, graph: Graph) -> Value:
    tables = [v for v in graph.floats if v.ndim == 2 and v.row_axis == 0]
    v, w = pick(draw, tables), pick(draw, tables)
    return Value(pt.tanh(pt.dot(v.symbol.T, w.symbol) / 3), (v.shape[1], w.shape[1]))


# --- axes, shapes, parts --------------------------------------------------------------------


def shuffled_axes(draw: Draw, graph: Graph) -> Value | None:
    value = some(draw, graph, least=0)
    order: list[Any] = list(draw(st.permutations(range(value.ndim))))
    if value.ndim < 3 and draw(st.booleans()):
        order.insert(draw(st.integers(0, value.ndim)), "x")
    shape = tuple(1 if axis == "x" else value.shape[axis] for axis in order)
    return Value(value.symbol.dimshuffle(*order), shape)


def reshaped(draw: Draw, graph: Graph) -> Value | None:
    value = pick(draw, [v for v in graph.floats if v.ndim > 1 and v.row_axis in (0, None)])
    lengths = [int(k) for k in value.shape if k != ROWS]
    size = int(np.prod(lengths))
    shapes = [(size,), (size, 1), (1, size), (-1,)]
    if size % 2 == 0:
        shapes += [(2, size // 2), (size // 2, 2)]
    chosen = draw(st.sampled_from(shapes))
    shape = tuple(size if k == -1 else k for k in chosen)
    if value.row_axis is None:
        return Value(value.symbol.reshape(chosen), shape)
    return Value(value.symbol.reshape((value.symbol.shape[0], *chosen)), (ROWS, *shape))


def part(draw: Draw, graph: Graph) -> Value | None:
    value = some(draw, graph, least=1)
    axis = other_axis(draw, value)
    if axis is None or value.shape[axis] == 1:
        return None
    index: list[Any] = [slice(None)] * value.ndim
    k = int(value.shape[axis])
    kind = draw(st.sampled_from(["entry", "slice", "reversed", "some"]))
    if kind == "entry":
        index[axis] = draw(st.integers(-k, k - 1))
        return Value(value.symbol[tuple(index)], without(value.shape, [axis]))
    shape = list(value.shape)
    if kind == "slice":
        index[axis], shape[axis] = slice(1, None), k - 1
    elif kind == "reversed":
        index[axis] = slice(None, None, -1)
    else:
        index[axis], shape[axis] = np.array([k - 1, 0, k - 1]), 3
    return Value(value.symbol[tuple(index)], tuple(shape))


def changed_part(draw: Draw, graph: Graph) -> Value | None:
    value = some(draw, graph, least=1)
    axis = other_axis(draw, value)
    if axis is None:
        return None
    index: list[Any] = [slice(None)] * value.ndim
    index[axis] = draw(st.integers(0, int(value.shape[axis]) - 1))
    change = draw(st.sampled_from([pt.set_subtensor, pt.inc_subtensor]))
    new = like(draw, graph, without(value.shape, [axis]))
    return Value(change(value.symbol[tuple(index)], new), value.shape)


def joined(draw: Draw, graph: Graph) -> Value | None:
    value = some(draw, graph, least=1, most=2)
    axis = other_axis(draw, value)
    if axis is None:
        return None
    fitting = [
        w
        for w in graph.floats
        if w.ndim == value.ndim and without(w.shape, [axis]) == without(value.shape, [axis])
    ]
    other = pick(draw, [w for w in fitting if w.shape[axis] != ROWS])
    lengths = list(value.shape)
    lengths[axis] = int(lengths[axis]) + int(other.shape[axis])
    made = pt.concatenate([value.symbol, other.symbol], axis=axis)
    return Value(made, tuple(lengths)) if int(lengths[axis]) < 12 else None


def cumulative(draw: Draw, graph: Graph) -> Value | None:
    value = some(draw, graph, least=1)
    axis = other_axis(draw, value)
    if axis is None:
        return None
    return Value(pt.sin(pt.cumsum(value.symbol, axis=axis)), value.shape)


# --- rows by their labels and numbers -------------------------------------------------------


def embedded(draw: Draw, graph: Graph) -> Value | None:
    fitting = [v for v in graph.floats if v.shape[:1] == (N_LABELS,) and ROWS not in v.shape]
    table = pick(draw, fitting)
    return Value(table.symbol[graph.labels.symbol], (ROWS, *table.shape[1:]))


def own_entries(draw: Draw, graph: Graph) -> Value | None:
    tables = [v for v in graph.floats if v.row_axis == 0 and v.ndim > 1 and v.shape[1] != 1]
    value = pick(draw, tables)
    numbers = pt.arange(value.symbol.shape[0])
    made = value.symbol[numbers, graph.labels.symbol % value.shape[1]]
    return Value(made, (ROWS, *value.shape[2:]))


def added_by_label(draw: Draw, graph: Graph) -> Value | None:
    value = pick(draw, [v for v in graph.floats if v.row_axis == 0 and v.ndim <= 2])
    start = pt.zeros((N_LABELS, *value.shape[1:]))
    if draw(st.booleans()):
        start = start + like(draw, graph, tuple(value.shape[1:]))
    made = pt.inc_subtensor(start[graph.labels.symbol], value.symbol)
    return Value(pt.sin(made), (N_LABELS, *value.shape[1:]))


def row_numbers(draw: Draw, graph: Graph) -> Value:
    value = pick(draw, [v for v in graph.floats if v.row_axis is not None])
    numbers = pt.arange(value.symbol.shape[value.row_axis])
    return Value(pt.sin(pt.cast(numbers, "float64")), (ROWS,))


def of_row_count(draw: Draw, graph: Graph) -> Value:
    value = pick(draw, [v for v in graph.floats if v.row_axis is not None])
    n = value.symbol.shape[value.row_axis]
    kind = draw(st.sampled_from(["alloc", "weights", "number"]))
    if kind == "alloc":
        fill = draw(st.sampled_from([0.3, graph.inputs[5].symbol]))
        return Value(pt.alloc(fill, n, 3), (ROWS, 3))
    if kind == "weights":
        return Value(pt.ones((n,)) / pt.cast(n, "float64"), (ROWS,))
    return Value(pt.sin(pt.cast(n, "float64")), ())


# --- what needs all rows --------------------------------------------------------------------

ALL_ROWS: list[Callable[[Any], Any]] = [
    lambda x: pt.sin(pt.cumsum(x, axis=0)),
    lambda x: x[::-1],
    lambda x: x.dot(x.T).dot(x) / 9 if x.ndim == 2 else x * x[0],
    lambda x: x.flatten().reshape(x.shape),
]


def rarely_over_all_rows(draw: Draw, graph: Graph) -> Value | None:
    return None if draw(st.integers(0, 2)) else over_all_rows(draw, graph)


def over_all_rows(draw: Draw, graph: Graph) -> Value:
    graph.needs_all_rows = True
    value = pick(draw, [v for v in graph.floats if v.row_axis == 0 and v.ndim <= 2])
    made = draw(st.sampled_from(ALL_ROWS))(value.symbol)
    return Value(pt.sin(made), value.shape)


STEPS: list[Step] = [
    *[unary] * 3,
    *[binary] * 4,
    *[reduced] * 4,
    equal_labels,
    place_of_extreme,
    normalised,
    product,
    product,
    gram,
    shuffled_axes,
    reshaped,
    part,
    changed_part,
    joined,
    cumulative,
    embedded,
    own_entries,
    added_by_label,
    row_numbers,
    of_row_count,
    rarely_over_all_rows,
]


@st.composite
def graphs(draw: Draw, last: Sequence[Step] = ()) -> Graph:
    """A graph of a few to a dozen steps, and of some that come last."""
    graph = new_graph()
    for step in [*draw(st.lists(st.sampled_from(STEPS), min_size=4, max_size=12)), *last]:
        made = step(draw, graph)
        if made is not None:
            graph.made.append(made)
    if not graph.made:
        graph.made.append(gram(draw, graph))
    return graph


#: Rows of each block; a table has at least one.
cuts: st.SearchStrategy[tuple[int, ...]] = (
    st.lists(st.sampled_from([0, 1, 1, 2, 3, 5]), min_size=1, max_size=6)
    .map(tuple)
    .filter(lambda lengths: sum(lengths) > 0)
)
