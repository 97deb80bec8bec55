"""`function`: called here, lazily on dask arrays, inside tasks; and what it refuses."""

import pickle
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cloudpickle
import dask
import dask.array as da
import dask.bag
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from dask.delayed import delayed
from dask.utils import key_split
from distributed import Client
from numpy.testing import assert_allclose, assert_array_equal

import skdtheano
from skdtheano import PlacementError, engine

N_ROWS, N_COLUMNS = 60, 4
RNG = np.random.RandomState(0)
X = RNG.standard_normal((N_ROWS, N_COLUMNS))
Y = (X[:, 0] > 0).astype(float)
B = RNG.standard_normal(N_COLUMNS)

#: Ragged, with an empty block and one of a single row.
RAGGED = (20, 0, 1, 39)


def lazy(array: np.ndarray, rows: Any = RAGGED) -> da.Array:
    return da.from_array(array, chunks=(rows, *array.shape[1:]))


def of_unknown_sizes(array: np.ndarray) -> da.Array:
    chunks = lazy(array)
    return chunks[da.ones(len(array), chunks=(RAGGED,), dtype=bool)]


def matrix(name: str = "x") -> Any:
    return engine.matrix(name, dtype="float64")


def vector(name: str = "y") -> Any:
    return engine.vector(name, dtype="float64")


@skdtheano.function(target="dask")
def logistic(X: Any, y: Any, b: Any) -> Any:
    """Residuals and gradient of a logistic regression."""
    residual = 1 / (1 + engine.exp(-engine.dot(X, b))) - y
    return residual, engine.dot(X.T, residual)


def expected_logistic() -> tuple[np.ndarray, np.ndarray]:
    residual = 1 / (1 + np.exp(-X @ B)) - Y
    return residual, X.T @ residual


def assert_is_logistic(found: Any) -> None:
    for ours, theirs in zip(dask.compute(*found), expected_logistic(), strict=True):
        assert_allclose(ours, theirs, rtol=1e-12)


# --- calling ------------------------------------------------------------------------------


def test_arrays_in_memory_are_computed_at_once() -> None:
    found = logistic(X, Y, B)
    assert all(isinstance(value, np.ndarray) for value in found)
    assert_is_logistic(found)


@pytest.mark.parametrize("rows", [RAGGED, (60,), (7,) * 8 + (4,), (1,) * 60], ids=str)
def test_dask_arrays_give_lazy_arrays_with_their_chunks(rows: tuple[int, ...]) -> None:
    residual, gradient = logistic(lazy(X, rows), lazy(Y, rows), B)
    assert isinstance(residual, da.Array) and isinstance(gradient, da.Array)
    assert residual.chunks == (rows,)
    assert gradient.shape == (N_COLUMNS,) and gradient.dtype == float
    assert_is_logistic((residual, gradient))


def test_chunk_sizes_need_not_be_known() -> None:
    residual, gradient = logistic(of_unknown_sizes(X), of_unknown_sizes(Y), B)
    assert np.isnan(residual.shape[0]) and gradient.shape == (N_COLUMNS,)
    assert_is_logistic((residual, gradient))


def test_inputs_of_other_chunks_are_aligned() -> None:
    columns = da.from_array(X, chunks=(20, 3))
    assert_is_logistic(logistic(columns, lazy(Y, 11), B))


def test_frames_are_inputs() -> None:
    frame = dd.from_pandas(pd.DataFrame(X, columns=list("abcd")), npartitions=3)
    y = dd.from_pandas(pd.Series(Y), npartitions=3)
    assert_is_logistic(logistic(frame, y, B))


def test_arguments_may_be_named_and_replicated_ones_lazy() -> None:
    assert_is_logistic(logistic(b=da.from_array(B), y=lazy(Y), X=lazy(X)))


def test_the_result_of_one_call_is_an_argument_of_the_next() -> None:
    _, gradient = logistic(lazy(X), lazy(Y), B)
    _, second = logistic(lazy(X), lazy(Y), B - 0.1 * gradient)
    _, first = expected_logistic()
    residual = 1 / (1 + np.exp(-X @ (B - 0.1 * first))) - Y
    assert_allclose(second.compute(), X.T @ residual, rtol=1e-12)


