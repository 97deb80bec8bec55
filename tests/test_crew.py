"""How many workers take part in a fit."""

import logging
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster
from numpy.testing import assert_allclose

from skdtheano import DistributedMLPClassifier, DistributedMLPRegressor
from skdtheano.runtime import crew
from skdtheano.runtime.cluster import ClusterSite
from skdtheano.runtime.crew import asked_for, best_of
from skdtheano.runtime.workers import packed


@pytest.mark.parametrize(
    "times, size",
    [
        ({1: 1.0, 2: 0.5}, 2),
        ({1: 1.0, 2: 0.9}, 1),  # not worth another worker
        ({1: 1.0, 2: 1.4, 4: 3.0}, 1),
        ({1: 4.0, 2: 2.2, 4: 1.2, 7: 1.1}, 4),
    ],
)
def test_the_fewest_that_are_as_fast_as_any_take_part(
    times: dict[int, float], size: int
) -> None:
    assert best_of(times) == size


def test_workers_of_one_host_come_together_and_the_largest_host_first() -> None:
    workers = ["tcp://b:2", "tcp://a:9", "tcp://b:1", "tcp://c:5"]
    assert packed(workers) == ["tcp://b:1", "tcp://b:2", "tcp://a:9", "tcp://c:5"]


@pytest.mark.parametrize("given", ["some", 0, -1, 1.5, True, None])
def test_a_setting_that_is_no_number_of_workers_is_refused(given: Any) -> None:
    with (
        dask.config.set({"skdtheano.workers": given}),
        pytest.raises(ValueError, match=r"skdtheano\.workers=.* is no number of workers"),
    ):
        asked_for()


