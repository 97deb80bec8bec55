"""Pipelines of scikit-learn and dask-ml around our estimators, on dask arrays and on NumPy."""

from collections.abc import Callable
from functools import cache
from typing import Any

import dask.array as da
import dask.dataframe as dd
import dask_ml.model_selection
import dask_ml.preprocessing
import numpy as np
import pandas as pd
import pytest
from dask_ml.wrappers import Incremental, ParallelPostFit
from distributed import Client
from numpy.testing import assert_allclose
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    StandardScaler,
)

from skdtheano import DistributedMLPClassifier, DistributedMLPRegressor

pytestmark = [
    pytest.mark.cluster,
    # A few epochs are not meant to converge.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:.*Maximum iterations"),
    # Of scikit-learn's own scalers, which look for a copy of the rows that they are given.
    pytest.mark.filterwarnings("ignore:.*may_share_memory"),
]

SIZES = [(1, 1), (2, 1), (1, 2)]
SETTINGS = {
    "hidden_layer_sizes": (6,),
    "batch_size": 25,
    "max_iter": 6,
    "random_state": 0,
}


@cache
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.RandomState(0)
    X = 3 + 2 * rng.standard_normal((150, 4))
    return X, (X[:, 0] > X[:, 1]).astype(int), X[:, 0] - X[:, 2] ** 2


def frame() -> tuple[pd.DataFrame, np.ndarray]:
    X, y, _ = rows()
    table = pd.DataFrame(X, columns=list("abcd"))
    table["kind"] = pd.Categorical(np.array(["x", "y", "z"])[np.arange(150) % 3])
    return table, y


def lazy(array: np.ndarray) -> da.Array:
    return da.from_array(array, (40, *array.shape[1:]))


Made = dict[str, Any]


def scaled(ours: bool) -> Made:
    X, y, _ = rows()
    if ours:
        X, y = lazy(X), lazy(y)
        scaler, estimator = dask_ml.preprocessing.StandardScaler(), DistributedMLPClassifier()
    else:
        scaler, estimator = StandardScaler(), MLPClassifier()
    fitted = make_pipeline(scaler, estimator.set_params(**SETTINGS)).fit(X, y)
    return {"probabilities": fitted.predict_proba(X), "score": fitted.score(X, y)}


def scaled_by_scikit_learn(ours: bool) -> Made:
    """Whose scaler makes one array of the rows; the targets stay in blocks."""
    X, y, _ = rows()
    if ours:
        X, y = lazy(X), lazy(y)
    estimator = DistributedMLPClassifier() if ours else MLPClassifier()
    fitted = make_pipeline(MinMaxScaler(), estimator.set_params(**SETTINGS)).fit(X, y)
    return {"probabilities": fitted.predict_proba(X)}


def min_max(ours: bool) -> Made:
    X, y, _ = rows()
    if ours:
        X, y = lazy(X), lazy(y)
        scaler, estimator = dask_ml.preprocessing.MinMaxScaler(), DistributedMLPClassifier()
    else:
        scaler, estimator = MinMaxScaler(), MLPClassifier()
    fitted = make_pipeline(scaler, estimator.set_params(**SETTINGS)).fit(X, y)
    return {"probabilities": fitted.predict_proba(X)}


def columns(ours: bool) -> Made:
    """scikit-learn's own, of a frame in memory; dask-ml's takes none of dask's any more."""
    table, y = frame()
    made = ColumnTransformer(
        [
            ("scaled", StandardScaler(), ["a", "b", "c", "d"]),
            ("kinds", OneHotEncoder(sparse_output=False), ["kind"]),
        ]
    )
    estimator = DistributedMLPClassifier() if ours else MLPClassifier()
    fitted = make_pipeline(made, estimator.set_params(**SETTINGS)).fit(
        table, lazy(y) if ours else y
    )
    return {"probabilities": fitted.predict_proba(table)}


