"""Random draws over rows: a generator for each block, and the same draws again."""

import pickle
from typing import Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client
from numpy.testing import assert_allclose, assert_array_equal

import skdtheano
from skdtheano import PlacementError, engine, explain

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        engine.ENGINE == "theano", reason="random streams are PyTensor's; Theano's are refused"
    ),
]

if engine.ENGINE == "pytensor":
    import pytensor
    import pytensor.tensor as pt

CHUNKS = ((400, 0, 1, 999, 600), 2)
X = np.random.RandomState(0).normal(size=(2000, 2))


def stream(seed: int = 0) -> Any:
    return pytensor.shared(np.random.default_rng(seed), name="stream")


def drawn(op: Any, generator: Any, *parameters: Any, size: Any = None) -> tuple[Any, Any]:
    """The next generator, and the draw."""
    following, values = op.make_node(
        generator, size, *map(pt.as_tensor_variable, parameters)
    ).outputs
    return following, values


def noisy(seed: int = 0, **options: Any) -> Any:
    """X with noise of its own for each row; the stream goes on at each call."""
    x, generator = pt.matrix("X"), stream(seed)
    following, noise = drawn(pt.random.normal, generator, x, 0.1)
    return skdtheano.function(
        [x], noise, updates={generator: following}, target="dask", **options
    )


def blocks(known: bool = True) -> da.Array:
    lazy = da.from_array(X, chunks=CHUNKS)
    return lazy if known else lazy[da.from_array(np.ones(len(X), bool), chunks=CHUNKS[:1])]


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_each_row_has_a_draw_of_its_own(known: bool) -> None:
    noise = noisy()(blocks(known)).compute(scheduler="synchronous") - X
    assert noise.shape == X.shape and noise.dtype == X.dtype
    assert len(np.unique(noise)) == noise.size
    n = noise.size
    assert abs(noise.mean()) < 5 * 0.1 / np.sqrt(n)
    assert_allclose(noise.std(), 0.1, rtol=5 / np.sqrt(2 * n))
    # Rows of neighbouring blocks are as little alike as those of one.
    assert abs(np.corrcoef(noise[:400, 0], noise[401:801, 0])[0, 1]) < 5 / np.sqrt(400)


def test_draws_are_those_of_the_seed_and_the_blocks() -> None:
    def values(f: Any) -> np.ndarray:
        found: np.ndarray = f(blocks()).compute(scheduler="synchronous")
        return found

    f = noisy(seed=1)
    first, second = values(f), values(f)
    assert not np.any(first == second)  # the stream went on
    again = noisy(seed=1)
    assert_array_equal(values(again), first)
    assert_array_equal(values(again), second)
    assert not np.any(values(noisy(seed=2)) == first)
    assert_array_equal(f(blocks()).compute(), pickle.loads(cloudpickle.dumps(again))(blocks()))


def test_a_lazy_result_draws_once() -> None:
    lazy = noisy()(blocks())
    assert_array_equal(*dask.compute(lazy, lazy + 0))
    assert_array_equal(lazy.compute(), lazy.compute())


def test_the_generator_goes_on_alike_whatever_the_blocks() -> None:
    states = []
    for chunks in (CHUNKS, ((1000, 1000), 2)):
        x, generator = pt.matrix("X"), stream()
        following, noise = drawn(pt.random.normal, generator, x, 1)
        f = skdtheano.function(
            [x], noise.sum(), updates=[(generator, following)], target="dask"
        )
        f(da.from_array(X, chunks=chunks)).compute()
        states.append(generator.get_value().bit_generator.state)
    assert states[0] == states[1] != np.random.default_rng(0).bit_generator.state


