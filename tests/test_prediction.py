"""Predictions and scores equal scikit-learn's; dask collections in, lazy dask arrays out."""

import io
import pickle
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from cases import N_ROWS, data, weights
from distributed import Client
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError, UndefinedMetricWarning
from sklearn.metrics import accuracy_score
from sklearn.neural_network import MLPClassifier, MLPRegressor

from skdtheano import DistributedMLPClassifier, DistributedMLPRegressor

# Ten epochs are not meant to converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SETTINGS: dict[str, Any] = {
    "hidden_layer_sizes": (5,),
    "batch_size": 32,
    "learning_rate_init": 0.02,
    "max_iter": 10,
    "random_state": 3,
}
TASKS = ("binary", "multiclass", "multilabel", "regression", "multioutput")
REGRESSIONS = ("regression", "multioutput")
each_task = pytest.mark.parametrize("task", TASKS)


def methods(task: str) -> list[str]:
    """The prediction methods that scikit-learn has for a task."""
    return ["predict"] + ["predict_proba", "predict_log_proba"] * (task not in REGRESSIONS)


def assert_same(found: Any, expected: np.ndarray, *, single: bool = False) -> None:
    """Equal labels; close numbers."""
    assert isinstance(found, np.ndarray)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if expected.dtype.kind != "f":
        assert_array_equal(found, expected)
    elif single:
        # Half of float32's digits are left after ten epochs of sums in another order.
        assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    else:
        assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@cache
def fitted(task: str, dtype: str = "float64") -> tuple[Any, Any]:
    """Our estimator and scikit-learn's, fitted to the same rows in memory."""
    X, y = data(task)
    X = X.astype(dtype)
    if task in REGRESSIONS:
        return (
            DistributedMLPRegressor(**SETTINGS).fit(X, y),
            MLPRegressor(**SETTINGS).fit(X, y),
        )
    return (
        DistributedMLPClassifier(**SETTINGS).fit(X, y),
        MLPClassifier(**SETTINGS).fit(X, y),
    )


def blocks(array: Any, *lengths: int, columns: int = -1) -> da.Array:
    """A dask array of row blocks of the given lengths, or of 30 rows each."""
    rows: Any = lengths or 30
    return da.from_array(array, chunks=(rows, columns) if array.ndim == 2 else (rows,))


def table(values: np.ndarray, n: int = 3) -> dd.DataFrame:
    """A frame whose columns are numbered: the models were fitted without names."""
    return dd.from_pandas(pd.DataFrame(values), npartitions=n)


def series(y: np.ndarray, n: int = 4) -> dd.Series:
    return dd.from_pandas(pd.Series(y), npartitions=n)


def kept(X: np.ndarray) -> np.ndarray:
    """The rows that a filter leaves: none of the last 30."""
    mask: np.ndarray = (X[:, 0] > -0.5) & (np.arange(len(X)) < 60)
    return mask


def joined(collection: Any) -> Any:
    """All rows in this process, by dask's own means."""
    rows = collection.compute(scheduler="synchronous")
    return rows.to_numpy() if hasattr(rows, "to_numpy") else rows


#: What X may be; the rows of each block are those of the prediction's block.
ROWS: dict[str, Callable[[np.ndarray], Any]] = {
    "one block": lambda X: blocks(X, N_ROWS),
    "blocks": blocks,
    "column chunks": lambda X: blocks(X, columns=4),
    "one column a chunk": lambda X: blocks(X, 50, 40, columns=1),
    "empty blocks": lambda X: blocks(X, 0, 40, 0, 50, 0),
    "one-row blocks": lambda X: blocks(X, 1, 88, 1),
    "unknown sizes": lambda X: blocks(X)[blocks(kept(X))],
    "unknown sizes, column chunks": lambda X: blocks(X, columns=4)[blocks(kept(X))],
    "DataFrame": table,
    "to_dask_array": lambda X: table(X).to_dask_array(),
    "csr_matrix blocks": lambda X: blocks(X).map_blocks(scipy.sparse.csr_matrix),
    "csc_matrix blocks": lambda X: blocks(X).map_blocks(scipy.sparse.csc_matrix),
    "csr_array blocks, column chunks": lambda X: blocks(X, columns=4).map_blocks(
        scipy.sparse.csr_array
    ),
    "Fortran order": lambda X: blocks(np.asfortranarray(X)),
    "integers": lambda X: blocks(X.astype(int)),
}


