"""Neighbouring steps on matrices as one loop over rows and columns.

Where NumPy takes four calls for a layer's intercepts and its relu, and five for the slopes and
their sum, each of which reads and writes the whole layer, loops that LLVM compiles take one
pass. They keep in memory only what a later step reads. The bits are NumPy's (see
`skdtheano.loops`): a sum over rows adds them one after another in both, and so does one over
few columns. But where the largest of a row is 0.0 and -0.0, NumPy takes the one or the other
by where they lie in memory, and the sign of a 0 that is made of it may differ. Where matrices
are stacked, of several models, the loop goes through these too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np

from skdtheano.loop_writer import Bound, LoopWriter, Unfit
from skdtheano.loops import INSTRUCTIONS, Loop, bound_loop
from skdtheano.numbering import (
    AND,
    COLUMN_SUM,
    FEW_COLUMNS,
    MASK,
    MASK_NOT,
    Call,
    Step,
)
from skdtheano.side_by_side import as_one

Find = Callable[[str], Loop | None]


class Calls(Protocol):
    """What makes calls of the arrays that values are in."""

    @property
    def values(self) -> set[int]:
        """Those whose arrays the calls read or write."""

    def calls(self, arrays: Mapping[int, np.ndarray]) -> list[Call]:
        """The calls, by the array of each value."""


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
    pointers, zeroed : sequence of int
        Values: of each of the loop's arguments, and of the sums.
    lengths : sequence of int
    """

    loop: Loop
    pointers: Sequence[int]
    zeroed: Sequence[int]
    lengths: Sequence[int]

    @property
    def values(self) -> set[int]:
        return {*self.pointers, *self.zeroed}

    def calls(self, arrays: Mapping[int, np.ndarray]) -> list[Call]:
        fills: list[Call] = [partial(arrays[value].fill, 0) for value in self.zeroed]
        given = [arrays[value] for value in self.pointers]
        return [*fills, bound_loop(self.loop, given, self.lengths)]


def separate(bound: Sequence[Bound]) -> list[Calls]:
    """What makes the calls of some steps, each by itself."""
    return [_StepCalls(one.step, one.scratch) for one in bound]


def fused(bound: Sequence[Bound], find: Find) -> list[Calls]:
    """The same with loops of neighbours, where one is found for their source."""
    parts: list[Calls] = []
    start = 0
    while start < len(bound):
        stop = _end_of_run(bound, start)
        loop = None
        if stop - start > 1:
            loop = _loop(bound[start:stop], find)
        if loop is not None:
            parts.append(loop)
        else:
            stop = max(stop, start + 1)
            parts += separate(bound[start:stop])
        start = stop
    return parts


def _end_of_run(bound: Sequence[Bound], start: int) -> int:
    """Where the steps from `start` on are no loop any more."""
    shape = bound[start].matrix
    for place in range(start, len(bound)):
        one = bound[place]
        operation = one.step.operation
        if operation is COLUMN_SUM and place > start:
            is_last = one.step.inputs[0] == bound[place - 1].step.output
            # A single column NumPy sums by pairs.
            return place + 1 if is_last and shape[-1] > 1 else place
        if len(shape) not in (2, 3) or one.matrix != shape:
            return place
        if one.reduces_rows:
            # Of one row, or of many columns, NumPy sums by pairs.
            if shape[-2] < 2 or not 1 < shape[-1] <= FEW_COLUMNS:
                return place
        elif operation not in _OPERATIONS:
            return place
    return len(bound)


_OPERATIONS = {
    *INSTRUCTIONS,
    np.less_equal,
    np.maximum,
    np.minimum,
    AND,
    MASK,
    MASK_NOT,
} - {np.sqrt}


def _as_of_one(bound: Sequence[Bound]) -> Sequence[Bound]:
    """Steps on matrices that lie side by side, as of one matrix: its rows are longer.

    As they are where some array does not lie so.
    """
    if len(bound[0].matrix) != 3 or any(one.reduces_rows for one in bound):
        return bound
    n_models, n, m = bound[0].matrix

    def flat(array: np.ndarray, of_columns: tuple[int, ...] = (n_models, 1, m)) -> np.ndarray:
        if array.size == 1 or array.shape == (n, 1):
            return array
        if array.shape == (n_models, n, m):
            made = as_one(array)
        elif array.shape == of_columns and array.flags.c_contiguous:
            made = array.reshape(-1)
        else:  # and a matrix that all models share is none with longer rows
            made = None
        if made is None:
            raise Unfit
        return made

    def target(one: Bound) -> np.ndarray:
        is_sum = one.step.operation is COLUMN_SUM
        return flat(one.target, (n_models, m)) if is_sum else flat(one.target)

    try:
        return [
            replace(one, arrays=[flat(array) for array in one.arrays], target=target(one))
            for one in bound
        ]
    except Unfit:
        return bound


def _loop(bound: Sequence[Bound], find: Find) -> _LoopCalls | None:
    try:
        written = LoopWriter(_as_of_one(bound))
    except Unfit:
        return None
    loop = find(written.source)
    if loop is None:
        return None
    return _LoopCalls(loop, written.pointers, written.zeroed, written.lengths)
