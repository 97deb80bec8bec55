"""Shapes of outputs before anything is computed: what each Op says of its outputs' lengths."""

from collections.abc import Sequence
from threading import Lock
from typing import Any

import dask.array as da
import numpy as np

from skdtheano import engine, symbolic
from skdtheano.engine import Variable
from skdtheano.runtime.lazy import Outline
from skdtheano.runtime.pieces import Source, source_of

#: Entries of a replicated argument that may hold lengths, as that of ``arange(n)``.
_MAX_ENTRIES = 10_000


class Outlines:
    """The shapes of a function's outputs, as functions of its arguments.

    A length is known if it follows from lengths that are known, and from whole numbers and
    bools that are given in memory. Lengths that depend on floats, or on what is lazy, are not
    known before these are.

    Parameters
    ----------
    inputs, outputs : sequence of Variable
    """

    def __init__(self, inputs: Sequence[Variable], outputs: Sequence[Variable]) -> None:
        self._dtypes = [variable.dtype for variable in outputs]
        self._lengths: list[_Length] = []
        #: By output and axis: which of the lengths it is; None if the engine does not know.
        self._places: list[list[int | None]] = [[None] * v.ndim for v in outputs]
        self._symbols: dict[tuple[int, int], Variable] = {}
        self._sources: dict[tuple[int, ...], Source] = {}
        self._lock = Lock()
        try:
            self._inputs, shapes = engine.shapes_of(inputs, outputs)
        except Exception:  # an Op of the user's own may say nothing, or raise
            return
        for place, lengths in enumerate(shapes):
            for axis, length in enumerate(lengths):
                self._places[place][axis] = len(self._lengths)
                self._lengths.append(self._read(length))

    def _read(self, length: Variable) -> "_Length":
        """A length over symbols for the inputs' lengths, and what it depends on."""
        numbers = {variable: i for i, variable in enumerate(self._inputs)}
        stand_ins: dict[Variable, Variable] = {}
        sizes: set[tuple[int, int]] = set()
        for node in symbolic.toposort([length], ()):
            kind = type(node.op).__name__
            if kind not in ("Shape", "Shape_i") or node.inputs[0] not in numbers:
                continue
            number = numbers[node.inputs[0]]
            axes = range(node.inputs[0].ndim) if kind == "Shape" else [int(node.op.i)]
            sizes.update((number, axis) for axis in axes)
            one = [self._size(number, axis) for axis in axes]
            stand_ins[node.outputs[0]] = engine.stacked(one) if kind == "Shape" else one[0]
        [cut] = symbolic.substituted([length], stand_ins)
        leaves = symbolic.leaves([cut], ())
        values = {i for variable, i in numbers.items() if variable in leaves}
        return _Length(cut, frozenset(sizes), frozenset(values))

    def _size(self, number: int, axis: int) -> Variable:
        key = (number, axis)
        return self._symbols.setdefault(
            key, engine.scalar(f"length_{number}_{axis}", dtype="int64")
        )

    def of(self, arguments: Sequence[Any]) -> list[Outline]:
        """What is known of each output.

        Parameters
        ----------
        arguments : sequence of (dask Array or ndarray)
        """
        known = tuple(
            place for place, length in enumerate(self._lengths) if length.follows(arguments)
        )
        lengths: dict[int | None, float] = dict(
            zip(known, self._computed(known, arguments), strict=True)
        )
        return [
            Outline(tuple(lengths.get(place, np.nan) for place in places), dtype)
            for places, dtype in zip(self._places, self._dtypes, strict=True)
        ]

    def _computed(self, known: tuple[int, ...], arguments: Sequence[Any]) -> list[float]:
        if not known:
            return []
        sizes = list(self._symbols)
        with self._lock:
            if known not in self._sources:
                self._sources[known] = source_of(
                    [*self._symbols.values(), *self._inputs],
                    [self._lengths[place].value for place in known],
                    engine.DEFAULT_MODE,
                    "lengths",
                )
            source = self._sources[known]
        given = [_as_length(arguments[i].shape[axis]) for i, axis in sizes]
        given += [v if isinstance(v, np.ndarray) else _nothing(v) for v in arguments]
        try:
            return [float(length) for length in source(*given)]
        except Exception:  # what the call itself will say, once it is computed
            return [np.nan] * len(known)


class _Length:
    """One length.

    Attributes
    ----------
    value : Variable
    sizes : frozenset of (int, int)
        The inputs and axes whose lengths it depends on.
    values : frozenset of int
        The inputs whose values it depends on.
    """

    def __init__(
        self, value: Variable, sizes: frozenset[tuple[int, int]], values: frozenset[int]
    ) -> None:
        self.value, self.sizes, self.values = value, sizes, values

    def follows(self, arguments: Sequence[Any]) -> bool:
        return not any(np.isnan(arguments[i].shape[axis]) for i, axis in self.sizes) and all(
            isinstance(arguments[i], np.ndarray)
            and arguments[i].dtype.kind in "iub"
            and arguments[i].size <= _MAX_ENTRIES
            for i in self.values
        )


def _as_length(length: float) -> np.ndarray:
    return np.asarray(-1 if np.isnan(length) else length, np.int64)


def _nothing(array: da.Array) -> np.ndarray:
    """In the place of what no length depends on."""
    return np.zeros((0,) * array.ndim, array.dtype)
