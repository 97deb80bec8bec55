"""What one Op costs: floating-point operations and bytes, from the shapes that it meets.

====================================  =====================================================
Op                                    operations
====================================  =====================================================
elementwise                           entries of the result x scalar operations; any
                                      function counts as one, a cast or a copy as none
reduction, cumulation, argmax         entries of the input
product of matrices                   2 m n k
softmax, and its gradient             5 and 4 per entry
adding at indices                     entries that are added
sort                                  n log2 n per line
Cholesky; triangular solve            n^3 / 3; n^2 per right-hand side
solve; inverse; determinant           2 n^3 / 3 + 2 n^2 per right-hand side; 2 n^3;
                                      2 n^3 / 3
QR; symmetric eigenvalues; SVD        2 m n^2; 9 n^3; 14 m n^2 + 8 n^3
random numbers                        one per entry
indexing, joining, filling            none
shapes and views                      none, and no bytes either
loop                                  those of one step x steps
====================================  =====================================================

Bytes are those of the distinct tensors read and of those written, as if nothing were kept in
a cache. The dense factorisations are counted as in [1]_, to leading order.

.. [1] G. H. Golub and C. F. Van Loan, *Matrix Computations*, 4th ed., Johns Hopkins
   University Press, 2013.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log2, prod
from typing import Any, TypeAlias

import numpy as np

from skdtheano import symbolic
from skdtheano.engine import Variable

Sizes: TypeAlias = tuple[int, ...]
Count = Callable[[Any, Sequence[Sizes], Sequence[Sizes]], float]


@dataclass(frozen=True)
class Cost:
    """Of one Op, or of several.

    Attributes
    ----------
    flops : int
        Floating-point operations; those of integers and truth values count as well.
    bytes : int
        Read and written.
    """

    flops: int = 0
    bytes: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: int) -> "Cost":
        return Cost(self.flops * times, self.bytes * times)


def op_name(op: Any) -> str:
    """The name of an Op for people: of elementwise and batched ones, of what they apply."""
    inner = getattr(op, "core_op", None)
    if inner is not None:
        return op_name(inner)
    name = type(op).__name__
    if name in ("Elemwise", "CAReduce"):
        return type(op.scalar_op).__name__.removeprefix("Scalar")
    return name


def is_listed(op: Any) -> bool:
    """Whether the table has the Op; of another one, each entry of its results counts one."""
    return _count_of(op) is not None


def cost_of(node: Any, sizes: Callable[[Variable], Sizes | None]) -> Cost:
    """The cost of a node.

    Parameters
    ----------
    node : Apply
    sizes : callable
        The shape of a variable; None for what is no tensor.
    """
    read = [sizes(variable) for variable in node.inputs]
    written = [sizes(variable) for variable in node.outputs]
    tensors = [size for size in written if size is not None]
    if not tensors:
        return Cost()
    count = _count_of(node.op) or _per_entry
    flops = round(count(node.op, [() if s is None else s for s in read], tensors))
    if _is_free(node):
        return Cost(flops, 0)
    inputs = dict(zip(node.inputs, read, strict=True))
    if type(node.op).__name__ in _PICKING:  # of the first input only what is picked
        inputs[node.inputs[0]] = tensors[0]
    outputs = dict(zip(node.outputs, written, strict=True))
    moved = sum(
        prod(size) * np.dtype(variable.dtype).itemsize
        for variable, size in (*inputs.items(), *outputs.items())
        if size is not None
    )
    return Cost(flops, moved)


def _count_of(op: Any) -> Count | None:
    while hasattr(op, "core_op"):  # a batch: the counts take leading axes as they come
        op = op.core_op
    for kind in type(op).__mro__:
        if kind.__name__ in COUNTS:
            return COUNTS[kind.__name__]
    return None


def _is_free(node: Any) -> bool:
    names = {kind.__name__ for kind in type(node.op).__mro__}
    return symbolic.is_view(node) or bool(names & _FREE)


#: Ops that give a view, or look at no entry.
_FREE = frozenset(
    {
        "CheckAndRaise",
        "DisconnectedGrad",
        "GradClip",
        "GradScale",
        "MakeSlice",
        "Reshape",
        "Shape",
        "Shape_i",
        "SpecifyShape",
        "Split",
        "Subtensor",
        "ZeroGrad",
    }
)
_PICKING = frozenset({"AdvancedSubtensor", "AdvancedSubtensor1"})

#: Scalar Ops that compute nothing.
_COPIES = frozenset({"Cast", "Identity", "Second"})


def scalar_operations(op: Any) -> int:
    """Scalar operations of an elementwise Op on one entry."""
    graph = getattr(op, "fgraph", None)  # several that were made into one
    if graph is not None:
        return sum(scalar_operations(node.op) for node in graph.toposort())
    name = type(op).__name__
    return 0 if name in _COPIES or name.startswith("ConvertTo") else 1


def _per_entry(op: Any, read: Sequence[Sizes], written: Sequence[Sizes]) -> float:
    return sum(prod(size) for size in written)


def _none(op: Any, read: Sequence[Sizes], written: Sequence[Sizes]) -> float:
    return 0


def _elemwise(op: Any, read: Sequence[Sizes], written: Sequence[Sizes]) -> float:
    return prod(written[0]) * scalar_operations(op.scalar_op)


def _per_entry_read(op: Any, read: Sequence[Sizes], written: Sequence[Sizes]) -> float:
    return prod(read[0])


def _product(op: Any, read: Sequence[Sizes], written: Sequence[Sizes]) -> float:
    return 2 * prod(written[0]) * (read[0][-1] if read[0] else 1)


def _times_entries(times: float) -> Count:
    return lambda op, read, written: times * prod(written[0])


def _added(op: Any, read: Sequence[Sizes], written: Sequence[Sizes]) -> float:
    return 0 if getattr(op, "set_instead_of_inc", False) else prod(read[1])


def _sort(op: Any, read: Sequence[Sizes], written: Sequence[Sizes]) -> float:
    lengths, entries = written[0], prod(written[0])
    axis = getattr(op, "axis", None)
    line = lengths[axis] if isinstance(axis, int) and lengths else entries
    return entries * log2(line) if line > 1 else 0


def _square(factor: float) -> Count:
    """`factor` n^3 for each square matrix."""
    return lambda op, read, written: factor * prod(read[0]) * read[0][-1]


def _triangular(op: Any, read: Sequence[Sizes], written: Sequence[Sizes]) -> float:
    return prod(written[0]) * read[0][-1]


def _solve(op: Any, read: Sequence[Sizes], written: Sequence[Sizes]) -> float:
    return 2 / 3 * prod(read[0]) * read[0][-1] + 2 * prod(written[0]) * read[0][-1]


def _cholesky_solve(op: Any, read: Sequence[Sizes], written: Sequence[Sizes]) -> float:
    return 2 * _triangular(op, read, written)


def _qr(op: Any, read: Sequence[Sizes], written: Sequence[Sizes]) -> float:
    return 2 * prod(read[0]) * min(read[0][-2:])


def _svd(op: Any, read: Sequence[Sizes], written: Sequence[Sizes]) -> float:
    short = min(read[0][-2:])
    return 14 * prod(read[0]) * short + 8 * prod(read[0][:-2]) * short**3


#: Operations by the name of the Op's class or of one of its bases, in either engine.
COUNTS: dict[str, Count] = {
    "Elemwise": _elemwise,
    "CAReduce": _per_entry_read,
    "Argmax": _per_entry_read,
    "MaxAndArgmax": _per_entry_read,
    "CumOp": _per_entry_read,
    "Dot": _product,
    "BatchedDot": _product,
    "Softmax": _times_entries(5),
    "LogSoftmax": _times_entries(5),
    "SoftmaxGrad": _times_entries(4),
    "LogSoftmaxGrad": _times_entries(4),
    "IncSubtensor": _added,
    "AdvancedIncSubtensor1": _added,
    "AdvancedIncSubtensor": _added,
    "SortOp": _sort,
    "ArgSortOp": _sort,
    "Cholesky": _square(1 / 3),
    "SolveTriangular": _triangular,
    "CholeskySolve": _cholesky_solve,
    "Solve": _solve,
    "MatrixInverse": _square(2),
    "MatrixPinv": _svd,
    "Det": _square(2 / 3),
    "SLogDet": _square(2 / 3),
    "QRFull": _qr,
    "QR": _qr,
    "Eigh": _square(9),
    "SVD": _svd,
    "RandomVariable": _per_entry,
    "RandomFunction": _per_entry,
    **dict.fromkeys(
        (
            *_FREE,
            *_PICKING,
            "ARange",
            "Alloc",
            "AllocDiag",
            "AllocEmpty",
            "DeepCopyOp",
            "DimShuffle",
            "ExtractDiag",
            "Eye",
            "Join",
            "MakeVector",
            "Rebroadcast",
            "Repeat",
            "Scan",  # its steps are counted instead
            "ScalarFromTensor",
            "TensorFromScalar",
            "ViewOp",
        ),
        _none,
    ),
}
