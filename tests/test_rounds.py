"""What a distributed fit does to its cluster, and what it survives."""

import asyncio
import gc
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Thread
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import joblib
import numpy as np
import pytest
from cases import Case, data, expected
from dask.sizeof import sizeof
from distributed import (
    Client,
    LocalCluster,
    Nanny,
    Scheduler,
    SchedulerPlugin,
    SpecCluster,
    get_client,
    worker_client,
)
from distributed.core import Status
from numpy.testing import assert_allclose, assert_array_equal
from shared_clusters import forgets_all_tasks
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier

from skdtheano import DistributedMLPClassifier, cookbook
from skdtheano.engine import compilations
from skdtheano.estimators.numeric_targets import NumberEncoder
from skdtheano.runtime import cluster as cluster_module
from skdtheano.runtime.cluster import ClusterSite
from skdtheano.runtime.failures import ValueLost
from skdtheano.runtime.placing import make_block
from skdtheano.runtime.rounds import ClusterRuntime
from skdtheano.runtime.shares import rows_in_words
from skdtheano.runtime.workers import first_owners

pytestmark = [
    pytest.mark.cluster,
    # A few epochs are not meant to converge.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

MULTICLASS = Case("adam", "tanh", "multiclass", weighted=False, early_stopping=False)


class OnTask(SchedulerPlugin):
    """Calls a function once, with the worker, when a task of a round is given to one.

    Added to the scheduler of a `LocalCluster`, which runs in this process.
    """

    name = "on-task"

    def __init__(
        self,
        cluster: LocalCluster,
        prefix: str,
        call: Callable[[str], None],
        suffix: str = "",
    ) -> None:
        self.scheduler = cluster.scheduler
        self.prefix, self.suffix = prefix, suffix
        self.call = call
        self.called = False
        self.scheduler.add_plugin(self)

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        wanted = str(key).startswith(self.prefix) and str(key).endswith(self.suffix)
        if finish == "processing" and wanted and not self.called:
            self.call(self.scheduler.tasks[key].processing_on.address)
            self.called = True


@contextmanager
def killed(cluster: LocalCluster, prefix: str, suffix: str = "") -> Iterator[Client]:
    """A client, and SIGKILL for the worker that gets the first task of such a name."""
    with Client(cluster) as client:
        pids = client.run(os.getpid)
        plugin = OnTask(
            cluster, prefix, lambda worker: os.kill(pids[worker], signal.SIGKILL), suffix
        )
        yield client
        assert plugin.called, "no worker was killed"


def chunked(X: np.ndarray, y: np.ndarray, rows: int = 25) -> tuple[da.Array, da.Array]:
    return da.from_array(X, chunks=(rows, X.shape[1])), da.from_array(y, chunks=rows)


def started_tasks(cluster: LocalCluster, fit: Callable[[], Any]) -> list[str]:
    """Keys of the tasks that ran while `fit` did."""
    plugin = EveryTask()
    cluster.scheduler.add_plugin(plugin)
    try:
        fit()
    finally:
        cluster.scheduler.remove_plugin(plugin.name)
    return plugin.started


class EveryTask(SchedulerPlugin):
    name = "every-task"

    def __init__(self) -> None:
        self.started: list[str] = []

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if finish == "processing":
            self.started.append(str(key))


@pytest.mark.usefixtures("an_epoch_a_round")
@pytest.mark.parametrize("early_stopping", [False, True])
def test_an_epoch_costs_the_scheduler_tasks_by_worker_and_not_by_minibatch(
    clusters: Callable[[int], LocalCluster],
    client: Client,
    early_stopping: bool,
) -> None:
    X, y = data("multiclass")

    def tasks(epochs: int, batch_size: int, rows: int) -> int:
        clf = DistributedMLPClassifier(
            (4,),
            max_iter=epochs,
            batch_size=batch_size,
            early_stopping=early_stopping,
            random_state=0,
            tol=0,
        )
        return len(started_tasks(clusters(2), lambda: clf.fit(*chunked(X, y, rows))))

    costs = {
        (batch_size, rows): (tasks(7, batch_size, rows) - tasks(2, batch_size, rows)) / 5
        for batch_size, rows in ((45, 45), (5, 45), (5, 6))
    }
    # A task per worker; with early stopping, as many again and one for the sum.
    assert set(costs.values()) == {5.0 if early_stopping else 2.0}


def test_short_epochs_share_rounds(
    clusters: Callable[[int], LocalCluster], client: Client
) -> None:
    X, y = data("multiclass")
    clf = DistributedMLPClassifier((4,), max_iter=100, n_iter_no_change=100, random_state=0)
    started = started_tasks(clusters(2), lambda: clf.fit(*chunked(X, y)))
    rounds = {key.rsplit("-", 2)[0] for key in started if key.startswith("skdtheano-epoch-")}
    assert clf.n_iter_ == 100
    assert len(rounds) < 50


def test_a_round_ends_where_the_fit_does(client: Client) -> None:
    """By a rule that follows from the losses; a learning rate that adapts follows too."""
    X, y = data("multiclass")
    for parameters in (
        {"tol": 0.05, "n_iter_no_change": 5},
        {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.05, "n_iter_no_change": 1},
        {"solver": "sgd", "learning_rate": "invscaling", "max_iter": 40},
    ):
        rng = np.random.RandomState(3)
        ours = DistributedMLPClassifier((4,), random_state=rng, **parameters)
        ours.fit(*chunked(X, y))
        rng_of_theirs = np.random.RandomState(3)
        theirs = MLPClassifier((4,), random_state=rng_of_theirs, **parameters).fit(X, y)
        assert ours.n_iter_ == theirs.n_iter_ > 4
        assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-9)
        assert_allclose(ours.coefs_[0], theirs.coefs_[0], rtol=1e-7)
        # Orders that were drawn for epochs that never came are given back.
        assert rng.randint(2**31) == rng_of_theirs.randint(2**31)


