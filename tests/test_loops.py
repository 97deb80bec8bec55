"""Loops that LLVM compiles: kept on the disk, and given only what they can take."""

import os
import signal
import threading
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skdtheano import engine, loops, shelf
from skdtheano import routine as routine_module
from skdtheano.graphs.losses import LOSSES, block_graph
from skdtheano.graphs.network import ACTIVATIONS, Network
from skdtheano.graphs.optimizers import update_graph
from skdtheano.recipe import Recipe, derived
from skdtheano.routine import Routine
from skdtheano.runtime.parameters import Layout
from skdtheano.runtime.update import TiledUpdate

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not loops.are_available(), reason="classic Theano brings no LLVM"),
]


def source(dtype: str = "float64") -> str:
    x, y = (engine.vector(name, dtype=dtype) for name in "xy")
    s = engine.scalar("s", dtype=dtype)
    graph = derived([x, y, s], [engine.sqrt(x * x + y) / s + x + y], "sum")
    made = Routine(graph).loop_source(scalars=[2], in_place=[0])
    assert made is not None
    return made


def arrays(n: int, dtype: str = "float64") -> list[np.ndarray]:
    rng = np.random.RandomState(0)
    return [rng.random(n).astype(dtype), rng.random(n).astype(dtype), np.full((), 3, dtype)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of its own, and a process that has compiled nothing."""
    monkeypatch.setattr(shelf, "directory", lambda: tmp_path)
    monkeypatch.setattr(loops, "_loops", {})
    return tmp_path


def check(dtype: str = "float64") -> None:
    loops._loops.clear()
    loop = loops.compiled_loop(source(dtype))
    assert loop is not None
    for n in (0, 1, 3, 1000):
        x, y, s = arrays(n, dtype)
        expected = np.sqrt(x * x + y) / s + x + y
        loops.bound_loop(loop, [x, y, s], [n, 1, 0, 1])()
        assert_array_equal(x, expected)
        assert x.dtype == dtype
    x, y, s = np.ones((3, 5), dtype), np.zeros((3, 5), dtype), np.arange(1, 4).astype(dtype)
    loops.bound_loop(loop, [x, y, s], [5, 3, 5, 1])()  # of three models
    assert_array_equal(x, np.repeat((1 / s + 1)[:, None], 5, axis=1))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_loop_has_the_bits_of_numpy_compiled_or_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    assert not loops.is_compiled(source(dtype))
    check(dtype)
    assert loops.is_compiled(source(dtype))
    monkeypatch.setattr(loops, "_compiled", None)  # which nobody calls again
    check(dtype)


def test_machine_code_that_is_not_what_was_written_is_compiled_again(folder: Path) -> None:
    check()
    [file] = folder.iterdir()
    content = file.read_bytes()
    for spoilt in (b"", content[:-1], content[:-1] + b"?", content[65:]):
        file.write_bytes(spoilt)
        assert not loops.is_compiled(source())
        check()
        assert file.read_bytes() == content


def test_a_directory_that_cannot_be_written_is_no_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "a file"
    file.write_text("")
    monkeypatch.setattr(shelf, "directory", lambda: file / "shelf")
    check()


LAYOUT = Layout((5, 4, 3, 2))
NETWORKS = [
    (loss, Network(3, activation, link, row_dtype, dtype))
    for (loss, (_, link)), activation, (row_dtype, dtype) in product(
        LOSSES.items(),
        ACTIVATIONS,
        [("float64", "float64"), ("float32", "float32"), ("float32", "float64")],
    )
]


@pytest.mark.parametrize(
    "case", NETWORKS, ids=lambda c: f"{c[0]}-{c[1].activation}-{c[1].row_dtype}-{c[1].dtype}"
)
def test_sums_have_the_same_bits_with_loops(case: tuple[str, Network]) -> None:
    loss, network = case
    dtype = network.dtype
    graph = block_graph(network, loss)
    recipe = derived(graph.inputs, graph.outputs, "sums")
    rng = np.random.RandomState(0)
    theta = rng.standard_normal(LAYOUT.n_parameters).astype(dtype)
    parameters = LAYOUT.views(theta)
    parameters[0][:, 0] = parameters[3][0] = 0  # scores that are 0
    called, looped = Routine(recipe), Routine(recipe)
    looped._loads = looped._compiles = True
    for n in (7, 1, 40, 2):
        drawn = [rng.standard_normal((n, 5)), rng.random((n, 2)), rng.random(n)]
        drawn[0][n // 2, 1] = np.inf if n == 40 else -0.0
        inputs = [drawn[0].astype(network.row_dtype), *(a.astype(dtype) for a in drawn[1:])]
        found = []
        for routine in (called, looped):
            out = [np.zeros((), dtype), *(np.empty_like(array) for array in parameters)]
            run = routine.bind([*inputs, *parameters], out)
            with np.errstate(all="ignore"):
                run()
                run()  # on what the first call has left in memory
            found.append(out)
        for ours, theirs in zip(*found, strict=True):
            assert_array_equal(ours, theirs)
            is_number = ~np.isnan(theirs)  # NaN's sign is that of either operand
            assert_array_equal(np.signbit(ours[is_number]), np.signbit(theirs[is_number]))


def test_a_layer_of_relu_is_two_loops_and_a_softmax_with_its_loss_four(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scores and values; mask, slopes and their sum. And before and after exp, and log."""
    monkeypatch.setattr(routine_module, "compiled_loop", made := Loops())
    graph = block_graph(Network(2, "relu", "softmax", "float32", "float32"), "log_loss")
    routine = Routine(derived(graph.inputs, graph.outputs, "sums"))
    layout = Layout((5, 4, 3))
    vectors = [np.ones(layout.n_parameters, np.float32) for _ in range(2)]
    rows, targets, weights = np.ones((6, 5)), np.ones((6, 3)), np.ones(6)
    given = [array.astype(np.float32) for array in (rows, targets, weights)]
    inputs, out = [*given, *layout.views(vectors[0])], layout.views(vectors[1])
    routine._loads = routine._compiles = True
    routine.bind(inputs, [np.zeros((), np.float32), *out])
    assert len(made.sources) == 6
    # In place of the scores: no conditions, and the gradient's mask is made of the values.
    assert made.sources[0].count("store") == 1
    assert "store i8" not in made.sources[0]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("n, m", [(7, 10), (7, 32), (7, 33), (1, 10), (2, 9), (7, 1)])
def test_sums_and_maxima_of_rows_have_the_bits_of_numpy(n: int, m: int, dtype: str) -> None:
    """Also where values are made before them that are read after them."""
    x, y = (engine.matrix(name, dtype=dtype) for name in "xy")
    shifted = x - engine.maximum_over(x, (1,))
    scaled = shifted * y
    total = scaled.sum(axis=1)
    share = scaled / total.dimshuffle(0, "x") + shifted
    low = engine.minimum(engine.maximum(share, np.asarray(0.1, dtype)), np.asarray(2, dtype))
    zero = engine.maximum(share, np.asarray(0, dtype))  # whose sign NumPy does not tell
    by_sum = y / (x + x).sum(axis=1).dimshuffle(0, "x")
    graphs = [
        (((n, m), (n,)), [low, low.sum(axis=1)]),
        (((m,), (n,)), [low.sum(axis=0), total]),
        (((n, m),), [zero * y]),
        (((n, m),), [by_sum]),  # where all are -0.0 the sum is 0.0, and a quotient tells
    ]
    rng = np.random.RandomState(0)
    values, factors = (rng.standard_normal((n, m)).astype(dtype) for _ in range(2))
    values[0], values[n // 2, 0] = 3.0, np.nan  # equal ones, and one that is none
    if n > 2:
        values[5] = -0.0
        values[1, m // 2], values[2, m // 2], values[3] = np.inf, -np.inf, -np.inf
    for shapes, graph in graphs:
        recipe = derived([x, y], graph, "rows")
        found = []
        for loads in (False, True):
            routine = Routine(recipe)
            routine._loads = routine._compiles = loads
            out = [np.empty(shape, dtype) for shape in shapes]
            with np.errstate(all="ignore"):
                for _ in range(2):
                    routine.bind([values, factors], out)()
            found.append(out)
        for ours, theirs in zip(*found, strict=True):
            assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "limit, n_loops",
    [(0.5, 1), (-2.0, 1), (0.0, 0), ("scalar", 0), ("row max", 0)],
)
def test_where_numpy_leaves_the_sign_of_zero_open_there_is_no_loop(
    limit: float | str, n_loops: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 0.0 and -0.0 it gives one back by where they lie in memory."""
    monkeypatch.setattr(routine_module, "compiled_loop", made := Loops())
    x, y = (engine.matrix(name, dtype="float64") for name in "xy")
    s = engine.vector("s", dtype="float64")
    if limit == "row max":
        graph = engine.maximum_over(x * y, (1,))
    else:
        other = s.dimshuffle("x", 0) if limit == "scalar" else np.asarray(limit)
        graph = engine.minimum(x * y, other)
    routine = Routine(derived([x, y, s], [graph], "limit"))
    routine._loads = routine._compiles = True
    out = np.empty((3, 1 if limit == "row max" else 2))
    routine.bind([np.ones((3, 2)), np.ones((3, 2)), np.ones(1)], [out])
    assert len(made.sources) == n_loops


class Loops:
    """Remembers the sources of loops, and compiles none."""

    def __init__(self) -> None:
        self.sources: list[str] = []

    def __call__(self, source: str) -> None:
        self.sources.append(source)


def test_a_routine_changes_to_loops_once_that_pays(folder: Path) -> None:
    x, b = engine.matrix("x", dtype="float64"), engine.vector("b", dtype="float64")
    recipe = derived([x, b], [(x + b.dimshuffle("x", 0)) * x - x], "chain")

    def run(routine: Routine) -> None:
        rows, out = np.ones((3, 2)), np.empty((3, 2))
        routine.bind([rows, np.arange(2.0)], [out])()
        assert_array_equal(out, [[0, 1]] * 3)

    def loops_of(routine: Routine) -> int:
        [plan] = routine._plans.values()
        return sum(
            not isinstance(part, list) and hasattr(part, "loop") for part in plan._parts
        )

    routine = Routine(recipe)
    run(routine)
    assert (routine.generation, loops_of(routine)) == (0, 0)
    routine._note(0.05)
    run(routine)
    assert (routine.generation, loops_of(routine)) == (1, 0)  # there was nothing to load
    routine._note(0.2)
    assert routine._compiling is not None
    routine._compiling.join(60)  # beside the calls, which went on
    assert (routine.generation, len(list(folder.iterdir()))) == (1, 1)
    routine._note(0.0)
    run(routine)
    assert (routine.generation, loops_of(routine)) == (2, 1)
    routine._note(0.2)
    assert routine.generation == 2
    another = Routine(recipe)
    another._note(0.05)
    run(another)
    assert (another.generation, loops_of(another)) == (1, 1)


def test_a_loop_that_cannot_be_compiled_is_left_to_numpy(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loops.compile_ahead(["this is no loop {", source()]).join(60)
    assert "A loop cannot be compiled here" in caplog.text
    assert loops.compiled_loop("this is no loop {") is None
    assert loops.is_compiled(source())


def test_where_no_thread_can_be_started_loops_are_compiled_when_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert not loops.compile_ahead([source()]).is_alive()
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # Python 3.12
def test_a_process_that_is_forked_while_loops_are_compiled_can_compile(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = engine.matrix("x", dtype="float64")
    recipes = [derived([x], [sum((x * n for n in range(2, k)), x)], "sums") for k in (9, 8)]
    sources = []
    for recipe in recipes:
        routine = Routine(recipe)
        routine._loads = True
        routine.bind([np.ones((3, 4))], [np.ones((3, 4))])
        sources += routine._missing
    assert len(sources) == 2
    compiled, is_compiling = loops._compiled, threading.Event()

    def told(source: str) -> bytes:
        is_compiling.set()
        return compiled(source)

    monkeypatch.setattr(loops, "_compiled", told)
    thread = loops.compile_ahead(sources[:1])
    assert is_compiling.wait(60)
    child = os.fork()
    if not child:
        signal.alarm(60)  # ends it
        os._exit(0 if loops.compiled_loop(sources[1]) is not None else 1)
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_vectors_that_a_loop_cannot_take_are_refused() -> None:
    update = TiledUpdate(recipe_of("momentum"), "float64")
    update._patience = 0.0
    scalars = [np.asarray(x) for x in (4.0, 0.01, 0.9)]
    parts = [(slice(0, 10), 0.1)]
    update.bind([np.ones(10) for _ in range(3)], scalars, parts)()
    assert update.generation == 1
    for odd in (np.ones(10, np.float32), np.ones(20)[::2], np.ones(9)):
        with pytest.raises(ValueError, match="contiguous vectors of one length and dtype"):
            update.bind([np.ones(10), odd, np.ones(10)], scalars, parts)


def recipe_of(rule: str) -> Recipe:
    graph = update_graph(rule, "float64")
    return derived(graph.inputs, graph.outputs, "update")