@each_task
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_prediction_of_blocks_equals_scikit_learn(
    rows: Callable[[np.ndarray], Any], task: str
) -> None:
    ours, theirs = fitted(task)
    X = rows(data(task)[0])
    for method in methods(task):
        lazy = getattr(ours, method)(X)
        assert isinstance(lazy, da.Array)
        assert_same(lazy.compute(), getattr(theirs, method)(joined(X)))


@each_task
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_blocks_of_a_prediction_have_the_rows_of_the_blocks_of_X(
    rows: Callable[[np.ndarray], Any], task: str
) -> None:
    X = rows(data(task)[0])
    given = X.to_dask_array() if isinstance(X, dd.DataFrame) else X
    lazy = getattr(fitted(task)[0], methods(task)[-1])(X)
    assert str(lazy.chunks[0]) == str(given.chunks[0])  # as text: nan is not equal to nan
    assert all(len(chunks) == 1 for chunks in lazy.chunks[1:])
    shapes = [dask.delayed(np.shape)(part) for part in given.to_delayed()[:, 0]]
    parts, lengths = dask.compute(
        list(lazy.to_delayed().ravel()), shapes, scheduler="synchronous"
    )
    assert [len(part) for part in parts] == [length for length, _ in lengths]
    assert {(type(part), part.dtype, part.shape[1:]) for part in parts} == {
        (type(lazy._meta), lazy.dtype, lazy.shape[1:])
    }


@each_task
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("rows_dtype", ["float32", "float64"])
@pytest.mark.parametrize("model_dtype", ["float32", "float64"])
def test_the_dtype_of_a_prediction_is_known_before_and_is_scikit_learns(
    model_dtype: str, rows_dtype: str, sparse: bool, task: str
) -> None:
    ours, theirs = fitted(task, model_dtype)
    X = blocks(data(task)[0].astype(rows_dtype))
    if sparse:
        X = X.map_blocks(scipy.sparse.csr_matrix)
    for method in methods(task):
        lazy = getattr(ours, method)(X)
        expected = getattr(theirs, method)(joined(X))
        assert_same(lazy.compute(), expected, single=True)
        assert lazy.dtype == lazy._meta.dtype == expected.dtype


IN_MEMORY: dict[str, Callable[[np.ndarray], Any]] = {
    "numpy": np.asarray,
    "Fortran order": np.asfortranarray,
    "list": lambda X: X.tolist(),
    "csr_matrix": scipy.sparse.csr_matrix,
    "csc_array": scipy.sparse.csc_array,
    "one row": lambda X: X[:1],
}


@each_task
@pytest.mark.parametrize("rows", IN_MEMORY.values(), ids=IN_MEMORY)
def test_prediction_of_rows_in_memory_equals_scikit_learn(
    rows: Callable[[np.ndarray], Any], task: str
) -> None:
    ours, theirs = fitted(task)
    X = rows(data(task)[0])
    for method in methods(task):
        assert_same(getattr(ours, method)(X), getattr(theirs, method)(X))


@each_task
def test_nothing_is_computed_when_a_prediction_is_asked_for(task: str) -> None:
    def load(block: np.ndarray) -> np.ndarray:
        raise AssertionError("a block was loaded")

    X = blocks(data(task)[0], columns=4)
    bad = X.map_blocks(load, meta=np.empty((0, 0)))
    for method in methods(task):
        lazy = getattr(fitted(task)[0], method)(bad)
        with pytest.raises(AssertionError, match="a block was loaded"):
            lazy.compute()


