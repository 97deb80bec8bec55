"""Where blocks could give what the whole does not: narrow dtypes, lengths, empty blocks."""

import math
from collections.abc import Callable
from threading import Thread
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from cutting import PYTENSOR, import_from, pt
from numpy.testing import assert_allclose, assert_array_equal

import skdtheano

pytestmark = pytest.mark.parity

random = np.random.default_rng(0)
X = random.normal(size=(10, 4))
BITS = X > -0.5
#: Products of columns are beyond 127.
BYTES = np.full((10, 2), 41, np.int8)
UNSIGNED = random.integers(0, 2, (1000, 2)).astype("uint8")


def lazy(array: np.ndarray, chunks: Any = 3) -> da.Array:
    return da.from_array(array, chunks=(chunks, *array.shape[1:]))


def made(traced: Callable[..., Any], **options: Any) -> Any:
    return skdtheano.function(traced, target="dask", **options)


@pytest.fixture(autouse=True)
def here() -> Any:
    with dask.config.set(scheduler="synchronous"):
        yield


def gram(x: Any) -> Any:
    return pt.dot(x.T, x)


# --- parts of narrow dtypes -----------------------------------------------------------------

NARROW: dict[str, tuple[Callable[[Any], Any], np.ndarray]] = {
    "product of bytes, summed": (lambda x: gram(x).sum(), BYTES),
    "product of bytes, divided": (lambda x: gram(x) / 2, BYTES),
    "product of bytes, times wide": (lambda x: gram(x) * np.int64(3), BYTES),
    "product of bytes and a sum": (lambda x: gram(x) + x.sum(), BYTES),
    "product of bytes, joined": (
        lambda x: pt.concatenate([pt.cast(gram(x), "int64"), gram(x)]),
        BYTES,
    ),
    "product of bytes, added to a part": (
        lambda x: pt.inc_subtensor(pt.zeros((4, 2), dtype="int64")[1:3], gram(x)),
        BYTES,
    ),
    "product of unsigned bytes, divided": (lambda x: gram(x) / 2, UNSIGNED),
    "numbers of rows as bools": (
        lambda x: pt.cast(pt.cast(pt.arange(x.shape[0]), "bool"), "int64"),
        X,
    ),
    "all rows but the first": (
        lambda x: (pt.cast(pt.cast(pt.arange(x.shape[0]), "bool"), x.dtype) * x[:, 0]).sum(),
        X,
    ),
    "numbers of rows as half floats": (
        lambda x: pt.cast(pt.cast(pt.arange(x.shape[0] * 1), "float16"), "float64"),
        np.ones((5000, 1)),
    ),
}
if PYTENSOR:  # Theano multiplies no bools
    NARROW |= {
        "product of bools, times a float": (lambda x: gram(x) * 1.0, BITS),
        "product of bools, summed": (lambda x: gram(x).sum(), BITS),
        "product of bools, plus a number": (lambda x: gram(x) + 0, BITS),
        "product of bools, joined": (
            lambda x: pt.concatenate([gram(x), pt.cast(gram(x), "int8")]),
            BITS,
        ),
    }


@pytest.mark.parametrize("name", NARROW)
def test_what_wraps_is_combined_before_it_is_widened(name: str) -> None:
    traced, array = NARROW[name]
    f = made(traced)
    for chunks in (3, 997, len(array)):
        assert_array_equal(f(lazy(array, chunks)).compute(), f(array))


THIRDS = np.full(10, 0.7)
FAR = np.repeat([2.0**126, -(2.0**126)], 1000)
CAST: dict[str, tuple[Callable[[Any], Any], np.ndarray]] = {
    "sum to whole numbers": (lambda x: x.sum(dtype="int64"), THIRDS),
    "product to whole numbers": (lambda x: x.prod(dtype="int64"), THIRDS * 2.5),
    "mean of whole numbers": (lambda x: x.mean(dtype="int64"), THIRDS),
    "sum of half floats beyond the largest": (
        lambda x: x.sum(),
        np.repeat([100, -100], 1000).astype("float16"),
    ),
    "sum to floats beyond the largest": (lambda x: x.sum(dtype="float32"), FAR),
}


