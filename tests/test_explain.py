"""`explain`: operations against closed forms, the laws of work and span, and what it shows."""

import dataclasses
import pickle
import xml.dom.minidom
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pytest
from cutting import PYTENSOR, library, pt
from numpy.testing import assert_allclose

import skdtheano
from skdtheano import PlacementError, engine, explain
from skdtheano.functions.cut_calls import cut_call
from skdtheano.functions.explanation import quantity, speedup_of
from skdtheano.functions.packing import pack
from skdtheano.runtime.staged import run_step

pytestmark = pytest.mark.parity

N, D, BLOCKS = 1000, 6, 8


def made(traced: Callable[..., Any], **options: Any) -> Any:
    return skdtheano.function(traced, target="dask", **options)


gram = made(lambda X: X.T.dot(X))
twice = made(lambda X: pt.exp(2 * X))
centred = made(lambda X: X - X.mean(axis=0))


@made
def logistic(w: Any, X: Any, y: Any) -> Any:
    z = X.dot(w)
    loss = (pt.log1p(pt.exp(z)) - y * z).sum()
    return loss, library.grad(loss, w)


#: Function, its arguments, and the operations on all blocks, once, and of the combines.
COUNTED = {
    "gram": (gram, [(N, D)], 2 * N * D**2, 0, (BLOCKS - 1) * D**2),
    "elementwise": (twice, [(N, D)], 2 * N * D, 0, 0),
    "sum-of-rows": (made(lambda X: X.sum(axis=0)), [(N, D)], N * D, 0, (BLOCKS - 1) * D),
    "vector-product": (made(lambda x, y: x.dot(y)), [(N,), (N,)], 2 * N, 0, BLOCKS - 1),
    "product": (made(lambda W, X: X.dot(W)), [(D, 3), (N, D)], 2 * N * D * 3, 0, 0),
    "softmax-of-rows": (
        made(lambda X: pt.special.softmax(X, axis=1) if PYTENSOR else pt.nnet.softmax(X)),
        [(N, D)],
        5 * N * D,
        0,
        0,
    ),
    "centred": (
        centred,
        [(N, D)],
        # The sum and the difference; then the sums of the blocks.
        2 * N * D,
        D,
        (BLOCKS - 1) * D,
    ),
    "once": (
        made(lambda W, x: x * W.dot(W).sum()),
        [(D, D), (N,)],
        N,
        2 * D**3 + D**2,
        0,
    ),
    "picked": (
        made(lambda table, rows: table[rows] * 2),
        [(D, 3), np.zeros(N, int)],
        3 * N,
        0,
        0,
    ),
}


@pytest.mark.parametrize("case", COUNTED.values(), ids=COUNTED.keys())
def test_operations_are_those_of_the_closed_form(case: Any) -> None:
    f, arguments, block, once, combine = case
    found = explain(f, *arguments, blocks=BLOCKS)
    assert sum(stage.block.cost.flops for stage in found.stages) == block
    assert sum(stage.once.cost.flops for stage in found.stages) == once
    assert sum(stage.combine.flops for stage in found.stages) == combine
    assert found.flops == found.work == block + once + combine
    assert found.unlisted == ()
    assert_allclose(found.parallel_fraction, block / found.work)


def test_a_row_wise_graph_runs_on_blocks_alone() -> None:
    found = explain(twice, (N, D), blocks=BLOCKS)
    assert found.parallel_fraction == 1
    assert found.combined_bytes == 0
    assert found.span == 2 * D * N // BLOCKS
    assert_allclose(found.speedup(BLOCKS), BLOCKS)
    assert_allclose(found.speedup(10 * BLOCKS), BLOCKS)


def test_bytes_are_those_of_the_tensors() -> None:
    found = explain(gram, (N, D), blocks=BLOCKS)
    [stage] = found.stages
    # X is read twice, once as a view, and each block writes a product.
    assert stage.bytes == 8 * (2 * N * D + BLOCKS * D**2)
    assert stage.combine.block_bytes == found.combined_bytes == 8 * D**2
    assert stage.combine.bytes == 8 * BLOCKS * D**2


def test_the_combines_are_a_tree() -> None:
    """64 blocks are combined by 8 tasks, and those by one."""
    found = explain(gram, (6400, D), blocks=64)
    assert found.stages[0].combine.levels == 2
    assert found.stages[0].combine.flops == 63 * D**2
    assert found.span == 2 * 100 * D**2 + 2 * 7 * D**2
    # One round of blocks, 8 rounds of them; the same of the tree.
    assert_allclose(found.speedup(8), found.work / (8 * 200 * D**2 + 7 * D**2 + 7 * D**2))


