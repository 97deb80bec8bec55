"""What dask does beside training, and how far it is kept from it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from cases import data
from distributed import Client, LocalCluster, Nanny, Scheduler, get_worker
from distributed.core import Status
from tornado.ioloop import PeriodicCallback

from skdtheano import DistributedMLPClassifier
from skdtheano.model_selection import BatchedGridSearchCV
from skdtheano.model_selection import places as places_module
from skdtheano.runtime import background
from skdtheano.runtime import cluster as cluster_module
from skdtheano.runtime import local as local_module
from skdtheano.runtime import stack as stack_module
from skdtheano.runtime import tasks as tasks_module
from skdtheano.runtime.background import training_thread, waiting_for

pytestmark = [
    pytest.mark.cluster,
    # A few epochs are not meant to converge.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

#: Milliseconds from one tick to the next, and from one sample of the profiler, as of dask.
TICK, SAMPLE = 20.0, 10.0


def chunked(X: np.ndarray, y: np.ndarray) -> tuple[da.Array, da.Array]:
    return da.from_array(X, chunks=(25, X.shape[1])), da.from_array(y, chunks=25)


def test_dasks_profiler_leaves_training_threads_alone_if_not_told_otherwise(
    client: Client,
) -> None:
    X, y = data("multiclass")
    DistributedMLPClassifier((4,), max_iter=1).fit(*chunked(X, y))  # workers know of rounds

    def seen(**asked: bool) -> tuple[set[str], set[str]]:
        """Tasks that the profiler sees, in a round and after it."""
        worker = get_worker()
        with tasks_module._taken(
            tasks_module.Seat("a-round", 0, [worker.address], 60.0, False, **asked)
        ):
            inside = set(worker.active_threads.values())
        return inside, set(worker.active_threads.values())

    for asked in (False, True):
        with dask.config.set({background.SETTING: asked}):
            seat = tasks_module.Seat("a-round", 0, [], 60.0, False)
        assert seat.is_profiled == asked  # which travels to the worker
        key = f"seen-{asked}"
        inside, after = client.submit(seen, is_profiled=asked, key=key).result()
        assert (key in inside) == asked
        assert key in after  # dask takes it away itself


def test_a_fit_inside_a_task_is_left_alone_too(client: Client) -> None:
    def seen() -> list[bool]:
        """Whether the profiler sees this task at the end of each epoch, and after the fit."""
        worker = get_worker()
        found = []
        run_epoch = local_module.run_epoch

        def watched(*args: Any) -> float:
            found.append(threading.get_ident() in worker.active_threads)
            return run_epoch(*args)

        local_module.run_epoch = watched
        try:
            X, y = np.random.RandomState(0).rand(20, 2), np.arange(20) % 2
            DistributedMLPClassifier((2,), max_iter=2).fit(X, y)
        finally:
            local_module.run_epoch = run_epoch
        return [*found, threading.get_ident() in worker.active_threads]

    assert client.submit(seen, pure=False).result() == [False, False, True]


@contextmanager
def threads_as_workers(n_workers: int, n_threads: int = 1) -> Iterator[LocalCluster]:
    """Workers of this process, with the clocks that dask gives them if nobody says more."""
    ticks = {"distributed.admin.tick.interval": "20ms"}
    with (
        dask.config.set({"distributed.worker.profile.enabled": True, **ticks}),
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=n_threads,
            processes=False,
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster),
    ):
        yield cluster


def paces(server: Any) -> tuple[float, ...]:
    """Of a server's clocks, in milliseconds."""
    clocks = server.periodic_callbacks
    return tuple(clocks[name].callback_time for name in ("tick", "profile") if name in clocks)


def paces_while_called(
    monkeypatch: pytest.MonkeyPatch, owner: Any, function: str, server: Callable[[], Any]
) -> list[tuple[float, ...]]:
    """Of a server's clocks, whenever a function is called from now on."""
    seen: list[tuple[float, ...]] = []
    called: Any = getattr(owner, function)

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(paces(server()))
        return called(*args, **kwargs)

    monkeypatch.setattr(owner, function, watched)
    return seen