def test_a_named_frame_is_predicted_by_a_model_of_its_columns() -> None:
    X, y = data("multiclass")
    named = pd.DataFrame(X, columns=list("abcdef"))
    frame = dd.from_pandas(named, npartitions=3)
    ours = DistributedMLPClassifier(**SETTINGS).fit(frame, y)
    theirs = MLPClassifier(**SETTINGS).fit(named, y)
    for method in methods("multiclass"):
        assert_same(getattr(ours, method)(frame).compute(), getattr(theirs, method)(named))
    assert_allclose(ours.score(frame, y), theirs.score(named, y), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["int64", "int8", "uint16", "bool", "float64", "str"])
def test_plain_labels_are_scored_as_scikit_learn_does(dtype: str) -> None:
    X, y = data("binary" if dtype == "bool" else "multiclass")
    labels = y == y[0] if dtype == "bool" else y.astype(dtype)
    model = DistributedMLPClassifier(**SETTINGS).fit(X, labels)
    other = labels.copy()
    other[::3] = labels[0]
    for truth in (labels, other, list(labels), other[:, None], other.astype("int64")):
        if isinstance(truth, np.ndarray) and truth.dtype.kind != labels.dtype.kind == "U":
            continue  # text and numbers: an error of scikit-learn's
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the column
            expected = accuracy_score(truth, model.predict(X))
            assert model.score(X, truth) == expected
    for wrong in (labels[:-1], labels[:0]):
        with pytest.raises(ValueError, match="inconsistent numbers"):
            model.score(X, wrong)
    unknown = DistributedMLPClassifier()
    with pytest.raises(NotFittedError):
        unknown.score(X, labels)


def test_a_subclass_with_predictions_of_its_own_is_scored_by_them() -> None:
    X, y = data("binary")
    y = (y == y[0]).astype(int)

    class Listed(DistributedMLPClassifier):
        def predict(self, X: Any) -> Any:
            return super().predict(X).tolist()

    class Named(DistributedMLPClassifier):
        def predict(self, X: Any) -> Any:
            return np.array(["no", "yes"])[super().predict(X)]

    listed = Listed(**SETTINGS).fit(X, y)
    assert listed.score(X, y) == accuracy_score(y, listed.predict(X))
    with pytest.raises(ValueError, match="Mix of label input types"):
        Named(**SETTINGS).fit(X, y).score(X, y)


def test_columns_of_several_dtypes_are_predicted() -> None:
    X, _ = data("multiclass")
    ours, theirs = fitted("multiclass")
    mixed = pd.DataFrame(X.round()).astype({0: "float32", 1: "Int64", 2: "Float64"})
    found = ours.predict_proba(dd.from_pandas(mixed, npartitions=3)).compute()
    assert_same(found, theirs.predict_proba(X.round()))


@pytest.mark.cluster
@each_task
def test_prediction_runs_on_a_cluster(task: str, client: Client) -> None:
    ours, theirs = fitted(task)
    X, _ = data(task)
    lazy = [getattr(ours, method)(blocks(X, columns=4)) for method in methods(task)]
    for method, future in zip(methods(task), client.compute(lazy), strict=True):
        assert_same(future.result(timeout=60), getattr(theirs, method)(X))


# --- the model in the graph ---------------------------------------------------------------


@cache
def large() -> tuple[DistributedMLPRegressor, int]:
    """A model of some size, and the bytes of what it predicts with."""
    X, y = data("regression")
    model = DistributedMLPRegressor(hidden_layer_sizes=(300, 100), max_iter=1).fit(X, y)
    return model, sum(array.nbytes for array in model.coefs_ + model.intercepts_)


def sizes(graph: Any) -> list[int]:
    """Pickled bytes of each task, as they would be sent one by one."""
    return [len(cloudpickle.dumps(task)) for task in dict(graph).values()]


