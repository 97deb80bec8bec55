"""Successive halving and Hyperband: who trains on, and the searches that ask."""

import os
import pickle
import signal
from collections.abc import Callable
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import loguniform
from shared_clusters import forgets_all_tasks
from sklearn.base import clone
from sklearn.datasets import load_iris, make_regression
from sklearn.exceptions import FitFailedWarning, NotFittedError
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import ParameterSampler, train_test_split
from sklearn.neural_network import MLPClassifier

from skdtheano import DistributedMLPClassifier, DistributedMLPRegressor
from skdtheano.model_selection import HyperbandSearchCV, SuccessiveHalvingSearchCV
from skdtheano.model_selection.calls import calls_by_block
from skdtheano.model_selection.halving import (
    Bracket,
    Rung,
    best_of,
    halving_rungs,
    hyperband_brackets,
    n_calls_of,
)

RATES = {"learning_rate_init": loguniform(1e-4, 1), "alpha": [1e-5, 1e-3, 1e-1]}


def iris() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_iris(return_X_y=True)
    return X, y


def hyperband(estimator: Any = None, **changed: Any) -> HyperbandSearchCV:
    given = {"parameters": RATES, "max_iter": 9, "random_state": 0, **changed}
    return HyperbandSearchCV(estimator or DistributedMLPClassifier((5,)), **given)


# Decisions.


def test_the_brackets_are_those_of_the_papers_table() -> None:
    """Table 1 of Li et al.: R = 81, eta = 3, models and calls of each rung."""
    table = {
        4: [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
        3: [(34, 3), (11, 9), (3, 27), (1, 81)],  # 27, 9, 3, 1 there; ceil(5/4 27) is 34
        2: [(15, 9), (5, 27), (1, 81)],  # 9 there
        1: [(8, 27), (2, 81)],  # 6 there
        0: [(5, 81)],
    }
    brackets = hyperband_brackets(81, 3)
    assert {
        s: [(rung.n_models, rung.n_calls) for rung in rungs] for s, rungs in brackets.items()
    } == table


@pytest.mark.parametrize("max_iter", [1, 2, 9, 27, 81, 100])
def test_calls_are_as_many_as_dask_ml_says(max_iter: int) -> None:
    from dask_ml.model_selection import HyperbandSearchCV as Theirs

    theirs = Theirs(MLPClassifier(), RATES, max_iter=max_iter).metadata
    ours = hyperband(max_iter=max_iter).metadata
    assert ours["partial_fit_calls"] == theirs["partial_fit_calls"]
    assert ours["n_models"] == theirs["n_models"]


def test_a_power_of_the_aggressiveness_has_all_its_brackets() -> None:
    """log(243, 3) is 4.999... in floating point."""
    assert sorted(hyperband_brackets(243, 3)) == [0, 1, 2, 3, 4, 5]


def test_halving_ends_with_one_model_or_at_the_most_calls() -> None:
    assert halving_rungs(9, 2, 3, None) == [Rung(9, 2), Rung(3, 6), Rung(1, 18)]
    assert halving_rungs(9, 2, 3, 5) == [Rung(9, 2), Rung(3, 5)]
    assert n_calls_of(halving_rungs(9, 2, 3, None)) == 9 * 2 + 3 * 4 + 1 * 12


def test_ties_go_to_the_first_and_nan_loses() -> None:
    assert best_of({0: np.nan, 1: 0.5, 2: 0.5, 3: -1.0, 4: 0.9}, 4) == [4, 1, 2, 3]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_bracket_makes_the_same_calls_in_whatever_order_it_hears(
    data: st.DataObject,
) -> None:
    n = data.draw(st.integers(1, 12))
    rungs = halving_rungs(n, data.draw(st.integers(1, 3)), 3, None)
    scores = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))

    def calls(choose: Callable[[int], int]) -> dict[int, int]:
        bracket, made, done = Bracket(rungs, n), [], dict.fromkeys(range(n), 0)
        waiting = list(bracket.begin().items())
        while waiting:
            model, n_calls = waiting.pop(choose(len(waiting)))
            done[model] += n_calls
            made.append(n_calls)
            waiting += bracket.take(model, done[model], scores[model]).items()
        assert bracket.is_over
        assert sum(made) == n_calls_of(rungs)
        best = best_of(dict(enumerate(scores)), rungs[-1].n_models)
        assert sorted(bracket.retained) == sorted(best)
        return done

    first = calls(lambda n: 0)
    assert first == calls(lambda n: data.draw(st.integers(0, n - 1)))