def test_a_list_of_symbols_makes_a_function_as_theanos() -> None:
    x, b = matrix(), vector("b")
    f = skdtheano.function([x, b], [engine.dot(x, b), x.sum()], target="dask")
    for a in (X, lazy(X)):
        product, total = dask.compute(*f(a, B))
        assert_allclose(product, X @ B)
        assert_allclose(total, X.sum())
    one = skdtheano.function([x], x.sum(axis=0), target="dask")
    assert_allclose(one(lazy(X)).compute(), X.sum(axis=0))


def test_declared_rows_are_cut_and_declared_replicated_are_not() -> None:
    x, y = matrix(), vector()
    cut = skdtheano.function([x, y], engine.dot(x.T, y), target="dask", rows=["x", "y"])
    assert_allclose(cut(lazy(X), Y).compute(), X.T @ Y)
    centres = matrix("centres")
    distances = ((x.dimshuffle(0, "x", 1) - centres.dimshuffle("x", 0, 1)) ** 2).sum(axis=2)
    f = skdtheano.function([x, centres], distances, target="dask", replicated=["centres"])
    found = f(lazy(X), da.from_array(X[:3]))
    assert_allclose(found.compute(), ((X[:, None] - X[None, :3]) ** 2).sum(axis=2))


def test_givens_are_put_in_the_place_of_symbols() -> None:
    x, scale = matrix(), engine.scalar("scale", dtype="float64")
    f = skdtheano.function([x], (x * scale).sum(), givens={scale: 3.0}, target="dask")
    assert_allclose(f(lazy(X)).compute(), 3 * X.sum())


def test_python_scalars_of_the_call_are_cast_if_nothing_is_lost() -> None:
    x, scale = matrix(), engine.scalar("scale", dtype="float32")
    f = skdtheano.function([x, scale], (x * scale).sum())
    assert_allclose(f(X, 2), 2 * X.sum())


def test_a_traced_function_is_traced_once_by_dtypes_and_ranks() -> None:
    traced: list[str] = []

    @skdtheano.function(target="dask")
    def total(a: Any, negative: bool = False) -> Any:
        traced.append(a.dtype)
        return -a.sum() if negative else a.sum()

    for value in (X, lazy(X), X[:5]):
        total(value)
    assert traced == ["float64"]
    total(X.astype(np.float32))
    assert traced == ["float64", "float32"]
    assert_allclose(total(X, negative=True), -X.sum())


def test_every_kind_of_result_is_returned_as_it_was_written() -> None:
    single = skdtheano.function(lambda a: a.sum(), target="dask")
    pair = skdtheano.function(lambda a: (a.sum(), a.max()), target="dask")
    several = skdtheano.function(lambda a: [a.sum(), a.max()], target="dask")
    assert single(lazy(X)).ndim == 0
    assert isinstance(pair(lazy(X)), tuple) and isinstance(several(X), list)


# --- shared variables ---------------------------------------------------------------------


def shared(value: np.ndarray, name: str) -> Any:
    return engine.shared(value, name)


def test_shared_variables_are_read_at_each_call_and_updated_after_it() -> None:
    x = matrix()
    weights = shared(B.copy(), "weights")
    step = engine.dot(x.T, engine.dot(x, weights)) / x.shape[0]
    f = skdtheano.function(
        [x], engine.dot(x, weights).sum(), updates=[(weights, weights - step)], target="dask"
    )
    for value in (lazy(X), X):
        before = weights.get_value()
        assert_allclose(dask.compute(f(value))[0], (X @ before).sum())
        assert_allclose(weights.get_value(), before - X.T @ (X @ before) / N_ROWS)


def test_a_shared_variable_of_the_name_of_an_input_is_not_cut() -> None:
    x, scale = matrix("x"), shared(np.asarray(2.0), "x")
    f = skdtheano.function([x], (x * scale).sum(), target="dask", rows=["x"])
    assert_allclose(f(lazy(X)).compute(), 2 * X.sum())


def test_an_input_may_be_made_of_others() -> None:
    """As `theano.function` takes it: what lies behind it is not looked at."""
    made = matrix("hidden") * shared(np.asarray(2.0), "unused")
    f = skdtheano.function([made], made.sum(axis=0), target="dask")
    assert_allclose(f(lazy(X)).compute(), X.sum(axis=0))


