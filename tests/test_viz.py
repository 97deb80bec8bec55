"""`viz`: what is drawn of a plan, where it lies, and that it works where it is looked at."""

import builtins
import json
import re
import shutil
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from cutting import PYTENSOR, library, pt

import skdtheano
from skdtheano import viz
from skdtheano.functions.cut_calls import cut_call
from skdtheano.viz.drawing import COLOURS
from skdtheano.viz.layout import NODE_HEIGHT, Layout, layout_of
from skdtheano.viz.picture import PLACES, Picture, picture_of

pytestmark = pytest.mark.parity

SVG = "{http://www.w3.org/2000/svg}"
ARGUMENTS = [(6,), (1000, 6), (1000,)]


@skdtheano.function(target="dask")
def logistic(w: Any, X: Any, y: Any) -> Any:
    centred = X - X.mean(axis=0)
    z = centred.dot(w)
    loss = (pt.log1p(pt.exp(z)) - y * z).mean()
    return loss, library.grad(loss, w), pt.exp(z)


def picture() -> Picture:
    return picture_of(cut_call(logistic, ARGUMENTS, {}, 8))


def chains(length: int) -> Any:
    """A function of ten chains of so many Ops, which give what the next one begins with."""
    # One chain of them all would be too deep for Theano's compiler, which recurses.
    x = pt.matrix("x")
    starts, totals = [x], []
    for i in range(10):
        value = starts[-1] if i % 3 else x
        for j in range(length // 2):
            value = pt.tanh(value + (i + j / 100))
            if j == 1:
                starts.append(value)
        totals.append(value.sum(axis=0))
    return skdtheano.function([x], totals, target="dask")


def page_data(text: str) -> Any:
    found = re.search(r'<script id="details" type="application/json">(.*?)</script>', text)
    assert found is not None
    return json.loads(found[1])


# --- what is drawn --------------------------------------------------------------------------


def test_nodes_have_the_place_and_the_stage_of_the_plan() -> None:
    drawn = picture()
    assert drawn.bands[0] == "inputs" and drawn.bands[-1] == "outputs"
    assert "stage 0: on each of 8 blocks" in drawn.bands
    by_kind = Counter(node.kind for node in drawn.nodes)
    assert by_kind["input"] == 4 and by_kind["output"] == 3
    places = {node.label: node.place for node in drawn.nodes if node.kind == "input"}
    assert places == {"w": "once", "X": "rows", "y": "rows", "n_rows": "once"}
    for node in drawn.nodes:
        band = drawn.bands[node.band]
        if node.kind == "op":
            assert ("once" in band) <= (node.place == "once")
        if node.kind == "combine":
            assert "combined" in band and node.place == "combine"
        assert node.place in PLACES and node.place in COLOURS
    sums = [node for node in drawn.nodes if node.label == "Sum"]
    assert {node.place for node in sums} == {"part"}


def test_edges_go_from_what_is_read_downwards() -> None:
    drawn = picture()
    for source, target in drawn.edges:
        assert source < target
        assert drawn.nodes[source].band <= drawn.nodes[target].band
    reading = {target for _, target in drawn.edges}
    read = {source for source, _ in drawn.edges}
    for number, node in enumerate(drawn.nodes):
        assert (number in reading) == (node.kind != "input")
        assert (number in read) == (node.kind != "output")


def test_details_tell_op_shape_placement_and_source() -> None:
    nodes = [dict(node.details) for node in picture().nodes]
    products = [told for told in nodes if told.get("Op", "").lower().startswith("dot")]
    assert products
    assert products[0]["placement"] == "rows along axis 0"
    file, line = products[0]["source"].rsplit(":", 1)
    lines = Path(file).read_text().splitlines()
    assert file == __file__ and "centred.dot(w)" in lines[int(line) - 1]
    assert products[0]["gives"] in ("float64 (n,)", "float64 (n, 1)")
    sources = [told["source"] for told in nodes if "source" in told]
    assert any(source.startswith("gradient of ") for source in sources)
    assert all(__file__ in source for source in sources)
    [total] = [told for told in nodes if told.get("each block gives") == "float64 (6,)"][:1]
    assert total["by"] == "sum"


def test_a_constant_result_and_a_graph_in_an_op_are_drawn() -> None:
    x, w = pt.matrix("x"), pt.vector("w")
    outputs = [x * 2, pt.as_tensor_variable(np.arange(3.0))]
    inputs = [x, w]
    if PYTENSOR:
        from pytensor.compile.builders import OpFromGraph

        inner = pt.vector("inner")
        outputs.append(OpFromGraph([inner], [pt.exp(inner) + 1])(w) * x)
    f = skdtheano.function(inputs, outputs, target="dask", on_unused_input="ignore")
    drawn = picture_of(cut_call(f, [(100, 3), (3,)], {}, None))
    labels = [node.label for node in drawn.nodes]
    assert "constant" in labels
    assert ("Exp" in labels) == PYTENSOR and "OpFromGraph" not in labels
    reading = {target for _, target in drawn.edges}
    assert all(n in reading for n, node in enumerate(drawn.nodes) if node.kind == "output")


def test_row_numbers_are_drawn_with_the_first_row() -> None:
    f = skdtheano.function(lambda X: pt.arange(X.shape[0]) * 2, target="dask")
    drawn = picture_of(cut_call(f, [(100, 3)], {}, None))
    assert "first_row" in [node.label for node in drawn.nodes if node.kind == "input"]
    assert drawn.nodes[-2].place == "rows"


# --- where it lies --------------------------------------------------------------------------


def overlapping(drawn: Picture, layout: Layout) -> list[tuple[int, int]]:
    boxes = sorted(
        (y, x - width / 2, x + width / 2, n)
        for n, (x, y, width) in enumerate(zip(layout.x, layout.y, layout.widths, strict=True))
    )
    return [
        (one[3], other[3])
        for one, other in pairwise(boxes)
        if one[0] == other[0] and other[1] < one[2]
    ]


@pytest.mark.parametrize("length", [4, 20])
def test_nodes_do_not_overlap_and_lie_below_what_they_read(length: int) -> None:
    drawn = picture_of(cut_call(chains(length), [(100, 3)], {}, None))
    layout = layout_of(drawn)
    assert overlapping(drawn, layout) == []
    for (source, target), route in zip(drawn.edges, layout.routes, strict=True):
        heights = [layout.y[source], *(y for _, y in route), layout.y[target]]
        assert all(np.diff(heights) >= NODE_HEIGHT)
    for node, x, y, width in zip(drawn.nodes, layout.x, layout.y, layout.widths, strict=True):
        top, bottom = layout.bands[node.band]
        assert top < y < bottom
        assert x - width / 2 >= 0 and x + width / 2 <= layout.width
    assert layout.bands[-1][1] <= layout.height


def test_a_thousand_nodes_take_seconds(tmp_path: Path) -> None:
    """Of many places for long edges, too; this is no measurement, but a bound."""
    drawn = picture_of(cut_call(chains(100), [(100, 3)], {}, None))
    assert len(drawn.nodes) > 1000
    start = time.perf_counter()
    layout = layout_of(drawn)
    assert time.perf_counter() - start < 20
    assert overlapping(drawn, layout) == []


# --- files ----------------------------------------------------------------------------------


def test_the_svg_is_xml_with_one_element_per_node(tmp_path: Path) -> None:
    file = viz.svg(logistic, tmp_path / "graph.svg", *ARGUMENTS, blocks=8)
    drawn = picture()
    root = ElementTree.fromstring(file.read_text())
    assert root.tag == f"{SVG}svg"
    groups = [g for g in root.iter(f"{SVG}g") if "node" in g.get("class", "").split()]
    assert len(groups) == len(drawn.nodes)
    edges = [p for p in root.iter(f"{SVG}path") if p.get("class") == "edge"]
    assert len(edges) == len(drawn.edges)
    for group, node in zip(groups, drawn.nodes, strict=True):
        [box], [label] = group.findall(f"{SVG}rect"), group.findall(f"{SVG}text")
        assert (box.get("fill"), label.text) == (COLOURS[node.place], node.label)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert set(PLACES.values()) <= set(texts)  # the legend
    assert set(drawn.bands) <= set(texts)


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    file = viz.d3viz(logistic, str(tmp_path / "graph.html"), *ARGUMENTS, blocks=8)
    text = file.read_text()
    elsewhere = set(re.findall(r"\w+://[^\s\"'<>]*", text))
    assert elsewhere <= {"http://www.w3.org/2000/svg"}  # the name of SVG, which is not read
    assert not re.search(r"<link|<img|<iframe|\bsrc=|@import|url\(|fetch\(|import\(", text)
    drawn = picture()
    assert len(re.findall(r'<g class="node ', text)) == len(drawn.nodes)
    assert page_data(text) == [[list(pair) for pair in node.details] for node in drawn.nodes]


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    x = pt.matrix("</script><b>&")
    f = skdtheano.function([x], x * 2, target="dask", name="a<b>c")
    text = viz.d3viz(f, tmp_path / "graph.html", (100, 3)).read_text()
    assert "</script><b>" not in text and "<b>c" not in text
    told = page_data(text)
    assert any("</script><b>&: float64" in value for node in told for _, value in node)
    svg = viz.svg(f, tmp_path / "graph.svg", (100, 3)).read_text()
    ElementTree.fromstring(svg)


def test_it_takes_what_a_call_takes(tmp_path: Path) -> None:
    X = da.zeros((1000, 6), chunks=(125, 6))
    one = viz.svg(logistic, tmp_path / "a.svg", np.zeros(6), X, y=X[:, 0]).read_text()
    other = viz.svg(logistic, tmp_path / "b.svg", *ARGUMENTS, blocks=8).read_text()
    assert one == other


def test_a_png_needs_cairosvg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "cairosvg":
            raise ImportError("No module named 'cairosvg'")
        return there(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"skdtheano\[png\]"):
        viz.svg(logistic, tmp_path / "graph.png", *ARGUMENTS)
    assert not list(tmp_path.iterdir())


def test_a_png_is_drawn(tmp_path: Path) -> None:
    try:
        import_module("cairosvg")
    except (ImportError, OSError) as error:
        pytest.skip(f"no CairoSVG: {error}")
    file = viz.svg(logistic, tmp_path / "graph.png", *ARGUMENTS)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="d3viz"):
        viz.svg(logistic, tmp_path / "graph.html", *ARGUMENTS)
    with pytest.raises(TypeError, match=r"skdtheano\.function"):
        viz.d3viz(np.sum, tmp_path / "graph.html", (3,))


