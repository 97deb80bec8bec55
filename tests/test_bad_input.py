"""Wrong input is refused: what is wrong, what was given and what to do stand in the message.

Refusals that scikit-learn has too are compared with its own text.
"""

import asyncio
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dask
import dask.array as da
import dask.bag
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from cases import N_ROWS, data, weights
from distributed import Client, LocalCluster
from numpy.testing import assert_allclose
from sklearn.neural_network import MLPClassifier, MLPRegressor

from skdtheano import DistributedMLPClassifier, DistributedMLPRegressor, engine
from skdtheano.runtime.failures import NotFinite

# Two epochs are not meant to converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SETTINGS: dict[str, Any] = {
    "hidden_layer_sizes": (5,),
    "batch_size": 32,
    "max_iter": 2,
    "random_state": 3,
}
X, LABELS = data("multiclass")
_, NUMBERS = data("regression")


def classifier(**more: Any) -> DistributedMLPClassifier:
    return DistributedMLPClassifier(**{**SETTINGS, **more})


def regressor(**more: Any) -> DistributedMLPRegressor:
    return DistributedMLPRegressor(**{**SETTINGS, **more})


def blocks(array: Any, *lengths: int) -> da.Array:
    """A dask array of row blocks of the given lengths, or of 30 rows each."""
    rows: Any = lengths or 30
    return da.from_array(array, chunks=(rows, *array.shape[1:]))


def table(values: np.ndarray) -> dd.DataFrame:
    columns = [f"column {i}" for i in range(values.shape[1])]
    return dd.from_pandas(pd.DataFrame(values, columns=columns), npartitions=3)


def having(array: np.ndarray, place: Any, value: Any) -> np.ndarray:
    """A copy of which one value is another."""
    changed = array.copy()
    changed[place] = value
    return changed


@contextmanager
def refused(kind: type[Exception], *says: str) -> Iterator[None]:
    """Expect an error of the kind, whose message matches each pattern."""
    with pytest.raises(kind) as refusal:
        yield
    message = str(refusal.value)
    for pattern in says:
        assert re.search(pattern, message), f"{pattern!r} is not said in: {message}"


def theirs_says(estimator: Any, *arguments: Any, **more: Any) -> str:
    """scikit-learn's words for the same mistake, as a pattern; ours has a longer name."""
    method = more.pop("method", "fit")
    with pytest.raises((ValueError, TypeError)) as refusal:
        getattr(estimator, method)(*arguments, **more)
    return re.escape(str(refusal.value)).replace("MLP", "(Distributed)?MLP")


@dataclass(frozen=True)
class Bad:
    """One thing that is wrong with the arguments of fit.

    Attributes
    ----------
    make : callable
        Makes X, y and, perhaps, sample_weight.
    says : tuple of str
        Patterns of the message: the argument, what was given, the remedy.
    """

    make: Callable[[], tuple[Any, ...]]
    says: tuple[str, ...]
    kind: type[Exception] = ValueError
    regression: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    def fit(self, client: Client | None) -> None:
        make = regressor if self.regression else classifier
        make(client=client, **self.more).fit(*self.make())


def told(*parts: Any, dtype: Any) -> da.Array:
    """Blocks of which dask believes that they are of one dtype and one width."""
    arrays = [np.asarray(part) for part in parts]
    width = arrays[0].shape[1:]
    return da.concatenate(
        [da.from_delayed(dask.delayed(a), (len(a), *width), dtype) for a in arrays]
    )


def all_empty() -> da.Array:
    """No row passes the filter, which dask does not know."""
    return blocks(X)[blocks(X[:, 0]) > 1e9]


