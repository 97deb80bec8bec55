"""Many fits at once: each is its own `fit`, bit for bit, whoever trains beside it."""

import gc
import pickle
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from cases import TASKS, Case, data, table, weights
from numpy.testing import assert_array_equal

from skdtheano import DistributedMLPClassifier, DistributedMLPRegressor
from skdtheano.estimators import fits_together
from skdtheano.estimators.fits_together import Fit, Table, fit_each
from skdtheano.runtime import stack

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


def digits() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.RandomState(0)
    X = rng.standard_normal((83, 5))
    return X, np.digitize(X[:, 0] + 0.5 * X[:, 1] * X[:, 2], [-0.5, 0.5])


TABLE = Table(*digits())


def net(**given: Any) -> DistributedMLPClassifier:
    return DistributedMLPClassifier(
        **{"hidden_layer_sizes": (6,), "batch_size": 20, "max_iter": 7, "random_state": 0}
        | given
    )


def fit_all(fits: list[Fit]) -> None:
    assert {id(fit) for fit in fit_each(fits)} == {id(fit) for fit in fits}


def of_one_table(models: list[Any], *rows: Any) -> list[Fit]:
    shared = Table(*(rows or digits()))
    return [Fit(model, shared) for model in models]


def alone(fit: Fit) -> Any:
    """A model as `fit` makes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = fit.estimator.__sklearn_clone__()
        return model.fit(fit.table.X, fit.table.y, fit.table.sample_weight)


def assert_equal(found: Any, expected: Any) -> None:
    """All that a fit has learned, bit for bit."""
    ours, theirs = vars(found), vars(expected)
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        if name in ("_label_binarizer", "random_state"):
            continue
        if name == "_optimizer":
            assert_equal(ours[name], value)
        elif isinstance(value, list):
            for one, other in zip(ours[name], value, strict=True):
                assert_array_equal(one, other, err_msg=name)
        else:
            assert_array_equal(ours[name], value, err_msg=name)


def check(fits: list[Fit], n_stacked: int | None = None) -> None:
    expected = [alone(fit) for fit in fits]
    fit_all(fits)
    for fit, model in zip(fits, expected, strict=True):
        assert fit.error is None
        assert fit.seconds > 0
        assert_equal(fit.estimator, model)
    wanted = len(fits) if n_stacked is None else n_stacked
    assert sum(fit.was_stacked for fit in fits) == wanted


@pytest.mark.parametrize("task", TASKS)
def test_every_fit_of_the_table_is_its_own_fit(task: str) -> None:
    """All optimizers, activations and weights of a task in one call, each with a twin."""
    cases = [case for case in table() if case.task == task]
    X, y = data(task)
    tables = {False: Table(X, y), True: Table(X, y, weights())}

    def begun(case: Case, alpha: float) -> Fit:
        return Fit(case.ours(max_iter=4, alpha=alpha), tables[case.weighted])

    fits = [begun(case, alpha) for case in cases for alpha in (0.01, 0.1)]
    kept = [c for c in cases if c.optimizer != "lbfgs" and not c.early_stopping]
    check(fits, n_stacked=2 * len(kept))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("hidden", [(6,), (5, 4), ()])
def test_models_differ_in_numbers_and_seeds_and_rows(dtype: str, hidden: Any) -> None:
    X, y = digits()
    X = X.astype(dtype)
    tables = [Table(X[:60], y[:60]), Table(X[-60:], y[-60:])]
    numbers: list[dict[str, Any]] = [
        {"alpha": 1.0},
        {"learning_rate_init": 0.1},
        {"beta_1": 0.5, "beta_2": 0.9},
        {"epsilon": 1e-4, "random_state": 1},
        {"max_iter": 2},
        {"tol": 0.1, "n_iter_no_change": 1, "random_state": np.int64(5)},
    ]
    fits = [
        Fit(net(hidden_layer_sizes=hidden, **given), rows)
        for given in numbers
        for rows in tables
    ]
    check(fits)
    assert len({fit.estimator.n_iter_ for fit in fits}) > 1  # some leave before others


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("hidden", [(2,), (3,), (5,), (8,), (3, 1), (2, 1, 2)])
def test_a_layer_of_few_units_before_a_single_one_is_as_alone(hidden: Any, dtype: str) -> None:
    """OpenBLAS takes a vector's product by how far the rows of the matrix are apart."""
    X, y = digits()
    models = [net(hidden_layer_sizes=hidden, alpha=alpha) for alpha in (0.1, 1, 10)]
    check(of_one_table(models, X.astype(dtype), (y > 0).astype(int)))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("hidden", [(8,), (16, 1), (33,), (100, 9)])