def test_the_bits_do_not_tell_how_many_epochs_a_round_had(client: Client) -> None:
    X, y = data("multiclass")
    made = []
    for seconds in ("1 us", "10 s"):
        with dask.config.set({"skdtheano.round-seconds": seconds}):
            clf = DistributedMLPClassifier(
                (4,), batch_size=5, max_iter=30, n_iter_no_change=30, random_state=0
            )
            made.append(clf.fit(*chunked(X, y, 6)))
    assert made[0].loss_curve_ == made[1].loss_curve_
    for one, other in zip(made[0].coefs_, made[1].coefs_, strict=True):
        assert (one == other).all()


def test_moments_of_parameters_that_others_update_go_on_with_a_fit(client: Client) -> None:
    # So many that each worker updates a share; all of a state is one worker's then.
    X, y = data("multiclass")
    ours, theirs = (
        kind((7000,), batch_size=5, random_state=0)
        for kind in (DistributedMLPClassifier, MLPClassifier)
    )
    for _ in range(3):
        ours.partial_fit(*chunked(X, y, 6), classes=np.unique(y))
        theirs.partial_fit(X, y, classes=np.unique(y))
    assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-7)


def test_fit_gathers_no_rows(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[int] = []
    gather = Client._gather

    async def counted(self: Client, *args: Any, **kwargs: Any) -> Any:
        results = await gather(self, *args, **kwargs)
        received.append(sizeof(results))
        return results

    monkeypatch.setattr(Client, "_gather", counted)
    n_rows = 200_000
    X = da.random.RandomState(0).uniform(size=(n_rows, 20), chunks=(25_000, 20))
    y = (X[:, 0] > 0.5).astype(int)
    clf = DistributedMLPClassifier(
        (4,), max_iter=2, batch_size=20_000, early_stopping=True, random_state=0
    )
    clf.fit(X, y)
    clf.score(X, y)
    # 32 MB of rows. Received: reports, losses, the model, and a bit per row for the
    # stratified split.
    assert sum(received) < n_rows / 8 + 60_000
    # And rows would have been seen: a block weighs what it holds.
    block = client.submit(
        make_block,
        np.ones((1_000, 20)),
        np.ones(1_000),
        None,
        "float64",
        False,
        NumberEncoder(1),
    )
    client.gather([block])
    assert received[-1] > 1_000 * 20 * 8


def test_each_worker_compiles_each_graph_once(clusters: Any, client: Client) -> None:
    X, y = data("multiclass")

    def fit(alpha: float, batch_size: int, hidden: int) -> None:
        DistributedMLPClassifier(
            (hidden, 3, 3), alpha=alpha, batch_size=batch_size, max_iter=2, mode=None
        ).fit(*chunked(X, y))

    def compiled() -> dict[str, Counter[str]]:
        counts: dict[str, Counter[str]] = client.run(lambda: Counter(compilations()))
        return counts

    def read_the_disk(may: bool) -> None:
        """Graphs may lie on the disk, and then none would be derived and counted."""
        key = vars(cookbook).setdefault("key_of_tests", cookbook._key)
        cookbook._key = key if may else lambda what: None

    client.run(read_the_disk, False)
    try:
        clean = compiled()
        fit(0.1, 30, 4)
        first = compiled()
        # This depth is nobody else's: its graph of sums is new. That of steps knows none.
        for worker in first:
            new = first[worker] - clean[worker]
            assert 1 <= new.total() <= 2 and set(new.values()) == {1}, new
        fit(0.2, 20, 5)
        fit(0.3, 10, 6)
        assert compiled() == first
    finally:
        client.run(read_the_disk, True)


@pytest.mark.usefixtures("an_epoch_a_round")
@pytest.mark.parametrize(
    ("epoch", "rank", "early_stopping"),
    [(1, 0, False), (1, 1, True), (4, 0, True), (4, 1, False)],
    ids=["first epoch", "first epoch, early stopping", "epoch 4, early stopping", "epoch 4"],
)
def test_a_worker_killed_in_a_round_changes_nothing(
    own_cluster: LocalCluster, epoch: int, rank: int, early_stopping: bool
) -> None:
    X, y = data("binary")
    case = Case("adam", "tanh", "binary", weighted=False, early_stopping=early_stopping)
    with killed(own_cluster, f"skdtheano-epoch-{epoch}-", f"-{rank}"):
        ours = case.ours(max_iter=8).fit(*chunked(X, y))
    theirs = case.theirs().set_params(max_iter=8).fit(X, y)
    assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-9)
    assert_allclose(ours.coefs_[0], theirs.coefs_[0], rtol=1e-7, atol=1e-12)