BAD: dict[str, Bad] = {
    "y is shorter, dask and dask": Bad(
        lambda: (blocks(X), blocks(LABELS[:80])), ("X has 90 rows", "y has 80", "Give one")
    ),
    "y is longer, dask and dask": Bad(
        lambda: (blocks(X[:80]), blocks(LABELS)), ("X has 80 rows", "y has 90", "Give one")
    ),
    "y is shorter, dask and numpy": Bad(
        lambda: (blocks(X), LABELS[:80]), ("X has 90 rows", "y has 80", "Give one")
    ),
    "y is shorter, numpy and dask": Bad(
        lambda: (X, blocks(LABELS[:80])), ("X has 90 rows", "y has 80", "Give one")
    ),
    "y is shorter, of unknown sizes": Bad(
        lambda: (blocks(X), blocks(LABELS)[blocks(LABELS) > 0]),
        ("X has 90 rows", f"y has {(LABELS > 0).sum()}", "Give one"),
    ),
    "sample_weight is shorter, dask": Bad(
        lambda: (blocks(X), blocks(LABELS), blocks(weights()[:80])),
        ("X has 90 rows", "sample_weight has 80", "Give one"),
    ),
    "sample_weight is shorter, numpy": Bad(
        lambda: (blocks(X), blocks(LABELS), weights()[:80]),
        ("X has 90 rows", "sample_weight has 80", "Give one"),
    ),
    "a mask that dask does not tell of": Bad(
        lambda: (
            da.from_delayed(dask.delayed(np.ma.masked_greater)(X, 0), X.shape, X.dtype),
            blocks(LABELS).rechunk(-1),
        ),
        ("A block is masked", r"dask\.array\.ma\.filled"),
        kind=TypeError,
    ),
    "NaN in X": Bad(
        lambda: (blocks(having(X, (63, 2), np.nan)), blocks(LABELS)),
        ("X contains NaN", r"block 2, row 3 .*\(row 63 .*column 2", "drop"),
    ),
    "inf in X": Bad(
        lambda: (blocks(having(X, (31, 0), -np.inf)), blocks(LABELS)),
        ("X contains infinity", r"block 1, row 1 .*\(row 31 .*column 0", "drop"),
    ),
    "inf of both signs in X": Bad(
        lambda: (blocks(having(having(X, (31, 0), np.inf), (32, 0), -np.inf)), blocks(LABELS)),
        ("X contains infinity", r"block 1, row 1 .*\(row 31 .*column 0", "drop"),
    ),
    "NaN in a sparse block of X": Bad(
        lambda: (
            blocks(having(X, (63, 2), np.nan)).map_blocks(scipy.sparse.csr_matrix),
            blocks(LABELS),
        ),
        ("X contains NaN", r"block 2, row 3 .*\(row 63 .*column 2", "drop"),
    ),
    "NaN in a DataFrame": Bad(
        lambda: (table(having(X, (63, 2), np.nan)), LABELS),
        ("X contains NaN", r"block 2, row 3 .*\(row 63 .*column 2", "drop"),
    ),
    "a missing value in a nullable column": Bad(
        lambda: (table(having(X.round(), (63, 2), np.nan)).astype("Float64"), LABELS),
        ("X contains NaN", r"block 2, row 3 .*\(row 63 .*column 2", "drop"),
    ),
    "NaN in y, a number": Bad(
        lambda: (blocks(X), blocks(having(NUMBERS, 44, np.nan))),
        ("y contains NaN", r"block 1, row 14 .*\(row 44 ", "drop"),
        regression=True,
    ),
    "NaN in y, a label": Bad(
        lambda: (blocks(X), blocks(having(LABELS.astype(float), 44, np.nan))),
        ("y contains NaN", r"block 1, row 14 .*\(row 44 ", "drop"),
    ),
    "None in y, an object": Bad(
        lambda: (blocks(X), blocks(having(LABELS.astype(str).astype(object), 44, None))),
        ("y contains NaN", r"block 1, row 14 .*\(row 44 ", "drop"),
    ),
    "NaN in y, in numpy": Bad(
        lambda: (blocks(X), having(NUMBERS, 44, np.nan)),
        ("y contains NaN", r"\(row 44 ", "drop"),
        regression=True,
    ),
    "NaN in sample_weight": Bad(
        lambda: (blocks(X), blocks(LABELS), blocks(having(weights(), 44, np.nan))),
        ("sample_weight contains NaN", r"block 1, row 14 .*\(row 44 ", "drop"),
    ),
    "NaN in sample_weight, in numpy": Bad(
        lambda: (blocks(X), blocks(LABELS), having(weights(), 44, np.nan)),
        ("sample_weight contains NaN", r"\(row 44 ", "drop"),
    ),
    "weights of a negative sum": Bad(
        lambda: (blocks(X), blocks(LABELS), blocks(having(weights(), 3, -1e3))),
        ("sum of sample_weight is -8", "[Gg]ive weights whose sum is positive"),
    ),
    "weights of a negative sum, in numpy": Bad(
        lambda: (blocks(X), blocks(LABELS), having(weights(), 3, -1e3)),
        ("sum of sample_weight is -8", "[Gg]ive weights whose sum is positive"),
    ),
    "weights that are all 0": Bad(
        lambda: (blocks(X), blocks(LABELS), blocks(np.zeros(N_ROWS))),
        ("[Ss]ample.weight", "at least one non-zero"),
    ),
    "weights that are all 0, in numpy": Bad(
        lambda: (blocks(X), blocks(LABELS), np.zeros(N_ROWS)),
        ("[Ss]ample.weight", "at least one non-zero"),
    ),
    "weights of two columns": Bad(
        lambda: (blocks(X), blocks(LABELS), blocks(X[:, :2])), ("[Ss]ample.weight", "1D", "2")
    ),
    "weights that are str": Bad(
        lambda: (blocks(X), blocks(LABELS), blocks(LABELS.astype(str))),
        ("sample_weight has the dtype", "not a number"),
    ),
    "weights of a minibatch that are all 0": Bad(
        lambda: (blocks(X), blocks(LABELS), blocks(1.0 * (np.arange(N_ROWS) > 40))),
        ("sample_weight", "32 rows of minibatch 1 of epoch 1", "larger batch_size"),
        more={"shuffle": False},
    ),
    "str columns": Bad(
        lambda: (
            dd.from_pandas(
                pd.DataFrame({"miles": X[:, 0], "carrier": LABELS.astype(str)}), npartitions=2
            ),
            LABELS,
        ),
        ("X has columns", "'carrier': 'str", "OrdinalEncoder"),
    ),
    "object columns": Bad(
        lambda: (
            dd.from_pandas(pd.DataFrame({"miles": X[:, 0]}), npartitions=2).assign(
                carrier=lambda frame: frame["miles"].astype(object)
            ),
            LABELS,
        ),
        ("X has columns", "'carrier': 'object'", "OrdinalEncoder"),
    ),
    "categorical columns": Bad(
        lambda: (
            dd.from_pandas(
                pd.DataFrame({"miles": X[:, 0], "carrier": pd.Categorical(LABELS)}),
                npartitions=2,
            ),
            LABELS,
        ),
        ("X has columns", "'carrier': 'category'", "OrdinalEncoder"),
    ),
    "date columns": Bad(
        lambda: (
            dd.from_pandas(
                pd.DataFrame({"miles": X[:, 0], "day": pd.Timestamp(0)}), npartitions=2
            ),
            LABELS,
        ),
        ("X has columns", "'day': 'datetime64", "OrdinalEncoder"),
    ),
    "columns of one name": Bad(
        lambda: (
            dd.from_pandas(pd.DataFrame(X, columns=list("aabcde")), npartitions=2),
            LABELS,
        ),
        ("X has", "'a'", "(?i)duplicate|unique|same name|twice"),
    ),
    "complex X": Bad(
        lambda: (blocks(X + 1j), blocks(LABELS)),
        ("Complex data not supported", "X has the dtype complex128", "X.real"),
    ),
    "str X": Bad(
        lambda: (blocks(X.astype(str)), blocks(LABELS)),
        ("X has the dtype <U32", "not a number", "astype"),
    ),
    "complex y": Bad(
        lambda: (blocks(X), blocks(NUMBERS + 1j)),
        ("y has the dtype complex128", "not a real number", "astype"),
        regression=True,
    ),
    "str y for numbers": Bad(
        lambda: (blocks(X), blocks(NUMBERS.astype(str))),
        ("y has the dtype", "not a real number", "astype"),
        regression=True,
    ),
    "no rows": Bad(
        lambda: (all_empty(), blocks(LABELS[:0], 0)),
        (r"0 sample\(s\)", "X has 3 blocks without a row", "minimum of 1"),
    ),
    "1-D X": Bad(
        lambda: (blocks(X[:, 0]), blocks(LABELS)),
        ("Expected 2D array, got 1D", "X is a dask Array", r"reshape\(-1, 1\)"),
    ),
    "a Series as X": Bad(
        lambda: (table(X)["column 0"], LABELS),
        ("Expected 2D array, got 1D", "X is a dask Series", "to_frame"),
    ),
    "3-D X": Bad(
        lambda: (blocks(X.reshape(N_ROWS, 3, 2)), blocks(LABELS)),
        ("2D array, got 3D", "X is a dask Array", "[Rr]eshape"),
    ),
    "3-D y": Bad(
        lambda: (blocks(X), blocks(X.reshape(N_ROWS, 3, 2))),
        ("y has 3 dimensions", r"shape \(90, 3, 2\)", "Give"),
    ),
    "a Bag as X": Bad(
        lambda: (dask.bag.from_sequence(X.tolist(), npartitions=3), LABELS),
        ("X is a", "Bag", "Give a dask Array, DataFrame"),
        kind=TypeError,
    ),
    "a Delayed as X": Bad(
        lambda: (dask.delayed(X), LABELS),
        ("X is a", "Delayed", "Give a dask Array, DataFrame"),
        kind=TypeError,
    ),
    "no columns": Bad(lambda: (blocks(X)[:, :0], blocks(LABELS)), ("X has no columns",)),
    "a Bag as y": Bad(
        lambda: (blocks(X), dask.bag.from_sequence(LABELS.tolist(), npartitions=3)),
        ("y is a Bag", "Give a dask Array, DataFrame"),
        kind=TypeError,
    ),
    "a Delayed as y": Bad(
        lambda: (blocks(X), dask.delayed(LABELS)),
        ("y is a Delayed", "Give a dask Array, DataFrame"),
        kind=TypeError,
    ),
    "negative y of a Poisson loss": Bad(
        lambda: (blocks(X), blocks(having(np.abs(NUMBERS), 44, -1.0))),
        ("y are negative", "loss='poisson'", "squared_error"),
        regression=True,
        more={"loss": "poisson"},
    ),
    "no y": Bad(lambda: (blocks(X), None), ("requires y to be passed", "y is None")),
    "an unknown mode": Bad(
        lambda: (blocks(X), blocks(LABELS)),
        ("mode='SLOW_RUN'", "not a compile mode", f"None .*{engine.DEFAULT_MODE}"),
        more={"mode": "SLOW_RUN"},
    ),
    "columns of several labels": Bad(
        lambda: (blocks(X), blocks(np.c_[LABELS, LABELS])),
        ("Multioutput target data", r"\by\b", "indicator"),
    ),
    "continuous y": Bad(
        lambda: (blocks(X), blocks(NUMBERS)),
        ("Unknown label type", r"\by\b", "Regressor"),
    ),
    "labels of two types in a block": Bad(
        lambda: (blocks(X), blocks(having(LABELS.astype(object), 44, "late"))),
        ("y mixes labels", r"\['int', 'str'\]", r"astype\(str\)"),
        kind=TypeError,
    ),
    "labels of two types, one per block": Bad(
        lambda: (
            blocks(X),
            blocks(np.array([*LABELS[:60].tolist(), *["late"] * 30], object)),
        ),
        ("y mixes labels", r"\['int', 'str'\]", r"astype\(str\)"),
        kind=TypeError,
    ),
    "labels of two dtypes, one per block": Bad(
        lambda: (blocks(X), told(LABELS[:60], ["late"] * 30, dtype=object)),
        ("y mixes labels", "int", "str", r"astype\(str\)"),
        kind=TypeError,
    ),
    "blocks of different widths": Bad(
        lambda: (told(X[:30], X[30:60, :4], X[60:], dtype=float), blocks(LABELS)),
        ("Block 1 of X has 4 columns", "6", "were"),
    ),
    "a negative alpha": Bad(
        lambda: (blocks(X), blocks(LABELS)),
        (theirs_says(MLPClassifier(alpha=-1), X, LABELS),),
        more={"alpha": -1},
    ),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_input_is_refused_in_this_process(bad: Bad) -> None:
    with refused(bad.kind, *bad.says):
        bad.fit(None)


@pytest.fixture(scope="module")
def workers(clusters: Callable[[int], LocalCluster]) -> set[str]:
    """The workers before any of the bad input; one that dies comes back elsewhere."""
    return set(clusters(2).scheduler_info["workers"])


#: What is found out where the blocks lie, and so on workers.
ON_CLUSTER = [
    name for name in BAD if re.search("NaN|inf|labels|no rows|width|minibatch", name)
]


@pytest.mark.cluster
@pytest.mark.parametrize("name", ON_CLUSTER)
def test_bad_input_is_refused_on_a_cluster(
    name: str, workers: set[str], client: Client
) -> None:
    with refused(BAD[name].kind, *BAD[name].says):
        BAD[name].fit(client)


@pytest.mark.cluster
def test_a_block_that_cannot_be_loaded_is_reported_as_it_failed(
    workers: set[str], client: Client
) -> None:
    def load(block: np.ndarray, block_id: tuple[int, ...]) -> np.ndarray:
        if block_id[0] == 1:
            raise OSError("part-1.parquet is gone")
        return block

    with refused(OSError, "part-1.parquet is gone"):
        classifier().fit(blocks(X).map_blocks(load, meta=X[:0]), blocks(LABELS))


@pytest.mark.cluster
def test_the_cluster_fits_good_input_after_all_the_bad(
    workers: set[str], client: Client
) -> None:
    theirs = MLPClassifier(**SETTINGS).fit(X, LABELS)
    ours = classifier().fit(blocks(X), blocks(LABELS))
    assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-7)
    assert set(client.scheduler_info(n_workers=-1)["workers"]) == workers
    assert not client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.unrunnable))