def test_a_model_that_stays_as_it_is_trains_no_further() -> None:
    bracket = Bracket([Rung(2, 30)], 2, patience=6, tol=0.01)
    waiting, done = dict(bracket.begin()), {0: 0, 1: 0}
    while waiting:
        model, n_calls = waiting.popitem()
        done[model] += n_calls
        score = 0.5 if model == 0 else done[model] / 100
        waiting |= bracket.take(model, done[model], score)
    assert done == {0: 8, 1: 30}  # 2 calls, and 6 in which it did not rise
    assert bracket.is_over


def test_calls_in_a_row_on_a_block_are_one_task() -> None:
    assert calls_by_block([1, 0, 0, 1, 1], 1, 4) == [(0, 2), (1, 2)]


# Searches in this process.


def by_hand(search: HyperbandSearchCV, X: np.ndarray, y: np.ndarray) -> dict[str, list[float]]:
    """The scores that every candidate of a search has to have, by scikit-learn's MLP."""
    seeds = np.random.RandomState(search.random_state).randint(2**31 - 1, size=3)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=seeds[0])
    found = {}
    for s, rungs in hyperband_brackets(search.max_iter, search.aggressiveness).items():
        rng = np.random.RandomState(int(seeds[1]) + s)
        sampled = list(
            ParameterSampler(search.parameters, rungs[0].n_models, random_state=rng)
        )
        models = {}
        for i, params in enumerate(sampled):
            models[i] = MLPClassifier(
                search.estimator.hidden_layer_sizes,
                random_state=rng.randint(2**31 - 1),
                **params,
            )
        scores: dict[int, list[float]] = {i: [] for i in models}
        alive, done = list(models), 0
        for k, rung in enumerate(rungs):
            if k:
                alive = sorted(alive, key=lambda i: (-scores[i][-1], i))[: rung.n_models]
            for i in alive:
                for _ in range(rung.n_calls - done):
                    models[i].partial_fit(X, y, classes=np.unique(y))
                scores[i].append(models[i].score(X_test, y_test))
            done = rung.n_calls
        found |= {f"bracket={s}-{i}": values for i, values in scores.items()}
    return found


@pytest.mark.parity
def test_hyperband_gives_what_a_loop_over_scikit_learns_mlp_gives() -> None:
    X, y = iris()
    search = hyperband().fit(X, y)
    expected = by_hand(search, X, y)
    assert set(expected) == set(search.model_history_)
    for model_id, scores in expected.items():
        found = [record["score"] for record in search.model_history_[model_id]]
        assert_allclose(found, scores, rtol=1e-7)
    assert search.metadata_["partial_fit_calls"] == search.metadata["partial_fit_calls"] == 69
    last = [scores[-1] for name, scores in expected.items() if len(scores) == int(name[8]) + 1]
    assert search.best_score_ == max(last)
    best = search.model_history_[search.cv_results_["model_id"][search.best_index_]]
    assert best[-1]["score"] == search.best_score_
    assert best[-1]["params"] == search.best_params_
    assert best[-1]["partial_fit_calls"] == 9
    assert search.best_estimator_.t_ == 9 * 120  # rows of 9 epochs


def test_the_attributes_are_dask_mls() -> None:
    search = hyperband(max_iter=3).fit(*iris())
    n = len(search.cv_results_["model_id"])
    assert {name: len(values) for name, values in search.cv_results_.items()} == dict.fromkeys(
        (
            "model_id", "params", "param_alpha", "param_learning_rate_init", "test_score",
            "rank_test_score", "partial_fit_calls", "mean_partial_fit_time",
            "std_partial_fit_time", "mean_score_time", "std_score_time", "bracket",
        ),
        n,
    )  # fmt: skip
    assert search.cv_results_["rank_test_score"].min() == 1
    times = [record["elapsed_wall_time"] for record in search.history_]
    assert times == sorted(times)
    assert search.n_splits_ == 1
    assert not search.multimetric_
    assert_array_equal(search.classes_, [0, 1, 2])
    assert search.n_features_in_ == 4


def test_a_seed_decides_all() -> None:
    X, y = iris()
    first, again = hyperband().fit(X, y), hyperband().fit(X, y)
    assert_array_equal(first.cv_results_["test_score"], again.cv_results_["test_score"])
    for one, other in zip(
        first.best_estimator_.coefs_, again.best_estimator_.coefs_, strict=True
    ):
        assert_array_equal(one, other)
    other = hyperband(random_state=1).fit(X, y)
    assert list(other.cv_results_["params"]) != list(first.cv_results_["params"])


