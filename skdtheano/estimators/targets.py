"""How targets are read, checked and encoded: class labels, or numbers."""

from dataclasses import dataclass

import numpy as np
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.multiclass import type_of_target

from skdtheano.runtime.ingest import Report, inspect_labels, inspect_numbers


@dataclass(frozen=True)
class LabelEncoder:
    """Encodes class labels as a `Block` holds them.

    One class of several: class numbers, int32 of shape (n,). Two classes, one class, or
    an indicator matrix: bool of shape (n, n_outputs).
    """

    binarizer: LabelBinarizer

    def __call__(self, y: np.ndarray) -> np.ndarray:
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

    def __call__(self, y: np.ndarray) -> np.ndarray:
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
                    f"Block {number} of y has the dtype {report.dtype}, which is not a real "
                    "number's. Convert it before fit, for example y.astype('float64')."
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
    found = [
        report.labels for report in reports if report.labels is not None and report.n_rows
    ]
    try:
        labels = np.unique(np.concatenate(found))
    except TypeError as error:
        kinds = sorted({type(label).__name__ for part in found for label in part})
        raise TypeError(
            f"y mixes labels of the types {kinds}, which have no order. Convert them to one "
            "type, for example y.astype(str)."
        ) from error
    if n_columns in (None, 1):
        return labels
    # Rows that hold every value in every column: an indicator matrix stays one.
    return np.repeat(labels[:, None], n_columns, axis=1)


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