@pytest.mark.parametrize("optimized", [False, True], ids=["as made", "optimized"])
def test_a_graph_of_many_blocks_holds_the_model_once(optimized: bool) -> None:
    model, n_bytes = large()
    found = {}
    for n_blocks in (4, 40):
        lazy = model.predict(da.zeros((10 * n_blocks, 6), chunks=(10, 6)))
        [lazy] = dask.optimize(lazy) if optimized else [lazy]
        found[n_blocks] = sizes(lazy.__dask_graph__())
        assert sum(size > n_bytes / 2 for size in found[n_blocks]) == 1
        # Without the optimizer's moments, which would be twice as much again.
        assert max(found[n_blocks]) < 1.1 * n_bytes + 20_000
    added = sum(found[40]) - sum(found[4])
    assert added < 36 * 5_000  # 36 blocks more: a few keys each, and no model


def test_a_prediction_sent_to_a_scheduler_holds_the_model_once() -> None:
    """The layers themselves, which a client pickles whole."""
    model, n_bytes = large()
    lazy = model.predict(da.zeros((400, 6), chunks=(10, 6)))
    assert len(cloudpickle.dumps(lazy.__dask_graph__())) < 1.1 * n_bytes + 100_000


def test_predictions_of_one_model_share_it_in_a_graph() -> None:
    model, n_bytes = large()
    X = da.zeros((40, 6), chunks=(10, 6))
    both = da.concatenate([model.predict(X), model.predict(X + 1)])
    assert sum(size > n_bytes / 2 for size in sizes(both.__dask_graph__())) == 1


# --- score --------------------------------------------------------------------------------

place = pytest.mark.parametrize(
    "on_cluster",
    [
        pytest.param(False, id="here"),
        pytest.param(True, id="cluster", marks=pytest.mark.cluster),
    ],
)

#: X, y and weights as given to `score`.
SCORED: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[Any, ...]]] = {
    "dask": lambda X, y, w: (blocks(X), blocks(y), blocks(w)),
    "chunks of their own": lambda X, y, w: (
        blocks(X, 20, 70, columns=4),
        blocks(y, 45, 0, 45),
        blocks(w, 1, 89),
    ),
    "empty blocks of X": lambda X, y, w: (blocks(X, 0, 40, 0, 50), blocks(y), blocks(w)),
    "frames": lambda X, y, w: (
        table(X),
        table(y) if y.ndim == 2 else series(y),
        series(w, 2),
    ),
    "unknown sizes": lambda X, y, w: (
        table(X).to_dask_array(),
        blocks(y),
        series(w, 2).to_dask_array(),
    ),
    "X alone": lambda X, y, w: (blocks(X), y, w),
    "y alone": lambda X, y, w: (X, blocks(y), w),
    "weights alone": lambda X, y, w: (X, y, blocks(w)),
    "lists with dask X": lambda X, y, w: (blocks(X), y.tolist(), w.tolist()),
    "sparse blocks": lambda X, y, w: (
        blocks(X).map_blocks(scipy.sparse.csr_matrix),
        blocks(y),
        blocks(w),
    ),
    "sparse X, dask y": lambda X, y, w: (scipy.sparse.csr_matrix(X), blocks(y), w),
    "pandas X, dask y": lambda X, y, w: (pd.DataFrame(X).to_numpy(), blocks(y), pd.Series(w)),
}


def check_score(kind: str, task: str) -> None:
    ours, theirs = fitted(task)
    X, y = data(task)
    lazy_X, lazy_y, lazy_w = SCORED[kind](X, y, weights())
    weighted = ours.score(lazy_X, lazy_y, lazy_w)
    assert isinstance(weighted, float)
    assert_allclose(weighted, theirs.score(X, y, weights()), rtol=1e-6, atol=1e-9)
    assert_allclose(ours.score(lazy_X, lazy_y), theirs.score(X, y), rtol=1e-6, atol=1e-9)


