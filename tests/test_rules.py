"""Each rule of `graphs.rules` alone: what its plan looks like, and that its law holds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cutting import (
    PYTENSOR,
    Cutting,
    cut_values,
    gradients,
    import_from,
    log_softmax,
    looped,
    pt,
    softmax,
    summary,
)

from skdtheano import PlacementError, engine, symbolic
from skdtheano.graphs.placement import REPLICATED, Placement, Rows
from skdtheano.graphs.rules.table import RULES

pytestmark = pytest.mark.parity

N_ROWS = 7

#: Rows of each block: ragged, empty first, last and in between, one row each, one block.
CUTS = [(7,), (3, 0, 4), (1,) * 7, (0, 2, 5), (4, 3, 0), (1, 6)]

rng = np.random.RandomState(0)

#: The inputs: those in capitals with rows have them along axis 0.
VALUES: dict[str, tuple[Any, Placement]] = {
    "X": (rng.uniform(-2, 2, (N_ROWS, 3)), Rows(0)),
    "Z": (rng.uniform(-2, 2, (N_ROWS, 3)), Rows(0)),
    "XT": (rng.uniform(-2, 2, (3, N_ROWS)), Rows(1)),
    "T": (rng.uniform(-2, 2, (N_ROWS, 2, 3)), Rows(0)),
    "y": (rng.uniform(0.5, 2, N_ROWS), Rows(0)),
    "labels": (np.array([3, 0, 1, 1, 2, 0, 3]), Rows(0)),
    "flags": (rng.uniform(size=N_ROWS) > 0.4, Rows(0)),
    "W": (rng.uniform(-1, 1, (3, 4)), REPLICATED),
    "E": (rng.uniform(-1, 1, (4, 3)), REPLICATED),
    "B": (rng.uniform(-1, 1, (2, 3, 3)), REPLICATED),
    "b": (rng.uniform(-1, 1, 3), REPLICATED),
    "a": (np.asarray(0.7), REPLICATED),
    "per_row": (rng.uniform(-1, 1, N_ROWS), REPLICATED),
    "number": (np.asarray(2), REPLICATED),
    "numbers": (rng.randint(0, 3, N_ROWS), REPLICATED),
    "columns": (np.array([2, 0]), REPLICATED),
    "mask": (np.array([True, False, True]), REPLICATED),
}
ARGUMENTS = [value for value, _ in VALUES.values()]
PLACEMENTS = [placement for _, placement in VALUES.values()]

Build = Callable[[Any], Any]


def symbols() -> Any:
    return SimpleNamespace(
        **{
            name: engine.tensor(name, str(value.dtype), value.ndim)
            for name, (value, _) in VALUES.items()
        }
    )


@dataclass(frozen=True)
class Case:
    """A graph whose plan uses a rule.

    Attributes
    ----------
    rule : str
        Key of `RULES`.
    build : callable
        Outputs, from the namespace of inputs.
    structure : str
        As of `Cutting.structure`.
    gradient : bool or None
        Whether that of a summary by X, y, T, W, E and b can be cut by rows too; None if
        the engine has none.
    one_row : bool
        Whether the engine takes tables of one row; PyTensor's AdvancedIncSubtensor1 does
        not, on its own.
    """

    rule: str
    build: Build
    structure: str
    gradient: bool | None = True
    one_row: bool = True

    def cuts(self) -> list[tuple[int, ...]]:
        return [cut for cut in CUTS if self.one_row or 1 not in cut]


@dataclass(frozen=True)
class Refused:
    """A graph that needs all rows, and why."""

    rule: str | None
    build: Build
    reason: str


def n_of(x: Any) -> Any:
    return x.shape[0]


def own(x: Any) -> Any:
    """The numbers of its rows."""
    return pt.arange(x.shape[0])


def op(module: str, name: str, *made_with: Any) -> Callable[..., Any]:
    """An Op that nothing in the engine's tensor module makes; imported when it is used."""
    return lambda *inputs: import_from(module, name)(*made_with)(*inputs)


def inlined(s: Any) -> Any:
    # No product: the engine compiles it as by default, and may warn that it finds no BLAS.
    x, v = pt.dmatrix(), pt.dvector()
    made = import_from("compile.builders", "OpFromGraph")([x, v], [pt.tanh(x * v), v * 2])
    return made(s.X, s.b)


def inlined_sum(s: Any) -> Any:
    x = pt.dmatrix()
    made = import_from("compile.builders", "OpFromGraph")([x], [x - x.mean(axis=0)])
    return made(s.X)


def least(s: Any) -> Any:
    """The engines write a minimum as a maximum, but have an Op for it."""
    minimum = import_from("scalar", "scalar_minimum" if PYTENSOR else "minimum")
    return import_from("tensor.elemwise", "CAReduce")(minimum, axis=(0,))(s.X)