def test_a_size_may_begin_with_the_number_of_rows() -> None:
    x, generator = pt.matrix("X"), stream()
    following, noise = drawn(pt.random.uniform, generator, -1, 1, size=(x.shape[0], 3))
    _, more = drawn(pt.random.uniform, following, -1, 1, size=(x.shape[0], 3))
    f = skdtheano.function([x], [noise, noise.mean(axis=0), more], target="dask")
    values, mean, others = dask.compute(*f(blocks()), scheduler="synchronous")
    assert values.shape == (2000, 3) and abs(values).max() < 1
    assert_allclose(mean, values.mean(axis=0))
    assert abs(mean).max() < 5 / np.sqrt(3 * 2000)
    assert not np.any(values == others)


def test_draws_without_rows_are_those_of_the_same_call_on_numpy() -> None:
    """The law of functions holds for all but the draws of rows."""

    def made() -> Any:
        x, generator = pt.matrix("X"), stream(3)
        following, weights = drawn(pt.random.normal, generator, 0, 1, size=(2,))
        return skdtheano.function(
            [x], x.dot(weights), updates={generator: following}, target="dask"
        )

    ours, theirs = made(), made()
    for _ in range(2):
        assert_allclose(ours(blocks()).compute(), theirs(X))


def test_numpy_draws_are_those_of_the_engine() -> None:
    x, generator = pt.matrix("X"), stream(4)
    following, noise = drawn(pt.random.normal, generator, x, 1)
    theirs = pytensor.function([x], noise, updates={generator: following}, mode="FAST_COMPILE")
    expected = [theirs(X), theirs(X)]
    generator.set_value(np.random.default_rng(4))
    ours = skdtheano.function([x], noise, updates={generator: following})
    assert_array_equal([ours(X), ours(X)], expected)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_random_stream_goes_on_by_itself() -> None:
    """As in ``pytensor.function``: the stream's own update need not be named."""
    random = pt.random.utils.RandomStream(seed=5)
    x = pt.matrix("X")
    f = skdtheano.function([x], random.normal(x), target="dask")
    assert not np.any(f(X) == f(X))
    assert not np.any(f(blocks()).compute() == f(blocks()).compute())


@pytest.mark.cluster
def test_a_cluster_draws_what_this_process_draws(client: Client) -> None:
    there = noisy()(blocks()).compute()
    with dask.config.set(scheduler="synchronous"):
        assert_array_equal(noisy()(blocks()), there)


def test_what_cannot_be_drawn_by_rows_is_refused() -> None:
    x, generator = pt.matrix("X"), stream()
    _, mixed = drawn(pt.random.multivariate_normal, generator, x[:, 0], x.dot(x.T))
    with pytest.raises(PlacementError, match=r"all rows|every row"):
        skdtheano.function([x], mixed, target="dask")(blocks())
    _, one_draw = drawn(pt.random.dirichlet, generator, pt.exp(x[:, 0]))
    with pytest.raises(PlacementError, match="dirichlet reads several rows at once"):
        skdtheano.function([x], one_draw, target="dask")(blocks())
    _, wrong = drawn(pt.random.normal, generator, x, 1, size=(7, 2000, 2))
    with pytest.raises(PlacementError, match="size="):
        skdtheano.function([x], wrong, target="dask")(blocks())
    per_row = pt.vector("scale")
    _, uncut = drawn(pt.random.normal, generator, x[:, 0], per_row)
    with pytest.raises(
        PlacementError, match="'scale' is replicated and has one entry per row"
    ):
        skdtheano.function([x, per_row], uncut, target="dask")(blocks(), np.ones(2000))
    symbol = generator.type("generator")
    with pytest.raises(TypeError, match="shared variable"):
        skdtheano.function([x, symbol], drawn(pt.random.normal, symbol, x, 1)[1])


def test_it_can_be_explained() -> None:
    x, generator = pt.matrix("X"), stream()
    _, noise = drawn(pt.random.normal, generator, x, 1)
    found = explain(skdtheano.function([x], noise.sum(), target="dask"), (1000, 2), blocks=4)
    assert len(found.stages) == 1
