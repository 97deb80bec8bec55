"""Sums between workers: exact, alike on every rank, and counted."""

import asyncio
import gc
import os
import signal
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster, get_worker, secede
from numpy.testing import assert_array_equal

from skdtheano.runtime.comms import begun
from skdtheano.runtime.mailbox import ExchangePlugin, Mailbox, PeerLost, RoundAborted
from skdtheano.runtime.peers import Peers
from skdtheano.runtime.shared import SharedWire

pytestmark = pytest.mark.cluster


def rank_vector(rank: int, step: int, size: int) -> np.ndarray:
    return np.random.RandomState(100 * step + rank).standard_normal(size)


def in_round(
    rank: int,
    addresses: list[str],
    round_id: str,
    act: Callable[[Peers], Any],
    shared_memory: bool,
    host: str | None,
    deadline: float = 5.0,
) -> Any:
    """Run `act` as one rank of a round; runs as a task."""
    worker = get_worker()
    key = str(worker.get_current_task())
    secede()
    plugin = worker.plugins[ExchangePlugin.name]
    with (
        dask.config.set({"skdtheano.host": host}),
        Peers(plugin, round_id, rank, addresses, deadline, key, shared_memory) as peers,
    ):
        return act(peers)


def run_round(
    client: Client,
    act: Callable[[Peers], Any],
    shared_memory: bool = True,
    hosts: Sequence[str | None] | None = None,
    deadline: float = 5.0,
) -> list[Any]:
    """The futures of one task per worker."""
    client.register_plugin(ExchangePlugin())
    addresses = sorted(client.nthreads())
    round_id = uuid.uuid4().hex
    return [
        client.submit(
            in_round,
            rank,
            addresses,
            round_id,
            act,
            shared_memory,
            None if hosts is None else hosts[rank],
            deadline,
            workers=[address],
            pure=False,
        )
        for rank, address in enumerate(addresses)
    ]


def summed(peers: Peers, size: int, dtype: str = "f8", steps: int = 4) -> list[Any]:
    """What a rank has after some steps that leave the sum of the vectors in another one."""
    kind = np.dtype(dtype)
    vectors, whole = [peers.room(size, kind) for _ in range(2)], peers.room(size, kind)
    share, told = peers.share(size, kind), []
    for step in range(steps):
        vector = vectors[step % 2]
        vector[...] = rank_vector(peers.rank, step, size)
        scalars, total = peers.sum((float(peers.rank), 0.5), vector)
        assert total.shape == whole[share].shape
        whole[share] = total
        counted = peers.complete((1.0,), whole)
        told.append((scalars, whole.copy(), counted))
    return told


def total_of(hosts: Sequence[Sequence[int]], step: int, size: int, dtype: str) -> np.ndarray:
    """Ranks added in order on each host, then the hosts."""
    sums = [
        reduce(np.add, [rank_vector(rank, step, size).astype(dtype) for rank in ranks])
        for ranks in hosts
    ]
    return reduce(np.add, sums)


ROUNDS = {
    "alone": (1, True, None, [[0]]),
    "shared memory": (2, True, None, [[0, 1]]),
    "shared memory, 3 ranks": (3, True, None, [[0, 1, 2]]),
    "comms": (3, False, None, [[0], [1], [2]]),
    "two hosts": (3, True, ["a", "b", "a"], [[0, 2], [1]]),
}


@pytest.mark.parametrize("kind", ROUNDS)
@pytest.mark.parametrize("size", [1, 1000, 300_001], ids="{}-numbers".format)
def test_sums_are_exact_and_the_same_bits_on_every_rank(
    client_of: Callable[[int], Client], kind: str, size: int
) -> None:
    n_workers, shared_memory, names, hosts = ROUNDS[kind]

    def act(peers: Peers) -> tuple[Any, ...]:
        doubles = summed(peers, size), "f8"
        return peers.hosts, doubles, (summed(peers, size, "f4"), "f4")

    client = client_of(n_workers)
    results = client.gather(run_round(client, act, shared_memory, names))
    for found, *runs in results:
        assert found == hosts
        for run, dtype in runs:
            for step, (scalars, whole, _) in enumerate(run):
                assert scalars == (sum(range(n_workers)), 0.5 * n_workers)
                assert_array_equal(whole, total_of(hosts, step, size, dtype))


