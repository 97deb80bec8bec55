"""A staged plan as a dask graph: one task per block and stage, and trees of combines."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from skdtheano.runtime.staged import (
    Staged,
    Step,
    combine_results,
    run_block,
    run_step,
    whole_value,
)

#: Block results that one task combines.
FAN_IN = 8

#: Replicated arguments of more bytes have a key of their own in the graph.
_LARGE = 1024

#: Programs of more bytes have a key of their own. Others go along with each task: who holds
#: one of a task's dependencies is a place to run it for dask, which would take some blocks
#: to the holder of the program.
_LARGE_PROGRAM = 2**16


@dataclass(frozen=True)
class Outline:
    """What is known of an output before it is computed.

    Attributes
    ----------
    shape : tuple of (int or float)
        NaN where it is not known. The entry of the rows is not read.
    dtype : str
    """

    shape: tuple[float, ...]
    dtype: str


def lazy_outputs(
    staged: Staged,
    arguments: Sequence[Any],
    row_chunks: Sequence[float],
    outlines: Sequence[Outline],
    name: str,
    names: Sequence[str],
) -> list[da.Array]:
    """Dask arrays for the outputs of a plan.

    Parameters
    ----------
    staged : Staged
    arguments : sequence of (dask Array or ndarray)
        Those with rows are dask arrays, cut along these alone and all alike; the others
        are arrays, or dask arrays of one chunk.
    row_chunks : sequence of (int or NaN)
        Rows of each block.
    outlines : sequence of Outline
        By output.
    name : str
        Begins the names of the tasks.
    names : sequence of str
        Of the arguments, for people.
    """
    builder = _Builder(staged, arguments, row_chunks, name, names)
    builder.add_stages()
    return [builder.output(k, outline) for k, outline in enumerate(outlines)]


class _Builder:
    def __init__(
        self,
        staged: Staged,
        arguments: Sequence[Any],
        row_chunks: Sequence[float],
        name: str,
        names: Sequence[str],
    ) -> None:
        self.token = tokenize(staged, list(arguments), tuple(row_chunks))
        self.staged = staged
        self.arguments = arguments
        self.row_chunks = tuple(row_chunks)
        self.name = name
        self.names = list(names)
        self.tasks: dict[Any, Any] = {}
        #: Where each value is: one key, or one by block.
        self.known: dict[int, Any] = {}
        self.of_blocks: dict[int, list[Any]] = {}
        for number, argument in enumerate(arguments):
            self._add_argument(number, argument, staged.row_axes[number])
        if staged.first_row is not None or staged.n_rows is not None:
            self._add_row_numbers()

    def _key(self, what: str) -> str:
        return f"{self.name}-{what}-{self.token}"

    def _add_argument(self, number: int, argument: Any, axis: int | None) -> None:
        if axis is not None:
            self.of_blocks[number] = _keys_along(argument, axis)
        elif isinstance(argument, da.Array):
            self.known[number] = (argument.name, *[0] * argument.ndim)
        # Copies: the owner of an array may go on writing to it.
        elif argument.nbytes > _LARGE:
            key = self._key(f"argument-{number}")
            self.tasks[key] = argument.copy()
            self.known[number] = key
        else:
            self.known[number] = argument.copy()

    def _add_row_numbers(self) -> None:
        """The number of each block's first row, and that of all rows."""
        blocks = range(len(self.row_chunks))
        starts: list[Any]
        n_rows: Any
        if not np.isnan(self.row_chunks).any():
            *starts, n_rows = _starts([int(length) for length in self.row_chunks])
        else:
            axes = {i: axis for i, axis in enumerate(self.staged.row_axes) if axis is not None}
            length = self._key("length")
            for b in blocks:
                own = [self.of_blocks[i][b] for i in axes]
                self.tasks[length, b] = (_length, own, list(axes.values()), b)
            ends = self._key("row-numbers")
            self.tasks[ends] = (_starts, [(length, b) for b in blocks])
            first, n_rows = self._key("first-row"), self._key("n-rows")
            if self.staged.first_row is not None:
                self.tasks.update({(first, b): (getitem, ends, b) for b in blocks})
            self.tasks[n_rows] = (getitem, ends, len(blocks))
            starts = [(first, b) for b in blocks]
        if self.staged.first_row is not None:
            self.of_blocks[self.staged.first_row] = starts
        if self.staged.n_rows is not None:
            self.known[self.staged.n_rows] = n_rows

    def add_stages(self) -> None:
        for number, (once, block) in enumerate(
            zip(self.staged.once, self.staged.block, strict=True)
        ):
            if once is not None:
                self._add_once(once, number)
            if block is not None:
                self._add_blocks(block, number)

    def _program(self, step: Step, what: str) -> Step | str:
        if len(step.source.payload) <= _LARGE_PROGRAM:
            return step
        key = self._key(f"program-{what}")
        self.tasks[key] = step
        return key

    def _add_once(self, step: Step, stage: int) -> None:
        program = self._program(step, f"once-{stage}")
        key = self._key(f"once-{stage}")
        self.tasks[key] = (run_step, program, *[self.known[i] for i in step.reads])
        self._add_values(key, step.writes, f"once-{stage}")

    def _add_values(self, source: str, numbers: Sequence[int], what: str) -> None:
        for place, number in enumerate(numbers):
            key = self._key(f"{what}-value-{number}")
            self.tasks[key] = (getitem, source, place)
            self.known[number] = key

    def _add_blocks(self, step: Step, stage: int) -> None:
        program = self._program(step, f"rows-{stage}")
        # One name for all stages: dask goes by the name to guess how long a task takes, and
        # one that it knows nothing of is half a second to it, worth moving rows for.
        name = self._key("rows")
        blocks = range(len(self.row_chunks))
        names = [self.names[i] if i < len(self.names) else "of rows" for i in step.reads]
        for b in blocks:
            reads = [
                self.of_blocks[i][b] if i in self.of_blocks else self.known[i]
                for i in step.reads
            ]
            known = not np.isnan(self.row_chunks[b])
            n_rows = int(self.row_chunks[b]) if known else None
            self.tasks[name, stage, b] = (run_block, program, b, n_rows, names, *reads)
        parts: list[Any] = [(name, stage, b) for b in blocks]
        combined = [k for k, verb in enumerate(step.verbs) if verb is not None]
        for k, number in enumerate(step.writes):
            if step.verbs[k] is None:
                kept = self._key(f"rows-{stage}-kept-{number}")
                for b in blocks:
                    self.tasks[kept, b] = (getitem, parts[b], k)
                self.of_blocks[number] = [(kept, b) for b in blocks]
        if not combined:
            return
        if len(combined) < len(step.verbs):  # rows stay: only the parts travel
            part = self._key(f"rows-{stage}-parts")
            for b in blocks:
                self.tasks[part, b] = (_pick, parts[b], combined)
            parts = [(part, b) for b in blocks]
        verbs = [step.verbs[k] for k in combined]
        key = self._add_tree(parts, verbs, stage)
        self._add_values(key, [step.writes[k] for k in combined], f"combine-{stage}")

    def _add_tree(self, parts: list[Any], verbs: list[Any], stage: int) -> Any:
        name = self._key(f"combine-{stage}")
        level = 0
        while level == 0 or len(parts) > 1:
            groups = [parts[i : i + FAN_IN] for i in range(0, len(parts), FAN_IN)]
            for j, group in enumerate(groups):
                self.tasks[name, level, j] = (combine_results, verbs, group)
            parts = [(name, level, j) for j in range(len(groups))]
            level += 1
        return parts[0]

    def output(self, k: int, outline: Outline) -> da.Array:
        number, axis = self.staged.outputs[k], self.staged.output_axes[k]
        if axis is not None and number < self.staged.n_arguments:
            rows: da.Array = self.arguments[number]
            return rows
        name = f"{self.name}-{k}-{self.token}"
        chunks: list[tuple[float, ...]] = [(length,) for length in outline.shape]
        place = [0] * len(chunks)
        if axis is None:
            tasks: dict[Any, Any] = {(name, *place): (whole_value, self.known[number])}
        else:
            chunks[axis] = self.row_chunks
            tasks = {}
            for b, block in enumerate(self.of_blocks[number]):
                place[axis] = b
                tasks[(name, *place)] = (_as_it_is, block)
        shared = self._key("steps")
        arrays: list[Any] = [a for a in self.arguments if isinstance(a, da.Array)]
        steps = HighLevelGraph.from_collections(shared, self.tasks, dependencies=arrays)
        layers = {**steps.layers, name: tasks}
        depends = {**steps.dependencies, name: {shared}}
        graph = HighLevelGraph(layers, depends)
        return da.Array(graph, name, tuple(chunks), dtype=outline.dtype)


def _keys_along(array: da.Array, axis: int) -> list[Any]:
    keys = []
    for b in range(array.numblocks[axis]):
        place = [0] * array.ndim
        place[axis] = b
        keys.append((array.name, *place))
    return keys


def _length(blocks: Sequence[Any], axes: Sequence[int], number: int) -> int:
    """Rows of a block of each argument, which dask did not know."""
    lengths = [int(block.shape[axis]) for block, axis in zip(blocks, axes, strict=True)]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"Inputs with rows have different lengths: their blocks {number} have {lengths} "
            "rows. Chunk sizes that dask does not know must agree block by block."
        )
    return lengths[0]


def _starts(lengths: Sequence[int]) -> list[np.ndarray]:
    """The number of each block's first row, and then that of all rows."""
    return [np.asarray(start, np.int64) for start in np.cumsum([0, *lengths])]


def _pick(results: Sequence[Any], places: Sequence[int]) -> list[Any]:
    return [results[place] for place in places]


def _as_it_is(value: Any) -> Any:
    return value