# --- in memory: scikit-learn's own words ---------------------------------------------------

IN_MEMORY: dict[str, tuple[Any, ...]] = {
    "y is shorter": (X, LABELS[:80]),
    "NaN in X": (having(X, (63, 2), np.nan), LABELS),
    "inf in X": (having(X, (63, 2), np.inf), LABELS),
    "NaN in y": (X, having(LABELS.astype(float), 4, np.nan)),
    "NaN in sample_weight": (X, LABELS, having(weights(), 3, np.nan)),
    "sample_weight is shorter": (X, LABELS, weights()[:80]),
    "weights that are all 0": (X, LABELS, np.zeros(N_ROWS)),
    "1-D X": (X[:, 0], LABELS),
    "3-D X": (X.reshape(N_ROWS, 3, 2), LABELS),
    "complex X": (X + 1j, LABELS),
    "no rows": (X[:0], LABELS[:0]),
    "no y": (X, None),
    "columns of several labels": (X, np.c_[LABELS, LABELS]),
    "continuous y": (X, NUMBERS),
}


@pytest.mark.parametrize("arguments", IN_MEMORY.values(), ids=IN_MEMORY)
def test_bad_data_in_memory_are_refused_in_the_words_of_scikit_learn(
    arguments: tuple[Any, ...],
) -> None:
    with refused(ValueError, theirs_says(MLPClassifier(**SETTINGS), *arguments)):
        classifier().fit(*arguments)


