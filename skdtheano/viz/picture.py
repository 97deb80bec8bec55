"""What is drawn of a plan: nodes with their stage and placement, and edges."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skdtheano import engine, symbolic
from skdtheano.engine import Variable
from skdtheano.functions.costs import op_name
from skdtheano.functions.cut_calls import CutCall
from skdtheano.functions.lengths import Shape, SizedPiece
from skdtheano.graphs.placement import (
    REPLICATED,
    SAME,
    NeedNumbers,
    NeedRows,
    NeedWhole,
    Partial,
    Placement,
    RowCount,
    RowNumbers,
    Rows,
    RowShape,
    of_rows,
)
from skdtheano.graphs.plan import Result
from skdtheano.graphs.rules.table import place_node

#: Placements as they are coloured: what the legend says of each.
PLACES = {
    "rows": "rows: each block has its own",
    "part": "part: each block has a part of the whole",
    "same": "same: equal on all blocks, told by any",
    "once": "once: the same everywhere",
    "combine": "combine: from all blocks, in a tree",
    "output": "output",
}


@dataclass(frozen=True)
class Node:
    """An input, an Op, a combine or an output.

    Attributes
    ----------
    label : str
    place : str
        One of `PLACES`.
    band : int
        Number of the band that it is drawn in.
    kind : {"input", "op", "combine", "output"}
    details : tuple of (str, str)
        What is told when it is pointed at: names and values.
    """

    label: str
    place: str
    band: int
    kind: str
    details: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Picture:
    """A plan to draw.

    Attributes
    ----------
    title : str
    bands : tuple of str
        From top to bottom: the inputs, the pieces of each stage, the outputs.
    nodes : tuple of Node
    edges : tuple of (int, int)
        From node to node; never to a band above.
    """

    title: str
    bands: tuple[str, ...]
    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]


def picture_of(call: CutCall) -> Picture:
    """The picture of what a call would run.

    Constants, and Ops of constants alone, are not drawn.
    """
    return _Drawing(call).picture()


class _Drawing:
    def __init__(self, call: CutCall) -> None:
        self.call = call
        self.bands: list[str] = []
        self.nodes: list[Node] = []
        self.edges: dict[tuple[int, int], None] = {}
        #: The node that gives a symbol of the plan.
        self.givers: dict[Variable, int] = {}
        self.placements: dict[Variable, Placement] = {}
        #: Where nodes were made, or what they are the gradient of.
        self.made_at: dict[int, str] = {}
        self.derived: dict[int, str] = {}

    def picture(self) -> Picture:
        chunks = self.call.row_chunks
        blocks = f"{len(chunks)} block{'' if len(chunks) == 1 else 's'}"
        self._add_inputs()
        for number, stage in enumerate(self.call.stages):
            self._add_piece(stage.once, f"stage {number}: once")
            self._add_piece(stage.block, f"stage {number}: on each of {blocks}")
            combined = [r for r in stage.block.piece.results if r.combine is not None]
            if combined:
                self.bands.append(f"stage {number}: combined over {blocks}")
            for result in combined:
                self._add_combine(result, stage.block.shapes, number)
        self._add_outputs()
        total = f"{sum(chunks):,} rows in {blocks}"
        return Picture(
            f"{self.call.name}: {total}",
            tuple(self.bands),
            tuple(self.nodes),
            tuple(self.edges),
        )

    def _add(self, node: Node, sources: Sequence[int]) -> int:
        self.nodes.append(node)
        number = len(self.nodes) - 1
        self.edges.update(dict.fromkeys((source, number) for source in sources))
        return number

    def _add_inputs(self) -> None:
        plan = self.call.plan
        known: dict[Variable, Shape] = {}
        for stage in self.call.stages:
            known = {**stage.block.shapes, **stage.once.shapes, **known}
        self.bands.append("inputs")
        given = list(zip(plan.inputs, plan.placements, strict=True))
        if plan.first_row is not None:
            given.append((plan.first_row, SAME))
        if plan.n_rows is not None:
            given.append((plan.n_rows, REPLICATED))
        for place, (symbol, placement) in enumerate(given):
            self.placements[symbol] = placement
            details = [
                ("type", _typed(symbol, known.get(symbol))),
                ("placement", _told(placement)),
            ]
            if symbol is plan.first_row:
                details.append(("is", "the number of the block's first row"))
            if symbol is plan.n_rows:
                details.append(("is", "the number of all rows"))
            self.givers[symbol] = self._add(
                Node(
                    symbol.name or f"input {place}",
                    _place(placement),
                    0,
                    "input",
                    tuple(details),
                ),
                (),
            )

    def _add_piece(self, sized: SizedPiece, band: str) -> None:
        piece, shapes = sized.piece, sized.shapes
        givers = {symbol: self.givers[symbol] for symbol in piece.inputs}
        placed = {symbol: self.placements[symbol] for symbol in piece.inputs}

        def given(variable: Variable) -> Variable:
            while variable in sized.stands_for:
                variable = sized.stands_for[variable]
            return variable

        folded: set[Variable] = set()  # made of constants
        nodes = []
        for node in sized.nodes:
            if all(symbolic.is_constant(v) or given(v) in folded for v in node.inputs):
                folded.update(node.outputs)
            else:
                nodes.append(node)
        if nodes:
            self.bands.append(band)
        for node in nodes:
            reads = [given(variable) for variable in node.inputs]
            at = [placed.get(variable, REPLICATED) for variable in reads]
            here = _placed(node, at, shapes)
            for variable, placement in zip(node.outputs, here, strict=True):
                placed[variable] = placement
            sources = [givers[v] for v in reads if v in givers]
            details = (
                ("Op", str(node.op)),
                ("reads", ", ".join(_read(v, shapes, folded) for v in reads) or "nothing"),
                ("gives", ", ".join(_typed(v, shapes.get(v)) for v in node.outputs)),
                ("placement", _told(here[0])),
                ("stage", band.removeprefix("stage ")),
                ("source", self._source(node, sources)),
            )
            number = self._add(
                Node(op_name(node.op), _place(here[0]), len(self.bands) - 1, "op", details),
                sources,
            )
            givers.update(dict.fromkeys(node.outputs, number))
        for result in piece.results:
            value = given(result.value)
            if value not in givers:  # a constant
                givers[value] = self._add_constant(value, band)
            placement = placed.get(value, REPLICATED)
            if result.combine is None:
                self.givers[result.symbol] = givers[value]
                kept = REPLICATED if result.axis is None else Rows(result.axis)
                self.placements[result.symbol] = kept
            else:
                self.givers[result.value] = givers[value]
                self.placements[result.value] = placement

    def _source(self, node: Any, sources: Sequence[int]) -> str:
        """Where the next node was made; those of a gradient are made inside the engine."""
        number = len(self.nodes)
        place = engine.place_in_source(node)
        if place is not None:
            self.made_at[number] = place
            return place
        # A gradient reads what it is the gradient of, and what other gradients gave.
        for places in (self.made_at, self.derived):
            for source in sources:
                if source in places:
                    self.derived[number] = places[source]
                    return f"gradient of {places[source]}"
        return "unknown"

    def _add_constant(self, variable: Variable, band: str) -> int:
        if self.bands[-1] != band:  # the piece has nothing else to draw
            self.bands.append(band)
        details = (("constant", str(variable)), ("type", _typed(variable, None)))
        return self._add(Node("constant", "once", len(self.bands) - 1, "op", details), ())

    def _add_combine(
        self, result: Result, shapes: Mapping[Variable, Shape], stage: int
    ) -> None:
        assert result.combine is not None
        verb = result.combine.verb
        details = (
            ("combines", _told(self.placements[result.value])),
            ("by", verb),
            ("each block gives", _typed(result.value, shapes.get(result.value))),
            ("stage", f"{stage}: combine"),
        )
        node = Node(verb, "combine", len(self.bands) - 1, "combine", details)
        source = self.givers[result.value]
        for places in (self.made_at, self.derived):
            if source in places:
                places[len(self.nodes)] = places[source]
        self.givers[result.symbol] = self._add(node, [source])
        self.placements[result.symbol] = REPLICATED

    def _add_outputs(self) -> None:
        plan = self.call.plan
        self.bands.append("outputs")
        for place, (symbol, axis) in enumerate(zip(plan.outputs, plan.row_axes, strict=True)):
            placement = REPLICATED if axis is None else Rows(axis)
            details = (("type", _typed(symbol, None)), ("placement", _told(placement)))
            label = symbol.name or f"output {place}"
            node = Node(label, "output", len(self.bands) - 1, "output", details)
            self._add(node, [self.givers[symbol]])


def _placed(
    node: Any, at: list[Placement], shapes: Mapping[Variable, Shape]
) -> list[Placement]:
    """Placements of a node of a piece, which the plan does not keep."""
    try:
        verdict = place_node(node, at)
    except (NeedWhole, NeedNumbers, NeedRows):
        verdict = []
    if isinstance(verdict, list) and len(verdict) == len(node.outputs):
        return verdict
    # The plan has numbered the rows, or had another Op here: lengths still tell of rows.
    return [_by_length(shapes.get(variable)) for variable in node.outputs]


def _by_length(shape: Shape | None) -> Placement:
    axes = [axis for axis, length in enumerate(shape or ()) if length.per_row]
    return Rows(axes[0]) if axes else SAME


def _place(placement: Placement) -> str:
    if of_rows(placement):
        return "rows"
    if isinstance(placement, Partial | RowCount | RowShape):
        return "part"
    return "once" if placement == REPLICATED else "same"


def _told(placement: Placement) -> str:
    if isinstance(placement, Rows):
        return f"rows along axis {placement.axis}"
    if isinstance(placement, Partial):
        return f"part of a {placement.combine} over the blocks"
    if isinstance(placement, RowShape):
        return f"shape whose entry {placement.axis} is the block's number of rows"
    return {
        RowCount: "the block's number of rows",
        RowNumbers: "row numbers, counted from the block's first",
    }.get(type(placement), PLACES[_place(placement)])


def _typed(variable: Variable, shape: Shape | None) -> str:
    dtype = getattr(variable, "dtype", None)
    if dtype is None:
        return str(variable.type)
    if shape is None:
        return f"{dtype}, {variable.ndim} axes" if variable.ndim else f"{dtype}, scalar"
    lengths = ", ".join(map(str, shape))
    return f"{dtype} ({lengths}{',' if len(shape) == 1 else ''})"


def _read(
    variable: Variable, shapes: Mapping[Variable, Shape], folded: Collection[Variable]
) -> str:
    if variable in folded or symbolic.is_constant(variable):
        value = symbolic.constant_of(variable)
        return "constant" if value is None or np.ndim(value) else str(value)
    name = f"{variable.name}: " if variable.name else ""
    return name + _typed(variable, shapes.get(variable))
