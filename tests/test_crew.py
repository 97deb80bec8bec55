"""How many workers take part in a fit."""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster
from numpy.testing import assert_allclose

from skdtheano import DistributedMLPClassifier, DistributedMLPRegressor
from skdtheano.graphs.network import Network
from skdtheano.runtime import crew
from skdtheano.runtime.cluster import ClusterSite
from skdtheano.runtime.crew import asked_for, best_of
from skdtheano.runtime.model import Model
from skdtheano.runtime.parameters import Layout
from skdtheano.runtime.program import ProgramSpec
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


@pytest.mark.parametrize(
    "least, limit, sizes",
    [
        (1, 0, (1, 2, 4, 5)),  # no limit
        (2, 2**40, (2, 4, 5)),  # the rows need two
        (
            1,
            4 * 8 * 100 * (2 * 21 + 2 * 30),
            (2, 4, 5),
        ),  # half of the batch fits into a quarter of it
        (1, 1, (5,)),
    ],
)
def test_a_trial_takes_no_more_memory_than_there_is(
    least: int, limit: int, sizes: tuple[int, ...]
) -> None:
    workers = list("abcde")
    site = SimpleNamespace(memory_limits=lambda: dict.fromkeys(workers, limit))
    network = Network(2, "relu", "identity", "float64", "float64")
    of = Model(ProgramSpec(network, "squared_error", "adam", "numpy"), Layout((20, 9, 1)))
    trial = crew.Trial(of, 200, None)
    assert crew._sizes(site, trial, workers, least) == sizes


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

    def test_a_crew_stays_while_its_members_live(
        self, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And how many it has is asked when there may be more to gain, or too few are left."""
        site = ClusterSite(client)
        asked: list[int | None] = []

        def crew(workers: str, answer: int | None = None) -> list[str]:
            names = [f"tcp://{letter}:1" for letter in workers]
            monkeypatch.setattr(site, "available_workers", lambda: names)
            site.crew = lambda: asked.append(answer) or answer
            return [member[6] for member in site.crew_now()]

        assert crew("abc", 2) == ["a", "b"]
        assert crew("abc", 9) == crew("cba", 9) == ["a", "b"]  # the same ones are there
        assert crew("abcde", 9) == ["a", "b"]  # others joined
        assert crew("bcde", 9) == ["b", "c"]  # one was lost, and another takes its place
        assert asked == [2]
        assert crew("bcdefg", 3) == ["b", "c", "d"]  # twice as many as when it was asked
        assert crew("dh", None) == ["d", "h"]  # too few are left
        assert asked == [2, 3, None]
        assert crew("dhi", None) == ["d", "h", "i"]  # where all take part, more do
        assert asked == [2, 3, None, None]

    @pytest.mark.parametrize(
        "error", [crew.RoundFailed("lost worker tcp://nowhere:1"), MemoryError("no room")]
    )
    def test_a_fit_goes_on_where_a_trial_fails(
        self, error: Exception, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(site: Any, trial: Any, workers: Any) -> float:
            raise error

        monkeypatch.setattr(crew, "_timed", failing)
        monkeypatch.setattr(crew, "_known", type(crew._known)())
        with dask.config.set({"skdtheano.workers": "auto"}):
            [workers] = who_took_part(client, monkeypatch)
        assert len(workers) == 2

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_local_steps_are_those_of_a_loop_in_numpy(
        self, client: Client, momentum: float
    ) -> None:
        """Gradient descent of two workers on their halves, averaged every second step.

        Of five minibatches the first two are the first worker's, both have half of the
        third, and the last average of an epoch follows a single step.
        """
        rng = np.random.RandomState(0)
        X, w = rng.standard_normal((40, 3)), np.array([1.0, -2.0, 0.5])
        y = X @ w + 0.1 * rng.standard_normal(40)
        alpha, rate = 0.1, 0.05
        ours = DistributedMLPRegressor(
            hidden_layer_sizes=(),
            solver="sgd",
            momentum=0.0,
            nesterovs_momentum=False,
            learning_rate_init=rate,
            alpha=alpha,
            batch_size=8,
            shuffle=False,
            max_iter=2,
            n_iter_no_change=9,
            random_state=0,
            sync_every=2,
            outer_momentum=momentum,
            client=client,
        ).fit(da.from_array(X, (20, -1)), da.from_array(y, 20))

        start = DistributedMLPRegressor(
            hidden_layer_sizes=(), random_state=0, max_iter=1, solver="sgd"
        )
        start.set_params(learning_rate_init=1e-300, alpha=0.0)
        start.fit(X, y)
        theta = np.append(start.coefs_[0].ravel(), start.intercepts_[0])
        with_ones = np.column_stack([X, np.ones(40)])
        owner = np.repeat([0, 1], 20)
        curve = []
        for _ in range(2):
            velocity, total = 0.0, 0.0
            for period in ([0, 1], [2, 3], [4]):
                own, weights, loss = [theta.copy(), theta.copy()], [0, 0], 0.0
                for number in period:
                    for rank in (0, 1):
                        rows = np.arange(8 * number, 8 * number + 8)
                        rows = rows[owner[rows] == rank]
                        if not len(rows):
                            continue
                        error = with_ones[rows] @ own[rank] - y[rows]
                        loss += 0.5 * error @ error
                        penalty = alpha / 2 * np.append(own[rank][:3], 0.0)
                        own[rank] -= rate * (with_ones[rows].T @ error + penalty) / len(rows)
                        weights[rank] += len(rows)
                loss += 0.5 * alpha * theta[:3] @ theta[:3] * len(period)
                total += loss  # mean over the period's rows, times these
                mean = np.average(own, axis=0, weights=weights)
                if momentum:
                    velocity = momentum * velocity + theta - mean
                    mean = theta - 0.7 * (theta - mean + momentum * velocity)
                theta = mean
            curve.append(total / 40)
        assert_allclose(ours.coefs_[0].ravel(), theta[:3], rtol=1e-9)
        assert_allclose(ours.intercepts_[0], theta[3:], rtol=1e-9)
        assert_allclose(ours.loss_curve_, curve, rtol=1e-9)

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
