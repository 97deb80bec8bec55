"""X, y and sample_weight of one call: checked, loaded at a site, and cut at the same rows.

dask collections are looked at block by block where they lie; see `skdtheano.runtime.tables`.
"""

from dataclasses import dataclass
from numbers import Number
from typing import Any, Protocol

import numpy as np
from dask.base import is_dask_collection
from distributed import Future
from pandas.api.types import is_complex_dtype, is_numeric_dtype
from sklearn.exceptions import DataConversionWarning
from sklearn.utils import check_array
from sklearn.utils.validation import (
    _check_feature_names,
    _check_n_features,
    check_consistent_length,
)

from skdtheano.notices import warn_user
from skdtheano.runtime.inspection import Report, inspect_numbers, inspect_rows
from skdtheano.runtime.placing import Encode
from skdtheano.runtime.sites import Site
from skdtheano.runtime.tables import (
    Table,
    check_kind,
    cut_table,
    even_lengths,
    keep_together,
    put_table,
    read_table,
    recut_table,
)


class Targets(Protocol):
    """How an estimator reads its targets."""

    def inspect(self, block: Any) -> Report:
        """Report on a block of y; runs as a task."""

    def learn(self, reports: list[Report]) -> tuple[int, Encode]:
        """Check what was found in y; return the number of outputs and an encoder."""


@dataclass(frozen=True)
class Aligned:
    """Tables whose blocks hold the same rows.

    Attributes
    ----------
    rows, truth : Table
        X and y.
    weights : Table or None
    n_outputs : int
    encode : Encode
        Targets from a block of y.
    """

    rows: Table
    truth: Table
    weights: Table | None
    n_outputs: int
    encode: Encode


def check_columns_of_y(given: int, predicted: int) -> None:
    """Refuse to compare targets with predictions of another shape."""
    if given != predicted:
        raise ValueError(
            f"y has {given} column{'s' * (given > 1)}, and the model predicts {predicted}. "
            "Give score the columns that fit was given."
        )


def warn_of_a_column(reports: list[Report]) -> None:
    """scikit-learn's warning for a y of shape (n_samples, 1)."""
    if all(report.n_columns == 1 for report in reports):
        warn_user(
            "A column-vector y was passed when a 1d array was expected. Please change the "
            "shape of y to (n_samples, ), for example using ravel().",
            DataConversionWarning,
        )


def is_distributed(*arguments: Any) -> bool:
    """Whether any of the arguments is a dask collection.

    Raises
    ------
    TypeError
        For a future: nothing but its result says what it holds. For a masked dask array.
    """
    for value in arguments:
        if isinstance(value, Future):
            raise TypeError(
                f"{value!r} is a Future. Give its result (future.result()), or a collection "
                "over futures: dask.array.from_delayed, dask.dataframe.from_delayed."
            )
        if isinstance(getattr(value, "_meta", None), np.ma.MaskedArray):
            raise TypeError(
                f"An argument is masked, {value!r}, and what the mask hides would be trained "
                "on. Select the rows without it, or fill it: dask.array.ma.filled."
            )
    return any(is_dask_collection(value) for value in arguments)


def read_aligned(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    targets: Targets,
    site: Site,
    reset: bool,
) -> Aligned:
    """Load any mix of dask collections and data in memory, and check it.

    Parameters
    ----------
    estimator : BaseEstimator
        Given ``n_features_in_`` and ``feature_names_in_``, or checked against them.
    targets : Targets
    reset : bool
        Learn the features anew.
    """
    X, y, sample_weight = keep_together(site, [X, y, sample_weight])
    rows = read_columns(estimator, X, site, reset)
    truth = read_table("y", y, site, targets.inspect)
    weights = read_table("sample_weight", sample_weight, site, inspect_numbers)
    if rows is None:
        X = check_array(
            X,
            accept_sparse="csr",
            dtype=(np.float64, np.float32),
            estimator=estimator,
            input_name="X",
        )
        leader = truth or weights
        if leader is None:
            check_consistent_length(X, y)
            lengths = even_lengths(X.shape[0], site.n_workers())
            rows = put_table("X", X, lengths, site, inspect_rows)
        else:
            rows = cut_table("X", X, leader, site, inspect_rows)
    check_rows(estimator, rows)
    if truth is None:
        truth = cut_table("y", y, rows, site, targets.inspect)
    truth.raise_first_bad()
    n_outputs, encode = targets.learn(truth.reports)
    truth = recut_table(truth, rows, site)
    if sample_weight is not None:
        if weights is None:
            weights = cut_table("sample_weight", sample_weight, rows, site, inspect_numbers)
        check_weights(weights)
        weights = recut_table(weights, rows, site)
    return Aligned(rows, truth, weights, n_outputs, encode)


