"""Whatever holds the rows, the fit is scikit-learn's on the same rows in one array."""

import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from cases import N_ROWS, data, weights
from distributed import Client, default_client
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor

from skdtheano import DistributedMLPClassifier, DistributedMLPRegressor
from skdtheano.runtime.order import BlockOrder, RowMap

# Three epochs are not meant to converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

#: One network for all, so that a worker compiles few graphs.
SETTINGS: dict[str, Any] = {
    "hidden_layer_sizes": (5,),
    "batch_size": 32,
    "learning_rate_init": 0.01,
    "max_iter": 3,
    "random_state": 3,
}
REGRESSIONS = ("regression", "multioutput")


def pair(task: str, client: Client | None = None, **more: Any) -> tuple[Any, Any]:
    """Our estimator and scikit-learn's, of the same parameters."""
    chosen = {**SETTINGS, **more}
    if task in REGRESSIONS:
        return DistributedMLPRegressor(client=client, **chosen), MLPRegressor(**chosen)
    return DistributedMLPClassifier(client=client, **chosen), MLPClassifier(**chosen)


def assert_same_fit(ours: Any, theirs: Any, rtol: float = 1e-7, atol: float = 1e-12) -> None:
    assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=rtol)
    for learned in ("coefs_", "intercepts_"):
        for mine, other in zip(getattr(ours, learned), getattr(theirs, learned), strict=True):
            assert mine.dtype == other.dtype
            assert_allclose(mine, other, rtol=rtol, atol=atol)
    assert (ours.n_iter_, ours.t_, ours.n_features_in_) == (
        theirs.n_iter_,
        theirs.t_,
        theirs.n_features_in_,
    )
    if hasattr(theirs, "classes_"):
        assert_array_equal(ours.classes_, theirs.classes_)


def blocks(array: Any, *lengths: int, columns: int = -1) -> da.Array:
    """A dask array of row blocks of the given lengths, or of 30 rows each."""
    rows: Any = lengths or 30
    return da.from_array(array, chunks=(rows, columns) if array.ndim == 2 else (rows,))


def sparse_blocks(X: np.ndarray, kind: Any, columns: int = -1) -> da.Array:
    """Row blocks of a scipy.sparse class; about half of the entries are stored."""
    return blocks(np.where(X > 0, X, 0.0), columns=columns).map_blocks(kind)


