"""A picture as SVG."""

from collections.abc import Iterator, Sequence
from html import escape

from skdtheano.viz.layout import MARGIN, NODE_HEIGHT, Layout
from skdtheano.viz.picture import PLACES, Node, Picture

#: By placement; after the colours of Okabe and Ito, which colour-blind people tell apart.
COLOURS = {
    "rows": "#a9d6f2",
    "part": "#f4cd7a",
    "same": "#f5efa0",
    "once": "#e3e3e3",
    "combine": "#86d3b8",
    "output": "#ffffff",
}

_NARROWEST = 660.0

_STYLE = (
    "text{font:13px DejaVu Sans,Verdana,sans-serif;fill:#1b1b1b}"
    ".band rect{fill:#f7f7f9;stroke:#d5d5dc}.band text,.legend text{font-size:12px;fill:#555}"
    ".edge{fill:none;stroke:#8a8a94;stroke-opacity:.65}"
    ".node text{text-anchor:middle}.node rect{stroke:#55555e}"
    ".input rect{stroke-dasharray:4 2}.combine rect,.output rect{stroke-width:2}"
    ".legend .title{font-weight:bold}"
)


def svg_of(picture: Picture, layout: Layout, titles: bool = True) -> str:
    """The picture as one ``<svg>`` element, which needs nothing from elsewhere.

    Parameters
    ----------
    picture : Picture
    layout : Layout
    titles : bool
        Whether nodes tell their details when they are pointed at.
    """
    width = max(layout.width, _NARROWEST)
    lines = _legend_lines(width)
    head = legend_height(layout)
    height = layout.height + head
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" '
            f'height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">',
            f"<style>{_STYLE}</style>",
            f'<rect class="paper" width="{width:.0f}" height="{height:.0f}" fill="#fff"/>',
            f'<g class="view" transform="translate(0 {head})">',
            *_bands(picture, layout, width),
            f'<g class="graph" transform="translate({(width - layout.width) / 2:.0f} 0)">',
            *_edges(picture, layout),
            *(_node(n, node, layout, titles) for n, node in enumerate(picture.nodes)),
            "</g>",
            "</g>",
            *_legend(picture.title, lines, head),
            "</svg>",
        ]
    )


def legend_height(layout: Layout) -> int:
    """Pixels above the graph."""
    return 32 + 22 * len(_legend_lines(max(layout.width, _NARROWEST)))


def _legend_lines(width: float) -> list[list[tuple[str, float]]]:
    """Placements, and where each begins, by line."""
    lines: list[list[tuple[str, float]]] = [[]]
    x = float(MARGIN)
    for place, text in PLACES.items():
        wide = 6.8 * len(text) + 44
        if lines[-1] and x + wide > width:
            lines.append([])
            x = float(MARGIN)
        lines[-1].append((place, x))
        x += wide
    return lines


def _legend(
    title: str, lines: Sequence[Sequence[tuple[str, float]]], height: int
) -> Iterator[str]:
    # Over the graph, which a page moves below it.
    yield f'<g class="legend"><rect width="100%" height="{height}" fill="#fff"/>'
    yield f'<text class="title" x="{MARGIN}" y="20">{escape(title)}</text>'
    for number, line in enumerate(lines):
        top = 32 + 22 * number
        for place, x in line:
            yield (
                f'<rect x="{x:.0f}" y="{top}" width="18" height="14" rx="3" '
                f'fill="{COLOURS[place]}" stroke="#55555e"/>'
                f'<text x="{x + 24:.0f}" y="{top + 11}">{escape(PLACES[place])}</text>'
            )
    yield "</g>"


def _bands(picture: Picture, layout: Layout, width: float) -> Iterator[str]:
    for name, (top, bottom) in zip(picture.bands, layout.bands, strict=True):
        yield (
            f'<g class="band"><rect x="8" y="{top:.1f}" width="{width - 16:.1f}" '
            f'height="{bottom - top:.1f}" rx="6"/>'
            f'<text x="16" y="{top + 16:.1f}">{escape(name)}</text></g>'
        )


def _edges(picture: Picture, layout: Layout) -> Iterator[str]:
    for (source, target), route in zip(picture.edges, layout.routes, strict=True):
        points = [
            (layout.x[source], layout.y[source] + NODE_HEIGHT / 2),
            *route,
            (layout.x[target], layout.y[target] - NODE_HEIGHT / 2),
        ]
        via = " ".join(f"{x:.1f},{y:.1f}" for x, y in route)
        yield (
            f'<path class="edge" data-from="{source}" data-to="{target}" data-via="{via}" '
            f'd="{_path(points)}"/>'
        )


def _path(points: Sequence[tuple[float, float]]) -> str:
    """A line through points that is vertical at each."""
    x, y = points[0]
    parts = [f"M{x:.1f} {y:.1f}"]
    for to_x, to_y in points[1:]:
        middle = (y + to_y) / 2
        parts.append(f"C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}")
        x, y = to_x, to_y
    return "".join(parts)


def _node(number: int, node: Node, layout: Layout, titles: bool) -> str:
    width = layout.widths[number]
    rounding = NODE_HEIGHT / 2 if node.kind in ("input", "output") else 5
    told = "\n".join(f"{name}: {value}" for name, value in node.details)
    title = f"<title>{escape(told)}</title>" if titles else ""
    return (
        f'<g class="node {node.kind}" data-node="{number}" '
        f'transform="translate({layout.x[number]:.1f} {layout.y[number]:.1f})">{title}'
        f'<rect x="{-width / 2:.1f}" y="{-NODE_HEIGHT / 2:.1f}" width="{width:.1f}" '
        f'height="{NODE_HEIGHT}" rx="{rounding:.0f}" fill="{COLOURS[node.place]}"/>'
        f'<text y="4.5">{escape(node.label)}</text></g>'
    )
