"""Tables that are larger than the memory of the workers, from their disks."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse
from dask.sizeof import sizeof
from distributed import Client, LocalCluster, Worker, get_worker
from numpy.testing import assert_allclose
from traps import TOPIC, Place, set_trap

from skdtheano import DistributedMLPClassifier
from skdtheano.runtime import order
from skdtheano.runtime.blocks import Block, RowBlocks
from skdtheano.runtime.rounds import ClusterRuntime
from skdtheano.runtime.tasks import _StoredBlocks

pytestmark = [
    pytest.mark.cluster,
    # The engine has no part in it: one lane runs them.
    pytest.mark.table,
    # A few epochs are not meant to converge.
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

MIB = 2**20
#: Bytes of rows that a worker keeps in memory; what is above is on its disk.
KEPT = 4 * MIB
LIMIT = 2048 * MIB
BLOCK_ROWS, N_BLOCKS, N_FEATURES = 4096, 64, 16


@contextmanager
def small_cluster() -> Iterator[Client]:
    """Two workers that keep little in memory."""
    with (
        dask.config.set({"distributed.worker.memory.target": KEPT / LIMIT}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            memory_limit=LIMIT,
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster, set_as_default=False) as one,
    ):
        yield one


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with small_cluster() as one:
        yield one


def table() -> tuple[Any, Any]:
    """Four times as large as what the workers keep in memory."""
    X = da.random.default_rng(0).normal(
        size=(N_BLOCKS * BLOCK_ROWS, N_FEATURES), chunks=(BLOCK_ROWS, N_FEATURES)
    )
    return X, (X[:, 0] * X[:, 1] + X[:, 2] > 0).astype(np.int8)


def kept_and_stored(dask_worker: Worker) -> tuple[int, frozenset[str]]:
    """Bytes in memory, and what is on the disk."""
    data: Any = dask_worker.data
    return sum(map(sizeof, data.memory.values())), frozenset(map(str, data.disk))


PARAMETERS: dict[str, Any] = {
    "hidden_layer_sizes": (8,),
    "batch_size": 5000,
    "max_iter": 3,
    "shuffle": "blocks",
    "early_stopping": True,
    "random_state": 0,
}


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many of them as a table has that is larger than any test could be."""
    monkeypatch.setattr(order, "WINDOW_BYTES", 4 * MIB)


