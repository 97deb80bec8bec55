"""The law of `skdtheano.function`: on dask arrays it gives what it gives on NumPy arrays."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from cutting import Cutting, gradients, summary
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from random_graphs import Graph, cuts, graphs, over_all_rows

import skdtheano
from skdtheano import PlacementError, symbolic
from skdtheano.graphs.placement import Rows

pytestmark = pytest.mark.parity

#: 205 graphs, each cut in 10 ways.
PARTS, N_GRAPHS, N_CUTS = range(5), 41, 10
assert len(PARTS) * N_GRAPHS * N_CUTS >= 2000

#: Sums over up to 30 rows, taken in another order, and what bounded functions make of them.
RTOL, ATOL = 1e-7, 1e-8


def outputs_of(graph: Graph) -> list[Any]:
    """The last values, and the gradient of a summary by inputs with rows and without."""
    made = [value.symbol for value in graph.made[-3:]]
    x, _, y, w, e, *_ = (value.symbol for value in graph.inputs)
    return [*made, *gradients(summary(made), [x, y, w, e])]


def cutting_of(graph: Graph) -> tuple[Cutting, bool]:
    """The graph, cut, and whether all rows were brought together for that.

    That may be only where an Op was drawn that needs it.
    """
    outputs = outputs_of(graph)
    arguments = (graph.symbols(), outputs, graph.placements())
    try:
        return Cutting(*arguments), False
    except PlacementError:
        assert graph.needs_all_rows
    return Cutting(*arguments, gather=True), True


def op_names(outputs: Sequence[Any]) -> set[str]:
    nodes = symbolic.toposort(outputs, ())
    return {type(getattr(node.op, "scalar_op", node.op)).__name__ for node in nodes}


def in_blocks(array: np.ndarray, lengths: tuple[int, ...], known: bool) -> da.Array:
    """The array in blocks of so many rows, which dask knows or does not know."""
    lazy = da.from_array(array, chunks=(lengths, *array.shape[1:]))
    if known:
        return lazy
    unknown = ((np.nan,) * len(lengths), *[(k,) for k in array.shape[1:]])
    return lazy.map_blocks(np.copy, chunks=unknown, dtype=array.dtype)


def random_graphs(n_graphs: int) -> settings:
    return settings(
        max_examples=n_graphs,
        deadline=None,
        derandomize=True,  # unless a seed is given
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # compiling anew at each step, shrinking takes minutes
    )


def check_law(
    graphs: st.SearchStrategy[Graph], n_graphs: int, part: int
) -> tuple[Counter[str], set[str]]:
    """What was counted, and the names of the Ops, of so many graphs that kept the law."""
    counts: Counter[str] = Counter()
    ops: set[str] = set()

    @seed(part)
    @random_graphs(n_graphs)
    @given(graphs, st.lists(cuts, min_size=N_CUTS, max_size=N_CUTS))
    def law(graph: Graph, some_cuts: list[tuple[int, ...]]) -> None:
        cutting, gathered = cutting_of(graph)
        for lengths in some_cuts:
            cutting.check(graph.arguments(sum(lengths)), [lengths], RTOL, ATOL)
            counts["cases"] += 1
        counts["graphs"] += 1
        counts["gathered"] += gathered
        ops.update(op_names(cutting.outputs))

    law()
    assert counts["cases"] == n_graphs * N_CUTS
    return counts, ops


@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=[pytest.mark.table] if part else []) for part in PARTS]
)
def test_blocks_give_what_the_whole_gives(part: int) -> None:
    counts, ops = check_law(graphs(), N_GRAPHS, part)
    assert counts["gathered"] < 0.15 * counts["graphs"]
    assert len(ops) > 40


def test_so_do_graphs_that_need_all_rows() -> None:
    counts, _ = check_law(graphs(last=[over_all_rows]), 8, 0)
    assert counts["gathered"] > counts["graphs"] / 2  # of some, an entry of all rows is enough


def test_dask_gives_what_numpy_gives() -> None:
    counts: Counter[str] = Counter()

    @random_graphs(40)
    @given(graphs(), cuts, st.booleans())
    def law(graph: Graph, lengths: tuple[int, ...], known: bool) -> None:
        function = skdtheano.function(
            graph.symbols(),
            outputs_of(graph),
            target="dask",
            on_unused_input="ignore",
            gather="allow" if graph.needs_all_rows else "error",
            rows=["X", "Z", "y", "labels"],
        )
        arguments = graph.arguments(sum(lengths))
        lazy = [
            in_blocks(value, lengths, known) if isinstance(placement, Rows) else value
            for value, placement in zip(arguments, graph.placements(), strict=True)
        ]
        found = function(*lazy)
        assert all(isinstance(array, da.Array) for array in found)
        computed = dask.compute(*found, scheduler="synchronous")
        for told, ours, theirs in zip(found, computed, function(*arguments), strict=True):
            assert np.shape(ours) == np.shape(theirs)
            assert (told.ndim, told.dtype) == (np.ndim(ours), ours.dtype)
            lengths = zip(told.shape, np.shape(ours), strict=True)
            assert all(np.isnan(n) or n == own for n, own in lengths)
            np.testing.assert_allclose(ours, theirs, RTOL, ATOL)
        counts["cases"] += 1
        counts["unknown"] += not known

    law()
    assert counts["cases"] >= 40
    assert counts["unknown"] >= 10