@pytest.mark.parametrize("activation", ["relu", "identity", "tanh", "logistic"])
def test_models_that_lie_side_by_side_are_as_alone(
    monkeypatch: pytest.MonkeyPatch, hidden: Any, dtype: str, activation: str
) -> None:
    """And as they leave each other, and where the last minibatch has one row."""
    monkeypatch.setattr(stack, "_FEWEST_STEPS", 0)
    rng = np.random.RandomState(0)
    X, y = rng.standard_normal((81, 9)).astype(dtype), rng.randint(0, 3, 81)
    for n_rows in (70, 81):
        models = [
            net(hidden_layer_sizes=hidden, activation=activation, alpha=a, max_iter=m)
            for a, m in ((0.1, 4), (1, 5), (10, 5), (2, 60))
        ]
        check(of_one_table(models, X[:n_rows], y[:n_rows]))


@pytest.mark.parametrize("shuffle", [True, False, "blocks"])
def test_models_share_the_order_of_their_rows(shuffle: Any) -> None:
    check(of_one_table([net(alpha=alpha, shuffle=shuffle) for alpha in (0.1, 1, 10)]))


def test_numbers_may_be_whole_or_short() -> None:
    check(of_one_table([net(alpha=alpha, learning_rate_init=1) for alpha in (1, 2)]))
    X, y = digits()
    numbers = [np.float32(0.1), np.float16(0.3)]
    check(of_one_table([net(alpha=a) for a in numbers], X.astype(np.float32), y))


@pytest.mark.parametrize("n_classes", [2, 8, 10, 32, 40])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_minibatch_of_one_row_is_as_alone(n_classes: int, dtype: str) -> None:
    """NumPy sums ten columns of one row by pairs, and of several rows one after another."""
    rng = np.random.RandomState(0)
    y = np.arange(121) % n_classes
    X = rng.standard_normal((121, 4)).astype(dtype) + y[:, None]
    for batch_size in (1, 40, 7):  # of which 121 rows leave one over, and two
        models = [net(batch_size=batch_size, alpha=a, max_iter=3) for a in (0.1, 1.0, 10.0)]
        check(of_one_table(models, X, y))


def test_models_of_several_architectures_and_solvers_are_told_apart() -> None:
    grids = [
        {"activation": "tanh"},
        {"hidden_layer_sizes": (7,)},
        {"batch_size": 30},
        {"solver": "sgd", "learning_rate_init": 0.05},
        {"solver": "sgd", "nesterovs_momentum": False, "learning_rate": "invscaling"},
        {},
    ]
    check(of_one_table([net(alpha=a, **given) for a in (0.1, 1.0) for given in grids]))