def as_scalar(s: Any) -> Any:
    scalar = op("tensor.basic", "ScalarFromTensor")(s.X.sum())
    return op("tensor.basic", "TensorFromScalar")(scalar)


#: Theano has an Op of its own for one index.
TAKE = "AdvancedSubtensor" if PYTENSOR else "AdvancedSubtensor1"
PUT = "AdvancedIncSubtensor" if PYTENSOR else "AdvancedIncSubtensor1"


def op_names() -> set[str]:
    """Of all Ops that the engine has, as far as it is imported."""
    op_class = import_from("graph.op" if PYTENSOR else "gof", "Op")

    def below(kind: type) -> Iterator[str]:
        for one in kind.__subclasses__():
            yield one.__name__
            yield from below(one)

    return set(below(op_class))


def slope_of_softmax(s: Any) -> Any:
    return gradients((softmax(s.X, 0) * s.Z).sum(), [s.X])


SHAPES = "tensor.shape" if PYTENSOR else "compile.ops"
ASSERTS = "raise_op" if PYTENSOR else "tensor.opt"
ACCUMULATE = import_from("tensor.extra_ops", "CumOp")


CASES: dict[str, Case] = {
    # --- entry by entry -------------------------------------------------------------------
    "row-wise": Case("Elemwise", lambda s: pt.tanh(s.X * 2 + s.b), "rows"),
    "rows-with-rows": Case("Elemwise", lambda s: s.X * s.Z - s.y[:, None], "rows"),
    "rows-along-axis-1": Case("Elemwise", lambda s: s.XT * s.X.T + s.y, "rows"),
    "scaled-sums": Case("Elemwise", lambda s: 3 * s.X.sum(0) - s.Z.sum(0) / 2, "sum"),
    "scaled-by-an-input": Case("Elemwise", lambda s: s.a * s.X.sum(0), "sum > once"),
    "a-sum-by-an-input": Case("Elemwise", lambda s: s.X.sum(0) / s.b, "sum > once"),
    "a-sum-plus-one": Case("Elemwise", lambda s: s.X.sum(0) + 1, "sum > once"),
    "a-product-of-sums": Case("Elemwise", lambda s: s.X.sum(0) * s.Z.sum(0), "sum sum > once"),
    "a-sum-in-rows": Case("Elemwise", lambda s: s.X - s.X.sum(0), "sum > rows"),
    "a-sum-cast": Case(
        "Elemwise", lambda s: pt.cast(pt.cast(s.X.sum(0), "float32"), "float64"), "sum > once"
    ),
    "a-sum-to-integers": Case(
        "Elemwise", lambda s: pt.cast(s.X.sum(0), "int64"), "sum > once"
    ),
    "a-count-to-few-bits": Case("Elemwise", lambda s: pt.cast(n_of(s.X), "int8"), "once"),
    "a-maximum-to-few-bits": Case(
        "Elemwise", lambda s: pt.cast(s.labels.max(), "int8"), "max > once"
    ),
    "a-sum-to-complex": Case(
        "Elemwise", lambda s: pt.cast(s.X.sum(0), "complex128"), "sum", gradient=False
    ),
    # An empty block has no maximum, and then neither a sum to keep for the next stage.
    "sums-of-two-stages": Case(
        "Elemwise",
        lambda s: pt.exp(s.X).sum() + (s.X * s.X.max()).sum(),
        "max > sum",
    ),
    "switch": Case("Elemwise", lambda s: pt.switch(s.b < s.X, s.X, 0.0), "rows"),
    "zeros-of-rows": Case("Elemwise", lambda s: pt.zeros_like(s.X) + s.b, "rows"),
    "zeros-of-a-sum": Case("Elemwise", lambda s: pt.zeros_like(s.X.sum(0)) + s.b, "same"),
    "numbers-cast": Case("Elemwise", lambda s: pt.cast(own(s.X), "float64") * s.y, "rows"),
    # --- axes -------------------------------------------------------------------------------
    "transposed": Case("DimShuffle", lambda s: s.X.T, "rows"),
    "column-of-y": Case("DimShuffle", lambda s: s.y.dimshuffle(0, "x") * s.X, "rows"),
    "three-axes": Case("DimShuffle", lambda s: s.T.dimshuffle(2, 0, 1), "rows"),
    "a-sum-as-a-matrix": Case("DimShuffle", lambda s: s.X.sum(0).dimshuffle("x", 0), "sum"),
    "a-count-as-a-vector": Case("DimShuffle", lambda s: n_of(s.X).dimshuffle("x"), "once"),
    "numbers-as-a-column": Case("DimShuffle", lambda s: own(s.X).dimshuffle(0, "x"), "rows"),
    # --- reductions -------------------------------------------------------------------------
    "sum-over-rows": Case("CAReduce", lambda s: s.X.sum(axis=0), "sum"),
    "sum-over-columns": Case("CAReduce", lambda s: s.X.sum(axis=1), "rows"),
    "sum-over-all": Case("CAReduce", lambda s: s.T.sum(), "sum"),
    "sum-of-a-sum": Case("CAReduce", lambda s: s.T.sum(axis=0).sum(axis=1), "sum"),
    "sum-keeps-axes": Case("CAReduce", lambda s: s.T.sum(axis=(0, 2), keepdims=True), "sum"),
    "sum-of-bools": Case("CAReduce", lambda s: s.flags.sum(), "sum"),
    "sum-of-numbers": Case("CAReduce", lambda s: own(s.X).sum(), "sum"),
    "a-maximum-of-sums": Case("CAReduce", lambda s: s.X.sum(axis=0).max(), "sum > once"),
    "maximum": Case("CAReduce", lambda s: s.X.max(axis=0), "max"),
    "minimum": Case("CAReduce", lambda s: s.X.min(axis=(0, 1)), "max > once"),
    "least": Case("CAReduce", least, "min", gradient=None),
    "product": Case("CAReduce", lambda s: s.X.prod(axis=0), "prod"),
    "product-of-columns": Case("CAReduce", lambda s: s.X.prod(axis=1), "rows"),
    "all": Case("CAReduce", lambda s: pt.all(s.flags), "all"),
    "any": Case("CAReduce", lambda s: pt.any(pt.any(s.X > 1.5, axis=0)), "any"),
    "mean": Case("CAReduce", lambda s: s.X.mean(axis=0), "sum > once"),
    "variance": Case("CAReduce", lambda s: s.X.var(axis=0), "sum > once sum > once"),
    "standardised": Case(
        "CAReduce",
        lambda s: (s.X - s.X.mean(axis=0)) / s.X.std(axis=0),
        "sum > once rows sum > once rows",
    ),
    # --- softmax ----------------------------------------------------------------------------
    "softmax-of-each-row": Case("Softmax", lambda s: softmax(s.X, 1), "rows"),
    "softmax-over-rows": Case("Softmax", lambda s: softmax(s.X, 0), "max > rows sum > rows"),
    "log-softmax-of-each-row": Case("LogSoftmax", lambda s: log_softmax(s.X, 1), "rows"),
    "log-softmax-over-rows": Case(
        "LogSoftmax", lambda s: log_softmax(s.X, 0), "max > rows sum > once rows"
    ),
    "attention": Case(
        "Softmax",
        lambda s: softmax(s.X.dot(s.b)[:, None], 0).T.dot(s.Z),
        "max rows > rows sum > sum",
    ),
    # --- products ---------------------------------------------------------------------------
    "rows-by-weights": Case("Dot", lambda s: pt.dot(s.X, s.W), "rows"),
    "weights-by-rows": Case("Dot", lambda s: pt.dot(s.W.T, s.XT), "rows"),
    "rows-by-a-vector": Case("Dot", lambda s: pt.dot(s.X, s.b), "rows"),
    "gram": Case("Dot", lambda s: pt.dot(s.X.T, s.X), "sum"),
    "vectors": Case("Dot", lambda s: pt.dot(s.y, s.y * 2), "sum"),
    "vector-by-rows": Case("Dot", lambda s: pt.dot(s.y, s.X), "sum"),
    "a-sum-by-weights": Case("Dot", lambda s: pt.dot(s.X.sum(axis=0), s.W), "sum > once"),
    "tensordot": Case("Dot", lambda s: pt.tensordot(s.T, s.X, axes=[[0], [0]]), "sum"),
    # --- shapes -----------------------------------------------------------------------------
    "shape": Case("Shape", lambda s: s.X.shape, "shape"),
    "shape-of-the-transpose": Case("Shape", lambda s: s.X.T.shape, "shape"),
    "shape-of-numbers": Case("Shape", lambda s: own(s.X).shape, "shape"),
    "number-of-columns": Case("Shape", lambda s: s.X.shape[1] * s.y, "rows"),
    "size": Case("Shape", lambda s: s.X.size, "shape > once"),
    "shape_i": Case("Shape_i", lambda s: op(SHAPES, "Shape_i", 0)(s.X), ""),
    "shape_i-of-columns": Case("Shape_i", lambda s: op(SHAPES, "Shape_i", 1)(s.X), "same"),
    # --- indexing ---------------------------------------------------------------------------
    "a-column": Case("Subtensor", lambda s: s.X[:, 1], "rows"),
    "columns-backwards": Case("Subtensor", lambda s: s.X[:, ::-1], "rows"),
    "columns-up-to": Case("Subtensor", lambda s: s.X[:, : s.number], "rows"),
    "columns-up-to-twice": Case(
        "Subtensor", lambda s: s.X[:, : 1 + s.number * 2], "once rows"
    ),
    "a-column-of-the-last": Case("Subtensor", lambda s: s.X[:, -1], "rows"),
    "of-axis-1": Case("Subtensor", lambda s: s.T[:, 1, 1:], "rows"),
    "an-entry-of-a-sum": Case("Subtensor", lambda s: s.X.sum(axis=0)[1], "sum"),
    "up-to-the-count": Case("Subtensor", lambda s: s.per_row[: n_of(s.X) - 1], "once"),
    "a-part-of-the-shape": Case("Subtensor", lambda s: s.T.shape[:2], "shape"),
    "the-rest-of-the-shape": Case("Subtensor", lambda s: s.T.shape[1:], "same"),
    "the-last-length": Case("Subtensor", lambda s: s.T.shape[-1] * s.y, "rows"),
    "add-to-a-column": Case(
        "IncSubtensor", lambda s: pt.inc_subtensor(s.X[:, 1], s.y), "rows"
    ),
    "set-a-column": Case("IncSubtensor", lambda s: pt.set_subtensor(s.X[:, 1], 0.5), "rows"),
    "set-columns": Case(
        "IncSubtensor", lambda s: pt.set_subtensor(s.X[:, 1:], s.b[1:]), "once rows"
    ),
    "add-a-sum": Case(
        "IncSubtensor",
        lambda s: pt.inc_subtensor(pt.zeros_like(s.b)[1], s.y.sum()),
        "once sum",
        gradient=None,  # PyTensor compiles it into an index out of bounds
    ),
    "set-a-sum": Case(
        "IncSubtensor", lambda s: pt.set_subtensor(s.b[1], s.y.sum()), "sum > once"
    ),
    "embedding": Case(
        TAKE,
        lambda s: s.E[s.labels],
        "rows",
    ),
    "embedding-of-a-sum": Case(
        "AdvancedSubtensor",
        lambda s: pt.outer(s.y.sum(), s.b)[s.labels * 0, s.labels % 3],
        "rows rows sum > once rows",
    ),
    "two-embeddings": Case("AdvancedSubtensor", lambda s: s.E[s.labels, s.labels % 3], "rows"),
    "embedding-in-a-slice": Case(TAKE, lambda s: s.W[:, s.labels].T, "rows"),
    "own-entries": Case("AdvancedSubtensor", lambda s: s.X[own(s.X), s.labels % 3], "rows"),
    "own-column": Case("AdvancedSubtensor", lambda s: s.T[own(s.T), 1], "rows"),
    "own-entries-behind": Case(
        "AdvancedSubtensor", lambda s: s.XT[s.labels % 3, own(s.X)], "rows"
    ),
    "own-entries-apart": Case(
        "AdvancedSubtensor", lambda s: s.T[own(s.T), :, s.labels % 3], "rows"
    ),
    "some-columns": Case(TAKE, lambda s: s.X[:, s.columns], "rows"),
    "some-columns-twice": Case(
        "AdvancedSubtensor", lambda s: s.T[:, s.columns[:, None] % 2, s.columns], "once rows"
    ),
    "some-columns-of-the-transpose": Case(
        "AdvancedSubtensor",
        lambda s: s.T.dimshuffle(1, 0, 2)[s.columns % 2, :, s.columns],
        "once rows",
    ),
    "entries-of-a-sum": Case(TAKE, lambda s: s.X.sum(axis=0)[s.columns], "sum"),
    "by-row-numbers": Case(TAKE, lambda s: s.per_row[own(s.X)] * s.y, "rows"),
    "add-at-labels": Case(
        "AdvancedIncSubtensor",
        lambda s: pt.inc_subtensor(s.W[s.labels % 3, s.labels], s.y),
        "once sum > once",
    ),
    "count-labels": Case(
        PUT,
        lambda s: pt.inc_subtensor(pt.zeros(4)[s.labels], 1.0),
        "sum",
    ),
    "add-to-own-entries": Case(
        "AdvancedIncSubtensor",
        lambda s: pt.inc_subtensor(s.X[own(s.X), s.labels % 3], s.y),
        "rows",
    ),
    "set-own-entries": Case(
        "AdvancedIncSubtensor",
        lambda s: pt.set_subtensor(s.X[own(s.X), s.labels % 3], 1.0),
        "rows",
    ),
    "set-some-columns": Case(
        PUT,
        lambda s: pt.set_subtensor(s.X[:, s.columns], s.b[:2]),
        "once rows",
    ),
    # --- making -----------------------------------------------------------------------------
    "ones-of-rows": Case("Alloc", lambda s: pt.alloc(1.0, n_of(s.X), 2), "rows"),
    "stretched": Case("Alloc", lambda s: pt.alloc(s.b, n_of(s.X), 3) * s.X, "rows"),
    "a-maximum-stretched": Case(
        "Alloc", lambda s: pt.alloc(s.X.max(), n_of(s.X), 2), "max > rows"
    ),
    "stretched-rows": Case("Alloc", lambda s: pt.alloc(s.y[:, None], n_of(s.X), 3), "rows"),
    "a-sum-stretched": Case("Alloc", lambda s: pt.alloc(s.y.sum(), 2), "sum > once"),
    "no-values": Case(
        "AllocEmpty",
        lambda s: pt.set_subtensor(
            op("tensor.basic", "AllocEmpty", "float64")(n_of(s.X), 3)[:], s.X
        ),
        "rows",
    ),
    "sums-in-a-vector": Case("MakeVector", lambda s: pt.stack([s.y.sum(), s.X.sum()]), "sum"),
    "a-shape": Case(
        "MakeVector", lambda s: pt.as_tensor_variable([n_of(s.X), s.X.shape[1]]), "shape"
    ),
    "columns-side-by-side": Case("Join", lambda s: pt.concatenate([s.X, s.Z], axis=1), "rows"),
    "a-constant-column": Case(
        "Join", lambda s: pt.concatenate([pt.ones((n_of(s.X), 1)), s.X], axis=1), "rows"
    ),
    "sums-end-to-end": Case("Join", lambda s: pt.concatenate([s.X.sum(0), s.Z.sum(0)]), "sum"),
    "a-sum-and-an-input": Case(
        "Join", lambda s: pt.concatenate([s.X.sum(0), s.b]), "sum > once"
    ),
    "columns-in-two": Case(
        "Split", lambda s: pt.split(s.X, [1, 2], n_splits=2, axis=1), "rows rows"
    ),
    "reshaped": Case("Reshape", lambda s: s.T.reshape((n_of(s.T), 6)), "rows"),
    "reshaped-as-fits": Case("Reshape", lambda s: s.T.reshape((n_of(s.T), -1)), "rows"),
    "reshaped-behind": Case("Reshape", lambda s: s.XT.reshape((3, 1, n_of(s.X))), "rows"),
    "a-column-of-a-vector": Case("Reshape", lambda s: s.y.reshape((-1, 1)), "rows"),
    "a-sum-reshaped": Case("Reshape", lambda s: s.T.sum(0).reshape((6,)), "sum"),
    "row-numbers": Case("ARange", lambda s: pt.arange(n_of(s.X)), "rows"),
    "row-numbers-from-1": Case("ARange", lambda s: pt.arange(1, n_of(s.X)).sum(), "once"),
    # --- passing through --------------------------------------------------------------------
    "assert-of-rows": Case(
        "Assert", lambda s: op(ASSERTS, "Assert", "no")(s.X, pt.all(s.y > 0)), "rows"
    ),
    "a-view": Case("ViewOp", lambda s: op("compile.ops", "ViewOp")(s.X), "rows"),
    "zero-gradient": Case(
        "ZeroGrad",
        lambda s: import_from("gradient", "zero_grad")(s.X),
        "rows",
        gradient=PYTENSOR or None,
    ),
    "no-gradient": Case(
        "DisconnectedGrad", lambda s: import_from("gradient", "disconnected_grad")(s.X), "rows"
    ),
    "clipped-gradient": Case(
        "GradClip", lambda s: import_from("gradient", "grad_clip")(s.X, -0.1, 0.1), "rows"
    ),
    "scaled-gradient": Case(
        "GradScale", lambda s: import_from("gradient", "grad_scale")(s.X, 0.5), "rows"
    ),
    "a-copy": Case(
        "DeepCopyOp", lambda s: op("compile.ops", "DeepCopyOp")(s.X), "rows", gradient=None
    ),
    "a-tensor": Case("TensorFromScalar", as_scalar, "sum"),
    "a-scalar": Case("ScalarFromTensor", as_scalar, "sum"),
    "a-type": Case("SpecifyShape", lambda s: pt.specify_shape(s.X, (n_of(s.X), 3)), "rows"),
    "a-type-of-a-sum": Case(
        "SpecifyShape", lambda s: pt.specify_shape(s.X.sum(0), (3,)), "sum"
    ),
    "a-graph": Case("OpFromGraph", inlined, "once rows"),
    "a-graph-of-stages": Case("OpFromGraph", inlined_sum, "sum > once rows"),
    # --- lines ------------------------------------------------------------------------------
    "cumulative-columns": Case("CumOp", lambda s: pt.cumsum(s.X, axis=1), "rows"),
    "cumulative-products": Case("CumOp", lambda s: pt.cumprod(s.X, axis=-1), "rows"),
    "sorted-columns": Case("SortOp", lambda s: pt.sort(s.X, axis=1), "rows", gradient=False),
    "order-of-columns": Case("ArgSortOp", lambda s: pt.argsort(s.X, axis=1), "rows"),
}
CASES |= {
    f"argmax-{name}": Case("Argmax" if PYTENSOR else "MaxAndArgmax", build, structure)
    for name, build, structure in [
        ("of-each-row", lambda s: pt.argmax(s.X, axis=1), "rows"),
        ("over-rows", lambda s: pt.argmax(s.X, axis=0), "max rows rows > max > once"),
        ("over-all", lambda s: pt.argmax(s.X), "max rows rows > max > once"),
        (
            "with-ties",
            lambda s: pt.argmax(pt.round(s.X), axis=0),
            "max rows rows rows > max > once",
        ),
        ("of-integers", lambda s: pt.argmax(s.labels), "max rows rows > max > once"),
        (
            "with-nan",
            lambda s: pt.argmax(pt.switch(s.X > 1, np.nan, s.X), axis=0),
            "max rows rows rows > max > once",
        ),
        (
            "over-rows-behind",
            lambda s: pt.argmin(s.XT, axis=1),
            "max rows rows rows > max > once",
        ),
        ("of-a-sum", lambda s: pt.argmax(s.X.sum(axis=0)), "sum > once"),
    ]
}
CASES["loop-over-columns"] = Case("Scan", lambda s: looped(s.X.T, s.y), "rows")
CASES["slope-of-softmax"] = Case(
    "SoftmaxGrad" if "SoftmaxGrad" in op_names() else "Softmax",
    slope_of_softmax,
    "max > rows sum > rows rows sum > rows",
)
if "AdvancedSubtensor1" in op_names():  # gone from PyTensor 3.3
    CASES |= {
        "embedding-1": Case(
            "AdvancedSubtensor1",
            lambda s: op("tensor.subtensor", "AdvancedSubtensor1")(s.E, s.labels),
            "rows",
            one_row=not PYTENSOR,
        ),
        "add-at-labels-1": Case(
            "AdvancedIncSubtensor1",
            lambda s: op("tensor.subtensor", "AdvancedIncSubtensor1")(s.E, s.X, s.labels),
            "once sum > once",
            one_row=not PYTENSOR,
        ),
    }