@pytest.mark.parametrize(
    "blocks", [1, 2, 3, 50, (N,), (400, 0, 1, 599)], ids=["1", "2", "3", "50", "N", "ragged"]
)
@pytest.mark.parametrize("f", [gram, centred, twice], ids=["gram", "centred", "twice"])
def test_the_laws_of_work_and_span(f: Any, blocks: Any) -> None:
    found = explain(f, (N, D), blocks=blocks, workers=40)
    assert found.workers == tuple(range(1, 41))
    assert found.speedups[0] == 1
    assert all(np.diff(found.speedups) >= 0)
    assert 0 < found.span <= found.work
    for workers, speedup in zip(found.workers, found.speedups, strict=True):
        assert speedup <= min(workers, found.work / found.span) * (1 + 1e-12)
        assert speedup == found.speedup(workers)
    if len(found.row_chunks) > 1:
        assert found.span < found.work


def test_brents_schedule_takes_tasks_in_rounds() -> None:
    levels = [(5, 4, 3, 2, 1), (10,)]
    assert_allclose(speedup_of(levels, 2), 25 / (5 + 3 + 1 + 10))
    assert_allclose(speedup_of(levels, 100), 25 / (5 + 10))
    assert speedup_of([(0, 0)], 4) == 1


def test_blocks_are_those_of_the_dask_arrays() -> None:
    X = da.zeros((N, D), chunks=((100, 0, 900), D))
    assert explain(gram, X).row_chunks == (100, 0, 900)
    assert explain(gram, X, blocks=4).row_chunks == (250,) * 4
    assert explain(gram, X, blocks=(1, 999)).row_chunks == (1, 999)
    assert len(explain(gram, (N, D)).row_chunks) == 16
    assert sum(explain(gram, (N, D), blocks=7).row_chunks) == N


def test_nothing_is_computed() -> None:
    def refuse(block: np.ndarray) -> np.ndarray:
        raise AssertionError("computed")

    X = da.zeros((N, D), chunks=(100, D)).map_blocks(
        refuse, dtype=float, meta=np.empty((0, 0))
    )
    assert explain(logistic, np.zeros(D), X, X[:, 0]).row_chunks == (100,) * 10


def test_shapes_dask_arrays_and_arrays_are_explained_alike() -> None:
    w, X, y = np.zeros(D), np.zeros((N, D)), np.zeros(N)
    lazy = [da.from_array(array, chunks=(125, -1)[: array.ndim]) for array in (X, y)]
    expected = explain(logistic, w, *lazy)
    assert explain(logistic, (D,), (N, D), (N,), blocks=8) == expected
    assert explain(logistic, w, X, y, blocks=8) == expected
    assert explain(logistic, w, X=X, y=y, blocks=8) == expected
    x = pt.matrix("X", dtype="float32")
    f = skdtheano.function([x], x.T.dot(x), name="gram")  # one that only runs here
    assert explain(f, (N, D)).combined_bytes == 4 * D**2


def test_rows_and_replicated_are_kept_to() -> None:
    f = made(lambda A, x: A.dot(x).sum(), rows=["A"])
    found = explain(f, (5, 5), (5,), blocks=5)
    assert found.stages[0].block.cost.flops == 2 * 5 * 5 + 5
    with pytest.raises(PlacementError, match="rows"):
        explain(made(lambda A, x: A.dot(x).sum()), (5, 5), (5,))


def test_shared_variables_are_arguments() -> None:
    x, w = pt.matrix("x"), library.shared(np.zeros(D))
    f = skdtheano.function([x], x.dot(w), target="dask")
    assert explain(f, (N, D)).flops == 2 * N * D


@pytest.mark.filterwarnings("ignore:the imp module:DeprecationWarning")  # Theano's own
def test_a_loop_costs_its_steps() -> None:
    def steps(X: Any) -> Any:
        found = library.scan(
            lambda column, state: pt.tanh(state + column),
            sequences=X.T,
            outputs_info=pt.zeros_like(X[:, 0]),
            **({"return_updates": False} if PYTENSOR else {}),
        )
        return (found if PYTENSOR else found[0])[-1]

    f = made(steps)
    found = explain(f, (N, D), blocks=BLOCKS)
    counted = [(name, n) for name, n in found.stages[0].block.ops if name == "Tanh"]
    assert counted == [("Tanh", 1)]
    # An addition and a tanh of each row in each step; lengths are worked out beside them.
    assert_allclose(found.work, 2 * N * D, rtol=0.05)


