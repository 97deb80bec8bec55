"""Lengths of the axes of every value of a plan, as functions of the numbers of rows.

The plan runs in this process on a few rows of zeros, or rather: the engine works out the
lengths alone, and runs what it cannot tell the length of otherwise.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from skdtheano import engine, scans, symbolic
from skdtheano.engine import Variable
from skdtheano.graphs.placement import Rows
from skdtheano.graphs.plan import Piece, Plan
from skdtheano.runtime.combining import combine

#: Rows of the two blocks of each run. 60 has many divisors: every second row is 30 of them.
_RUNS = ((60, 120), (60, 180))


@dataclass(frozen=True)
class Length:
    """Of an axis: ``fixed + per_row * rows of the block + per_total * rows of all blocks``.

    Attributes
    ----------
    fixed, per_row, per_total : float
        Entries; entries per row.
    """

    fixed: float
    per_row: float = 0.0
    per_total: float = 0.0

    def at(self, rows: int, total: int) -> int:
        """Entries for a block of so many rows, of so many in all."""
        return max(0, round(self.fixed + self.per_row * rows + self.per_total * total))

    def __str__(self) -> str:
        terms = [
            (name if factor == 1 else f"{factor:g} {name}")
            for factor, name in ((self.per_row, "n"), (self.per_total, "N"))
            if factor
        ]
        if self.fixed or not terms:
            terms.append(f"{self.fixed:g}")
        return " + ".join(terms).replace("+ -", "- ")


Shape: TypeAlias = tuple[Length, ...]
_Sizes: TypeAlias = dict[Variable, tuple[int, ...]]


@dataclass(frozen=True)
class Loop:
    """What a Scan repeats.

    Attributes
    ----------
    steps : Variable
        As long as there are steps.
    nodes : tuple of Apply
        Of one step.
    """

    steps: Variable
    nodes: tuple[Any, ...]


@dataclass(frozen=True)
class SizedPiece:
    """A piece of a plan, with the shapes of its values.

    Attributes
    ----------
    piece : Piece
    nodes : tuple of Apply
        Each after those it reads; in the place of an Op that is a graph, the nodes of that.
    loops : dict of Apply to Loop
        By Scan among the nodes, or among those of another loop.
    stands_for : dict of Variable to Variable
        What an Op that is a graph gives, to what gives it in that graph.
    shapes : dict of Variable to Shape
        Of all values that are tensors, but for what is only in `stands_for`.
    """

    piece: Piece
    nodes: tuple[Any, ...]
    loops: dict[Any, Loop]
    stands_for: dict[Variable, Variable]
    shapes: dict[Variable, Shape]


@dataclass(frozen=True)
class SizedStage:
    """The pieces of a stage.

    Attributes
    ----------
    once, block : SizedPiece
    """

    once: SizedPiece
    block: SizedPiece


def is_tensor(variable: Variable) -> bool:
    return hasattr(variable.type, "broadcastable")


class _Opened:
    """A piece whose Ops that are graphs are opened; each is once, so that values are too."""

    def __init__(self, piece: Piece) -> None:
        self.piece = piece
        self.loops: dict[Any, Loop] = {}
        self.stands_for: dict[Variable, Variable] = {}
        values = [result.value for result in piece.results]
        self.nodes = tuple(self._opened(symbolic.toposort(values, set(piece.inputs))))
        self.walk = list(self._walked(self.nodes))
        self.asked, self.constants = self._asked()
        # Numbers of rows, and shapes: a later piece may make lengths of them.
        self.exact = [v for v in values if v.dtype.startswith(("int", "uint"))]
        self._function: Callable[..., list[np.ndarray]] | None = None

    def _opened(self, nodes: Sequence[Any]) -> Iterator[Any]:
        for node in nodes:
            kinds = {kind.__name__ for kind in type(node.op).__mro__}
            if "OpFromGraph" in kinds:
                inner = symbolic.inner_graph(node)
                yield from self._opened(symbolic.toposort(inner, set(node.inputs)))
                self.stands_for.update(zip(node.outputs, inner, strict=True))
                continue
            if "Scan" in kinds:
                n_steps, reads, outputs = scans.loop_step(node)
                step = tuple(self._opened(symbolic.toposort(outputs, set(reads))))
                self.loops[node] = Loop(engine.arange(n_steps), step)
            yield node

    def _walked(self, nodes: Sequence[Any]) -> Iterator[Any]:
        """All nodes, those of loops before what the loop gives."""
        for node in nodes:
            if node in self.loops:
                yield from self._walked(self.loops[node].nodes)
            yield node

    def _asked(self) -> tuple[list[Variable], list[Variable]]:
        """Values that the engine is asked the shape of, and constants."""
        found = dict.fromkeys(v for n in self.walk for v in (*n.inputs, *n.outputs))
        found.update(dict.fromkeys(loop.steps for loop in self.loops.values()))
        found.update(dict.fromkeys(result.value for result in self.piece.results))
        # To compile a function of a thousand shapes takes 10 s, and most are plain to see.
        followed = {v for n in self.walk if _is_followed(n) for v in n.outputs}
        left = followed.union(self.piece.inputs)
        tensors = [v for v in found if is_tensor(v) and v not in left]
        constants = [v for v in tensors if symbolic.is_constant(v)]
        return [v for v in tensors if not symbolic.is_constant(v)], constants

    def run(self, arguments: Sequence[np.ndarray]) -> tuple[_Sizes, dict[Variable, Any]]:
        """Shapes of all values, and the values of results that are whole numbers."""
        if self._function is None and (self.asked or self.exact):
            outputs = [*(v.shape for v in self.asked), *self.exact]
            self._function = engine.compile_function(
                self.piece.inputs, outputs, engine.DEFAULT_MODE, "lengths"
            )
        found = self._function(*arguments) if self._function else []
        given = zip(self.piece.inputs, arguments, strict=True)
        sizes = {symbol: value.shape for symbol, value in given}
        sizes.update({v: np.shape(v.data) for v in self.constants})
        for variable, shape in zip(self.asked, found, strict=False):
            sizes[variable] = tuple(int(length) for length in shape)
        for node in self.walk:
            if _is_followed(node):
                sizes.update(dict.fromkeys(node.outputs, _followed(node, sizes)))
        return sizes, dict(zip(self.exact, found[len(self.asked) :], strict=True))


_FOLLOWED = {"Elemwise", "DimShuffle", "CAReduce"}


def _is_followed(node: Any) -> bool:
    """Whether the shape of what a node gives follows from those of its inputs alone."""
    return any(kind.__name__ in _FOLLOWED for kind in type(node.op).__mro__)


def _followed(node: Any, sizes: _Sizes) -> tuple[int, ...]:
    read = [sizes[variable] for variable in node.inputs]
    if hasattr(node.op, "new_order"):
        return tuple(1 if axis == "x" else read[0][axis] for axis in node.op.new_order)
    if not hasattr(node.op, "axis"):
        return np.broadcast_shapes(*read)
    ndim = len(read[0])
    away = range(ndim) if node.op.axis is None else [axis % ndim for axis in node.op.axis]
    return tuple(length for axis, length in enumerate(read[0]) if axis not in away)


def sized_stages(plan: Plan, arguments: Sequence[Any]) -> list[SizedStage]:
    """Shapes of all values, stage by stage.

    Parameters
    ----------
    plan : Plan
    arguments : sequence of (dask Array or ndarray)
        By input of the plan. Of those with rows the other lengths are read, and of those
        that are dask arrays all; NumPy arrays may hold a length among their values.

    Raises
    ------
    ValueError
        If a piece cannot run on zeros and its lengths do not follow without.
    """
    opened = [(_Opened(stage.once), _Opened(stage.block)) for stage in plan.stages]
    error: Exception | None = None
    for fill in (0, 1):  # some divisions, and some factorisations, refuse zeros
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                runs = [_Run(plan, opened, arguments, rows, fill).sizes() for rows in _RUNS]
            break
        except Exception as caught:  # whatever a user's Op raises
            error = caught
    else:
        raise ValueError(
            f"The lengths of intermediate values cannot be worked out on rows of zeros: "
            f"{error}. Pass the values of the replicated arguments, not their shapes."
        ) from error
    stages = []
    for (once, block), of_runs in zip(opened, zip(*runs, strict=True), strict=True):
        once_shapes = _fitted(
            [sizes for sizes, _ in of_runs], [(0, sum(rows)) for rows in _RUNS]
        )
        block_shapes = _fitted(
            [sizes for _, blocks in of_runs for sizes in blocks],
            [(own, sum(rows)) for rows in _RUNS for own in rows],
        )
        stages.append(SizedStage(_sized(once, once_shapes), _sized(block, block_shapes)))
    return stages


def _sized(opened: _Opened, shapes: dict[Variable, Shape]) -> SizedPiece:
    return SizedPiece(opened.piece, opened.nodes, opened.loops, opened.stands_for, shapes)


def _fitted(
    samples: Sequence[_Sizes], rows: Sequence[tuple[int, int]]
) -> dict[Variable, Shape]:
    """The function that a length is of the rows; all samples agree on the ranks."""
    equations = np.array([(1, own, total) for own, total in rows], float)
    known = equations if equations[:, 1].any() else equations[:, [0, 2]]
    inverse = np.linalg.pinv(known)
    fitted: dict[Variable, Shape] = {}
    for variable in samples[0]:
        lengths = []
        for seen in zip(*(sample[variable] for sample in samples), strict=True):
            terms = np.round(inverse @ np.array(seen, float), 9) + 0.0
            fixed, *slopes = (float(term) for term in terms)
            lengths.append(
                Length(fixed, *slopes) if len(slopes) == 2 else Length(fixed, 0.0, slopes[0])
            )
        fitted[variable] = tuple(lengths)
    return fitted


class _Run:
    """One run over two blocks; what matters of a value is its shape, or it is an index."""

    def __init__(
        self,
        plan: Plan,
        opened: Sequence[tuple[_Opened, _Opened]],
        arguments: Sequence[Any],
        rows: Sequence[int],
        fill: int,
    ) -> None:
        self.opened, self.fill = opened, fill
        self.known: dict[Variable, Any] = {}
        self.here: list[dict[Variable, Any]] = [{} for _ in rows]
        for symbol, placement, argument in zip(
            plan.inputs, plan.placements, arguments, strict=True
        ):
            if isinstance(placement, Rows):
                for block, own in zip(self.here, rows, strict=True):
                    shape = list(argument.shape)
                    shape[placement.axis] = own
                    block[symbol] = self._filled(shape, symbol.dtype)
            elif isinstance(argument, np.ndarray):
                self.known[symbol] = argument
            else:
                self.known[symbol] = self._filled(argument.shape, symbol.dtype)
        if plan.first_row is not None:
            for block, start in zip(self.here, np.cumsum([0, *rows[:-1]]), strict=True):
                block[plan.first_row] = np.asarray(start, np.int64)
        if plan.n_rows is not None:
            self.known[plan.n_rows] = np.asarray(sum(rows), np.int64)

    def _filled(self, shape: Sequence[float], dtype: str) -> np.ndarray:
        # Indices stay 0, which every array with rows has.
        value = np.zeros((), dtype) if np.dtype(dtype).kind in "iu" else np.asarray(self.fill)
        return np.broadcast_to(value.astype(dtype), [int(length) for length in shape])

    def sizes(self) -> list[tuple[_Sizes, list[_Sizes]]]:
        """By stage: once, and on each block."""
        found = []
        for once, block in self.opened:
            once_sizes, results = self._run(once, self.known)
            self.known.update(results)
            parts = [self._run(block, {**self.known, **here}) for here in self.here]
            found.append((once_sizes, [sizes for sizes, _ in parts]))
            for result in block.piece.results:
                values = [values[result.symbol] for _, values in parts]
                if result.combine is None:
                    for here, value in zip(self.here, values, strict=True):
                        here[result.symbol] = value
                else:
                    verb = result.combine.verb, result.combine.axis
                    self.known[result.symbol] = combine(verb, values)
        return found

    def _run(
        self, opened: _Opened, given: Mapping[Variable, Any]
    ) -> tuple[_Sizes, dict[Variable, Any]]:
        sizes, exact = opened.run([np.asarray(given[s]) for s in opened.piece.inputs])
        return sizes, {
            r.symbol: np.asarray(exact[r.value])
            if r.value in exact
            else self._filled(sizes[r.value], r.value.dtype)
            for r in opened.piece.results
        }
