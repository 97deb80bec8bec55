"""Fits that cannot go on: what is said, and what is kept."""

import os
import re
import signal
import socket
import time
from types import SimpleNamespace
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster, SchedulerPlugin, Worker
from numpy.testing import assert_allclose

from skdtheano import DistributedMLPRegressor
from skdtheano.runtime import workers
from skdtheano.runtime.failures import RoundFailed
from skdtheano.runtime.rounds import ClusterRuntime

pytestmark = [
    pytest.mark.cluster,
    # A few epochs are not meant to converge.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

RNG = np.random.RandomState(0)
X = RNG.normal(size=(60, 3))
Y = X @ [1.0, -1.0, 0.5]


def regressor(**parameters: Any) -> DistributedMLPRegressor:
    chosen = {"hidden_layer_sizes": (4,), "random_state": 0, "max_iter": 6, "batch_size": 20}
    return DistributedMLPRegressor(**{**chosen, **parameters})


def in_blocks(X: np.ndarray, y: np.ndarray) -> tuple[da.Array, da.Array]:
    return da.from_array(X, chunks=(15, 3)), da.from_array(y, chunks=15)


@pytest.mark.parametrize("where", ["in memory", "without a cluster", "on a cluster"])
def test_the_block_of_a_loss_that_overflows_is_named(
    where: str, request: pytest.FixtureRequest
) -> None:
    if where == "on a cluster":
        request.getfixturevalue("client")
    y = Y.copy()
    y[50] = 1e200  # in block 3; its square overflows
    given = (X, y) if where == "in memory" else in_blocks(X, y)
    with pytest.raises(ValueError, match=r"that of minibatch [123] of epoch 1") as told:
        regressor().fit(*given)
    named = "in its rows of block 3." in str(told.value)
    assert named == (where != "in memory")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, as with scikit-learn
def test_a_model_that_diverges_keeps_its_last_finite_epoch() -> None:
    reg = regressor(solver="sgd", learning_rate_init=0.01, warm_start=True).fit(X, Y)
    before = [coef.copy() for coef in reg.coefs_]
    reg.set_params(learning_rate_init=1e150)
    with pytest.raises(ValueError, match=r"non-finite.*gradient that is not finite"):
        reg.fit(X, Y)
    # No epoch of this fit was finite, so the model is the one before.
    for ours, theirs in zip(reg.coefs_, before, strict=True):
        assert_allclose(ours, theirs, rtol=0)


@pytest.mark.usefixtures("an_epoch_a_round")
def test_a_round_that_keeps_failing_leaves_what_the_epochs_before_learned(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_round = ClusterRuntime._run_round

    def lost(self: ClusterRuntime, epochs: Any, course: Any) -> list[float]:
        if course.settings().epoch == 4:
            raise RoundFailed("lost worker tcp://10.0.0.1:1")
        return run_round(self, epochs, course)

    monkeypatch.setattr(ClusterRuntime, "_run_round", lost)
    reg = regressor()
    with pytest.raises(RuntimeError, match=r"Epoch 4 failed 3 times.*\n1\. lost") as told:
        reg.fit(*in_blocks(X, Y))
    assert "learned in 3 epochs before" in told.value.__notes__[-1]
    short = regressor().set_params(max_iter=3).fit(X, Y)
    assert reg.n_iter_ == 3
    assert_allclose(reg.loss_curve_, short.loss_curve_, rtol=1e-9)
    assert_allclose(reg.coefs_[0], short.coefs_[0], rtol=1e-7)
    monkeypatch.undo()
    # It can be gone on with, as after Ctrl-C.
    reg.partial_fit(*in_blocks(X, Y))
    assert reg.t_ == 4 * len(X)


@pytest.mark.usefixtures("an_epoch_a_round")
@pytest.mark.exhaustive
def test_a_round_that_loses_three_workers_names_them_and_ends_the_fit() -> None:
    lost: list[str] = []

    class Killer(SchedulerPlugin):
        """Kills who is given the first task of a round, if it is of epoch 3."""

        name = "killer"

        def transition(self, key: Any, start: str, finish: str, *_: Any, **more: Any) -> None:
            is_first = str(key).startswith("skdtheano-epoch-3-") and str(key).endswith("-0")
            if finish == "processing" and is_first and len(lost) < 3:
                address = cluster.scheduler.tasks[key].processing_on.address
                [nanny] = [n for n in cluster.workers.values() if n.worker_address == address]
                lost.append(address)
                os.kill(nanny.pid, signal.SIGKILL)

    with (
        LocalCluster(
            n_workers=4, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster),
    ):
        cluster.scheduler.add_plugin(Killer())
        reg = regressor()
        with pytest.raises(RuntimeError, match="Epoch 3 failed 3 times") as told:
            reg.fit(*in_blocks(X, Y))
    assert len(lost) == 3
    for number, address in enumerate(lost):
        assert re.search(rf"{number + 1}\. .*{address}", str(told.value))
    assert reg.n_iter_ == 2


@pytest.mark.usefixtures("an_epoch_a_round")
@pytest.mark.exhaustive
@pytest.mark.parametrize("when", ["before the fit", "between epochs"])
def test_workers_that_all_stay_paused_end_the_fit(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pause() -> None:
        def set_fraction(dask_worker: Worker) -> None:
            dask_worker.memory_manager.memory_pause_fraction = 1e-9

        client.run(set_fraction)
        while {w["status"] for w in client.scheduler_info()["workers"].values()} != {"paused"}:
            time.sleep(0.05)

    run_epochs = ClusterRuntime.run_epochs

    def paused(self: ClusterRuntime, epochs: Any, course: Any) -> list[float]:
        if course.settings().epoch == 3:
            pause()
        return run_epochs(self, epochs, course)

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
        dask.config.set({"skdtheano.no-worker-timeout": "2 s"}),
    ):
        if when == "before the fit":
            pause()
        else:
            monkeypatch.setattr(ClusterRuntime, "run_epochs", paused)
        reg = regressor()
        with pytest.raises(RuntimeError, match=r"been paused for .* s: .*memory_limit="):
            reg.fit(*in_blocks(X, Y))
    assert getattr(reg, "n_iter_", 0) == (0 if when == "before the fit" else 2)


@pytest.mark.usefixtures("an_epoch_a_round")
@pytest.mark.exhaustive
def test_a_worker_that_is_restarted_at_its_address_between_epochs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No worker has joined or left then, and what it held is gone."""
    run_epochs = ClusterRuntime.run_epochs

    def restarted(self: ClusterRuntime, epochs: Any, course: Any) -> list[float]:
        if course.settings().epoch == 3:
            client.restart_workers(before, timeout=60)
            client.wait_for_workers(1, timeout=60)
        return run_epochs(self, epochs, course)

    monkeypatch.setattr(ClusterRuntime, "run_epochs", restarted)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            worker_port=port,
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        before = list(client.nthreads())
        reg = regressor().fit(*in_blocks(X, Y))
        assert list(client.nthreads()) == before
    monkeypatch.undo()
    assert_allclose(reg.loss_curve_, regressor().fit(X, Y).loss_curve_, rtol=1e-9)


@pytest.mark.parametrize("setting", ["worker-deadline", "no-worker-timeout"])
@pytest.mark.parametrize("given", ["soon", 0, -3, None, "-2 s"])
def test_a_time_that_is_none_is_refused(client: Client, setting: str, given: Any) -> None:
    with (
        dask.config.set({f"skdtheano.{setting}": given}),
        pytest.raises(ValueError, match=rf"skdtheano\.{setting}=.*'2 minutes'"),
    ):
        regressor().fit(*in_blocks(X, Y))


def test_times_are_texts_or_seconds(client: Client) -> None:
    from skdtheano.runtime.cluster import ClusterSite

    with dask.config.set({"skdtheano.worker-deadline": "2 minutes"}):
        assert ClusterSite(client).deadline == 120
    with dask.config.set({"skdtheano.no-worker-timeout": 7.5}):
        assert ClusterSite(client).patience == 7.5


def test_time_in_which_nobody_looked_is_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: now))
    beats = workers.Heartbeats()
    assert beats.silent({"a": 1.0, "b": 1.0}, limit=10) == []
    now = 60.0  # a laptop slept
    assert beats.silent({"a": 1.0, "b": 1.0}, limit=10) == []
    for now in np.arange(61.0, 70.0):
        assert beats.silent({"a": 1.0, "b": now}, limit=10) == []
    now = 71.0
    assert beats.silent({"a": 1.0, "b": now}, limit=10) == ["a"]
    now = 72.0
    assert beats.silent({"a": 2.0, "b": now}, limit=10) == []
