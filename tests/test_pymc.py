"""PyMC's logp on dask arrays equals PyMC's own; fits and samples by it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client
from test_gallery import load

from skdtheano.engine import ENGINE
from skdtheano.graphs.placement import REPLICATED, Rows

FILE = Path(__file__).parent.parent / "examples" / "pymc_logp.py"
N_ROWS = 90
CHUNKS = (20, 0, 1, 37, 5, 27)

if ENGINE != "pytensor":
    pytest.skip("PyMC runs on PyTensor alone", allow_module_level=True)
pytest.importorskip("pymc", reason="PyMC is not installed: pip install 'skdtheano[pymc]'")

# ArviZ announces its next version at import; wheels of PyTensor come without a BLAS.
pytestmark = [
    pytest.mark.parity,  # runs in the lane whose PyTensor is PyMC's
    pytest.mark.filterwarnings("ignore:.*ArviZ:FutureWarning"),
    pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS:UserWarning"),
]


@pytest.fixture(autouse=True)
def compiled_at_once() -> Iterator[None]:
    """PyMC's own functions too: its default is C, which takes a minute for a model."""
    from pytensor import config

    with config.change_flags(mode="FAST_COMPILE"):
        yield


@pytest.fixture(scope="module")
def example() -> Any:
    return load(FILE)


@pytest.fixture(params=["Poisson regression", "hierarchical regression"])
def built(request: pytest.FixtureRequest, example: Any) -> tuple[Any, Any, dict[str, Any]]:
    """A model on a few rows, the same on all of them, and these rows."""
    build, rows = example.models(N_ROWS)[request.param]
    return build({name: array[:10] for name, array in rows.items()}), build(rows), rows


def cut(rows: dict[str, np.ndarray], chunks: tuple[int, ...] = CHUNKS) -> dict[str, da.Array]:
    return {
        name: da.from_array(array, chunks=(chunks, *array.shape[1:]))
        for name, array in rows.items()
    }


@pytest.mark.parametrize("seed", range(3))
def test_logp_and_gradient_equal_pymcs(example: Any, built: Any, seed: int) -> None:
    few, whole, rows = built
    logp = example.distributed_logp(few, cut(rows))
    with dask.config.set(scheduler="synchronous"):
        difference = example.difference_from_pymc(logp, whole, example.any_point(whole, seed))
    assert difference < 1e-10


@pytest.mark.cluster
@pytest.mark.parametrize("n_workers", [1, 4])
def test_logp_and_gradient_on_workers(
    example: Any, built: Any, client_of: Callable[[int], Client], n_workers: int
) -> None:
    few, whole, rows = built
    client_of(n_workers)
    logp = example.distributed_logp(few, cut(rows))
    assert example.difference_from_pymc(logp, whole, example.any_point(whole)) < 1e-10


def test_one_pass_over_the_blocks(example: Any, built: Any) -> None:
    """Only sums travel: one for logp, and one for each parameter that rows speak of."""
    few, _, rows = built
    function = example.distributed_logp(few, cut(rows)).function
    data = set(function.inputs[-len(rows) :])
    plan = function.plan([Rows(0) if s in data else REPLICATED for s in function.symbols])
    [*passes] = [stage.block.results for stage in plan.stages if stage.block.results]
    assert len(passes) == 1
    assert {result.combine.verb for result in passes[0]} == {"sum"}
    assert len(passes[0]) <= 1 + len(few.value_vars)


def test_an_impossible_value_is_impossible_on_blocks(example: Any) -> None:
    build, rows = example.models(N_ROWS)["Poisson regression"]
    few = build({name: array[:10] for name, array in rows.items()})
    impossible = rows | {"y": np.where(np.arange(N_ROWS) == 50, -1, rows["y"])}
    logp = example.distributed_logp(few, cut(impossible))
    with dask.config.set(scheduler="synchronous"):
        total, *_ = logp(*few.initial_point().values())
    assert total == -np.inf


def test_map_by_scipy_is_the_one_of_the_whole_model(example: Any, built: Any) -> None:
    few, whole, rows = built
    with dask.config.set(scheduler="synchronous"):
        logp = example.distributed_logp(few, cut(rows))
        best, height = example.find_map(logp, few.initial_point())
    np.testing.assert_allclose(height, whole.compile_logp()(best), rtol=1e-10)
    np.testing.assert_allclose(whole.compile_dlogp()(best), 0, atol=1e-2)


def test_a_model_with_a_distributed_likelihood_has_the_same_logp(
    example: Any, built: Any
) -> None:
    few, whole, rows = built
    with dask.config.set(scheduler="synchronous"):
        model = example.distributed_model(few, cut(rows))
        point = example.any_point(whole)
        ours = model.compile_logp()(point)
        slopes = model.compile_dlogp([model[rv.name] for rv in whole.free_RVs])(point)
    np.testing.assert_allclose(ours, whole.compile_logp()(point), rtol=1e-10)
    np.testing.assert_allclose(slopes, whole.compile_dlogp()(point), rtol=1e-10)
    assert {rv.name for rv in model.free_RVs} == {rv.name for rv in whole.free_RVs}
    assert [d.name for d in model.deterministics] == [d.name for d in whole.deterministics]


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")  # first steps go far
def test_nuts_on_blocks_finds_the_posterior(example: Any) -> None:
    build, rows = example.models(N_ROWS)["Poisson regression"]
    few = build({name: array[:10] for name, array in rows.items()})
    with dask.config.set(scheduler="synchronous"):
        # Some 1,500 passes over the rows: of few blocks, as the cuts are others' matter.
        model = example.distributed_model(few, cut(rows, (53, 37)))
        ours = example.sample(model, draws=100).posterior["slopes"].values[0]
    theirs = example.sample(build(rows), draws=1000).posterior["slopes"].values[0]
    # Means of 100 draws, whose own error is about a tenth of a deviation.
    error = np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) / theirs.std(axis=0)
    assert error.max() < 0.5


def test_a_constant_in_the_place_of_data_is_explained(example: Any) -> None:
    build, rows = example.models(N_ROWS)["Poisson regression"]
    few = build({name: array[:10] for name, array in rows.items()})
    with pytest.raises(ValueError, match=r"'counts' is no data .*\['X', 'y'\].*pm\.Data"):
        example.distributed_logp(few, {"X": cut(rows)["X"], "counts": cut(rows)["y"]})
