"""Searches of scikit-learn and dask-ml, with fits in tasks and fits on the cluster.

Rows in memory under joblib's dask backend are fitted inside its tasks; rows in dask arrays by
all workers. Either way the same search with scikit-learn's `MLPClassifier`, in this process,
says what is to be found.
"""

import os
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import dask.array as da
import dask.dataframe as dd
import dask_ml.model_selection as dask_search
import joblib
import numpy as np
import pytest
from distributed import Client, LocalCluster, as_completed
from numpy.testing import assert_allclose
from shared_clusters import forgets_all_tasks
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import FitFailedWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.inspection import permutation_importance
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    RandomizedSearchCV,
    cross_val_score,
    cross_validate,
    train_test_split,
)
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_info

from skdtheano import DistributedMLPClassifier
from skdtheano.engine import compilations
from skdtheano.model_selection import BatchedGridSearchCV, BatchedRandomizedSearchCV

pytestmark = [
    pytest.mark.cluster,
    # A few epochs are not meant to converge.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:.*Maximum iterations"),
]

SIZES = [(1, 1), (2, 1), (1, 2)]
GRID = {"alpha": [1e-4, 10.0], "learning_rate_init": [0.01, 0.05]}
FOLDS = KFold(3)  # of any rows, and not of classes, which dask arrays do not tell


def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.RandomState(0)
    X = rng.standard_normal((150, 5))
    return X, np.digitize(X[:, 0] + 0.5 * X[:, 1] * X[:, 2], [-0.5, 0.5])


def lazy() -> tuple[da.Array, da.Array]:
    X, y = rows()
    return da.from_array(X, (40, -1)), da.from_array(y, 40)


def model(kind: type = DistributedMLPClassifier, **given: Any) -> Any:
    return kind((6,), batch_size=25, max_iter=6, random_state=0, **given)


def searched(search: Any, X: Any, y: Any) -> dict[str, Any]:
    search.fit(X, y)
    best = {f"best {name}": value for name, value in search.best_params_.items()}
    return {"scores": search.cv_results_["mean_test_score"], **best}


def grid(estimator: Any, X: Any, y: Any) -> dict[str, Any]:
    return searched(GridSearchCV(estimator, GRID, cv=FOLDS), X, y)


def grid_of_jobs(estimator: Any, X: Any, y: Any) -> dict[str, Any]:
    """Several candidates at once."""
    return searched(GridSearchCV(estimator, GRID, cv=FOLDS, n_jobs=3), X, y)


def randomized(estimator: Any, X: Any, y: Any) -> dict[str, Any]:
    search = RandomizedSearchCV(estimator, GRID, n_iter=3, cv=FOLDS, random_state=0)
    return searched(search, X, y)


def halving(estimator: Any, X: Any, y: Any) -> dict[str, Any]:
    search = HalvingGridSearchCV(estimator, GRID, cv=FOLDS, random_state=0, min_resources=60)
    return searched(search, X, y)


def halving_epochs(estimator: Any, X: Any, y: Any) -> dict[str, Any]:
    search = HalvingGridSearchCV(
        estimator, GRID, cv=FOLDS, resource="max_iter", max_resources=8, min_resources=4
    )
    return searched(search, X, y)


def validated(estimator: Any, X: Any, y: Any) -> dict[str, Any]:
    found = cross_validate(estimator, X, y, cv=FOLDS, return_train_score=True)
    return {name: found[name] for name in ("test_score", "train_score")}


def scored(estimator: Any, X: Any, y: Any) -> dict[str, Any]:
    return {"scores": cross_val_score(estimator, X, y, cv=FOLDS)}


def split(estimator: Any, X: Any, y: Any) -> dict[str, Any]:
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    return {"score": estimator.fit(X_train, y_train).score(X_test, y_test)}


def bagged(estimator: Any, X: Any, y: Any) -> dict[str, Any]:
    ensemble = BaggingClassifier(estimator, n_estimators=3, n_jobs=2, random_state=0)
    return {"probabilities": ensemble.fit(X, y).predict_proba(X)}