@pytest.mark.cluster
@pytest.mark.parametrize("arguments", IN_MEMORY.values(), ids=IN_MEMORY)
def test_bad_data_in_memory_are_refused_before_they_go_to_a_cluster(
    arguments: tuple[Any, ...], client: Client
) -> None:
    # Not always in scikit-learn's words: a message may name the block as well.
    theirs = theirs_says(MLPClassifier(**SETTINGS), *arguments)
    ours = r"Input (X|y|sample_weight) |X has |of y |Complex data|Unknown label type"
    with refused(ValueError, f"{theirs}|{ours}"):
        classifier(client=client).fit(*arguments)


def test_weights_of_a_negative_sum_are_refused_in_memory() -> None:
    with refused(ValueError, "sum of sample_weight is -8", "whose sum is positive"):
        classifier().fit(X, LABELS, having(weights(), 3, -1e3))


def test_a_minibatch_of_weights_that_are_all_0_is_refused_in_memory() -> None:
    with refused(ValueError, "sample_weight", "32 rows of minibatch 1", "batch_size"):
        classifier(shuffle=False).fit(X, LABELS, 1.0 * (np.arange(N_ROWS) > 40))


def test_a_sparse_y_to_regress_on_is_refused() -> None:
    y = scipy.sparse.csr_matrix(np.eye(3))
    with pytest.raises(TypeError, match=r"y is a sparse csr_matrix.*Give y\.toarray\(\)"):
        DistributedMLPRegressor().fit(np.ones((3, 2)), y)


