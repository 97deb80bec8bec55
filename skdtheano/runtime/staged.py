"""A plan, ready to run: its pieces packed for other processes, its symbols numbered."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from skdtheano.runtime.combining import Verb, combine, of_no_rows
from skdtheano.runtime.pieces import Source


@dataclass(frozen=True)
class Step:
    """One piece.

    Attributes
    ----------
    source : Source
    reads : tuple of int
        Numbers of the values that it is called with.
    writes : tuple of int
        Numbers of its results.
    verbs : tuple of (Verb or None)
        How to combine each result over the blocks.
    read_axes, write_axes : tuple of (int or None)
        The axis of the rows of each value; None for those without.
    read_dtypes : tuple of str
    """

    source: Source
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    verbs: tuple[Verb | None, ...]
    read_axes: tuple[int | None, ...]
    write_axes: tuple[int | None, ...]
    read_dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Staged:
    """Steps by stage; values are numbered, the arguments first.

    Attributes
    ----------
    once, block : tuple of (Step or None), one per stage
    n_arguments : int
    row_axes : tuple of (int or None)
        Of the arguments.
    first_row : int or None
        Number of the value that is the block's first row in the table.
    n_rows : int or None
        Number of the value that is the number of rows of the table.
    outputs : tuple of int
    output_axes : tuple of (int or None)
    """

    once: tuple[Step | None, ...]
    block: tuple[Step | None, ...]
    n_arguments: int
    row_axes: tuple[int | None, ...]
    first_row: int | None
    n_rows: int | None
    outputs: tuple[int, ...]
    output_axes: tuple[int | None, ...]


class NoRows:
    """What an empty block contributes where its part is not defined, as a maximum is.

    Attributes
    ----------
    error : str
        What the engine said.
    stand_in : ndarray
        The part of one row of zeros.
    """

    def __init__(self, error: str, stand_in: np.ndarray) -> None:
        self.error = error
        self.stand_in = stand_in


Fill = Callable[[tuple[int, ...]], np.ndarray]

#: What a row is filled with that stands in for none, in the order in which they are tried.
_FILLS: tuple[Fill, ...] = (
    np.zeros,
    np.ones,
    lambda shape: np.random.RandomState(0).uniform(0.5, 1.5, shape),
)


def run_step(step: Step, *values: Any) -> list[Any]:
    """Compute a piece on one block, or once.

    A block without rows is computed as it is where that can be done; else as if it had one
    row of zeros, whose results are cut off again; so are then all results of later steps.
    """
    absent = next((value for value in values if isinstance(value, NoRows)), None)
    if absent is not None:
        values = tuple(v.stand_in if isinstance(v, NoRows) else v for v in values)
    arguments = [np.asarray(value) for value in values]
    if absent is not None:
        return _run_padded(step, arguments, absent.error)
    empty = any(
        axis is not None and argument.shape[axis] == 0
        for argument, axis in zip(arguments, step.read_axes, strict=True)
    )
    if not empty:
        return step.source(*arguments)
    try:
        return step.source(*arguments)
    except Exception as error:
        return _run_padded(step, arguments, str(error))


def run_block(
    step: Step, number: int, n_rows: int | None, names: Sequence[str], *values: Any
) -> list[Any]:
    """Compute a piece on one block, which is of the lengths and dtypes that dask says.

    Parameters
    ----------
    step : Step
    number : int
        Of the block, for people.
    n_rows : int or None
        Rows of the block; None where dask does not know them.
    names : sequence of str
        Of the values, for people.

    Raises
    ------
    ValueError
        If a value has another number of rows: it would count for what it is not. Also if
        it is of another dtype, which does not fit into the one that dask says.
    """
    expected = n_rows
    values = tuple(
        _of_dtype(value, dtype, f"Block {number} of input {name}")
        for value, dtype, name in zip(values, step.read_dtypes, names, strict=True)
    )
    for value, axis, name in zip(values, step.read_axes, names, strict=True):
        if axis is None or isinstance(value, NoRows):
            continue
        own = int(np.shape(value)[axis])
        if expected is None:
            expected = own
        if own != expected:
            told = "its chunks say" if n_rows is not None else "another input has"
            raise ValueError(
                f"Block {number} of input {name} has {own} rows, and {told} {expected}. "
                "Blocks of a filter have unknown lengths: give chunks=(np.nan, ...) to "
                "map_blocks, and filter all inputs alike; or call compute_chunk_sizes()."
            )
    with telling_of(f"block {number} of {step.source.name}", names, values):
        return run_step(step, *values)


@contextmanager
def telling_of(what: str, names: Sequence[str], values: Sequence[Any]) -> Iterator[None]:
    """Note on errors what was computed and of which shapes: the engine's name no input."""
    try:
        yield
    except Exception as error:
        shapes = [
            f"{name} of shape {np.shape(value)}"
            for name, value in zip(names, values, strict=True)
            if not isinstance(value, NoRows)
        ]
        error.add_note(f"This was {what}, given {', '.join(shapes) or 'nothing'}.")
        raise