def calibrated(estimator: Any, X: Any, y: Any) -> dict[str, Any]:
    ensemble = CalibratedClassifierCV(estimator, cv=3, n_jobs=2)
    return {"probabilities": ensemble.fit(X, y).predict_proba(X)}


def importances(estimator: Any, X: Any, y: Any) -> dict[str, Any]:
    fitted = estimator.fit(X, y)
    found = permutation_importance(fitted, X, y, n_repeats=3, random_state=0, n_jobs=2)
    return {"importances": found.importances}


def dask_grid(estimator: Any, X: Any, y: Any) -> dict[str, Any]:
    kind = GridSearchCV if isinstance(estimator, MLPClassifier) else dask_search.GridSearchCV
    return searched(kind(estimator, GRID, cv=FOLDS), X, y)


def dask_randomized(estimator: Any, X: Any, y: Any) -> dict[str, Any]:
    is_theirs = isinstance(estimator, MLPClassifier)
    kind = RandomizedSearchCV if is_theirs else dask_search.RandomizedSearchCV
    return searched(kind(estimator, GRID, n_iter=3, cv=FOLDS, random_state=0), X, y)


def dask_folds(estimator: Any, X: Any, y: Any) -> dict[str, Any]:
    if isinstance(X, np.ndarray):
        folds = KFold(3).split(X)
        return {
            "scores": [
                estimator.fit(X[train], y[train]).score(X[test], y[test])
                for train, test in folds
            ]
        }
    scores = []
    for train, test in dask_search.KFold(3).split(X):
        scores.append(estimator.fit(X[train], y[train]).score(X[test], y[test]))
    return {"scores": scores}


def batched_grid(estimator: Any, X: Any, y: Any) -> dict[str, Any]:
    kind = GridSearchCV if isinstance(estimator, MLPClassifier) else BatchedGridSearchCV
    return searched(kind(estimator, GRID, cv=FOLDS), X, y)


def batched_randomized(estimator: Any, X: Any, y: Any) -> dict[str, Any]:
    is_theirs = isinstance(estimator, MLPClassifier)
    kind = RandomizedSearchCV if is_theirs else BatchedRandomizedSearchCV
    return searched(kind(estimator, GRID, n_iter=3, cv=FOLDS, random_state=0), X, y)


SEARCHES = [
    batched_grid,
    batched_randomized,
    grid,
    grid_of_jobs,
    randomized,
    halving,
    halving_epochs,
    validated,
    scored,
    split,
    bagged,
    calibrated,
    importances,
    dask_grid,
    dask_randomized,
    dask_folds,
]
#: scikit-learn makes one array of the rows before any estimator sees them; batched searches
#: refuse dask arrays.
IN_MEMORY_ALONE = {bagged, calibrated, importances, batched_grid, batched_randomized}
SMOKE = {(grid, 1, 1), (grid_of_jobs, 2, 1), (batched_grid, 2, 1)}