if PYTENSOR:
    CASES |= {
        "batches": Case(
            "Blockwise", lambda s: pt.matmul(s.T.dimshuffle(1, 0, 2), s.B), "rows"
        ),
        "a-batch-by-weights": Case("Blockwise", lambda s: pt.matmul(s.T, s.W), "rows"),
        "matrices-by-rows": Case("Blockwise", lambda s: pt.matmul(s.B, s.XT), "rows"),
        "sums-in-a-batch": Case(
            "Blockwise",
            lambda s: pt.matmul(s.T.dimshuffle(1, 2, 0), s.T.dimshuffle(1, 0, 2)),
            "sum",
        ),
        "a-core-of-each-row": Case(
            "Blockwise", lambda s: pt.linalg.inv(s.T[:, :, :2] + 5 * pt.eye(2)), "rows"
        ),
        "checked-rows": Case(
            "CheckAndRaise",
            lambda s: op("raise_op", "CheckAndRaise", ValueError, "no")(s.X, pt.all(s.y > 0)),
            "rows",
        ),
        "repeated-columns": Case(
            "Repeat",
            lambda s: import_from("tensor.extra_ops", "Repeat")(1)(s.X, [2, 0, 1]),
            "rows",
        ),
        "softmax-over-all": Case(
            "Softmax", lambda s: pt.special.softmax(s.X, axis=None), "max > rows sum > rows"
        ),
        "masked-columns": Case("AdvancedSubtensor", lambda s: s.X[:, s.mask], "rows"),
    }