# --- in tasks and other processes ---------------------------------------------------------


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_a_function_pickles_before_and_after_it_has_been_called(
    dumps: Callable[[Any], bytes],
) -> None:
    x = matrix()
    products = skdtheano.function([x], [x.prod(axis=1), x.sum(axis=0)], target="dask")
    for f in (logistic, products):
        fresh = pickle.loads(dumps(f))
        arguments = (X, Y, B) if f is logistic else (X,)
        f(*arguments)
        used = pickle.loads(dumps(f))
        for copy in (fresh, used):
            for ours, theirs in zip(copy(*arguments), f(*arguments), strict=True):
                assert_array_equal(ours, theirs)


@pytest.mark.cluster
def test_functions_run_in_tasks_and_each_process_compiles_a_graph_once(client: Client) -> None:
    x = matrix()
    f = skdtheano.function([x], (x**2).sum(axis=1) + 0.123, name="squares")
    expected = (X**2).sum(axis=1) + 0.123
    parts = [X[:20], X[20:21], X[21:]]
    assert_allclose(client.submit(f, X).result(), expected)
    found = client.gather(client.map(f, parts))
    assert_allclose(np.concatenate(found), expected)
    assert_allclose(delayed(f)(X).compute(), expected)
    blocks = da.map_blocks(f, lazy(X), dtype=float, drop_axis=1)
    assert_allclose(blocks.compute(), expected)
    again = skdtheano.function([x], (x**2).sum(axis=1) + 0.123, name="squares")
    assert_allclose(client.submit(again, X).result(), expected)
    counts = client.run(lambda: Counter(engine.compilations())["squares"])
    assert set(counts.values()) <= {0, 1} and sum(counts.values()) >= 1


@pytest.mark.cluster
def test_calls_on_a_cluster_reuse_what_it_has_compiled(client: Client) -> None:
    name = "reused"
    f = skdtheano.function(lambda a, b: engine.dot(a, b).sum(), target="dask", name=name)

    def compiled() -> int:
        counts = client.run(
            lambda: sum(n for k, n in Counter(engine.compilations()).items() if "reused" in k)
        )
        return int(sum(counts.values()))

    for chunks in (RAGGED, (30, 30), (10,) * 6):
        assert_allclose(f(lazy(X, chunks), B).compute(), (X @ B).sum())
    first = compiled()
    assert first <= 2
    for scale in range(5):
        f(lazy(X), scale * B).compute()
    assert compiled() == first


def test_errors_on_workers_name_the_inputs_and_their_shapes(client: Client) -> None:
    f = skdtheano.function(lambda table, w: engine.dot(table, w), target="dask")
    with pytest.raises(ValueError) as error:
        f(lazy(X), np.ones(N_COLUMNS + 1)).compute()
    assert f"'w' of shape ({N_COLUMNS + 1},)" in error.value.__notes__[-1]


def test_threads_of_one_process_do_not_share_a_compiled_function() -> None:
    x = matrix()
    f = skdtheano.function([x], engine.tanh(x).sum(axis=0))
    tables = [RNG.standard_normal((200, 5)) for _ in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(f, tables))
    for ours, table in zip(found, tables, strict=True):
        assert_allclose(ours, np.tanh(table).sum(axis=0))


@pytest.mark.cluster
def test_a_second_stage_moves_less_than_the_table(client: Client) -> None:
    f = skdtheano.function(
        lambda a: (engine.exp(a) / engine.exp(a).sum(axis=0)).sum(axis=1), target="dask"
    )
    big = np.random.RandomState(1).standard_normal((40_000, 20))
    data = da.from_array(big, chunks=(5_000, 20)).persist()
    # The first call compiles, and dask takes that for the time that a block needs: it then
    # moves some to where it expects an idle worker.
    f(data + 1).compute()
    before = sum(client.run(_bytes_received).values())
    found = f(data).compute()
    moved = sum(client.run(_bytes_received).values()) - before
    shares = np.exp(big) / np.exp(big).sum(axis=0)
    assert_allclose(found, shares.sum(axis=1))
    assert moved < big.nbytes / 4


def _bytes_received(dask_worker: Any) -> int:
    return int(sum(one["total"] for one in dask_worker.transfer_incoming_log))


def test_without_a_client_dask_runs_it_by_its_own_scheduler() -> None:
    for scheduler in ("synchronous", "threads"):
        with dask.config.set(scheduler=scheduler):
            assert_is_logistic(logistic(lazy(X), lazy(Y), B))