@pytest.mark.parametrize("name", CAST)
def test_sums_are_cast_once_they_are_whole(name: str) -> None:
    traced, array = CAST[name]
    f = made(traced)
    expected = f(array)
    assert np.isfinite(expected)
    for chunks in (1, 5, len(array) // 2):
        found = f(lazy(array, chunks)).compute()
        assert found.dtype == expected.dtype
        assert_array_equal(found, expected)


def test_row_numbers_are_numbered_once() -> None:
    """A diagonal is set at the row numbers, twice."""
    y = random.normal(size=12)
    f = made(lambda y: import_from("tensor", "diag")(y - y.mean()), gather="allow")
    assert_allclose(f(lazy(y, 5)).compute(), np.diag(y - y.mean()), atol=1e-15)


def test_sums_are_scaled_by_constants_of_several_entries() -> None:
    scale = np.array([1.0, 2.0, 3.0, 4.0])
    f = made(lambda x: (x.sum(axis=0) * scale, x.sum(axis=0) / scale))
    for found, expected in zip(
        f(lazy(X)), (X.sum(axis=0) * scale, X.sum(axis=0) / scale), strict=True
    ):
        assert_allclose(found.compute(), expected)
    by_zero = made(lambda x: (x - x).sum(axis=0) / np.array([1.0, 0.0, 1.0, 1.0]))
    with np.errstate(all="ignore"):
        assert_array_equal(by_zero(lazy(X)).compute(), by_zero(X))


def test_a_shape_joined_to_rows_is_rows_of_a_number() -> None:
    f = made(lambda x, y: pt.concatenate([x.shape, y]), gather="allow")
    y = np.arange(10)
    assert_array_equal(f(lazy(X), lazy(y)).compute(), [10, 4, *y])


# --- lengths before anything is computed ----------------------------------------------------


def assert_outline(found: da.Array, *, known: bool) -> None:
    """Rank and dtype are right, and so are lengths where they are told."""
    value = np.asarray(found.compute())
    assert found.ndim == value.ndim
    assert found.dtype == value.dtype
    for told, own in zip(found.shape, value.shape, strict=True):
        assert told == own or (np.isnan(told) and not known)


def test_lengths_that_depend_on_values_stay_unknown() -> None:
    y = np.array([3, 1, 12, 1, 3, 2])
    by_maximum = made(lambda y: pt.arange(y.max() // 2 + 1) * 2)(lazy(y, 2))
    assert np.isnan(by_maximum.shape[0])
    assert_outline(by_maximum, known=False)
    x = y * 1.0
    larger = made(lambda x: x[pt.gt(x, 1).nonzero()], gather="allow")(lazy(x, 2))
    assert np.isnan(larger.shape[0])
    assert_array_equal(larger.compute(), x[x > 1])
    columns = made(lambda x, w: x[:, pt.gt(w, 0).nonzero()[0]])
    for w in ([1.0, 2.0, 3.0, 4.0], [1.0, -2.0, 3.0, 4.0]):
        found = columns(lazy(X), np.array(w))
        assert_outline(found, known=False)
        assert_allclose(found.compute(), X[:, np.array(w) > 0])
    by_lazy = made(lambda x, k: pt.arange(k // 2) + 0 * x.sum(), replicated=["k"])
    assert_outline(by_lazy(lazy(X), da.from_array(np.array(8))), known=False)
    assert_outline(by_lazy(lazy(X), 8), known=True)


@pytest.mark.skipif(not PYTENSOR, reason="Theano's solve takes no vectors")
def test_least_squares_has_the_shape_of_its_coefficients() -> None:
    def least_squares(x: Any, b: Any) -> Any:
        return pt.linalg.solve(gram(x), x.T.dot(b))

    slopes = np.arange(1.0, 5.0)
    found = made(least_squares)(lazy(X), lazy(X @ slopes))
    assert found.shape == (4,)
    assert_allclose((lazy(X) @ found).compute(), X @ slopes)


def test_lengths_cost_no_run_of_what_is_computed_once() -> None:
    runs: list[int] = []
    inverse = pt.linalg.inv if PYTENSOR else import_from("tensor.nlinalg", "matrix_inverse")
    invert = inverse.core_op.perform if PYTENSOR else inverse.perform

    def counted(*arguments: Any) -> None:
        runs.append(1)
        invert(*arguments)

    f = made(lambda x, k: x.dot(inverse(k)))
    with pytest.MonkeyPatch.context() as patch:
        kind = type(getattr(inverse, "core_op", inverse))
        patch.setattr(kind, "perform", lambda self, *arguments: counted(*arguments))
        found = f(lazy(X), np.eye(4) * 2)
        assert found.shape == (10, 4)
        assert runs == []
        assert_allclose(found.compute(), X / 2)
        assert runs == [1]


# --- empty blocks, blocks that are not what dask says ---------------------------------------


def test_an_empty_block_is_no_row_of_zeros() -> None:
    positive = np.abs(X) + 1
    check = import_from("raise_op" if PYTENSOR else "tensor.opt", "Assert")("positive")
    f = made(lambda x: check(x, pt.all(pt.gt(x, 0))).max(axis=0))
    assert_allclose(f(lazy(positive, (3, 0, 7))).compute(), positive.max(axis=0))


@pytest.mark.skipif(not PYTENSOR, reason="Theano inverts one matrix at a time")
def test_an_empty_block_of_matrices_is_no_singular_one() -> None:
    matrices = random.normal(size=(10, 3, 3))
    f = made(lambda x: pt.linalg.inv(x).max(axis=0))
    found = f(da.from_array(matrices, chunks=((3, 0, 7), 3, 3)))
    assert_allclose(found.compute(), np.linalg.inv(matrices).max(axis=0))


def test_a_mask_that_dask_does_not_tell_of_is_refused() -> None:
    masked = dask.delayed(np.ma.masked_greater)(X, 0)
    with pytest.raises(TypeError, match=r"Block 0 of input 'x' is masked.*da\.ma\.filled"):
        made(lambda x: x.sum())(da.from_delayed(masked, X.shape, X.dtype)).compute()


def test_blocks_of_another_dtype_than_dask_says_are_refused_if_they_do_not_fit() -> None:
    f = made(lambda x: x.sum())
    halves = lazy(np.ones(6, np.int64), 2).map_blocks(lambda b: b * 1.5, dtype="int64")
    with pytest.raises(ValueError, match=r"input 'x' has the dtype float64.*says int64"):
        f(halves).compute()
    narrow = lazy(np.ones(6)).map_blocks(lambda b: b.astype("float32"), dtype="float64")
    assert f(narrow).compute() == 6


# --- data frames ----------------------------------------------------------------------------


def test_columns_of_several_dtypes_meet_in_one() -> None:
    frame = pd.DataFrame({"age": X[:, 0], "member": X[:, 1] > 0, "visits": range(10)})
    frame["visits"] = frame["visits"].astype("Int64")
    mean = made(lambda X: X.mean(axis=0))
    for given in (frame, dd.from_pandas(frame, npartitions=3)):
        assert_allclose(np.asarray(mean(given)), frame.mean().to_numpy(dtype=float))
    frame.loc[4, "visits"] = pd.NA
    for given in (frame, dd.from_pandas(frame, npartitions=3)):
        assert_array_equal(np.isnan(mean(given)), [False, False, True])


def test_columns_that_are_not_numbers_are_named() -> None:
    frame = pd.DataFrame({"age": X[:, 0], "name": "a"})
    for given in (frame, dd.from_pandas(frame, npartitions=3)):
        with pytest.raises(TypeError, match=r"'X' has columns that are not numbers: \{'name'"):
            made(lambda X: X.mean(axis=0))(given)


def test_what_is_no_array_is_named_with_its_kind() -> None:
    f = made(lambda x: x.sum())
    with pytest.raises(TypeError, match=r"'x' is a Delayed.*from_delayed"):
        f(dask.delayed(X))
    with pytest.raises(TypeError, match="'x' is a dict of dtype object"):
        f({"a": 1})


def test_errors_while_a_function_is_traced_tell_with_what() -> None:
    with pytest.raises(Exception, match="None") as caught:
        made(lambda x, y: x.T.dot(y))(X, None)
    [note] = caught.value.__notes__
    assert "traced with x a symbol of 2 dimensions, float64, y=None" in note


# --- keys -----------------------------------------------------------------------------------


def test_constants_of_one_dtype_and_other_lengths_are_not_one() -> None:
    flat, tall = (
        made(lambda x, s=s: x.sum() + pt.constant(np.ones(s))) for s in ((2, 3), (3, 2))
    )
    for f, shape in ((flat, (2, 3)), (tall, (3, 2))):
        assert f(np.ones(3)).shape == shape
        assert f(lazy(np.ones(3), 2)).compute().shape == shape


def test_an_argument_of_any_size_may_change_after_the_call() -> None:
    f = made(lambda x, w: x.dot(w))
    for length in (4, 4000):
        w = np.ones(length)
        found = f(lazy(np.ones((6, length))), w)
        w *= 100
        assert_allclose(found.compute(), np.full(6, length))


def test_zeros_of_both_signs_and_nan_are_options_of_their_own() -> None:
    traces: list[Any] = []

    def signed(x: Any, c: tuple[float, ...]) -> Any:
        traces.append(c)
        return x * math.copysign(1.0, c[0])

    f = made(signed)
    assert [f(np.ones(1), (c,))[0] for c in (0.0, -0.0)] == [1.0, -1.0]
    for _ in range(3):
        f(np.ones(1), (float("nan"),))
    assert len(traces) == 3


def test_an_option_without_a_hash_is_named() -> None:
    f = made(lambda x, some: x.sum())
    with pytest.raises(TypeError, match=r"Argument 'some' is .*no hash"):
        f(X, (np.ones(2),))


def test_what_returns_nothing_is_told_so() -> None:
    with pytest.raises(TypeError, match="returned None"):
        made(lambda x: None)(X)


def test_numbers_of_the_other_byte_order_are_numbers() -> None:
    f = made(lambda x: x * 2)
    assert_array_equal(f(X.astype(">f8")), X * 2)
    assert_array_equal(f(lazy(X.astype(">f8"))).compute(), X * 2)


def test_a_function_may_call_itself_while_it_is_traced() -> None:
    found: list[Any] = []

    def total(x: Any, deep: bool = True) -> Any:
        return x.sum() + (f(np.ones(3), False) if deep else 0)

    f = made(total)
    thread = Thread(target=lambda: found.append(f(np.ones(2))), daemon=True)
    thread.start()
    thread.join(60)
    assert found == [5.0]
