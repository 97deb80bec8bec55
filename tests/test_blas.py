"""BLAS threads while a model is trained."""

import threading

import pytest

from skdtheano.runtime.blas import blas_threads, threads_of_process, threads_that_pay
from skdtheano.runtime.parameters import Layout


def test_small_products_take_one_thread_and_large_ones_all() -> None:
    assert threads_that_pay(Layout((64, 100, 10)), 200, 8) == 1
    assert threads_that_pay(Layout((784, 256, 128, 10)), 256, 8) == 5
    assert threads_that_pay(Layout((784, 1000, 1000, 10)), 1024, 8) == 8
    assert threads_that_pay(Layout((784, 1000, 1000, 10)), 1024, 1) == 1


@pytest.mark.parametrize("outer, inner", [(1, 2), (2, 1)])
def test_the_fewest_that_are_asked_for_are_taken_and_all_are_put_back(
    outer: int, inner: int
) -> None:
    before = threads_of_process()
    with blas_threads(outer):
        assert threads_of_process() == outer
        with blas_threads(inner):
            assert threads_of_process() == 1
        assert threads_of_process() == outer
    assert threads_of_process() == before


def test_threads_that_ask_at_once_leave_the_number_as_it_was() -> None:
    before = threads_of_process()

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
    assert threads_of_process() == before