def test_the_repr_of_what_is_not_finite_says_what_it_is() -> None:
    error = NotFinite("loss", 2, 3, [1])
    assert repr(error) == f"NotFinite({str(error)!r})"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_negative_y_of_a_poisson_loss_is_refused_in_memory() -> None:
    with refused(ValueError, "y are negative", "loss='poisson'", "squared_error"):
        regressor(loss="poisson").fit(X, -np.abs(NUMBERS))


PARAMETERS: dict[str, dict[str, Any]] = {
    "alpha": {"alpha": -1},
    "hidden_layer_sizes": {"hidden_layer_sizes": (5, 0)},
    "activation": {"activation": "softplus"},
    "solver": {"solver": "newton"},
    "batch_size": {"batch_size": 0},
    "validation_fraction": {"validation_fraction": 1.0},
}


@pytest.mark.parametrize("wrong", PARAMETERS.values(), ids=PARAMETERS)
@pytest.mark.parametrize("make", [np.asarray, blocks], ids=["numpy", "dask"])
def test_a_wrong_parameter_is_refused_in_the_words_of_scikit_learn(
    wrong: dict[str, Any], make: Callable[[Any], Any]
) -> None:
    says = theirs_says(MLPClassifier(**{**SETTINGS, **wrong}), X, LABELS)
    # The choices are a set, printed in an order of the process's own.
    begin, end = says.split(r"\{")[0], says.split(r"\}")[-1]
    with refused(ValueError, begin, end):
        classifier(**wrong).fit(make(X), make(LABELS))


@pytest.mark.parametrize("wrong", ["rows", 1, None])
def test_a_shuffle_that_there_is_not_is_refused(wrong: Any) -> None:
    with refused(ValueError, "'shuffle' parameter", "'blocks'", re.escape(repr(wrong))):
        classifier(shuffle=wrong).fit(X, LABELS)


# --- after fit ----------------------------------------------------------------------------

FEW_COLUMNS: dict[str, Any] = {
    "numpy": X[:, :4],
    "dask": blocks(X[:, :4]),
    "dask of unknown sizes": blocks(X[:, :4])[blocks(LABELS) > 0],
    "sparse": scipy.sparse.csr_matrix(X[:, :4]),
}


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba"])
@pytest.mark.parametrize("rows", FEW_COLUMNS.values(), ids=FEW_COLUMNS)
def test_other_columns_than_in_fit_are_refused_at_once(method: str, rows: Any) -> None:
    theirs = MLPClassifier(**SETTINGS).fit(X, LABELS)
    with refused(ValueError, theirs_says(theirs, X[:, :4], method=method)):
        getattr(classifier().fit(X, LABELS), method)(rows)