else:
    CASES |= {
        "place-alone": Case(
            "Argmax",
            lambda s: op("tensor.basic", "Argmax", [0])(s.X),
            "max rows rows > max > once",
        ),
        "maximum-and-place": Case(
            "MaxAndArgmax",
            lambda s: pt.max_and_argmax(s.X, axis=0),
            "max max rows rows > max > once",
        ),
        "axis-of-one": Case(
            "Rebroadcast", lambda s: pt.addbroadcast(s.X[:, :1], 1) * s.X, "rows"
        ),
    }
CASES["products-of-rows"] = Case(
    "BatchedDot",
    lambda s: op("tensor.blas", "BatchedDot")(s.T, s.T.dimshuffle(0, 2, 1)),
    "rows",
)


REFUSED: dict[str, Refused] = {
    "all-by-all": Refused(
        "Elemwise", lambda s: s.y[:, None] * s.y, "every row meets every row"
    ),
    "one-entry-per-row": Refused(
        "Elemwise",
        lambda s: s.y * s.per_row,
        "input 'per_row' is replicated and has one entry per row",
    ),
    "sums-of-bits": Refused(
        "CAReduce",
        lambda s: import_from("tensor.elemwise", "CAReduce")(import_from("scalar", "and_"))(
            s.labels
        ),
        "does not follow",
    ),
    "argmax-of-the-transpose": Refused(
        "Argmax" if PYTENSOR else "MaxAndArgmax",
        lambda s: pt.argmax(s.XT),
        "argmax over rows and other axes",
    ),
    "kernel": Refused("Dot", lambda s: pt.dot(s.X, s.X.T), "every row with every row"),
    "sum-by-an-input": Refused(
        "Dot", lambda s: pt.dot(s.per_row, s.X), "'per_row' is not cut"
    ),
    "first-rows": Refused("Subtensor", lambda s: s.X[:3], "rows by their place"),
    "every-other-row": Refused("Subtensor", lambda s: s.X[::2], "rows by their place"),
    "reversed": Refused("Subtensor", lambda s: s.y[::-1], "rows by their place"),
    "last-row": Refused("Subtensor", lambda s: s.X[-1], "rows by their place"),
    "lagged": Refused("Subtensor", lambda s: s.y[1:] - s.y[:-1], "rows by their place"),
    "set-a-row": Refused(
        "IncSubtensor", lambda s: pt.set_subtensor(s.X[0], s.b), "rows by their place"
    ),
    "rows-into-an-input": Refused(
        "IncSubtensor",
        lambda s: pt.set_subtensor(s.per_row[:], s.y),
        "writes rows into a replicated array",
    ),
    "columns-of-an-input": Refused(
        "IncSubtensor",
        lambda s: pt.inc_subtensor(s.X[:, 1], s.per_row),
        "'per_row' does not have its rows",
    ),
    "shuffled": Refused(
        TAKE,
        lambda s: s.X[s.labels],
        "picked by number",
    ),
    "picked-by-an-input": Refused(
        "AdvancedSubtensor",
        lambda s: s.X[own(s.X), s.numbers],
        "'numbers' is replicated and has one entry per row",
    ),
    "picked-beside-an-input": Refused(
        "AdvancedSubtensor",
        lambda s: s.W[s.numbers, s.labels],
        "'numbers' is replicated and has one entry per row",
    ),
    "picked-across": Refused(
        "AdvancedSubtensor",
        lambda s: s.W[(s.labels % 3)[:, None], s.labels],
        "indices have their rows along different axes",
    ),
    "set-by-rows": Refused(
        PUT,
        lambda s: pt.set_subtensor(s.E[s.labels], s.X),
        "the last one wins",
    ),
    "add-beside-an-input": Refused(
        "AdvancedIncSubtensor",
        lambda s: pt.inc_subtensor(s.W[s.numbers, s.labels], s.y),
        "'numbers' is replicated and has one entry per row",
    ),
    "add-an-input": Refused(
        "AdvancedIncSubtensor",
        lambda s: pt.inc_subtensor(s.W[s.labels % 3, s.labels], s.per_row),
        "'per_row' does not have its rows",
    ),
    "masked": Refused(
        "AdvancedSubtensor" if PYTENSOR else None,
        lambda s: s.X[s.flags],
        "a mask leaves" if PYTENSOR else "has no rule for rows",
    ),
    "rows-by-rows": Refused(
        "Alloc", lambda s: pt.alloc(0.0, n_of(s.X), n_of(s.X)), "grows with their square"
    ),
    "of-another-length": Refused(
        "Alloc",
        lambda s: pt.alloc(s.y, 2, n_of(s.y) + 0),
        "stretched to a length that is not theirs",
    ),
    "end-to-end": Refused(
        "Join", lambda s: pt.concatenate([s.X, s.Z]), "joined along their rows"
    ),
    "an-input-beside": Refused(
        "Join",
        lambda s: pt.concatenate([s.X, s.per_row[:, None]], axis=1),
        "is not cut as they are",
    ),
    "rows-in-two": Refused(
        "Split",
        lambda s: pt.split(s.X, [3, 4], n_splits=2, axis=0),
        "split by their place",
    ),
    "flattened": Refused(
        "Reshape", lambda s: s.X.flatten(), "does not begin with the number of rows"
    ),
    "mixed-up": Refused(
        "Reshape",
        lambda s: s.X.T.reshape((n_of(s.X), 3)),
        "does not begin with the number of rows",
    ),
    "of-seven-rows": Refused(
        "SpecifyShape", lambda s: pt.specify_shape(s.X, (N_ROWS, 3)), "how many rows there are"
    ),
    "cumulative": Refused(
        "CumOp", lambda s: pt.cumsum(s.X, axis=0), "along the rows needs all"
    ),
    "cumulative-of-all": Refused(
        "CumOp", lambda s: pt.cumsum(s.y), "along the rows needs all"
    ),
    "sorted": Refused("SortOp", lambda s: pt.sort(s.y), "along the rows needs all"),
    "ranks": Refused(
        "ArgSortOp", lambda s: pt.argsort(s.X, axis=0), "along the rows needs all"
    ),
    "a-matrix-of-rows": Refused(
        "BatchedDot",
        lambda s: op("tensor.blas", "BatchedDot")(
            s.XT.dimshuffle("x", 1, 0), s.XT.dimshuffle("x", 0, 1)
        ),
        "in a batch",
    ),
    "loop-over-rows": Refused("Subtensor", lambda s: looped(s.X, s.b), "steps along the rows"),
    "no-rule": Refused(
        None,
        lambda s: import_from("tensor.extra_ops", "FillDiagonal")()(s.X, 0.5),
        "FillDiagonal has no rule for rows",
    ),
}
if PYTENSOR:
    REFUSED |= {
        "a-core-of-all": Refused("Blockwise", lambda s: pt.linalg.pinv(s.X), "reads all rows"),
        "repeated": Refused(
            "Repeat",
            lambda s: import_from("tensor.extra_ops", "Repeat")(0)(s.y, [1, 0, 2, 1, 1, 3, 0]),
            "along the rows",
        ),
        "repeated-by-rows": Refused(
            "Repeat",
            lambda s: import_from("tensor.extra_ops", "Repeat")(0)(s.per_row, s.labels),
            "rows say how often",
        ),
    }