def test_lengths_are_those_of_what_blocks_give() -> None:
    """All that two blocks give, run for real, against the lengths that were worked out."""
    chunks = (13, 37)
    random = np.random.default_rng(0)
    w, X, y = random.normal(size=D), random.normal(size=(50, D)), random.normal(size=50)
    lazy = [da.from_array(array, chunks=(chunks, -1)[: array.ndim]) for array in (X, y)]
    call = cut_call(logistic, [w, *lazy], {}, None)
    staged = pack(call.plan, engine.DEFAULT_MODE, "test")
    step = staged.block[0]
    assert step is not None and staged.once[0] is None
    piece = call.plan.stages[0].block
    for b, rows in enumerate(chunks):
        start = sum(chunks[:b])
        values = [w, X[start : start + rows], y[start : start + rows]]
        for result, value in zip(
            piece.results, run_step(step, *[values[i] for i in step.reads]), strict=True
        ):
            shape = call.stages[0].block.shapes[result.value]
            assert tuple(n.at(rows, 50) for n in shape) == value.shape


def test_lengths_that_are_parts_of_the_rows() -> None:
    f = made(lambda X: pt.concatenate([X, X, X[:, :1]], axis=1).sum(axis=1))
    call = cut_call(f, [(N, D)], {}, None)
    shown = {str(n) for s in call.stages[0].block.shapes.values() for n in s}
    assert {"n", str(D), str(2 * D + 1)} <= shown


def test_a_graph_without_operations_counts_bytes() -> None:
    f = made(lambda table, rows: table[rows])
    found = explain(f, (D, 3), np.zeros(N, int), blocks=4)
    assert (found.unit, found.flops) == ("bytes", 0)
    # An index and the row that it picks, read and written.
    assert found.work == N * 8 * (1 + 3 + 3)
    assert_allclose(found.speedup(4), 4)


def test_the_text_is_a_table() -> None:
    assert str(explain(gram, (N, D), blocks=8, workers=6)) == repr(
        explain(gram, (N, D), blocks=8, workers=6)
    )
    lines = str(explain(centred, (N, D), blocks=8, workers=6)).splitlines()
    assert lines[0] == "lambda: 1,000 rows in 8 blocks of 125, 2 stages"
    assert lines[1].split() == ["stage", "piece", "runs", "flops", "bytes", "Ops"]
    assert [line.split()[:2] for line in lines[2:-2]] == [
        ["0", "block"],
        ["0", "combine"],
        ["1", "once"],
        ["1", "block"],
    ]
    assert "Sum" in lines[2] and "sum: 48 B per block, 1 level" in lines[3]
    assert "longest path" in lines[-2]
    assert lines[-1].endswith("on 6 workers")


def test_the_html_is_a_table_that_needs_nothing() -> None:
    html = explain(made(lambda X: X.sum(), name="a<b"), (N, D))._repr_html_()
    xml.dom.minidom.parseString(html)
    assert "://" not in html and "src=" not in html and "a<b" not in html
    assert html.count("<tr>") == 3


def test_it_is_a_frozen_value() -> None:
    found: Any = explain(gram, (N, D))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.work = 0
    assert pickle.loads(pickle.dumps(found)) == found


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_700, "1 MB"), (12_345, "12.3 kB")],
)
def test_quantities(value: int, shown: str) -> None:
    assert quantity(value, "B") == shown


def test_what_it_refuses() -> None:
    with pytest.raises(TypeError, match=r"not made by skdtheano\.function"):
        explain(np.sum, (N, D))
    with pytest.raises(ValueError, match="workers=0"):
        explain(gram, (N, D), workers=0)
    with pytest.raises(ValueError, match="blocks=0"):
        explain(gram, (N, D), blocks=0)
    with pytest.raises(ValueError, match="1000"):
        explain(gram, (N, D), blocks=(1, 2))
    X = da.zeros((N, D), chunks=(100, D))
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        explain(gram, X[X[:, 0] > 0])
    assert explain(gram, X[X[:, 0] > 0], blocks=(5,) * 10).row_chunks == (5,) * 10
    with pytest.raises(ValueError, match="dimensions"):
        x = pt.matrix("X")
        explain(skdtheano.function([x], x.sum()), (3,))
