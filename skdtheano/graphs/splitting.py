"""Cutting a graph by rows: each value gets a placement, and each combine begins a stage."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from skdtheano import draws, engine, scans, symbolic
from skdtheano.engine import Variable
from skdtheano.graphs import loops
from skdtheano.graphs.cutting_out import cut_out
from skdtheano.graphs.placement import (
    REPLICATED,
    NeedNumbers,
    NeedRows,
    NeedWhole,
    Placement,
    PlacementError,
    Replicated,
    Rewritten,
    RowCount,
    RowNumbers,
    Rows,
    Same,
    combine_of,
)
from skdtheano.graphs.plan import Combine, Piece, Plan, Result, Stage
from skdtheano.graphs.rules.table import place_node
from skdtheano.graphs.verify import verify


def split(
    inputs: Sequence[Variable],
    outputs: Sequence[Variable],
    placements: Sequence[Placement],
    gather: bool = False,
) -> Plan:
    """Cut a graph by rows.

    Parameters
    ----------
    inputs, outputs : sequence of Variable
    placements : sequence of Placement
        `Rows` or `Replicated`, by input.
    gather : bool
        Where an Op needs all rows, bring them together.

    Raises
    ------
    PlacementError
        If an Op has no rule for rows, or needs all of them, and `gather` is False.
    """
    splitter = _Splitter(inputs, placements, gather)
    plan = splitter.split(outputs)
    verify(
        plan,
        inputs,
        splitter.merged,
        splitter.rewritten,
        splitter.numbered,
        splitter.counted,
    )
    return plan


@dataclass
class _Value:
    """A variable of the graph in terms of the plan's symbols.

    Attributes
    ----------
    variable : Variable
        Over symbols that are known at `stage`.
    placement : Placement
    stage : int
    """

    variable: Variable
    placement: Placement
    stage: int


@dataclass
class _Draft:
    """Results of the pieces of one stage, by the variable that they compute."""

    once: dict[Variable, Result] = field(default_factory=dict)
    block: dict[tuple[Variable, Combine | None], Result] = field(default_factory=dict)


class _Splitter:
    def __init__(
        self, inputs: Sequence[Variable], placements: Sequence[Placement], gather: bool
    ) -> None:
        self.gather = gather
        self.placements = tuple(placements)
        self.symbols = tuple(
            engine.symbol_like(v, p.axis if isinstance(p, Rows) else None)
            for v, p in zip(inputs, placements, strict=True)
        )
        self.values = {
            v: _Value(s, p, 0)
            for v, s, p in zip(inputs, self.symbols, placements, strict=True)
        }
        #: Where each variable over symbols is computed: placement and stage.
        self.where: dict[Variable, _Value] = {v.variable: v for v in self.values.values()}
        self.per_block = {
            s for s, p in zip(self.symbols, placements, strict=True) if isinstance(p, Rows)
        }
        self.known_at: dict[Variable, int] = dict.fromkeys(self.symbols, 0)
        self.drafts: list[_Draft] = []
        self.first_row: Variable | None = None
        self.n_rows: Variable | None = None
        self.nodes: dict[Any, Any] = {}
        self.used: set[Variable] = set()
        #: What was put in the place of variables of the graph, for `verify`.
        self.rewritten: dict[Variable, Variable] = {}
        self.numbered: dict[Variable, Variable] = {}
        #: Row numbers of the table, by those of the block.
        self.of_table: dict[Variable, _Value] = {}
        self.counted: dict[tuple[Any, int], Variable] = {}

    # --- placing --------------------------------------------------------------------------

    def split(self, outputs: Sequence[Variable]) -> Plan:
        self.merged = merged = symbolic.merged(list(self.values), outputs)
        found = [self._value(variable) for variable in merged]
        symbols, axes = [], []
        for k, value in enumerate(found):
            if isinstance(value.placement, RowNumbers):
                value = self._numbered(value)
            axes.append(_axis_of(value.placement))
            if isinstance(value.placement, Rows):
                symbols.append(self._kept(value))
            else:
                symbols.append(self._once(self._whole(value, (None, k))))
        stages = self._stages(symbols)
        return Plan(
            self.symbols,
            self.placements,
            stages,
            tuple(symbols),
            tuple(axes),
            self.first_row,
            self.n_rows,
            frozenset(self.per_block),
        )

    def _value(self, variable: Variable) -> _Value:
        """Place a variable and all that it depends on."""
        self.used |= symbolic.reached([variable], set(self.values))
        for node in symbolic.toposort([variable], set(self.values)):
            if any(v in self.used and v not in self.values for v in node.outputs):
                self._place(node)
        if variable not in self.values:
            self._leaf(variable)
        return self.values[variable]

    def _leaf(self, variable: Variable) -> _Value:
        """A constant; the caller has made inputs of everything else."""
        if variable not in self.values:
            if not symbolic.is_constant(variable):
                raise PlacementError(
                    f"{variable} is no input of the function and no constant. Name it among "
                    "the inputs, or give it a value with givens=."
                )
            self._set(variable, _Value(variable, REPLICATED, 0))
        return self.values[variable]

    def _set(self, variable: Variable, value: _Value) -> None:
        self.values[variable] = value
        self.where.setdefault(value.variable, value)

    def _place(self, node: Any) -> None:
        inputs = [self.values.get(v) or self._leaf(v) for v in node.inputs]
        while True:
            # Rules look at types and constants, so the node over symbols is what they see.
            ours = self._node(node, [value.variable for value in inputs])
            try:
                verdict = place_node(ours, [value.placement for value in inputs])
            except NeedWhole as need:
                for i in need.inputs:
                    inputs[i] = self._whole(inputs[i], (node, i))
                continue
            except NeedNumbers as need:
                for i in need.inputs:
                    inputs[i] = self._numbered(inputs[i])
                continue
            except NeedRows as need:
                if not self.gather:
                    raise self._error(node, need) from None
                inputs = [
                    self._whole(self._numbered(value), (node, i))
                    for i, value in enumerate(inputs)
                ]
                continue
            break
        stage = max((value.stage for value in inputs), default=0)
        if isinstance(verdict, Rewritten):
            for value in inputs:
                self._set(value.variable, value)
            for old, new in zip(node.outputs, verdict.outputs, strict=True):
                if old not in self.used:
                    continue  # Theano's maximum has a place, and mostly nobody asks for it
                self._set(old, self._value(new))
                self.rewritten[old] = new
            return
        for old, new, placement in zip(node.outputs, ours.outputs, verdict, strict=True):
            self._set(old, _Value(new, placement, stage))

    def _node(self, node: Any, inputs: list[Variable]) -> Any:
        """The node over symbols; the one that is there, if an equal one is."""
        key = (node.op, tuple(symbolic.identity_of(variable) for variable in inputs))
        if key not in self.nodes:
            self.nodes[key] = symbolic.rebuild(node, inputs)
        return self.nodes[key]

    def _error(self, node: Any, need: NeedRows) -> PlacementError:
        loop = scans.loop_along(node, symbolic.toposort(self.merged, ()))
        if loop is not None:  # it picks its steps; the loop is what the user wrote
            return self._error(loop, NeedRows([0], loops.ALONG_ROWS))
        place = engine.place_in_source(node)
        where = f" (made at {place})" if place else ""
        return PlacementError(
            f"{node}{where} cannot be computed block by block: {need.reason}. To bring all "
            "rows of its inputs together anyway, use gather='allow'."
        )

    # --- from one stage to the next -------------------------------------------------------

    def _draft(self, stage: int) -> _Draft:
        while len(self.drafts) <= stage:
            self.drafts.append(_Draft())
        return self.drafts[stage]

    def _whole(self, value: _Value, read_by: tuple[Any, int]) -> _Value:
        """The value, combined from all blocks if each block has a part."""
        if isinstance(value.placement, Replicated):
            return value
        if isinstance(value.placement, RowCount):
            counted = self._counted(value)
            self.counted[read_by] = counted.variable
            return counted
        return self._combined(value, is_output=read_by[0] is None)

    def _combined(self, value: _Value, is_output: bool) -> _Value:
        """The whole of a part; of a view, as a view of the whole, so it travels once."""
        combine = Combine(*combine_of(value.placement))
        results = self._draft(value.stage).block
        below = self._seen_by(value)
        if below is not None and not (is_output and (below.variable, combine) not in results):
            whole = self._combined(below, is_output)
            node = self._node(value.variable.owner, [whole.variable])
            view = _Value(node.outputs[0], REPLICATED, whole.stage)
            self._set(view.variable, view)
            return view
        key = (value.variable, combine)
        if key not in results:
            axis = combine.axis if combine.verb == "rows" else None
            symbol = engine.symbol_like(value.variable, axis)
            results[key] = Result(value.variable, symbol, combine, _axis_of(value.placement))
            self.known_at[symbol] = value.stage + 1
            self._set(symbol, _Value(symbol, REPLICATED, value.stage + 1))
        return self.values[results[key].symbol]

    def _seen_by(self, value: _Value) -> _Value | None:
        """The part that a part is a view of, if it combines alike."""
        node = value.variable.owner
        if node is None or not symbolic.is_view(node) or isinstance(value.placement, Rows):
            return None
        below = self.where.get(node.inputs[0])
        alike = below is not None and below.placement == value.placement
        return below if alike else None

    def _numbered(self, value: _Value) -> _Value:
        """Row numbers of the table, from those of the block."""
        if not isinstance(value.placement, RowNumbers):
            return value
        if self.first_row is None:
            self.first_row = engine.scalar("first_row", dtype="int64")
            self.per_block.add(self.first_row)
            self.known_at[self.first_row] = 0
        if value.variable not in self.of_table:
            number = engine.cast(value.variable + self.first_row, value.variable.dtype)
            self.of_table[value.variable] = _Value(number, Rows(0), value.stage)
            self._set(number, self.of_table[value.variable])
            self.numbered[number] = value.variable
            self._set(self.first_row, _Value(self.first_row, Same(), 0))
        return self.of_table[value.variable]

    def _counted(self, value: _Value) -> _Value:
        """The number of rows of the table, which is known before the first stage."""
        if self.n_rows is None:
            self.n_rows = engine.scalar("n_rows", dtype="int64")
            self.known_at[self.n_rows] = 0
        like = value.variable
        count = self.n_rows
        if like.dtype != count.dtype:
            count = engine.made_where(engine.cast(count, like.dtype), like)
        if like.ndim:
            count = engine.made_where(count.dimshuffle(*["x"] * like.ndim), like)
        counted = _Value(count, REPLICATED, 0)
        self._set(count, counted)
        return counted

    def _kept(self, value: _Value) -> Variable:
        """The symbol of rows that stay on their blocks; an input is its own."""
        if value.variable in self.known_at:
            return value.variable
        results = self._draft(value.stage).block
        key = (value.variable, None)
        if key not in results:
            axis = _axis_of(value.placement)
            symbol = engine.symbol_like(value.variable, axis)
            results[key] = Result(value.variable, symbol, None, axis)
            self.known_at[symbol] = value.stage
            self.per_block.add(symbol)
        return results[key].symbol

    def _once(self, value: _Value) -> Variable:
        """The symbol of a value that is computed once."""
        if value.variable in self.known_at:
            return value.variable
        results = self._draft(value.stage).once
        if value.variable not in results:
            symbol = engine.symbol_like(value.variable, None)
            results[value.variable] = Result(value.variable, symbol)
            self.known_at[symbol] = value.stage
        return results[value.variable].symbol

    # --- cutting ----------------------------------------------------------------------------

    def _stages(self, outputs: Sequence[Variable]) -> tuple[Stage, ...]:
        """Cut each piece out, the last stage first: a piece asks for what it reads."""
        stages: list[Stage] = []
        for number in reversed(range(len(self.drafts))):
            draft = self.drafts[number]
            block = self._piece(draft.block, number, self._reads_in_block)
            once = self._piece(draft.once, number, self._reads_once)
            # A block of an earlier stage may have been asked for more by now.
            stages.append(Stage(once, block))
        return tuple(reversed(stages))

    def _piece(
        self,
        results: Mapping[Any, Result],
        stage: int,
        reads: Callable[[Variable, int], Variable | None],
    ) -> Piece:
        return cut_out(list(results.values()), self.known_at, lambda v: reads(v, stage))

    def _reads_in_block(self, variable: Variable, stage: int) -> Variable | None:
        """The symbol under which a block finds a value that it does not compute itself."""
        value = self.where.get(variable)
        if value is None or variable.owner is None:
            return None
        if isinstance(value.placement, Replicated):
            return None if self._is_cheap(variable) else self._once(value)
        if value.stage == stage or self._is_cheap(variable):
            return None
        return self._kept(value)

    def _reads_once(self, variable: Variable, stage: int) -> Variable | None:
        value = self.where.get(variable)
        if value is None or variable.owner is None or value.stage == stage:
            return None
        return None if self._is_cheap(variable) else self._once(value)

    def _is_cheap(self, variable: Variable) -> bool:
        """Whether it is a view of a symbol, or made of constants: no task of its own."""
        if draws.is_generator(variable):
            return True  # and no value that travels: it is unpacked where a draw reads it
        while variable.owner is not None and symbolic.is_view(variable.owner):
            variable = variable.owner.inputs[0]
        if variable in self.known_at or symbolic.is_constant(variable):
            return True
        is_number = all(getattr(variable.type, "broadcastable", (False,)))  # a slice has none
        known = {self.n_rows} if is_number and self.n_rows is not None else set()
        return symbolic.is_made_of_constants(variable, known)


def _axis_of(placement: Placement) -> int | None:
    """The axis of the rows, None where there is none."""
    if isinstance(placement, RowNumbers):
        return 0
    return placement.axis if isinstance(placement, Rows) else None