@pytest.mark.parametrize("make", [np.asarray, blocks], ids=["numpy", "dask"])
def test_other_columns_than_in_fit_are_refused_by_score_and_partial_fit(
    make: Callable[[Any], Any],
) -> None:
    theirs = MLPClassifier(**SETTINGS).fit(X, LABELS)
    says = theirs_says(theirs, X[:, :4], LABELS, method="partial_fit")
    ours = classifier().fit(X, LABELS)
    for method in (ours.score, ours.partial_fit):
        with refused(ValueError, says):
            method(make(X[:, :4]), make(LABELS))


def test_other_column_names_than_in_fit_are_refused_for_a_dask_frame() -> None:
    names = [f"column {i}" for i in range(6)]
    theirs = MLPClassifier(**SETTINGS).fit(pd.DataFrame(X, columns=names), LABELS)
    other = table(X).rename(columns={"column 2": "distance"})
    says = theirs_says(theirs, other.compute(), method="predict")
    ours = classifier().fit(table(X), LABELS)
    for method in (ours.predict, ours.predict_proba):
        with refused(ValueError, says, "distance"):
            method(other)
    with refused(ValueError, says, "distance"):
        ours.score(other, LABELS)


@pytest.mark.parametrize(
    "make",
    [np.asarray, blocks, lambda y: table(y.reshape(-1, 1))["column 0"]],
    ids=["numpy", "dask", "Series"],
)
def test_an_unseen_label_in_partial_fit_is_refused(make: Callable[[Any], Any]) -> None:
    theirs = MLPClassifier(**SETTINGS).fit(X, LABELS)
    ours = classifier().fit(X, LABELS)
    wrong = having(LABELS, 44, 99)
    rows = X if make is np.asarray else blocks(X)
    with refused(ValueError, theirs_says(theirs, X, wrong, method="partial_fit"), "99"):
        ours.partial_fit(rows, make(wrong))


MULTILABEL = "The object was not fitted with multilabel input."


@pytest.mark.parametrize("make", [np.asarray, blocks], ids=["numpy", "dask"])
@pytest.mark.parametrize("again", ["partial_fit", "warm_start"])
def test_an_indicator_matrix_is_refused_by_a_model_of_plain_classes(
    again: str, make: Callable[[Any], Any]
) -> None:
    """Though its columns are as many as the classes were."""
    y = LABELS % 3
    indicators = np.eye(3, dtype=int)[y]
    warm = again == "warm_start"
    method = "fit" if warm else "partial_fit"
    theirs = MLPClassifier(**SETTINGS, warm_start=warm).fit(X, y)
    assert re.search(theirs_says(theirs, X, indicators, method=method), MULTILABEL)
    ours = classifier(warm_start=warm).fit(X, y)
    with refused(ValueError, re.escape(MULTILABEL[:-1]), "classes_.*3 columns"):
        getattr(ours, method)(make(X), make(indicators))


def test_a_first_partial_fit_that_fails_leaves_no_classes_behind() -> None:
    ours = classifier()
    with pytest.raises(ValueError, match="NaN"):
        ours.partial_fit(X * np.nan, LABELS, classes=np.unique(LABELS))
    assert not hasattr(ours, "classes_")
    more = np.append(np.unique(LABELS), 99)
    assert list(ours.partial_fit(X, LABELS, classes=more).classes_) == list(more)


@pytest.mark.parametrize("make", [np.asarray, blocks], ids=["numpy", "dask"])
@pytest.mark.parametrize("task", ["classes", "numbers"])
def test_held_out_rows_without_weight_are_refused(
    task: str, make: Callable[[Any], Any]
) -> None:
    y = LABELS % 2 if task == "classes" else NUMBERS
    weight = np.zeros(N_ROWS)
    weight[0] = 1  # a row that this seed trains on
    make_estimator = classifier if task == "classes" else regressor
    ours = make_estimator(early_stopping=True, batch_size=N_ROWS - 9)
    says = "at least one non-zero number", "9 rows that early_stopping held out"
    with refused(ValueError, *says):
        ours.fit(make(X), make(y), make(weight))


def test_block_orders_keep_rows_to_train_on() -> None:
    few = {"shuffle": "blocks", "early_stopping": True, "validation_fraction": 0.95}
    with refused(ValueError, "n_samples=10 and validation_fraction=0.95", "train set will be"):
        classifier(**few).fit(X[:10], LABELS[:10])


def test_the_first_partial_fit_asks_for_the_classes() -> None:
    says = theirs_says(MLPClassifier(**SETTINGS), X, LABELS, method="partial_fit")
    with refused(ValueError, says, "classes"):
        classifier().partial_fit(blocks(X), blocks(LABELS))