@cache
def expected(search: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    with warnings.catch_warnings(), joblib.parallel_config("threading", n_jobs=1):
        warnings.simplefilter("ignore")
        return search(model(MLPClassifier), *rows())


def assert_same(found: dict[str, Any], search: Callable[..., dict[str, Any]]) -> None:
    for name, value in expected(search).items():
        assert_allclose(found[name], value, rtol=1e-7, atol=1e-9, err_msg=name)


def table(searches: list[Any]) -> list[Any]:
    return [
        pytest.param(
            search,
            *size,
            id=f"{search.__name__}-{size[0]}x{size[1]}",
            marks=() if (search, *size) in SMOKE else pytest.mark.table,
        )
        for search in searches
        for size in SIZES
    ]


@pytest.mark.parametrize(("search", "n_workers", "n_threads"), table(SEARCHES))
def test_fits_in_tasks_find_what_scikit_learn_finds(
    client_of: Callable[..., Client], search: Any, n_workers: int, n_threads: int
) -> None:
    client_of(n_workers, n_threads)
    with joblib.parallel_config("dask"):
        assert_same(search(model(), *rows()), search)


@pytest.mark.parametrize(
    ("search", "n_workers", "n_threads"),
    table([search for search in SEARCHES if search not in IN_MEMORY_ALONE]),
)
def test_fits_on_the_cluster_find_what_scikit_learn_finds(
    client_of: Callable[..., Client], search: Any, n_workers: int, n_threads: int
) -> None:
    client_of(n_workers, n_threads)
    assert_same(search(model(), *lazy()), search)


@pytest.mark.table
@pytest.mark.parametrize("search", [bagged, importances])
def test_what_takes_rows_in_memory_alone_finds_the_same_in_dask_arrays(
    client: Client, search: Any
) -> None:
    """scikit-learn makes one array of them: fine for tables that fit into this process.

    Calibration does not: it asks for labels that dask cannot tell, `numpy.unique(y,
    equal_nan=)`.
    """
    assert_same(search(model(), *lazy()), search)


def test_a_loop_that_asks_and_tells_finds_the_same_on_one_thread(
    client_of: Callable[..., Client],
) -> None:
    """As Optuna's and skopt's, with a task for each trial."""
    X, y = rows()
    client = client_of(1, 1)
    alphas = [1e-4, 1e-2, 1.0, 10.0]

    def trial(kind: type, alpha: float) -> float:
        estimator = model(kind, alpha=alpha)
        score: float = estimator.fit(X[:100], y[:100]).score(X[100:], y[100:])
        return score

    asked = {client.submit(trial, DistributedMLPClassifier, a, pure=False): a for a in alphas}
    told = {asked[done]: score for done, score in as_completed(asked, with_results=True)}
    assert told == {alpha: trial(MLPClassifier, alpha) for alpha in alphas}


def test_of_a_frame_scikit_learn_searches_the_array(client: Client) -> None:
    X, y = lazy()
    frame, series = dd.from_dask_array(X), dd.from_dask_array(y)
    search = GridSearchCV(model(), GRID, cv=FOLDS)
    with pytest.raises(Exception) as raised:
        search.fit(frame, series)
    assert "take" in str(raised.value)  # it is scikit-learn that says so, before any fit
    X, y = (table.to_dask_array(lengths=True) for table in (frame, series))
    assert_same(searched(search, X, y), grid)


def test_a_grid_compiles_once_in_each_worker(client_of: Callable[..., Client]) -> None:
    """A task keeps its slot while it fits: one program serves all that a thread fits.

    Whatever alpha, learning rate, momentum, minibatch and seed: 24 candidates, 3 folds."""
    X, y = rows()
    client = client_of(2)
    candidates = {
        "alpha": [1e-4, 1e-2, 1.0],
        "learning_rate_init": [0.01, 0.05],
        "momentum": [0.5, 0.9],
        "random_state": [0, 1],
    }

    def compiled() -> dict[str, Counter[str]]:
        counts: dict[str, Counter[str]] = client.run(lambda: Counter(compilations()))
        return counts

    def new_since(before: dict[str, Counter[str]]) -> list[int]:
        return [max((c - before[w]).values(), default=0) for w, c in compiled().items()]

    # A mode of the engine's: the default one compiles nothing at all.
    estimator = model(solver="sgd", mode="FAST_COMPILE", activation="tanh")
    search = GridSearchCV(estimator, candidates, cv=3, refit=False)
    before = compiled()
    with joblib.parallel_config("dask"):
        search.fit(X, y)
    assert len(search.cv_results_["params"]) == 24
    assert max(new_since(before)) == 1 and all(n <= 1 for n in new_since(before))
    before = compiled()
    with joblib.parallel_config("dask"):
        search.set_params(param_grid={"batch_size": [10, 20], "beta_1": [0.8, 0.9]}).fit(X, y)
    assert all(n <= 1 for n in new_since(before))


class Gathered:
    """Bytes of the values that a client brings into this process."""

    def __init__(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_bytes = 0
        gather = client.scheduler.gather if hasattr(client.scheduler, "gather") else None
        assert gather is not None
        original = Client._gather

        async def counted(it: Client, futures: Any, *given: Any, **named: Any) -> Any:
            values = await original(it, futures, *given, **named)
            self.n_bytes += _bytes_in(values)
            return values

        monkeypatch.setattr(Client, "_gather", counted)


def _bytes_in(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_bytes_in, value.values()))
    if isinstance(value, list | tuple | set):
        return sum(map(_bytes_in, value))
    return int(getattr(value, "nbytes", 0))


@pytest.mark.parametrize("kind", [GridSearchCV, dask_search.GridSearchCV])
def test_a_search_of_a_pipeline_brings_no_rows_to_the_caller(
    client: Client, monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    from dask_ml.preprocessing import StandardScaler
    from sklearn.pipeline import make_pipeline

    X = da.random.RandomState(0).normal(3.0, 2.0, size=(6000, 20), chunks=(1000, -1))
    y = (X[:, 0] > 3).astype(int)
    X, y = client.persist([X, y])
    estimator = model().set_params(max_iter=2, batch_size=500)
    if kind is dask_search.GridSearchCV:  # whose folds are arrays, in its tasks
        from sklearn.preprocessing import StandardScaler
    pipeline = make_pipeline(StandardScaler(), estimator)
    name = "distributedmlpclassifier__alpha"
    search = kind(pipeline, {name: [1e-4, 1.0]}, cv=FOLDS)
    gathered = Gathered(client, monkeypatch)
    search.fit(X, y)
    assert len(search.cv_results_["params"]) == 2 and search.best_score_ > 0.5
    assert 0 < gathered.n_bytes < X.nbytes / 4
    X.compute()
    assert gathered.n_bytes > X.nbytes  # so it would have been seen


def test_blas_takes_one_thread_in_each_of_two_tasks(client_of: Callable[..., Client]) -> None:
    X, y = rows()
    client_of(1, 2)

    def threads(estimator: Any, X: Any, y: Any) -> float:
        return float(max(i["num_threads"] for i in threadpool_info()))

    with joblib.parallel_config("dask"):
        found = cross_val_score(model(), X, y, cv=FOLDS, scoring=threads)
    assert set(found) == {1.0}


@pytest.fixture
def damaged(own_cluster: LocalCluster) -> Iterator[Client]:
    with Client(own_cluster) as client:
        yield client


def test_a_search_on_the_cluster_outlives_a_worker(damaged: Client) -> None:
    """Not so one under joblib: its rows lie on one worker, and are lost with that."""
    pid = next(iter(damaged.run(os.getpid).values()))

    scores = []

    def scored(estimator: Any, X: Any, y: Any) -> float:
        scores.append(float(estimator.score(X, y)))
        if len(scores) == 4:
            os.kill(pid, signal.SIGKILL)
        return scores[-1]

    found = searched(GridSearchCV(model(), GRID, cv=FOLDS, scoring=scored), *lazy())
    assert len(scores) == 12
    assert_same(found, grid)


@pytest.mark.parametrize("is_lazy", [False, True])
def test_a_candidate_that_fails_has_no_score_and_spoils_no_other(
    clusters: Callable[..., LocalCluster], client: Client, is_lazy: bool
) -> None:
    before = set(clusters(2).scheduler.tasks)
    data = lazy() if is_lazy else rows()
    search = GridSearchCV(
        model(), {"hidden_layer_sizes": [(6,), (0,)], "alpha": [1e-4, 10.0]}, cv=FOLDS
    )
    with (
        joblib.parallel_config("threading" if is_lazy else "dask"),
        pytest.warns(FitFailedWarning, match="hidden_layer_sizes must be > 0"),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "One or more of the test scores are non-finite")
        search.fit(*data)
    failed = np.array([p["hidden_layer_sizes"] == (0,) for p in search.cv_results_["params"]])
    scores = search.cv_results_["mean_test_score"]
    assert np.isnan(scores[failed]).all() and np.isfinite(scores[~failed]).all()
    del search
    assert forgets_all_tasks(clusters(2), but=before)
