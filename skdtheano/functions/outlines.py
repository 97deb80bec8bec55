"""Shapes of outputs before anything is computed: the plan is run on a few rows of zeros."""

import warnings
from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np

from skdtheano.engine import Variable
from skdtheano.runtime.lazy import Outline
from skdtheano.runtime.staged import Staged, run_here

#: Two numbers of rows: a length that differs between them depends on the rows.
_PROBES = (2, 3)


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
    for n_rows in _PROBES:
        few = [
            _few(argument, axis, n_rows)
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


def _few(argument: Any, axis: int | None, n_rows: int) -> Any:
    if axis is None and not isinstance(argument, da.Array):
        return argument
    shape = list(argument.shape)
    if axis is not None:
        shape[axis] = n_rows
    if any(np.isnan(length) for length in shape):
        return None
    return np.zeros([int(length) for length in shape], argument.dtype)


def shape_key(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """What the outlines of a call depend on: shapes, and the values that may be shapes."""
    key: list[Any] = []
    for argument in arguments:
        key.append((type(argument).__name__, str(argument.shape[1:]), str(argument.dtype)))
        if isinstance(argument, np.ndarray):
            key.append(argument.shape)
            if argument.dtype.kind in "iub" and argument.size <= 64:
                key.append(argument.tobytes())
    return tuple(key)
