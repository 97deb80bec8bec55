"""Recipes of graphs: as text, and on the disk that processes share."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skdtheano import cookbook, engine, shelf
from skdtheano.graphs.losses import LOSSES, block_graph
from skdtheano.graphs.network import ACTIVATIONS, Network, network_graph
from skdtheano.graphs.optimizers import update_graph
from skdtheano.recipe import Recipe, Value, derived, recipe_of_text
from skdtheano.routine import Routine
from skdtheano.runtime.parameters import Layout

pytestmark = pytest.mark.parity

LAYOUT = Layout((5, 4, 3, 2))
NETWORKS = [
    (loss, Network(3, activation, link, dtype, dtype))
    for (loss, (_, link)), activation, dtype in product(
        LOSSES.items(), ACTIVATIONS, ("float64", "float32")
    )
]
PRODUCT = block_graph(Network(2, "tanh", "softmax", "float64", "float64"), "log_loss")


def graph() -> tuple[Any, Any]:
    return PRODUCT.inputs, PRODUCT.outputs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of its own."""
    monkeypatch.setattr(shelf, "directory", lambda: tmp_path / "shelf")
    return tmp_path / "shelf"


def derivations(make: Callable[[], object]) -> int:
    before = len(engine.compilations())
    make()
    return len(engine.compilations()) - before


def shelved(what: str = "product") -> Recipe:
    return cookbook.recipe_for(what, graph, "product")


def results(recipe: Recipe, inputs: list[np.ndarray]) -> list[np.ndarray]:
    theta = np.random.RandomState(1).standard_normal(LAYOUT.n_parameters)
    parameters = LAYOUT.views(theta.astype(inputs[0].dtype))
    out = [np.zeros((), inputs[0].dtype), *(np.empty_like(array) for array in parameters)]
    Routine(recipe).bind([*inputs, *parameters], out)()
    return out


@pytest.mark.parametrize(
    "case", NETWORKS, ids=lambda c: f"{c[0]}-{c[1].activation}-{c[1].dtype}"
)
def test_a_recipe_that_was_text_has_the_same_steps_and_bits(case: tuple[str, Network]) -> None:
    loss, network = case
    sums = block_graph(network, loss)
    recipe = derived(sums.inputs, sums.outputs, "sums")
    again = recipe_of_text(recipe.text())
    assert again.text() == recipe.text()
    rng = np.random.RandomState(0)
    drawn = [rng.standard_normal((7, 5)), rng.random((7, 2)), rng.random(7)]
    inputs = [array.astype(network.dtype) for array in drawn]
    for read, first in zip(results(again, inputs), results(recipe, inputs), strict=True):
        assert_array_equal(read, first)
    symbols = network_graph(network)
    outputs = derived([symbols.rows, *symbols.parameters], [symbols.outputs], "outputs")
    assert recipe_of_text(outputs.text()).text() == outputs.text()


@pytest.mark.parametrize("rule", ["adam", "nesterov", "momentum"])
def test_an_update_that_was_text_has_the_same_loop(rule: str) -> None:
    update = update_graph(rule, "float32")
    recipe = derived(update.inputs, update.outputs, "update")
    again = recipe_of_text(recipe.text())
    n_slots = len(update.outputs) - 1
    vectors = [0, 1, *range(4, 4 + n_slots)]
    scalars = [i for i in range(len(update.inputs)) if i not in vectors]
    in_place = [0, *range(4, 4 + n_slots)]
    sources = [Routine(r).loop_source(scalars, in_place) for r in (recipe, again)]
    assert sources[0] is not None
    assert sources[0] == sources[1]


def test_a_graph_is_derived_once_and_then_read(folder: Path) -> None:
    assert derivations(shelved) == 1
    assert derivations(shelved) == 0
    assert derivations(lambda: shelved("another one")) == 1
    assert len(list(folder.iterdir())) == 2  # and no draft is left


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: content[:-10],
        lambda content: content[:40] + b"?" + content[41:],
        lambda content: content.replace(b"Dot", b"Sum", 1),
        lambda content: b"\xff\xfe" + content,
        lambda content: json.dumps({"values": []}).encode(),
    ],
    ids=["empty", "truncated", "another seal", "another Op", "no text", "another thing"],
)
def test_a_file_that_is_not_what_was_written_is_replaced(
    folder: Path, spoil: Callable[[bytes], bytes]
) -> None:
    shelved()
    [file] = folder.iterdir()
    content = file.read_bytes()
    assert spoil(content) != content
    file.write_bytes(spoil(content))
    assert derivations(shelved) == 1
    assert file.read_bytes() == content
    assert derivations(shelved) == 0


