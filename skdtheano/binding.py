"""Which array each value of a graph is in, and the calls that compute it there.

A *plan* holds for arrays of certain shapes: those of the caller, and the memory of a routine
for what is between them. With other arrays of the same shapes only the calls that touch these
are made anew: a training has several gradients in turn, and other arrays in each round.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import permutations
from operator import itemgetter

import numpy as np

from skdtheano.fusing import Calls, Find, fused, separate
from skdtheano.loop_writer import Bound
from skdtheano.memory import Memory, dtype_of, nbytes_of
from skdtheano.numbering import Call, Step, View
from skdtheano.side_by_side import lie_side_by_side, side_by_side


class Graph:
    """Steps, and who reads what they make.

    Parameters
    ----------
    inputs, outputs : sequence of int
        Numbers of values.
    steps : sequence of Step or View
    constants : dict of int to ndarray

    Attributes
    ----------
    base : dict of int to int
        The value that each view looks at.
    last_reader : dict of int to int
        The last step that reads each value, through views of it too.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        steps: Sequence[Step | View],
        constants: Mapping[int, np.ndarray],
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.steps, self.constants = steps, constants
        self.base: dict[int, int] = {}
        self.last_reader: dict[int, int] = {}
        for number, step in enumerate(steps):
            if isinstance(step, View):
                if not step.of_shape:
                    self.base[step.output] = self.base.get(step.input, step.input)
            else:
                for value in step.inputs:
                    self.last_reader[self.base.get(value, value)] = number
        for value in outputs:  # a view of it is copied at the end
            self.last_reader[self.base.get(value, value)] = len(steps)


