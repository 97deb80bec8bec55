"""Numbers for the values of a graph, and the steps that make them: what a recipe becomes.

Some values may be *stacked*: of several models, one after another along an axis in front of
those that the graph knows. Then all that depends on them is, and one call computes it for all
models; the rest is computed once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from skdtheano.recipe import Value

Shape = tuple[int, ...]
Call = Callable[[], object]

#: Rows of fewer columns are summed over a transposed copy: NumPy sets up a loop per row, and
#: over 10 columns that takes six times as long as the copy and one loop per column.
FEW_COLUMNS = 32

#: Operations that are no ufunc: bits set where a condition is met, or not; a bitwise product
#: with such bits; the sum of the rows of a matrix, one after another; the sum of each row's
#: entries, and the largest of them.
MASK, MASK_NOT, AND, COLUMN_SUM = "mask", "mask not", "and", "column sum"
ROW_SUM, ROW_MAX = "row sum", "row max"


@dataclass(frozen=True)
class Step:
    """One array made from others.

    Attributes
    ----------
    name : str
        Of the Op.
    inputs : tuple of int
        Numbers of the values that it reads.
    output : int
        Number of the value that it makes.
    dtype : str
        Of the output.
    shape : callable
        From the inputs' shapes to the output's.
    calls : callable
        From the inputs' arrays, the output's and a scratch array (None where not asked for)
        to the calls that fill the output.
    overwrites : tuple of int
        Places of the inputs whose array the output may be written into.
    operation : ufunc or str, optional
        What is called, if that is all, or the name of what is done.
    scratch : callable, optional
        From the inputs' shapes to dtype and shape of a scratch array, or None.
    side_by_side : bool
        Whether it is the product of one matrix and those of all models, which is one call
        where these lie side by side, and the results too.
    is_elementwise : bool
        Whether entries are made of those at the same place.
    """

    name: str
    inputs: tuple[int, ...]
    output: int
    dtype: str
    shape: Callable[..., Shape]
    calls: Callable[[Sequence[np.ndarray], np.ndarray, np.ndarray | None], list[Call]]
    overwrites: tuple[int, ...] = ()
    operation: np.ufunc | str | None = None
    scratch: Callable[..., tuple[str, Shape] | None] = lambda *shapes: None
    side_by_side: bool = False
    is_elementwise: bool = False


@dataclass(frozen=True)
class View:
    """Another look at an array: no memory and no time.

    Attributes
    ----------
    input, output : int
    look : callable
        From array to array.
    of_shape : bool
        Whether it depends on the shape of the input alone.
    """

    input: int
    output: int
    look: Callable[[np.ndarray], np.ndarray]
    of_shape: bool = False


class Numbering:
    """Numbers for the values of a graph, and the steps that make them, as they are added.

    Parameters
    ----------
    remakes : bool
        Whether steps will be loops, to which computing anew is less than memory.
    """

    def __init__(self, remakes: bool = False) -> None:
        self._remakes = remakes
        self._relus: dict[int, tuple[Step, int]] = {}
        self.steps: list[Step | View] = []
        self.constants: dict[int, np.ndarray] = {}
        self.stacked: set[int] = set()
        self._numbers: dict[int, int] = {}
        self._kept: dict[tuple[int, str, bool], int] = {}
        self._n = 0

    def new(self) -> int:
        self._n += 1
        return self._n - 1

    def of(self, value: Value) -> int:
        """The number of a symbol; a constant's value is noted."""
        number = self._numbers.get(value.number)
        if number is None:
            number = self._numbers[value.number] = self.new()
            if value.constant is not None:
                self.constants[number] = value.constant
        return number

    def add(self, step: Step | View) -> None:
        """Append a step; what it makes is stacked if anything that it reads is."""
        if isinstance(step, View):
            is_stacked = step.input in self.stacked and not step.of_shape
        else:
            is_stacked = not self.stacked.isdisjoint(step.inputs)
        if is_stacked:
            self.stacked.add(step.output)
        self.steps.append(step)

    def axes_in_front(self, value: Value) -> int:
        """1 if a value is stacked, else 0."""
        return int(self.of(value) in self.stacked)

    def typed(self, value: Value, dtype: str) -> int:
        """The number of a symbol, of a dtype if it is a constant.

        NumPy would compute with the dtype that the two have in common, and an integer's 64
        bits and float32 have float64.
        """
        if value.constant is None:
            return self.of(value)
        number = self.new()
        constant = value.constant.astype(dtype)
        self.constants[number] = constant.reshape(()) if constant.size == 1 else constant
        return number

    def note_relu(self, condition: int, value: int, result: int) -> None:
        """Note that `result` is `value`, and 0 where that is not greater: by `condition`."""
        for step in self.steps:
            if isinstance(step, Step) and step.output == condition:
                first, *limits = step.inputs
                limit = self.constants.get(limits[0]) if limits else None
                is_zero = limit is not None and not np.any(limit)
                if step.operation is np.less_equal and first == value and is_zero:
                    self._relus[condition] = step, result

    def condition(self, number: int) -> int:
        """The number of a condition; one of a relu is made once more, of what it has left.

        Where it is kept for the gradient a layer is written twice, and read twice later. In a
        loop it costs nothing.
        """
        if number not in self._relus or not self._remakes:
            return number
        step, result = self._relus[number]
        again = self.new()
        self.add(replace(step, inputs=(result, *step.inputs[1:]), output=again))
        return again

    def mask(self, condition: int, dtype: str, where: bool) -> int:
        """Integers of all bits set, of the size of `dtype`, where a condition is (not) met."""
        key = (condition, dtype, where)
        if key not in self._kept:
            bits = f"int{8 * np.dtype(dtype).itemsize}"
            output = self._kept[key] = self.new()
            self.add(
                Step(
                    "mask",
                    (condition,),
                    output,
                    bits,
                    lambda shape: shape,
                    partial(_mask_calls, where),
                    operation=MASK if where else MASK_NOT,
                    scratch=lambda shape: ("int8", shape),
                    is_elementwise=True,
                )
            )
        return self._kept[key]


def _mask_calls(
    where: bool, arrays: Sequence[np.ndarray], out: np.ndarray, scratch: np.ndarray | None
) -> list[Call]:
    condition = arrays[0].view(np.int8)
    assert scratch is not None
    if where:
        narrow = partial(np.negative, condition, out=scratch)
    else:
        narrow = partial(np.subtract, condition, np.int8(1), out=scratch)
    return [narrow, partial(np.copyto, out, scratch)]
