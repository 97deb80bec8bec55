"""Looking at blocks where they lie: what a caller learns of each is one small report."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse


@dataclass(frozen=True)
class Report:
    """What the caller learns of one block.

    Attributes
    ----------
    n_rows : int
    n_columns : int or None
        None for a vector.
    dtype : str
        Of the array, as ``numpy.dtype`` takes it.
    sparse : bool
    bad : tuple of (str, int, int) or None
        The first value that is not finite: "NaN" or "infinity", its row and column.
    weight : float
        Sum of the values; weights only.
    positive, negative : bool
        Some value is above, below 0; weights and targets only.
    labels : ndarray or None
        The distinct values; class labels only.
    """

    n_rows: int
    n_columns: int | None
    dtype: str
    sparse: bool = False
    bad: tuple[str, int, int] | None = None
    weight: float = 0.0
    positive: bool = False
    negative: bool = False
    labels: np.ndarray | None = None


def to_array(block: Any) -> Any:
    """One block as an ndarray or a csr_array."""
    if hasattr(block, "tocsr"):  # scipy.sparse, and pydata's sparse.COO
        return scipy.sparse.csr_array(block.tocsr())
    if hasattr(block, "to_numpy"):
        return block.to_numpy()
    return np.asarray(block)


def dense(array: Any) -> np.ndarray:
    """The array, of a sparse matrix too."""
    full: np.ndarray = array.toarray() if scipy.sparse.issparse(array) else array
    return full


def to_numbers(block: Any) -> Any:
    """One block of numbers as an ndarray or a csr_array.

    pandas' nullable columns become floats, with NaN where a value is missing.
    """
    if hasattr(block, "to_numpy"):
        frame = block.to_frame() if isinstance(block, pd.Series) else block
        if any(not isinstance(dtype, np.dtype) for dtype in frame.dtypes):
            return block.to_numpy(dtype=np.float64, na_value=np.nan)
        if all(dtype.kind in "fiub" for dtype in frame.dtypes):
            # pandas itself makes objects of bools beside floats.
            return block.to_numpy(dtype=np.result_type(*frame.dtypes))
    if isinstance(block, np.ma.MaskedArray):
        raise TypeError(
            "A block is masked, though dask does not say so, and what the mask hides would be "
            "trained on. Select the rows without it, or fill it: dask.array.ma.filled."
        )
    array = to_array(block)
    if isinstance(array, np.ndarray) and array.dtype == object and pd.isna(array).any():
        # A nullable column that dask has turned into an array before.
        return np.where(pd.isna(array), np.nan, array).astype(np.float64)
    return array


def _first_bad(array: Any) -> tuple[str, int, int] | None:
    values = array.data if scipy.sparse.issparse(array) else array
    if values.dtype.kind == "O":
        missing = pd.isna(values)
        if not missing.any():
            return None
        place = np.unravel_index(int(missing.argmax()), values.shape)
        return "NaN", int(place[0]), int(place[1]) if len(place) > 1 else 0
    if values.dtype.kind != "f":
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum()):  # reads the block once and allocates nothing
            return None
    finite = np.isfinite(values)
    if finite.all():
        return None
    first = int((~finite).ravel().argmax())
    kind = "NaN" if np.isnan(values.ravel()[first]) else "infinity"
    if scipy.sparse.issparse(array):
        coo = array.tocoo()
        return kind, int(coo.row[first]), int(coo.col[first])
    place = np.unravel_index(first, values.shape)
    return kind, int(place[0]), int(place[1]) if len(place) > 1 else 0


def inspect_rows(block: Any) -> Report:
    """Report on a block of X."""
    array = to_numbers(block)
    return Report(
        n_rows=array.shape[0],
        n_columns=array.shape[1] if array.ndim == 2 else None,
        dtype=array.dtype.str,
        sparse=scipy.sparse.issparse(array),
        bad=None if array.dtype.kind in "OSUMm" else _first_bad(array),
    )


def inspect_numbers(block: Any) -> Report:
    """Report on a block of weights or of numeric targets."""
    array = dense(to_numbers(block))
    numeric = array.dtype.kind in "fiub"
    return Report(
        n_rows=array.shape[0],
        n_columns=array.shape[1] if array.ndim == 2 else None,
        dtype=array.dtype.str,
        bad=_first_bad(array),
        weight=_total(array) if numeric else 0.0,
        positive=bool(numeric and (array > 0).any()),
        negative=bool(numeric and (array < 0).any()),
    )


def _total(array: np.ndarray) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(array.sum(dtype=np.float64))


def inspect_labels(block: Any) -> Report:
    """Report on a block of class labels."""
    array = dense(to_array(block))
    bad = _first_bad(array)
    return Report(
        n_rows=array.shape[0],
        n_columns=array.shape[1] if array.ndim == 2 else None,
        dtype=array.dtype.str,
        bad=bad,
        labels=None if bad else _distinct(array),
    )


def _distinct(array: np.ndarray) -> np.ndarray:
    try:
        labels: np.ndarray = np.unique(array)
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in array.ravel()})
        raise TypeError(
            f"y mixes labels of the types {kinds}, which have no order. Convert them to one "
            "type, for example y.astype(str)."
        ) from error
    if labels.dtype.kind == "f":
        fractions = labels[labels != np.floor(labels)]
        if len(fractions):  # no class labels at all: a few of them tell the caller so
            labels = fractions[:10]
    return labels