def test_a_worker_killed_after_the_best_epoch_does_not_take_it_along(
    own_cluster: LocalCluster,
) -> None:
    X, y = data("binary")
    parameters = {"early_stopping": True, "learning_rate_init": 0.5, "max_iter": 12}
    case = Case("adam", "tanh", "binary", weighted=False, early_stopping=True)
    theirs = case.theirs().set_params(**parameters).fit(X, y)
    assert int(np.argmax(theirs.validation_scores_)) < 7, "the best epoch comes too late"
    with killed(own_cluster, "skdtheano-epoch-9-", "-0"):
        ours = case.ours(**parameters).fit(*chunked(X, y))
    assert_allclose(ours.validation_scores_, theirs.validation_scores_)
    assert_allclose(ours.coefs_[0], theirs.coefs_[0], rtol=1e-7, atol=1e-12)


def test_a_worker_killed_while_lbfgs_evaluates_changes_nothing(
    own_cluster: LocalCluster,
) -> None:
    X, y = data("binary")
    case = Case("lbfgs", "tanh", "binary", weighted=False, early_stopping=False)
    with killed(own_cluster, "evaluate_blocks"):
        ours = case.ours(max_iter=10).fit(*chunked(X, y))
    theirs = case.theirs().set_params(max_iter=10).fit(X, y)
    assert_allclose(ours.loss_, theirs.loss_, rtol=1e-7)


@pytest.mark.usefixtures("an_epoch_a_round")
def test_a_client_closed_in_mid_fit_ends_it_with_what_to_do(own_cluster: LocalCluster) -> None:
    X, y = data("binary")
    with Client(own_cluster) as client:
        closer = Thread(target=client.close)
        plugin = OnTask(own_cluster, "skdtheano-epoch-3-", lambda _: closer.start())
        clf = DistributedMLPClassifier((5,), max_iter=100_000, tol=0, n_iter_no_change=10**6)
        with pytest.raises(ConnectionError, match="Make a new Client and fit again"):
            clf.fit(*chunked(X, y))
    assert plugin.called
    closer.join(20)
    # What had ended before the client noticed counts: two epochs, or the third as well.
    assert clf.n_iter_ == len(clf.loss_curve_) >= 2
    assert np.isfinite(clf.predict_proba(X)).all()