@each_task
@pytest.mark.parametrize("kind", SCORED)
def test_score_of_blocks_equals_scikit_learn(kind: str, task: str) -> None:
    check_score(kind, task)


@pytest.mark.cluster
@pytest.mark.parametrize(
    # Every kind with one task or the other.
    ("kind", "task"),
    list(zip(SCORED, cycle(["multiclass", "multioutput"]), strict=False)),
)
def test_score_on_a_cluster_equals_scikit_learn(kind: str, task: str, client: Client) -> None:
    check_score(kind, task)


@place
@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_one_weight_for_all_rows_does_not_change_a_score(
    task: str, on_cluster: bool, request: pytest.FixtureRequest
) -> None:
    """As in fit, which takes a scalar as scikit-learn's does."""
    if on_cluster:
        request.getfixturevalue("client")
    ours, theirs = fitted(task)
    X, y = data(task)
    assert_allclose(ours.score(blocks(X), blocks(y), 2.0), theirs.score(X, y), rtol=1e-6)


@place
def test_labels_that_training_has_not_seen_count_as_wrong(
    on_cluster: bool, request: pytest.FixtureRequest
) -> None:
    if on_cluster:
        request.getfixturevalue("client")
    for task, unseen in (("binary", "cancelled"), ("multiclass", 99)):
        ours, theirs = fitted(task)
        X, y = data(task)
        y = y.astype(object)
        y[::4] = unseen
        y = y.astype(str) if task == "binary" else y.astype(int)
        assert_allclose(ours.score(blocks(X), blocks(y)), theirs.score(X, y), rtol=1e-12)
        assert_allclose(ours.score(X, y), theirs.score(X, y), rtol=1e-12)


@place
def test_a_score_of_one_value_of_y_is_scikit_learns(
    on_cluster: bool, request: pytest.FixtureRequest
) -> None:
    if on_cluster:
        request.getfixturevalue("client")
    ours, theirs = fitted("regression")
    X, _ = data("regression")
    constant = np.full(N_ROWS, 0.5)
    assert_allclose(ours.score(blocks(X), blocks(constant)), theirs.score(X, constant))


def test_relu_keeps_nan() -> None:
    """A row that overflows predicts NaN, as scikit-learn's does, and no finite number."""
    ours, theirs = fitted("regression")
    X = np.where(data("regression")[0] > 0, 1.7e308, -1.7e308)
    coefs = [4 * coef for coef in theirs.coefs_]
    predicted = []
    for estimator in (ours, theirs):
        scaled = pickle.loads(pickle.dumps(estimator))
        scaled.coefs_ = coefs
        with np.errstate(all="ignore"):
            predicted.append(scaled.predict(X))
    assert np.isnan(predicted[1]).any()
    assert_array_equal(predicted[0], predicted[1])


@place
def test_a_score_of_one_row_is_nan_with_a_warning(
    on_cluster: bool, request: pytest.FixtureRequest
) -> None:
    if on_cluster:
        request.getfixturevalue("client")
    ours, theirs = fitted("regression")
    X, y = data("regression")
    for score in (
        lambda: ours.score(blocks(X[:1]), blocks(y[:1])),
        lambda: theirs.score(X[:1], y[:1]),
    ):
        with pytest.warns(UndefinedMetricWarning, match="less than two samples"):
            assert np.isnan(score())


@pytest.mark.cluster
def test_a_named_client_scores_dask_rows(client: Client) -> None:
    X, y = data("multiclass")
    ours, theirs = fitted("multiclass")
    named = DistributedMLPClassifier(client=client, **SETTINGS).fit(X, y)
    expected = theirs.score(X, y, weights())
    assert_allclose(named.score(blocks(X), blocks(y), weights()), expected, rtol=1e-12)
    assert_allclose(named.score(X, y, weights()), expected, rtol=1e-12)
    assert_array_equal(named.predict(X), ours.predict(X))


# --- what a fitted estimator is made of ---------------------------------------------------

