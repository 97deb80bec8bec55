"""From ``fit``'s arguments to checked, aligned, encoded training rows.

Data in memory goes through scikit-learn's own validation, message for message. dask
collections are looked at block by block where they lie; see `skdtheano.runtime.tables`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.utils.validation import _check_sample_weight

from skdtheano.estimators.reading import Targets, check_weight_sum, read_aligned
from skdtheano.runtime.blocks import Block
from skdtheano.runtime.placing import Encode, place_blocks, row_dtype
from skdtheano.runtime.sites import Handle, Site


@dataclass(frozen=True)
class Shape:
    """What rows to train on are like, before they are placed."""

    n_rows: int
    n_features: int
    n_outputs: int
    row_dtype: str
    sparse: bool

    @property
    def nbytes(self) -> int:
        return self.n_rows * self.n_features * np.dtype(self.row_dtype).itemsize


@dataclass(frozen=True)
class TrainingData:
    """Rows to train on, at a site.

    Attributes
    ----------
    handles : list of Handle
        A `Block` each; empty blocks are left out.
    lengths : list of int
    numbers : list of int
        Which blocks of the table they are; empty for a table in memory, which has none.
    n_features, n_outputs : int
    row_dtype : {"float64", "float32"}
    sparse : bool
    """

    site: Site
    handles: list[Handle]
    lengths: list[int]
    numbers: list[int]
    n_features: int
    n_outputs: int
    row_dtype: str
    sparse: bool

    @property
    def n_rows(self) -> int:
        return sum(self.lengths)

    @property
    def shape(self) -> Shape:
        return Shape(self.n_rows, self.n_features, self.n_outputs, self.row_dtype, self.sparse)

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
        check_weight_sum(float(weights.sum(dtype=np.float64)))
    sparse = scipy.sparse.issparse(X)
    rows = scipy.sparse.csr_array(X) if sparse else X
    block = Block(rows, encode(y), weights)
    return TrainingData(
        site, site.put([block]), [len(block)], [], X.shape[1], n_outputs, X.dtype.name, sparse
    )


def data_at_site(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    targets: Targets,
    site: Site,
    reset: bool,
    before_placing: Callable[[Shape], None],
) -> TrainingData:
    """Training rows from any mix of dask collections and data in memory.

    Parameters and errors are those of `skdtheano.estimators.reading.read_aligned`;
    `before_placing` is called once the shape of the data is known, and before rows move.
    """
    if y is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but the "
            "target y is None."
        )
    aligned = read_aligned(estimator, X, y, sample_weight, targets, site, reset)
    rows = aligned.rows
    dtype = row_dtype(rows.reports)
    sparse = any(report.sparse for report in rows.reports)
    n_features = rows.reports[0].n_columns
    assert n_features is not None
    shape = Shape(sum(rows.lengths), n_features, aligned.n_outputs, dtype, sparse)
    before_placing(shape)
    handles, lengths, numbers = place_blocks(
        rows, aligned.truth, aligned.weights, site, dtype, sparse, aligned.encode
    )
    return TrainingData(
        site, handles, lengths, numbers, n_features, aligned.n_outputs, dtype, sparse
    )