def test_the_file_of_another_graph_is_not_believed(folder: Path) -> None:
    shelved()
    [ours] = folder.iterdir()
    shelved("another one")
    [theirs] = set(folder.iterdir()) - {ours}
    theirs.replace(ours)
    assert derivations(shelved) == 1


def test_nothing_is_shared_with_another_version(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelved()
    with monkeypatch.context() as patched:
        patched.setattr(cookbook, "VERSION", "0.0.0")
        assert derivations(shelved) == 1
    with monkeypatch.context() as patched:
        patched.setattr(engine, "identity", lambda: ["pytensor", "9.9.9"])
        assert derivations(shelved) == 1
    with monkeypatch.context() as patched:
        patched.setattr(cookbook, "_SOURCES_READ", "other sources")
        assert derivations(shelved) == 1
    assert derivations(shelved) == 0


def test_sources_that_cannot_be_read_keep_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cookbook, "_SOURCES_READ", None)
    assert derivations(shelved) == 1
    assert derivations(shelved) == 1
    assert not folder.exists()


def test_the_sources_of_graphs_are_among_those_that_count() -> None:
    root = Path(cookbook.__file__).parent
    files = {file for pattern in cookbook._SOURCES for file in root.glob(pattern)}
    for name in ("engine.py", "recipe.py", "graphs/losses.py", "graphs/rules/table.py"):
        assert root / name in files


def test_a_directory_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a file"  # root may write into any directory, but not into this
    file.write_text("")
    monkeypatch.setattr(shelf, "directory", lambda: file / "shelf")
    assert shelved().text() == derived(*graph(), "product").text()


def test_a_graph_with_a_constant_that_is_no_number_is_derived_each_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = Value(0, "object", 0, np.asarray(None))
    monkeypatch.setattr(cookbook, "derived", lambda *graph: Recipe((odd,), (odd,), ()))
    assert shelved().inputs == shelved().inputs == (odd,)
    assert list(folder.glob("*")) == []


FIT = """
import sys, warnings
import numpy as np
from skdtheano import DistributedMLPClassifier, engine
from skdtheano.graphs import losses, network, optimizers
if sys.argv[1] == "warm":
    def refuse(*arguments, **options):
        raise AssertionError("A graph was built.")
    engine.rewritten = engine.graph_of = engine.gradients = engine.tensor = refuse
    engine.matrix = engine.vector = engine.scalar = refuse
warnings.simplefilter("ignore")
rng = np.random.RandomState(0)
X, y = rng.standard_normal((60, 4)), rng.randint(0, 3, 60)
fitted = DistributedMLPClassifier((5,), max_iter=3, early_stopping=True, random_state=0)
print(fitted.fit(X, y).predict_proba(X).tobytes().hex())
print(len(engine.compilations()))
"""


def test_the_next_process_builds_no_graph(tmp_path: Path) -> None:
    flags = {"PYTENSOR_FLAGS": "", "THEANO_FLAGS": ""}
    for name in flags:
        given = filter(None, (os.environ.get(name), f"base_compiledir={tmp_path}"))
        flags[name] = ",".join(given)
    found = [
        subprocess.run(
            [sys.executable, "-c", FIT, turn],
            env={**os.environ, **flags},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for turn in ("cold", "warm")
    ]
    assert [count for _, count in found] == ["3", "0"]  # sums, update and outputs
    assert found[0][0] == found[1][0]


def test_threads_that_are_the_first_to_ask_for_the_directory_all_get_it() -> None:
    """In a fresh process: an engine's setting is computed when it is first read."""
    script = """
import threading
from skdtheano import shelf
barrier, found = threading.Barrier(8), []
def ask():
    barrier.wait()
    found.append(shelf.directory())
threads = [threading.Thread(target=ask) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert len(found) == 8 and len(set(found)) == 1, found
"""
    subprocess.run([sys.executable, "-c", script], check=True)
