"""Calls of a function side by side and one after another, and arguments of odd kinds."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.sparse
from cutting import PYTENSOR, import_from, library, looped, pt
from numpy.testing import assert_allclose, assert_array_equal

import skdtheano
from skdtheano import PlacementError

pytestmark = pytest.mark.parity

A = np.random.RandomState(0).normal(size=(12, 3))
B = np.random.RandomState(1).normal(size=(12, 3))


def lazy(array: np.ndarray, chunks: Any = 4) -> da.Array:
    return da.from_array(array, chunks=(chunks, *array.shape[1:]))


def unknown(array: np.ndarray, chunks: Any = 4) -> da.Array:
    """The same rows, of which dask does not know how many lie in each block."""
    whole = lazy(array, chunks)
    nan = ((np.nan,) * whole.numblocks[0], *whole.chunks[1:])
    return whole.map_blocks(np.copy, chunks=nan, dtype=array.dtype)


def made(inputs: list[Any], outputs: Any, **options: Any) -> Any:
    return skdtheano.function(inputs, outputs, target="dask", **options)


@pytest.fixture(autouse=True)
def here() -> Any:
    with dask.config.set(scheduler="synchronous"):
        yield


# --- one call beside another ----------------------------------------------------------------


def test_functions_of_swapped_operands_have_results_of_their_own() -> None:
    x, y = pt.matrix("x"), pt.matrix("y")
    one, other = made([x, y], x - y), made([x, y], y - x)
    found = dask.compute(one(lazy(A), lazy(B)), other(lazy(A), lazy(B)))
    assert_allclose(found, [A - B, B - A])
    sums = made([x, y], [x.sum(0), y.sum(0)]), made([x, y], [y.sum(0), x.sum(0)])
    first, second = dask.compute(*(f(lazy(A), lazy(B)) for f in sums))
    assert_allclose(first, [A.sum(0), B.sum(0)])
    assert_allclose(second, first[::-1])


def test_an_argument_may_change_after_the_call() -> None:
    x, w = pt.matrix("x"), pt.vector("w")
    factors = np.ones(3)
    found = made([x, w], x.dot(w))(lazy(A), factors)
    factors *= 10
    assert_allclose(found, A.sum(axis=1))


def test_calls_in_threads_update_one_after_another() -> None:
    x, count = pt.matrix("x"), library.shared(0.0, name="count")
    f = made([x], count + 0 * x.sum(), updates={count: count + 1})
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: float(f(A)), range(16)))
    assert sorted(found) == list(range(16))


@pytest.mark.skipif(not PYTENSOR, reason="Theano's shared scalars are made in another way")
@pytest.mark.filterwarnings("ignore:Setting default_update:DeprecationWarning")
def test_default_updates_of_what_updates_read_count_too() -> None:
    s, u = library.shared(0.0, name="s"), library.shared(1.0, name="u")
    s.default_update, u.default_update = s + u, u * 2
    x = pt.matrix("x")
    f = skdtheano.function([x], x.sum() + s)
    f(A), f(A)
    assert (s.get_value(), u.get_value()) == (3.0, 4.0)


# --- shapes before anything is computed -----------------------------------------------------


def assert_shape(found: da.Array, says: tuple[Any, ...]) -> None:
    """It says so, and is so wherever it says a number."""
    assert str(found.shape) == str(says)
    real = found.compute().shape
    assert all(np.isnan(n) or n == own for n, own in zip(says, real, strict=True))


def test_shapes_follow_each_call() -> None:
    x, w = pt.matrix("x"), pt.vector("w")
    f = made([x, w], w * x.sum(), replicated=["w"])
    for length in (3, 5):
        assert_shape(f(lazy(A), da.ones(length, chunks=-1)), (length,))
    many = np.random.RandomState(2).normal(size=(12, 100))
    columns = pt.lvector("columns")
    g = made([x, columns], x[:, columns])
    for n in (70, 80):
        assert_shape(g(lazy(many), np.arange(n)), (12, n))


def test_lengths_that_depend_on_values_are_not_guessed() -> None:
    x, k, n = pt.matrix("x"), pt.dscalar("k"), pt.lscalar("n")
    by_float = made([x, k], pt.arange(pt.cast(k, "int64")) + 0 * x.sum())
    for length in (3.0, 5.0):
        assert_shape(by_float(lazy(A), length), (np.nan,))
    by_int = made([x, n], pt.arange(n) + 0 * x.sum())
    assert_shape(by_int(lazy(A), 4), (4,))
    assert_shape(by_int(lazy(A), da.from_array(np.array(4))), (np.nan,))
    picked = made([x], x[x > 0], gather="allow")
    assert_shape(picked(lazy(A)), (np.nan,))


# --- lengths that dask does not know --------------------------------------------------------


def test_unknown_lengths_that_differ_are_refused_where_the_number_of_rows_counts() -> None:
    x, y = pt.matrix("x"), pt.matrix("y")
    f = made([x, y], [x.mean(), y.mean()])
    assert_allclose(dask.compute(*f(unknown(A), unknown(B))), [A.mean(), B.mean()])
    longer = np.concatenate([B, B])
    for wrong in (unknown(longer, 8), lazy(longer, 8)):
        with pytest.raises(ValueError, match=r"have \[4, 8\] rows|8 rows, and another"):
            dask.compute(*f(unknown(A), wrong))


# --- arguments of odd kinds -----------------------------------------------------------------


def test_the_first_of_several_arrays_of_one_block_has_the_rows() -> None:
    x, w = pt.matrix("x"), pt.matrix("w")
    f = made([x, w], x.dot(w))
    for n in range(1000, 1008):
        rows, weights = np.ones((n, 8)), np.ones((8, 3))
        found = f(da.from_array(rows, chunks=-1), da.from_array(weights, chunks=-1))
        assert_array_equal(found, np.full((n, 3), 8.0))


def test_chunks_that_say_another_number_of_rows_are_refused() -> None:
    """As those of a filter by map_blocks, whose chunks nobody told to be unknown."""
    x = pt.matrix("x")
    filtered = lazy(A).map_blocks(lambda block: block[block[:, 0] > 0], dtype=float)
    with pytest.raises(ValueError, match=r"Block \d of input 'x' has \d rows, and its chunks"):
        made([x], x.mean(axis=0))(filtered).compute()
    y = pt.vector("y")
    f = made([x, y], x.T.dot(y))
    with pytest.raises(ValueError, match=r"Block \d of input '[xy]' .* another input has"):
        f(unknown(A), unknown(np.repeat(A[:, 0], 2), 8)).compute()


@pytest.mark.skipif(not PYTENSOR, reason="Theano's types know no lengths but 1")
def test_a_length_that_the_symbol_says_is_checked() -> None:
    x = pt.tensor("x", shape=(None, 3), dtype="float64")
    f = made([x], x.shape[1] * x.sum())
    assert_allclose(f(lazy(A)), 3 * A.sum())
    for wrong in (np.ones((2, 4)), da.ones((2, 4), chunks=1)):
        with pytest.raises(ValueError, match=r"shape \(2, 4\).*axis 1 has length 3"):
            f(wrong)


def test_masked_arrays_are_refused() -> None:
    x = pt.matrix("x")
    f = made([x], x.sum())
    for masked in (np.ma.masked_greater(A, 0), da.ma.masked_greater(lazy(A), 0)):
        with pytest.raises(TypeError, match="masked"):
            f(masked)


def test_a_name_in_rows_and_in_replicated_is_refused() -> None:
    x = pt.matrix("x")
    with pytest.raises(ValueError, match=r"'x' is named in rows= and in replicated="):
        made([x], x.sum(), rows=["x"], replicated=["x"])


# --- Python functions that are traced -------------------------------------------------------


def test_updates_do_not_go_with_a_decorator() -> None:
    count = library.shared(0.0)
    for named in ({"updates": {count: count + 1}}, {"givens": {count: count}}):
        with pytest.raises(TypeError, match="updates= and givens= go with inputs="):
            skdtheano.function(target="dask", **named)


def test_parameters_by_keyword_alone_stay_so() -> None:
    @skdtheano.function(target="dask")
    def scaled(*tables: Any, scale: Any = 2.0) -> Any:
        return sum(tables) * scale

    assert_allclose(scaled(A, B, scale=10.0), (A + B) * 10)
    assert_allclose(scaled(lazy(A), lazy(B)), (A + B) * 2)

    @skdtheano.function
    def clashing(tables_0: Any, *tables: Any) -> Any:
        return tables_0

    with pytest.raises(TypeError, match="second input named 'tables_0'"):
        clashing(A, B)


def test_tuples_of_equal_numbers_of_other_types_are_traced_anew() -> None:
    @skdtheano.function(target="dask")
    def shifted(x: Any, by: tuple[Any, ...]) -> Any:
        return x + by[0]

    whole = np.arange(4)
    assert shifted(whole, (1,)).dtype.kind == "i"
    assert shifted(whole, (1.5,)).dtype.kind == "f"
    assert shifted(whole, (1.0,)).dtype.kind == "f"


def test_odd_arguments_are_named() -> None:
    @skdtheano.function(target="dask")
    def mean(x: Any) -> Any:
        return x.mean()

    for odd, says in (
        (np.array(["a", "b"]), "'x' is a ndarray of dtype <U1"),
        (scipy.sparse.csr_matrix(A), "'x' is sparse"),
        (np.ma.masked_greater(A, 0), "'x' is masked"),
    ):
        with pytest.raises(TypeError, match=says):
            mean(odd)


def test_a_traced_function_serves_inside_another_and_not_as_a_method() -> None:
    @skdtheano.function(target="dask")
    def mean(x: Any) -> Any:
        return x.mean(axis=0)

    @skdtheano.function(target="dask")
    def centred(x: Any) -> Any:
        return x - mean(x)

    assert_allclose(centred(lazy(A)), A - A.mean(axis=0))
    model = type("Model", (), {"mean": mean})()
    with pytest.raises(TypeError, match="mean is a method of Model"):
        model.mean(A)


# --- rules ----------------------------------------------------------------------------------


def test_an_assertion_on_the_number_of_rows_is_made() -> None:
    x = pt.matrix("x")
    module = "raise_op" if PYTENSOR else "tensor.opt"
    checked = import_from(module, "Assert")("negative!")(x.shape[0], pt.all(x >= 0))
    f = made([x], [x.sum() / checked, checked * checked])
    assert_allclose(dask.compute(*f(lazy(abs(A)))), [abs(A).sum() / 12, 144])
    with pytest.raises(AssertionError, match="negative!"):
        dask.compute(*f(lazy(A)))


def test_a_sum_that_wraps_is_combined_before_it_is_widened() -> None:
    x = pt.vector("x", dtype="uint8")
    f = made([x], pt.cast(x.sum(dtype="uint8"), "int64"))
    numbers = np.full(4, 100, np.uint8)
    assert f(lazy(numbers, 2)).compute() == f(numbers) == 144


def test_a_slice_from_0_is_all_rows() -> None:
    x = pt.matrix("x")
    assert_allclose(made([x], x[0:, 1])(lazy(A)), A[:, 1])
    with pytest.raises(PlacementError, match="by their place"):
        made([x], x[1:, 1])(lazy(A))


# --- options of a function that is traced ---------------------------------------------------


def scaled(X: Any, axis: int = 0, w: Any = None, shift: float = 1.0) -> Any:
    total = X.sum(axis=axis) + shift
    return total if w is None else total * w


def test_what_is_not_given_stays_a_number_of_pythons_own() -> None:
    f = skdtheano.function(scaled, target="dask", replicated=["w", "shift"])
    assert_allclose(f(lazy(A)), A.sum(axis=0) + 1)
    assert_allclose(f(lazy(A), w=np.arange(3.0)), (A.sum(axis=0) + 1) * np.arange(3))
    assert_allclose(f(lazy(A), shift=2.5), A.sum(axis=0) + 2.5)
    by_rows = skdtheano.function(partial(scaled, axis=1), target="dask")
    assert_allclose(by_rows(lazy(A)), A.sum(axis=1) + 1)
    assert by_rows(lazy(A)).name.startswith("scaled-")


def test_a_name_of_several_inputs_is_no_input() -> None:
    f = skdtheano.function(lambda *arrays: arrays[0], target="dask", replicated=["arrays"])
    with pytest.raises(ValueError, match=r"'arrays'.*arrays_0"):
        f(lazy(A))


def test_a_number_that_is_a_symbol_where_its_value_is_needed_is_named() -> None:
    f = skdtheano.function(scaled, target="dask")
    with pytest.raises(TypeError) as caught:
        f(lazy(A), axis=1)
    [note] = caught.value.__notes__
    assert "'axis' was given as a whole number" in note
    assert "functools.partial" in note


# --- what is refused, and what there is instead ---------------------------------------------


def test_a_loop_along_rows_is_named_and_not_what_it_picks() -> None:
    x = pt.matrix("x")
    last = looped(x, pt.zeros((3,)), lambda row, total: total + row)
    with pytest.raises(PlacementError, match=r"(?s)^(for\{|Scan).*steps along the rows") as e:
        made([x], last)(lazy(A))
    assert "gather='allow'" in str(e.value)
    assert_allclose(made([x], last, gather="allow")(lazy(A)), A.sum(axis=0))


@pytest.mark.parametrize(
    ("name", "instead"),
    [("cumsum", "da.cumsum"), ("sort", "da.topk"), ("argsort", "da.argtopk")],
)
def test_lines_along_the_rows_say_what_dask_has(name: str, instead: str) -> None:
    x = pt.matrix("x")
    sort = import_from("tensor.sort", name) if name != "cumsum" else pt.cumsum
    with pytest.raises(PlacementError, match=instead):
        made([x], sort(x, axis=0))(lazy(A))


@pytest.mark.skipif(not PYTENSOR, reason="Theano has no ignore_duplicates for indices")
def test_additions_of_which_the_last_one_counts_are_not_summed_over_blocks() -> None:
    x, labels = pt.matrix("x"), pt.lvector("labels")
    Y = np.arange(12) % 4
    where = pt.zeros((4, 3))[labels]
    with pytest.raises(PlacementError, match="only the last one is added"):
        made([x, labels], pt.inc_subtensor(where, x, ignore_duplicates=True))(lazy(A), lazy(Y))
    summed = made([x, labels], pt.inc_subtensor(where, x))(lazy(A), lazy(Y))
    assert_allclose(summed, A.reshape(3, 4, 3).sum(axis=0))
