"""Every fault at every place of a fit: the result is as if nothing had been."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from threading import Event, Thread
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from cases import Case, data
from distributed import Client, LocalCluster, Worker
from numpy.testing import assert_allclose
from shared_clusters import clusters_by_size
from traps import TOPIC, Place, clear_trap, loaded, set_trap

from skdtheano.runtime import order
from skdtheano.runtime.rounds import ClusterRuntime

pytestmark = [
    pytest.mark.cluster,
    # A few epochs are not meant to converge.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

EPOCHS = 5
#: Seconds of silence after which a worker counts as lost, in these tests.
DEADLINE = 4.0

PLACES: dict[str, Place | None] = {
    "loading": Place("load", 1),
    "first epoch": Place("run_epoch", 1, 1),
    "mid-epoch": Place("run_epoch", 3, 4),
    "between epochs": None,
    "validation": Place("score_sums", 3),
    "lbfgs": Place("loss_sums", 4),
    "by blocks": Place("run_epoch", 3, 4),
    "validation by blocks": Place("score_sums", 3),
}
#: What a model has learned if its fit ends there.
EPOCHS_BEFORE = {
    "loading": 0,
    "first epoch": 0,
    "mid-epoch": 2,
    "between epochs": 2,
    "validation": 3,
    "lbfgs": 0,
    "by blocks": 2,
    "validation by blocks": 3,
}
FAULTS = (
    "SIGKILL",
    "SIGSTOP",
    "nanny restart",
    "closed comm",
    "retire",
    "join",
    "pause",
    "slow worker",
    "exception",
    "not finite",
)
#: Those of the default lane; `tests/test_rounds.py` and `test_endings.py` have more.
ALWAYS = {
    ("SIGKILL", "mid-epoch", 1),
    ("SIGSTOP", "mid-epoch", 2),
    ("nanny restart", "between epochs", 2),
    ("retire", "mid-epoch", 2),
    ("exception", "validation", 2),
    ("not finite", "mid-epoch", 2),
}


def makes_sense(fault: str, place: str, n_workers: int) -> bool:
    if place.endswith("by blocks") and n_workers != 2:
        return False  # only the reading of rows differs
    if (fault, place) == ("SIGSTOP", "loading"):
        return False  # a user's function may be silent for as long as dask itself allows
    if fault == "retire" and n_workers == 1:
        return False  # nobody would be left
    if fault == "pause":  # stops nothing that has begun
        return place == "between epochs" and n_workers > 1
    if fault == "not finite":  # L-BFGS tries steps that overflow, and takes shorter ones
        return place in ("first epoch", "mid-epoch", "by blocks")
    if (fault, place) == ("exception", "loading"):
        return n_workers == 2
    # Between epochs no code of ours runs on a worker.
    return not (fault in ("slow worker", "exception") and place == "between epochs")


MATRIX = [
    pytest.param(
        *row,
        id="-".join(map(str, row)).replace(" ", "_"),
        # The engine has no part in it: one lane runs them.
        marks=pytest.mark.table if row in ALWAYS else pytest.mark.exhaustive,
    )
    for row in product(FAULTS, PLACES, (1, 2, 3))
    if makes_sense(*row)
]


def case_of(place: str) -> Case:
    optimizer = "lbfgs" if place == "lbfgs" else "adam"
    early = place.startswith("validation")
    return Case(optimizer, "tanh", "binary", weighted=False, early_stopping=early)


def parameters_of(place: str) -> dict[str, Any]:
    if place == "lbfgs":
        return {"max_iter": 8}
    more = {"shuffle": "blocks"} if place.endswith("by blocks") else {}
    return {"max_iter": EPOCHS, "batch_size": 16, **more}


@pytest.fixture(scope="module")
def clusters_to_damage() -> Iterator[Callable[[int], LocalCluster]]:
    """Clusters by number of workers, which a test leaves with as many as it found."""
    yield from clusters_by_size()


class Trouble:
    """A fault at a place of the next fit, on a cluster that is mended again afterwards."""

    def __init__(self, cluster: LocalCluster, fault: str, n_workers: int) -> None:
        self.cluster, self.fault, self.n_workers = cluster, fault, n_workers
        self.client = Client(cluster)
        self.client.wait_for_workers(n_workers)
        self.pids = self.client.run(os.getpid)
        self.victim = min(self.pids)
        self.told: list[float] = []
        self.ended = Event()
        self.ended.set()
        self.client.subscribe_topic(TOPIC, self._heard)

    def lurk(self, place: Place) -> None:
        self.client.run(set_trap, place, self.fault, workers=[self.victim])

    def _heard(self, event: Any) -> None:
        _, message = event
        if self.told:  # events of fits before
            return
        self.told.append(message["at"])
        if self.fault in ACTS:  # not in the client's event loop, which it needs
            self.ended.clear()
            Thread(target=self._act).start()

    def _act(self) -> None:
        try:
            ACTS[self.fault](self)
        finally:
            self.ended.set()

    def happen(self) -> None:
        """Now, from outside of the worker."""
        self.told.append(time.time())
        if self.fault in ACTS:
            ACTS[self.fault](self)
        elif self.fault == "closed comm":
            self.client.run(
                lambda dask_worker: dask_worker.loop.add_callback(
                    dask_worker.batched_stream.comm.abort
                ),
                workers=[self.victim],
            )
        else:
            sent = {"SIGKILL": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP}[self.fault]
            os.kill(self.pids[self.victim], sent)

    def status(self) -> str | None:
        """What the scheduler knows of the victim."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        known: str | None = workers.get(self.victim, {}).get("status")
        return known

    def mend(self) -> None:
        assert self.ended.wait(60)
        self.client.unsubscribe_topic(TOPIC)
        # Of a worker that has left by itself the cluster thinks that it will come back.
        if self.fault in ("retire", "closed comm"):
            self.client.close()
            self.cluster.close()
            return
        if self.fault == "pause":
            self.client.run(_set_pause_fraction, 0.8, workers=[self.victim])
            _wait_until(lambda: self.status() == "running")
        self.cluster.scale(self.n_workers)
        _wait_until(lambda: len(self.client.nthreads()) == self.n_workers)
        self.client.run(clear_trap)
        self.client.close()


