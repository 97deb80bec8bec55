"""Graphs as NumPy calls into arrays that are there, and as loops."""

import tracemalloc
import weakref
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skdtheano import engine, loops
from skdtheano import routine as routine_module
from skdtheano.binding import Plan
from skdtheano.graphs.losses import LOSSES, block_graph
from skdtheano.graphs.network import ACTIVATIONS, Network, network_graph
from skdtheano.graphs.optimizers import SGD, Adam, update_graph
from skdtheano.recipe import derived
from skdtheano.routine import Routine
from skdtheano.runtime.parameters import Layout
from skdtheano.runtime.update import TiledUpdate

pytestmark = pytest.mark.parity

LAYOUT = Layout((5, 4, 3, 2))
DTYPES = [("float64", "float64"), ("float32", "float32"), ("float32", "float64")]


def batch(n: int, row_dtype: str, dtype: str) -> list[np.ndarray]:
    rng = np.random.RandomState(n)
    rows, targets = rng.standard_normal((n, 5)), rng.random((n, 2))
    return [rows.astype(row_dtype), targets.astype(dtype), rng.random(n).astype(dtype)]


@pytest.mark.parametrize("row_dtype, dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_routine_computes_what_the_engine_does_for_batches_of_any_size(
    loss: str, activation: str, row_dtype: str, dtype: str
) -> None:
    network = Network(3, activation, LOSSES[loss][1], row_dtype, dtype)
    graph = block_graph(network, loss)
    routine = Routine(derived(graph.inputs, graph.outputs, "routine"))
    whole = engine.compile_function(graph.inputs, graph.outputs, engine.DEFAULT_MODE, "whole")
    theta = np.random.RandomState(1).standard_normal(LAYOUT.n_parameters).astype(dtype)
    parameters, gradient = LAYOUT.views(theta), np.zeros_like(theta)
    out = [np.zeros((), dtype), *LAYOUT.views(gradient)]
    rtol = 1e-10 if dtype == "float64" else 1e-4
    for n in (7, 1, 40, 4):  # smaller than what there is room for, and larger
        inputs = [*batch(n, row_dtype, dtype), *parameters]
        run = routine.bind(inputs, out)
        for _ in range(2):  # the second one finds what the first one left
            run()
            for found, expected in zip(out, whole(*inputs), strict=True):
                assert_allclose(found, expected, rtol=rtol, atol=rtol)


def test_rows_that_are_not_finite_stay_so_and_stay_by_themselves() -> None:
    network = Network(2, "relu", "identity", "float64", "float64")
    symbols = network_graph(network)
    routine = Routine(
        derived([symbols.rows, *symbols.parameters], [symbols.outputs], "outputs")
    )
    rows = np.array([[1.0], [np.nan], [-np.inf], [np.inf], [-2.0]])
    coefs = [np.ones((1, 1)), np.ones((1, 1)), np.zeros(1), np.zeros(1)]
    out = np.empty((5, 1))
    routine.bind([rows, *coefs], [out])()
    assert_array_equal(out[:, 0], [1, np.nan, 0, np.inf, 0])


def test_a_step_allocates_nothing() -> None:
    graph = block_graph(Network(2, "relu", "softmax", "float32", "float32"), "log_loss")
    layout = Layout((64, 100, 10))
    routine = Routine(derived(graph.inputs, graph.outputs, "routine"))
    theta, gradient = (np.zeros(layout.n_parameters, np.float32) for _ in range(2))
    n = 2_000
    rows, targets = np.ones((n, 64), np.float32), np.ones((n, 10), np.float32)
    inputs = [rows, targets, np.ones(n, np.float32), *layout.views(theta)]
    run = routine.bind(inputs, [np.zeros((), np.float32), *layout.views(gradient)])
    run()
    peaks = []
    for _ in range(
        5
    ):  # The least of them: threads of other tests' clients allocate beside it.
        tracemalloc.start()
        try:
            run()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    # NumPy's buffer of 8192 entries; 2000 x 10 scores take 80,000 bytes
    assert min(peaks) < 50_000
    # Hidden layer, its mask, its slope; the rest is small.
    assert routine.nbytes < 4 * n * 100 * 4


