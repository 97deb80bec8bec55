"""Matrices of several models whose columns lie side by side, as one matrix.

The products of one matrix with those of all models are one product then: ``X @ W`` of each
model's ``W`` is ``X @ [W W ...]``. BLAS arranges ``X`` for its kernel once instead of for each
model, and has fewer ends of rows: of digits in minibatches of 200 and layers of 100 twelve
models' two products take a sixth less than one after another.
"""

from functools import cache

import numpy as np


def side_by_side(matrix: np.ndarray, n_models: int) -> np.ndarray:
    """Look at a matrix of shape (n, n_models * m) as one of each model, (n_models, n, m)."""
    return matrix.reshape(len(matrix), n_models, -1).transpose(1, 0, 2)


def as_one(stacked: np.ndarray) -> np.ndarray | None:
    """The other way round; None for matrices that do not lie so."""
    rows_first = stacked.transpose(1, 0, 2)
    if not rows_first.flags.c_contiguous:
        return None
    return rows_first.reshape(len(rows_first), -1)


def lie_side_by_side(array: np.ndarray) -> bool:
    """Whether an array is such a look, and no other one."""
    return array.ndim == 3 and as_one(array) is not None and not array.flags.c_contiguous


#: Entries of all weight matrices. Of larger ones the products take as long one by one, and to
#: try them takes time.
_MOST_ENTRIES = 2**20


@cache
def have_same_bits(
    n_rows: int, n_in: int, n_out: int, n_next: int, n_models: int, dtype: str
) -> bool:
    """Whether BLAS rounds alike for models side by side and for each alone.

    That is for the products of the first layer, and for those of the second one, which have
    the first one's values among those of other models. BLAS adds the terms of an entry in the
    order of its kernel, whatever they are, so numbers that are tried once tell of all. But
    some kernels take another order at the end of a row, and a matrix-vector product is made
    by one kernel or another by how far its rows are apart.

    Parameters
    ----------
    n_rows : int
        Of a minibatch.
    n_in, n_out : int
        Of the first layer's weight matrix.
    n_next : int
        Units of the second layer.
    n_models : int
    dtype : str
    """
    if min(n_rows, n_in, n_out, n_models) < 2 or n_in * n_out * n_models > _MOST_ENTRIES:
        return False  # NumPy sums a single column, or row, by pairs
    rng = np.random.default_rng(0)
    kind = np.float32 if dtype == "float32" else np.float64

    def drawn(*shape: int) -> np.ndarray:
        return rng.random(shape, kind) - kind(0.5)

    rows = drawn(n_rows, n_in)
    pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for first, length in ((rows, n_in), (rows.T, n_rows)):
        matrices = drawn(length, n_models * n_out)
        together = side_by_side(first @ matrices, n_models)
        pairs += [
            (made, first, matrix)
            for made, matrix in zip(together, side_by_side(matrices, n_models), strict=True)
        ]
    values = side_by_side(drawn(n_rows, n_models * n_out), n_models)
    weights, slopes = drawn(n_models, n_out, n_next), drawn(n_models, n_rows, n_next)
    back = side_by_side(np.empty((n_rows, n_models * n_out), kind), n_models)
    for first, second, out in (
        (values, weights, None),
        (values.swapaxes(1, 2), slopes, None),
        (slopes, weights.swapaxes(1, 2), back),
    ):
        pairs += zip(np.matmul(first, second, out=out), first, second, strict=True)
    return all(
        np.array_equal(made, np.dot(_apart(first), _apart(second)))
        for made, first, second in pairs
    )


def _apart(matrix: np.ndarray) -> np.ndarray:
    """A copy that lies as a matrix of a single model does, by rows or turned."""
    if matrix.strides[1] <= matrix.strides[0]:
        return np.ascontiguousarray(matrix)
    return np.ascontiguousarray(matrix.T).T