def _of_dtype(value: Any, dtype: str, what: str) -> Any:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{what} is masked, and graphs know no masks. Give blocks that are filled "
            "(da.ma.filled), and the mask as an input of its own."
        )
    if isinstance(value, NoRows) or np.asarray(value).dtype == dtype:
        return value
    found = np.asarray(value)
    if not np.can_cast(found.dtype, dtype):
        raise ValueError(
            f"{what} has the dtype {found.dtype}, and dask says {dtype}. Say what the blocks "
            f"hold: map_blocks(..., dtype={found.dtype.name!r})."
        )
    return found.astype(dtype)


def _run_padded(step: Step, arguments: Sequence[np.ndarray], error: str) -> list[Any]:
    refusal: Exception | None = None
    for fill in _FILLS:
        padded = [
            argument if axis is None else _one_row(argument, axis, fill)
            for argument, axis in zip(arguments, step.read_axes, strict=True)
        ]
        try:
            results = step.source(*padded)
        except Exception as refused:  # an assertion on positive values, a singular matrix
            refusal = refusal or refused
            continue
        return [
            _of_no_rows(verb, axis, result, error)
            for verb, axis, result in zip(step.verbs, step.write_axes, results, strict=True)
        ]
    assert refusal is not None
    refusal.add_note(
        "This is a block without rows: it was tried without one, and with one of zeros, of "
        "ones and of random numbers. Leave empty blocks out: x.compute_chunk_sizes()."
    )
    raise refusal


def _one_row(array: np.ndarray, axis: int, fill: Fill) -> np.ndarray:
    shape = (*array.shape[:axis], 1, *array.shape[axis + 1 :])
    return fill(shape).astype(array.dtype)


def _of_no_rows(verb: Verb | None, axis: int | None, of_one: np.ndarray, error: str) -> Any:
    """A result without rows, from one of one row."""
    if axis is not None:
        return np.take(of_one, [], axis=axis)
    neutral = None if verb is None else of_no_rows(verb, of_one)
    return NoRows(error, of_one) if neutral is None else neutral


def combine_results(verbs: Sequence[Verb], results: Sequence[Sequence[Any]]) -> list[Any]:
    """Combine what several blocks give, entry by entry."""
    return [
        combine_parts(verb, [result[i] for result in results]) for i, verb in enumerate(verbs)
    ]


def combine_parts(verb: Verb, parts: Sequence[Any]) -> Any:
    there = [part for part in parts if not isinstance(part, NoRows)]
    return combine(verb, there) if there else parts[0]


def whole_value(value: Any) -> np.ndarray:
    """An output that all blocks are in."""
    if isinstance(value, NoRows):
        raise ValueError(f"No block has a row, and without one: {value.error}")
    return np.asarray(value)


Run = Callable[[Step, list[Any]], list[Any]]


def run_here(
    staged: Staged, arguments: Sequence[Any], lengths: Sequence[int]
) -> list[np.ndarray]:
    """Run all steps in this process, block by block; rows in, rows out, in one piece each.

    Parameters
    ----------
    staged : Staged
    arguments : sequence of ndarray
    lengths : sequence of int
        Rows of each block.
    """
    starts = np.cumsum([0, *lengths])
    known: dict[int, Any] = {}
    here: list[dict[int, Any]] = [{} for _ in lengths]
    for number, (argument, axis) in enumerate(zip(arguments, staged.row_axes, strict=True)):
        if axis is None:
            known[number] = argument
            continue
        for b, block in enumerate(here):
            cut = [slice(None)] * np.ndim(argument)
            cut[axis] = slice(int(starts[b]), int(starts[b + 1]))
            block[number] = argument[tuple(cut)]
    if staged.first_row is not None:
        for b, block in enumerate(here):
            block[staged.first_row] = np.asarray(starts[b], np.int64)
    if staged.n_rows is not None:
        known[staged.n_rows] = np.asarray(starts[-1], np.int64)
    for once, step in zip(staged.once, staged.block, strict=True):
        if once is not None:
            known.update(
                zip(once.writes, run_step(once, *[known[i] for i in once.reads]), strict=True)
            )
        if step is not None:
            found = [
                run_step(step, *[block[i] if i in block else known[i] for i in step.reads])
                for block in here
            ]
            for k, (number, verb) in enumerate(zip(step.writes, step.verbs, strict=True)):
                if verb is None:
                    for block, results in zip(here, found, strict=True):
                        block[number] = results[k]
                else:
                    known[number] = combine_parts(verb, [results[k] for results in found])
    return [
        whole_value(known[number])
        if axis is None
        else np.concatenate([block[number] for block in here], axis=axis)
        for number, axis in zip(staged.outputs, staged.output_axes, strict=True)
    ]
