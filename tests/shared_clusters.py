"""Clusters that the tests share, and Ctrl-C."""

import signal
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster
from distributed.core import Status
from distributed.utils import get_mp_context

# Workers are forked from a process that has imported what they need and has done nothing
# else: seconds less for each of the hundred that the tests start and kill. The scripts that
# the tests run start theirs as dask does by itself.
dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
# Clusters that wait for their next test take a third of a core, less than a tenth without
# these clocks, which only draw the dashboard's pictures.
dask.config.set(
    {
        "distributed.worker.profile.enabled": False,
        "distributed.admin.system-monitor.interval": "10s",
        "distributed.admin.tick.interval": "1s",
    }
)
get_mp_context()
get_mp_context().set_forkserver_preload(["distributed", "dask.dataframe", "skdtheano"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one process run all fits of the table, and one all other tests of clusters.

    Where several share the tests out, each needs clusters of its own, and both of these
    wait more than they compute.
    """
    for item in items:
        if item.get_closest_marker("cluster") is not None:
            group = "fits" if item.path.name == "test_parity.py" else "cluster"
            item.add_marker(pytest.mark.xdist_group(group))


def clusters_by_size() -> Iterator[Callable[..., LocalCluster]]:
    """Clusters of worker processes by number of workers, started when asked for."""
    started: dict[tuple[int, int], LocalCluster] = {}

    def cluster(n_workers: int, n_threads: int = 1) -> LocalCluster:
        size = n_workers, n_threads
        if size not in started or started[size].status != Status.running:
            started[size] = LocalCluster(
                n_workers=n_workers,
                threads_per_worker=n_threads,
                dashboard_address="127.0.0.1:0",
            )
        return started[size]

    yield cluster
    for one in started.values():
        one.close()


@pytest.fixture(scope="session")
def clusters() -> Iterator[Callable[..., LocalCluster]]:
    """Clusters by number of workers, each started once."""
    yield from clusters_by_size()


@pytest.fixture
def client_of(clusters: Callable[..., LocalCluster]) -> Iterator[Callable[..., Client]]:
    """A client of a shared cluster of so many workers; it is the current client."""
    opened: list[Client] = []

    def client(n_workers: int, n_threads: int = 1) -> Client:
        opened.append(Client(clusters(n_workers, n_threads)))
        return opened[-1]

    yield client
    for one in reversed(opened):  # each gives the current client back to the one before
        one.close()


@pytest.fixture
def client(client_of: Callable[[int], Client]) -> Client:
    """A client of the shared cluster of two workers."""
    return client_of(2)


@pytest.fixture
def own_cluster() -> Iterator[LocalCluster]:
    """A cluster that a test may damage."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster


@pytest.fixture
def an_epoch_a_round() -> Iterator[None]:
    """Rounds of one epoch each, for tests of what is between epochs."""
    with dask.config.set({"skdtheano.round-seconds": "1 us"}):
        yield


def forgets_all_tasks(cluster: LocalCluster, but: Collection[Any] = ()) -> bool:
    """Whether the scheduler has no task any more, soon: clients tell it a little later.

    `but` are keys of tasks that were there before, of other tests on a shared cluster.
    """
    forgotten = threading.Event()

    def look() -> None:
        if set(cluster.scheduler.tasks) - set(but):
            cluster.scheduler.loop.call_later(0.05, look)
        else:
            forgotten.set()

    cluster.scheduler.loop.add_callback(look)
    return forgotten.wait(20)


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Sends Ctrl-C to the main thread, also in a shell that starts its jobs without it."""
    main = threading.main_thread().ident
    assert main is not None
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.pthread_kill(main, signal.SIGINT)
    signal.signal(signal.SIGINT, before)
