"""The seam to the engine: what is compiled, and how often."""

import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from skdtheano import engine
from skdtheano.graphs.losses import LOSSES, block_graph, sums_graph
from skdtheano.graphs.network import ACTIVATIONS, Network, network_graph
from skdtheano.graphs.optimizers import Adam, update_graph
from skdtheano.runtime.blocks import Block
from skdtheano.runtime.collective import Solo
from skdtheano.runtime.local_steps import run_local_epoch
from skdtheano.runtime.model import Model
from skdtheano.runtime.order import ListedBatches
from skdtheano.runtime.parameters import Layout, TrainState
from skdtheano.runtime.program import NUMPY, Program, ProgramSpec
from skdtheano.runtime.steps import StepSettings, Workspace

pytestmark = pytest.mark.parity

NETWORKS = [
    (loss, Network(3, activation, link, dtype, dtype, sparse))
    for (loss, (_, link)), activation, dtype, sparse in product(
        LOSSES.items(), ACTIVATIONS, ("float64", "float32"), (False, True)
    )
]


def ids(case: tuple[str, Network]) -> str:
    loss, network = case
    rows = "sparse" if network.sparse else "dense"
    return f"{loss}-{network.activation}-{network.dtype}-{rows}"


def assert_no_python_loop(function: Any) -> None:
    """No elementwise Op has more inputs than the NumPy function that it would call."""
    for node in function.maker.fgraph.apply_nodes:
        if type(node.op).__name__ != "Elemwise" or node.outputs[0].ndim == 0:
            continue
        spec = node.op.nfunc_spec or getattr(node.op.scalar_op, "nfunc_spec", None)
        if spec is None:  # a loop over one element costs as much as a function of it
            assert all(node.outputs[0].broadcastable), f"{node} has no NumPy function"
        else:
            assert len(node.inputs) == spec[1], f"{node} is a loop in Python"


@pytest.mark.parametrize("case", NETWORKS, ids=ids)
def test_no_elementwise_op_of_the_default_mode_is_a_loop_in_python(
    case: tuple[str, Network],
) -> None:
    loss, network = case
    graph = sums_graph(network, loss)
    mode = engine.DEFAULT_MODE
    assert_no_python_loop(engine.compile_function(graph.inputs, graph.outputs, mode, "sums"))
    symbols = network_graph(network)
    inputs = [symbols.rows, *symbols.parameters]
    assert_no_python_loop(engine.compile_function(inputs, [symbols.outputs], mode, "outputs"))


@pytest.mark.parametrize("rule", ["adam", "nesterov", "momentum"])
def test_no_update_is_a_loop_in_python(rule: str) -> None:
    graph = update_graph(rule, "float64")
    assert_no_python_loop(
        engine.compile_function(graph.inputs, graph.outputs, engine.DEFAULT_MODE, rule)
    )


@pytest.mark.parametrize(
    # A difference of two float32 losses has no digits to compare.
    "case",
    [case for case in NETWORKS if case[1].dtype == "float64"],
    ids=ids,
)
def test_gradients_are_those_of_finite_differences(case: tuple[str, Network]) -> None:
    loss, network = case
    layout = Layout((4, 3, 3, 2))
    rng = np.random.RandomState(0)
    theta = rng.uniform(-1, 1, layout.n_parameters)
    rows = rng.standard_normal((6, 4))
    targets = np.eye(2)[[0, 1, 1, 0, 1, 0]]
    weights = rng.uniform(0.5, 2, 6)
    if network.sparse:
        import scipy.sparse

        rows = scipy.sparse.csr_array(rows)
    gradient = np.zeros_like(theta)
    with Program(ProgramSpec(network, loss, None, NUMPY)) as program:

        def value(at: np.ndarray, out: np.ndarray) -> float:
            return program.sums(layout.views(at), rows, targets, weights, layout.views(out))

        value(theta, gradient)
        spare = np.empty_like(theta)
        step = 1e-6 * np.eye(len(theta))
        slopes = [(value(theta + e, spare) - value(theta - e, spare)) / 2e-6 for e in step]
    # The reported squared error is a mean over the two outputs, the gradient a sum's.
    scale = 2 if loss == "squared_error" else 1
    assert_allclose(gradient, scale * np.array(slopes), rtol=1e-6, atol=1e-7)


