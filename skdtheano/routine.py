"""A graph as a list of NumPy calls into arrays that were made before.

The compile mode ``NUMPY``: each node of a recipe, a graph as an engine has derived and
rewritten it, becomes a NumPy call that is bound, once per shape, to the arrays that it reads
and writes. There is nothing to compile, so the first call comes at once; a call allocates
nothing; and an array whose value is not needed any more is written over.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from skdtheano.fusing import Bound, fused_calls
from skdtheano.loops import loop_source
from skdtheano.numpy_steps import Call, Numbering, Step, View, add_node
from skdtheano.recipe import Recipe

#: Seconds of calls after which loops that are on the disk are loaded, and after which they are
#: compiled. The three of a layer and a softmax take 3.5 and 40 ms, and save a sixth.
_LOAD_AFTER, _COMPILE_AFTER = 0.01, 0.1

#: Bytes of an array's beginning: AVX-512 loads that cross a cache line take twice as long.
_ALIGNMENT = 64


@dataclass
class _Slot:
    """Memory for one value at a time."""

    memory: np.ndarray

    @property
    def nbytes(self) -> int:
        return len(self.memory)

    def array(self, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        return self.memory[: _nbytes(dtype, shape)].view(dtype).reshape(shape)


class Routine:
    """The calls of one graph; serves one thread at a time.

    Parameters
    ----------
    recipe : Recipe
    stacked : sequence of int
        Places of the inputs that are of several models, along an axis in front of their
        own. Outputs that depend on one have such an axis too.

    Raises
    ------
    NotImplementedError
        If an Op of the graph is none that NumPy computes; names it.
    """

    def __init__(self, recipe: Recipe, stacked: Sequence[int] = ()) -> None:
        self._numbers = numbers = Numbering()
        self._inputs = [numbers.of(value) for value in recipe.inputs]
        numbers.stacked.update(self._inputs[place] for place in stacked)
        for node in recipe.nodes:
            add_node(node, numbers)
        self._outputs = [numbers.of(value) for value in recipe.outputs]
        self._steps = numbers.steps
        self._constants = numbers.constants
        self._last_reader = self._last_readers()
        self._slots: list[_Slot] = []
        self._seconds = 0.0
        #: Whether neighbouring steps are loops where these are compiled, or in any case.
        self._loads = self._compiles = False
        #: Goes up when memory was replaced by more of it, or when calls have become loops:
        #: what was bound before still works, but keeps the old memory, or is slower.
        self.generation = 0

    def _last_readers(self) -> dict[int, int]:
        """The last step that reads each value, through views of it too."""
        self._base: dict[int, int] = {}
        last: dict[int, int] = {}
        for number, step in enumerate(self._steps):
            if isinstance(step, View):
                if not step.of_shape:
                    self._base[step.output] = self._base.get(step.input, step.input)
            else:
                last.update((self._base.get(value, value), number) for value in step.inputs)
        for value in self._outputs:  # a view of it is copied at the end
            last[self._base.get(value, value)] = len(self._steps)
        return last

    def loop_source(self, scalars: Sequence[int], in_place: Sequence[int]) -> str | None:
        """See `skdtheano.loops.loop_source`; inputs are told by their places."""
        return loop_source(
            self._numbers,
            self._inputs,
            self._outputs,
            [self._inputs[i] for i in scalars],
            [self._inputs[i] for i in in_place],
        )

    @property
    def n_steps(self) -> int:
        """NumPy calls are about as many."""
        return sum(isinstance(step, Step) for step in self._steps)

    @property
    def nbytes(self) -> int:
        """Bytes of memory for values between inputs and outputs."""
        return sum(slot.nbytes for slot in self._slots)

    def bind(
        self, inputs: Sequence[np.ndarray], out: Sequence[np.ndarray]
    ) -> Callable[[], None]:
        """The calls, bound to arrays: calling the result reads `inputs` and fills `out`.

        Parameters
        ----------
        inputs : sequence of ndarray
            Of the declared dtypes and ranks.
        out : sequence of ndarray
            Of the outputs' dtypes and shapes. One may be one of the inputs: it is written
            when nothing reads that input any more.
        """
        calls = _Binding(self, inputs, out).calls

        if self._compiles:

            def run() -> None:
                for call in calls:
                    call()

        else:

            def run() -> None:
                began = time.perf_counter()
                for call in calls:
                    call()
                self._note(time.perf_counter() - began)

        return run

    def _note(self, seconds: float) -> None:
        """Change to loops once that is small beside what has been waited for; same bits."""
        self._seconds += seconds
        if self._compiles:
            return
        if self._seconds > _COMPILE_AFTER:
            self._loads = self._compiles = True
        elif self._seconds > _LOAD_AFTER and not self._loads:
            self._loads = True
        else:
            return
        self.generation += 1

    def _slot(self, number: int, nbytes: int) -> _Slot:
        """Slot number `number`, of some bytes at least."""
        if number == len(self._slots):
            self._slots.append(_Slot(_aligned(nbytes)))
        elif self._slots[number].nbytes < nbytes:
            # An eighth more: other batches may have a few more rows.
            self._slots[number] = _Slot(_aligned(nbytes + nbytes // 8))
            self.generation += 1
        return self._slots[number]


class _Binding:
    """Gives each value of a routine an array, in the order of the steps."""

    def __init__(
        self, routine: Routine, inputs: Sequence[np.ndarray], out: Sequence[np.ndarray]
    ) -> None:
        self._routine = routine
        self._bound: list[Bound] = []
        self._arrays = dict(routine._constants)
        self._known = set(routine._constants)  # what depends on shapes alone
        self._arrays.update(zip(routine._inputs, inputs, strict=True))
        self._slot_of: dict[int, int] = {}
        #: Bytes of each slot that holds nothing which is still needed.
        self._free = {i: slot.nbytes for i, slot in enumerate(routine._slots)}
        self._free_after_loop: dict[int, int] = {}
        self._targets = self._direct_outputs(inputs, out)
        for number, step in enumerate(routine._steps):
            if isinstance(step, View):
                self._arrays[step.output] = step.look(self._arrays[step.input])
                if step.of_shape or step.input in self._known:
                    self._known.add(step.output)
            elif self._known.issuperset(step.inputs):
                self._compute(step)
            else:
                self._add(number, step)
        self.calls: list[Call] = []
        if routine._loads:
            self.calls += fused_calls(self._bound, routine._compiles)
        else:
            for bound in self._bound:
                self.calls += bound.calls
        for value, target in zip(routine._outputs, out, strict=True):
            if self._arrays[value] is not target:
                self.calls.append(_copy(target, self._arrays[value]))

    def _direct_outputs(
        self, inputs: Sequence[np.ndarray], out: Sequence[np.ndarray]
    ) -> dict[int, np.ndarray]:
        """Outputs that their step writes itself: where no later step reads what was there."""
        routine = self._routine
        made_at = {
            step.output: number
            for number, step in enumerate(routine._steps)
            if isinstance(step, Step)
        }
        direct: dict[int, np.ndarray] = {}
        for value, target in zip(routine._outputs, out, strict=True):
            if value not in made_at or value in direct:
                continue
            read_last = [
                routine._last_reader.get(number, -1)
                for number, array in zip(routine._inputs, inputs, strict=True)
                if array is target
            ]
            own = made_at[value]
            step = routine._steps[own]
            assert isinstance(step, Step)
            places = {i for i, v in enumerate(step.inputs) if self._arrays.get(v) is target}
            may_overwrite = bool(places) and places <= set(step.overwrites)
            if all(last < own or (last == own and may_overwrite) for last in read_last):
                direct[value] = target
        return direct

    def _compute(self, step: Step) -> None:
        """Compute what does not change while the shapes do not."""
        arrays = [self._arrays[value] for value in step.inputs]
        out = np.empty(step.shape(*(array.shape for array in arrays)), step.dtype)
        for call in step.calls(arrays, out, None):
            call()
        self._arrays[step.output] = out
        self._known.add(step.output)

    def _add(self, number: int, step: Step) -> None:
        if step.operation is None:
            self._free.update(self._free_after_loop)
            self._free_after_loop = {}
        arrays = [self._arrays[value] for value in step.inputs]
        shapes = [array.shape for array in arrays]
        shape = step.shape(*shapes)
        target = self._targets.get(step.output)
        if target is None:
            target = self._room(number, step, shape, arrays)
        elif target.shape != shape or target.dtype != _dtype_of(step.dtype):
            raise ValueError(
                f"The output of {step.name} has shape {shape} and dtype {step.dtype}, and is "
                f"to be written into {target.shape} of {target.dtype}."
            )
        self._arrays[step.output] = target
        scratch = None
        if (wanted := step.scratch(*shapes)) is not None:
            slot = self._take(_nbytes(*wanted))
            scratch = self._routine._slots[slot].array(*wanted)
            self._free[slot] = self._routine._slots[slot].nbytes
        last = self._routine._last_reader.get(
            self._routine._base.get(step.output, step.output), number
        )
        self._bound.append(
            Bound(step, arrays, target, step.calls(arrays, target, scratch), number, last)
        )
        for value in step.inputs:
            base = self._routine._base.get(value, value)
            if base in self._slot_of and self._routine._last_reader[base] == number:
                slot = self._slot_of.pop(base)
                # A loop reads a row or column of few entries until its last step.
                is_small = self._arrays[value].size < target.size
                free = self._free_after_loop if is_small else self._free
                free[slot] = self._routine._slots[slot].nbytes

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
                and self._routine._last_reader[value] == number
                and not self._is_seen_otherwise(value, step)
                and array.shape == shape
                and array.dtype == _dtype_of(step.dtype)
            ):
                self._slot_of[step.output] = self._slot_of.pop(value)
                return array
        slot = self._take(_nbytes(step.dtype, shape))
        self._slot_of[step.output] = slot
        return self._routine._slots[slot].array(step.dtype, shape)

    def _is_seen_otherwise(self, value: int, step: Step) -> bool:
        """Whether the step reads the value through a view, in another order, as well."""
        base = self._routine._base
        return any(base.get(other, other) == value != other for other in step.inputs)

    def _take(self, nbytes: int) -> int:
        """The smallest free slot of enough bytes, else the largest, else a new one."""
        enough = [slot for slot, size in self._free.items() if size >= nbytes]
        if enough:
            slot = min(enough, key=self._free.__getitem__)
        elif self._free:
            slot = max(self._free, key=self._free.__getitem__)
        else:
            slot = len(self._routine._slots)
        self._free.pop(slot, None)
        self._routine._slot(slot, nbytes)
        return slot


def _copy(target: np.ndarray, source: np.ndarray) -> Call:
    return lambda: np.copyto(target, source)


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * _dtype_of(dtype).itemsize


@cache
def _dtype_of(name: str) -> np.dtype:
    return np.dtype(name)


def _aligned(nbytes: int) -> np.ndarray:
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + nbytes]