# --- in a browser ---------------------------------------------------------------------------

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

#: Points at a node, drags another one and the paper, zooms, and searches; tells what it saw.
_VISITOR = """
<script>
const seen = {};
const send = (on, type, x, y) => on.dispatchEvent(
  new PointerEvent(type, { clientX: x, clientY: y, bubbles: true, pointerId: 1 }));
SVGElement.prototype.setPointerCapture = () => {};
const all = [...document.querySelectorAll(".node")];
const op = all.find((g) => g.classList.contains("op"));
send(op, "pointerenter", 100, 100);
seen.told = document.getElementById("told").innerText;
seen.near = document.querySelectorAll(".edge.near").length;
send(op, "pointerleave", 0, 0);
seen.hidden = getComputedStyle(document.getElementById("told")).display;
const edge = document.querySelector(`.edge[data-from="${op.dataset.node}"]`);
const line = edge.getAttribute("d"), place = op.getAttribute("transform");
send(op, "pointerdown", 0, 0);
send(op, "pointermove", 30, 40);
send(op, "pointerup", 30, 40);
seen.dragged = op.getAttribute("transform") !== place && edge.getAttribute("d") !== line;
const sheet = document.querySelector(".view"), before = sheet.getAttribute("transform");
send(sheet.ownerSVGElement, "pointerdown", 0, 0);
send(sheet.ownerSVGElement, "pointermove", 50, 0);
send(sheet.ownerSVGElement, "pointerup", 50, 0);
const panned = sheet.getAttribute("transform");
sheet.ownerSVGElement.dispatchEvent(new WheelEvent("wheel", { deltaY: -200, bubbles: true }));
seen.panned = panned !== before;
seen.zoomed = sheet.getAttribute("transform") !== panned;
const find = document.getElementById("find");
find.value = "Dot";
find.dispatchEvent(new Event("input"));
seen.faint = document.querySelectorAll(".node.faint").length;
seen.ready = +document.body.dataset.ready;
seen.asked = performance.getEntriesByType("resource").length;
const report = document.createElement("pre");
report.id = "seen";
report.textContent = JSON.stringify(seen);
document.body.append(report);
</script>
</body>
"""


