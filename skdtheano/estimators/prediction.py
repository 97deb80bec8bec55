"""Prediction: arrays in, arrays out; dask collections in, lazy dask arrays out."""

import copy
from typing import Any

import dask.array as da
import numpy as np
import scipy.sparse
from dask.base import compute, is_dask_collection
from dask.delayed import delayed
from sklearn.utils.validation import check_is_fitted, validate_data

from skdtheano import engine
from skdtheano.estimators.training_data import check_columns, read_columns
from skdtheano.graphs.network import Network
from skdtheano.runtime.ingest import (
    cut_table,
    even_lengths,
    inspect_numbers,
    inspect_rows,
    read_table,
    recut_table,
    to_array,
    to_rows,
)
from skdtheano.runtime.program import Program, ProgramSpec
from skdtheano.runtime.rounds import add_up
from skdtheano.runtime.scores import ScoreSums
from skdtheano.runtime.sites import (
    ClusterSite,
    outside_the_slots,
    resolve_client,
)

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
    spec = ProgramSpec(network, loss="", rule=None, mode=engine.check_mode(estimator.mode))
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
    sample = _apply(np.zeros((1, estimator.n_features_in_)), predictor, method)
    shape = (
        {"drop_axis": 1} if sample.ndim == 1 else {"chunks": (X.chunks[0], sample.shape[1:])}
    )
    predicted: da.Array = da.map_blocks(
        _apply,
        X,
        delayed(predictor, pure=True),
        method,
        meta=sample[:0],
        dtype=sample.dtype,
        name=None,
        token=f"skdtheano-{method}",
        **shape,
    )
    return predicted


def slim(estimator: Any) -> Any:
    """A copy that predicts, without what only training reads."""
    predictor = copy.copy(estimator)
    for name in _UNUSED:
        predictor.__dict__.pop(name, None)
    return predictor


def _apply(block: Any, predictor: Any, method: str) -> np.ndarray:
    rows = to_rows(block)
    empty = rows.shape[0] == 0
    if empty:  # scikit-learn predicts no table without rows
        rows = np.zeros((1, predictor.n_features_in_), rows.dtype)
    predicted: np.ndarray = getattr(predictor, method)(rows)
    return predicted[:0] if empty else predicted


def score_blocks(estimator: Any, X: Any, y: Any, sample_weight: Any) -> ScoreSums:
    """Score sums of rows of which some are dask collections.

    On a cluster each block is scored where it lies. Without one, predictions are made
    block by block by dask's own scheduler, and only vectors as long as the table are
    brought together.
    """
    check_is_fitted(estimator)
    client = resolve_client(estimator.client)
    if client is None:
        predicted = predict_blocks(estimator, X, "predict") if is_dask_collection(X) else X
        predicted, truth, weights = compute(predicted, y, sample_weight)
        if not is_dask_collection(X):
            predicted = estimator.predict(predicted)
        return _sums(estimator, predicted, to_array(truth), weights)
    with outside_the_slots():
        site = ClusterSite(client)
        rows = read_columns(estimator, X, site, reset=False)
        truth = read_table("y", y, site, _inspect_length)
        weights = read_table("sample_weight", sample_weight, site, inspect_numbers)
        if rows is None:
            leader = truth or weights
            lengths = leader.lengths if leader else even_lengths(len(X), len(site.workers()))
            rows = cut_table("X", X, lengths, site, inspect_rows)
        rows.raise_first_bad()
        if truth is None:
            truth = cut_table("y", y, rows.lengths, site, _inspect_length)
        truth = recut_table(truth, rows.lengths, site)
        if sample_weight is not None:
            if weights is None:
                weights = cut_table(
                    "sample_weight", sample_weight, rows.lengths, site, inspect_numbers
                )
            weights = recut_table(weights, rows.lengths, site)
        [predictor] = site.put([slim(estimator)])
        parts = [
            site.submit(
                _score_block,
                predictor,
                rows.handles[b],
                truth.handles[b],
                None if weights is None else weights.handles[b],
            )
            for b, length in enumerate(rows.lengths)
            if length
        ]
        sums: ScoreSums
        [sums] = site.get([site.submit(add_up, parts)])
        return sums


def _inspect_length(block: Any) -> Any:
    array = to_array(block)
    return inspect_rows(array if array.ndim == 2 else array.reshape(-1, 1))


def _score_block(predictor: Any, rows: Any, truth: Any, weights: Any) -> ScoreSums:
    predicted = predictor.predict(to_rows(rows))
    return _sums(predictor, predicted, to_array(truth), weights)


def _sums(estimator: Any, predicted: np.ndarray, truth: Any, weights: Any) -> ScoreSums:
    if scipy.sparse.issparse(truth):
        truth = truth.toarray()
    if len(predicted) != len(truth):
        raise ValueError(
            "Found input variables with inconsistent numbers of samples: X has "
            f"{len(predicted)} rows and y has {len(truth)}."
        )
    vector = np.ones(len(truth)) if weights is None else np.ravel(to_array(weights))
    sums: ScoreSums = estimator._score_sums(predicted, truth.reshape(predicted.shape), vector)
    return sums