def test_several_outputs_share_their_work() -> None:
    computed: list[int] = []

    def counted(block: np.ndarray) -> np.ndarray:
        computed.append(len(block))
        return block

    data = lazy(X, 20).map_blocks(counted, dtype=float, meta=X[:0])
    outputs = logistic(data, lazy(Y, 20), B)
    dask.compute(*outputs, scheduler="synchronous")
    assert computed == [20, 20, 20]


def test_task_names_begin_with_the_name_of_the_function() -> None:
    residual, gradient = logistic(lazy(X), lazy(Y), B)
    names = {str(key[0] if isinstance(key, tuple) else key) for key in gradient.dask}
    assert any(name.startswith("logistic-rows-0-") for name in names)
    assert any(name.startswith("logistic-combine-0-") for name in names)
    assert residual.name.startswith("logistic-0-")
    # The dashboard's bars are named after what comes before the token.
    bars = {key_split(key) for array in (residual, gradient) for key in array.dask}
    assert {"logistic-rows", "logistic-combine", "logistic"} <= bars


def test_persist_and_slices_of_a_result_work() -> None:
    residual, _ = logistic(lazy(X), lazy(Y), B)
    assert_allclose(residual.persist()[3:9].compute(), expected_logistic()[0][3:9])


# --- what it refuses ----------------------------------------------------------------------


def test_rows_that_all_must_be_at_one_place_are_named_and_may_be_gathered() -> None:
    x = matrix()
    kept = x - x.mean(axis=0)
    with pytest.raises(PlacementError, match=r"(?s)Subtensor.*place in the table.*gather="):
        skdtheano.function([x], kept[3], target="dask")(lazy(X))
    allowed = skdtheano.function([x], kept[3], target="dask", gather="allow")
    assert_allclose(allowed(lazy(X)).compute(), X[3] - X.mean(axis=0))


def test_an_op_without_a_rule_is_named() -> None:
    x = matrix()
    diagonal = engine._tensor.diag(x)
    with pytest.raises(PlacementError, match=r"ExtractDiag.*has no rule for rows"):
        skdtheano.function([x], diagonal, target="dask")(lazy(X))