@pytest.mark.parametrize("are_loops", [False, True])
def test_arrays_of_shapes_that_are_known_are_bound_without_planning(
    are_loops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = block_graph(Network(3, "relu", "softmax", "float32", "float32"), "log_loss")
    recipe = derived(graph.inputs, graph.outputs, "routine")
    routine, planned = Routine(recipe), []
    monkeypatch.setattr(routine_module, "_LOAD_AFTER", np.inf)
    routine._loads = routine._compiles = are_loops and loops.are_available()

    def plan(*args: Any) -> Plan:
        planned[-1] += args[0] is routine._graph
        return Plan(*args)

    monkeypatch.setattr(routine_module, "Plan", plan)
    results = []
    for seed, n in enumerate([8, 5, 8, 5, 8, 8, 5]):  # the second one may move memory
        planned.append(0)
        rng = np.random.RandomState(seed)
        theta = rng.standard_normal(LAYOUT.n_parameters).astype(np.float32)
        inputs = [*batch(n, "float32", "float32"), *LAYOUT.views(theta)]
        inputs[0] = rng.standard_normal((n, 5)).astype(np.float32)
        for r in (routine, Routine(recipe)):
            gradient = np.zeros_like(theta)
            run = r.bind(inputs, [loss := np.zeros((), np.float32), *LAYOUT.views(gradient)])
            run()
            results.append((float(loss), gradient))
        given = weakref.ref(theta)
        del theta, inputs, run
        assert given() is None  # a plan keeps no array of its caller's
    for (loss, gradient), (expected, slope) in zip(results[::2], results[1::2], strict=True):
        assert loss == expected
        assert_array_equal(gradient, slope)
    assert not any(planned[4:])


def test_an_output_that_depends_on_shapes_alone_is_written() -> None:
    x = engine.matrix("x", dtype="float64")
    twice = x.shape[0] * 2
    recipe = derived([x], [x.sum(axis=0) / twice, twice], "routine")
    routine = Routine(recipe)
    for _ in range(2):
        mean, number = np.full(3, -7.0), np.full((), -7, np.int64)
        routine.bind([np.ones((5, 3))], [mean, number])()
        assert_array_equal(mean, [0.5] * 3)
        assert number == 10


def test_a_sum_that_takes_its_first_operand_again_has_it_still() -> None:
    """Its steps are calls of two operands, and the first call must not write over it."""
    x, y = (engine.matrix(name, dtype="float64") for name in "xy")
    a = x * y
    recipe = derived([x, y], [engine.exp(a + x + a)], "routine")
    out = np.empty((1, 2))
    Routine(recipe).bind([np.array([[3.0, 1]]), np.array([[5.0, 1]])], [out])()
    assert_allclose(out, np.exp([[33.0, 3]]), rtol=1e-12)


def test_views_of_one_array_are_one_array() -> None:
    """Also for a plan that then serves arrays that are the same objects."""
    x, y = (engine.vector(name, dtype="float64") for name in "xy")
    routine = Routine(derived([x, y], [x + y, x * y, x], "routine"))
    for is_view in (True, False):
        a, b, c = np.array([1.0, 2.0]), np.array([3.0, 5.0]), np.empty(2)
        out = [a[:], b[:], c] if is_view else [a, b, c]
        routine.bind([a, b], out)()
        assert_array_equal([a, b, c], [[4, 7], [3, 10], [1, 2]])


def test_an_input_that_is_also_an_output_has_a_plan_of_its_own() -> None:
    x, y = (engine.vector(name, dtype="float64") for name in "xy")
    routine = Routine(derived([x, y], [x + y, x * y], "routine"))
    for _ in range(2):
        a, b = np.array([1.0, 2.0]), np.array([3.0, 5.0])
        out = [np.empty(2), np.empty(2)]
        routine.bind([a, b], out)()
        assert_array_equal(out, [[4, 7], [3, 10]])
        routine.bind([a, b], [a, b])()
        assert_array_equal([a, b], [[4, 7], [3, 10]])


def test_the_graph_of_a_step_is_small() -> None:
    """Three products forward and backward, and no more than 45 calls with them."""
    graph = block_graph(Network(2, "relu", "softmax", "float32", "float32"), "log_loss")
    routine = Routine(derived(graph.inputs, graph.outputs, "routine"))
    assert routine.n_steps <= 45


def test_an_op_without_a_row_in_the_table_is_refused_by_name() -> None:
    rows = engine.matrix("rows", dtype="float64")
    with pytest.raises(NotImplementedError, match=r"'NUMPY' has no row for (C|c)um"):
        Routine(derived([rows], [rows.cumsum(axis=0)], "routine"))


def test_an_output_that_does_not_fit_is_refused() -> None:
    x = engine.matrix("x", dtype="float64")
    routine = Routine(derived([x], [engine.exp(x)], "routine"))
    with pytest.raises(ValueError, match=r"shape \(2, 3\) .* to be written into \(3, 2\)"):
        routine.bind([np.ones((2, 3))], [np.ones((3, 2))])


def test_an_output_may_be_an_input_that_is_read_again_later() -> None:
    x, y = (engine.vector(name, dtype="float64") for name in "xy")
    routine = Routine(derived([x, y], [x + y, x * y], "routine"))
    a, b = np.array([1.0, 2.0]), np.array([3.0, 5.0])
    routine.bind([a, b], [a, b])()
    assert_array_equal(a, [4, 7])
    assert_array_equal(b, [3, 10])


OPTIMIZERS = [Adam(), SGD(0.9, True), SGD(0.9, False)]


def vectors_of(optimizer: Any, dtype: str, n: int) -> list[np.ndarray]:
    rng = np.random.RandomState(0)
    return [rng.random(n).astype(dtype) for _ in range(2 + optimizer.n_slots)]


@pytest.mark.skipif(not loops.are_available(), reason="classic Theano brings no LLVM")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.rule)
def test_the_loop_of_an_update_has_the_bits_of_its_numpy_calls(
    optimizer: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = update_graph(optimizer.rule, dtype)
    n, n_penalised = 40_000, 39_000  # three tiles; the last one holds both strengths
    parts = [(slice(0, n_penalised), 0.01), (slice(n_penalised, n), 0.0)]
    numbers = (32.0, 0.01, *optimizer.scalars())
    scalars = [np.asarray(number, dtype) for number in numbers]
    results = []
    for loops_at_once in (False, True):
        update = TiledUpdate(derived(graph.inputs, graph.outputs, "update"), dtype)
        update._patience = 0.0 if loops_at_once else np.inf
        vectors = vectors_of(optimizer, dtype, n)
        for _ in range(3):
            update.bind(vectors, scalars, parts)()
        assert update.generation == loops_at_once
        results.append(vectors)
    for tiled, looped in zip(*results, strict=True):
        assert_array_equal(tiled, looped)
    gradient = vectors_of(optimizer, dtype, n)[1]
    assert_array_equal(results[0][1], gradient)  # which is read only


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.rule)
def test_an_update_is_its_formula(optimizer: Any) -> None:
    graph = update_graph(optimizer.rule, "float64")
    update = TiledUpdate(derived(graph.inputs, graph.outputs, "update"), "float64")
    vectors = vectors_of(optimizer, "float64", 5)
    theta, gradient, *slots = (vector.copy() for vector in vectors)
    scalars = [np.asarray(x) for x in (4.0, 0.01, *optimizer.scalars())]
    update.bind(vectors, scalars, [(slice(0, 3), 0.5), (slice(3, 5), 0.0)])()
    g = (gradient + np.array([0.5, 0.5, 0.5, 0, 0]) * theta) / 4
    if optimizer.rule == "adam":
        m, v = 0.9 * slots[0] + 0.1 * g, 0.999 * slots[1] + 0.001 * g**2
        expected = [theta - 0.01 * m / (np.sqrt(v) + 1e-8), m, v]
    else:
        u = 0.9 * slots[0] - 0.01 * g
        ahead = 0.9 * u - 0.01 * g if optimizer.rule == "nesterov" else u
        expected = [theta + ahead, u]
    for found, value in zip([vectors[0], *vectors[2:]], expected, strict=True):
        assert_allclose(found, value, rtol=1e-12)