@pytest.mark.parametrize(
    "given",
    [
        {"solver": "lbfgs"},
        {"early_stopping": True},
        {"mode": "FAST_COMPILE"},
        {"sync_every": 2},
        {"warm_start": True},
        {"random_state": np.random.RandomState(3)},
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_cannot_be_stacked_is_fitted_alone(given: dict[str, Any]) -> None:
    model = net(**given)
    before = pickle.dumps(model)
    expected = pickle.loads(before).fit(*digits())
    fits = of_one_table([net(), model, net(alpha=1)])
    fit_all(fits)
    assert [fit.was_stacked for fit in fits] == [True, False, True]
    assert_array_equal(model.coefs_[0], expected.coefs_[0])


def test_sparse_rows_are_fitted_alone() -> None:
    X, y = digits()
    check(of_one_table([net(), net(alpha=1)], scipy.sparse.csr_array(X), y), n_stacked=0)


def test_checkpoints_and_what_is_printed_are_each_fits_own(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fits = of_one_table([net(checkpoint=str(tmp_path / "fit.npz")), net(verbose=True)])
    fit_all(fits)
    assert not any(fit.was_stacked for fit in fits)
    assert (tmp_path / "fit.npz").exists()
    assert "Iteration 7, loss" in capsys.readouterr().out


def test_models_without_a_seed_are_stacked_and_differ() -> None:
    models = [net(random_state=None, learning_rate_init=0.05, max_iter=60) for _ in range(3)]
    fits = of_one_table(models)
    fit_all(fits)
    assert all(fit.was_stacked and fit.estimator.score(*digits()) > 0.6 for fit in fits)
    first, second, _ = (fit.estimator.coefs_[0] for fit in fits)
    assert not np.allclose(first, second)


def test_a_stack_is_no_larger_than_caches_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part has draws of its own, and the same ones."""
    monkeypatch.setattr(fits_together, "_STACK_BYTES", 0)
    monkeypatch.setattr(fits_together, "_FEWEST", 2)
    sizes = []
    trained = fits_together.train_together
    monkeypatch.setattr(
        fits_together,
        "train_together",
        lambda model, members: (sizes.append(len(members)), trained(model, members)),
    )
    check(of_one_table([net(alpha=10.0**k) for k in range(-3, 2)]), n_stacked=4)
    assert sizes == [2, 2, 1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "rate, batch_size",
    [(1e9, 20), (1.7e308, 83)],  # to NaN, and to both infinities in one step
)
def test_one_that_diverges_has_its_own_error_and_spoils_no_other(
    rate: float, batch_size: int
) -> None:
    X, y = digits()
    y = y.astype(float)
    kept = {"solver": "sgd", "hidden_layer_sizes": (6,), "random_state": 0}
    kept["batch_size"] = batch_size
    # Both others end by themselves: a warning would be an error here.
    kept |= {"tol": 10.0, "n_iter_no_change": 1, "shuffle": False}
    rates = [0.01, rate, 0.02]
    models = [DistributedMLPRegressor(learning_rate_init=r, **kept) for r in rates]
    fits = of_one_table(models, X, y)
    fit_all(fits)
    own = DistributedMLPRegressor(learning_rate_init=rate, **kept)
    with pytest.raises(ValueError, match="not finite") as raised:
        own.fit(X, y)
    assert [type(fit.error) for fit in fits] == [type(None), type(raised.value), type(None)]
    assert str(fits[1].error) == str(raised.value)
    assert set(vars(models[1])) == set(vars(own))
    for fit in (fits[0], fits[2]):
        assert_equal(fit.estimator, alone(fit))


def test_parameters_and_rows_that_are_wrong_are_errors_of_their_fits() -> None:
    X, y = digits()
    spoilt = X.copy()
    spoilt[3, 1] = np.nan
    zeros = np.zeros(len(X))
    fits = [
        Fit(net(), Table(X, y)),
        Fit(net(alpha=-1), Table(X, y)),
        Fit(net(hidden_layer_sizes=(0,)), Table(X, y)),
        Fit(net(), Table(spoilt, y)),
        Fit(net(), Table(X, y, zeros)),
        Fit(net(), Table(X, y[:-1])),
    ]
    fit_all(fits)
    assert fits[0].error is None
    for fit in fits[1:]:
        with pytest.raises(ValueError) as raised:
            alone(fit)
        assert str(fit.error) == str(raised.value)
        assert set(vars(fit.estimator)) == set(vars(net()))


def test_a_minibatch_without_weight_is_the_error_of_a_fit_alone() -> None:
    X, y = digits()
    weight = np.r_[np.zeros(40), np.ones(43)]
    fits = [
        Fit(net(shuffle=False), Table(X, y, weight)),
        Fit(net(shuffle=False, alpha=1), Table(X, y, weight)),
        Fit(net(), Table(X, y)),
    ]
    fit_all(fits)
    assert "sample_weight of the 20 rows of minibatch 1" in str(fits[0].error)
    assert str(fits[1].error) == str(fits[0].error)
    assert fits[2].error is None and hasattr(fits[2].estimator, "coefs_")


def test_a_fitted_model_goes_on_as_after_its_own_fit() -> None:
    [fit, other] = of_one_table([net(solver="sgd"), net(solver="sgd", alpha=1)])
    fit_all([fit, other])
    expected = alone(fit)
    for model in (fit.estimator, expected):
        model.partial_fit(*digits())
    assert_equal(fit.estimator, expected)
    assert pickle.loads(pickle.dumps(fit.estimator)).n_iter_ == expected.n_iter_


def test_a_stack_that_fails_is_fitted_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: Any, members: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(fits_together, "train_together", fails)
    check(of_one_table([net(), net(alpha=1)]), n_stacked=0)


def test_a_fitted_model_is_nobodys_but_the_callers() -> None:
    models: list[Any] = []
    fits = (Fit(net(hidden_layer_sizes=(300,), alpha=a, max_iter=1), TABLE) for a in range(24))
    alive = []
    for fit in fit_each(fits):
        models.append(weakref.ref(fit.estimator))
        del fit
        gc.collect()
        alive.append(sum(m() is not None and hasattr(m(), "coefs_") for m in models))
    assert len(models) == 24 and max(alive) <= 2


def test_whether_a_model_had_converged_is_told() -> None:
    short, long = of_one_table([net(), net(max_iter=1000, tol=0.5, n_iter_no_change=1)])
    fit_all([short, long])
    assert short.ended_at_max_iter and not long.ended_at_max_iter