PLACES = [
    pytest.param("memory", id="memory"),
    pytest.param("dask", id="dask"),
    pytest.param("cluster", id="cluster", marks=pytest.mark.cluster),
]


def fit_at(where: str, task: str, request: pytest.FixtureRequest, **more: Any) -> Any:
    client = request.getfixturevalue("client") if where == "cluster" else None
    kind = DistributedMLPRegressor if task in REGRESSIONS else DistributedMLPClassifier
    X, y = data(task)
    lazy = (X, y) if where == "memory" else (blocks(X), blocks(y))
    return kind(client=client, **{**SETTINGS, "max_iter": 2, **more}).fit(*lazy)


class _Census(pickle.Pickler):
    """Notes whatever a pickle consists of."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.seen: list[Any] = []

    def persistent_id(self, obj: Any) -> None:
        self.seen.append(obj)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("task", ["multiclass", "multioutput"])
def test_a_fitted_estimator_holds_arrays_and_plain_values(
    task: str, solver: str, where: str, request: pytest.FixtureRequest
) -> None:
    model = fit_at(where, task, request, solver=solver)
    census = _Census()
    census.dump(model)
    for obj in census.seen:
        assert not dask.is_dask_collection(obj)
        # NumPy's and the standard library's functions are how pickle makes arrays again.
        if isinstance(obj, types.FunctionType | type):
            assert obj.__module__.split(".")[0] in {
                "builtins", "copyreg", "numpy", "sklearn", "skdtheano",
            }  # fmt: skip
        assert type(obj).__module__.split(".")[0] in {
            "abc", "builtins", "numpy", "sklearn", "skdtheano",
        }  # fmt: skip
    live = [value for name, value in vars(model).items() if name != "client"]
    assert not any(isinstance(value, Client) for value in live)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_a_pickle_is_hardly_larger_than_the_arrays(
    solver: str, where: str, request: pytest.FixtureRequest
) -> None:
    model = fit_at(where, "multioutput", request, solver=solver, hidden_layer_sizes=(300, 99))
    # As many numbers for each of Adam's two moments, or for SGD's velocity.
    copies = {"adam": 3, "sgd": 2}[solver]
    arrays = copies * sum(array.nbytes for array in model.coefs_ + model.intercepts_)
    assert arrays > 400_000
    assert len(pickle.dumps(model)) < 1.2 * arrays + 20_000
    assert len(cloudpickle.dumps(model)) < 1.2 * arrays + 20_000


ELSEWHERE = """
import pickle, sys
import numpy as np

with open(sys.argv[1], "rb") as stored:
    models, rows, expected = pickle.load(stored)
for model, X, predicted in zip(models, rows, expected, strict=True):
    np.testing.assert_array_equal(model.predict(X), predicted)
    assert model.client is None
import distributed
try:
    distributed.default_client()
except ValueError:
    print("no client")
"""


@pytest.mark.cluster
def test_a_model_of_a_cluster_predicts_in_a_process_that_has_none(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tasks = ("binary", "multilabel", "multioutput")
    models = [fit_at("cluster", task, request) for task in tasks]
    rows = [data(task)[0] for task in tasks]
    expected = [model.predict(X) for model, X in zip(models, rows, strict=True)]
    stored = tmp_path / "models.pickle"
    stored.write_bytes(pickle.dumps((models, rows, expected)))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ELSEWHERE, str(stored)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "no client"), done.stderr


def test_a_loaded_model_goes_on_training_as_the_first_would() -> None:
    X, y = data("regression")
    model = DistributedMLPRegressor(**SETTINGS).fit(X, y)
    loaded = pickle.loads(pickle.dumps(model))
    theirs = MLPRegressor(**SETTINGS).fit(X, y)
    for one in (model, loaded, theirs):
        one.partial_fit(X, y)
    assert_array_equal(loaded.coefs_[0], model.coefs_[0])
    assert_allclose(loaded.coefs_[0], theirs.coefs_[0], rtol=1e-6)