def test_relu_has_the_derivative_zero_at_zero() -> None:
    network = Network(2, "relu", "identity", "float64", "float64")
    layout = Layout((1, 1, 1))
    gradient = np.zeros(layout.n_parameters)
    with Program(ProgramSpec(network, "squared_error", None, NUMPY)) as program:
        program.sums(
            layout.views(np.array([1.0, 1.0, 0.0, 0.0])),
            np.zeros((1, 1)),
            np.ones((1, 1)),
            np.ones(1),
            layout.views(gradient),
        )
    assert_allclose(gradient, [0, 0, 0, -1])


def test_what_comes_once_is_not_kept() -> None:
    """Of the evaluations of L-BFGS each is at other parameters."""
    spec = ProgramSpec(
        Network(2, "relu", "identity", "float64", "float64"), "squared_error", None, NUMPY
    )
    layout = Layout((3, 4, 1))
    rows = np.ones((10, 3)), np.ones((10, 1)), np.ones(10)
    with Program(spec) as program:

        def evaluated(is_repeated: bool) -> "weakref.ref[np.ndarray]":
            theta, gradient = np.ones(layout.n_parameters), np.zeros(layout.n_parameters)
            given = layout.views(theta), *rows, layout.views(gradient)
            program.sums(*given, is_repeated=is_repeated)
            return weakref.ref(theta)

        assert evaluated(is_repeated=False)() is None
        assert evaluated(is_repeated=True)() is not None


def test_epochs_of_local_steps_bind_nothing_anew() -> None:
    network = Network(2, "relu", "identity", "float64", "float64")
    model = Model(ProgramSpec(network, "squared_error", "adam", NUMPY), Layout((3, 4, 1)))
    rows = model.rows_of([Block(np.ones((10, 3)), np.ones((10, 1)), None)])
    theta = np.full(model.layout.n_parameters, 0.1)
    state = TrainState(theta, [np.zeros_like(theta), np.zeros_like(theta)])
    settings = StepSettings(Adam(), 0.01, 0.0, 1, may_diverge=False, sync_every=2)
    with Program(model.spec) as program:
        workspace = Workspace(program, model.layout, rows)
        found = []
        for _ in range(3):
            batches = ListedBatches(np.arange(10), np.array([4, 4, 2]), 4, 10)
            run_local_epoch(workspace, batches, state, settings, Solo())
            found.append(len(program._runs))
    assert found[0] == found[1] == found[2] > 0


def test_threads_that_share_a_program_spec_do_not_share_a_function() -> None:
    network = Network(2, "tanh", "identity", "float64", "float64")
    spec = ProgramSpec(network, "squared_error", None, NUMPY)
    layout = Layout((5, 8, 1))
    rng = np.random.RandomState(0)
    theta = rng.standard_normal(layout.n_parameters)
    tables = [rng.standard_normal((50, 5)) for _ in range(4)]

    def outputs(rows: np.ndarray) -> np.ndarray:
        with Program(spec) as program:
            return program.outputs(layout.views(theta), rows)

    w1, w2, b1, b2 = layout.views(theta)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(50):
            for rows, found in zip(tables, pool.map(outputs, tables), strict=True):
                assert_allclose(found, np.tanh(rows @ w1 + b1) @ w2 + b2, rtol=1e-12)


def test_graphs_do_not_know_sizes_or_hyperparameters() -> None:
    network = Network(2, "identity", "identity", "float64", "float64")
    spec = ProgramSpec(network, "squared_error", "momentum", NUMPY)
    counts = []
    for size in (2, 3, 9):
        layout = Layout((size, size, 1))
        theta = np.ones(layout.n_parameters)
        with Program(spec) as program:
            program.outputs(layout.views(theta), np.ones((4, size)))
            vectors = [theta, np.ones_like(theta), np.zeros_like(theta)]
            program.update(vectors, layout.n_coefs, 0.1, (4.0, 0.1 * size, 0.5))
        counts.append(len(engine.compilations()))
    assert counts[0] == counts[1] == counts[2]


def test_a_mode_that_the_engine_lacks_is_refused_with_the_ones_it_has() -> None:
    with pytest.raises(ValueError, match="mode='FASTEST' is not a compile mode") as caught:
        engine.check_mode("FASTEST")
    assert "FAST_COMPILE" in str(caught.value)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("row_dtype", ["float64", "float32"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_plan_of_every_loss_is_one_stage_of_sums(
    loss: str, row_dtype: str, sparse: bool
) -> None:
    for activation in ACTIVATIONS:
        network = Network(2, activation, LOSSES[loss][1], row_dtype, row_dtype, sparse)
        graph, whole = block_graph(network, loss), sums_graph(network, loss)
        assert len(graph.outputs) == len(whole.outputs)