def read_columns(estimator: Any, X: Any, site: Site, reset: bool) -> Table | None:
    """Check the columns of X and load its blocks; None if X is in memory."""
    if not is_dask_collection(X):
        if not isinstance(X, Number):
            _check_feature_names(estimator, X, reset=reset)
            _check_n_features(estimator, X, reset=reset)
        return None
    check_columns(estimator, X, reset)
    return read_table("X", X, site, inspect_rows)


def check_columns(estimator: Any, X: Any, reset: bool) -> None:
    """Check the number, names and dtypes of a dask collection's columns.

    Raises
    ------
    ValueError
        If X is not a table, has other columns than in `fit`, or has columns that are not
        numbers.
    """
    check_kind("X", X)
    if X.ndim != 2:
        raise ValueError(
            f"Expected 2D array, got {X.ndim}D array instead: X is a dask "
            f"{type(X).__name__}. Reshape your data, for example X.reshape(-1, 1) for one "
            "column or X.to_frame() for a Series."
        )
    if np.isnan(X.shape[1]):
        raise ValueError(
            f"X has an unknown number of columns, shape {X.shape}. Call "
            "X.compute_chunk_sizes() first."
        )
    if X.shape[1] == 0:
        raise ValueError(
            "Found array with 0 feature(s): X has no columns, and at least one is needed."
        )
    if hasattr(X, "columns"):
        if not X.columns.is_unique:
            twice = sorted(set(map(str, X.columns[X.columns.duplicated()])))
            raise ValueError(
                f"X has several columns of the same name: {twice}. Rename or drop some."
            )
        dtypes = dict(X.dtypes)
        odd = {
            str(name): str(dtype)
            for name, dtype in dtypes.items()
            if not is_numeric_dtype(dtype) or is_complex_dtype(dtype)
        }
        if odd:
            raise ValueError(
                f"X has columns that are not numbers: {odd}. Encode or drop them before, "
                "for example with dask_ml.preprocessing.OrdinalEncoder or OneHotEncoder; "
                "columns of numbers that were read as text take astype('float64')."
            )
        _check_feature_names(estimator, X._meta, reset=reset)
        _check_n_features(estimator, X._meta, reset=reset)
    else:
        if X.dtype.kind == "c":
            raise ValueError(
                f"Complex data not supported: X has the dtype {X.dtype}. Give X.real, X.imag "
                "or abs(X)."
            )
        if X.dtype.kind not in "fiub":
            raise ValueError(
                f"X has the dtype {X.dtype}, which is not a number's. Convert it before, "
                "for example X.astype('float64')."
            )
        _check_feature_names(estimator, np.empty((0, 0)), reset=reset)
        _check_n_features(estimator, np.empty((0, X.shape[1])), reset=reset)


def check_rows(estimator: Any, rows: Table) -> None:
    """Check what was found in the blocks of X.

    Raises
    ------
    ValueError
        If there are no rows, or some that are not finite real numbers, or blocks of other
        numbers of columns.
    """
    if rows.n_rows == 0:
        raise ValueError(
            f"Found array with 0 sample(s): X has {len(rows.lengths)} blocks without a row, "
            f"while a minimum of 1 is required by {type(estimator).__name__}."
        )
    for number, report in enumerate(rows.reports):
        kind = np.dtype(report.dtype).kind
        if kind == "c":
            raise ValueError(
                f"Complex data not supported: block {number} of X has the dtype "
                f"{np.dtype(report.dtype)}. Give its real part, or its absolute value."
            )
        if kind not in "fiub":
            raise ValueError(
                f"Block {number} of X has the dtype {np.dtype(report.dtype)}, which is not a "
                "number's. "
                "Convert it before, for example X.astype('float64')."
            )
        if report.n_columns != estimator.n_features_in_:
            raise ValueError(
                f"Block {number} of X has {report.n_columns} columns, but "
                f"{estimator.n_features_in_} were expected."
            )
    rows.raise_first_bad()


def check_weights(weights: Table) -> None:
    """Check what was found in the blocks of sample_weight.

    Raises
    ------
    ValueError
    """
    for report in weights.reports:
        if report.n_columns not in (None, 1):
            raise ValueError(
                f"Sample weights must be 1D array or scalar, got {report.n_columns} columns."
            )
        if np.dtype(report.dtype).kind not in "fiub":
            raise ValueError(
                f"sample_weight has the dtype {np.dtype(report.dtype)}, which is not a "
                "number's. Convert it before fit, for example with astype('float64')."
            )
    weights.raise_first_bad()
    if not any(report.positive or report.negative for report in weights.reports):
        raise ValueError("Sample weights must contain at least one non-zero number.")
    check_weight_sum(sum(report.weight for report in weights.reports))


def check_weight_sum(total: float) -> None:
    if total <= 0:
        raise ValueError(
            f"The sum of sample_weight is {total:g}, so the mean loss is undefined. Give "
            "weights whose sum is positive."
        )
