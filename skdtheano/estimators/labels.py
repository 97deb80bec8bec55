"""Class labels: how they are looked at, checked and encoded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.multiclass import type_of_target

from skdtheano.estimators.reading import check_columns_of_y, warn_of_a_column
from skdtheano.runtime.inspection import Report, dense, inspect_labels, to_array


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
        warn_of_a_column(reports)
        labels = representative_labels(reports)
        if self.binarizer is None:
            self.binarizer = LabelBinarizer().fit(labels)
        else:
            check_known(labels, self.binarizer, self._exact)
        return n_outputs_of(self.binarizer), LabelEncoder(self.binarizer)


class TrueLabels:
    """Class labels that predictions are compared with.

    Parameters
    ----------
    binarizer : LabelBinarizer
        Of the fitted model.
    """

    def __init__(self, binarizer: LabelBinarizer) -> None:
        self._binarizer = binarizer

    inspect = staticmethod(inspect_labels)

    def learn(self, reports: list[Report]) -> tuple[int, Callable[[Any], np.ndarray]]:
        labels = representative_labels(reports)
        known = self._binarizer.classes_
        several = self._binarizer.y_type_.startswith("multilabel")
        found = labels.shape[1] if labels.ndim == 2 else 1
        check_columns_of_y(found, len(known) if several else 1)
        if several:
            return found, label_table
        try:
            _union([labels, known])
        except TypeError as error:
            raise TypeError(
                f"y has labels such as {labels[:2].tolist()}, and the classes of the fit are "
                f"such as {known[:2].tolist()}: none could ever be equal. Give labels of the "
                "type that the model was fitted with."
            ) from error
        return found, label_vector


def label_vector(block: Any) -> np.ndarray:
    return dense(to_array(block)).ravel()


def label_table(block: Any) -> np.ndarray:
    return dense(to_array(block))


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
        if not binarizer.y_type_.startswith("multilabel"):
            raise ValueError(
                "The object was not fitted with multilabel input: `self.classes_` has "
                f"{known}, and `y` has {labels.shape[1]} columns. Give one column of classes, "
                "or fit a new estimator."
            )
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