class Plan:
    """The calls of a graph for arrays of certain shapes.

    Parameters
    ----------
    graph : Graph
    memory : Memory
    inputs, out : sequence of ndarray
        Arrays of the shapes that the plan is for.
    find : callable, optional
        From the source of a loop to a loop, or None: neighbouring steps become one then.
    """

    def __init__(
        self,
        graph: Graph,
        memory: Memory,
        inputs: Sequence[np.ndarray],
        out: Sequence[np.ndarray],
        find: Find | None,
    ) -> None:
        planner = _Planner(graph, memory, inputs, out)
        self._graph = graph
        self._direct = {
            value: place
            for value, target in planner.targets.items()
            for place, array in enumerate(out)
            if array is target and planner.arrays[value] is target
        }
        given = {*graph.inputs, *self._direct}
        self._views: list[View] = []
        for step in graph.steps:
            if isinstance(step, View) and not step.of_shape and step.input in given:
                self._views.append(step)
                given.add(step.output)
        self._own = {k: array for k, array in planner.arrays.items() if k not in given}
        parts = separate(planner.bound) if find is None else fused(planner.bound, find)
        #: Calls, or what makes them where they touch what is given.
        self._parts: list[list[Call] | Calls] = [
            part if part.values & given else part.calls(planner.arrays) for part in parts
        ]

    def calls(self, inputs: Sequence[np.ndarray], out: Sequence[np.ndarray]) -> list[Call]:
        """The calls that read `inputs` and fill `out`, which are as those of the plan."""
        graph = self._graph
        arrays = {**self._own, **dict(zip(graph.inputs, inputs, strict=True))}
        arrays.update((value, out[place]) for value, place in self._direct.items())
        for view in self._views:
            arrays[view.output] = view.look(arrays[view.input])
        calls: list[Call] = []
        for part in self._parts:
            calls += part if isinstance(part, list) else part.calls(arrays)
        copies: list[tuple[bool, Call]] = [
            (value in self._own, partial(np.copyto, target, arrays[value]))
            for value, target in zip(graph.outputs, out, strict=True)
            if arrays[value] is not target
        ]
        # First what was given, which another copy may write over.
        return calls + [copy for is_own, copy in sorted(copies, key=itemgetter(0))]


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are of the same memory, entry by entry; as `pattern` sees it."""
    return one is other or (
        one.shape == other.shape
        and one.strides == other.strides
        and one.__array_interface__["data"] == other.__array_interface__["data"]
    )


def pattern(arrays: Sequence[np.ndarray]) -> tuple[object, ...]:
    """Equal for arrays that one plan serves: of the same dtypes, shapes and strides.

    And those that begin at one place have to do so again.
    """
    first: dict[int, int] = {}
    return tuple(
        (
            array.dtype,
            array.shape,
            array.strides,
            first.setdefault(array.__array_interface__["data"][0], place),
        )
        for place, array in enumerate(arrays)
    )


class _Planner:
    """Gives each value of a graph an array, in the order of the steps."""

    def __init__(
        self,
        graph: Graph,
        memory: Memory,
        inputs: Sequence[np.ndarray],
        out: Sequence[np.ndarray],
    ) -> None:
        self._graph, self._memory = graph, memory
        self.bound: list[Bound] = []
        self.arrays = dict(graph.constants)
        self._known = set(graph.constants)  # what depends on shapes alone
        self.arrays.update(zip(graph.inputs, inputs, strict=True))
        self._slot_of: dict[int, int] = {}
        #: Bytes of each slot that holds nothing which is still needed.
        self._free = {slot: memory.size_of(slot) for slot in range(len(memory))}
        self._free_after_loop: dict[int, int] = {}
        self.targets = self._direct_outputs(inputs, out)
        self._wide = self._side_by_side()
        for number, step in enumerate(graph.steps):
            if isinstance(step, View):
                self.arrays[step.output] = step.look(self.arrays[step.input])
                if step.of_shape or step.input in self._known:
                    self._known.add(step.output)
            elif self._known.issuperset(step.inputs):
                self._compute(step)
            else:
                self._add(number, step)

    def _direct_outputs(
        self, inputs: Sequence[np.ndarray], out: Sequence[np.ndarray]
    ) -> dict[int, np.ndarray]:
        """Outputs that their step writes itself: where no later step reads what was there."""
        graph = self._graph
        made_at = {
            step.output: number
            for number, step in enumerate(graph.steps)
            if isinstance(step, Step)
        }
        direct: dict[int, np.ndarray] = {}
        for value, target in zip(graph.outputs, out, strict=True):
            if value not in made_at or value in direct:
                continue
            read_last = [
                graph.last_reader.get(number, -1)
                for number, array in zip(graph.inputs, inputs, strict=True)
                if _is_same(array, target)
            ]
            own = made_at[value]
            step = graph.steps[own]
            assert isinstance(step, Step)
            places = {
                i
                for i, v in enumerate(step.inputs)
                if v in self.arrays and _is_same(self.arrays[v], target)
            }
            may_overwrite = bool(places) and places <= set(step.overwrites)
            if all(last < own or (last == own and may_overwrite) for last in read_last):
                direct[value] = target
        return direct

    def _side_by_side(self) -> set[int]:
        """Values that are to lie side by side, as the other matrix of their product does."""
        given = {**self.arrays, **self.targets}
        steps = [step for step in self._graph.steps if isinstance(step, Step)]
        wide = {
            other
            for step in steps
            if step.side_by_side
            for one, other in permutations((step.inputs[1], step.output))
            if one in given and lie_side_by_side(given[one])
        }
        if wide:  # and with them what is made of them, or they of it, entry by entry
            for these in (steps, reversed(steps)):
                for step in these:
                    values = {*step.inputs, step.output}
                    if step.is_elementwise and not wide.isdisjoint(values):
                        wide |= values
        return wide

    def _compute(self, step: Step) -> None:
        """Compute what does not change while the shapes do not."""
        arrays = [self.arrays[value] for value in step.inputs]
        out = np.empty(step.shape(*(array.shape for array in arrays)), step.dtype)
        for call in step.calls(arrays, out, None):
            call()
        self.arrays[step.output] = out
        self._known.add(step.output)

    def _add(self, number: int, step: Step) -> None:
        if step.operation is None:
            self._free.update(self._free_after_loop)
            self._free_after_loop = {}
        arrays = [self.arrays[value] for value in step.inputs]
        shapes = [array.shape for array in arrays]
        shape = step.shape(*shapes)
        target = self.targets.get(step.output)
        if target is None:
            target = self._room(number, step, shape, arrays)
        elif target.shape != shape or target.dtype != dtype_of(step.dtype):
            raise ValueError(
                f"The output of {step.name} has shape {shape} and dtype {step.dtype}, and is "
                f"to be written into {target.shape} of {target.dtype}."
            )
        self.arrays[step.output] = target
        scratch = None
        if (wanted := step.scratch(*shapes)) is not None:
            slot = self._take(nbytes_of(*wanted))
            scratch = self._memory.array(slot, *wanted)
            self._free[slot] = self._memory.size_of(slot)
        last = self._graph.last_reader.get(
            self._graph.base.get(step.output, step.output), number
        )
        constant = [value in self._known for value in step.inputs]
        self.bound.append(Bound(step, arrays, target, scratch, number, last, constant))
        for value in step.inputs:
            base = self._graph.base.get(value, value)
            if base in self._slot_of and self._graph.last_reader[base] == number:
                slot = self._slot_of.pop(base)
                # A loop reads a row or column of few entries until its last step.
                is_small = self.arrays[value].size < target.size
                free = self._free_after_loop if is_small else self._free
                free[slot] = self._memory.size_of(slot)

    def _room(
        self,
        number: int,
        step: Step,
        shape: tuple[int, ...],
        arrays: Sequence[np.ndarray],
    ) -> np.ndarray:
        for place in step.overwrites:
            value, array = step.inputs[place], arrays[place]
            if (
                value in self._slot_of  # and so no view, no input and no output
                and self._graph.last_reader[value] == number
                and not self._is_seen_otherwise(value, step)
                and array.shape == shape
                and array.dtype == dtype_of(step.dtype)
                and (step.output not in self._wide or lie_side_by_side(array))
            ):
                self._slot_of[step.output] = self._slot_of.pop(value)
                return array
        slot = self._take(nbytes_of(step.dtype, shape))
        self._slot_of[step.output] = slot
        if step.output in self._wide and len(shape) == 3:
            n_models, n, m = shape
            return side_by_side(
                self._memory.array(slot, step.dtype, (n, n_models * m)), n_models
            )
        return self._memory.array(slot, step.dtype, shape)

    def _is_seen_otherwise(self, value: int, step: Step) -> bool:
        """Whether the step reads the value through a view, in another order, as well."""
        base = self._graph.base
        return any(base.get(other, other) == value != other for other in step.inputs)

    def _take(self, nbytes: int) -> int:
        """The smallest free slot of enough bytes, else the largest, else a new one."""
        enough = [slot for slot, size in self._free.items() if size >= nbytes]
        if enough:
            slot = min(enough, key=self._free.__getitem__)
        elif self._free:
            slot = max(self._free, key=self._free.__getitem__)
        else:
            slot = len(self._memory)
        self._free.pop(slot, None)
        self._memory.make_room(slot, nbytes)
        return slot