@pytest.mark.parametrize("workers", ["auto", "all"])
@pytest.mark.parametrize("n_before", [0, 8, 12])
def test_a_client_closed_at_any_time_is_told_in_the_same_words(
    clusters: Any, monkeypatch: pytest.MonkeyPatch, workers: str, n_before: int
) -> None:
    """What dask says of it depends on what it is asked next."""
    submit, n_asked = ClusterSite.submit, 0

    def closing(site: ClusterSite, *args: Any, **kwargs: Any) -> Any:
        nonlocal n_asked
        n_asked += 1
        if n_asked > n_before:
            site.client.close()
        return submit(site, *args, **kwargs)

    monkeypatch.setattr(ClusterSite, "submit", closing)
    clf = DistributedMLPClassifier((5 + n_before,), max_iter=3)  # not tried before
    with (
        # A client that is closed within its context leaves itself dask's scheduler.
        dask.config.set({"skdtheano.workers": workers, "scheduler": None}),
        Client(clusters(2)),
        pytest.raises(ConnectionError, match="Make a new Client and fit again"),
    ):
        clf.fit(*chunked(*data("binary")))
    assert n_asked > n_before


@pytest.mark.usefixtures("an_epoch_a_round")
def test_a_client_closed_between_rounds_leaves_what_they_have_learned(
    clusters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = ClusterSite.submit

    def closing(site: ClusterSite, *args: Any, **kwargs: Any) -> Any:
        if str(kwargs.get("key")).startswith("skdtheano-epoch-3-"):
            site.client.close()
        return submit(site, *args, **kwargs)

    monkeypatch.setattr(ClusterSite, "submit", closing)
    clf = DistributedMLPClassifier((5,), max_iter=9)
    with (
        dask.config.set({"scheduler": None}),
        Client(clusters(2)),
        pytest.raises(ConnectionError, match="Make a new Client and fit again"),
    ):
        clf.fit(*chunked(*data("binary")))
    assert clf.n_iter_ == len(clf.loss_curve_) == 2


def test_a_fit_in_a_task_that_has_given_its_slot_back_finishes(
    client_of: Callable[[int], Client],
) -> None:
    X, y = data("multiclass")

    def fit_in_task() -> list[float]:
        with worker_client() as inner:
            curve: list[float] = MULTICLASS.ours(client=inner).fit(*chunked(X, y)).loss_curve_
        return curve

    curve = client_of(1).submit(fit_in_task, pure=False).result(timeout=120)
    assert_allclose(curve, expected(MULTICLASS).loss_curve_, rtol=1e-7)


def test_a_round_of_one_worker_ends_with_its_caller(
    clusters: Callable[[int], LocalCluster],
    client_of: Callable[[int], Client],
    ctrl_c: Callable[[], None],
) -> None:
    """Its task looks whether it is wanted at each minibatch, though it waits for nobody."""
    client = client_of(1)
    X = da.random.RandomState(0).normal(size=(40_000, 3), chunks=(20_000, 3))
    y = (X[:, 0] > 0).astype(int)
    clf = DistributedMLPClassifier((3,), batch_size=2, max_iter=50, tol=0, random_state=0)
    plugin = OnTask(clusters(1), "skdtheano-epoch-1-", lambda _: ctrl_c())
    try:
        with pytest.warns(UserWarning, match="interrupted by user. No epoch has ended"):
            clf.fit(X, y)
    finally:
        clusters(1).scheduler.remove_plugin(plugin.name)
    assert plugin.called

    async def wait_for_the_end(dask_worker: Any) -> bool:
        rounds = dask_worker.plugins["skdtheano-exchange"]._open
        for _ in range(50):
            if not rounds:
                return True
            await asyncio.sleep(0.1)
        return False

    # The 20,000 steps of an epoch take longer than this.
    assert client.run(wait_for_the_end) == dict.fromkeys(client.nthreads(), True)


class RoundsAlive(SchedulerPlugin):
    """The epochs whose tasks a scheduler knows, and the most tasks that it knew at once."""

    name = "rounds-alive"

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.most_at_once = 0
        self.changed = threading.Condition()

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        with self.changed:
            self.most_at_once = max(self.most_at_once, len(self.scheduler.tasks))
            self.changed.notify_all()

    def epochs(self) -> set[int]:
        keys = map(str, list(self.scheduler.tasks))  # it changes meanwhile
        return {int(key.split("-")[2]) for key in keys if key.startswith("skdtheano-epoch-")}

    def wait_for(self, epochs: set[int]) -> bool:
        """Whether they become the only ones: a busy scheduler forgets a little later."""
        with self.changed:
            return self.changed.wait_for(lambda: self.epochs() == epochs, timeout=30)


def test_rounds_since_the_best_one_do_not_pile_up_on_the_scheduler(
    clusters: Callable[[int], LocalCluster], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = data("multiclass")
    scheduler = clusters(2).scheduler
    run_epochs = ClusterRuntime.run_epochs
    largest = {}
    for epochs in (3, 25):
        plugin = RoundsAlive(scheduler)
        scheduler.add_plugin(plugin)

        def run_and_settle(
            self: Any, epochs: Any, course: Any, plugin: RoundsAlive = plugin
        ) -> list[float]:
            losses = run_epochs(self, epochs, course)
            assert plugin.wait_for({course.settings().epoch}), plugin.epochs()
            return losses

        monkeypatch.setattr(ClusterRuntime, "run_epochs", run_and_settle)
        clf = DistributedMLPClassifier(
            (3,), early_stopping=True, learning_rate_init=1e-9, max_iter=epochs, random_state=0
        )
        clf.set_params(n_iter_no_change=100).fit(*chunked(X, y))
        scheduler.remove_plugin(plugin.name)
        assert clf.n_iter_ == epochs
        largest[epochs] = plugin.most_at_once
    assert largest[25] <= largest[3] + 4


def test_a_wait_of_more_than_a_second_holds_no_future_when_it_ends(client: Client) -> None:
    """What it holds would stay on the cluster: for a large model, a state for each round."""
    site = ClusterSite(client)
    gc.disable()  # a busy process collects cycles at any time, and an idle one never
    try:
        key = _waited_for(site, dask.delayed(time.sleep)(1.5))
        left = client.run_on_scheduler(_wait_until_forgotten, key=key)
    finally:
        gc.enable()
    assert not left


def _waited_for(site: ClusterSite, slow: Any) -> str:
    handles = site.load([slow])
    site.wait(handles)
    return str(handles[0].key)


def test_a_result_that_is_lost_holds_no_future_when_that_is_told(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round is run again then; what the first one left would stay on the cluster."""
    site = ClusterSite(client)

    def lost(self: Client, *args: Any, **kwargs: Any) -> Any:
        raise CancelledError("lost")

    monkeypatch.setattr(Client, "gather", lost)
    gc.disable()
    try:
        key = _asked_for(site)
        left = client.run_on_scheduler(_wait_until_forgotten, key=key)
    finally:
        gc.enable()
    assert not left


def _asked_for(site: ClusterSite) -> str:
    handle = site.submit(int)
    with pytest.raises(ValueLost, match="was lost with its worker"):
        site.get([handle])
    return str(handle.key)


async def _wait_until_forgotten(dask_scheduler: Any, key: str) -> bool:
    """Whether the scheduler still knows a task after some time to forget it."""
    for _ in range(50):
        if key not in dask_scheduler.tasks:
            return False
        await asyncio.sleep(0.1)
    return True


@pytest.mark.usefixtures("an_epoch_a_round")
def test_a_worker_lost_between_a_round_and_its_report_changes_nothing(
    own_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = data("binary")
    case = Case("adam", "tanh", "binary", weighted=False, early_stopping=True)
    with Client(own_cluster) as client:
        pids = client.run(os.getpid)
        gather = client.gather
        killed: list[str] = []

        def kill_then_gather(futures: Any, *args: Any, **kwargs: Any) -> Any:
            keys = [str(future.key) for future in futures]
            if not killed and any("epoch-3-" in key for key in keys):
                [holder] = client.who_has(futures)[keys[0]]
                os.kill(pids[holder], signal.SIGKILL)
                killed.append(holder)
                while holder in client.scheduler_info(n_workers=-1)["workers"]:
                    time.sleep(0.01)
            return gather(futures, *args, **kwargs)

        monkeypatch.setattr(client, "gather", kill_then_gather)
        ours = case.ours(max_iter=6, client=client).fit(*chunked(X, y))
        assert killed
    theirs = case.theirs().set_params(max_iter=6).fit(X, y)
    assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-9)


@pytest.mark.usefixtures("an_epoch_a_round")
@pytest.mark.table
def test_a_worker_that_is_paused_in_mid_round_loses_no_fit(
    own_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause, by nearly full memory, stops no task that runs already."""
    looks: list[list[str]] = []
    look = ClusterSite._stuck_workers

    def recorded(self: ClusterSite, *args: Any) -> list[str]:
        looks.append(look(self, *args))
        return looks[-1]

    monkeypatch.setattr(ClusterSite, "_stuck_workers", recorded)
    monkeypatch.setattr(cluster_module, "_POLL_SECONDS", 0.05)  # an epoch takes less than 1 s
    X = da.random.RandomState(0).normal(size=(40_000, 3), chunks=(10_000, 3))
    y = (X[:, 0] > 0).astype(int)
    clf = DistributedMLPClassifier((3,), batch_size=10, max_iter=2, tol=0, random_state=0)

    def pause_once_begun(address: str) -> None:
        def pause(dask_worker: Any) -> None:
            rounds = dask_worker.plugins["skdtheano-exchange"]._open

            async def when_begun() -> None:
                while not rounds:
                    await asyncio.sleep(0.01)
                dask_worker.status = Status.paused

            dask_worker.loop.add_callback(when_begun)

        with Client(own_cluster, set_as_default=False) as other:
            other.run(pause, workers=[address])

    plugin = OnTask(
        own_cluster,
        "skdtheano-epoch-2-",
        lambda address: Thread(target=pause_once_begun, args=[address]).start(),
    )
    with Client(own_cluster), dask.config.set({"skdtheano.no-worker-timeout": 0.2}):
        clf.fit(X, y)
    assert plugin.called and clf.n_iter_ == 2
    assert looks and not any(looks)


@pytest.mark.parametrize("frames", [False, True], ids=["arrays", "frames"])
@pytest.mark.parametrize("where", ["here", "cluster"])
def test_x_and_y_of_one_source_are_read_together(
    where: str, frames: bool, request: pytest.FixtureRequest
) -> None:
    """A source that never repeats itself gives X and y the same rows all the same."""
    if where == "cluster":
        request.getfixturevalue("client")

    def draw(_: Any) -> np.ndarray:
        rows = np.random.default_rng().uniform(size=(400, 2))
        return np.c_[rows, rows[:, 0] > 0.5]

    parts = [dask.delayed(draw, pure=False)(i) for i in range(3)]
    table: Any = da.concatenate([da.from_delayed(part, (400, 3), float) for part in parts])
    X, y = table[:, :2], table[:, 2]
    if frames:
        table = dd.from_dask_array(table, columns=["a", "b", "y"])
        X, y = table[["a", "b"]], table["y"]
    clf = DistributedMLPClassifier((), learning_rate_init=0.5, max_iter=40, random_state=0)
    assert clf.fit(X, y).loss_ < 0.3  # 0.69 where X and y have nothing to do with each other


@pytest.mark.usefixtures("an_epoch_a_round")
def test_rows_lost_for_good_end_in_an_error_that_names_them(own_cluster: LocalCluster) -> None:
    X, y = data("multiclass")
    with (
        killed(own_cluster, "skdtheano-epoch-3-") as client,
        pytest.raises(
            RuntimeError, match=r"^Rows \d+ to \d+ of .*cannot be had any more.*with dask"
        ),
    ):
        MULTICLASS.ours(client=client).fit(X, y)


@pytest.mark.parametrize(
    ("blocks", "said"),
    [([0], "Rows 0 to 9"), ([1, 2], "Rows 10 to 24"), ([0, 2, 3], "Rows 0 to 9, 15 to 44")],
)
def test_rows_of_blocks_in_words(blocks: list[int], said: str) -> None:
    assert rows_in_words(blocks, [10, 5, 10, 20]) == said


@pytest.mark.usefixtures("an_epoch_a_round")
def test_ctrl_c_keeps_the_epochs_that_were_finished(
    clusters: Callable[[int], LocalCluster], client: Client, ctrl_c: Callable[[], None]
) -> None:
    X, y = data("multiclass")
    plugin = OnTask(clusters(2), "skdtheano-epoch-5-", lambda _: ctrl_c())
    try:
        with pytest.warns(UserWarning, match="Training interrupted by user"):
            ours = MULTICLASS.ours(max_iter=100_000).fit(*chunked(X, y))
    finally:
        clusters(2).scheduler.remove_plugin(plugin.name)
    assert plugin.called
    assert 4 <= ours.n_iter_ < 100
    expected_curve = expected(MULTICLASS).loss_curve_[: ours.n_iter_]
    assert_allclose(ours.loss_curve_[:30], expected_curve, rtol=1e-7)
    assert np.mean(ours.predict(X) == y) > 0.3
    # The workers are free again: a fit on them goes through.
    again = MULTICLASS.ours().fit(*chunked(X, y))
    assert_allclose(again.loss_curve_, expected(MULTICLASS).loss_curve_, rtol=1e-7)


def test_the_same_chunks_on_as_many_workers_give_the_same_bits(
    client_of: Callable[[int], Client],
) -> None:
    X, y = data("multiclass")
    client = client_of(3)
    table, targets = chunked(X, y, rows=13)
    fits = [MULTICLASS.ours(max_iter=10).fit(table, targets)]
    for worker in client.nthreads():  # all rows on one worker when the fit begins
        kept = [client.persist(one, workers=[worker]) for one in (table, targets)]
        fits.append(MULTICLASS.ours(max_iter=10).fit(*kept))
    for one in fits[1:]:
        assert one.loss_curve_ == fits[0].loss_curve_
        for ours, theirs in zip(one.coefs_, fits[0].coefs_, strict=True):
            assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("lengths", "n_workers", "expected"),
    [
        ((10,) * 4, 2, "aabb"),
        ((10,) * 4, 3, "abbc"),
        ((100, 1, 1), 2, "abb"),
        ((5,), 3, "a"),
        ((1, 1, 1, 1, 100, 1, 1), 2, "bbbbabb"),
    ],
)
def test_shares_are_of_neighbours_and_even(
    lengths: tuple[int, ...], n_workers: int, expected: str
) -> None:
    workers = "wvu"[:n_workers]
    rng = np.random.RandomState(0)
    for _ in range(20):
        holders = [None if rng.randint(2) else rng.choice([*workers, "?"]) for _ in lengths]
        owners = first_owners(lengths, holders, list(rng.permutation([*workers])))
        partition = [owners.index(owner) for owner in owners]
        assert partition == [expected.index(share) for share in expected]


def moved_since(client: Client, moment: float, n_bytes: int) -> list[Any]:
    """Keys of the values of at least so many bytes that a worker took from another."""

    def of(dask_worker: Any) -> list[Any]:
        return [
            key
            for transfer in dask_worker.transfer_incoming_log
            if transfer["start"] > moment
            for key, size in transfer["keys"].items()
            if size >= n_bytes
        ]

    return [key for keys in client.run(of).values() for key in keys]


@pytest.mark.usefixtures("an_epoch_a_round")
@pytest.mark.parametrize("shuffle", [True, "blocks"])
def test_training_moves_no_row_once_the_rows_are_placed(
    shuffle: Any, own_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor after a worker has joined, and the blocks were shared out anew."""
    began: dict[int, float] = {}
    run_epochs = ClusterRuntime.run_epochs

    def watched(self: Any, epochs: Any, course: Any) -> list[float]:
        number = course.settings().epoch
        if number == 4:
            own_cluster.scale(3)
            client.wait_for_workers(3)
        client.amm.run_once()  # dask drops what it finds too many copies of
        began[number] = time.time()
        return run_epochs(self, epochs, course)

    monkeypatch.setattr(ClusterRuntime, "run_epochs", watched)
    with Client(own_cluster, set_as_default=False) as client:
        first, _ = client.nthreads()
        X = da.random.RandomState(0).normal(size=(6000, 20), chunks=(500, 20))
        y = (X[:, 0] > 0).astype(int)
        X, y = client.persist([X, y], workers=[first])
        block = 500 * 20 * 8
        ours = DistributedMLPClassifier(
            (5,), max_iter=8, n_iter_no_change=99, random_state=0, client=client
        )
        started = time.time()
        ours.set_params(shuffle=shuffle).fit(X, y)
        placed = moved_since(client, started, block)
        once_placed = moved_since(client, began[1] + 1e-9, block)
        at_the_join = moved_since(client, began[4], block)
        assert len(placed) > len(once_placed) and at_the_join  # so moves are seen
        assert set(once_placed) == set(at_the_join)
        assert moved_since(client, began[5], block) == []
        assert len(at_the_join) == len(set(at_the_join))


def test_all_ranks_have_the_same_losses_whatever_their_blas_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By losses they find when to stop: with other last bits some would wait for others."""
    told: list[list[float]] = []
    run_round = ClusterRuntime._run_round

    def watched(self: Any, epochs: Any, course: Any) -> list[float]:
        losses = run_round(self, epochs, course)
        told[:] = [result.losses for result in self._site.client.gather(self._copies)]
        return losses

    monkeypatch.setattr(ClusterRuntime, "_run_round", watched)
    spec = {n: {"cls": Nanny, "options": {"nthreads": n}} for n in (1, 2)}
    scheduler = {
        "cls": Scheduler,
        "options": {"host": "127.0.0.1", "port": 0, "dashboard": False},
    }
    rng = np.random.RandomState(0)
    X, y = rng.standard_normal((200, 100)), rng.randint(0, 2, 200)
    with SpecCluster(spec, scheduler) as cluster, Client(cluster) as client:
        client.wait_for_workers(2)
        DistributedMLPClassifier((3000,), alpha=99.0, max_iter=9, random_state=0).fit(
            da.from_array(X, (50, -1)), da.from_array(y, 50)
        )
    assert len(told) == 2 and told[0] == told[1]


def test_workers_that_are_threads_train_together() -> None:
    """Also where they share no memory: their messages are not even written to bytes."""
    X, y = data("multiclass")
    with (
        dask.config.set({"skdtheano.shared-memory": False}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster),
    ):
        fitted = MULTICLASS.ours().fit(*chunked(X, y))
    assert_allclose(fitted.loss_curve_, expected(MULTICLASS).loss_curve_, rtol=1e-7)


def test_two_fits_at_once_on_one_cluster_both_finish(client: Client) -> None:
    X, y = data("multiclass")
    with ThreadPoolExecutor(2) as pool:
        fits = [pool.submit(MULTICLASS.ours(client=client).fit, *chunked(X, y)) for _ in "ab"]
        for one in fits:
            curve = one.result(timeout=120).loss_curve_
            assert_allclose(curve, expected(MULTICLASS).loss_curve_, rtol=1e-7)


def test_a_fit_inside_a_task_on_the_only_thread_finishes(
    client_of: Callable[[int], Client],
) -> None:
    X, y = data("multiclass")

    def fit_in_task() -> list[float]:
        assert get_client() is not None
        curve: list[float] = MULTICLASS.ours().fit(*chunked(X, y)).loss_curve_
        return curve

    curve = client_of(1).submit(fit_in_task, pure=False).result(timeout=120)
    assert_allclose(curve, expected(MULTICLASS).loss_curve_, rtol=1e-7)


def test_a_grid_search_on_the_same_cluster_finds_what_scikit_learn_finds(
    client_of: Callable[[int], Client],
) -> None:
    X, y = data("multiclass")
    grid = {"alpha": [1e-4, 1.0, 30.0]}
    client_of(1)
    with joblib.parallel_config("dask"):
        ours = GridSearchCV(
            DistributedMLPClassifier((5,), max_iter=5, random_state=0), grid, cv=3
        ).fit(X, y)
    theirs = GridSearchCV(MLPClassifier((5,), max_iter=5, random_state=0), grid, cv=3).fit(
        X, y
    )
    assert ours.best_params_ == theirs.best_params_
    assert_allclose(ours.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"])


def test_nothing_is_left_on_the_cluster_after_a_fit(
    clusters: Callable[[int], LocalCluster], client: Client
) -> None:
    X, y = data("multiclass")
    # dask may keep some tasks of tests of lazy results, which ran before on this cluster.
    before = set(clusters(2).scheduler.tasks)
    MULTICLASS.ours().fit(*chunked(X, y))
    left = set(clusters(2).scheduler.tasks) - before
    assert forgets_all_tasks(clusters(2), but=before), f"left: {left}"

    def rounds(dask_worker: Any) -> int:
        plugin = dask_worker.plugins["skdtheano-exchange"]
        return len(plugin._open) + len(plugin._waiting)

    assert set(client.run(rounds).values()) == {0}
