"""BLAS threads while a model is trained."""

import os
import subprocess
import sys
import threading

import pytest
from threadpoolctl import threadpool_info

from skdtheano.runtime.blas import blas_threads, threads_of_process, threads_that_pay
from skdtheano.runtime.parameters import Layout

LEAVING = """
import sys, threading
from threadpoolctl import threadpool_info
from skdtheano.runtime.blas import blas_threads, threads_of_process

def taken():
    return max(one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas")

def both(first):  # whoever enters first leaves first
    entered, leave = threading.Event(), threading.Event()
    found = []
    def run():
        with blas_threads(1):
            found.append((taken(), threads_of_process()))
            entered.set()
            assert leave.wait(30)
    other = threading.Thread(target=run)
    def begin(): other.start(); assert entered.wait(30)
    def end(): leave.set(); other.join()
    if first == "other":
        begin()
        with blas_threads(1):
            end()
            found.append((taken(), threads_of_process()))
    else:
        with blas_threads(1):
            begin()
            found.append((taken(), threads_of_process()))
        found.append((taken(), threads_of_process()))
        end()
    return found

there = taken()
assert threads_of_process() == there
for first in sys.argv[1:]:
    found = both(first)
    assert found == [(1, there)] * len(found), found
    assert taken() == there, (first, taken())
print(there)
"""


def taken() -> int:
    return max(one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas")


def test_small_products_take_one_thread_and_large_ones_all() -> None:
    assert threads_that_pay(Layout((64, 100, 10)), 200, 8) == 1
    assert threads_that_pay(Layout((784, 256, 128, 10)), 256, 8) == 5
    assert threads_that_pay(Layout((784, 1000, 1000, 10)), 1024, 8) == 8
    assert threads_that_pay(Layout((784, 1000, 1000, 10)), 1024, 1) == 1


@pytest.mark.parametrize("outer, inner", [(1, 2), (2, 1)])
def test_the_fewest_that_are_asked_for_are_taken_and_all_are_put_back(
    outer: int, inner: int
) -> None:
    before = taken()
    with blas_threads(outer):
        assert taken() == outer
        with blas_threads(inner):
            assert taken() == 1
            assert threads_of_process() == before
        assert taken() == outer
    assert taken() == before


@pytest.mark.parametrize("order", [["other", "main"], ["main", "other"]])
def test_whoever_leaves_last_puts_back_what_was_there(order: list[str]) -> None:
    threads = {"OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    ended = subprocess.run(
        [sys.executable, "-c", LEAVING, *order],
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == [str(min(2, os.cpu_count() or 1))]


def test_threads_that_ask_at_once_leave_the_number_as_it_was() -> None:
    before = taken()

    def ask() -> None:
        for _ in range(200):
            with blas_threads(1):
                pass

    others = [threading.Thread(target=ask) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
    assert not any(other.is_alive() for other in others)
    assert taken() == before
