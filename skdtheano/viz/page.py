"""A picture as one HTML file: the SVG, and a script that moves it and tells of its nodes."""

import json
from html import escape

from skdtheano.viz.drawing import legend_height, svg_of
from skdtheano.viz.layout import NODE_HEIGHT, Layout
from skdtheano.viz.picture import Picture


def page_of(picture: Picture, layout: Layout) -> str:
    """The page; it reads nothing from elsewhere."""
    details = [node.details for node in picture.nodes]
    data = json.dumps(details).replace("<", "\\u003c")
    return (
        _PAGE.replace("@title@", escape(picture.title))
        .replace("@svg@", svg_of(picture, layout, titles=False))
        .replace("@half@", f"{NODE_HEIGHT / 2:g}")
        .replace("@head@", str(legend_height(layout)))
        .replace("@details@", data)
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>@title@</title>
<style>
html, body { margin: 0; height: 100%; overflow: hidden; background: #fff; }
body { font: 13px DejaVu Sans, Verdana, sans-serif; color: #1b1b1b; }
#stage svg { width: 100vw; height: 100vh; display: block; cursor: grab; touch-action: none; }
#stage .paper { display: none; }
#stage .legend { pointer-events: none; }
#stage .node { cursor: pointer; }
#stage .near rect { stroke: #b3261e; stroke-width: 2.5; }
#stage .edge.near { stroke: #b3261e; stroke-opacity: 1; stroke-width: 2; }
#stage .faint { opacity: .2; }
#told { position: fixed; max-width: 520px; padding: 8px 10px; background: #fffffff2;
  border: 1px solid #888; border-radius: 5px; pointer-events: none; display: none;
  overflow-wrap: anywhere; box-shadow: 0 2px 8px #0003; }
#told b { font-weight: 600; color: #555; }
#tools { position: fixed; right: 12px; top: 8px; background: #fffffff2; }
#tools input, #tools button { font: inherit; padding: 3px 8px; }
</style>
</head>
<body>
<div id="stage">@svg@</div>
<div id="tools">
<input id="find" type="search" placeholder="find an Op" aria-label="find an Op">
<button id="fit" type="button">fit</button>
</div>
<div id="told" role="status"></div>
<script id="details" type="application/json">@details@</script>
<script>
"use strict";
const svg = document.querySelector("#stage svg");
const view = svg.querySelector(".view");
const told = document.getElementById("told");
const details = JSON.parse(document.getElementById("details").textContent);
const half = @half@;
const head = @head@;  // of the legend, which stays where it is

// Pixels of the window; the drawing is moved and scaled below the legend.
const size = svg.viewBox.baseVal;
const drawn = { width: size.width, height: size.height - head };
svg.removeAttribute("viewBox");
let at = { x: 0, y: head, scale: 1 };

function show() {
  view.setAttribute("transform", `translate(${at.x} ${at.y}) scale(${at.scale})`);
}

function fit() {
  const width = window.innerWidth, height = window.innerHeight - head;
  const scale = Math.min(1, width / drawn.width, height / drawn.height);
  // A deep graph begins at its top, as large as can be read.
  at.scale = Math.max(scale, Math.min(0.5, width / drawn.width), 0.05);
  at.x = Math.max(0, (width - drawn.width * at.scale) / 2);
  at.y = head;
  show();
}

const nodes = [];
for (const g of view.querySelectorAll(".node")) {
  const place = g.transform.baseVal.getItem(0).matrix;
  nodes[+g.dataset.node] = { g, x: place.e, y: place.f, edges: [] };
}
for (const path of view.querySelectorAll(".edge")) {
  const edge = { path, from: nodes[+path.dataset.from], to: nodes[+path.dataset.to] };
  const pairs = path.dataset.via.split(" ").filter(Boolean);
  edge.via = pairs.map((pair) => pair.split(",").map(Number));
  edge.from.edges.push(edge);
  edge.to.edges.push(edge);
}

function draw(edge) {
  let [x, y] = [edge.from.x, edge.from.y + half];
  let line = `M${x} ${y}`;
  for (const [toX, toY] of [...edge.via, [edge.to.x, edge.to.y - half]]) {
    const middle = (y + toY) / 2;
    line += `C${x} ${middle} ${toX} ${middle} ${toX} ${toY}`;
    [x, y] = [toX, toY];
  }
  edge.path.setAttribute("d", line);
}

function tell(number, event) {
  told.replaceChildren();
  for (const [name, value] of details[number]) {
    const line = document.createElement("div"), key = document.createElement("b");
    key.textContent = name + ": ";
    line.append(key, value);
    told.append(line);
  }
  told.style.display = "block";
  const left = Math.min(event.clientX + 14, window.innerWidth - told.offsetWidth - 8);
  const below = event.clientY + 14;
  const fits = below + told.offsetHeight < window.innerHeight;
  told.style.left = Math.max(4, left) + "px";
  told.style.top = (fits ? below : Math.max(4, event.clientY - told.offsetHeight - 10)) + "px";
}

function mark(node, on) {
  node.g.classList.toggle("near", on);
  for (const edge of node.edges) {
    edge.path.classList.toggle("near", on);
    edge.from.g.classList.toggle("near", on);
    edge.to.g.classList.toggle("near", on);
  }
}

for (const [number, node] of nodes.entries()) {
  node.g.addEventListener("pointerenter", (event) => {
    mark(node, true);
    tell(number, event);
  });
  node.g.addEventListener("pointerleave", () => {
    mark(node, false);
    told.style.display = "none";
  });
}

let held = null;
svg.addEventListener("pointerdown", (event) => {
  const g = event.target.closest(".node");
  held = { node: g && nodes[+g.dataset.node], x: event.clientX, y: event.clientY };
  svg.setPointerCapture(event.pointerId);
});
svg.addEventListener("pointermove", (event) => {
  if (!held) return;
  const dx = event.clientX - held.x, dy = event.clientY - held.y;
  held.x = event.clientX;
  held.y = event.clientY;
  if (held.node) {
    held.node.x += dx / at.scale;
    held.node.y += dy / at.scale;
    held.node.g.setAttribute("transform", `translate(${held.node.x} ${held.node.y})`);
    held.node.edges.forEach(draw);
  } else {
    at.x += dx;
    at.y += dy;
    show();
  }
});
svg.addEventListener("pointerup", () => { held = null; });
svg.addEventListener("pointercancel", () => { held = null; });
svg.addEventListener("wheel", (event) => {
  event.preventDefault();
  const scale = Math.min(8, Math.max(0.05, at.scale * Math.exp(-event.deltaY / 500)));
  at.x = event.clientX - (event.clientX - at.x) * scale / at.scale;
  at.y = event.clientY - (event.clientY - at.y) * scale / at.scale;
  at.scale = scale;
  show();
}, { passive: false });

document.getElementById("fit").addEventListener("click", fit);
document.getElementById("find").addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase();
  for (const [number, node] of nodes.entries()) {
    const text = node.g.textContent + JSON.stringify(details[number]);
    node.g.classList.toggle("faint", !text.toLowerCase().includes(wanted));
  }
});
window.addEventListener("resize", fit);
fit();
document.body.dataset.ready = String(nodes.length);
</script>
</body>
</html>
"""
