"""Where the nodes of a picture go: layers from top to bottom, few crossings, short edges.

The steps are those of Sugiyama's layered drawing [1]_: layers by the longest path, the order
in a layer by the mean place of the neighbours, then coordinates. An edge over several layers
has a place of its own in each, one for all edges of a node. The last step is exact for each
layer: of all places that keep the order and the distances, the nearest to where the
neighbours pull.

.. [1] K. Sugiyama, S. Tagawa, M. Toda, "Methods for visual understanding of hierarchical
   system structures", IEEE Transactions on Systems, Man, and Cybernetics 11 (2), 1981.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from skdtheano.viz.picture import Picture

#: Pixels.
NODE_HEIGHT = 28
LAYER_GAP = 28
NODE_GAP = 14
BAND_HEAD = 24
BAND_GAP = 18
CHARACTER = 7.4
MARGIN = 24

_SWEEPS = 16
#: Beyond so many places for long edges these are drawn straight: to find them takes seconds.
_MOST_PLACES = 20_000


@dataclass(frozen=True)
class Layout:
    """Pixels, from the left and from the top.

    Attributes
    ----------
    x, y : tuple of float
        Centres of the nodes.
    widths : tuple of float
        Of the nodes; all are `NODE_HEIGHT` high.
    routes : tuple of tuple of (float, float)
        By edge: places between its ends that it goes through.
    bands : tuple of (float, float)
        Top and bottom of each band.
    width, height : float
        Of the whole.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    widths: tuple[float, ...]
    routes: tuple[tuple[tuple[float, float], ...], ...]
    bands: tuple[tuple[float, float], ...]
    width: float
    height: float


def layout_of(picture: Picture) -> Layout:
    """Place the nodes of a picture, each below those that it reads."""
    n_nodes = len(picture.nodes)
    layer_of, per_band = _layers(picture)
    edges, chains = _with_places(picture, layer_of)
    widths = [max(44.0, CHARACTER * len(node.label) + 22) for node in picture.nodes]
    widths += [2.0] * (len(layer_of) - n_nodes)
    layers: list[list[int]] = [[] for _ in range(sum(per_band))]
    for node, layer in enumerate(layer_of):
        layers[layer].append(node)
    x = _columns(layers, edges, widths, n_nodes)
    left = min((place - wide / 2 for place, wide in zip(x, widths, strict=True)), default=0.0)
    x = [MARGIN + place - left for place in x]
    right = max((place + wide / 2 for place, wide in zip(x, widths, strict=True)), default=0.0)
    heights, bands, height = _heights(per_band)
    y = [heights[layer] for layer in layer_of]
    return Layout(
        x=tuple(x[:n_nodes]),
        y=tuple(y[:n_nodes]),
        widths=tuple(widths[:n_nodes]),
        routes=tuple(
            tuple(
                (x[place], y[place])
                for place in chains[source]
                if layer_of[place] < layer_of[target]
            )
            for source, target in picture.edges
        ),
        bands=bands,
        width=max(right + MARGIN, *(len(b) * CHARACTER + 2 * MARGIN for b in picture.bands)),
        height=height,
    )


def _layers(picture: Picture) -> tuple[list[int], list[int]]:
    """Layers of the nodes, by band and in it by the longest path; and how many a band has."""
    depth = [0] * len(picture.nodes)
    # Nodes come after those that they read.
    for source, target in sorted(picture.edges, key=lambda edge: edge[1]):
        if picture.nodes[source].band == picture.nodes[target].band:
            depth[target] = max(depth[target], depth[source] + 1)
    per_band = [0] * len(picture.bands)
    for node, deep in zip(picture.nodes, depth, strict=True):
        per_band[node.band] = max(per_band[node.band], deep + 1)
    starts = [sum(per_band[:band]) for band in range(len(per_band))]
    layers = [starts[n.band] + d for n, d in zip(picture.nodes, depth, strict=True)]
    return layers, per_band


