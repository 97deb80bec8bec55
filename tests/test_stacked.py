"""Many models of one architecture at once: the numbers of each one alone."""

from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skdtheano import loops
from skdtheano.graphs.losses import LOSSES, block_graph
from skdtheano.graphs.network import ACTIVATIONS, Network
from skdtheano.graphs.optimizers import update_graph
from skdtheano.recipe import Recipe, derived
from skdtheano.routine import Routine
from skdtheano.runtime.parameters import Layout
from skdtheano.runtime.update import StackedUpdate, TiledUpdate

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
    for same_rows in (True, False):
        for in_loops in {False, loops._is_available()}:  # classic Theano brings no LLVM
            check_sums(network, recipe, same_rows, in_loops)


def check_sums(network: Network, recipe: Recipe, same_rows: bool, in_loops: bool) -> None:
    rng = np.random.RandomState(0)
    theta = rng.standard_normal((N_MODELS, LAYOUT.n_parameters)).astype(network.dtype)
    parameters = LAYOUT.views(theta)
    parameters[0][:, :, 0] = parameters[3][:, 0] = 0  # scores that are 0
    places = range(0 if not same_rows else 3, 3 + len(parameters))
    stacked, single = Routine(recipe, places), Routine(recipe)
    stacked._loads = stacked._compiles = in_loops
    for n in (7, 1, 40):
        models = () if same_rows else (N_MODELS,)
        rows = rng.standard_normal((*models, n, 5)).astype(network.row_dtype)
        rows[..., n // 2, 1] = np.inf if n == 40 else -0.0
        targets, weights = rng.random((*models, n, 2)), rng.random((*models, n))
        data = [rows, targets.astype(network.dtype), weights.astype(network.dtype)]
        out = [np.empty(N_MODELS, network.dtype), *LAYOUT.views(np.empty_like(theta))]
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


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rule", ["adam", "nesterov", "momentum"])
def test_stacked_steps_have_the_bits_of_each_alone_and_stay_in_their_rows(
    rule: str, dtype: str
) -> None:
    """As NumPy's calls and as a loop, with models apart in memory."""
    graph = update_graph(rule, dtype)
    recipe = derived(graph.inputs, graph.outputs, "update")
    n, n_penalised, n_slots = 23, 17, len(graph.outputs) - 1
    n_scalars = len(graph.inputs) - 3 - n_slots
    rng = np.random.RandomState(0)
    for in_loops in {False, loops._is_available()}:
        stacked, single = StackedUpdate(recipe), TiledUpdate(recipe, dtype)
        stacked._patience = 0.0 if in_loops else np.inf
        padded = [rng.random((N_MODELS, n + 5)).astype(dtype) for _ in range(2 + n_slots)]
        before = [array.copy() for array in padded]
        vectors = [array[:, :n] for array in padded]
        scalars = [rng.random(N_MODELS).astype(dtype) for _ in range(n_scalars)]
        alphas, zeros = rng.random(N_MODELS).astype(dtype), np.zeros(N_MODELS, dtype)
        parts = [[v[:, :n_penalised] for v in vectors], [v[:, n_penalised:] for v in vectors]]
        for _ in range(3):
            stacked.bind(parts, scalars, [alphas, zeros])()
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
