"""Matrices of several models whose columns lie side by side, as one matrix.

The products of one matrix with those of all models are one product then: ``X @ W`` of each
model's ``W`` is ``X @ [W W ...]``. BLAS arranges ``X`` for its kernel once instead of for each
model, and has fewer ends of rows: of digits in minibatches of 200 and layers of 100 twelve
models' two products take a sixth less than one after another.
"""

from collections.abc import Sequence
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
_MOST_ENTRIES = 2**18
#: Rows, or units, of a product that gains by it. For fewer BLAS has a kernel for each shape.
_FEWEST = 8
#: The end of a row may be a single entry of each model, which tells one order from another
#: more often than not: so many do.
_MODELS_TRIED = 16


@cache
def have_same_bits(
    n_rows: int, n_in: int, n_out: int, n_next: int, n_models: int, dtype: str
) -> bool:
    """Whether BLAS rounds alike for models side by side and for each alone.

    That is for the products of the first layer, and for those of the second one, which have
    the first one's values among those of other models. BLAS adds the terms of an entry in the
    order of its kernel, whatever they are, so numbers that are tried once tell of all: those
    of products that would be 0, where all that is left is rounding. Some
    kernels take another order at the end of a row, and a matrix-vector product is made
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
    if n_models < 2 or min(n_rows, n_in, n_out) < _FEWEST:
        return False
    if n_in * n_out * n_models > _MOST_ENTRIES:
        return False
    rng = np.random.default_rng(0)
    kind = np.float32 if dtype == "float32" else np.float64
    shapes = (n_rows, n_in, n_out, n_next, n_models)
    n_trials = -(-_MODELS_TRIED // n_models)
    return all(_are_alike(rng, kind, *shapes) for _ in range(n_trials))


def _are_alike(
    rng: np.random.Generator,
    kind: type,
    n_rows: int,
    n_in: int,
    n_out: int,
    n_next: int,
    n_models: int,
) -> bool:
    def factors(
        models: tuple[int, ...], n: int, k: int, m: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Matrices whose product is 0: what is left is rounding, in the order of the sum."""
        first, second = (rng.random((*models, *of), kind) - 0.5 for of in ((n, k), (k, m)))
        half = k // 2
        first[..., half : 2 * half] = first[..., :half]
        second[..., half : 2 * half, :] = -second[..., :half, :]
        # Terms that cancel are not apart by the length of some kernel's vectors.
        places = rng.permutation(k)
        return np.ascontiguousarray(first[..., places]), second[..., places, :]

    def beside(stacked: np.ndarray) -> np.ndarray:
        n_models, n, m = stacked.shape
        lying = side_by_side(np.empty((n, n_models * m), kind), n_models)
        lying[...] = stacked
        return lying

    models = (n_models,)
    rows, matrix = factors((), n_rows, n_in, n_models * n_out)
    turned, slope = factors((), n_in, n_rows, n_models * n_out)
    turned = np.ascontiguousarray(turned.T).T
    values, weights = factors(models, n_rows, n_out, n_next)
    values_turned, slopes = factors(models, n_out, n_rows, n_next)
    back, weights_turned = factors(models, n_rows, n_next, n_out)
    weights_turned = np.ascontiguousarray(weights_turned.swapaxes(1, 2)).swapaxes(1, 2)
    values, values_turned = beside(values), beside(values_turned.swapaxes(1, 2))
    values_turned = values_turned.swapaxes(1, 2)
    room = beside(np.empty((n_models, n_rows, n_out), kind))
    made: list[tuple[np.ndarray, Sequence[np.ndarray], np.ndarray]] = [
        (side_by_side(rows @ matrix, n_models), [rows] * n_models, matrix),
        (side_by_side(turned @ slope, n_models), [turned] * n_models, slope),
        (values @ weights, list(values), weights),
        (values_turned @ slopes, list(values_turned), slopes),
        (np.matmul(back, weights_turned, out=room), list(back), weights_turned),
    ]
    for products, firsts, seconds in made:
        if seconds.ndim == 2:
            seconds = side_by_side(seconds, n_models)
        for product, first, second in zip(products, firsts, seconds, strict=True):
            if not np.array_equal(product, np.dot(_apart(first), _apart(second))):
                return False
    return True


def _apart(matrix: np.ndarray) -> np.ndarray:
    """A copy that lies as a matrix of a single model does, by rows or turned."""
    if matrix.strides[1] <= matrix.strides[0]:
        return np.ascontiguousarray(matrix)
    return np.ascontiguousarray(matrix.T).T
