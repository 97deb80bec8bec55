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


@cache
def have_same_bits(
    n_rows: int, n_in: int, n_out: int, n_models: int, dtype: str, n_threads: int
) -> bool:
    """Whether BLAS rounds a layer's products alike, of one model and of all as one matrix.

    It adds the terms of an entry in the order of its kernel, whatever they are: so numbers
    that are tried once tell of all. In float32 some kernels take another order at the end of
    a row.

    Parameters
    ----------
    n_rows : int
        Of a minibatch.
    n_in, n_out : int
        Of the layer's weight matrix.
    n_models : int
    dtype : str
    n_threads : int
        That BLAS takes now.
    """
    rng = np.random.default_rng(0)
    kind = np.float32 if dtype == "float32" else np.float64

    def drawn(n: int, m: int) -> np.ndarray:
        return rng.random((n, m), kind) - kind(0.5)

    rows = drawn(n_rows, n_in)
    for first, length in ((rows, n_in), (rows.T, n_rows)):
        matrices = drawn(length, n_models * n_out)
        together = side_by_side(first @ matrices, n_models)
        for product, matrix in zip(together, side_by_side(matrices, n_models), strict=True):
            if not np.array_equal(product, first @ np.ascontiguousarray(matrix)):
                return False
    return True