def _wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "the cluster does not come back"
        time.sleep(0.05)


def _restart(trouble: Trouble) -> None:
    trouble.client.restart_workers([trouble.victim], timeout=60)


def _retire(trouble: Trouble) -> None:
    trouble.client.retire_workers([trouble.victim])


def _join(trouble: Trouble) -> None:
    trouble.cluster.scale(trouble.n_workers + 1)


def _pause(trouble: Trouble) -> None:
    """As a worker does whose memory is full."""
    trouble.client.run(_set_pause_fraction, 1e-9, workers=[trouble.victim])
    _wait_until(lambda: trouble.status() == "paused")


def _set_pause_fraction(fraction: float, dask_worker: Worker) -> None:
    dask_worker.memory_manager.memory_pause_fraction = fraction


ACTS: dict[str, Callable[[Trouble], None]] = {
    "pause": _pause,
    "nanny restart": _restart,
    "retire": _retire,
    "join": _join,
}


def between_epochs(
    monkeypatch: pytest.MonkeyPatch, epoch: int, act: Callable[[], None]
) -> None:
    run_epochs = ClusterRuntime.run_epochs

    def run(self: ClusterRuntime, epochs: Any, course: Any) -> list[float]:
        if course.settings().epoch == epoch:
            act()
        return run_epochs(self, epochs, course)

    monkeypatch.setattr(ClusterRuntime, "run_epochs", run)
    monkeypatch.setattr(ClusterRuntime, "n_at_once", lambda self: 1)


@pytest.mark.parametrize(("fault", "place", "n_workers"), MATRIX)
def test_a_fit_goes_on(
    fault: str,
    place: str,
    n_workers: int,
    clusters_to_damage: Callable[[int], LocalCluster],
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    X, y = data("binary")
    case, parameters = case_of(place), parameters_of(place)
    chunks = -(-len(X) // 6)
    table = da.from_array(X, chunks=(chunks, X.shape[1]))
    table = table.map_blocks(loaded, meta=X[:0])
    targets = da.from_array(y, chunks=chunks)
    if place.endswith("by blocks"):  # which scikit-learn has not: from this process
        monkeypatch.setattr(order, "WINDOW_BLOCKS", 2)
        theirs = case.ours(**parameters).fit(table, targets)
    else:
        theirs = case.theirs().set_params(**parameters).fit(X, y)
    trouble = Trouble(clusters_to_damage(n_workers), fault, n_workers)
    try:
        where = PLACES[place]
        if where is None:
            between_epochs(monkeypatch, 3, trouble.happen)
        else:
            trouble.lurk(where)
        ours = case.ours(**parameters)
        fit = partial(ours.fit, table, targets)
        limits = {"skdtheano.worker-deadline": DEADLINE, "skdtheano.no-worker-timeout": 4}
        with dask.config.set(limits):
            if fault == "exception":
                with pytest.raises(ZeroDivisionError, match="a fault of the tests"):
                    fit()
                assert not hasattr(ours, "coefs_")
                fit()  # the cluster is as it was
            elif fault == "not finite":
                assert where is not None
                said = f"minibatch {where.minibatch} of epoch {where.time}"
                with pytest.raises(ValueError, match=rf"non-finite parameter.*{said}"):
                    fit()
                if where.time > 1:
                    assert ours.n_iter_ == where.time - 1
                    assert_allclose(ours.loss_curve_, theirs.loss_curve_[: ours.n_iter_])
                    assert np.isfinite(ours.coefs_[0]).all()
                fit()
            elif fault == "closed comm" and n_workers == 1:
                # dask ends such a worker for good, its nanny too, and there is no other.
                with pytest.raises(RuntimeError, match="cluster has had no worker for 4 s"):
                    fit()
                assert getattr(ours, "n_iter_", 0) == EPOCHS_BEFORE[place]
                return
            else:
                fit()
        assert len(trouble.told) == 1, "nothing went wrong"
        for name, value in (("fault", fault), ("place", place)):
            record_property(name, value)
        record_property("recovery", time.time() - trouble.told[0])
        if fault in ("slow worker", "exception", "not finite"):
            assert trouble.client.run(os.getpid) == trouble.pids, "a worker was restarted"
    finally:
        trouble.mend()
    if place == "lbfgs":
        assert_allclose(ours.loss_, theirs.loss_, rtol=1e-7)
    else:
        assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-9)
    assert_allclose(ours.coefs_[0], theirs.coefs_[0], rtol=1e-7, atol=1e-9)