def frame(X: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(X, columns=[f"column {i}" for i in range(X.shape[1])])


def table(X: np.ndarray, n: int = 4) -> dd.DataFrame:
    return dd.from_pandas(frame(X), npartitions=n)


def series(y: np.ndarray, n: int = 4) -> dd.Series:
    return dd.from_pandas(pd.Series(y), npartitions=n)


def filtered(X: np.ndarray, y: np.ndarray, *, columns: int = -1, y_rows: int = 30) -> Any:
    """Chunks that dask cannot know the sizes of: one of the blocks ends up with no row."""
    kept = (X[:, 0] > -0.5) & (np.arange(len(X)) < 70)
    return (
        blocks(X, columns=columns)[blocks(kept)],
        da.from_array(y, chunks=y_rows)[da.from_array(kept, chunks=y_rows)],
    )


def plain(collection: Any) -> Any:
    """The rows in one array, joined by dask, for scikit-learn."""
    if hasattr(collection, "dask"):
        collection = collection.compute(scheduler="synchronous")
    if isinstance(collection, pd.DataFrame):
        return collection.to_numpy(np.float64)
    return collection


@dataclass(frozen=True)
class Given:
    """How the rows are handed to fit.

    Attributes
    ----------
    make : callable
        From NumPy X and y to what is given to our fit; scikit-learn gets it in one piece.
    explicit : bool
        Nothing in it is a dask collection: the client has to be named.
    """

    make: Callable[[np.ndarray, np.ndarray], tuple[Any, Any]]
    explicit: bool = False
    task: str = "multiclass"


INPUTS: dict[str, Given] = {
    "dask array": Given(lambda X, y: (blocks(X), blocks(y))),
    "column chunks": Given(lambda X, y: (blocks(X, columns=4), blocks(y))),
    "y in other chunks": Given(lambda X, y: (blocks(X), blocks(y, 7, 50, 33))),
    "y in one chunk": Given(lambda X, y: (blocks(X), blocks(y, N_ROWS))),
    "unknown sizes": Given(filtered),
    "unknown sizes, column chunks": Given(lambda X, y: filtered(X, y, columns=4)),
    "unknown sizes, y in others": Given(lambda X, y: filtered(X, y, y_rows=20)),
    "DataFrame and Series": Given(lambda X, y: (table(X), series(y))),
    "DataFrame, y partitioned apart": Given(lambda X, y: (table(X), series(y, 3))),
    "DataFrame and Array": Given(lambda X, y: (table(X), blocks(y, 50, 40))),
    "Array and Series": Given(lambda X, y: (blocks(X), series(y))),
    "to_dask_array": Given(
        lambda X, y: (table(X).to_dask_array(), series(y, 3).to_dask_array())
    ),
    "empty first block": Given(lambda X, y: (blocks(X, 0, 40, 50), blocks(y, 0, 40, 50))),
    "empty middle blocks": Given(
        lambda X, y: (blocks(X, 40, 0, 0, 50), blocks(y, 40, 0, 0, 50))
    ),
    "empty last block": Given(lambda X, y: (blocks(X, 40, 50, 0), blocks(y, 40, 50, 0))),
    "y's blocks empty alone": Given(lambda X, y: (blocks(X), blocks(y, 0, 45, 0, 45, 0))),
    "one-row blocks": Given(
        lambda X, y: (blocks(X, 1, 1, 43, 1, 43, 1), blocks(y, 1, 1, 43, 1, 43, 1))
    ),
    "a class missing from a block": Given(
        lambda X, y: (blocks(X, 30, 60), blocks(np.r_[np.where(y[:30] > 0, y[0], -5), y[30:]]))
    ),
    "a class in the last block alone": Given(
        lambda X, y: (blocks(X), blocks(np.where(np.arange(N_ROWS) > 85, 15, y.clip(-5, 5))))
    ),
    "sorted labels": Given(lambda X, y: (blocks(X[np.argsort(y)]), blocks(np.sort(y)))),
    "dask X, numpy y": Given(lambda X, y: (blocks(X), y)),
    "dask X, pandas y": Given(lambda X, y: (blocks(X), pd.Series(y, np.arange(N_ROWS) * 3))),
    "dask X, list y": Given(lambda X, y: (blocks(X), y.tolist())),
    "DataFrame X, numpy y": Given(lambda X, y: (table(X), y)),
    "numpy X, dask y": Given(lambda X, y: (X, blocks(y))),
    "sparse X, dask y": Given(lambda X, y: (scipy.sparse.csc_array(X), blocks(y))),
    "csr_matrix blocks": Given(
        lambda X, y: (sparse_blocks(X, scipy.sparse.csr_matrix), blocks(y))
    ),
    "csc_matrix blocks": Given(
        lambda X, y: (sparse_blocks(X, scipy.sparse.csc_matrix), blocks(y))
    ),
    "csr_array blocks": Given(
        lambda X, y: (sparse_blocks(X, scipy.sparse.csr_array), blocks(y))
    ),
    "csr_matrix blocks, column chunks": Given(
        lambda X, y: (sparse_blocks(X, scipy.sparse.csr_matrix, columns=4), blocks(y))
    ),
    "csr_matrix blocks, unknown sizes": Given(
        lambda X, y: (filtered(X, y)[0].map_blocks(scipy.sparse.csr_matrix), filtered(X, y)[1])
    ),
    "integer X": Given(lambda X, y: (blocks((X * 3).astype(np.int16)), blocks(y))),
    "boolean X": Given(lambda X, y: (blocks(X > 0), blocks(y))),
    "Fortran order": Given(
        lambda X, y: (blocks(X, 45, 45).map_blocks(np.asfortranarray), blocks(y))
    ),
    "numpy, client named": Given(lambda X, y: (X, y), explicit=True),
    "Fortran order, client named": Given(
        lambda X, y: (np.asfortranarray(X), y), explicit=True
    ),
    "pandas, client named": Given(lambda X, y: (frame(X), pd.Series(y)), explicit=True),
    "lists, client named": Given(lambda X, y: (X.tolist(), y.tolist()), explicit=True),
    "csr_matrix, client named": Given(
        lambda X, y: (scipy.sparse.csr_matrix(X), y), explicit=True
    ),
    "coo_array, client named": Given(
        lambda X, y: (scipy.sparse.coo_array(X), y), explicit=True
    ),
    "dask array, client named": Given(lambda X, y: (blocks(X), blocks(y)), explicit=True),
    "str labels": Given(lambda X, y: (blocks(X), blocks(np.array(["a", "b", "cd"])[y // 9]))),
    "str labels, widths by block": Given(
        lambda X, y: (
            blocks(X),
            da.concatenate(
                [blocks(np.where(y[:45] > 5, "b", "a")), blocks(y[45:].astype(str))]
            ),
        )
    ),
    "str labels in a Series": Given(
        lambda X, y: (table(X), series(np.array(["a", "b", "cd"])[y // 9]))
    ),
    "two str labels": Given(lambda X, y: (blocks(X), blocks(y)), task="binary"),
    "bool labels": Given(lambda X, y: (blocks(X), blocks(y > 0))),
    "uint8 labels": Given(lambda X, y: (blocks(X), blocks((y + 5).astype(np.uint8)))),
    "float labels": Given(lambda X, y: (blocks(X), blocks(y.astype(float)))),
    "object labels": Given(
        lambda X, y: (blocks(X), blocks(np.array(["a", "b", "cd"], object)[y // 9]))
    ),
    "one label": Given(lambda X, y: (blocks(X), blocks(np.ones(N_ROWS, int)))),
    "indicator matrix": Given(lambda X, y: (blocks(X), blocks(y)), task="multilabel"),
    "indicator matrix, column chunks": Given(
        lambda X, y: (blocks(X), blocks(y, 20, 70, columns=2)), task="multilabel"
    ),
    "indicator DataFrame": Given(lambda X, y: (table(X), table(y)), task="multilabel"),
    "indicator in numpy": Given(lambda X, y: (blocks(X), y), task="multilabel"),
    "indicator in sparse blocks": Given(
        lambda X, y: (blocks(X), blocks(y).map_blocks(scipy.sparse.csr_matrix)),
        task="multilabel",
    ),
    "numbers": Given(lambda X, y: (blocks(X), blocks(y, 50, 40)), task="regression"),
    "numbers in a Series": Given(lambda X, y: (table(X), series(y)), task="regression"),
    "integer numbers": Given(
        lambda X, y: (blocks(X), blocks((y * 5).astype(int))), task="regression"
    ),
    "numbers for sparse rows": Given(
        lambda X, y: (sparse_blocks(X, scipy.sparse.csr_matrix), y), task="regression"
    ),
    "several numbers": Given(
        lambda X, y: (blocks(X), blocks(y, 50, 40, columns=2)), task="multioutput"
    ),
    "several numbers in a DataFrame": Given(
        lambda X, y: (table(X), table(y, 3)), task="multioutput"
    ),
    "several numbers, client named": Given(
        lambda X, y: (X, y), explicit=True, task="multioutput"
    ),
}


#: Kinds of which each stands for others that workers cannot tell apart from it.
ON_CLUSTER = [
    "dask array",
    "column chunks",
    "y in other chunks",
    "unknown sizes",
    "unknown sizes, column chunks",
    "unknown sizes, y in others",
    "DataFrame and Series",
    "to_dask_array",
    "empty first block",
    "empty middle blocks",
    "empty last block",
    "one-row blocks",
    "a class missing from a block",
    "a class in the last block alone",
    "dask X, numpy y",
    "dask X, pandas y",
    "numpy X, dask y",
    "csr_matrix blocks, column chunks",
    "csr_matrix blocks, unknown sizes",
    "csc_matrix blocks",
    *(name for name, given in INPUTS.items() if given.explicit),
    "two str labels",
    "object labels",
    "indicator matrix",
    "several numbers",
]


@pytest.mark.cluster
@pytest.mark.parametrize("name", ON_CLUSTER)
def test_fit_on_a_cluster_equals_scikit_learn_on_the_joined_rows(
    name: str, client: Client
) -> None:
    given = INPUTS[name]
    X, y = given.make(*data(given.task))
    ours, theirs = pair(given.task, client if given.explicit else None)
    assert_same_fit(ours.fit(X, y), theirs.fit(plain(X), plain(y)))


@pytest.mark.parametrize("given", INPUTS.values(), ids=INPUTS)
def test_fit_without_a_client_equals_scikit_learn_on_the_joined_rows(given: Given) -> None:
    with pytest.raises(ValueError, match="No client"):
        default_client()
    X, y = given.make(*data(given.task))
    ours, theirs = pair(given.task)
    assert_same_fit(ours.fit(X, y), theirs.fit(plain(X), plain(y)))


COLUMNS: dict[str, Callable[[np.ndarray], Any]] = {
    "dask": lambda y: blocks(y.reshape(-1, 1)),
    "DataFrame": lambda y: table(y.reshape(-1, 1)),
    "unknown sizes": lambda y: table(y.reshape(-1, 1), 3).to_dask_array(),
}


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_y_of_one_column_is_a_vector_with_a_warning(
    task: str, column: Callable[[Any], Any]
) -> None:
    X, y = data(task)
    ours, theirs = pair(task)
    with pytest.warns(DataConversionWarning) as given:
        ours.fit(blocks(X), column(y))
    [warning] = [one for one in given if one.category is DataConversionWarning]
    assert Path(warning.filename).name == "test_inputs.py"
    with pytest.warns(DataConversionWarning, match=re.escape(str(warning.message))):
        theirs.fit(X, y.reshape(-1, 1))
    assert_same_fit(ours, theirs.fit(X, y))
    assert ours.predict(X).shape == (N_ROWS,)


@pytest.mark.cluster
def test_parquet_columns_of_several_dtypes_are_read_as_numbers(
    client: Client, tmp_path: Path
) -> None:
    X, y = data("binary")
    rows = pd.DataFrame(
        {
            "single": X[:, 0].astype(np.float32),
            "nullable": pd.array((X[:, 1] * 4).astype(int), dtype="Int64"),
            "flag": X[:, 2] > 0,
            "double": X[:, 3],
            "label": y,
        }
    )
    dd.from_pandas(rows, npartitions=3).to_parquet(tmp_path / "rows", write_index=False)
    stored = dd.read_parquet(tmp_path / "rows")
    ours, theirs = pair("binary")
    ours.fit(stored.drop(columns="label"), stored["label"])
    assert_same_fit(ours, theirs.fit(rows.drop(columns="label").to_numpy(np.float64), y))
    assert ours.feature_names_in_.tolist() == ["single", "nullable", "flag", "double"]


@pytest.mark.parametrize("kind", ["Int64", "Float64", "boolean"])
def test_nullable_targets_and_weights_are_read(kind: str) -> None:
    X, y = data("multiclass")
    y, w = (y > 0).astype(int), (np.arange(N_ROWS) % 3 > 0).astype(int)
    ours, theirs = pair("binary")
    nullable = dd.from_pandas(pd.DataFrame({"y": y, "w": w}).astype(kind), npartitions=3)
    ours.fit(table(X), nullable["y"], sample_weight=nullable["w"].astype("Float64"))
    assert_same_fit(ours, theirs.fit(X, y, sample_weight=w))


def test_a_frame_of_nullable_targets_is_read() -> None:
    X, y = data("multioutput")
    ours, theirs = pair("multioutput")
    nullable = dd.from_pandas(pd.DataFrame(y.round(1)).astype("Float64"), npartitions=3)
    assert_same_fit(ours.fit(blocks(X), nullable), theirs.fit(X, y.round(1)))


def test_a_column_of_one_nullable_dtype_among_targets_is_read() -> None:
    X, y = data("multioutput")
    mixed = pd.DataFrame(y.round()).astype({0: "Int64"})
    ours, theirs = pair("multioutput")
    ours.fit(blocks(X), dd.from_pandas(mixed, npartitions=3))
    assert_same_fit(ours, theirs.fit(X, y.round()))


SINGLES: dict[str, Callable[[np.ndarray], Any]] = {
    "dask": blocks,
    "dask, column chunks": lambda X: blocks(X, columns=4),
    "dask, sparse": lambda X: sparse_blocks(X, scipy.sparse.csr_matrix),
    "DataFrame": table,
    "numpy, client named": lambda X: X,
    "sparse, client named": scipy.sparse.csr_matrix,
}


@pytest.mark.cluster
@pytest.mark.parametrize(
    # Every kind with one task or the other.
    ("kind", "task"),
    list(zip(SINGLES, cycle(["multiclass", "regression"]), strict=False)),
)
def test_float32_rows_are_trained_in_float32(kind: str, task: str, client: Client) -> None:
    X, y = data(task)
    X = SINGLES[kind](X.astype(np.float32))
    ours, theirs = pair(task, client)
    single = plain(X).astype(np.float32) if isinstance(X, dd.DataFrame) else plain(X)
    ours.fit(X, y)
    # Half of float32's digits are left after a few steps of sums in another order.
    assert_same_fit(ours, theirs.fit(single, y), rtol=1e-3, atol=1e-5)
    assert {array.dtype.name for array in ours.coefs_ + ours.intercepts_} == {"float32"}


def test_blocks_of_two_dtypes_are_trained_in_float64() -> None:
    X, y = data("multiclass")
    mixed = da.concatenate([blocks(X[:45].astype(np.float32)), blocks(X[45:])])
    ours, theirs = pair("multiclass")
    assert_same_fit(ours.fit(mixed, y), theirs.fit(plain(mixed), y))


WEIGHTS: dict[str, Callable[[np.ndarray], Any]] = {
    "numpy": lambda w: w,
    "list": lambda w: w.tolist(),
    "pandas": pd.Series,
    "dask": blocks,
    "dask in other chunks": lambda w: blocks(w, 0, 41, 1, 48),
    "dask of unknown sizes": lambda w: series(w, 3).to_dask_array(),
    "dask of one column": lambda w: blocks(w.reshape(-1, 1)),
    "Series": series,
    "float32": lambda w: blocks(w.astype(np.float32).astype(float)),
    "integers": lambda w: blocks(np.ceil(w).astype(int)),
    "scalar": lambda w: 2.5,
    "NumPy scalar": lambda w: np.float64(0.5),
    "with negative ones": lambda w: blocks(np.where(np.arange(N_ROWS) == 4, -0.1, w)),
}


def check_weights(kind: str, task: str) -> None:
    X, y = data(task)
    given = WEIGHTS[kind](weights())
    joined = plain(given)
    joined = joined if np.ndim(joined) == 0 else np.ravel(joined)
    ours, theirs = pair(task)
    ours.fit(blocks(X), blocks(y), sample_weight=given)
    assert_same_fit(ours, theirs.fit(X, y, sample_weight=joined))


@pytest.mark.parametrize("task", ["multiclass", "multioutput"])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_may_come_in_any_container(kind: str, task: str) -> None:
    check_weights(kind, task)


@pytest.mark.cluster
@pytest.mark.parametrize(
    "kind", ["numpy", "dask in other chunks", "dask of unknown sizes", "Series", "scalar"]
)
def test_weights_may_come_in_any_container_on_a_cluster(kind: str, client: Client) -> None:
    check_weights(kind, "multiclass")


def test_dask_weights_go_with_rows_in_memory() -> None:
    X, y = data("multiclass")
    ours, theirs = pair("multiclass")
    assert_same_fit(
        ours.fit(X, y, sample_weight=blocks(weights())), theirs.fit(X, y, weights())
    )


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("task", "solver"),
    [
        ("binary", "sgd"),
        ("multiclass", "adam"),
        ("multilabel", "sgd"),
        ("multioutput", "adam"),
    ],
)
def test_partial_fit_on_dask_equals_scikit_learn(
    task: str, solver: str, client: Client
) -> None:
    X, y = data(task)
    ours, theirs = pair(task, solver=solver)
    if task in ("binary", "multiclass"):
        # The first rows lack a class, which `classes` names.
        order = np.argsort(y, kind="stable")
        X, y = X[order], y[order]
    classes = np.arange(3) if task == "multilabel" else np.unique(y)
    first = {} if task == "multioutput" else {"classes": classes}
    for start, more in ((0, first), (25, {}), (50, {})):
        part = slice(start, start + 40)
        ours.partial_fit(blocks(X[part], 25, 15), blocks(y[part]), **more)
        theirs.partial_fit(X[part], y[part], **more)
        assert_same_fit(ours, theirs)


def test_partial_fit_goes_from_memory_to_dask_and_back() -> None:
    X, y = data("multiclass")
    ours, theirs = pair("multiclass")
    for make in (np.asarray, blocks, np.asarray):
        ours.partial_fit(make(X), make(y), classes=np.unique(y))
        theirs.partial_fit(X, y, classes=np.unique(y))
    assert_same_fit(ours, theirs)


@pytest.mark.cluster
@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_warm_start_on_dask_equals_scikit_learn(task: str, client: Client) -> None:
    X, y = data(task)
    ours, theirs = pair(task, warm_start=True, max_iter=2)
    for _ in range(2):
        ours.fit(blocks(X), blocks(y))
        theirs.fit(X, y)
    assert_same_fit(ours, theirs)


@pytest.mark.cluster
@pytest.mark.parametrize(
    "more",
    [{}, {"early_stopping": True, "validation_fraction": 0.2}, {"shuffle": False}],
    ids=["shuffle", "early stopping", "no shuffle"],
)
def test_a_random_state_is_drawn_from_as_by_scikit_learn(
    more: dict[str, Any], client: Client
) -> None:
    X, y = data("binary")
    mine, other = np.random.RandomState(8), np.random.RandomState(8)
    ours, theirs = pair("binary", **more)
    ours.set_params(random_state=mine).fit(blocks(X), blocks(y))
    theirs.set_params(random_state=other).fit(X, y)
    assert_same_fit(ours, theirs)
    assert mine.randint(2**31) == other.randint(2**31)


@pytest.mark.cluster
@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "multioutput"])
def test_early_stopping_on_dask_holds_out_the_same_rows(task: str, client: Client) -> None:
    X, y = data(task)
    ours, theirs = pair(task, early_stopping=True, validation_fraction=0.2)
    # Sorted by label: the rows of one class are in one block, and few are held out.
    order = np.argsort(y, kind="stable") if y.ndim == 1 else np.arange(N_ROWS)
    ours.fit(blocks(X[order]), blocks(y[order], 20, 0, 70))
    theirs.fit(X[order], y[order])
    assert_allclose(ours.validation_scores_, theirs.validation_scores_, rtol=1e-7)
    assert_same_fit(ours, theirs)


def test_flags_beside_numbers_are_read() -> None:
    """pandas itself would make objects of such a table."""
    X, y = data("binary")
    frame = pd.DataFrame(X, columns=list("abcdef")).assign(f=X[:, 5] > 0, e=X[:, 4] > 0)
    ours, theirs = pair("binary")
    ours.fit(dd.from_pandas(frame, npartitions=3), blocks(y))
    assert_same_fit(ours, theirs.fit(frame, y))
    assert_allclose(
        ours.score(dd.from_pandas(frame, npartitions=3), y), theirs.score(frame, y)
    )


def test_arrow_columns_are_read() -> None:
    X, y = data("binary")
    frame = pd.DataFrame(X, columns=list("abcdef")).astype("double[pyarrow]")
    ours, theirs = pair("binary")
    ours.fit(dd.from_pandas(frame, npartitions=3), blocks(y))
    assert_same_fit(ours, theirs.fit(X, y))


def test_sparse_blocks_beside_dense_ones_are_read() -> None:
    X, y = data("binary")
    parts = [
        da.from_array(X[:40], chunks=(40, -1)),
        da.from_array(X[40:], chunks=(50, -1)).map_blocks(scipy.sparse.csr_array),
    ]
    ours, theirs = pair("binary")
    ours.fit(da.concatenate(parts), blocks(y))
    assert_same_fit(ours, theirs.fit(X, y))


@pytest.mark.parametrize("lazy", [False, True], ids=["numpy", "dask"])
def test_validation_scores_are_of_the_targets_as_given(lazy: bool) -> None:
    """float32 rows do not round a large float64 y before it is scored."""
    X, _ = data("regression")
    X = X.astype(np.float32)
    y = 1.6e9 + np.random.RandomState(0).uniform(0, 10, N_ROWS)
    ours, theirs = pair("regression", early_stopping=True)
    ours.fit(blocks(X), blocks(y)) if lazy else ours.fit(X, y)
    theirs.fit(X, y)
    assert_allclose(ours.validation_scores_, theirs.validation_scores_, rtol=1e-4)


@pytest.mark.parametrize("lazy", [False, True], ids=["numpy", "dask"])
def test_a_single_class_is_always_right_in_early_stopping(lazy: bool) -> None:
    X, _ = data("binary")
    y = np.zeros(N_ROWS, int)
    ours, theirs = pair("binary", early_stopping=True)
    ours.fit(blocks(X), blocks(y)) if lazy else ours.fit(X, y)
    theirs.fit(X, y)
    assert ours.validation_scores_ == theirs.validation_scores_ == [1.0] * ours.n_iter_
    assert_same_fit(ours, theirs)


@pytest.mark.cluster
def test_rows_keep_their_order_without_shuffle(client: Client) -> None:
    X, y = data("multiclass")
    ours, theirs = pair("multiclass", shuffle=False)
    assert_same_fit(ours.fit(blocks(X), blocks(y)), theirs.fit(X, y))


def test_a_batch_larger_than_the_table_is_clipped_with_a_warning() -> None:
    X, y = data("multiclass")
    ours, theirs = pair("multiclass", batch_size=N_ROWS + 1)
    with pytest.warns(UserWarning, match="going to be clipped") as told:
        ours.fit(blocks(X), blocks(y))
    assert {Path(str(warning.filename)).name for warning in told} == {Path(__file__).name}
    with pytest.warns(UserWarning, match="going to be clipped"):
        theirs.fit(X, y)
    assert_same_fit(ours, theirs)


@pytest.mark.cluster
@pytest.mark.parametrize("named", [False, True], ids=["current client", "dask X alone"])
def test_a_fit_inside_a_task_of_a_full_cluster_ends(
    named: bool, client_of: Callable[[int], Client]
) -> None:
    """One worker of one thread, which the outer task holds."""
    X, y = data("multiclass")
    ours, theirs = pair("multiclass")
    lazy_y = y if named else blocks(y)
    outer = client_of(1).submit(lambda: ours.fit(blocks(X), lazy_y), pure=False)
    assert_same_fit(outer.result(timeout=60), theirs.fit(X, y))


@pytest.mark.cluster
def test_fits_inside_two_tasks_at_a_time_both_end(client: Client) -> None:
    X, y = data("multiclass")
    ours, theirs = pair("multiclass")
    outer = [client.submit(lambda: clone(ours).fit(blocks(X), y), pure=False) for _ in "ab"]
    for fitted in client.gather(outer):
        assert_same_fit(fitted, theirs.fit(X, y))


@pytest.mark.cluster
@pytest.mark.parametrize("task", ["binary", "regression"])
def test_a_clone_shares_the_client_and_a_pickle_drops_it(task: str, client: Client) -> None:
    X, y = data(task)
    ours, theirs = pair(task, client)
    copied = clone(ours)
    assert copied.client is client
    assert {**copied.get_params(), "client": None} == {**ours.get_params(), "client": None}
    assert_same_fit(copied.fit(X, y), theirs.fit(X, y))
    loaded = pickle.loads(pickle.dumps(copied))
    assert loaded.client is None
    assert_array_equal(loaded.predict(X), copied.predict(X))


# --- shuffle="blocks" ---------------------------------------------------------------------

LENGTHS = (25, 1, 30, 0, 34)


@dataclass
class BlockFits:
    """Fits of the same chunks by blocks, each made when it is asked for."""

    client_of: Callable[[int], Client]
    more: dict[str, Any] = field(default_factory=dict)

    def fit(self, n_workers: int | None, **more: Any) -> Any:
        X, y = data("binary")
        chosen = {"shuffle": "blocks", **self.more, **more}
        if n_workers is None:
            return self._fit(None, X, y, chosen)
        # Closed here: dask's configuration wants clients closed in the reverse order.
        with self.client_of(n_workers) as client:
            return self._fit(client, X, y, chosen)

    def _fit(self, client: Client | None, X: Any, y: Any, chosen: dict[str, Any]) -> Any:
        return pair("binary", client, **chosen)[0].fit(blocks(X, *LENGTHS), blocks(y))


@pytest.fixture
def block_fits(client_of: Callable[[int], Client]) -> Iterator[BlockFits]:
    yield BlockFits(client_of)


@pytest.mark.cluster
@pytest.mark.parametrize("early", [False, True], ids=["all rows", "early stopping"])
def test_shuffled_blocks_give_one_result_on_any_number_of_workers(
    early: bool, block_fits: BlockFits
) -> None:
    block_fits.more = {"early_stopping": early, "validation_fraction": 0.2}
    alone, one, three = (block_fits.fit(n) for n in (None, 1, 3))
    assert_same_fit(one, alone)
    assert_same_fit(three, alone)
    assert one.validation_scores_ == three.validation_scores_ == alone.validation_scores_


@pytest.mark.cluster
@pytest.mark.parametrize("n_workers", [None, 2], ids=["here", "2 workers"])
def test_shuffled_blocks_visit_each_row_once_per_epoch(
    n_workers: int | None, block_fits: BlockFits
) -> None:
    """With steps that round to nothing, an epoch's loss is the mean loss of its rows."""
    X, y = data("binary")
    still = {"solver": "sgd", "learning_rate_init": 1e-200, "alpha": 0.0}
    ours = block_fits.fit(n_workers, **still)
    theirs = pair("binary", **still)[1].fit(X, y)
    assert_allclose(theirs.loss_curve_, theirs.loss_curve_[0], rtol=1e-12)
    assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-12)
    assert ours.t_ == 3 * N_ROWS


@pytest.mark.parametrize("window", [1, 40, 10_000])
@pytest.mark.parametrize("held_out", [0.0, 0.2])
def test_a_block_order_lists_each_row_once(window: int, held_out: float) -> None:
    order = BlockOrder(LENGTHS, 32, 7, held_out=held_out, n_windows=window)
    places = RowMap(LENGTHS, (0, 2, 1, 1, 0), 3)
    starts = places.starts
    left_out = [
        starts[block] + local - places.local_starts[block]
        for rank, rows in enumerate(order.held_out_rows(places))
        for block, owner in enumerate(places.owners)
        for local in rows
        if owner == rank and 0 <= local - places.local_starts[block] < LENGTHS[block]
    ]
    assert len(left_out) == int(np.ceil(held_out * N_ROWS))
    orders = []
    for epoch in order.ahead(2):
        batches: list[list[int]] = []
        for rank, share in enumerate(epoch.shares(places)):
            of_rank = [
                starts[block] + np.arange(LENGTHS[block])
                for block, owner in enumerate(places.owners)
                if owner == rank
            ]
            held = np.concatenate(of_rank)
            for number, (rows, size) in enumerate(share):
                if number == len(batches):
                    batches.append([])
                batches[number] += held[rows].tolist()
                assert size == min(32, order.n_rows - 32 * number)
        assert [len(batch) for batch in batches[:-1]] == [32] * (len(batches) - 1)
        orders.append([row for batch in batches for row in batch])
        assert sorted(orders[-1] + [int(row) for row in left_out]) == list(range(N_ROWS))
    assert orders[0] != orders[1]


def test_shuffled_blocks_are_another_order_than_a_shuffle_of_rows_and_learn(
    block_fits: BlockFits,
) -> None:
    by_blocks, by_rows = (
        block_fits.fit(None, shuffle=kind, max_iter=10) for kind in ("blocks", True)
    )
    assert not np.allclose(by_blocks.coefs_[0], by_rows.coefs_[0], rtol=1e-7)
    # Another order of the same rows: the loss falls as it does in scikit-learn's order.
    assert by_blocks.loss_curve_[-1] < by_blocks.loss_curve_[0]
    assert_allclose(by_blocks.loss_, by_rows.loss_, rtol=0.1)


def test_shuffled_blocks_hold_out_rows_for_early_stopping(block_fits: BlockFits) -> None:
    X, y = data("binary")
    ours = block_fits.fit(
        None, early_stopping=True, validation_fraction=0.2, max_iter=60, n_iter_no_change=3
    )
    n_held_out = 18  # a fifth of the rows
    counts = np.asarray(ours.validation_scores_) * n_held_out
    assert_allclose(counts, counts.round(), atol=1e-9)
    assert ours.best_validation_score_ == max(ours.validation_scores_)
    assert ours.t_ == ours.n_iter_ * (N_ROWS - n_held_out)
    assert ours.score(X, y) > max(np.mean(y == label) for label in np.unique(y))


def test_shuffled_blocks_depend_on_the_random_state(block_fits: BlockFits) -> None:
    with warnings.catch_warnings():
        # Two of scikit-learn's warnings about convergence, told once.
        warnings.simplefilter("ignore")
        first, again, other = (block_fits.fit(None, random_state=s) for s in (1, 1, 2))
    assert_same_fit(first, again, rtol=0, atol=0)
    assert not np.allclose(first.coefs_[0], other.coefs_[0])
