"""Sums between workers: exact, alike on every rank, and counted."""

import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from distributed import Client, get_worker, secede
from numpy.testing import assert_array_equal

from skdtheano.runtime.collective import Peers
from skdtheano.runtime.mailbox import ExchangePlugin, Mailbox, RoundAborted

pytestmark = pytest.mark.cluster


def rank_vector(rank: int, step: int, size: int) -> np.ndarray:
    return np.random.RandomState(100 * step + rank).standard_normal(size)


def in_round(
    rank: int, addresses: list[str], round_id: str, act: Callable[[Peers], Any]
) -> Any:
    """Run `act` as one rank of a round; runs as a task."""
    worker = get_worker()
    key = str(worker.get_current_task())
    secede()
    plugin = worker.plugins[ExchangePlugin.name]
    with Peers(plugin, round_id, rank, addresses, 5.0, key) as peers:
        return act(peers)


def run_round(client: Client, act: Callable[[Peers], Any]) -> list[Any]:
    """The futures of one task per worker."""
    client.register_plugin(ExchangePlugin())
    addresses = sorted(client.nthreads())
    round_id = uuid.uuid4().hex
    return [
        client.submit(in_round, rank, addresses, round_id, act, workers=[address], pure=False)
        for rank, address in enumerate(addresses)
    ]


@pytest.mark.parametrize("n_workers", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 1000, 300_001], ids="{}-numbers".format)
def test_sums_are_exact_and_the_same_bits_on_every_rank(
    client_of: Callable[[int], Client], n_workers: int, size: int
) -> None:
    def act(peers: Peers) -> list[tuple[tuple[float, ...], np.ndarray]]:
        return [
            peers.sum((float(peers.rank), 0.5), rank_vector(peers.rank, step, size))
            for step in range(3)
        ]

    client = client_of(n_workers)
    results = client.gather(run_round(client, act))
    for step in range(3):
        expected = rank_vector(0, step, size)
        for rank in range(1, n_workers):
            expected = expected + rank_vector(rank, step, size)
        for result in results:
            scalars, vector = result[step]
            assert scalars == (sum(range(n_workers)), 0.5 * n_workers)
            assert_array_equal(vector, expected)


@pytest.mark.parametrize(
    ("size", "per_sum", "vectors"),
    [(100, 2, 2.0), (300_000, 4, 4 / 3)],
    ids=["all to all", "by slices"],
)
def test_a_sum_costs_each_of_three_ranks_so_many_messages_and_bytes(
    client_of: Callable[[int], Client], size: int, per_sum: int, vectors: float
) -> None:
    """All to all sends the vector to both others; slices send 2 (n - 1) / n of it."""
    steps = 5

    def act(peers: Peers) -> tuple[int, int]:
        sent: list[int] = []
        exchange = peers._exchange

        def counted(outgoing: dict[int, Any]) -> Any:
            sent.extend(vector.nbytes for _, vector in outgoing.values())
            return exchange(outgoing)

        vars(peers)["_exchange"] = counted
        for _ in range(steps):
            peers.sum((), np.ones(size))
        return len(sent), sum(sent)

    client = client_of(3)
    for messages, n_bytes in client.gather(run_round(client, act)):
        assert messages == steps * per_sum
        assert n_bytes == pytest.approx(steps * vectors * 8 * size, rel=1e-4)


def test_a_rank_that_fails_tells_the_others_why(client: Client) -> None:
    def act(peers: Peers) -> None:
        peers.sum((), np.ones(3))
        if peers.rank == 1:
            raise ZeroDivisionError("no rows")
        peers.sum((), np.ones(3))

    first, second = run_round(client, act)
    assert isinstance(second.exception(), ZeroDivisionError)
    failure = first.exception()
    assert isinstance(failure, RoundAborted)
    assert "ZeroDivisionError: no rows" in str(failure)


def test_a_cancelled_round_ends_while_it_waits(client: Client) -> None:
    def act(peers: Peers) -> None:
        if peers.rank == 0:
            peers.sum((), np.ones(3))
        get_worker().log_event("ended", peers.rank)

    client.register_plugin(ExchangePlugin())
    addresses = sorted(client.nthreads())
    alone = client.submit(
        in_round, 0, addresses, uuid.uuid4().hex, act, workers=[addresses[0]], pure=False
    )
    plugin_rounds = client.run(_open_rounds, workers=[addresses[0]])
    while plugin_rounds[addresses[0]] == 0:  # until the task has taken its seat
        plugin_rounds = client.run(_open_rounds, workers=[addresses[0]])
    client.cancel([alone], force=True)
    while client.run(_open_rounds, workers=[addresses[0]])[addresses[0]]:
        pass


def _open_rounds(dask_worker: Any) -> int:
    return len(dask_worker.plugins[ExchangePlugin.name]._open)


@pytest.fixture
def plugin() -> ExchangePlugin:
    """The plugin on a worker that only keeps its handlers."""
    made = ExchangePlugin()
    made.setup(SimpleNamespace(handlers={}, address="tcp://here"))
    return made


def test_messages_of_a_closed_round_are_dropped(plugin: ExchangePlugin) -> None:
    plugin.receive("round", 0, 1, [], np.ones(2))  # before this worker's own task has begun
    assert set(plugin.open("round").take(0, {1}, timeout=0)) == {1}
    plugin.close("round")
    plugin.receive("round", 1, 1, [], np.ones(2))
    plugin.abort("round", "late")
    assert not plugin._open and not plugin._waiting


def test_a_round_that_was_aborted_before_its_task_began_ends_at_once(
    plugin: ExchangePlugin,
) -> None:
    plugin.receive("round", 0, 1, [], np.ones(2))
    plugin.abort("round", "worker tcp://there failed")
    assert not plugin._waiting
    with pytest.raises(RoundAborted, match="tcp://there failed"):
        plugin.open("round").take(0, {1}, timeout=60)


def test_rounds_whose_task_never_comes_are_forgotten(plugin: ExchangePlugin) -> None:
    for number in range(5000):
        plugin.receive(f"never-{number}", 0, 1, [], np.ones(2))
        plugin.close(f"over-{number}")
    assert len(plugin._waiting) == len(plugin._ended) == 1000


def test_a_worker_that_closes_ends_its_rounds(plugin: ExchangePlugin) -> None:
    mailbox = plugin.open("round")
    plugin.teardown(plugin.worker)
    with pytest.raises(RoundAborted, match="tcp://here is closing"):
        mailbox.take(0, {1}, timeout=0)


def test_the_first_failure_of_a_round_is_the_one_that_is_raised() -> None:
    mailbox = Mailbox()
    mailbox.put(0, 1, ((), np.ones(2)))
    assert mailbox.take(1, {1}, timeout=0) == {}
    mailbox.fail(RoundAborted("first"))
    mailbox.fail(RoundAborted("second"))
    with pytest.raises(RoundAborted, match="first"):
        mailbox.take(1, {1}, timeout=0)
    # What all had sent before counts: whoever failed did so after it.
    assert set(mailbox.take(0, {1}, timeout=0)) == {1}
