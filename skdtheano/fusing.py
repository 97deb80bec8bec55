"""Neighbouring elementwise steps on matrices as one loop over rows and columns.

Where NumPy takes four calls for a layer's intercepts, its relu and the mask of its gradient,
each of which reads and writes the whole layer, one loop that LLVM compiles takes one pass. It
keeps in memory only what a later step reads. The bits are NumPy's: see `skdtheano.loops`; a
sum over rows adds them one after another in both. Where matrices are stacked, of several
models, the loop goes through these too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from skdtheano.loops import INSTRUCTIONS, TYPES, Loop, bound_loop, compiled_loop, is_compiled
from skdtheano.numpy_steps import AND, COLUMN_SUM, MASK, MASK_NOT, Call, Step

#: How a loop's index goes into memory, by which axes of the matrix an operand has; where
#: there is one for each model, one after another; or where these are apart, as views are.
_INDEX = {(True, True): "%ij", (False, True): "%j", (True, False): "%i", (False, False): "0"}
_STACKED = {"%ij": "%kij", "%j": "%kj", "%i": "%ki", "0": "%k"}
_APART = {"%ij": "%pij", "%j": "%pj", "%i": "%pi", "0": "%kp"}


class Calls(Protocol):
    """What makes calls of the arrays that values are in."""

    @property
    def values(self) -> set[int]:
        """Those whose arrays the calls read or write."""

    def calls(self, arrays: Mapping[int, np.ndarray]) -> list[Call]:
        """The calls, by the array of each value."""


@dataclass(frozen=True)
class Bound:
    """A step with its arrays.

    Attributes
    ----------
    step : Step
    arrays : sequence of ndarray
    target : ndarray
    scratch : ndarray or None
    number, last_reader : int
        Of this step, and of the last one that reads what it makes.
    """

    step: Step
    arrays: Sequence[np.ndarray]
    target: np.ndarray
    scratch: np.ndarray | None
    number: int
    last_reader: int


@dataclass(frozen=True)
class _StepCalls:
    """What NumPy does for a step."""

    step: Step
    scratch: np.ndarray | None

    @property
    def values(self) -> set[int]:
        return {*self.step.inputs, self.step.output}

    def calls(self, arrays: Mapping[int, np.ndarray]) -> list[Call]:
        given = [arrays[value] for value in self.step.inputs]
        return self.step.calls(given, arrays[self.step.output], self.scratch)


@dataclass(frozen=True)
class _LoopCalls:
    """A loop, after the sums that it adds to are set to 0.

    Attributes
    ----------
    loop : callable
    pointers, sums : sequence of int
        Values: of each of the loop's arguments, and of the sums.
    lengths : sequence of int
    """

    loop: Loop
    pointers: Sequence[int]
    sums: Sequence[int]
    lengths: Sequence[int]

    @property
    def values(self) -> set[int]:
        return {*self.pointers, *self.sums}

    def calls(self, arrays: Mapping[int, np.ndarray]) -> list[Call]:
        fills: list[Call] = [partial(arrays[value].fill, 0) for value in self.sums]
        given = [arrays[value] for value in self.pointers]
        return [*fills, bound_loop(self.loop, given, self.lengths)]


def separate(bound: Sequence[Bound]) -> list[Calls]:
    """What makes the calls of some steps, each by itself."""
    return [_StepCalls(one.step, one.scratch) for one in bound]


def fused(bound: Sequence[Bound], may_compile: bool) -> list[Calls]:
    """The same with loops of neighbours, where these are compiled, or may be."""
    parts: list[Calls] = []
    start = 0
    while start < len(bound):
        stop = _end_of_run(bound, start)
        loop = None
        if stop - start > 1:
            loop = _Writer(bound[start:stop]).loop(may_compile)
        if loop is not None:
            parts.append(loop)
        else:
            stop = max(stop, start + 1)
            parts += separate(bound[start:stop])
        start = stop
    return parts


def _end_of_run(bound: Sequence[Bound], start: int) -> int:
    """Where the steps from `start` on are no loop any more."""
    shape = bound[start].target.shape
    for place in range(start, len(bound)):
        one = bound[place]
        operation = one.step.operation
        if operation is COLUMN_SUM and place > start:
            is_last = one.step.inputs[0] == bound[place - 1].step.output
            # A single column NumPy sums by pairs.
            return place + 1 if is_last and shape[-1] > 1 else place
        if operation not in _OPERATIONS or one.target.shape != shape:
            return place
        if len(shape) not in (2, 3):
            return place
    return len(bound)


_OPERATIONS = {*INSTRUCTIONS, np.less_equal, AND, MASK, MASK_NOT} - {np.sqrt}


class _Unfit(Exception):
    """These steps are no loop."""


class _Writer:
    """Writes the loop of a run of steps."""

    def __init__(self, bound: Sequence[Bound]) -> None:
        self._bound = bound
        self._lines: list[str] = []
        self._pointers: list[tuple[int, np.ndarray]] = []
        self._sums: list[int] = []
        self._read: list[tuple[np.ndarray, str]] = []
        self._made: dict[int, str] = {}
        *models, n, m = bound[0].target.shape
        self._models, self._matrix = tuple(models), (n, m)
        self._apart: int | None = None

    def loop(self, may_compile: bool) -> _LoopCalls | None:
        try:
            source = self._source()
        except _Unfit:
            return None
        if not may_compile and not is_compiled(source):
            return None
        loop = compiled_loop(source)
        if loop is None:
            return None
        lengths = [*self._matrix, *(self._models or [1]), self._apart or 0]
        return _LoopCalls(loop, [value for value, _ in self._pointers], self._sums, lengths)

    def _source(self) -> str:
        last = self._bound[-1].number
        written: list[np.ndarray] = []
        ends: list[str] = []
        for place, one in enumerate(self._bound):
            kind = self._kind(one.target)
            made = f"%v{place}"
            if one.step.operation is COLUMN_SUM:
                value = self._operand(one, 0, place)
                pointer = self._pointer(one.step.output, one.target)
                index = self._index((False, True), one.target, 1)
                self._sums.append(one.step.output)
                ends += [
                    f"%q{place} = getelementptr {kind}, ptr {pointer}, i64 {index}",
                    f"%o{place} = load {kind}, ptr %q{place}",
                    f"%s{place} = fadd {kind} %o{place}, {value}",
                    f"store {kind} %s{place}, ptr %q{place}",
                ]
                written.append(one.target)
                continue
            operands = [self._operand(one, k, place) for k in range(len(one.arrays))]
            self._compute(one, made, operands)
            self._made[one.step.output] = made
            if one.last_reader > last:
                pointer = self._pointer(one.step.output, one.target)
                index = self._index((True, True), one.target, 2)
                ends.append(f"%q{place} = getelementptr {kind}, ptr {pointer}, i64 {index}")
                if one.target.dtype == bool:
                    ends.append(f"%b{place} = zext i1 {made} to i8")
                    made = f"%b{place}"
                ends.append(f"store {kind} {made}, ptr %q{place}")
                written.append(one.target)
        self._check_memory(written)
        return self._text(ends)

    def _kind(self, array: np.ndarray) -> str:
        kind = TYPES.get(array.dtype.name)
        if kind is None:
            raise _Unfit
        return kind

    def _pointer(self, value: int, array: np.ndarray) -> str:
        """The argument that points to a value's array; one for all that begin there."""
        for place, (_, known) in enumerate(self._pointers):
            if known.ctypes.data == array.ctypes.data:
                return f"%x{place}"
        self._pointers.append((value, array))
        return f"%x{len(self._pointers) - 1}"

    def _index(self, axes: tuple[bool, bool], array: np.ndarray, n_axes: int) -> str:
        """Where an array is read or written; it has at most `n_axes` for one model."""
        index, models = _INDEX[axes], array.shape[:-n_axes]
        of_one = array[0] if models else array
        if models not in ((), self._models) or not of_one.flags.c_contiguous:
            raise _Unfit
        if not models or models == (1,):
            return index
        if array.strides[0] == of_one.nbytes:
            return _STACKED[index]
        apart = array.strides[0] // array.itemsize
        if self._apart not in (None, apart) or array.strides[0] % array.itemsize:
            raise _Unfit
        self._apart = apart
        return _APART[index]

    def _operand(self, one: Bound, k: int, place: int) -> str:
        made = self._made.get(one.step.inputs[k])
        if made is not None:
            return made
        array = one.arrays[k]
        kind = self._kind(array)
        if kind == "i8":
            raise _Unfit
        n, m = (1, 1, *array.shape)[-2:]
        is_made_here = any(
            np.may_share_memory(array, other.target) for other in self._bound[:place]
        )
        if is_made_here:  # and is seen through a view
            raise _Unfit
        is_whole = (n, m) == self._matrix
        index = self._index((is_whole or n != 1, is_whole or m != 1), array, 2)
        pointer = self._pointer(one.step.inputs[k], array)
        name = f"%l{place}.{k}"
        self._lines += [
            f"{name}.p = getelementptr {kind}, ptr {pointer}, i64 {index}",
            f"{name} = load {kind}, ptr {name}.p",
        ]
        self._read.append((array, index))
        return name

    def _compute(self, one: Bound, made: str, operands: list[str]) -> None:
        operation, kind = one.step.operation, self._kind(one.target)
        if operation in (MASK, MASK_NOT):
            condition = operands[0]
            if operation is MASK_NOT:
                self._lines.append(f"{made}.n = xor i1 {condition}, true")
                condition = f"{made}.n"
            self._lines.append(f"{made} = sext i1 {condition} to {kind}")
        elif operation is AND:
            bits = "i" + str(8 * one.target.dtype.itemsize)
            mask, kept = operands
            self._lines += [
                f"{made}.b = bitcast {kind} {kept} to {bits}",
                f"{made}.a = and {bits} {made}.b, {mask}",
                f"{made} = bitcast {bits} {made}.a to {kind}",
            ]
        elif operation is np.less_equal:
            kind = self._kind(one.arrays[0])
            if len({array.dtype for array in one.arrays}) > 1:
                raise _Unfit
            self._lines.append(f"{made} = fcmp ole {kind} {operands[0]}, {operands[1]}")
        else:
            if {array.dtype for array in one.arrays} != {one.target.dtype}:
                raise _Unfit
            instruction = INSTRUCTIONS[operation]
            first, *others = operands
            for number, other in enumerate(others or [first], 1):
                into = made if number >= len(others) else f"{made}.{number}"
                self._lines.append(f"{into} = {instruction.format(kind, first, other)}")
                first = into

    def _check_memory(self, written: Sequence[np.ndarray]) -> None:
        """Nothing may be written before it has been read, as it is not in separate calls."""
        for i, target in enumerate(written):
            for other in written[:i]:
                if np.may_share_memory(target, other):
                    raise _Unfit
            for array, index in self._read:
                same_places = (
                    index in ("%ij", "%kij", "%pij")
                    and target.ctypes.data == array.ctypes.data
                    and target.shape == array.shape
                    and target.strides == array.strides
                    and target.itemsize == array.itemsize
                )
                if np.may_share_memory(target, array) and not same_places:
                    raise _Unfit

    def _text(self, ends: list[str]) -> str:
        arguments = ", ".join(f"ptr noalias %x{n}" for n in range(len(self._pointers)))
        return "\n".join(
            [
                f"define void @loop({arguments}, i64 %n, i64 %m, i64 %l, i64 %p) {{",
                "start:",
                "  %some.i = icmp sgt i64 %n, 0",
                "  %some.j = icmp sgt i64 %m, 0",
                "  %some.ij = and i1 %some.i, %some.j",
                "  %some.k = icmp sgt i64 %l, 0",
                "  %some = and i1 %some.ij, %some.k",
                "  br i1 %some, label %model, label %end",
                "model:",
                "  %k = phi i64 [0, %start], [%next.k, %model.end]",
                "  %kn = mul i64 %k, %n",
                "  %km = mul i64 %k, %m",
                "  %kp = mul i64 %k, %p",
                "  br label %row",
                "row:",
                "  %i = phi i64 [0, %model], [%next.i, %row.end]",
                "  %first = mul i64 %i, %m",
                "  %ki = add i64 %kn, %i",
                "  %kfirst = mul i64 %ki, %m",
                "  %pi = add i64 %kp, %i",
                "  %pfirst = add i64 %kp, %first",
                "  br label %entry",
                "entry:",
                "  %j = phi i64 [0, %row], [%next.j, %entry]",
                "  %ij = add i64 %first, %j",
                "  %kj = add i64 %km, %j",
                "  %kij = add i64 %kfirst, %j",
                "  %pj = add i64 %kp, %j",
                "  %pij = add i64 %pfirst, %j",
                *(f"  {line}" for line in [*self._lines, *ends]),
                "  %next.j = add i64 %j, 1",
                "  %more.j = icmp slt i64 %next.j, %m",
                "  br i1 %more.j, label %entry, label %row.end",
                "row.end:",
                "  %next.i = add i64 %i, 1",
                "  %more.i = icmp slt i64 %next.i, %n",
                "  br i1 %more.i, label %row, label %model.end",
                "model.end:",
                "  %next.k = add i64 %k, 1",
                "  %more.k = icmp slt i64 %next.k, %l",
                "  br i1 %more.k, label %model, label %end",
                "end:",
                "  ret void",
                "}",
                "",
            ]
        )
