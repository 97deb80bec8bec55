"""Clusters that grow and shrink while a fit runs."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import dask.array as da
import pytest
from cases import Case, data, expected
from distributed import Client, LocalCluster
from numpy.testing import assert_allclose

from skdtheano.runtime.rounds import ClusterRuntime

pytestmark = [
    pytest.mark.cluster,
    # The engine has no part in it: one lane runs them.
    pytest.mark.table,
    # A few epochs are not meant to converge.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

CASE = Case("adam", "tanh", "multiclass", weighted=False, early_stopping=False)
N_BLOCKS = 8


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as one:
        yield one


def fit() -> Any:
    X, y = data(CASE.task)
    rows = -(-len(X) // N_BLOCKS)
    return CASE.ours().fit(
        da.from_array(X, chunks=(rows, X.shape[1])), da.from_array(y, chunks=rows)
    )


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch, an_epoch_a_round: None) -> "Places":
    return Places(monkeypatch)


class Places:
    """Which worker has which block in each epoch; calls something before some epochs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before: dict[int, Callable[[], Any]] = {}
        self.seen: dict[int, list[str]] = {}
        run_epochs, run_round = ClusterRuntime.run_epochs, ClusterRuntime._run_round

        def called_before(runtime: ClusterRuntime, epochs: Any, course: Any) -> list[float]:
            self.before.get(course.settings().epoch, lambda: None)()
            return run_epochs(runtime, epochs, course)

        def seen(runtime: ClusterRuntime, epochs: Any, course: Any) -> list[float]:
            shares = runtime._shares
            owners = [shares.workers[rank] for rank in shares.places.owners]
            self.seen[course.settings().epoch] = owners
            return run_round(runtime, epochs, course)

        monkeypatch.setattr(ClusterRuntime, "run_epochs", called_before)
        monkeypatch.setattr(ClusterRuntime, "_run_round", seen)

    def moved(self, epoch: int) -> int:
        """Blocks that were elsewhere in the epoch before."""
        before, after = self.seen[epoch - 1], self.seen[epoch]
        return sum(a != b for a, b in zip(before, after, strict=True))


def test_workers_that_join_have_their_share_from_the_next_epoch_on(
    cluster: LocalCluster, places: Places
) -> None:
    with Client(cluster) as client:

        def join(n_workers: int) -> None:
            cluster.scale(n_workers)
            client.wait_for_workers(n_workers, timeout=60)

        places.before = {3: lambda: join(2), 5: lambda: join(4)}
        ours = fit()
    assert [len(set(places.seen[epoch])) for epoch in range(1, 7)] == [1, 1, 2, 2, 4, 4]
    for epoch in (3, 5):
        shares = Counter(places.seen[epoch])
        assert set(shares.values()) == {N_BLOCKS // len(shares)}
        assert places.moved(epoch) == N_BLOCKS // 2  # what the new ones are to have
        assert places.moved(epoch + 1) == 0
    assert_allclose(ours.loss_curve_, expected(CASE).loss_curve_, rtol=1e-9)


def test_blocks_of_a_worker_that_is_retired_go_to_the_others(
    cluster: LocalCluster, places: Places
) -> None:
    cluster.scale(3)
    with Client(cluster) as client:
        client.wait_for_workers(3, timeout=60)
        places.before = {3: lambda: client.retire_workers([places.seen[2][0]])}
        ours = fit()
    gone = places.seen[2][0]
    assert gone not in places.seen[3]
    assert places.moved(3) == places.seen[2].count(gone)
    assert_allclose(ours.loss_curve_, expected(CASE).loss_curve_, rtol=1e-9)


def test_an_adaptive_cluster_starts_its_workers_for_a_fit() -> None:
    with (
        LocalCluster(
            n_workers=0, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster),
    ):
        cluster.adapt(minimum=0, maximum=2, interval="100 ms")
        ours = fit()
    assert_allclose(ours.loss_curve_, expected(CASE).loss_curve_, rtol=1e-9)