def test_any_estimator_with_partial_fit_is_searched() -> None:
    search = SuccessiveHalvingSearchCV(
        SGDClassifier(), {"alpha": loguniform(1e-5, 1)}, n_initial_parameters=9,
        n_initial_iter=2, random_state=0, scoring="balanced_accuracy",
    )  # fmt: skip
    X, y = iris()
    names = np.array(["a", "b", "c"])[y]
    search.fit(X, names)
    assert search.metadata_ == search.metadata == {
        "partial_fit_calls": 42, "n_models": 9, "max_iter": 18,
    }  # fmt: skip
    assert search.score(X, names) > 0.8
    assert search.decision_function(X).shape == (150, 3)
    with pytest.raises(AttributeError, match="predict_proba"):
        search.predict_proba(X)


def test_a_regressor_of_a_grid_that_is_smaller_than_the_search() -> None:
    X, y = make_regression(120, 4, noise=1.0, random_state=0)
    rates = {"learning_rate_init": [1e-4, 1e-2, 1e-1]}
    search = SuccessiveHalvingSearchCV(
        DistributedMLPRegressor(hidden_layer_sizes=(5,)), rates,
        n_initial_parameters=20, n_initial_iter=3, random_state=0,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="smaller than n_iter=20"):
        search.fit(X, y)
    assert search.metadata_["n_models"] == 3
    assert search.best_params_ == {"learning_rate_init": 1e-1}


def test_a_candidate_that_fails_scores_nan_and_the_others_go_on() -> None:
    rates = {"learning_rate_init": [1e-2, -1.0, 1e-3]}
    search = SuccessiveHalvingSearchCV(
        DistributedMLPClassifier((5,)), rates, n_initial_parameters=3, n_initial_iter=1,
        random_state=0,
    )  # fmt: skip
    with pytest.warns(FitFailedWarning, match="1 of 3 candidates failed.*learning_rate_init"):
        search.fit(*iris())
    results = search.cv_results_
    bad = [params["learning_rate_init"] == -1.0 for params in results["params"]]
    assert_array_equal(np.isnan(results["test_score"]), bad)
    assert results["rank_test_score"][bad] == [3]
    assert search.best_params_["learning_rate_init"] > 0


def test_a_search_whose_candidates_all_fail_says_why() -> None:
    search = hyperband(parameters={"learning_rate_init": [-1.0]}, max_iter=2)
    with pytest.raises(ValueError, match=r"None of the 1 candidates .*'learning_rate_init'"):
        search.fit(*iris())


def test_ctrl_c_keeps_what_was_scored(ctrl_c: Callable[[], None]) -> None:
    scored = []

    def scorer(model: Any, X: Any, y: Any) -> float:
        scored.append(model.t_)
        if len(scored) == 14:
            ctrl_c()
        return float(model.score(X, y))

    search = hyperband(scoring=scorer)
    with pytest.warns(UserWarning, match="Search interrupted by user"):
        search.fit(*iris())
    assert 0 < len(search.history_) <= 14
    best = search.model_history_[search.cv_results_["model_id"][search.best_index_]]
    assert search.best_estimator_.t_ == 120 * best[-1]["partial_fit_calls"]


