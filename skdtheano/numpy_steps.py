"""What each Op is in NumPy: a call that writes into an array that is there already.

Behaviour per Op is a row of a table here; an Op without one is refused with its name. Where
inputs are stacked (see `skdtheano.numbering`), NumPy takes the same operations in the same
order for each model as for one alone.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import scipy.special

from skdtheano.numbering import (
    AND,
    COLUMN_SUM,
    FEW_COLUMNS,
    ROW_MAX,
    ROW_SUM,
    Call,
    Numbering,
    Shape,
    Step,
    View,
)
from skdtheano.recipe import Node, Value
from skdtheano.side_by_side import as_one

#: Multiplications of a product for which OpenBLAS does not arrange the matrices first, and
#: from which a copy of one is worth its call.
_SMALL_PRODUCTS = 10**5, 10**6


def add_node(node: Node, numbers: Numbering) -> None:
    """Append the steps of a node.

    Raises
    ------
    NotImplementedError
        If its Op is in none of the tables; names the node.
    """
    row = _OPS.get(node.kind)
    if row is None or not row(node, numbers):
        raise NotImplementedError(
            f"The compile mode 'NUMPY' has no row for {node}. Use mode='FAST_COMPILE'."
        )


def _elementwise(node: Node, numbers: Numbering) -> bool:
    name, function_name = node.parameters["scalar"], node.parameters["function"]
    if name == "Switch":
        return _switch(node, numbers)
    if name in ("Cast", "Second", "Identity"):
        _append(node, numbers, (numbers.of(node.inputs[-1]),), _copy_calls)
        return True
    if function_name is None:
        return False
    is_expit = function_name.endswith("expit")  # Theano is told it with its module
    function = scipy.special.expit if is_expit else getattr(np, function_name, None)
    if not isinstance(function, np.ufunc):
        return False
    values = node.inputs
    if name == "Pow" and _is_constant(values[1], 2):
        function, values = np.square, values[:1]
    varying = [value.dtype for value in values if value.constant is None]
    common = str(np.result_type(*varying)) if varying else node.outputs[0].dtype
    inputs = tuple(numbers.typed(value, common) for value in values)
    # Of more than two, only the first is not read again after the first call, if it is so.
    overwrites = tuple(range(len(inputs)))
    if len(inputs) > 2:
        overwrites = () if inputs[0] in inputs[2:] else (0,)
    _append(node, numbers, inputs, partial(_ufunc_calls, function), overwrites, function)
    return True


def _append(
    node: Node,
    numbers: Numbering,
    inputs: tuple[int, ...],
    calls: Callable[..., list[Call]],
    overwrites: tuple[int, ...] = (),
    operation: np.ufunc | str | None = None,
) -> None:
    [output] = node.outputs
    numbers.add(
        Step(
            node.name,
            inputs,
            numbers.of(output),
            output.dtype,
            lambda *shapes: np.broadcast_shapes(*shapes),
            calls,
            overwrites,
            operation,
            is_elementwise=True,
        )
    )


def _ufunc_calls(
    function: np.ufunc, arrays: Sequence[np.ndarray], out: np.ndarray, _: np.ndarray | None
) -> list[Call]:
    if function.nin == 1:
        return [partial(function, arrays[0], out=out)]
    first, second, *more = arrays
    return [
        partial(function, first, second, out=out),
        *(partial(function, out, other, out=out) for other in more),
    ]


def _copy_calls(
    arrays: Sequence[np.ndarray], out: np.ndarray, _: np.ndarray | None
) -> list[Call]:
    return [partial(np.copyto, out, arrays[0], casting="unsafe")]


def _switch(node: Node, numbers: Numbering) -> bool:
    """0 on one side is a bitwise product; a copy by a random mask mispredicts every branch."""
    [output] = node.outputs
    condition, then, otherwise = node.inputs
    dtype = output.dtype
    zero_then, zero_otherwise = _is_constant(then, 0), _is_constant(otherwise, 0)
    if dtype in ("float32", "float64") and zero_then != zero_otherwise:
        kept = otherwise if zero_then else then
        if kept.dtype == dtype and kept.constant is None:
            where = numbers.condition(numbers.of(condition))
            inputs = (numbers.mask(where, dtype, zero_otherwise), numbers.of(kept))
            _append(node, numbers, inputs, _and_calls, (1,), AND)
            if zero_then:
                numbers.note_relu(where, numbers.of(kept), numbers.of(output))
            return True
    sides = (numbers.typed(then, dtype), numbers.typed(otherwise, dtype))
    _append(node, numbers, (numbers.of(condition), *sides), _where_calls)
    return True


def _and_calls(
    arrays: Sequence[np.ndarray], out: np.ndarray, _: np.ndarray | None
) -> list[Call]:
    mask, kept = arrays
    return [partial(np.bitwise_and, kept.view(mask.dtype), mask, out=out.view(mask.dtype))]


def _where_calls(
    arrays: Sequence[np.ndarray], out: np.ndarray, _: np.ndarray | None
) -> list[Call]:
    condition, then, otherwise = arrays
    return [
        partial(np.copyto, out, otherwise),
        partial(np.copyto, out, then, where=condition),
    ]


def _is_constant(value: Value, number: float) -> bool:
    data = value.constant
    return data is not None and data.size > 0 and bool(np.all(data == number))


def _dimensions(node: Node, numbers: Numbering) -> bool:
    front = numbers.axes_in_front(node.inputs[0])
    order = [*range(front), *(_moved(axis, front) for axis in node.parameters["order"])]
    drop = [axis + front for axis in node.parameters["drop"]]

    def look(array: np.ndarray) -> np.ndarray:
        kept = [axis for axis in order if axis != "x"]
        turned = array.transpose(*kept, *drop)
        turned = turned.reshape(turned.shape[: len(kept)]) if drop else turned
        places = [i for i, axis in enumerate(order) if axis == "x"]
        return np.expand_dims(turned, tuple(places)) if places else turned

    return _look(node, numbers, look)


def _moved(axis: int | str, by: int) -> int | str:
    return axis if isinstance(axis, str) else axis + by


def _length(node: Node, numbers: Numbering) -> bool:
    axis = node.parameters["axis"] + numbers.axes_in_front(node.inputs[0])
    return _look(node, numbers, lambda array: np.asarray(array.shape[axis]), True)


def _lengths(node: Node, numbers: Numbering) -> bool:
    front = numbers.axes_in_front(node.inputs[0])
    return _look(node, numbers, lambda array: np.asarray(array.shape[front:]), True)


def _same(node: Node, numbers: Numbering) -> bool:
    return _look(node, numbers, lambda array: array)


def _entry(node: Node, numbers: Numbering) -> bool:
    """One entry of a vector, by a constant number: a length out of a shape."""
    vector, *indices = node.inputs
    if vector.ndim != 1 or len(indices) != 1 or indices[0].constant is None:
        return False
    number = int(indices[0].constant)
    return _look(node, numbers, lambda array: array[number : number + 1].reshape(()))


def _look(
    node: Node,
    numbers: Numbering,
    look: Callable[[np.ndarray], np.ndarray],
    of_shape: bool = False,
) -> bool:
    output = numbers.of(node.outputs[0])
    numbers.add(View(numbers.of(node.inputs[0]), output, look, of_shape))
    return True


def _product(node: Node, numbers: Numbering) -> bool:
    fronts = [numbers.axes_in_front(value) for value in node.inputs]
    of_matrices = all(value.ndim == 2 for value in node.inputs)
    side_by_side = of_matrices and fronts == [0, 1]

    def shape(*given: Shape) -> Shape:
        first, second = (one[front:] for one, front in zip(given, fronts, strict=True))
        models = [one[:front] for one, front in zip(given, fronts, strict=True)]
        return max(models) + first[:-1] + second[1:]

    def calls(
        arrays: Sequence[np.ndarray], out: np.ndarray, _: np.ndarray | None
    ) -> list[Call]:
        first, second = arrays
        if of_matrices and _is_read_across(first, second):
            copy = np.empty(second.shape, second.dtype)
            product: Callable[..., object] = np.matmul if any(fronts) else np.dot
            return [partial(np.copyto, copy, second), partial(product, first, copy, out=out)]
        if not any(fronts):
            return [partial(np.dot, first, second, out=out)]
        if side_by_side:
            matrix, made = as_one(second), as_one(out)
            if matrix is not None and made is not None:
                return [partial(np.dot, first, matrix, out=made)]
        if of_matrices:  # a product for each model, by the same routine of BLAS
            return [partial(np.matmul, first, second, out=out)]
        return [
            partial(np.dot, *_of_model(arrays, fronts, k), out=out[k, ...])
            for k in range(len(out))
        ]

    [output] = node.outputs
    inputs = tuple(map(numbers.of, node.inputs))
    numbers.add(
        Step(
            node.name,
            inputs,
            numbers.of(output),
            output.dtype,
            shape,
            calls,
            side_by_side=side_by_side,
        )
    )
    return True


def _is_read_across(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether a small product is quicker of a copy of its second matrix, which is turned.

    OpenBLAS has kernels for AVX-512 that take small matrices as they are, and by a third
    longer across their rows.
    """
    n_terms = first.shape[-2] * second.shape[-2] * second.shape[-1]
    is_turned = second.strides[-2] == second.itemsize != second.strides[-1]
    return is_turned and _SMALL_PRODUCTS[0] <= n_terms <= _SMALL_PRODUCTS[1]