@pytest.mark.usefixtures("windows")
def test_a_table_of_four_times_the_memory_is_trained_on_from_disk(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = table()
    assert X.nbytes == 4 * 2 * KEPT
    in_memory = DistributedMLPClassifier(**PARAMETERS).fit(X, y)
    found: list[dict[str, tuple[int, frozenset[str]]]] = []
    run_epochs = ClusterRuntime.run_epochs

    def watched(self: ClusterRuntime, *arguments: Any) -> list[float]:
        losses = run_epochs(self, *arguments)
        found.append(client.run(kept_and_stored))
        return losses

    monkeypatch.setattr(ClusterRuntime, "run_epochs", watched)
    stored = DistributedMLPClassifier(client=client, **PARAMETERS).fit(X, y)
    assert_allclose(stored.loss_curve_, in_memory.loss_curve_, rtol=1e-9)
    assert stored.validation_scores_ == in_memory.validation_scores_
    assert len(found) == 3
    for told in found:
        for address, (n_bytes, on_disk) in told.items():
            assert n_bytes <= KEPT
            assert len(on_disk) > N_BLOCKS / 4
            # Reading moves nothing to memory, and so writes nothing in its place.
            blocks = {key for key in on_disk if key.startswith("make_block")}
            assert len(blocks) > N_BLOCKS / 4
            assert blocks <= found[0][address][1]


@pytest.mark.exhaustive
@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("fault", ["SIGKILL", "retire"])
def test_a_worker_that_is_lost_with_its_disk_changes_nothing(fault: str) -> None:
    X, y = table()
    in_memory = DistributedMLPClassifier(**PARAMETERS).fit(X, y)
    told: list[Any] = []
    with small_cluster() as client:
        victim = min(client.nthreads())

        def heard(event: Any) -> None:
            told.append(event)
            if fault == "retire":  # not in the client's event loop, which it needs
                Thread(target=client.retire_workers, args=([victim],)).start()

        client.subscribe_topic(TOPIC, heard)
        client.run(set_trap, Place("run_epoch", 2, 20), fault, workers=[victim])
        ours = DistributedMLPClassifier(client=client, **PARAMETERS).fit(X, y)
    assert told, "nothing went wrong"
    assert_allclose(ours.loss_curve_, in_memory.loss_curve_, rtol=1e-9)
    assert ours.validation_scores_ == in_memory.validation_scores_


def block_of_a_mebibyte(number: int) -> Block:
    return Block(np.full((2**14, 8), float(number)), np.zeros(2**14, np.int32), None)


def stored_after_making_room(keys: list[str]) -> int:
    """Room for 12 MiB where there are 4: how many blocks are on the disk then."""
    worker: Any = get_worker()
    data, manager = worker.data, worker.memory_manager
    room = worker.monitor.get_process_memory() + 4 * MIB
    manager.memory_spill_fraction = room / manager.memory_limit
    _StoredBlocks(keys, worker).make_room(12 * 2**14)
    return len([key for key in keys if key in data.disk])


def test_room_is_made_before_a_window_is_read() -> None:
    with (
        dask.config.set(
            {
                # dask would make it too, when it looks at the memory, and too late.
                "distributed.worker.memory.monitor-interval": "1 hour",
                "distributed.worker.memory.target": 0.6,
            }
        ),
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            memory_limit=LIMIT,
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        blocks = client.map(block_of_a_mebibyte, range(16), key="block")
        client.gather(blocks)
        task = client.submit(stored_after_making_room, [block.key for block in blocks])
        assert 8 <= task.result(60) <= 9


@pytest.mark.usefixtures("windows")
def test_a_window_is_let_go_of_before_the_next_one_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[weakref.ref[Any]] = []
    alive: list[int] = []
    in_order = RowBlocks.in_order

    def watched(self: RowBlocks, rows: np.ndarray) -> Block:
        alive.append(sum(window() is not None for window in read))
        window = in_order(self, rows)
        read.append(weakref.ref(window.rows))
        return window

    monkeypatch.setattr(RowBlocks, "in_order", watched)
    X, y = table()
    DistributedMLPClassifier(**{**PARAMETERS, "max_iter": 1}).fit(X, y)
    assert alive == [0] * 4


@pytest.mark.parametrize(
    ("shuffle", "solver"),
    [
        (True, "lbfgs"),
        pytest.param(True, "adam", marks=pytest.mark.exhaustive),
        pytest.param(False, "sgd", marks=pytest.mark.exhaustive),
    ],
)
def test_rows_that_do_not_fit_and_are_needed_at_once_are_an_error(
    client: Client, shuffle: bool, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skdtheano.runtime.shares._MOST_OF_MEMORY", KEPT / LIMIT)
    clf = DistributedMLPClassifier(shuffle=shuffle, solver=solver, client=client)
    said = (
        r"Worker tcp://.* would hold 1[67]\.\d\d MiB of rows at once, and may take "
        r"2\.00 GiB of memory\. Fit with shuffle='blocks'"
    )
    with pytest.raises(ValueError, match=said):
        clf.fit(*table())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("n_blocks", [1, 3])
def test_rows_are_read_in_the_order_asked_for(
    n_blocks: int, sparse: bool, weighted: bool
) -> None:
    rng = np.random.RandomState(0)
    X, y = rng.standard_normal((30, 4)), rng.randint(3, size=30).astype(np.int32)
    weights = rng.uniform(size=30) if weighted else None
    size = 30 // n_blocks
    blocks = [
        Block(
            scipy.sparse.csr_array(X[i : i + size]) if sparse else X[i : i + size],
            y[i : i + size],
            None if weights is None else weights[i : i + size],
        )
        for i in range(0, 30, size)
    ]
    rows = rng.permutation(30)[:17]
    read = RowBlocks(blocks, [size] * n_blocks, 3, "float64").in_order(rows)
    assert_allclose(read.rows.toarray() if sparse else read.rows, X[rows])
    assert (read.targets == y[rows]).all()
    if weights is None:
        assert read.weights is None
    else:
        assert_allclose(read.weights, weights[rows])
