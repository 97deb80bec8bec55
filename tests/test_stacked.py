"""Many models of one architecture at once: the numbers of each one alone."""

from collections import Counter, deque
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skdtheano import engine, loops
from skdtheano.graphs.losses import LOSSES, block_graph
from skdtheano.graphs.network import ACTIVATIONS, Network
from skdtheano.graphs.optimizers import update_graph
from skdtheano.memory import Memory
from skdtheano.recipe import Recipe, derived
from skdtheano.routine import Routine
from skdtheano.runtime import stacked_program
from skdtheano.runtime.parameters import Layout, TrainState
from skdtheano.runtime.program import NUMPY, ProgramSpec
from skdtheano.runtime.stacked_program import StackedProgram
from skdtheano.runtime.stacked_vectors import StackedVectors
from skdtheano.runtime.update import StackedPart, StackedUpdate, TiledUpdate
from skdtheano.side_by_side import (
    _are_alike,
    as_one,
    have_same_bits,
    lie_side_by_side,
    side_by_side,
)

pytestmark = pytest.mark.parity

LAYOUT = Layout((5, 4, 3, 2))
N_MODELS = 3
NETWORKS = [
    (loss, Network(3, activation, link, row_dtype, dtype))
    for (loss, (_, link)), activation, (row_dtype, dtype) in product(
        LOSSES.items(),
        ACTIVATIONS,
        [("float64", "float64"), ("float32", "float32")],
    )
]


def name_of(case: tuple[str, Network]) -> str:
    return f"{case[0]}-{case[1].activation}-{case[1].row_dtype}-{case[1].dtype}"


@pytest.mark.parametrize("case", NETWORKS, ids=name_of)
def test_stacked_models_have_the_bits_of_each_alone(case: tuple[str, Network]) -> None:
    loss, network = case
    graph = block_graph(network, loss)
    recipe = derived(graph.inputs, graph.outputs, "sums")
    for same_rows, beside in ((True, False), (True, True), (False, False)):
        for in_loops in {False, loops.are_available()}:  # classic Theano brings no LLVM
            check_sums(network, recipe, same_rows, in_loops, beside)