def test_other_classes_in_a_warm_start_are_refused() -> None:
    theirs = MLPClassifier(warm_start=True, **SETTINGS).fit(X, LABELS)
    ours = classifier(warm_start=True).fit(blocks(X), blocks(LABELS))
    fewer = LABELS.clip(-5, 5)
    with refused(ValueError, theirs_says(theirs, X, fewer)):
        ours.fit(blocks(X), blocks(fewer))


def test_predict_before_fit_is_refused_for_dask() -> None:
    for method in ("predict", "predict_proba", "score"):
        arguments = (blocks(X), blocks(LABELS)) if method == "score" else (blocks(X),)
        with refused(ValueError, "not fitted yet", "'fit'"):
            getattr(classifier(), method)(*arguments)


SCORED: dict[str, tuple[Any, ...]] = {
    "dask y": (blocks(X), blocks(LABELS[:80])),
    "numpy y": (blocks(X), LABELS[:80]),
    "numpy X": (X, blocks(LABELS[:80])),
    "dask weights": (blocks(X), blocks(LABELS), blocks(weights()[:80])),
    "numpy weights": (blocks(X), blocks(LABELS), weights()[:80]),
}


@pytest.mark.parametrize("arguments", SCORED.values(), ids=SCORED)
@pytest.mark.parametrize("place", ["here", pytest.param("cluster", marks=pytest.mark.cluster)])
def test_score_refuses_arguments_of_different_lengths(
    arguments: tuple[Any, ...], place: str, request: pytest.FixtureRequest
) -> None:
    if place == "cluster":
        request.getfixturevalue("client")
    name = "y" if len(arguments) == 2 else "sample_weight"
    ours = classifier().fit(X, LABELS)
    with refused(ValueError, "X has 90 rows", f"{name} has 80"):
        ours.score(*arguments)


NOT_SCORED: dict[str, tuple[tuple[Any, ...], str]] = {
    "NaN in y": ((X, having(NUMBERS, 44, np.nan)), "y contains NaN"),
    "NaN in sample_weight": (
        (X, NUMBERS, having(weights(), 44, np.nan)),
        "sample_weight contains NaN",
    ),
    "no rows": ((X[:0], NUMBERS[:0]), r"0 sample\(s\)"),
}


@pytest.mark.parametrize("place", ["here", pytest.param("cluster", marks=pytest.mark.cluster)])
@pytest.mark.parametrize("wrong", NOT_SCORED.values(), ids=NOT_SCORED)
def test_score_refuses_what_scikit_learn_refuses(
    wrong: tuple[tuple[Any, ...], str], place: str, request: pytest.FixtureRequest
) -> None:
    if place == "cluster":
        request.getfixturevalue("client")
    arguments, says = wrong
    ours = regressor().fit(X, NUMBERS)
    theirs = MLPRegressor(**SETTINGS).fit(X, NUMBERS)
    assert theirs_says(theirs, *arguments, method="score")
    lazy = [blocks(array, len(array)) for array in arguments]
    with refused(ValueError, says):
        ours.score(*lazy)


PLACES = pytest.mark.parametrize(
    "place", ["here", pytest.param("cluster", marks=pytest.mark.cluster)]
)


@PLACES
@pytest.mark.parametrize(
    ("y", "says"),
    [
        (
            np.c_[LABELS, LABELS],
            "y has 2 columns|[Mm]ultioutput",
        ),
        (LABELS + 0.5, "continuous"),
        (np.char.add("class ", LABELS.astype(str)), "types?"),
    ],
    ids=["columns", "continuous", "text"],
)
def test_score_refuses_labels_that_cannot_be_compared(
    y: np.ndarray, says: str, place: str, request: pytest.FixtureRequest
) -> None:
    if place == "cluster":
        request.getfixturevalue("client")
    assert theirs_says(MLPClassifier(**SETTINGS).fit(X, LABELS), X, y, method="score")
    ours = classifier().fit(X, LABELS)
    with pytest.raises((ValueError, TypeError), match=says):
        ours.score(blocks(X), blocks(y))


@PLACES
def test_score_refuses_other_columns_of_numbers(
    place: str, request: pytest.FixtureRequest
) -> None:
    if place == "cluster":
        request.getfixturevalue("client")
    y = np.c_[NUMBERS, NUMBERS]
    assert theirs_says(MLPRegressor(**SETTINGS).fit(X, NUMBERS), X, y, method="score")
    with refused(ValueError, "y.*2.*1"):
        regressor().fit(X, NUMBERS).score(blocks(X), blocks(y))


