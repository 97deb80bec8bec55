"""The numbers equal scikit-learn's, in this process and on 1, 2 and 3 workers."""

import warnings
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pytest
from cases import CHUNKS, Case, covering, data, expected, places, table, weights
from distributed import Client
from numpy.testing import assert_allclose
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

from skdtheano import DistributedMLPRegressor

pytestmark = [
    pytest.mark.parity,
    # 30 epochs are not meant to converge.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

TABLE = table()
#: Both engines and the lowest versions run these; the default lane runs the whole table too.
HERE = [case for case, _ in covering(TABLE, [(0, "here")])]
COVERING = list(covering(TABLE, places()))


def assert_same_fit(ours: Any, case: Case) -> None:
    """Equal losses, scores, epochs and parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs = expected(case)
    assert ours.n_iter_ == theirs.n_iter_
    if case.optimizer == "lbfgs":
        rtol, atol = 1e-6, 1e-8
        assert_allclose(ours.loss_, theirs.loss_, rtol=rtol)
    else:
        rtol, atol = 1e-7, 1e-12
        assert ours.n_iter_ >= 30 or "adaptive" in case.optimizer
        assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=rtol)
        if case.early_stopping:
            assert_allclose(ours.validation_scores_, theirs.validation_scores_, rtol=rtol)
            assert_allclose(ours.best_validation_score_, theirs.best_validation_score_)
        else:
            assert_allclose(ours.best_loss_, theirs.best_loss_, rtol=rtol)
        assert ours.t_ == theirs.t_
    for learned in ("coefs_", "intercepts_"):
        for mine, other in zip(getattr(ours, learned), getattr(theirs, learned), strict=True):
            assert mine.dtype == other.dtype
            assert_allclose(mine, other, rtol=rtol, atol=atol)


@pytest.mark.parametrize("case", HERE, ids=str)
def test_in_process_fit_equals_scikit_learn(case: Case) -> None:
    assert_same_fit(fit_here(case), case)


@pytest.mark.table
@pytest.mark.parametrize("case", [case for case in TABLE if case not in HERE], ids=str)
def test_every_other_in_process_fit_equals_scikit_learn(case: Case) -> None:
    assert_same_fit(fit_here(case), case)


def fit_here(case: Case) -> Any:
    X, y = data(case.task)
    return case.ours().fit(X, y, sample_weight=weights() if case.weighted else None)


def fit_on_cluster(case: Case, client: Client, chunks: str) -> Any:
    X, y = data(case.task)
    lengths = CHUNKS[chunks]
    return case.ours(client=client).fit(
        da.from_array(X, chunks=(lengths, 4)),
        da.from_array(y, chunks=(lengths, *y.shape[1:])),
        sample_weight=da.from_array(weights(), chunks=25) if case.weighted else None,
    )


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("case", "place"),
    [
        # A third of them on the lowest versions.
        pytest.param(case, place, marks=[pytest.mark.engines] if i % 3 else [])
        for i, (case, place) in enumerate(COVERING)
    ],
    ids=[f"{c}-{w}-workers-{k}" for c, (w, k) in COVERING],
)
def test_cluster_fit_equals_scikit_learn(
    case: Case, place: tuple[int, str], client_of: Callable[[int], Client]
) -> None:
    n_workers, chunks = place
    assert_same_fit(fit_on_cluster(case, client_of(n_workers), chunks), case)


@pytest.mark.cluster
@pytest.mark.exhaustive
@pytest.mark.parametrize(("row", "case"), list(enumerate(TABLE)), ids=str)
def test_every_case_on_a_cluster(
    row: int, case: Case, client_of: Callable[[int], Client]
) -> None:
    """The whole table, each row at another of the nine places."""
    n_workers, chunks = places()[row % 9]
    assert_same_fit(fit_on_cluster(case, client_of(n_workers), chunks), case)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_partial_fit_goes_on_with_the_optimizer_that_it_finds(solver: str) -> None:
    """As scikit-learn's: parameters of the optimizer set later wait for the next fit."""
    X, y = data("regression")
    fitted = []
    for estimator in (MLPRegressor, DistributedMLPRegressor):
        reg = estimator(hidden_layer_sizes=(5,), solver=solver, random_state=0)
        for _ in range(3):
            reg.partial_fit(X, y)
        reg.set_params(learning_rate_init=0.5, momentum=0.1, beta_1=0.2, epsilon=1e-3)
        for _ in range(3):
            reg.partial_fit(X, y)
        fitted.append(reg)
    assert_allclose(fitted[1].coefs_[0], fitted[0].coefs_[0], rtol=1e-7)
    assert_allclose(fitted[1].loss_curve_, fitted[0].loss_curve_, rtol=1e-7)


def test_a_fit_that_fails_leaves_the_model_as_it_was() -> None:
    X, y = data("regression")
    reg = DistributedMLPRegressor(hidden_layer_sizes=(5,), max_iter=3, random_state=0).fit(
        X, y
    )
    before = dict(vars(reg))
    weight = np.ones(len(y))
    weight[:50] = 0
    reg.set_params(batch_size=10, shuffle=False, hidden_layer_sizes=(6,))
    with pytest.raises(ValueError, match="minibatch 1 of epoch 1 sums to 0"):
        reg.fit(X, y, sample_weight=weight)  # after new parameters were drawn
    for name, value in before.items():
        if name.endswith("_"):
            assert getattr(reg, name) is value, name


def test_sizes_of_layers_that_are_no_whole_numbers_are_refused() -> None:
    X, y = data("regression")
    with pytest.raises(TypeError, match=r"hidden_layer_sizes=\(2.7,\).*whole number"):
        DistributedMLPRegressor(hidden_layer_sizes=(2.7,)).fit(X, y)