def check_sums(
    network: Network, recipe: Recipe, same_rows: bool, in_loops: bool, beside: bool
) -> None:
    rng = np.random.RandomState(0)
    theta = rng.standard_normal((N_MODELS, LAYOUT.n_parameters)).astype(network.dtype)
    parameters = LAYOUT.views(theta)
    parameters[0][:, :, 0] = parameters[3][:, 0] = 0  # scores that are 0
    if beside:
        parameters = lying_beside(parameters)
    places = range(0 if not same_rows else 3, 3 + len(parameters))
    stacked, single = Routine(recipe, places), Routine(recipe)
    stacked._loads = stacked._compiles = in_loops
    for n in (7, 1, 40):
        models = () if same_rows else (N_MODELS,)
        rows = rng.standard_normal((*models, n, 5)).astype(network.row_dtype)
        rows[..., n // 2, 1] = np.inf if n == 40 else -0.0
        targets, weights = rng.random((*models, n, 2)), rng.random((*models, n))
        data = [rows, targets.astype(network.dtype), weights.astype(network.dtype)]
        gradients = LAYOUT.views(np.empty_like(theta))
        if beside:
            draws, kind = np.random.default_rng(0), np.dtype(network.dtype).type
            if not all(_are_alike(draws, kind, n, 5, 4, 3, N_MODELS) for _ in range(16)):
                continue  # by BLAS, for these shapes
            gradients = lying_beside(gradients)
        out = [np.empty(N_MODELS, network.dtype), *gradients]
        run = stacked.bind([*data, *parameters], out)
        with np.errstate(all="ignore"):
            run()
            run()  # on what the first call has left in memory
            for k in range(N_MODELS):
                own = [np.zeros((), network.dtype), *(np.empty_like(p[k]) for p in parameters)]
                mine = data if same_rows else [array[k] for array in data]
                single.bind([*mine, *(p[k] for p in parameters)], own)()
                for found, expected in zip(out, own, strict=True):
                    assert_array_equal(found[k], expected)


def lying_beside(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The first layer's matrices side by side, and its vectors one after another."""
    first, *others = arrays
    matrix = side_by_side(np.empty((first.shape[1], N_MODELS * first.shape[2])), N_MODELS)
    matrix = matrix.astype(first.dtype)  # which keeps the order
    matrix[...] = first
    assert lie_side_by_side(matrix)
    others[2] = others[2].copy()
    return [matrix, *others]


def test_matrices_side_by_side_are_one_matrix_and_nothing_else_is() -> None:
    matrix = np.arange(24.0).reshape(2, 12)
    stacked = side_by_side(matrix, 3)
    assert_array_equal(stacked[1], matrix[:, 4:8])
    assert lie_side_by_side(stacked)
    one = as_one(stacked)
    assert one is not None and np.shares_memory(one, matrix)
    assert_array_equal(one, matrix)
    assert as_one(stacked.copy()) is None
    assert as_one(side_by_side(np.zeros((2, 16))[:, :12], 3)) is None
    assert not lie_side_by_side(stacked.copy())
    assert not lie_side_by_side(matrix)


def test_products_that_blas_rounds_otherwise_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each product of the two layers, one entry of one model is enough."""
    shape = (16, 9, 10, 4, 3, "float64")
    have_same_bits.cache_clear()
    alike = have_same_bits(*shape)
    product = np.dot

    def other(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        made = product(first, second)
        if (*first.shape, second.shape[1]) == wrong:
            made[-1, -1] = np.nextafter(made[-1, -1], 1)
        return made

    monkeypatch.setattr(np, "dot", other)
    for wrong in ((16, 9, 10), (9, 16, 10), (16, 10, 4), (10, 16, 4), (16, 4, 10), ()):
        have_same_bits.cache_clear()
        assert have_same_bits(*shape) == (alike and wrong == ())
    have_same_bits.cache_clear()
    assert not have_same_bits(1, 9, 10, 4, 3, "float64")
    assert not have_same_bits(16, 9, 10, 4, 1, "float64")
    assert not have_same_bits(16, 1000, 1000, 4, 3, "float64")


def test_a_matrix_that_models_share_is_not_taken_for_rows_of_each() -> None:
    """It has as many rows as there are models, and each model's matrix is as long."""
    x, w, c, d = (engine.matrix(name, dtype="float64") for name in "xwcd")
    recipe = derived([x, w, c, d], [(engine.dot(x, w) + c) * d], "sums")
    rng = np.random.RandomState(0)
    rows, shared, factor = (rng.random((N_MODELS, 4)) for _ in range(3))
    matrix = side_by_side(rng.random((4, N_MODELS * 4)), N_MODELS)
    expected = [(rows @ np.ascontiguousarray(one) + shared) * factor for one in matrix]
    for in_loops in {False, loops.are_available()}:
        routine = Routine(recipe, [1])
        routine._loads = routine._compiles = in_loops
        for out in (np.empty((N_MODELS, N_MODELS, 4)), side_by_side(np.empty((3, 12)), 3)):
            routine.bind([rows, matrix, shared, factor], [out])()
            assert_allclose(out, expected, rtol=1e-12)


def test_products_of_one_matrix_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the five of a network with one hidden layer; the others are of each model."""
    called: list[str] = []

    def counted(name: str) -> Callable[..., np.ndarray]:
        function = getattr(np, name)

        def call(*args: np.ndarray, **kwargs: np.ndarray) -> np.ndarray:
            if kwargs["out"].shape[-1] > 1:  # not the weighted sum of losses
                called.append(name)
            return function(*args, **kwargs)

        return call

    layout = Layout((5, 4, 2))
    network = Network(2, "relu", "softmax", "float64", "float64")
    graph = block_graph(network, "log_loss")
    recipe = derived(graph.inputs, graph.outputs, "sums")
    for name in ("dot", "matmul"):
        monkeypatch.setattr(np, name, counted(name))
    for beside, expected in ((True, {"dot": 2, "matmul": 3}), (False, {"matmul": 5})):
        states = [TrainState(np.full(layout.n_parameters, float(k)), []) for k in range(3)]
        vectors = StackedVectors(layout, states, np.zeros(3), Memory(), beside)
        data = [np.ones((7, 5)), np.ones((7, 2)), np.ones(7)]
        routine = Routine(recipe, range(3, 7))
        routine.bind([*data, *vectors.parameters], [np.empty(3), *vectors.out])()
        assert Counter(called) == expected
        called.clear()


def test_stacks_one_after_another_compute_in_the_same_memory() -> None:
    layout, memory = Layout((5, 4, 2)), Memory()
    made: list[int] = []

    def vectors_of(n_models: int) -> StackedVectors:
        vector = np.arange(float(layout.n_parameters)) + 10 * len(made)
        states = [TrainState(vector + k, [-vector]) for k in range(n_models)]
        made.append(n_models)
        return StackedVectors(layout, states, np.zeros(n_models), memory, beside=True)

    first = vectors_of(3)
    kept = first.state(2, step=1)
    n_slots = len(memory)
    for n_models in (2, 3):  # one has left; and the next task
        other = vectors_of(n_models)
        assert len(memory) == n_slots and memory.generation == 0
        assert np.shares_memory(first.theta, other.theta)
        assert_array_equal(other.theta[1] - other.theta[0], 1.0)
        assert_array_equal(other.parameters[0][1], other.theta[1][:20].reshape(5, 4))
    assert not np.shares_memory(first.theta, kept.theta)
    assert_array_equal(kept.theta, np.arange(float(layout.n_parameters)) + 2)
    assert_array_equal(kept.slots[0], -np.arange(float(layout.n_parameters)))


def test_memory_of_large_stacks_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ProgramSpec(
        Network(2, "relu", "softmax", "float64", "float64"), "log_loss", "adam", NUMPY
    )

    def memory_of(nbytes: int) -> Memory:
        program = StackedProgram(spec, 3, same_rows=True)
        memory = program.memory()
        memory.make_room(0, nbytes)
        program.give_back()
        return memory

    monkeypatch.setattr(stacked_program, "_kept", deque(maxlen=2))
    monkeypatch.setattr(stacked_program, "_MOST_KEPT_BYTES", 1000)
    first = memory_of(800)
    assert memory_of(1001) is first  # which has grown too large
    assert memory_of(800) is not first


def test_stacked_parameters_are_finite_or_not_each_by_itself() -> None:
    layout = Layout((5, 4, 2))
    thetas = np.ones((4, layout.n_parameters))
    thetas[1, 3], thetas[2, 0], thetas[3, 5] = np.inf, np.nan, 1e200  # whose square overflows
    states = [TrainState(theta, []) for theta in thetas]
    vectors = StackedVectors(layout, states, np.zeros(4), Memory(), beside=False)
    with np.errstate(over="ignore"):
        assert vectors.are_finite().tolist() == [True, False, False, True]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("rule", ["adam", "nesterov", "momentum"])
def test_stacked_steps_have_the_bits_of_each_alone_and_stay_in_their_rows(
    rule: str, dtype: str, beside: bool
) -> None:
    """As NumPy's calls and as a loop, with models apart in memory."""
    graph = update_graph(rule, dtype)
    recipe = derived(graph.inputs, graph.outputs, "update")
    n, n_penalised, n_slots = 23, 18, len(graph.outputs) - 1
    n_scalars = len(graph.inputs) - 3 - n_slots
    rng = np.random.RandomState(0)
    for in_loops in {False, loops.are_available()}:
        stacked, single = StackedUpdate(recipe), TiledUpdate(recipe, dtype)
        stacked._patience = 0.0 if in_loops else np.inf
        padded = [rng.random((N_MODELS, n + 5)).astype(dtype) for _ in range(2 + n_slots)]
        before = [array.copy() for array in padded]
        vectors = [array[:, :n] for array in padded]
        scalars = [rng.random(N_MODELS).astype(dtype) for _ in range(n_scalars)]
        alphas, zeros = rng.random(N_MODELS).astype(dtype), np.zeros(N_MODELS, dtype)
        pair = None
        if beside:  # three rows of six for each model
            again, gradient = (np.empty((3, N_MODELS * 6), dtype) for _ in range(2))
            pair = side_by_side(again, N_MODELS), side_by_side(gradient, N_MODELS)
            pair[1][...] = vectors[1][:, :n_penalised].reshape(N_MODELS, 3, 6)
            vectors[1][:, :n_penalised] = np.nan  # nobody reads it
        parts = [
            StackedPart([v[:, :n_penalised] for v in vectors], alphas, pair),
            StackedPart([v[:, n_penalised:] for v in vectors], zeros),
        ]
        for _ in range(3):
            stacked.bind(parts, scalars)()
        if pair is not None:
            assert_array_equal(pair[0].reshape(N_MODELS, -1), vectors[0][:, :n_penalised])
            vectors[1][:, :n_penalised] = pair[1].reshape(N_MODELS, -1)
        assert stacked.generation == int(in_loops)
        for k in range(N_MODELS):
            own = [array[k, :n].copy() for array in before]
            penalties = [(slice(0, n_penalised), alphas[k]), (slice(n_penalised, n), 0.0)]
            numbers = [scalar[k, ...] for scalar in scalars]
            for _ in range(3):
                single.bind(own, numbers, penalties)()
            for found, expected, past in zip(padded, own, before, strict=True):
                assert_array_equal(found[k, :n], expected)
                assert_array_equal(found[k, n:], past[k, n:])