def outputs_of(case: Case | Refused, s: Any) -> list[Any]:
    made = case.build(s)
    return list(made) if isinstance(made, list | tuple) else [made]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the rules that place a node."""
    names: set[str] = set()

    def noted(name: str, rule: Any) -> Any:
        def place(node: Any, at: Any) -> Any:
            names.add(name)
            return rule(node, at)

        return place

    for name, rule in RULES.items():
        monkeypatch.setitem(RULES, name, noted(name, rule))
    return names


def test_every_rule_has_a_case() -> None:
    of_draws = {"RandomVariable", "RowGenerator"}  # tests/test_draws.py
    missing = set(RULES) & op_names() - {case.rule for case in CASES.values()} - of_draws
    assert sorted(missing) == []


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_rule_keeps_its_law(case: Case, used: set[str]) -> None:
    s = symbols()
    cutting = Cutting(vars(s).values(), outputs_of(case, s), PLACEMENTS)
    assert case.rule in used
    assert cutting.structure() == case.structure
    cutting.check(ARGUMENTS, case.cuts())


DIFFERENTIABLE = {
    name: case
    for name, case in CASES.items()
    if case.gradient is not None
    and any(v.dtype == "float64" for v in outputs_of(case, symbols()))
}


@pytest.mark.parametrize("case", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE)
def test_the_gradient_keeps_the_law(case: Case) -> None:
    s = symbols()
    slopes = gradients(summary(outputs_of(case, s)), [s.X, s.T, s.y, s.W, s.E, s.b, s.a])
    if not case.gradient:
        with pytest.raises(PlacementError):
            Cutting(vars(s).values(), slopes, PLACEMENTS)
    cutting = Cutting(vars(s).values(), slopes, PLACEMENTS, gather=not case.gradient)
    cutting.check(ARGUMENTS, case.cuts())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_without_rows_a_rule_does_as_the_engine_does(case: Case) -> None:
    s = symbols()
    cutting = Cutting(vars(s).values(), outputs_of(case, s), PLACEMENTS)
    none = cut_values(ARGUMENTS, PLACEMENTS, 0)
    try:
        cutting.whole(*none)
    except ValueError:  # of no rows; a block then counts as if it had one
        return
    cutting.check(none, [(0,), (0, 0)])


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_needs_all_rows_is_refused_or_gathered(case: Refused, used: set[str]) -> None:
    s = symbols()
    outputs = outputs_of(case, s)
    with pytest.raises(PlacementError) as refusal:
        Cutting(vars(s).values(), outputs, PLACEMENTS)
    assert case.rule is None or case.rule in used
    message = str(refusal.value)
    assert case.reason in message
    assert "gather='allow'" in message
    assert message.split("(")[0].split("{")[0] in "".join(map(engine_text, outputs))
    Cutting(vars(s).values(), outputs, PLACEMENTS, gather=True).check(ARGUMENTS, CUTS)


def engine_text(variable: Any) -> str:
    """All nodes of a graph, as the engine names them."""
    return " ".join(str(node) for node in symbolic.toposort([variable], ()))