@pytest.mark.parametrize(
    "search, message",
    [
        (hyperband(max_iter=0), "'max_iter' parameter of HyperbandSearchCV must be"),
        (hyperband(aggressiveness=1), "'aggressiveness' parameter .* must be"),
        (hyperband(test_size=1.5), "'test_size' parameter .* must be"),
        (hyperband(patience=0), "'patience' parameter .* must be"),
        (hyperband(parameters=3), "'parameters' parameter .* must be"),
        (
            SuccessiveHalvingSearchCV(MLPClassifier(), RATES),
            "'n_initial_iter' parameter .* must be",
        ),
    ],
)
def test_a_wrong_parameter_is_named(search: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search.fit(*iris())


def test_wrong_data_is_named() -> None:
    X, y = iris()
    with pytest.raises(ValueError, match="X has 150 rows and y has 100"):
        hyperband().fit(da.from_array(X, (50, 4)), da.from_array(y[:100], 50))
    with pytest.raises(TypeError, match="y is a ndarray, and the other of X and y a dask"):
        hyperband().fit(da.from_array(X, (50, 4)), y)
    with pytest.raises(NotFittedError, match="call fit first"):
        hyperband().score(X, y)


def test_a_search_is_cloned_and_pickled() -> None:
    X, y = iris()
    search = hyperband(max_iter=3)
    assert clone(search).get_params()["estimator__hidden_layer_sizes"] == (5,)
    search.fit(X, y)
    loaded = pickle.loads(pickle.dumps(search))
    assert_array_equal(loaded.predict(X), search.predict(X))


def test_lines_tell_of_the_rungs(capsys: pytest.CaptureFixture[str]) -> None:
    hyperband(max_iter=3, verbose=True, prefix="iris: ").fit(*iris())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3  # two rungs, and one
    assert lines[0].startswith("iris: Bracket 1: best score 0.")
    assert [line.endswith("done.") for line in lines].count(True) == 2


# On clusters.


def scores_of(search: Any) -> dict[str, list[float]]:
    return {
        name: [record["score"] for record in history]
        for name, history in search.model_history_.items()
    }


@pytest.mark.cluster
@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_cluster_finds_what_this_process_finds(
    clusters: Callable[[int], LocalCluster],
    client_of: Callable[[int], Client],
    n_workers: int,
) -> None:
    X, y = iris()
    expected = scores_of(hyperband().fit(X, y))
    client_of(n_workers)
    before = set(clusters(n_workers).scheduler.tasks)
    search = hyperband().fit(X, y)
    found = scores_of(search)
    assert set(found) == set(expected)
    for name, scores in expected.items():
        assert_allclose(found[name], scores, rtol=1e-7)
    assert search.predict(X).shape == (150,)
    assert forgets_all_tasks(clusters(n_workers), but=before)


@pytest.mark.cluster
@pytest.mark.parametrize("kind", ["array", "unknown chunks", "frame"])
def test_dask_collections_are_searched_where_they_lie(client: Client, kind: str) -> None:
    X, y = iris()
    order = np.random.RandomState(0).permutation(150)
    X, y = X[order], y[order]
    if kind == "frame":
        frame = dd.from_pandas(pd.DataFrame(X).assign(y=y), npartitions=3)
        given: Any = frame[[0, 1, 2, 3]], frame["y"]
    else:
        given = da.from_array(X, ((50, 50, 50), 2)), da.from_array(y, 75)
        if kind == "unknown chunks":
            given = given[0].rechunk((50, 4))[y >= 0], given[1][y >= 0]
    search = hyperband().fit(*given)
    assert search.metadata_["partial_fit_calls"] == 69
    assert search.best_score_ > 0.5
    # Each call is an epoch of a block of at most 50 rows.
    assert search.best_estimator_.t_ <= 9 * 50
    lazily = search.predict(given[0])
    assert isinstance(lazily, da.Array)
    assert_array_equal(lazily.compute(), search.predict(X))
    theirs = hyperband(MLPClassifier((5,))).fit(*given)
    assert_allclose(theirs.best_score_, search.best_score_, rtol=1e-7)
    assert_array_equal(theirs.predict(given[0]).compute(), search.predict(X))


@pytest.mark.cluster
def test_a_worker_killed_in_the_middle_changes_nothing(own_cluster: LocalCluster) -> None:
    X, y = iris()
    expected = scores_of(hyperband(max_iter=27).fit(X, y))
    with Client(own_cluster) as client:
        pids = list(client.run(os.getpid).values())
        said: list[str] = []

        def say(text: str) -> None:
            said.append(text)
            if len(said) == 1:  # the first rung has ended
                os.kill(pids[0], signal.SIGKILL)

        search = hyperband(max_iter=27)
        search._say = say  # type: ignore[method-assign]
        search.fit(X, y)
        assert list(client.run(os.getpid).values()) != pids
    assert len(said) == 10  # every rung of 4 brackets, told once
    found = scores_of(search)
    for name, scores in expected.items():
        assert_allclose(found[name], scores, rtol=1e-7)


@pytest.mark.cluster
def test_a_search_inside_a_task_ends(client_of: Callable[[int], Client]) -> None:
    X, y = iris()
    task = client_of(1).submit(lambda: scores_of(hyperband(max_iter=3).fit(X, y)), pure=False)
    expected = scores_of(hyperband(max_iter=3).fit(X, y))
    found = task.result(timeout=60)
    for name, scores in expected.items():
        assert_allclose(found[name], scores, rtol=1e-7)
