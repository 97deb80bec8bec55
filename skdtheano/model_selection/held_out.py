"""A table cut in two: blocks to train on, and rows to score on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from dask.array import Array
from dask.base import is_dask_collection
from dask_ml.model_selection import train_test_split as split_blockwise
from sklearn.model_selection import train_test_split
from sklearn.utils import indexable

from skdtheano.model_selection.calls import joined
from skdtheano.model_selection.places import Place

#: Held out by default, but not more than one block's worth.
_TEST_SIZE = 0.2


@dataclass(frozen=True)
class HeldOutSplit:
    """Handles of a `Place`.

    Attributes
    ----------
    blocks : list of tuple
        X and y of each block to train on; rows in memory are one block.
    test : tuple
        X and y to score on.
    """

    blocks: list[tuple[Any, Any]]
    test: tuple[Any, Any]


def split(X: Any, y: Any, test_size: Any, seed: int, place: Place) -> HeldOutSplit:
    """Draw the rows to score on, and put all where the search runs.

    Parameters
    ----------
    X : array-like, dask Array or DataFrame of shape (n_samples, n_features)
    y : array-like, dask Array or Series of shape (n_samples,) or (n_samples, n_outputs)
    test_size : float, int or None
        As of `sklearn.model_selection.train_test_split`; of each block of a dask collection.
    seed : int
    place : Place
    """
    if not is_dask_collection(X) and not is_dask_collection(y):
        X, y = indexable(X, y)
        size = _TEST_SIZE if test_size is None else test_size
        parts = train_test_split(X, y, test_size=size, random_state=seed)
        X_train, X_test, y_train, y_test = map(place.put, parts)
        return HeldOutSplit([(X_train, y_train)], (X_test, y_test))
    X, y = _aligned(X, y)
    size = min(_TEST_SIZE, 1 / X.numblocks[0]) if test_size is None else test_size
    parts = split_blockwise(X, y, test_size=size, random_state=seed, shuffle=True)
    X_train, X_test, y_train, y_test = place.blocks(parts)
    return HeldOutSplit(
        list(zip(X_train, y_train, strict=True)),
        (place.submit(joined, *X_test), place.submit(joined, *y_test)),
    )


def _aligned(X: Any, y: Any) -> tuple[Array, Array]:
    """Arrays of the same known blocks of rows, none of them empty."""
    X, y = _array("X", X), _array("y", y)
    if len(X) != len(y):
        raise ValueError(
            f"X has {len(X)} rows and y has {len(y)}. Give one target for each row."
        )
    if X.ndim == 2 and X.numblocks[1] > 1:
        X = X.rechunk({1: -1})
    rows = tuple(n for n in X.chunks[0] if n)
    return X.rechunk({0: rows}), y.rechunk({0: rows})


def _array(name: str, value: Any) -> Array:
    if not is_dask_collection(value):
        raise TypeError(
            f"{name} is a {type(value).__name__}, and the other of X and y a dask collection. "
            "Give both in memory, or both as dask collections (dask.array.from_array)."
        )
    if hasattr(value, "to_dask_array"):
        value = value.to_dask_array(lengths=True)
    elif np.isnan(value.shape[0]):
        value = value.copy()  # the caller's own keeps its unknown chunks
        value.compute_chunk_sizes()
    array: Array = value
    return array