def test_the_place_in_the_users_file_is_named() -> None:
    x = matrix()
    picked = x[3]
    with pytest.raises(PlacementError, match=r"made at .*test_function.py:\d+"):
        skdtheano.function([x], picked, target="dask")(lazy(X))


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "other lengths": (
        lambda: logistic(lazy(X), lazy(Y[:50], 10), B),
        ValueError,
        "'X' has 60|'y' has 50.*replicated=",
    ),
    "unknown sizes in other blocks": (
        lambda: logistic(of_unknown_sizes(X), lazy(Y, 30), B),
        ValueError,
        "4 and 2|2 and 4.*compute_chunk_sizes",
    ),
    "rank": (
        lambda: logistic(lazy(X[:, 0]), lazy(Y), B),
        ValueError,
        "rank|dimensions|PlacementError|cannot be computed",
    ),
    "rows in memory": (
        lambda: logistic(lazy(X), Y, B),
        PlacementError,
        "'y' is replicated.*rows=",
    ),
    "replicated and cut": (
        lambda: skdtheano.function(
            [matrix()],
            matrix().sum(),
            target="dask",
            replicated=["x"],
            on_unused_input="ignore",
        )(lazy(X)),
        ValueError,
        "input",
    ),
    "a bag": (
        lambda: skdtheano.function([matrix()], [], target="dask", on_unused_input="ignore")(
            dask.bag.from_sequence([1, 2])
        ),
        TypeError,
        "Input 'x' is a Bag",
    ),
    "sparse": (
        lambda: skdtheano.function([x := matrix()], x.sum())(scipy.sparse.csr_array(X)),
        TypeError,
        "'x' is sparse",
    ),
    "dtype": (
        lambda: skdtheano.function([i := engine.vector("i", dtype="int32")], i.sum())(Y),
        TypeError,
        r"float64, which int32 does not hold.*astype\('int32'\)",
    ),
    "dask without a target": (
        lambda: skdtheano.function([x := matrix()], x.sum())(lazy(X)),
        TypeError,
        "target=None.*target='dask'",
    ),
    "too many": (lambda: logistic(X, Y, B, B), TypeError, "too many|takes 3"),
    "missing": (
        lambda: skdtheano.function([x := matrix()], x.sum())(),
        TypeError,
        "needs a value for 'x'",
    ),
    "unused": (
        lambda: skdtheano.function([matrix(), y := vector()], y.sum()),
        ValueError,
        "Input x is not used.*on_unused_input='ignore'",
    ),
    "no input": (
        lambda: skdtheano.function([matrix()], vector().sum(), on_unused_input="ignore"),
        ValueError,
        "depend on y, which is no input",
    ),
    "twice": (lambda: skdtheano.function([x := matrix(), x], x.sum()), ValueError, "twice"),
    "no symbol": (lambda: skdtheano.function([X], matrix()), TypeError, "Input 0 is"),
    "no symbol out": (lambda: skdtheano.function([matrix()], X), TypeError, "Output 0 is"),
    "target": (
        lambda: skdtheano.function([x := matrix()], x, target="spark"),
        ValueError,
        "target='spark' is not one of",
    ),
    "mode": (
        lambda: skdtheano.function([x := matrix()], x, mode="FASTEST"),
        ValueError,
        "mode='FASTEST' is not a compile mode",
    ),
    "rows": (
        lambda: skdtheano.function([x := matrix()], x, target="dask", rows=["z"])(lazy(X)),
        ValueError,
        "names 'z', and the inputs are",
    ),
    "rows as text": (
        lambda: skdtheano.function([x := matrix()], x, rows="x"),
        TypeError,
        "rows='x' is not a sequence",
    ),
    "gather": (
        lambda: skdtheano.function([x := matrix()], x, gather="yes"),
        ValueError,
        "gather='yes' is neither",
    ),
    "updates": (
        lambda: skdtheano.function([x := matrix()], x, updates=[(x, x)]),
        TypeError,
        "no shared variable",
    ),
    "all replicated": (
        lambda: skdtheano.function([x := matrix()], x.sum(), target="dask", replicated=["x"])(
            da.from_array(X)
        ),
        ValueError,
        "No input has rows",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_use_is_refused_with_what_to_do(name: str) -> None:
    call, kind, says = REFUSED[name]
    with pytest.raises(kind) as refusal:
        call()
    assert re.search(says, str(refusal.value), re.DOTALL), refusal.value


@pytest.mark.parametrize("given", [lazy(X), X], ids=["dask", "NumPy"])
def test_errors_of_the_engine_name_the_inputs_and_their_shapes(given: Any) -> None:
    @skdtheano.function(target="dask")
    def product(table: Any, weights: Any) -> Any:
        return engine.dot(table, weights)

    with pytest.raises(ValueError) as error:
        dask.compute(product(given, np.ones(N_COLUMNS + 1)))
    note = error.value.__notes__[-1]  # before it, the engine's own hint
    assert note.startswith("This was ") and "product" in note
    assert f"'weights' of shape ({N_COLUMNS + 1},)" in note
    assert re.search(rf"'table' of shape \(\d+, {N_COLUMNS}\)", note)


def test_a_missing_argument_is_named_with_its_function() -> None:
    @skdtheano.function(target="dask")
    def product(table: Any, weights: Any) -> Any:
        return engine.dot(table, weights)

    with pytest.raises(TypeError, match=r"product\(table.*weights.*missing.*'weights'"):
        product(lazy(X))


def test_replicated_input_given_in_blocks_is_refused() -> None:
    x, c = matrix(), matrix("c")
    f = skdtheano.function([x, c], engine.dot(x, c.T), target="dask", replicated=["c"])
    with pytest.raises(ValueError, match=r"'c' is declared replicated.*4 blocks"):
        f(lazy(X), lazy(X))


@pytest.mark.skipif(engine.ENGINE == "theano", reason="Theano's own GPU code is gone")
def test_a_gpu_that_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(RuntimeError, match=r"target='gpu'.*(JAX|accelerator)"):
        skdtheano.function([x := matrix()], x.sum(), target="gpu")


def test_an_empty_table_gives_what_the_graph_gives_without_rows() -> None:
    x = matrix()
    f = skdtheano.function([x], [x.sum(axis=0), x * 2], target="dask")
    total, doubled = dask.compute(*f(lazy(X[:0], (0, 0))))
    assert_array_equal(total, np.zeros(N_COLUMNS))
    assert doubled.shape == (0, N_COLUMNS)
    highest = skdtheano.function([x], x.max(axis=0), target="dask")
    with pytest.raises(ValueError, match="No block has a row"):
        highest(lazy(X[:0], (0, 0))).compute()