@pytest.mark.parametrize("value", [np.nan, -np.inf], ids=["NaN", "inf"])
def test_predict_names_the_block_and_row_of_what_is_not_finite(value: float) -> None:
    lazy = classifier().fit(X, LABELS).predict(blocks(having(X, (63, 2), value)))
    kind = "NaN" if np.isnan(value) else "infinity"
    with refused(ValueError, f"Input X contains {kind}: block 2, row 3 .*column 2", "before"):
        lazy.compute()


@pytest.mark.cluster
def test_futures_are_refused_with_what_to_give_instead(client: Client) -> None:
    future = client.scatter(X)
    for call in (
        lambda: classifier().fit(future, LABELS),
        lambda: classifier().fit(X, LABELS).predict(future),
    ):
        with refused(TypeError, "is a Future", "from_delayed"):
            call()


def test_a_missing_value_in_a_nullable_column_is_refused_in_predict() -> None:
    missing = pd.DataFrame(X.round()).astype("Int64")
    missing.iloc[63, 2] = pd.NA
    lazy = classifier().fit(X, LABELS).predict(dd.from_pandas(missing, npartitions=3))
    with refused(ValueError, "Input X contains NaN: block 2, row 3 .*column 2"):
        lazy.compute()


@pytest.mark.parametrize("method", ["predict", "predict_proba"])
@pytest.mark.parametrize(
    ("rows", "kind", "says"),
    [
        (blocks(X[:, 0]), ValueError, "Expected 2D array, got 1D"),
        (blocks(X.reshape(N_ROWS, 3, 2)), ValueError, "2D array, got 3D"),
        (dask.bag.from_sequence(X.tolist(), npartitions=3), TypeError, "X is a.*Bag"),
        (blocks(X + 1j), ValueError, "X has the dtype complex128"),
    ],
    ids=["1-D", "3-D", "Bag", "complex"],
)
def test_predict_refuses_what_is_no_table_at_once(
    rows: Any, kind: type[Exception], says: str, method: str
) -> None:
    with refused(kind, says):
        getattr(classifier().fit(X, LABELS), method)(rows)


# --- clients ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [np.asarray, blocks], ids=["numpy", "dask"])
@pytest.mark.parametrize("wrong", ["tcp://127.0.0.1:8786", 2], ids=["address", "number"])
def test_a_client_of_another_type_is_refused(wrong: Any, make: Callable[[Any], Any]) -> None:
    kind = type(wrong).__name__
    with refused(TypeError, f"client={wrong!r} is a {kind}", "Give a distributed.Client"):
        classifier(client=wrong).fit(make(X), make(LABELS))


@pytest.mark.cluster
def test_a_closed_client_is_refused(client: Client) -> None:
    client.close()
    with refused(ValueError, "client=<Client", "is closed", "Make a new Client"):
        classifier(client=client).fit(X, LABELS)


@pytest.mark.cluster
def test_a_cluster_without_workers_is_refused() -> None:
    with (
        LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as empty,
        Client(empty) as client,
        dask.config.set({"skdtheano.no-worker-timeout": "500 ms"}),
    ):
        with refused(ValueError, "client=<Client", "has no workers", "cluster.scale"):
            classifier(client=client).fit(X, LABELS)
        with refused(ValueError, "client=<Client", "has no workers", "cluster.scale"):
            classifier().fit(blocks(X), LABELS)


@pytest.mark.cluster
@pytest.mark.parametrize("named", [True, False], ids=["named", "current"])
def test_an_asynchronous_client_is_refused(named: bool, client: Client) -> None:
    address = client.scheduler.address

    async def fit() -> None:
        async with Client(address, asynchronous=True) as other:
            classifier(client=other if named else None).fit(blocks(X), blocks(LABELS))

    with refused(ValueError, "client=<Client", "is asynchronous", "asynchronous=False"):
        asyncio.run(fit())


def test_masked_dask_arrays_are_refused() -> None:
    """What a mask hides would be trained on."""
    X = np.random.RandomState(0).normal(size=(20, 3))
    lazy = da.from_array(X, chunks=(5, 3))
    masked = da.ma.masked_greater(lazy, 1)
    for rows, targets in ((masked, lazy[:, 0]), (lazy, masked[:, 0])):
        with pytest.raises(TypeError, match="is masked"):
            DistributedMLPRegressor(max_iter=1).fit(rows, targets)


def test_text_is_no_number_for_a_regressor() -> None:
    with refused(ValueError, "y has the dtype", "not a number's", "DistributedMLPClassifier"):
        regressor().fit(X, LABELS.astype(str))


@pytest.mark.cluster
def test_labels_that_no_class_could_equal_are_not_scored(client: Client) -> None:
    fitted = classifier().fit(X, LABELS)
    text = blocks(np.array(["late"] * len(X)))
    with refused(TypeError, r"labels such as \['late'\]", "the model was fitted with"):
        fitted.score(blocks(X), text)