def test_a_graph_that_is_no_loop_has_no_source() -> None:
    x, y = (engine.vector(name, dtype="float64") for name in "xy")
    for graph in ([x + y, x.sum()], [engine.exp(x) + y]):
        routine = Routine(derived([x, y], graph, "routine"))
        assert routine.loop_source(scalars=[], in_place=list(range(len(graph)))) is None


@pytest.mark.parametrize("n_rows", [1, 3, 40])
def test_sums_over_few_and_over_many_columns_are_the_same(n_rows: int) -> None:
    x = engine.matrix("x", dtype="float64")
    routine = Routine(
        derived([x], [x.sum(axis=1), engine.maximum_over(x, (1,)), x.sum()], "routine")
    )
    for n_columns in (1, 10, 32, 33, 200):
        values = np.random.RandomState(0).standard_normal((n_rows, n_columns))
        sums, largest, total = np.empty(n_rows), np.empty((n_rows, 1)), np.empty(())
        routine.bind([values], [sums, largest, total])()
        assert_allclose(sums, values.sum(axis=1), rtol=1e-12, atol=1e-12)
        assert_array_equal(largest, values.max(axis=1, keepdims=True))
        assert_allclose(total, values.sum(), rtol=1e-12, atol=1e-12)


def test_products_of_the_modes_of_both_dtypes_are_all_there() -> None:
    """No network of ours, and no optimizer, meets an Op without a row."""
    for (loss, (_, link)), activation, (row_dtype, dtype), sparse in product(
        LOSSES.items(), ACTIVATIONS, DTYPES, (False, True)
    ):
        network = Network(2, activation, link, row_dtype, dtype, sparse)
        graph, symbols = block_graph(network, loss), network_graph(network)
        Routine(derived(graph.inputs, graph.outputs, "sums"))
        Routine(derived([symbols.rows, *symbols.parameters], [symbols.outputs], "outputs"))