def test_where_a_segment_cannot_be_read_all_ranks_fall_back_to_comms(
    client_of: Callable[[int], Client],
) -> None:
    """One rank of three hands out a token that is not that of its segment."""

    def act(peers: Peers) -> tuple[Any, Any]:
        return peers.hosts, summed(peers, 1000)

    def spoil(dask_worker: Any) -> None:
        def card(wire: SharedWire) -> dict[str, Any]:
            return {**SharedWire._true_card(wire), "token": "00" * 32}

        vars(SharedWire).get("_true_card") or setattr(
            SharedWire, "_true_card", SharedWire.card
        )
        setattr(SharedWire, "card", card)  # noqa: B010

    def mend(dask_worker: Any) -> None:
        setattr(SharedWire, "card", SharedWire._true_card)  # noqa: B010

    client = client_of(3)
    victim = sorted(client.nthreads())[1:2]
    client.run(spoil, workers=victim)
    try:
        results = client.gather(run_round(client, act))
    finally:
        client.run(mend, workers=victim)
    for found, run in results:
        assert found == [[0], [1], [2]]
        for step, (_, whole, _) in enumerate(run):
            assert_array_equal(whole, total_of(found, step, 1000, "f8"))


@pytest.mark.parametrize("shared_memory", [True, False], ids=["shared memory", "comms"])
def test_rounds_leave_no_descriptor_and_no_mapping(
    client: Client, shared_memory: bool
) -> None:
    def act(peers: Peers) -> None:
        summed(peers, 100_000)

    client.gather(run_round(client, act, shared_memory))  # connects the workers for good
    before = client.run(_litter)
    for _ in range(5):
        client.gather(run_round(client, act, shared_memory))
    assert client.run(_litter) == before
    assert all(n == 0 for n, _ in before.values())


def _litter() -> tuple[int, int]:
    """Segments that are open or mapped, and pipes that are open."""
    gc.collect()
    names = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    names += Path("/proc/self/maps").read_text().splitlines()
    segments = sum("memfd:skdtheano" in name for name in names)
    return segments, sum(name.startswith("pipe:") for name in names)


def test_a_killed_rank_ends_the_round_of_the_others_at_once() -> None:
    """In mid-round, where nothing but memory is exchanged, its name is told."""

    def act(peers: Peers) -> None:
        summed(peers, 100_000)
        if peers.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        summed(peers, 100_000)

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        lost = sorted(client.nthreads())[1]
        first, _ = run_round(client, act)
        failure = first.exception(timeout=20)
    assert isinstance(failure, PeerLost)
    assert f"worker {lost} closed its connection" in str(failure)


def test_a_rank_that_fails_tells_the_others_why(client: Client) -> None:
    def act(peers: Peers) -> None:
        ones = peers.room(3, np.dtype("f8"))
        peers.sum((), ones)
        if peers.rank == 1:
            raise ZeroDivisionError("no rows")
        peers.sum((), ones)

    first, second = run_round(client, act)
    assert isinstance(second.exception(), ZeroDivisionError)
    failure = first.exception()
    assert isinstance(failure, RoundAborted)
    assert "ZeroDivisionError: no rows" in str(failure)


