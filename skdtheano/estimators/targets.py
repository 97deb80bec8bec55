"""How targets are read, checked and encoded: class labels, or numbers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.multiclass import type_of_target

from skdtheano.runtime.inspection import (
    Report,
    inspect_labels,
    inspect_numbers,
    to_array,
    to_numbers,
)


@dataclass(frozen=True)
class LabelEncoder:
    """Encodes class labels as a `Block` holds them.

    One class of several: class numbers, int32 of shape (n,). Two classes, one class, or
    an indicator matrix: bool of shape (n, n_outputs).
    """

    binarizer: LabelBinarizer

    def __call__(self, block: Any) -> np.ndarray:
        y = dense(to_array(block))
        if self.binarizer.y_type_ == "multiclass":
            codes = np.searchsorted(self.binarizer.classes_, y.ravel())
            return codes.astype(np.int32)
        if self.binarizer.y_type_ == "binary":
            y = y.ravel()
        if not len(y):
            return np.empty((0, n_outputs_of(self.binarizer)), bool)
        indicators: np.ndarray = self.binarizer.transform(y).astype(bool)
        return indicators


def n_outputs_of(binarizer: LabelBinarizer) -> int:
    """Columns of the binarized labels: one for at most two classes."""
    if binarizer.y_type_ == "binary":
        return 1
    return len(binarizer.classes_)


def dense(array: Any) -> np.ndarray:
    """The array, of a sparse matrix too."""
    full: np.ndarray = array.toarray() if scipy.sparse.issparse(array) else array
    return full


class LabelTargets:
    """Class labels of a dask fit.

    Parameters
    ----------
    binarizer : LabelBinarizer or None
        The one to keep to, when a fitted model goes on; None to learn one.
    exact : bool
        All of its classes must occur (``warm_start``); else some may be missing.
    """

    def __init__(self, binarizer: LabelBinarizer | None, exact: bool) -> None:
        self.binarizer = binarizer
        self._exact = exact

    inspect = staticmethod(inspect_labels)

    def learn(self, reports: list[Report]) -> tuple[int, LabelEncoder]:
        labels = representative_labels(reports)
        if self.binarizer is None:
            self.binarizer = LabelBinarizer().fit(labels)
        else:
            check_known(labels, self.binarizer, self._exact)
        return n_outputs_of(self.binarizer), LabelEncoder(self.binarizer)


@dataclass(frozen=True)
class NumberEncoder:
    """Encodes numeric targets as a float matrix of shape (n, n_outputs)."""

    n_outputs: int

    def __call__(self, block: Any) -> np.ndarray:
        y = dense(to_numbers(block))
        dtype = y.dtype if y.dtype == np.float32 else np.float64
        return np.ascontiguousarray(y, dtype).reshape(-1, self.n_outputs)


class NumberTargets:
    """Numeric targets of a dask fit.

    Parameters
    ----------
    loss : {"squared_error", "poisson"}
        Poisson targets must not be negative.
    """

    def __init__(self, loss: str) -> None:
        self._loss = loss

    inspect = staticmethod(inspect_numbers)

    def learn(self, reports: list[Report]) -> tuple[int, NumberEncoder]:
        for number, report in enumerate(reports):
            if np.dtype(report.dtype).kind not in "fiub":
                raise ValueError(
                    f"Block {number} of y has the dtype {np.dtype(report.dtype)}, which is "
                    "not a real number's. Convert it before fit, for example "
                    "y.astype('float64')."
                )
        check_sign(self._loss, any(report.negative for report in reports))
        columns = {report.n_columns or 1 for report in reports if report.n_rows}
        if len(columns) != 1:
            raise ValueError(
                f"The blocks of y have different numbers of columns: {sorted(columns)}."
            )
        n_outputs = columns.pop()
        return n_outputs, NumberEncoder(n_outputs)


def check_sign(loss: str, some_negative: bool) -> None:
    """Refuse negative targets where the loss is not defined for them."""
    if loss == "poisson" and some_negative:
        raise ValueError(
            "Some values of y are negative, and loss='poisson' is defined for y >= 0 only. "
            "Use loss='squared_error', or shift y."
        )


def representative_labels(reports: list[Report]) -> np.ndarray:
    """A small y of the same type and classes as the whole: `LabelBinarizer` learns from it."""
    columns = {report.n_columns for report in reports if report.n_rows}
    if len(columns) > 1:
        raise ValueError(
            f"The blocks of y have different numbers of columns: {sorted(map(str, columns))}."
        )
    [n_columns] = columns or {None}
    full = [report for report in reports if report.n_rows]
    labels = _union([report.labels for report in full if report.labels is not None])
    if type_of_target(labels) == "continuous":
        raise ValueError(
            f"Unknown label type: continuous. y holds numbers such as {labels[:3]}, which are "
            "no classes. Use DistributedMLPRegressor for numeric targets, or bin them, for "
            "example with numpy.digitize."
        )
    if n_columns in (None, 1):
        return labels
    # Rows that hold every value in every column: an indicator matrix stays one.
    table = np.repeat(labels[:, None], n_columns, axis=1)
    if type_of_target(table) != "multilabel-indicator":
        raise ValueError(
            "Multioutput target data is not supported with label binarization: the "
            f"{n_columns} columns of y hold {labels[:5]}. Give one column of classes, or an "
            "indicator matrix of 0 and 1 with a column per label, or fit a classifier per "
            "column (sklearn.multioutput.MultiOutputClassifier)."
        )
    return table


def _union(parts: list[np.ndarray]) -> np.ndarray:
    """Distinct labels of all parts; NumPy alone would turn 1 and "a" into "1" and "a"."""
    kinds = {"a number" if part.dtype.kind in "biuf" else part.dtype.kind for part in parts}
    kinds = {"text" if kind in ("U", "S", "T") or kind == "O" else kind for kind in kinds}
    try:
        if len(kinds) > 1:
            raise TypeError
        return np.unique(np.concatenate(parts))
    except TypeError as error:
        types = sorted({type(label).__name__ for part in parts for label in part})
        raise TypeError(
            f"y mixes labels of the types {types}, which have no order. Convert them to one "
            "type, for example y.astype(str)."
        ) from error


def check_known(labels: np.ndarray, binarizer: LabelBinarizer, exact: bool) -> None:
    """Check the labels of a fit that goes on against the classes that it began with.

    Raises
    ------
    ValueError
    """
    known = binarizer.classes_
    if type_of_target(labels).startswith("multilabel"):
        labels = np.arange(labels.shape[1])
    if exact and set(labels) != set(known):
        raise ValueError(
            "warm_start can only be used where `y` has the same classes as in the previous "
            f"call to fit. Previously got {known}, `y` has {labels}"
        )
    if len(np.setdiff1d(labels, known)):
        raise ValueError(
            f"`y` has classes not in `self.classes_`. `self.classes_` has {known}. 'y' has "
            f"{labels}."
        )
