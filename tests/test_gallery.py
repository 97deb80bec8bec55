"""The gallery: each item equals NumPy or scikit-learn, however its rows are cut."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client
from sklearn.cluster import KMeans
from sklearn.linear_model import LinearRegression, LogisticRegression
from test_docs import run_script

from skdtheano import PlacementError

pytestmark = pytest.mark.parity

FILE = Path(__file__).parent.parent / "examples" / "gallery.py"
N_ROWS = 90

#: Rows of each block; the second and the third with an empty one and one of a single row.
CHUNKS = {
    "1-block": (N_ROWS,),
    "6-blocks": (20, 0, 1, 37, 5, 27),
    "11-blocks": (0, 1, 9, 1, 30, 0, 0, 12, 17, 19, 1),  # combined in two levels
}


def load(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


gallery = load(FILE)
ITEMS = {item.name: item for item in gallery.gallery(N_ROWS)}


def cut(array: np.ndarray, chunks: tuple[int, ...], known: bool = True) -> da.Array:
    """The array in blocks of so many rows, which dask knows or does not know."""
    lazy = da.from_array(array, chunks=(chunks, *array.shape[1:]))
    if known:
        return lazy
    unknown = ((np.nan,) * len(chunks), *[(length,) for length in array.shape[1:]])
    return lazy.map_blocks(np.copy, chunks=unknown, dtype=array.dtype)


def assert_equal(found: Any, expected: Any) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert np.shape(ours) == np.shape(theirs)
        scale = float(np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12 * scale)


def test_the_gallery_holds_what_it_is_to_hold() -> None:
    assert set(ITEMS) == {
        "attention_over_rows",
        "embedding",
        "gaussian_mixture",
        "kmeans_step",
        "logistic_regression",
        "pca_covariance",
        "scan_over_features",
        "standardise_then_regress",
        "unit_rows",
        "weighted_moments",
    }


@pytest.mark.parametrize("known", [True, False], ids=["", "unknown-sizes"])
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS.keys())
@pytest.mark.parametrize("item", ITEMS.values(), ids=ITEMS.keys())
def test_an_item_equals_numpy_and_scikit_learn(
    item: Any, chunks: tuple[int, ...], known: bool
) -> None:
    lazy = item.lazy(lambda array: cut(array, chunks, known))
    assert all(isinstance(one, da.Array) for one in lazy)
    found = dask.compute(*lazy, scheduler="synchronous")
    assert_equal(found, item.expected())
    for one, value in zip(lazy, found, strict=True):
        assert one.dtype == value.dtype
        assert known is False or one.shape == value.shape


@pytest.mark.parametrize("item", ITEMS.values(), ids=ITEMS.keys())
def test_an_item_in_memory_is_the_same_function(item: Any) -> None:
    found = item.function(**item.whole, **item.rows)
    assert_equal(found if isinstance(found, tuple) else (found,), item.expected())


def test_results_with_rows_have_the_blocks_of_the_input() -> None:
    lengths = CHUNKS["6-blocks"]
    [unit] = ITEMS["unit_rows"].lazy(lambda array: cut(array, lengths))
    _, nearest = ITEMS["kmeans_step"].lazy(lambda array: cut(array, lengths))
    assert unit.chunks == (lengths, (4,))
    assert nearest.chunks == (lengths,)


def test_the_number_of_stages() -> None:
    """The others feed a sum over rows, or their number, back to the rows."""
    single = {name for name, item in ITEMS.items() if item.stages() == 1}
    assert single >= {"kmeans_step", "unit_rows"}
    assert not single & {"pca_covariance", "standardise_then_regress", "attention_over_rows"}


def test_the_gradient_vanishes_where_scikit_learn_ends() -> None:
    item = ITEMS["logistic_regression"]
    X, y = item.rows["X"], item.rows["y"]
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(X, y)
    X, y = (cut(array, CHUNKS["6-blocks"]) for array in (X, y))
    _, *slopes = item.function(theirs.coef_[0], theirs.intercept_[0], X, y)
    for slope in dask.compute(*slopes, scheduler="synchronous"):
        np.testing.assert_allclose(slope, 0, atol=1e-7)


def test_standardised_least_squares_are_scikit_learns() -> None:
    item = ITEMS["standardise_then_regress"]
    X, y = item.rows["X"], item.rows["y"]
    scale = X.std(axis=0)
    theirs = LinearRegression().fit((X - X.mean(axis=0)) / scale, y)
    X, y = (cut(array, CHUNKS["6-blocks"]) for array in (X, y))
    loss, *slopes = item.function(theirs.coef_, theirs.intercept_, X, y)
    for slope in dask.compute(*slopes, scheduler="synchronous"):
        np.testing.assert_allclose(slope, 0, atol=1e-12)
    assert 0 < loss.compute(scheduler="synchronous") < item.rows["y"].var()


def test_a_chain_of_kmeans_steps_ends_where_scikit_learns_does() -> None:
    item = ITEMS["kmeans_step"]
    X = item.rows["X"]
    theirs = KMeans(3, init=item.whole["centres"], n_init=1, tol=0, algorithm="lloyd").fit(X)
    blocks = cut(X, CHUNKS["6-blocks"])
    centres = item.whole["centres"]
    for _ in range(theirs.n_iter_ + 1):
        centres, nearest = item.function(centres, blocks)
        centres = centres.compute(scheduler="synchronous")
    np.testing.assert_allclose(centres, theirs.cluster_centers_, rtol=1e-9)
    np.testing.assert_array_equal(nearest.compute(scheduler="synchronous"), theirs.labels_)


@pytest.mark.cluster
def test_items_on_a_cluster(client: Client) -> None:
    lengths = CHUNKS["11-blocks"]
    lazy = {name: item.lazy(lambda a: cut(a, lengths)) for name, item in ITEMS.items()}
    [found] = dask.compute(lazy)  # all at once: half the time of one after the other
    for name, item in ITEMS.items():
        assert_equal(found[name], item.expected())


@pytest.mark.cluster
@pytest.mark.table  # its items run one by one in every lane
def test_the_gallery_runs_as_a_script(tmp_path: Path) -> None:
    printed = run_script(FILE, "--rows", "2000", cwd=tmp_path)
    lines = [line.split() for line in printed.splitlines()]
    differences = {line[0]: float(line[2]) for line in lines if line and line[0] in ITEMS}
    assert differences.keys() == ITEMS.keys()
    assert max(differences.values()) < 1e-9
    assert "Warning" not in printed


def test_softmax_over_rows_of_the_scores_is_refused_without_the_rows() -> None:
    """The keys as NumPy, the values as a dask array: the message says what to do."""
    item = ITEMS["attention_over_rows"]
    values = cut(item.rows["values"], CHUNKS["6-blocks"])
    with pytest.raises(PlacementError, match=r"made of 'keys'.*not cut"):
        item.function(item.whole["queries"], item.rows["keys"], values)
