"""Memory that another process can read: what it finds there, and what it refuses."""

import os
import stat
import sys
from collections.abc import Iterator

import dask
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skdtheano.runtime.hosts import dissolved, grouped, host_of_process
from skdtheano.runtime.segments import KEPT_STEPS, MAX_SCALARS, Reading, Segment, open_of

only_linux = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason=f"No anonymous files on {sys.platform}."
)
F4 = np.dtype("f4")


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment()
    yield made
    made.close()


@pytest.fixture
def reading(segment: Segment) -> Iterator[Reading]:
    opened = Reading(os.getpid(), segment.descriptor, segment.token)
    yield opened
    opened.close()


@only_linux
def test_a_reader_sees_rooms_and_posts(segment: Segment, reading: Reading) -> None:
    # More rooms than a chunk has, of several lengths.
    for n in [0, 1, 5000] * 10:
        mine, place = segment.room(n, F4)
        assert_array_equal(mine, np.zeros(n))
        mine[...] = np.arange(n)
        theirs = reading.vector(place)
        assert_array_equal(theirs, np.arange(n))
        assert theirs.dtype == F4 and not theirs.flags.writeable
    assert reading.step() == 0
    for step in range(1, 3 * KEPT_STEPS):
        segment.post(step, (step + 0.5,) * (step % 3))
        assert reading.step() == step
        assert reading.scalars(step) == (step + 0.5,) * (step % 3)
    assert reading.scalars(step - 1) == (step - 0.5,) * ((step - 1) % 3)
    with pytest.raises(ValueError, match=f"{MAX_SCALARS + 1} scalars"):
        segment.post(step + 1, (0.0,) * (MAX_SCALARS + 1))


@only_linux
def test_a_rank_tells_for_whom_it_sleeps(segment: Segment, reading: Reading) -> None:
    assert not reading.awaits(0)
    segment.await_rank(0)
    assert reading.awaits(0) and not reading.awaits(1)
    segment.await_rank(None)
    assert not reading.awaits(0)


@only_linux
def test_what_is_not_the_segment_is_refused(segment: Segment) -> None:
    pid, before = os.getpid(), os.listdir("/proc/self/fd")
    with pytest.raises(ValueError, match="of somebody else"):
        Reading(pid, segment.descriptor, b"?" * len(segment.token))
    bell, button = os.pipe()
    with pytest.raises(ValueError, match="of somebody else"):
        Reading(pid, bell, segment.token)
    with pytest.raises(ValueError, match="of somebody else"):
        open_of(pid, segment.descriptor, os.O_WRONLY, stat.S_ISFIFO)
    os.close(bell)
    os.close(button)
    with pytest.raises(OSError):
        Reading(pid, bell, segment.token)  # nothing is open there
    assert os.listdir("/proc/self/fd") == before


def test_ranks_of_one_host_are_grouped_until_one_of_them_cannot_read() -> None:
    hosts = grouped({2: "a", 0: "b", 1: "a", 3: None, 4: None, 5: "b"})
    assert hosts == [[0, 5], [1, 2], [3], [4]]
    assert dissolved(hosts, set()) == hosts
    assert dissolved(hosts, {2}) == [[0, 5], [1], [2], [3], [4]]
    assert dissolved(hosts, {0, 1}) == [[0], [1], [2], [3], [4], [5]]


@only_linux
def test_settings_name_the_host_and_switch_sharing_off() -> None:
    here = host_of_process()
    assert here is not None and here == host_of_process()
    with dask.config.set({"skdtheano.host": "elsewhere"}):
        assert host_of_process() not in (here, None)
    with dask.config.set({"skdtheano.shared-memory": False}):
        assert host_of_process() is None