def encoded(ours: bool) -> Made:
    table, y = frame()
    if ours:
        table["kind"] = table["kind"].astype(object)
        table = dd.from_pandas(table, npartitions=3)
        y = da.from_array(y, 50)
        steps = [dask_ml.preprocessing.Categorizer(), dask_ml.preprocessing.DummyEncoder()]
        estimator = DistributedMLPClassifier()
    else:
        steps = [FunctionTransformer(_dummies)]
        estimator = MLPClassifier()
    fitted = make_pipeline(*steps, estimator.set_params(**SETTINGS)).fit(table, y)
    return {"probabilities": fitted.predict_proba(table)}


def _dummies(table: pd.DataFrame) -> np.ndarray:
    made: np.ndarray = pd.get_dummies(table).to_numpy(float)
    return made


def transformed_target(ours: bool) -> Made:
    X, _, y = rows()
    if ours:
        X, y = lazy(X), lazy(y)
    estimator = DistributedMLPRegressor() if ours else MLPRegressor()
    fitted = TransformedTargetRegressor(
        estimator.set_params(**SETTINGS),
        transformer=FunctionTransformer(np.cbrt, _cube, check_inverse=False),
    ).fit(X, y)
    return {"predictions": fitted.predict(X)}


def _cube(values: Any) -> Any:
    return values**3


def split(ours: bool) -> Made:
    X, y, _ = rows()
    if not ours:  # which rows dask-ml draws, block by block, only dask-ml can tell
        parts = dask_ml.model_selection.train_test_split(lazy(X), lazy(y), random_state=0)
        X_train, X_test, y_train, y_test = (np.asarray(part) for part in parts)
        estimator = MLPClassifier().set_params(**SETTINGS)
    else:
        parts = dask_ml.model_selection.train_test_split(lazy(X), lazy(y), random_state=0)
        X_train, X_test, y_train, y_test = parts
        estimator = DistributedMLPClassifier().set_params(**SETTINGS)
    return {"score": estimator.fit(X_train, y_train).score(X_test, y_test)}


def post_fit(ours: bool) -> Made:
    X, y, _ = rows()
    estimator = DistributedMLPClassifier() if ours else MLPClassifier()
    fitted = ParallelPostFit(estimator.set_params(**SETTINGS)).fit(X, y)
    return {"probabilities": fitted.predict_proba(lazy(X) if ours else X)}


def incremental(ours: bool) -> Made:
    X, y, _ = rows()
    if ours:
        estimator = DistributedMLPClassifier().set_params(**SETTINGS)
        fitted = Incremental(estimator, shuffle_blocks=False).fit(
            lazy(X), lazy(y), classes=[0, 1]
        )
        return {"probabilities": np.asarray(fitted.predict_proba(lazy(X)))}
    theirs = MLPClassifier().set_params(**SETTINGS)
    for start in range(0, 150, 40):
        theirs.partial_fit(X[start : start + 40], y[start : start + 40], classes=[0, 1])
    return {"probabilities": theirs.predict_proba(X)}


PIPELINES = [
    scaled,
    scaled_by_scikit_learn,
    min_max,
    columns,
    encoded,
    transformed_target,
    split,
    post_fit,
    incremental,
]


@cache
def expected(pipeline: Callable[[bool], Made]) -> Made:
    return pipeline(False)


@pytest.mark.parametrize(
    ("pipeline", "n_workers", "n_threads"),
    [
        pytest.param(
            pipeline,
            *size,
            id=f"{pipeline.__name__}-{size[0]}x{size[1]}",
            marks=() if size == (2, 1) and pipeline is scaled else pytest.mark.table,
        )
        for pipeline in PIPELINES
        for size in SIZES
    ],
)
def test_pipelines_give_what_scikit_learns_give(
    client_of: Callable[..., Client],
    pipeline: Callable[[bool], Made],
    n_workers: int,
    n_threads: int,
) -> None:
    theirs = expected(pipeline)
    client_of(n_workers, n_threads)
    for name, value in pipeline(True).items():
        assert_allclose(np.asarray(value), theirs[name], rtol=1e-6, atol=1e-9, err_msg=name)