def _with_places(
    picture: Picture, layer_of: list[int]
) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """Edges from layer to layer, over places that are added; and those of each node."""
    deepest = list(layer_of)
    for source, target in picture.edges:
        deepest[source] = max(deepest[source], layer_of[target] - 1)
    chains: list[list[int]] = [[] for _ in picture.nodes]
    wanted = sum(deep - own for deep, own in zip(deepest, layer_of, strict=True))
    edges: list[tuple[int, int]] = []
    if wanted <= _MOST_PLACES:
        for source, deep in enumerate(deepest):
            before = source
            for layer in range(layer_of[source] + 1, deep + 1):
                chains[source].append(len(layer_of))
                edges.append((before, len(layer_of)))
                before = len(layer_of)
                layer_of.append(layer)
    for source, target in picture.edges:
        over = [place for place in chains[source] if layer_of[place] < layer_of[target]]
        edges.append((over[-1] if over else source, target))
    return edges, chains


def _columns(
    layers: list[list[int]],
    edges: Sequence[tuple[int, int]],
    widths: Sequence[float],
    n_nodes: int,
) -> list[float]:
    above: list[list[int]] = [[] for _ in widths]
    below: list[list[int]] = [[] for _ in widths]
    for source, target in edges:
        above[target].append(source)
        below[source].append(target)
    x = [0.0] * len(widths)
    for layer in layers:
        _place(layer, [0.0] * len(layer), x, widths, n_nodes)
    for sweep in range(_SWEEPS):
        ordering = sweep < _SWEEPS // 2
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            sides = (above if down else below,) if ordering else (above, below)
            pulls = []
            for node in layer:
                near = [x[other] for side in sides for other in side[node]]
                pulls.append(sum(near) / len(near) if near else x[node])
            if ordering:
                order = sorted(range(len(layer)), key=lambda i: (pulls[i], x[layer[i]]))
                layer[:] = [layer[i] for i in order]
                pulls = [pulls[i] for i in order]
            _place(layer, pulls, x, widths, n_nodes)
    return x


def _place(
    layer: Sequence[int],
    pulls: Sequence[float],
    x: list[float],
    widths: Sequence[float],
    n_nodes: int,
) -> None:
    """Set the places of a layer: the least squares to `pulls` that keep order and distances.

    Less the distances, this is a regression on places that do not decrease, which merging
    neighbours that do, to their mean, solves. Long edges weigh more, and so are straight.
    """
    offsets = [0.0]
    for left, right in pairwise(layer):
        offsets.append(offsets[-1] + (widths[left] + widths[right]) / 2 + NODE_GAP)
    merged: list[tuple[float, float, int]] = []  # means, their weights, and of how many
    for node, pull, offset in zip(layer, pulls, offsets, strict=False):
        mean, weight, count = pull - offset, 1.0 if node < n_nodes else 4.0, 1
        while merged and merged[-1][0] >= mean:
            other, heavy, number = merged.pop()
            mean = (mean * weight + other * heavy) / (weight + heavy)
            weight, count = weight + heavy, count + number
        merged.append((mean, weight, count))
    places = [mean for mean, _, count in merged for _ in range(count)]
    for node, place, offset in zip(layer, places, offsets, strict=False):
        x[node] = place + offset


def _heights(
    per_band: Sequence[int],
) -> tuple[list[float], tuple[tuple[float, float], ...], float]:
    """Of the layers, of the bands, and of the whole."""
    heights: list[float] = []
    bands = []
    top = float(MARGIN)
    for deep in per_band:
        first = top + BAND_HEAD + NODE_HEIGHT / 2
        heights += [first + row * (NODE_HEIGHT + LAYER_GAP) for row in range(deep)]
        bottom = top + BAND_HEAD + deep * (NODE_HEIGHT + LAYER_GAP) - LAYER_GAP + 10
        bands.append((top, bottom))
        top = bottom + BAND_GAP
    return heights, tuple(bands), top - BAND_GAP + MARGIN
