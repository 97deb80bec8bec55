"""Shapes of outputs before anything is computed: the plan is run on a few rows, twice."""

import warnings
from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize

from skdtheano.engine import Variable
from skdtheano.runtime.lazy import Outline
from skdtheano.runtime.staged import Staged, run_here

#: Two numbers of rows and what they hold. A length that differs between them depends on the
#: number of the rows, or on values that are not known yet.
_PROBES = ((2, 0), (3, 1))


def outlines(
    staged: Staged, symbols: Sequence[Variable], arguments: Sequence[Any]
) -> list[Outline]:
    """What is known of each output.

    Parameters
    ----------
    staged : Staged
        In a mode that compiles at once.
    symbols : sequence of Variable
        The outputs, for their dtypes and ranks.
    arguments : sequence of (dask Array or ndarray)
    """
    unknown = [Outline((np.nan,) * symbol.ndim, symbol.dtype) for symbol in symbols]
    found = []
    for n_rows, fill in _PROBES:
        few = [
            _few(argument, axis, n_rows, fill)
            for argument, axis in zip(arguments, staged.row_axes, strict=True)
        ]
        if any(value is None for value in few):
            return unknown
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                found.append(run_here(staged, few, [n_rows]))
        except Exception:  # zeros may be no valid input, and then lengths stay unknown
            return unknown
    return [
        Outline(
            tuple(
                float("nan") if one != other else one
                for one, other in zip(first.shape, second.shape, strict=True)
            ),
            symbol.dtype,
        )
        for symbol, first, second in zip(symbols, *found, strict=True)
    ]


def _few(argument: Any, axis: int | None, n_rows: int, fill: int) -> Any:
    """A stand-in for an argument; None if its shape is not known."""
    if axis is None and not isinstance(argument, da.Array):
        if fill and argument.dtype.kind == "f":  # whose values are not in `shape_key`
            return argument * argument.dtype.type(1.5) + argument.dtype.type(1.5)
        return argument
    shape = list(argument.shape)
    if axis is not None:
        shape[axis] = n_rows
    if any(np.isnan(length) for length in shape):
        return None
    return np.full([int(length) for length in shape], fill, argument.dtype)


def shape_key(arguments: Sequence[Any], row_axes: Sequence[int | None]) -> tuple[Any, ...]:
    """What the outlines of a call depend on: shapes, and values that may be lengths.

    Floats are left out, as they change from call to call when something is fitted: a length
    that depends on one differs between the probes, and stays unknown.
    """
    key: list[Any] = []
    for argument, axis in zip(arguments, row_axes, strict=True):
        lengths = [length for i, length in enumerate(argument.shape) if i != axis]
        key.append((type(argument).__name__, str(lengths), str(argument.dtype)))
        if isinstance(argument, np.ndarray) and argument.dtype.kind in "iub":
            key.append(tokenize(argument))
    return tuple(key)