def table(client: Client, n: int = 400) -> tuple[da.Array, da.Array]:
    rng = np.random.RandomState(0)
    X, y = rng.random((n, 5)), rng.randint(0, 2, n)
    return client.persist([da.from_array(X, (n // 4, -1)), da.from_array(y, n // 4)])


def model(**given: Any) -> DistributedMLPClassifier:
    return DistributedMLPClassifier(
        (4,), max_iter=3, random_state=0, n_iter_no_change=9, **given
    )


def who_took_part(client: Client, monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, ...]]:
    """The workers of each round of a fit."""
    from skdtheano.runtime.rounds import ClusterRuntime

    seen = set()
    run_epochs = ClusterRuntime.run_epochs

    def watched(self: Any, *arguments: Any) -> list[float]:
        losses = run_epochs(self, *arguments)
        seen.add(tuple(self._shares.workers))
        return losses

    monkeypatch.setattr(ClusterRuntime, "run_epochs", watched)
    model(client=client).fit(*table(client))
    return seen


@pytest.fixture
def client(clusters: Callable[[int], LocalCluster]) -> Any:
    with Client(clusters(2), set_as_default=False) as client:
        yield client


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore:.*Maximum iterations")
class TestOnTwoWorkers:
    @pytest.mark.parametrize("asked, n", [("all", 2), (1, 1), (2, 2), (9, 2)])
    def test_as_many_take_part_as_the_setting_says(
        self, client: Client, monkeypatch: pytest.MonkeyPatch, asked: Any, n: int
    ) -> None:
        with dask.config.set({"skdtheano.workers": asked}):
            [workers] = who_took_part(client, monkeypatch)
        assert len(workers) == n and set(workers) <= set(client.nthreads())

    @pytest.mark.parametrize("times, n", [({1: 1.0, 2: 0.6}, 2), ({1: 1.0, 2: 2.0}, 1)])
    def test_as_many_take_part_as_were_found_to_be_faster(
        self,
        client: Client,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        times: dict[int, float],
        n: int,
    ) -> None:
        monkeypatch.setattr(crew, "_timed", lambda site, trial, workers: times[len(workers)])
        monkeypatch.setattr(crew, "_known", type(crew._known)())
        with (
            dask.config.set({"skdtheano.workers": "auto"}),
            caplog.at_level(logging.INFO, "skdtheano.runtime.crew"),
        ):
            [workers] = who_took_part(client, monkeypatch)
        assert len(workers) == n
        assert f"{n} of 2 workers take part in each step of 200 rows" in caplog.text
        assert "skdtheano.workers" in caplog.text

    def test_steps_are_timed_once_for_a_network_and_the_answer_does_not_change(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(crew, "_known", type(crew._known)())
        timed: list[int] = []
        original = crew._timed

        def counted(site: Any, trial: Any, workers: Any) -> float:
            timed.append(len(workers))
            seconds = original(site, trial, workers)
            assert 0 < seconds < 60
            return seconds

        monkeypatch.setattr(crew, "_timed", counted)
        X, y = table(client)
        with dask.config.set({"skdtheano.workers": "auto"}):
            first = model(client=client).fit(X, y)
            again = model(client=client, alpha=0.5).fit(X, y)
        assert timed == [1, 2]
        assert again.n_iter_ == 3
        here = model().fit(*client.gather(client.compute([X, y])))
        assert_allclose(first.loss_curve_, here.loss_curve_, rtol=1e-9)

    def test_how_many_is_asked_again_when_others_are_there(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site = ClusterSite(client)
        found = iter([1, None, 2])
        site.crew = lambda: next(found)
        everyone = sorted(client.nthreads())
        assert len(site.crew_now()) == len(site.crew_now()) == 1
        monkeypatch.setattr(site, "available_workers", lambda: [*everyone, "tcp://new:1"])
        assert set(site.crew_now()) == {*everyone, "tcp://new:1"}
        monkeypatch.setattr(site, "available_workers", lambda: ["tcp://new:1", *everyone])
        assert len(site.crew_now()) == 3  # the same ones
        monkeypatch.setattr(site, "available_workers", lambda: everyone)
        assert sorted(site.crew_now()) == everyone

    def test_a_fit_goes_on_where_a_trial_fails(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(site: Any, trial: Any, workers: Any) -> float:
            raise crew.RoundFailed("lost worker tcp://nowhere:1")

        monkeypatch.setattr(crew, "_timed", failing)
        monkeypatch.setattr(crew, "_known", type(crew._known)())
        with dask.config.set({"skdtheano.workers": "auto"}):
            [workers] = who_took_part(client, monkeypatch)
        assert len(workers) == 2

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_local_steps_are_those_of_a_loop_in_numpy(
        self, client: Client, momentum: float
    ) -> None:
        """Plain gradient descent on two halves of the rows, averaged every third step."""
        rng = np.random.RandomState(0)
        X, w = rng.standard_normal((40, 3)), np.array([1.0, -2.0, 0.5])
        y = X @ w + 0.1 * rng.standard_normal(40)
        ours = DistributedMLPRegressor(
            hidden_layer_sizes=(),
            solver="sgd",
            momentum=0.0,
            nesterovs_momentum=False,
            learning_rate_init=0.05,
            alpha=0.1,
            batch_size=10,
            shuffle=False,
            max_iter=2,
            n_iter_no_change=9,
            random_state=0,
            sync_every=3,
            outer_momentum=momentum,
            client=client,
        )
        # Rows in turn between two blocks, so each worker has half of every minibatch.
        order = np.argsort(np.arange(40) % 2, kind="stable")
        blocks = [X[order][:20], X[order][20:]]
        targets = [y[order][:20], y[order][20:]]
        ours.set_params(batch_size=40)  # one minibatch an epoch: both blocks, then an average
        ours.fit(da.from_array(X[order], (20, -1)), da.from_array(y[order], 20))

        start = DistributedMLPRegressor(
            hidden_layer_sizes=(), random_state=0, max_iter=1, solver="sgd"
        )
        start.set_params(learning_rate_init=1e-300, alpha=0.0)
        start.fit(X, y)
        coef, bias = start.coefs_[0].ravel(), start.intercepts_[0][0]
        for _ in range(2):
            after = []
            for rows, truth in zip(blocks, targets, strict=True):
                slope = rows @ coef + bias - truth
                g = (rows.T @ slope + 0.1 / 2 * coef) / 20
                after.append((coef - 0.05 * g, bias - 0.05 * slope.mean()))
            mean = [np.mean([a[i] for a in after], axis=0) for i in (0, 1)]
            if momentum:
                step = 0.7 * (1 + momentum)
                mean = [
                    old - step * (old - m) for old, m in zip((coef, bias), mean, strict=True)
                ]
            coef, bias = mean
        assert_allclose(ours.coefs_[0].ravel(), coef, rtol=1e-9)
        assert_allclose(ours.intercepts_[0], bias, rtol=1e-9)

    def test_local_steps_learn_as_well_as_exact_ones(self, client: Client) -> None:
        rng = np.random.RandomState(0)
        X = rng.standard_normal((800, 5))
        y = (X[:, 0] * X[:, 1] > 0).astype(int)
        tables = da.from_array(X, (100, -1)), da.from_array(y, 100)
        scores = []
        for sync_every in (1, 4):
            fitted = DistributedMLPClassifier(
                (20,),
                learning_rate_init=0.01,
                batch_size=40,
                max_iter=40,
                random_state=0,
                sync_every=sync_every,
                client=client,
            ).fit(*tables)
            scores.append(fitted.score(X, y))
            assert fitted.loss_curve_[-1] < 0.5 * fitted.loss_curve_[0]
        assert scores[1] > scores[0] - 0.03


@pytest.mark.parametrize(
    "given, message",
    [
        ({"sync_every": 2, "solver": "lbfgs"}, "sync_every=2 is for solver='adam' and 'sgd'"),
        ({"outer_momentum": 0.9}, "outer_momentum=0.9 is for averages of local steps"),
    ],
)
def test_local_steps_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistributedMLPClassifier(**given).fit(np.eye(4), [0, 1, 0, 1])


@pytest.mark.filterwarnings("ignore:.*Maximum iterations")
def test_in_one_process_local_steps_are_the_exact_ones() -> None:
    rng = np.random.RandomState(0)
    X, y = rng.random((50, 3)), rng.randint(0, 2, 50)
    exact, local = (
        DistributedMLPClassifier((3,), max_iter=3, random_state=0, sync_every=k).fit(X, y)
        for k in (1, 5)
    )
    assert exact.loss_curve_ == local.loss_curve_
