"""A fit that is ended from outside leaves nothing on its cluster, wherever it is."""

import asyncio
import gc
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from types import FrameType
from typing import Any

import dask
import dask.array as da
import pytest
from cases import Case, data
from distributed import Client, LocalCluster
from distributed.utils import get_mp_context
from numpy.testing import assert_allclose
from shared_clusters import clusters_by_size
from traps import TOPIC, Place, clear_trap, let_go, loaded, set_trap

import skdtheano

pytestmark = [
    pytest.mark.cluster,
    # A few epochs are not meant to converge.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

#: Seconds after which something that is still there counts as left.
BOUND = 20
OURS = str(Path(skdtheano.__file__).parent)

PLACES = {
    "loading": Place("load", 1),
    "epoch": Place("run_epoch", 3, 4),
    "validation": Place("score_sums", 3),
    "lbfgs": Place("loss_sums", 4),
}


def at_each_place(always: str) -> pytest.MarkDecorator:
    """One of them runs in the default lane, and all of them with `make test-faults`."""
    return pytest.mark.parametrize(
        "place",
        [
            pytest.param(
                place, marks=pytest.mark.table if place == always else pytest.mark.exhaustive
            )
            for place in PLACES
        ],
    )


def case_of(place: str) -> Case:
    optimizer = "lbfgs" if place == "lbfgs" else "adam"
    return Case(
        optimizer, "tanh", "binary", weighted=False, early_stopping=place == "validation"
    )


def parameters_of(place: str) -> dict[str, Any]:
    """For a fit that would go on for hours."""
    endless: dict[str, Any] = {"max_iter": 10**6, "tol": 0.0}
    if place == "lbfgs":
        return endless
    return {**endless, "batch_size": 16, "n_iter_no_change": 10**6}


def estimator(place: str) -> Any:
    return case_of(place).ours(**parameters_of(place))


def as_theirs(place: str) -> Any:
    return case_of(place).theirs().set_params(**parameters_of(place))


def in_blocks() -> tuple[da.Array, da.Array]:
    X, y = data("binary")
    rows = da.from_array(X, chunks=(15, X.shape[1])).map_blocks(loaded, meta=X[:0])
    return rows, da.from_array(y, chunks=15)


def fit_elsewhere(address: str, place: str) -> None:
    """In a process that has nothing but a client."""
    with Client(address):
        estimator(place).fit(*in_blocks())


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A cluster of two workers that these tests have for themselves."""
    clusters = clusters_by_size()
    yield next(clusters)(2)
    next(clusters, None)


async def belongings(dask_worker: Any) -> dict[str, list[str]]:
    """What a worker process has of fits."""
    plugin = dask_worker.plugins.get("skdtheano-exchange")
    pool = dask_worker.executors["default"]
    stacks = sys._current_frames()
    threads = [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("skdtheano")
        # One that has seceded has left its pool.
        or (thread.name.startswith("Dask-Default") and thread not in pool._threads)
        or _runs_ours(stacks.get(thread.ident or 0))
    ]
    coroutines = [task.get_coro() for task in asyncio.all_tasks()]
    maps = Path("/proc/self/maps")  # Linux's
    mapped = [line.split()[-1] for line in maps.open()] if maps.exists() else []
    return {
        "tasks": [*map(str, dask_worker.state.tasks), *map(str, dask_worker.data)],
        "actors": [*map(str, dask_worker.state.actors)],
        "rounds": [] if plugin is None else [*plugin._open, *plugin._waiting],
        "threads": threads,
        "coroutines": [
            code.co_qualname
            for code in (getattr(coroutine, "cr_code", None) for coroutine in coroutines)
            if code is not None and code.co_filename.startswith(OURS)
        ],
        "comms in use": ["comm"] * dask_worker.rpc.active,
        "shared memory": sorted({path for path in mapped if path.startswith("/dev/shm")}),
    }


def _runs_ours(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(OURS):
            return True
        frame = frame.f_back
    return False


async def worker_left(before: dict[str, Any], dask_worker: Any) -> dict[str, list[str]]:
    """What a worker has that it had not before, once it is nothing or after BOUND seconds."""
    end = time.monotonic() + BOUND
    while True:
        now = await belongings(dask_worker)
        was = before[dask_worker.address]
        left = {what: list((Counter(has) - Counter(was[what])).elements())
                for what, has in now.items()}  # fmt: skip
        left = {what: more for what, more in left.items() if more}
        if not left or time.monotonic() > end:
            return left
        await asyncio.sleep(0.05)


async def scheduler_left(clients: set[str], dask_scheduler: Any) -> list[str]:
    """Tasks, and clients but some, once there are none or after BOUND seconds."""
    end = time.monotonic() + BOUND
    while True:
        left = [*map(str, dask_scheduler.tasks), *(dask_scheduler.clients.keys() - clients)]
        if not left or time.monotonic() > end:
            return left
        await asyncio.sleep(0.05)


class Watch:
    """Looks at a cluster by a client of its own, and holds a worker where a fit comes by."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.client = Client(cluster, set_as_default=False)
        self.client.wait_for_workers(2)
        self.before: dict[str, Any] = self.client.run(belongings)
        self.held, self.other = sorted(self.before)
        self._there = Event()
        self._act: Thread | None = None
        self.client.subscribe_topic(TOPIC, self._heard)

    def hold(self, place: Place, act: Callable[[], None]) -> None:
        """Hold a worker when it comes to a place, and call `act` then."""
        # Not in the client's event loop, which needs to go on.
        self._act = Thread(target=act)
        self.client.run(set_trap, place, "held", workers=[self.held])

    def _heard(self, event: Any) -> None:
        assert self._act is not None
        self._there.set()
        self._act.start()

    def assert_nothing_left(self, client: Client | None = None) -> None:
        """Of the fit; `client` may be there still."""
        assert self._there.is_set(), "the fit did not come to the place"
        # Who waits for the one that is held does not wait for it to go on.
        left = self.client.run(worker_left, self.before, workers=[self.other])
        assert left == {self.other: {}}
        self.client.run(let_go)
        left = self.client.run(worker_left, self.before)
        assert left == {self.held: {}, self.other: {}}
        clients = {self.client.id, "fire-and-forget"} | ({client.id} if client else set())
        assert self.client.run_on_scheduler(scheduler_left, clients) == []
        assert self._act is not None
        self._act.join(BOUND)
        calls = [one for one in threading.enumerate() if one.name.startswith("skdtheano")]
        for one in calls:
            one.join(BOUND)
        assert not any(one.is_alive() for one in (self._act, *calls))

    def close(self) -> None:
        self.client.run(let_go)
        self.client.run(clear_trap)
        self.client.unsubscribe_topic(TOPIC)
        self.client.close()


@pytest.fixture
def no_collection() -> Iterator[None]:
    """No collection of cycles: a busy process has one at any time, and an idle one never."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def watch(cluster: LocalCluster) -> Iterator[Watch]:
    made = Watch(cluster)
    yield made
    made.close()


def assert_fits(ours: Any, cluster: LocalCluster, place: str) -> None:
    """On a new client, with scikit-learn's numbers."""
    few: dict[str, Any] = {"max_iter": 8 if place == "lbfgs" else 5}
    theirs = as_theirs(place).set_params(**few).fit(*data("binary"))
    with Client(cluster):
        ours.set_params(**few).fit(*in_blocks())
    if place == "lbfgs":
        assert_allclose(ours.loss_, theirs.loss_, rtol=1e-7)
    else:
        assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-9)
    assert_allclose(ours.coefs_[0], theirs.coefs_[0], rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("an_epoch_a_round")
@pytest.mark.usefixtures("no_collection")
@at_each_place(always="epoch")
def test_ctrl_c(
    place: str, cluster: LocalCluster, watch: Watch, ctrl_c: Callable[[], None]
) -> None:
    ours = estimator(place)
    with Client(cluster) as client:
        watch.hold(PLACES[place], ctrl_c)
        if place in ("loading", "lbfgs"):  # as in scikit-learn, it keeps nothing
            with pytest.raises(KeyboardInterrupt):
                ours.fit(*in_blocks())
        else:
            with pytest.warns(UserWarning, match="Training interrupted by user"):
                ours.fit(*in_blocks())
        watch.assert_nothing_left(client)
    if place in ("loading", "lbfgs"):
        assert not hasattr(ours, "coefs_")
    else:
        theirs = as_theirs(place).set_params(max_iter=3).fit(*data("binary"))
        assert ours.n_iter_ == (2 if place == "epoch" else 3)
        assert_allclose(ours.loss_curve_, theirs.loss_curve_[: ours.n_iter_], rtol=1e-9)
    assert_fits(ours, cluster, place)


@at_each_place(always="validation")
def test_a_client_that_is_closed(place: str, cluster: LocalCluster, watch: Watch) -> None:
    ours = estimator(place)
    with Client(cluster) as client:
        watch.hold(PLACES[place], client.close)
        with pytest.raises(ConnectionError, match="Make a new Client and fit again"):
            ours.fit(*in_blocks())
        watch.assert_nothing_left()
    assert dask.config.get("scheduler", None) is None  # "dask.distributed" with a client
    assert_fits(ours, cluster, place)


@at_each_place(always="lbfgs")
def test_a_process_that_is_killed(place: str, cluster: LocalCluster, watch: Watch) -> None:
    process = get_mp_context().Process(
        target=fit_elsewhere, args=(cluster.scheduler_address, place)
    )
    watch.hold(PLACES[place], process.kill)
    process.start()
    try:
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    finally:
        process.kill()
    watch.assert_nothing_left()
    assert_fits(estimator(place), cluster, place)