@pytest.mark.parametrize("is_asked_for", [False, True])
def test_clocks_are_slow_while_workers_train(
    monkeypatch: pytest.MonkeyPatch, is_asked_for: bool
) -> None:
    with threads_as_workers(2) as cluster:
        seen = paces_while_called(monkeypatch, tasks_module, "run_epoch", get_worker)
        waits = paces_while_called(
            monkeypatch, cluster_module, "_wait", lambda: cluster.scheduler
        )
        with dask.config.set({background.SETTING: is_asked_for}):
            DistributedMLPClassifier((4,), max_iter=3).fit(*chunked(*data("multiclass")))
        assert set(seen) == {(TICK, SAMPLE) if is_asked_for else (200.0, 200.0)}
        assert set(waits) == {(TICK,) if is_asked_for else (200.0,)}
        for server in (cluster.scheduler, *cluster.workers.values()):
            assert paces(server) == (TICK, SAMPLE)[: len(paces(server))]
    assert not background._slow


# Fits that stop early are made one by one, others together.
@pytest.mark.parametrize("early_stopping", [False, True])
def test_clocks_are_slow_in_the_tasks_of_a_search(
    monkeypatch: pytest.MonkeyPatch, early_stopping: bool
) -> None:
    where = local_module.LocalRuntime if early_stopping else stack_module._Stack
    with threads_as_workers(1) as cluster:
        seen = paces_while_called(monkeypatch, where, "_run_epoch", get_worker)
        waits = paces_while_called(
            monkeypatch, places_module, "wait", lambda: cluster.scheduler
        )
        clf = DistributedMLPClassifier(max_iter=2, early_stopping=early_stopping)
        search = BatchedGridSearchCV(clf, {"alpha": [0.1, 1.0]}, cv=2, refit=False)
        search.fit(*data("multiclass"))
        assert set(seen) == {(200.0, 200.0)}
        assert set(waits) == {(200.0,)}
        assert paces(cluster.scheduler) == (TICK,)


def test_the_profiler_of_a_worker_keeps_its_pace_while_another_thread_may_work() -> None:
    def inside() -> tuple[float, ...]:
        with training_thread():
            return paces(get_worker())

    with threads_as_workers(1, n_threads=2) as cluster, Client(cluster) as client:
        assert client.submit(inside).result() == (200.0, SAMPLE)
        [worker] = cluster.workers.values()
        with waiting_for(client):  # for what is not of ours, maybe
            assert paces(worker) == (200.0, SAMPLE)


def test_a_fit_on_a_cluster_of_another_kind_is_as_ever(clusters: Any) -> None:
    """dask's client takes whatever has an address and a status."""

    class Foreign:
        status = Status.running

        def __init__(self, scheduler_address: str) -> None:
            self.scheduler_address = scheduler_address

        def workers(self) -> list[str]:
            return []

    X, y = chunked(*data("multiclass"))
    with Client(Foreign(clusters(2).scheduler_address)):
        fitted = DistributedMLPClassifier((4,), max_iter=2, random_state=0).fit(X, y)
    assert fitted.n_iter_ == 2


def test_who_waits_slows_scheduler_and_nannies_of_its_own_cluster(
    clusters: Any, client: Client
) -> None:
    cluster = clusters(2)
    servers = [cluster.scheduler, *cluster.workers.values()]
    assert [type(server) for server in servers] == [Scheduler, Nanny, Nanny]
    clocks = [server.periodic_callbacks["tick"] for server in servers]
    before = [clock.callback_time for clock in clocks]  # the tests' own
    for clock in clocks:
        clock.callback_time = TICK
    try:
        with waiting_for(client):
            with waiting_for(client):  # another thread, or a search in whose task one waits
                assert {clock.callback_time for clock in clocks} == {200.0}
            assert {clock.callback_time for clock in clocks} == {200.0}
        assert {clock.callback_time for clock in clocks} == {TICK}
        with waiting_for(client):
            clocks[0].callback_time = 50.0  # somebody's wish
        assert clocks[0].callback_time == 50.0
        with waiting_for(client):
            clocks[0].callback_time = 40.0
            with waiting_for(client):
                assert clocks[0].callback_time == 200.0
        assert clocks[0].callback_time == 40.0
        with Client(cluster.scheduler_address) as stranger, waiting_for(stranger):
            assert clocks[1].callback_time == TICK
    finally:
        for clock, pace in zip(clocks, before, strict=True):
            clock.callback_time = pace


def test_a_clock_is_never_faster_nor_as_slow_as_what_dask_tells_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fast, slow = (PeriodicCallback(int, pace) for pace in (TICK, 1000.0))
    with background._slowed([fast, slow]):
        assert (fast.callback_time, slow.callback_time) == (200.0, 1000.0)
    monkeypatch.setattr(background, "tick_maximum_delay", 0.4)
    with background._slowed([fast]):
        assert fast.callback_time == 100.0
    assert (fast.callback_time, slow.callback_time) == (TICK, 1000.0)
