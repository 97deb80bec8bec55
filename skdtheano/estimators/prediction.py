"""Prediction: arrays in, arrays out; dask collections in, lazy dask arrays out."""

import copy
from collections.abc import Callable
from numbers import Number
from typing import Any

import dask.array as da
import numpy as np
import scipy.sparse
from dask.base import is_dask_collection
from dask.delayed import delayed
from sklearn.utils import check_array
from sklearn.utils.validation import _num_samples, check_is_fitted, validate_data

from skdtheano.estimators.reading import Targets, check_columns, read_aligned
from skdtheano.graphs.network import Network
from skdtheano.runtime.clients import outside_the_slots, resolve_client
from skdtheano.runtime.cluster import ClusterSite
from skdtheano.runtime.inspection import inspect_rows, to_numbers
from skdtheano.runtime.placing import Encode
from skdtheano.runtime.program import Program, ProgramSpec, check_mode
from skdtheano.runtime.scores import ScoreSums
from skdtheano.runtime.tables import bad_value_message, length_message

#: Attributes of a fitted estimator that prediction does not read.
_UNUSED = ("_optimizer", "feature_names_in_", "loss_curve_", "validation_scores_")


def network_outputs(estimator: Any, X: Any) -> np.ndarray:
    """The network's outputs for rows in memory, shape (n_samples, n_outputs)."""
    X = validate_data(estimator, X, accept_sparse=["csr", "csc"], reset=False)
    sparse = scipy.sparse.issparse(X)
    row_dtype = "float32" if X.dtype == np.float32 else "float64"
    if sparse:
        rows = scipy.sparse.csr_array(X).astype(row_dtype, copy=False)
    else:
        rows = np.ascontiguousarray(X, row_dtype)
    dtype = estimator.coefs_[0].dtype.name
    if sparse:
        dtype = np.result_type(row_dtype, dtype).name
    network = Network(
        n_products=len(estimator.coefs_),
        activation=estimator.activation,
        output=estimator.out_activation_,
        row_dtype=row_dtype,
        dtype=dtype,
        sparse=sparse,
    )
    parameters = [
        np.ascontiguousarray(array, dtype)
        for array in [*estimator.coefs_, *estimator.intercepts_]
    ]
    spec = ProgramSpec(network, loss="", rule=None, mode=check_mode(estimator.mode))
    with Program(spec) as program:
        return program.outputs(parameters, rows)


def predict_blocks(estimator: Any, X: Any, method: str) -> da.Array:
    """Apply a prediction method to every block of a dask collection, lazily.

    The model is one key of the graph, whatever the number of blocks.

    Parameters
    ----------
    estimator : DistributedPerceptron
        Fitted.
    X : dask Array or DataFrame of shape (n_samples, n_features)
    method : {"predict", "predict_proba", "predict_log_proba"}

    Returns
    -------
    dask Array
        With the row chunks of `X`, unknown ones too.
    """
    check_is_fitted(estimator)
    check_columns(estimator, X, reset=False)
    if hasattr(X, "to_dask_array"):
        X = X.to_dask_array()
    if X.numblocks[1] > 1:
        X = X.rechunk({1: -1})
    predictor = slim(estimator)
    float32 = X.dtype == np.float32
    row = np.zeros((1, estimator.n_features_in_), np.float32 if float32 else np.float64)
    like = scipy.sparse.csr_array(row) if hasattr(X._meta, "tocsr") else row
    sample = predict_block(like, predictor, method)
    shape = (
        {"drop_axis": 1} if sample.ndim == 1 else {"chunks": (X.chunks[0], sample.shape[1:])}
    )
    predicted: da.Array = da.map_blocks(
        predict_block,
        X,
        delayed(predictor, pure=True),
        method,
        meta=sample[:0],
        dtype=sample.dtype,
        **shape,
    )
    return predicted


def slim(estimator: Any) -> Any:
    """A copy that predicts, without what only training reads."""
    predictor = copy.copy(estimator)
    for name in _UNUSED:
        predictor.__dict__.pop(name, None)
    return predictor


def predict_block(
    block: Any, predictor: Any, method: str, block_id: tuple[int, ...] | None = None
) -> np.ndarray:
    """Predict one block; dask gives its place among the blocks."""
    rows = to_numbers(block)
    report = inspect_rows(rows)
    if report.bad is not None and block_id is not None:
        raise ValueError(bad_value_message("X", report, block_id[0], "predicting"))
    empty = rows.shape[0] == 0
    if empty:  # scikit-learn predicts no table without rows
        rows = np.zeros((1, predictor.n_features_in_), rows.dtype)
    predicted: np.ndarray = getattr(predictor, method)(rows)
    return predicted[:0] if empty else predicted


def score_collections(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    targets: Targets,
    metric: Callable[..., float],
    finish: Callable[[ScoreSums], float],
) -> float:
    """Score rows of which some are dask collections.

    On a cluster each block is scored where it lies, and sums come back. Without one,
    predictions are made block by block by dask's own scheduler, and only vectors as long
    as the table are brought together.

    Parameters
    ----------
    targets : Targets
        How to look at y, and what to compare the predictions with.
    metric : callable
        scikit-learn's score of y and predictions.
    finish : callable
        The same score, from sums.
    """
    check_is_fitted(estimator)
    client = resolve_client(estimator.client)
    if client is None:
        return _score_here(estimator, X, y, sample_weight, metric)
    with outside_the_slots():
        site = ClusterSite(client)
        data = read_aligned(estimator, X, y, sample_weight, targets, site, reset=False)
        [predictor] = site.put([slim(estimator)])
        parts = (
            site.submit(
                _score_block,
                predictor,
                data.rows.handles[b],
                data.truth.handles[b],
                None if data.weights is None else data.weights.handles[b],
                data.encode,
            )
            for b, length in enumerate(data.rows.lengths)
            if length
        )
        return finish(site.total(parts))


def _score_here(
    estimator: Any, X: Any, y: Any, sample_weight: Any, metric: Callable[..., float]
) -> float:
    if is_dask_collection(X):
        predicted = predict_blocks(estimator, X, "predict").compute()
    else:
        predicted = estimator.predict(X)
    # One by one: dask warns when it computes arrays and DataFrames together.
    truth = y.compute() if is_dask_collection(y) else y
    weights = sample_weight.compute() if is_dask_collection(sample_weight) else sample_weight
    if isinstance(weights, Number):
        weights = np.full(len(predicted), weights, np.float64)
    if not len(predicted):
        raise ValueError("Found array with 0 sample(s): X has no rows to score.")
    for name, value in (("y", truth), ("sample_weight", weights)):
        if value is not None and _num_samples(value) != len(predicted):
            raise ValueError(length_message(name, _num_samples(value), "X", len(predicted)))
    truth = check_array(truth, ensure_2d=False, dtype=None, input_name="y")
    return float(metric(truth, predicted, sample_weight=weights))


def _score_block(
    predictor: Any, rows: Any, truth: Any, weights: Any, encode: Encode
) -> ScoreSums:
    predicted = predictor.predict(to_numbers(rows))
    vector = np.ones(len(predicted)) if weights is None else np.ravel(to_numbers(weights))
    sums: ScoreSums = predictor._score_sums(predicted, encode(truth), vector)
    return sums
