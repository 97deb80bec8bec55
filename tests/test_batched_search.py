"""Searches that train candidates as one model: scikit-learn's search, with its numbers."""

import gc
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, ClassVar

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import sklearn
from distributed import Client, LocalCluster
from distributed.comm import CommClosedError
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import uniform
from shared_clusters import forgets_all_tasks
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import make_scorer, precision_score
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    RandomizedSearchCV,
    RepeatedKFold,
)
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler
from sklearn.utils._param_validation import InvalidParameterError

from skdtheano import DistributedMLPClassifier, DistributedMLPRegressor
from skdtheano.engine import compilations
from skdtheano.estimators import fits_together
from skdtheano.model_selection import (
    BatchedGridSearchCV,
    BatchedRandomizedSearchCV,
    LearningCurvesDisplay,
    places,
)
from skdtheano.model_selection.calls import as_is
from skdtheano.model_selection.jobs import jobs_of
from skdtheano.model_selection.places import OnCluster, can_travel_along

pytestmark = [
    # A few epochs are not meant to converge.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

GRID: dict[str, list[Any]] = {
    "alpha": [1e-4, 1.0],
    "learning_rate_init": [0.01, 0.05],
    "random_state": [0, 1],
}


def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.RandomState(0)
    X = rng.standard_normal((101, 5))
    return X, np.array(["low", "mid", "up"])[np.digitize(X[:, 0] + X[:, 1], [-0.5, 0.5])]


def model(kind: type = DistributedMLPClassifier, **given: Any) -> Any:
    defaults = {"hidden_layer_sizes": (6,), "batch_size": 25, "max_iter": 6, "random_state": 0}
    return kind(**defaults | given)


def pair(estimator: Any, grid: Any, **given: Any) -> tuple[Any, Any]:
    """The same search, batched and scikit-learn's; the latter fits one after another."""
    given = {"cv": 3} | given
    ours, theirs = BatchedGridSearchCV(estimator, grid, **given), GridSearchCV
    return ours, theirs(estimator, grid, n_jobs=1, **given)


def check(ours: Any, theirs: Any, X: Any, y: Any, **params: Any) -> Any:
    """All but times are equal, bit for bit."""
    for search in (theirs, ours):
        search.fit(X, y, **params)
    assert list(ours.cv_results_) == list(theirs.cv_results_)
    assert ours.cv_results_["params"] == theirs.cv_results_["params"]
    for name, expected in theirs.cv_results_.items():
        found = ours.cv_results_[name]
        if name.endswith("_time"):
            assert found.shape == expected.shape
        elif name != "params":
            assert type(found) is type(expected) and found.dtype == expected.dtype
            assert_array_equal(found, expected, err_msg=name)
    for name in ("best_index_", "best_params_", "best_score_", "multimetric_", "n_splits_"):
        assert hasattr(ours, name) == hasattr(theirs, name), name
        assert getattr(ours, name, None) == getattr(theirs, name, None), name
    if theirs.refit:
        assert_array_equal(ours.predict(X), theirs.predict(X))
        assert ours.score(X, y) == theirs.score(X, y)
        assert ours.refit_time_ > 0
    return ours


@pytest.mark.parity
def test_a_grid_finds_what_scikit_learns_search_finds() -> None:
    search = check(*pair(model(), GRID), *rows())
    assert search.n_batched_fits_ == 24
    assert (search.cv_results_["mean_fit_time"] > 0).all()
    assert (search.cv_results_["mean_score_time"] > 0).all()
    assert_array_equal(search.classes_, ["low", "mid", "up"])
    theirs = GridSearchCV(model(MLPClassifier), GRID, cv=3).fit(*rows())
    scores = [s.cv_results_["mean_test_score"] for s in (search, theirs)]
    assert_allclose(*scores, rtol=1e-7)
    assert search.best_params_ == theirs.best_params_


def test_drawn_candidates_are_those_of_scikit_learn() -> None:
    given = {"n_iter": 5, "cv": 3, "random_state": 3}
    ours = BatchedRandomizedSearchCV(model(), GRID, **given)
    search = check(ours, RandomizedSearchCV(model(), GRID, **given), *rows())
    assert search.n_batched_fits_ == 15


GRIDS: dict[str, Any] = {
    "architectures": {
        "hidden_layer_sizes": [(6,), (4, 3)],
        "activation": ["relu", "tanh"],
        "batch_size": [20, 25],
        "alpha": [1e-4, 1.0],
    },
    "a list": [{"alpha": [1e-4, 1.0]}, {"solver": ["sgd", "lbfgs"], "momentum": [0.5, 0.9]}],
    "one": {"alpha": [1.0]},
    "none": {},
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_grids_of_any_kind_are_searched(grid: Any) -> None:
    check(*pair(model(), grid), *rows())


PRECISION = make_scorer(precision_score, average="macro", zero_division=0)
SCORING: dict[str, dict[str, Any]] = {
    "by name": {"scoring": "f1_macro"},
    "train too": {"return_train_score": True},
    "several": {"scoring": ["accuracy", "neg_log_loss"], "refit": "neg_log_loss"},
    "several, trained too": {
        "scoring": {
            "a": "accuracy",
            "p": make_scorer(precision_score, average="macro", zero_division=0),
        },
        "refit": False,
        "return_train_score": True,
    },
    "several, by a function": {
        "scoring": lambda model, X, y: {"n": model.n_iter_, "s": model.score(X, y)},
        "refit": "s",
    },
    "by a function": {"scoring": lambda model, X, y: float(model.loss_)},
    "chosen by a function": {"refit": lambda results: int(np.argmin(results["param_alpha"]))},
    "chosen by times": {"refit": lambda found: int((found["mean_fit_time"] > 0).sum()) - 1},
    "not refitted": {"refit": False},
}


@pytest.mark.parametrize("given", SCORING.values(), ids=SCORING.keys())
def test_scores_and_choices_are_as_in_scikit_learn(given: dict[str, Any]) -> None:
    check(*pair(model(), GRID, **given), *rows())


def test_splits_of_any_kind_are_taken() -> None:
    X, y = rows()
    listed = [(list(range(0, 101, 2)), [1, 5, 7]), (list(range(40)), np.arange(30, 60))]
    masks = [(np.arange(101) < 50, np.arange(101) >= 60)]
    for cv in (2, KFold(4, shuffle=True, random_state=0), listed, masks):
        check(*pair(model(), {"alpha": [1e-4, 1.0]}, cv=cv), X, y)
    # Two splits with the same rows to train on, and with the same rows to score on.
    same = [(np.arange(50), np.arange(50, 80)), (np.arange(50), np.arange(80, 101))] * 2
    check(*pair(model(), {"alpha": [1e-4]}, cv=same, return_train_score=True), X, y)
    repeated = RepeatedKFold(n_splits=2, n_repeats=2, random_state=0)
    check(*pair(model(), {"alpha": [1e-4]}, cv=repeated), X, y)
    groups = np.arange(101) % 5
    check(*pair(model(), {"alpha": [1e-4]}, cv=GroupKFold(3)), X, y, groups=groups)


def test_weights_of_rows_are_split_with_them() -> None:
    X, y = rows()
    weights = np.random.RandomState(0).uniform(0.5, 2, len(X))
    search = check(*pair(model(), GRID), X, y, sample_weight=weights)
    assert search.n_batched_fits_ == 24


def test_numeric_targets_and_tables_with_names() -> None:
    X, y = rows()
    frame = pd.DataFrame(X, columns=list("abcde"))
    search = check(*pair(model(), GRID), frame, pd.Series(y))
    assert_array_equal(search.feature_names_in_, list("abcde"))
    regressor = model(DistributedMLPRegressor)
    check(*pair(regressor, GRID), frame, X[:, 0] - X[:, 1])
    check(*pair(regressor, GRID), X.tolist(), X[:, :2])
    check(*pair(regressor, {"loss": ["poisson", "squared_error"]}), X, np.abs(X[:, 0]))


class Counted(StandardScaler):
    """Tells how often one was fitted."""

    fitted: ClassVar[list[int]] = []

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        self.fitted.append(len(X))
        return super().fit(X, y, sample_weight)


def test_steps_before_the_network_are_fitted_once_for_each_setting_and_fold() -> None:
    fitted = Counted.fitted
    fitted.clear()
    pipeline = Pipeline([("scale", Counted()), ("net", model())])
    grid = {
        "net__alpha": [1e-4, 1.0],
        "net__learning_rate_init": [0.01, 0.05],
        "scale__with_mean": [True, False],
    }
    ours, theirs = pair(pipeline, grid)
    theirs.fit(*rows())
    assert len(fitted) == 3 * 8 + 1
    fitted.clear()
    search = check(ours, clone(theirs), *rows())
    assert len(fitted) == 3 * 8 + 1 + 3 * 2 + 1
    assert search.n_batched_fits_ == 24
    fitted.clear()
    BatchedGridSearchCV(
        pipeline, {"net__hidden_layer_sizes": [3, 4, 5], "net__tol": [0.1]}, cv=3, refit=False
    ).fit(*rows())
    assert len(fitted) == 3  # also where the networks differ
    assert search.best_estimator_.named_steps["scale"].mean_ is not None


def test_pipelines_of_all_kinds_are_searched() -> None:
    X, y = rows()
    scaled = make_pipeline(StandardScaler(), model())
    for grid in (
        {"standardscaler": [StandardScaler(), MinMaxScaler(), "passthrough"]},
        {"distributedmlpclassifier": [model(), LogisticRegression()]},
        {"distributedmlpclassifier__alpha": [1e-4, 1.0]},
    ):
        check(*pair(scaled, grid), X, y)
    doubled = {"standardscaler": [FunctionTransformer(lambda a: 2 * a)], **grid}
    search = check(*pair(scaled, doubled), X, y)
    assert search.n_batched_fits_ == 6
    check(*pair(make_pipeline(model()), {"distributedmlpclassifier__alpha": [1, 2]}), X, y)
    weights = {"distributedmlpclassifier__sample_weight": np.arange(1, 102) / 50}
    grid = {"distributedmlpclassifier__alpha": [1e-4, 1.0]}
    search = check(*pair(scaled, grid), X, y, **weights)
    assert search.n_batched_fits_ == 6
    both = {**weights, "standardscaler__sample_weight": np.arange(1, 102) / 50}
    search = check(*pair(scaled, grid), X, y, **both)
    assert search.n_batched_fits_ == 0  # each is fitted as a whole


class Squared(DistributedMLPClassifier):
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        return super().fit(np.square(X), y, sample_weight)

    def predict(self, X: Any) -> Any:
        return super().predict(np.square(X))


class Swapped(Pipeline):
    def fit(self, X: Any, y: Any = None, **params: Any) -> Any:
        return super().fit(X[::-1], y, **params)


def test_a_class_with_a_fit_of_its_own_is_fitted_by_that() -> None:
    for estimator, grid in [
        (model(Squared), {"alpha": [1e-4, 1.0]}),
        (Pipeline([("net", model(Squared))]), {"net__alpha": [1e-4, 1.0]}),
        (Swapped([("net", model())]), {"net__alpha": [1e-4, 1.0]}),
    ]:
        assert check(*pair(estimator, grid), *rows()).n_batched_fits_ == 0


def test_other_estimators_are_fitted_one_by_one() -> None:
    search = check(*pair(LogisticRegression(), {"C": [0.1, 1.0]}), *rows())
    assert search.n_batched_fits_ == 0


def test_a_candidate_that_fails_is_told_as_scikit_learn_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, y = rows()
    grid = {"hidden_layer_sizes": [(6,), (0,)], "alpha": [1e-4, 1.0]}
    ours, theirs = pair(model(), grid)
    for search in (ours, theirs):
        with (
            pytest.warns(FitFailedWarning, match="6 fits failed out of a total of 12"),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "One or more of the test scores are non-finite")
            search.fit(X, y)
    assert_array_equal(*(s.cv_results_["mean_test_score"] for s in (ours, theirs)))
    ours, _ = pair(model(), grid, error_score="raise")
    with pytest.raises(ValueError, match="hidden_layer_sizes must be > 0, got"):
        ours.fit(X, y)
    monkeypatch.setattr(fits_together, "train_together", None)  # it is not come to
    ours, _ = pair(model(), {"alpha": [1.0, -1.0]}, error_score="raise")
    with pytest.raises(InvalidParameterError, match="'alpha' parameter"):
        ours.fit(X, y)
    monkeypatch.undo()
    ours, _ = pair(model(), {"hidden_layer_sizes": [(0,)]})
    with pytest.raises(ValueError, match="All the 3 fits failed"):
        ours.fit(X, y)
    several = {"scoring": ["accuracy", "f1_macro"], "refit": "accuracy", "error_score": -1}
    ours, theirs = pair(model(), grid, **several)
    with pytest.warns(FitFailedWarning):
        check(ours, theirs, X, y)


@pytest.mark.parametrize("several", [False, True])
def test_a_scorer_that_fails_is_told_once(several: bool) -> None:
    def fails(estimator: Any, X: Any, y: Any) -> Any:
        if estimator.alpha == 1.0:
            raise RuntimeError("no score for this one")
        return {"s": 0.5} if several else 0.5

    more: dict[str, Any] = {"scoring": fails, "error_score": -1.0, "refit": False}
    more["return_train_score"] = True
    ours, _ = pair(model(), {"alpha": [1e-4, 1.0]}, **more)
    with pytest.warns(UserWarning, match="Scoring failed 6 times.*-1") as raised:
        ours.fit(*rows())
    assert len([w for w in raised if "Scoring failed" in str(w.message)]) == 1
    name = "mean_test_s" if several else "mean_test_score"
    assert_array_equal(ours.cv_results_[name], [0.5, -1])
    assert_array_equal(ours.cv_results_[name.replace("test", "train")], [0.5, -1])
    ours.set_params(error_score="raise")
    with pytest.raises(RuntimeError, match="no score for this one"):
        ours.fit(*rows())


@pytest.mark.parametrize("bad", ["test", "train"])
def test_the_other_side_keeps_its_score(bad: str) -> None:
    def fails(estimator: Any, X: Any, y: Any) -> float:
        if (len(X) < 50) == (bad == "test"):
            raise RuntimeError("no score of these rows")
        return 0.5

    given = {"scoring": fails, "return_train_score": True, "error_score": -1.0}
    ours, theirs = pair(model(), {"alpha": [1e-4, 1.0]}, **given)
    found = []
    for search in (ours, theirs):
        with pytest.warns(UserWarning, match="Scoring failed"):
            search.fit(*rows())
        found.append([search.cv_results_[f"mean_{side}_score"] for side in ("test", "train")])
    assert_array_equal(*found)


def test_a_step_that_fails_is_told_once() -> None:
    def fails(X: Any) -> Any:
        raise RuntimeError("no such rows")

    pipeline = make_pipeline(FunctionTransformer(fails), model())
    ours, _ = pair(pipeline, {"distributedmlpclassifier__alpha": range(1, 30)})
    with pytest.raises(ValueError, match="All the 87 fits failed") as raised:
        ours.fit(*rows())
    assert str(raised.value).count("no such rows") <= 3
    assert len(str(raised.value)) < 10_000


def test_candidates_are_drawn_before_splits() -> None:
    """As in scikit-learn: of one generator for both, each has the same draws."""
    found = []
    for kind in (BatchedRandomizedSearchCV, RandomizedSearchCV):
        rng = np.random.RandomState(0)
        cv = KFold(2, shuffle=True, random_state=rng)
        search = kind(model(), {"alpha": uniform(0, 1)}, n_iter=3, cv=cv, random_state=rng)
        found.append(search.fit(*rows()).cv_results_)
    assert found[0]["params"] == found[1]["params"]
    assert_array_equal(*(results["mean_test_score"] for results in found))


def test_a_metric_that_fails_leaves_the_others() -> None:
    def fails(estimator: Any, X: Any, y: Any) -> float:
        raise RuntimeError("no such score")

    scoring = {"right": "accuracy", "wrong": fails}
    ours, _ = pair(model(), {"alpha": [1e-4, 1.0]}, scoring=scoring, refit="right")
    with (
        pytest.warns(UserWarning, match=r"(?s)Scoring failed 6 times.*no such score"),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "One or more of the test scores are non-finite")
        ours.fit(*rows())
    assert np.isnan(ours.cv_results_["mean_test_wrong"]).all()
    assert (ours.cv_results_["mean_test_right"] > 0).all()


def test_fits_that_have_not_converged_are_told_once_at_the_users_line() -> None:
    search, _ = pair(model(), GRID, refit=False)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        search.fit(*rows())
    [warning] = [w for w in raised if w.category is ConvergenceWarning]
    assert "24 of 24 fits reached their max_iter" in str(warning.message)
    assert warning.filename == __file__


class Silent:
    """A callback of scikit-learn's protocol."""

    def setup(self, *given: Any, **named: Any) -> None:
        """Nothing."""

    teardown = on_fit_task_begin = on_fit_task_end = setup


def test_what_cannot_be_searched_is_refused() -> None:
    X, y = rows()
    search, _ = pair(model(), GRID)
    with pytest.raises(TypeError, match=r"X is a dask Array.*Use scikit-learn's GridSearchCV"):
        search.fit(da.from_array(X), y)
    with pytest.raises(TypeError, match="y is a dask Array"):
        search.fit(X, da.from_array(y))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        search.fit(X, y[:-1])
    for grid in ({"alhpa": [1]}, [{"alpha": [0.1]}, {"alhpa": [1], "alpha": [2]}]):
        with pytest.raises(ValueError, match="Invalid parameter 'alhpa'"):
            BatchedGridSearchCV(model(), grid).fit(X, y)
    with pytest.raises(TypeError, match="Expected sequence or array-like"):
        search.fit(None, y)
    with pytest.raises(ValueError, match="calls no callbacks"):
        clone(search).set_callbacks(Silent()).fit(X, y)
    odd = BatchedGridSearchCV(model(), {"alpha": [1]}, scoring=lambda model, X, y: "good")
    with pytest.raises(ValueError, match="A score is 'good' of type str"):
        odd.fit(X, y)
    with pytest.raises(ValueError, match="refit must be set to a scorer key"):
        pair(model(), GRID, scoring=["accuracy", "f1_macro"])[0].fit(X, y)
    with pytest.raises(ValueError, match="verbose"):
        BatchedGridSearchCV(model(), GRID, verbose="very").fit(X, y)
    with pytest.raises(NotFittedError):
        clone(search).predict(X)


def test_a_search_that_failed_leaves_the_estimator_alone_and_can_be_repeated() -> None:
    estimator = model()
    search, theirs = pair(estimator, GRID)
    with pytest.raises(ValueError):
        search.fit(rows()[0], None)
    check(search, theirs, *rows())
    check(search.set_params(refit=False), theirs.set_params(refit=False), *rows())
    assert vars(estimator) == vars(model())


def test_progress_is_printed_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    search, _ = pair(model(), GRID, verbose=2)
    search.fit(*rows())
    told = capsys.readouterr().out
    assert "Fitting 3 folds for each of 8 candidates, totalling 24 fits" in told
    assert "24 of 24 fits done" in told


def test_learning_curves_of_the_best_can_be_drawn() -> None:
    pytest.importorskip("matplotlib")
    search, _ = pair(model(), GRID)
    assert LearningCurvesDisplay.from_estimator(search.fit(*rows()).best_estimator_)


@pytest.fixture
def damaged(own_cluster: LocalCluster) -> Iterator[Client]:
    with Client(own_cluster) as client:
        yield client


@pytest.mark.cluster
@pytest.mark.parametrize(
    "size", [(1, 1), (2, 1), (1, 2)], ids=lambda size: f"{size[0]}x{size[1]}"
)
def test_a_cluster_finds_the_same(
    clusters: Callable[..., LocalCluster],
    client_of: Callable[..., Client],
    size: tuple[int, int],
) -> None:
    before = set(clusters(*size).scheduler.tasks)
    grid = {**GRID, "batch_size": [20, 25]}
    ours, theirs = pair(model(), grid, return_train_score=True)
    theirs.fit(*rows())
    client_of(*size)
    search = check(ours, theirs, *rows())
    assert search.n_batched_fits_ == 48
    del search, ours
    assert forgets_all_tasks(clusters(*size), but=before)


@pytest.mark.cluster
def test_a_task_has_the_callers_settings_of_scikit_learn(client: Client) -> None:
    X, y = rows()
    frame = pd.DataFrame(X, columns=list("abcde"))
    named = ColumnTransformer([("a", "passthrough", ["a", "b"])])
    pipeline = make_pipeline(StandardScaler(), named, model())
    grid = {"distributedmlpclassifier__alpha": [1e-4, 1.0]}
    with sklearn.config_context(transform_output="pandas"):
        check(*pair(pipeline, grid), frame, y)
    with sklearn.config_context(enable_metadata_routing=True):
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        weighted = model().set_fit_request(sample_weight=True)
        weighted = weighted.set_score_request(sample_weight=True)
        weights = np.random.RandomState(0).uniform(0.5, 2, len(X))
        ours, theirs = pair(make_pipeline(scaler, weighted), grid, refit=False)
        check(ours, theirs, X, y, sample_weight=weights)


class Odd(Exception):
    """It cannot be pickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)


def raises_odd(X: Any) -> Any:
    raise Odd(1, 2)


@pytest.mark.cluster
def test_errors_reach_the_caller(client_of: Callable[..., Client]) -> None:
    pipeline = make_pipeline(FunctionTransformer(raises_odd), model())
    ours, _ = pair(pipeline, {"distributedmlpclassifier__alpha": [1]}, error_score="raise")
    with pytest.raises(Odd):
        ours.fit(*rows())
    client_of(2)
    with pytest.raises(RuntimeError, match="Odd: 1"):
        ours.fit(*rows())


@pytest.mark.cluster
def test_a_search_without_its_cluster_says_so(damaged: Client) -> None:
    X, y = rows()

    endless = model(max_iter=10**6, n_iter_no_change=10**6)
    ours, _ = pair(endless, {"alpha": [1e-4, 1.0]})
    timer = threading.Timer(1.0, damaged.cluster.close)
    timer.start()
    with pytest.raises((ConnectionError, RuntimeError), match=r"Make a new Client|Start some"):
        ours.fit(X, y)
    timer.join()


@pytest.mark.cluster
def test_a_scheduler_that_goes_while_it_is_asked_is_told_as_gone(
    client_of: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(2)

    place = OnCluster(client)

    def gone() -> dict[str, int]:
        raise CommClosedError("Stream is closed")

    monkeypatch.setattr(client, "nthreads", gone)
    with pytest.raises(ConnectionError, match=r"lost its scheduler.*Make a new Client"):
        place.n_at_once()


@pytest.mark.cluster
def test_a_search_runs_in_a_task(client_of: Callable[..., Client]) -> None:
    """On the one thread that its own tasks then take."""

    def found() -> float:
        score: float = pair(model(), GRID)[0].fit(*rows()).best_score_
        return score

    future = client_of(1, 1).submit(found, pure=False)
    assert future.result(60) == found()


@pytest.mark.cluster
def test_a_worker_that_is_lost_costs_nothing_but_time(damaged: Client, tmp_path: Any) -> None:
    X, y = rows()
    mark = tmp_path / "killed"

    def scored(estimator: Any, X: Any, y: Any) -> float:
        if estimator.alpha == 1.0 and not mark.exists():
            mark.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        score: float = estimator.score(X, y)
        return score

    ours, theirs = pair(model(), GRID)
    theirs.fit(X, y)
    ours.set_params(scoring=scored, refit=False).fit(X, y)
    assert mark.exists()
    name = "mean_test_score"
    assert_array_equal(ours.cv_results_[name], theirs.cv_results_[name])


def test_few_rows_travel_in_each_task_and_many_in_tasks_of_their_own() -> None:
    X, labels = np.zeros((1000, 100)), np.zeros(1000)
    assert can_travel_along(6, None, X, labels)
    assert not can_travel_along(11, None, X, labels)
    assert not can_travel_along(6, np.zeros(100_000), X, labels)
    assert not can_travel_along(1, None, X.tolist(), labels)
    assert not can_travel_along(1, None, X, pd.Series(labels))
    assert not can_travel_along(1, None, X, labels.astype(object))
    assert not can_travel_along(1, threading.Lock(), X, labels)


@pytest.mark.cluster
def test_a_wait_that_looked_up_in_between_holds_no_task_when_it_ends(
    clusters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = clusters(1)
    before = set(cluster.scheduler.tasks)
    monkeypatch.setattr(places, "_LOOK_SECONDS", 0.1)
    looks: list[None] = []
    look = OnCluster._look

    def noted(place: OnCluster, alone_since: float | None) -> float | None:
        looks.append(None)
        return look(place, alone_since)

    monkeypatch.setattr(OnCluster, "_look", noted)

    def waited_for(client: Client) -> None:
        place = OnCluster(client)
        task = place.submit(time.sleep, 0.5)
        assert place.first_done([task]) is task

    gc.disable()  # a busy process collects cycles at any time, and an idle one never
    try:
        with Client(cluster) as client:
            waited_for(client)
            assert forgets_all_tasks(cluster, before)
    finally:
        gc.enable()
    assert looks


def test_splits_of_the_same_rows_keep_their_own_outcomes() -> None:
    """How much does the seed matter? Each fit of such a search has numbers of its own."""
    X, y = rows()
    train, test = np.arange(20), np.arange(20, 30)
    n_calls = 0

    def counted(model: Any, X: Any, y: Any) -> float:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 3:
            raise ValueError("this once")
        return float(n_calls)

    search = BatchedGridSearchCV(
        DistributedMLPClassifier((2,), max_iter=2),
        {"alpha": [0.1, 1.0]},
        cv=[(train, test), (train, test), (train, test[:5])],
        scoring=counted,
        return_train_score=True,
        refit=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one has failed, and none has converged
        results = search.fit(X, y).cv_results_
    scores = [
        score
        for k, side in product(range(3), ("test", "train"))
        for score in results[f"split{k}_{side}_score"].tolist()
    ]
    assert sorted(score for score in scores if score == score) == [1, 2, *range(4, 13)]


@pytest.mark.cluster
@pytest.mark.parametrize("n_workers", [0, 1])
def test_no_splits_are_an_error_of_scikit_learns(
    client_of: Callable[..., Client], n_workers: int
) -> None:
    if n_workers:
        client_of(n_workers)
    for kind in (BatchedGridSearchCV, GridSearchCV):
        search = kind(DistributedMLPClassifier((2,)), {"alpha": [1.0]}, cv=[])
        with pytest.raises(ValueError, match="No fits were performed"):
            search.fit(*rows())


@pytest.mark.cluster
def test_many_rows_reach_the_cluster_in_pieces(
    client_of: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    client_of(2)
    monkeypatch.setattr(places, "_PIECE_BYTES", 1000)
    submitted: list[Any] = []
    submit = OnCluster.submit

    def noted(place: OnCluster, function: Callable[..., Any], *arguments: Any) -> Any:
        submitted.append(function)
        return submit(place, function, *arguments)

    monkeypatch.setattr(OnCluster, "submit", noted)
    check(*pair(model(), GRID), *rows())
    # The request, three splits, and 101 rows of 40 bytes, and their labels, 25 to a piece.
    assert submitted.count(as_is) == 1 + 3 + 5 + 2


def test_tasks_are_even_and_stacks_as_large_as_they_can_be() -> None:
    def sizes(n_at_once: int, prefix: str | None = "net__") -> list[int]:
        grid = [{"net__alpha": a} for a in range(24)]
        return [len(job.candidates) for job in jobs_of(grid, 3, prefix, n_at_once)]

    assert sizes(1) == [24] * 3
    assert sizes(2) == [12] * 6
    assert sizes(100) == [1] * 72
    assert sizes(2, "") == sizes(2, None) == [12] * 6
    mixed = [{"alpha": a, "hidden_layer_sizes": (h,)} for a in range(5) for h in (3, 4)]
    assert len(jobs_of(mixed, 3, "", 1)) == 3
    for job in jobs_of(mixed, 3, "", 2):  # those that are trained together are side by side
        sizes_in_turn = [params["hidden_layer_sizes"] for _, _, params in job.candidates]
        assert sizes_in_turn == sorted(sizes_in_turn)
    one_each = [{"class_weight": {0: w}} for w in range(300)]
    assert len(jobs_of(one_each, 5, None, 2)) == 10
    steps = [{"scale__with_mean": m, "net__tol": t} for t in (0, 1) for m in (True, False)]
    [job] = jobs_of(steps, 1, "net__", 1)
    assert [number for number, _, _ in job.candidates] == [0, 2, 1, 3]
    assert [key for _, key, _ in job.candidates] == [0, 0, 1, 1]


def test_nothing_is_compiled_for_a_stack_but_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack computes with the graph of one model."""
    model().fit(*rows())
    before = list(compilations())
    sizes = []
    trained = fits_together.train_together
    monkeypatch.setattr(
        fits_together,
        "train_together",
        lambda model, members: (sizes.append(len(members)), trained(model, members)),
    )
    pair(model(), GRID)[0].fit(*rows())
    assert sizes == [8, 8, 8]
    assert list(compilations()) == before
