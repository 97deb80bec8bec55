"""The loop of neighbouring steps on matrices, in LLVM's language.

A run of elementwise steps is one pass over each row. Where a sum or the maximum of a row is
among them, what reads it needs another pass: a softmax's scores are shifted in the second one
by what the first has found. All passes of a row follow each other, while it is in the cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from skdtheano.loops import END_OF_MODEL, INSTRUCTIONS, TYPES
from skdtheano.numbering import AND, COLUMN_SUM, MASK, MASK_NOT, ROW_MAX, ROW_SUM, Step

#: How a loop's index goes into memory, by which axes of the matrix an operand has; where
#: there is one for each model, one after another; or where these are apart, as views are.
_INDEX = {(True, True): "%ij", (False, True): "%j", (True, False): "%i", (False, False): "0"}
_STACKED = {"%ij": "%kij", "%j": "%kj", "%i": "%ki", "0": "%k"}
_APART = {"%ij": "%pij", "%j": "%pj", "%i": "%pi", "0": "%kp"}

#: Which of two numbers to keep: {0} is how the first compares to the second then.
_CHOICES = {np.maximum: "olt", np.minimum: "ogt"}


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
    constant : sequence of bool
        Which of the arrays have the same values in every call.
    """

    step: Step
    arrays: Sequence[np.ndarray]
    target: np.ndarray
    scratch: np.ndarray | None
    number: int
    last_reader: int
    constant: Sequence[bool]

    @property
    def reduces_rows(self) -> bool:
        return self.step.operation in (ROW_SUM, ROW_MAX)

    @property
    def matrix(self) -> tuple[int, ...]:
        """The shape that the step goes through."""
        return (self.arrays[0] if self.reduces_rows else self.target).shape


class Unfit(Exception):
    """These steps are no loop."""


@dataclass
class _Pass:
    """One way through the columns of a row."""

    lines: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    #: Names, kinds and first values of what goes from column to column, and what it becomes.
    carried: list[tuple[str, str, str]] = field(default_factory=list)
    after: list[str] = field(default_factory=list)