@pytest.mark.parametrize("shared_memory", [True, False])
def test_a_rank_that_leaves_early_is_not_awaited_for_ever(
    client: Client, shared_memory: bool
) -> None:
    """Its worker is well, and answers: but not that it is still in the round."""

    def act(peers: Peers) -> float:
        vector = peers.room(10, np.dtype(float))
        for _ in range(1 + peers.rank):  # the last rank sums once more
            peers.sum((), vector)
        return 0.0

    early, late = run_round(client, act, shared_memory, deadline=0.5)
    assert early.result(timeout=60) == 0.0
    with pytest.raises(PeerLost, match="has left the round"):
        late.result(timeout=60)


def test_a_cancelled_round_ends_while_it_waits(client: Client) -> None:
    def act(peers: Peers) -> None:
        if peers.rank == 0:
            peers.sum((), peers.room(3, np.dtype("f8")))
        get_worker().log_event("ended", peers.rank)

    client.register_plugin(ExchangePlugin())
    addresses = sorted(client.nthreads())
    alone = client.submit(
        in_round,
        0,
        addresses,
        uuid.uuid4().hex,
        act,
        True,
        None,
        workers=[addresses[0]],
        pure=False,
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


def test_a_round_wakes_when_the_last_part_that_it_waits_for_is_there() -> None:
    mailbox, parts = Mailbox(), []

    def wait() -> None:
        parts.append(mailbox.take(3, {1, 2}, timeout=60))

    for late in ((1, 2), (2, 1)):
        waiting = threading.Thread(target=wait)
        waiting.start()
        mailbox.put(4, late[0], ((), np.ones(1)))  # of the step after it
        mailbox.put(3, late[0], ((), np.ones(1)))
        while mailbox._awaited != {(3, late[1])}:
            pass
        assert waiting.is_alive()
        mailbox.put(3, late[1], ((), np.ones(1)))
        waiting.join(timeout=30)
        assert set(parts.pop()) == {1, 2}
    assert mailbox._bell.locked()  # no ring is left over for the next wait


def test_a_wait_that_has_timed_out_leaves_nothing_behind() -> None:
    mailbox = Mailbox()
    mailbox.put(0, 1, ((), np.ones(1)))
    assert set(mailbox.take(0, {1, 2}, timeout=0)) == {1}
    mailbox.put(0, 2, ((), np.ones(1)))  # rings for nobody
    assert mailbox._bell.locked()
    assert mailbox.take(1, {1}, timeout=0) == {}
    assert set(mailbox.take(0, {2}, timeout=0)) == {2}


def test_a_failure_wakes_the_round_at_once() -> None:
    mailbox, raised = Mailbox(), []

    def wait() -> None:
        with pytest.raises(RoundAborted, match="told"):
            mailbox.take(0, {1}, timeout=60)
        raised.append(True)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not mailbox._awaited:
        pass
    mailbox.fail(RoundAborted("told"))
    waiting.join(timeout=30)
    assert raised == [True]


def test_what_does_not_wait_runs_at_once_and_the_rest_in_a_task() -> None:
    done: list[str] = []

    async def work(waits_for: list[Any], fails: bool = False) -> None:
        done.append("begun")
        for future in waits_for:
            try:
                done.append(await future)
            except LookupError:
                done.append("caught")
        if fails:
            raise ZeroDivisionError
        done.append("ended")

    async def run() -> None:
        loop = asyncio.get_running_loop()
        assert begun(work([])) is None
        assert done == ["begun", "ended"]
        first, second, third = (loop.create_future() for _ in range(3))
        done.clear()
        task = begun(work([first, second, third]))
        assert task is not None and done == ["begun"]
        first.set_result("first")
        second.set_exception(LookupError())
        await asyncio.sleep(0)
        third.set_result("third")
        await task
        assert done == ["begun", "first", "caught", "third", "ended"]
        late = loop.create_future()
        failing = begun(work([late], fails=True))
        assert failing is not None
        late.set_result("late")
        with pytest.raises(ZeroDivisionError):
            await failing
        cancelled = begun(work([loop.create_future()]))
        assert cancelled is not None
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled

    asyncio.run(run())
