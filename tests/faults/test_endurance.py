"""Many fits on one cluster, each losing a worker, and several at once: nothing piles up."""

import gc
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import psutil
import pytest
from cases import Case, data
from distributed import Client, LocalCluster, SchedulerPlugin, get_client, worker_client
from numpy.testing import assert_allclose
from traps import Place, set_trap

pytestmark = [
    pytest.mark.cluster,
    # A few epochs are not meant to converge.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

CASE = Case("adam", "tanh", "binary", weighted=False, early_stopping=False)
EPOCHS, BATCH_SIZE = 5, 16
MINIBATCHES = 6  # of that size in the 90 rows

#: Of the data and the model of each of some fits at once.
SEEDS = (1, 2, 3, 4)

FDS = Path("/proc/self/fd")
SEGMENTS = Path("/dev/shm")

#: Measured from the 20th fit to the 200th: 59 and 59 open files, 9 and 9 threads, 12 and 12
#: segments, 350.9 and 377.9 MiB, the first 80 of these fits adding 15 MiB and the last 100
#: 12. Where that memory goes was not found; dask's scheduler, which lives here too, keeps
#: some things per fit (its spans are 4 more after each). Of files, some are connections that
#: come and go with the workers.
FILES_MORE = 10
MIB_MORE = 60.0


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """Two workers of one thread that a test may kill."""
    settings = {
        # So long after a slot lost a worker the cluster looks whether it has one, and closes
        # it for good if not, though that may be another loss that is just being mended. By
        # the default of 15 s that was seen to happen after 35 such fits.
        "distributed.deploy.lost-worker-timeout": "1h",
        # What was logged of each lost worker is kept for an hour by itself.
        "distributed.scheduler.events-cleanup-delay": "1s",
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as one,
    ):
        yield one


def fit(client: Client | None = None, seed: int = 3) -> Any:
    """A fit to a table of its own, in six blocks."""
    X, y = data("binary")
    X = X + seed
    ours = CASE.ours(max_iter=EPOCHS, batch_size=BATCH_SIZE, random_state=seed, client=client)
    return ours.fit(da.from_array(X, chunks=(15, X.shape[1])), da.from_array(y, chunks=15))


@cache
def theirs(seed: int = 3) -> Any:
    """scikit-learn's."""
    X, y = data("binary")
    chosen = {"max_iter": EPOCHS, "batch_size": BATCH_SIZE, "random_state": seed}
    return CASE.theirs().set_params(**chosen).fit(X + seed, y)


class TasksKnown(SchedulerPlugin):
    """Waits until a scheduler of this process has forgotten all tasks."""

    name = "tasks-known"

    def __init__(self, cluster: LocalCluster) -> None:
        self.scheduler = cluster.scheduler
        self.changed = threading.Condition()
        self.scheduler.add_plugin(self)

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        with self.changed:
            self.changed.notify_all()

    def left(self) -> list[str]:
        with self.changed:
            # The last transition is told before its task is forgotten.
            for _ in range(200):
                if not self.scheduler.tasks:
                    break
                self.changed.wait(0.1)
        return [str(key) for key in list(self.scheduler.tasks)]


@dataclass(frozen=True)
class Usage:
    """What this process holds, in which the scheduler and the nannies live too.

    Attributes
    ----------
    threads, files : int
    segments : int
        Of shared memory, mapped here.
    resident : float
        MiB.
    """

    threads: int
    files: int
    segments: int
    resident: float

    @classmethod
    def now(cls) -> "Usage":
        gc.collect()
        maps = Path("/proc/self/maps").read_text().splitlines()
        return cls(
            threading.active_count(),
            len(os.listdir(FDS)),
            sum(str(SEGMENTS) in line for line in maps),
            psutil.Process().memory_info().rss / 2**20,
        )


@pytest.mark.skipif(not FDS.exists() or not SEGMENTS.exists(), reason="counts in /proc")
@pytest.mark.parametrize(
    ("n_fits", "warm_up"),
    [
        pytest.param(6, 2, marks=pytest.mark.exhaustive),
        pytest.param(200, 20, marks=[pytest.mark.exhaustive, pytest.mark.timeout(1500)]),
    ],
)
def test_fits_in_a_row_that_each_lose_a_worker_leave_nothing(
    n_fits: int,
    warm_up: int,
    cluster: LocalCluster,
) -> None:
    rng = random.Random(0)
    known = TasksKnown(cluster)
    used: list[Usage] = []
    with Client(cluster) as client:
        pids = client.run(os.getpid)
        for _ in range(n_fits):
            victim = rng.choice(sorted(pids))
            place = Place("run_epoch", rng.randint(1, EPOCHS), rng.randint(1, MINIBATCHES))
            client.run(set_trap, place, "SIGKILL", workers=[victim])
            ours = fit(client)
            assert_allclose(ours.loss_curve_, theirs().loss_curve_, rtol=1e-9)
            assert_allclose(ours.coefs_[0], theirs().coefs_[0], rtol=1e-7, atol=1e-9)
            assert known.left() == []
            client.wait_for_workers(2, timeout=60)
            killed, pids = pids[victim], client.run(os.getpid)
            assert killed not in pids.values(), f"no worker was killed at {place}"
            used.append(Usage.now())
    before, after = used[warm_up - 1], used[-1]
    assert after.threads <= before.threads
    assert after.segments <= before.segments
    assert after.files <= before.files + FILES_MORE
    assert after.resident <= before.resident + MIB_MORE


Curve = list[float]
Fits = Callable[[LocalCluster, ExitStack], list[Any]]


def curve(client: Client | None, seed: int) -> Curve:
    learned: Curve = fit(client, seed).loss_curve_
    return learned


def curve_in_task(seed: int) -> Curve:
    assert get_client() is not None
    return curve(None, seed)


def curve_by_worker_client(seed: int) -> Curve:
    with worker_client() as inner:
        return curve(inner, seed)


def from_threads(cluster: LocalCluster, stack: ExitStack) -> list[Any]:
    client = stack.enter_context(Client(cluster))
    pool = stack.enter_context(ThreadPoolExecutor(len(SEEDS)))
    return [pool.submit(curve, client, seed) for seed in SEEDS]


def from_clients(cluster: LocalCluster, stack: ExitStack) -> list[Any]:
    clients = [stack.enter_context(Client(cluster)) for _ in SEEDS]
    pool = stack.enter_context(ThreadPoolExecutor(len(SEEDS)))
    return [pool.submit(curve, *both) for both in zip(clients, SEEDS, strict=True)]


def from_tasks(cluster: LocalCluster, stack: ExitStack) -> list[Any]:
    client = stack.enter_context(Client(cluster))
    return [client.submit(curve_in_task, seed, pure=False) for seed in SEEDS]


def from_tasks_without_slots(cluster: LocalCluster, stack: ExitStack) -> list[Any]:
    client = stack.enter_context(Client(cluster))
    return [client.submit(curve_by_worker_client, seed, pure=False) for seed in SEEDS]


def equal_theirs(fits: list[Any]) -> None:
    for seed, one in zip(SEEDS, fits, strict=True):
        assert_allclose(one.result(timeout=120), theirs(seed).loss_curve_, rtol=1e-9)


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(from_threads, marks=pytest.mark.table),
        pytest.param(from_clients, marks=pytest.mark.exhaustive),
        pytest.param(from_tasks, marks=pytest.mark.table),
        pytest.param(from_tasks_without_slots, marks=pytest.mark.exhaustive),
    ],
)
def test_four_fits_at_once_on_two_threads_finish(begin: Fits, cluster: LocalCluster) -> None:
    known = TasksKnown(cluster)
    with ExitStack() as stack:
        fits = begin(cluster, stack)
        equal_theirs(fits)
        del fits
        assert known.left() == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("begin", [from_threads, from_clients])
def test_four_fits_at_once_that_lose_a_worker_finish(
    begin: Fits, cluster: LocalCluster
) -> None:
    known = TasksKnown(cluster)
    with Client(cluster, set_as_default=False) as other, ExitStack() as stack:
        pids = other.run(os.getpid)
        # Of the fits, the first that comes there.
        other.run(set_trap, Place("run_epoch", 3, 4), "SIGKILL", workers=[min(pids)])
        equal_theirs(begin(cluster, stack))
        other.wait_for_workers(2, timeout=60)
        assert pids[min(pids)] not in other.run(os.getpid).values(), "no worker was killed"
        assert known.left() == []
