"""From ``fit``'s arguments to checked, aligned, encoded training rows.

Data in memory goes through scikit-learn's own validation, message for message. dask
collections are looked at block by block where they lie; see `skdtheano.runtime.tables`.
"""

from dataclasses import dataclass
from numbers import Number
from typing import Any, Protocol

import numpy as np
import scipy.sparse
from dask.base import is_dask_collection
from sklearn.utils import check_array
from sklearn.utils.validation import (
    _check_feature_names,
    _check_n_features,
    _check_sample_weight,
    check_consistent_length,
)

from skdtheano.runtime.blocks import Block
from skdtheano.runtime.inspection import Report, inspect_numbers, inspect_rows
from skdtheano.runtime.placing import Encode, place_blocks, row_dtype
from skdtheano.runtime.sites import Handle, Site
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
class TrainingData:
    """Rows to train on, at a site.

    Attributes
    ----------
    handles : list of Handle
        A `Block` each; empty blocks are left out.
    lengths : list of int
    n_features, n_outputs : int
    row_dtype : {"float64", "float32"}
    sparse : bool
    """

    site: Site
    handles: list[Handle]
    lengths: list[int]
    n_features: int
    n_outputs: int
    row_dtype: str
    sparse: bool

    @property
    def n_rows(self) -> int:
        return sum(self.lengths)

    def true_rows(self) -> np.ndarray:
        """The one binary target of every row, at the caller: shape (n_rows, 1), bool.

        A bit per row travels.
        """
        packed = self.site.get([self.site.submit(_packed_truth, h) for h in self.handles])
        bits = [
            np.unpackbits(part, count=length)
            for part, length in zip(packed, self.lengths, strict=True)
        ]
        return np.concatenate(bits).astype(bool).reshape(-1, 1)


def _packed_truth(block: Block) -> np.ndarray:
    return np.packbits(block.targets.astype(bool).ravel())


def is_distributed(*collections: Any) -> bool:
    """Whether any of the arguments is a dask collection."""
    return any(is_dask_collection(collection) for collection in collections)


def data_in_memory(
    X: Any,
    y: np.ndarray,
    sample_weight: Any,
    n_outputs: int,
    encode: Encode,
    site: Site,
) -> TrainingData:
    """Training rows from arrays that scikit-learn has validated: one block, no copy."""
    weights = None
    if sample_weight is not None:
        weights = _check_sample_weight(sample_weight, X)
        _check_weight_sum(float(weights.sum(dtype=np.float64)))
    sparse = scipy.sparse.issparse(X)
    rows = scipy.sparse.csr_array(X) if sparse else X
    block = Block(rows, encode(y), weights)
    return TrainingData(
        site, site.put([block]), [len(block)], X.shape[1], n_outputs, X.dtype.name, sparse
    )


def data_at_site(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    targets: Targets,
    site: Site,
    n_blocks: int,
    reset: bool,
) -> TrainingData:
    """Training rows from any mix of dask collections and data in memory.

    Parameters
    ----------
    estimator : BaseEstimator
        Given ``n_features_in_`` and ``feature_names_in_``, or checked against them.
    targets : Targets
    n_blocks : int
        How many blocks to cut data in memory into where no argument is a dask collection.
    reset : bool
        Learn the features anew.
    """
    if y is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but the "
            "target y is None."
        )
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
            lengths = even_lengths(X.shape[0], n_blocks)
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
    dtype = row_dtype(rows.reports)
    handles, kept = place_blocks(rows, truth, weights, site, dtype, encode)
    n_features = rows.reports[0].n_columns
    assert n_features is not None
    sparse = any(report.sparse for report in rows.reports)
    return TrainingData(site, handles, kept, n_features, n_outputs, dtype, sparse)


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
            if not isinstance(dtype, np.dtype) or dtype.kind not in "fiub"
        }
        odd = {name: kind for name, kind in odd.items() if not _is_nullable_number(kind)}
        if odd:
            raise ValueError(
                f"X has columns that are not numbers: {odd}. Encode or drop them before fit, "
                "for example with dask_ml.preprocessing.OrdinalEncoder or OneHotEncoder."
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
                f"X has the dtype {X.dtype}, which is not a number's. Convert it before fit, "
                "for example X.astype('float64')."
            )
        _check_feature_names(estimator, np.empty((0, 0)), reset=reset)
        _check_n_features(estimator, np.empty((0, X.shape[1])), reset=reset)


def _is_nullable_number(kind: str) -> bool:
    return kind.lower().rstrip("0123456789") in ("int", "uint", "float", "boolean")


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
                "Convert it before fit, for example X.astype('float64')."
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
    _check_weight_sum(sum(report.weight for report in weights.reports))


def _check_weight_sum(total: float) -> None:
    if total <= 0:
        raise ValueError(
            f"The sum of sample_weight is {total:g}, so the mean loss is undefined. Give "
            "weights whose sum is positive."
        )