def _of_model(arrays: Sequence[np.ndarray], fronts: Sequence[int], k: int) -> list[np.ndarray]:
    return [a[k] if front else a for a, front in zip(arrays, fronts, strict=True)]


def _reduction(node: Node, numbers: Numbering) -> bool:
    [output] = node.outputs
    ufunc = getattr(np, node.parameters["function"])
    ndim, given = node.inputs[0].ndim, node.parameters["axes"]
    given = range(ndim) if given is None else given
    front = numbers.axes_in_front(node.inputs[0])
    axes = tuple(axis % ndim + front for axis in given)
    dtype = output.dtype

    operation: str | None = None
    if ndim == 2 and dtype == node.inputs[0].dtype:
        known: dict[tuple[object, ...], str] = {
            (np.add, (front,)): COLUMN_SUM,
            (np.add, (front + 1,)): ROW_SUM,
            (np.maximum, (front + 1,)): ROW_MAX,
        }
        operation = known.get((ufunc, axes))

    def is_by_columns(given: Shape) -> bool:
        # Of one row NumPy sums a transposed copy by pairs, or not, by what is around it.
        is_by_row = ndim == 2 and axes == (front + 1,)
        return is_by_row and given[-1] <= FEW_COLUMNS and given[-2] > 1

    def columns_first(given: Sequence[int]) -> tuple[int, ...]:
        return (given[-1], *given[:-1])

    def shape(given: Shape) -> Shape:
        return tuple(n for axis, n in enumerate(given) if axis not in axes)

    def scratch(given: Shape) -> tuple[str, Shape] | None:
        return (dtype, columns_first(given)) if is_by_columns(given) else None

    def calls(
        arrays: Sequence[np.ndarray], out: np.ndarray, turned: np.ndarray | None
    ) -> list[Call]:
        if turned is None:
            return [partial(ufunc.reduce, arrays[0], axis=axes, dtype=dtype, out=out)]
        return [
            partial(
                np.copyto, turned, arrays[0].transpose(columns_first(range(ndim + front)))
            ),
            partial(ufunc.reduce, turned, axis=0, out=out),
        ]

    inputs = (numbers.of(node.inputs[0]),)
    numbers.add(
        Step(
            node.name,
            inputs,
            numbers.of(output),
            dtype,
            shape,
            calls,
            operation=operation,
            scratch=scratch,
        )
    )
    return True


#: Appends the steps of a node, by the class of its Op; False for one that it cannot.
_OPS: dict[str, Callable[[Node, Numbering], bool]] = {
    "Elemwise": _elementwise,
    "DimShuffle": _dimensions,
    "InplaceDimShuffle": _dimensions,
    "Assert": _same,  # of shapes, which NumPy looks at itself
    "ScalarFromTensor": _same,
    "TensorFromScalar": _same,
    "Shape": _lengths,
    "Shape_i": _length,
    "Subtensor": _entry,
    "Dot": _product,
    "Dot22": _product,
    "CAReduce": _reduction,
    "Sum": _reduction,
    "Max": _reduction,
}