def visited(file: Path, profile: Path) -> Any:
    """What a browser without a network saw of the page."""
    browser = next((found for found in map(shutil.which, BROWSERS) if found), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    file.write_text(file.read_text().replace("</body>", _VISITOR))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [
        browser,
        *flags,
        offline,
        f"--user-data-dir={profile}",
        "--dump-dom",
        file.as_uri(),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r'<pre id="seen">(.*?)</pre>', ended.stdout, re.DOTALL)
    assert found is not None, f"The page's script did not end: {ended.stderr[-2000:]}"
    return json.loads(found[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))


def test_the_page_works_in_a_browser(tmp_path: Path) -> None:
    file = viz.d3viz(logistic, tmp_path / "graph.html", *ARGUMENTS, blocks=8)
    seen = visited(file, tmp_path / "profile")
    drawn = picture()
    first = next(node for node in drawn.nodes if node.kind == "op")
    assert seen["ready"] == len(drawn.nodes)
    for name, value in first.details:
        assert f"{name}: {value}" in seen["told"]
    assert seen["near"] >= 1 and seen["hidden"] == "none"
    assert seen["dragged"] and seen["panned"] and seen["zoomed"]
    assert 0 < seen["faint"] < len(drawn.nodes)
    assert seen["asked"] == 0  # nothing was read from elsewhere


def test_a_thousand_nodes_work_in_a_browser(tmp_path: Path) -> None:
    file = viz.d3viz(chains(100), tmp_path / "graph.html", (100, 3))
    assert visited(file, tmp_path / "profile")["ready"] > 1000