class LoopWriter:
    """Writes the loop of a run of steps.

    Parameters
    ----------
    bound : sequence of Bound
        Whose matrices are of one shape.

    Attributes
    ----------
    source : str
        Of a function ``loop`` of pointers, and of the numbers of rows, of columns, of models,
        and of entries from one model to the next where these are apart.
    pointers : list of int
        The values that the pointers are to.
    zeroed : list of int
        Values that are sums, of columns, to which the loop adds.
    lengths : list of int

    Raises
    ------
    Unfit
        If there is no such loop.
    """

    def __init__(self, bound: Sequence[Bound]) -> None:
        self._bound = bound
        self._pointers: list[tuple[int, np.ndarray]] = []
        self.zeroed: list[int] = []
        self._read: list[tuple[np.ndarray, str]] = []
        self._written: list[tuple[np.ndarray, int]] = []
        #: By value: its name in this pass; its array, if it is in memory; and a row's result.
        self._made: dict[int, str] = {}
        self._stored: dict[int, np.ndarray] = {}
        self._results: list[tuple[np.ndarray, str]] = []
        *models, n, m = bound[0].matrix
        self._models, self._matrix = tuple(models), (n, m)
        self._apart: int | None = None
        self._passes = [_Pass()]
        self._pass_of = self._planned()
        for place in range(len(bound)):
            self._write(place)
        self._check_memory()
        self.source = self._text()
        self.pointers = [value for value, _ in self._pointers]
        self.lengths = [*self._matrix, *(self._models or [1]), self._apart or 0]

    def _planned(self) -> list[int]:
        """The pass of each step: after those whose results of rows it reads."""
        passes: list[int] = []
        reduced: list[tuple[np.ndarray, int]] = []
        for one in self._bound:
            number = passes[-1] if passes else 0
            for array in one.arrays:
                for result, made_in in reduced:
                    if np.may_share_memory(array, result):
                        number = max(number, made_in + 1)
            passes.append(number)
            if one.reduces_rows:
                reduced.append((one.target, number))
        return passes

    def _write(self, place: int) -> None:
        one, number = self._bound[place], self._pass_of[place]
        if number == len(self._passes):
            self._passes.append(_Pass())
            self._made = {}
        now = self._passes[number]
        kind, made = self._kind(one.target), f"%v{place}"
        operands = [self._operand(one, k, place) for k in range(len(one.arrays))]
        if one.step.operation is COLUMN_SUM:
            self._add_to_column(one, kind, operands[0], place)
        elif one.reduces_rows:
            self._reduce_row(one, kind, operands[0], place)
        else:
            self._compute(one, made, operands)
            self._made[one.step.output] = made
            if one.last_reader > self._bound[-1].number or self._is_read_later(place):
                self._store(one, kind, made, place, now)

    def _is_read_later(self, place: int) -> bool:
        value, number = self._bound[place].step.output, self._pass_of[place]
        return any(
            value in other.step.inputs and later > number
            for other, later in zip(self._bound, self._pass_of, strict=True)
        )

    def _store(self, one: Bound, kind: str, made: str, place: int, now: _Pass) -> None:
        pointer = self._pointer(one.step.output, one.target)
        index = self._index((True, True), one.target, 2, place)
        now.ends.append(f"%q{place} = getelementptr {kind}, ptr {pointer}, i64 {index}")
        if one.target.dtype == bool:
            now.ends.append(f"%b{place} = zext i1 {made} to i8")
            made = f"%b{place}"
        now.ends.append(f"store {kind} {made}, ptr %q{place}")
        self._written.append((one.target, self._pass_of[place]))
        self._stored[one.step.output] = one.target

    def _add_to_column(self, one: Bound, kind: str, value: str, place: int) -> None:
        pointer = self._pointer(one.step.output, one.target)
        index = self._index((False, True), one.target, 1, place)
        self.zeroed.append(one.step.output)
        self._passes[-1].ends += [
            f"%q{place} = getelementptr {kind}, ptr {pointer}, i64 {index}",
            f"%o{place} = load {kind}, ptr %q{place}",
            f"%s{place} = fadd {kind} %o{place}, {value}",
            f"store {kind} %s{place}, ptr %q{place}",
        ]
        self._written.append((one.target, self._pass_of[place]))

    def _reduce_row(self, one: Bound, kind: str, value: str, place: int) -> None:
        now, before, after = self._passes[-1], f"%a{place}", f"%n{place}"
        is_read_outside = one.last_reader > self._bound[-1].number
        if one.step.operation is ROW_SUM:
            first = "0.0"  # as NumPy: of entries that are all -0.0 the sum is 0.0
            now.lines.append(f"{after} = fadd {kind} {before}, {value}")
        else:
            if is_read_outside:
                # NumPy leaves the sign of a maximum that is 0 to where it lies in memory.
                raise Unfit
            first = "0xFFF0000000000000"  # -inf
            now.lines += [
                f"%c{place} = fcmp oge {kind} {before}, {value}",
                f"%u{place} = fcmp uno {kind} {before}, {before}",
                f"%w{place} = or i1 %c{place}, %u{place}",
                f"{after} = select i1 %w{place}, {kind} {before}, {kind} {value}",
            ]
        now.carried.append((f"{before} = phi {kind} [{first}, ", "], ", f"[{after}, "))
        self._results.append((one.target, after))
        if is_read_outside:
            pointer = self._pointer(one.step.output, one.target)
            index = self._index((True, False), one.target, 1, place)
            now.after += [
                f"%q{place} = getelementptr {kind}, ptr {pointer}, i64 {index}",
                f"store {kind} {after}, ptr %q{place}",
            ]
            self._written.append((one.target, self._pass_of[place]))

    def _kind(self, array: np.ndarray) -> str:
        kind = TYPES.get(array.dtype.name)
        if kind is None:
            raise Unfit
        return kind

    def _pointer(self, value: int, array: np.ndarray) -> str:
        """The argument that points to a value's array; one for all that begin there."""
        for place, (_, known) in enumerate(self._pointers):
            if known.ctypes.data == array.ctypes.data:
                return f"%x{place}"
        self._pointers.append((value, array))
        return f"%x{len(self._pointers) - 1}"

    def _index(
        self, axes: tuple[bool, bool], array: np.ndarray, n_axes: int, place: int
    ) -> str:
        """Where an array is read or written; it has at most `n_axes` for one model."""
        index, models = _INDEX[axes], array.shape[:-n_axes]
        of_one = array[0] if models else array
        if models not in ((), self._models) or not of_one.flags.c_contiguous:
            raise Unfit
        if models and models != (1,):
            if array.strides[0] == of_one.nbytes:
                index = _STACKED[index]
            else:
                apart = array.strides[0] // array.itemsize
                if self._apart not in (None, apart) or array.strides[0] % array.itemsize:
                    raise Unfit
                self._apart = apart
                index = _APART[index]
        return f"{index}.{self._pass_of[place]}" if "j" in index else index

    def _operand(self, one: Bound, k: int, place: int) -> str:
        value, array = one.step.inputs[k], one.arrays[k]
        if value in self._made:
            return self._made[value]
        for result, name in self._results:
            if np.may_share_memory(array, result):
                if array.shape != (*result.shape, 1) or array.dtype != result.dtype:
                    raise Unfit
                return name
        kind = self._kind(array)
        if kind == "i8":
            raise Unfit
        n, m = (1, 1, *array.shape)[-2:]
        if value not in self._stored and any(
            np.may_share_memory(array, other.target) for other in self._bound[:place]
        ):  # it is made here, and seen through a view
            raise Unfit
        is_whole = (n, m) == self._matrix
        index = self._index((is_whole or n != 1, is_whole or m != 1), array, 2, place)
        pointer = self._pointer(value, array)
        name = f"%l{place}.{k}"
        self._passes[-1].lines += [
            f"{name}.p = getelementptr {kind}, ptr {pointer}, i64 {index}",
            f"{name} = load {kind}, ptr {name}.p",
        ]
        self._read.append((array, index.split(".")[0]))
        return name

    def _compute(self, one: Bound, made: str, operands: list[str]) -> None:
        operation, kind = one.step.operation, self._kind(one.target)
        lines = self._passes[-1].lines
        if operation in (MASK, MASK_NOT):
            condition = operands[0]
            if operation is MASK_NOT:
                lines.append(f"{made}.n = xor i1 {condition}, true")
                condition = f"{made}.n"
            lines.append(f"{made} = sext i1 {condition} to {kind}")
        elif operation is AND:
            bits = "i" + str(8 * one.target.dtype.itemsize)
            mask, kept = operands
            lines += [
                f"{made}.b = bitcast {kind} {kept} to {bits}",
                f"{made}.a = and {bits} {made}.b, {mask}",
                f"{made} = bitcast {bits} {made}.a to {kind}",
            ]
        elif operation is np.less_equal:
            kind = self._kind(one.arrays[0])
            if len({array.dtype for array in one.arrays}) > 1:
                raise Unfit
            lines.append(f"{made} = fcmp ole {kind} {operands[0]}, {operands[1]}")
        elif {array.dtype for array in one.arrays} != {one.target.dtype}:
            raise Unfit
        elif operation in _CHOICES:
            limit = self._limit(one)
            other = operands[1 - limit]
            lines += [
                f"{made}.c = fcmp {_CHOICES[operation]} {kind} {other}, {operands[limit]}",
                f"{made} = select i1 {made}.c, {kind} {operands[limit]}, {kind} {other}",
            ]
        else:
            instruction = INSTRUCTIONS[operation]
            first, *others = operands
            for number, other in enumerate(others or [first], 1):
                into = made if number >= len(others) else f"{made}.{number}"
                lines.append(f"{into} = {instruction.format(kind, first, other)}")
                first = into

    @staticmethod
    def _limit(one: Bound) -> int:
        """Which operand is a constant that is not 0; of zeros NumPy gives back either."""
        for k, (array, is_constant) in enumerate(zip(one.arrays, one.constant, strict=True)):
            if is_constant and array.size == 1 and np.abs(array) > 0 and len(one.arrays) == 2:
                return k
        raise Unfit

    def _check_memory(self) -> None:
        """Nothing may be written before it has been read, as it is not in separate calls."""

        def in_place(target: np.ndarray, other: np.ndarray) -> bool:
            return (
                target.ctypes.data == other.ctypes.data
                and target.shape == other.shape
                and target.strides == other.strides
                and target.itemsize == other.itemsize
            )

        for i, (target, number) in enumerate(self._written):
            for other, before in self._written[:i]:
                if np.may_share_memory(target, other) and not (
                    before < number and in_place(target, other)
                ):
                    raise Unfit
            for array, index in self._read:
                is_same = index in ("%ij", "%kij", "%pij") and in_place(target, array)
                if np.may_share_memory(target, array) and not is_same:
                    raise Unfit

    def _text(self) -> str:
        arguments = ", ".join(f"ptr noalias %x{n}" for n in range(len(self._pointers)))
        lines = [
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
            "  br label %entry.0",
        ]
        before = "row"
        for number, one in enumerate(self._passes):
            entry, is_last = f"entry.{number}", number + 1 == len(self._passes)
            lines += [
                f"{entry}:",
                f"  %j.{number} = phi i64 [0, %{before}], [%next.j.{number}, %{entry}]",
                *(
                    f"  {first}%{before}{middle}{last}%{entry}]"
                    for first, middle, last in one.carried
                ),
                f"  %ij.{number} = add i64 %first, %j.{number}",
                f"  %kj.{number} = add i64 %km, %j.{number}",
                f"  %kij.{number} = add i64 %kfirst, %j.{number}",
                f"  %pj.{number} = add i64 %kp, %j.{number}",
                f"  %pij.{number} = add i64 %pfirst, %j.{number}",
                *(f"  {line}" for line in [*one.lines, *one.ends]),
                f"  %next.j.{number} = add i64 %j.{number}, 1",
                f"  %more.j.{number} = icmp slt i64 %next.j.{number}, %m",
                f"  br i1 %more.j.{number}, label %{entry}, label %after.{number}",
                f"after.{number}:",
                *(f"  {line}" for line in one.after),
                f"  br label %{'row.end' if is_last else f'entry.{number + 1}'}",
            ]
            before = f"after.{number}"
        lines += [
            "row.end:",
            "  %next.i = add i64 %i, 1",
            "  %more.i = icmp slt i64 %next.i, %n",
            "  br i1 %more.i, label %row, label %model.end",
            *END_OF_MODEL,
        ]
        return "\n".join(lines)
