"""What a function is called with: checked, and cut or not cut by rows."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import scipy.sparse
from dask.base import is_dask_collection

from skdtheano import engine
from skdtheano.engine import Variable
from skdtheano.functions.frames import without_frames
from skdtheano.graphs.placement import REPLICATED, Placement, Rows


@dataclass(frozen=True)
class Cut:
    """Arguments of one call, those with rows cut alike.

    Attributes
    ----------
    arguments : list of (dask Array or ndarray)
    placements : tuple of Placement
    row_chunks : tuple of (int or NaN)
        Rows of each block.
    """

    arguments: list[Any]
    placements: tuple[Placement, ...]
    row_chunks: tuple[float, ...]


_TO_KNOW = (
    "Call compute_chunk_sizes() on arrays that do not know theirs; of a DataFrame give "
    "to_dask_array(lengths=True)."
)


def name_of(symbol: Variable, place: int) -> str:
    return repr(symbol.name) if symbol.name else f"number {place}"


def refuse_odd(value: Any, name: str) -> None:
    """Refuse arrays that would lose what they hold: masked ones, and sparse ones."""
    if isinstance(value, np.ma.MaskedArray) or isinstance(
        getattr(value, "_meta", None), np.ma.MaskedArray
    ):
        raise TypeError(
            f"Input {name} is masked, and graphs know no masks. Give value.filled(...), and "
            "the mask as an input of its own."
        )
    if scipy.sparse.issparse(value) or hasattr(getattr(value, "_meta", None), "tocsr"):
        raise TypeError(f"Input {name} is sparse, and graphs are dense. Give value.toarray().")


def to_dask_or_numpy(value: Any, symbol: Variable, place: int) -> Any:
    """The argument as a dask array or an ndarray of the symbol's dtype and rank.

    Raises
    ------
    TypeError
        If it holds other values than the symbol takes.
    ValueError
        If it has another rank.
    """
    name = name_of(symbol, place)
    value = without_frames(value, name)
    if is_dask_collection(value) and not isinstance(value, da.Array):
        raise TypeError(
            f"Input {name} is a {type(value).__name__}. Give a dask Array, DataFrame or "
            "Series."
        )
    refuse_odd(value, name)
    array = value if isinstance(value, da.Array) else np.asarray(value)
    if array.ndim != symbol.ndim:
        raise ValueError(
            f"Input {name} has {array.ndim} dimensions, shape {array.shape}, and the function "
            f"was made for {symbol.ndim}: {symbol.type}. Reshape it, or declare the symbol so."
        )
    for axis, length in enumerate(engine.lengths_of(symbol)):
        given = array.shape[axis]
        if length is not None and given != length and not np.isnan(given):
            raise ValueError(
                f"Input {name} has the shape {array.shape}, and its symbol says that axis "
                f"{axis} has length {length}: {symbol.type}."
            )
    if array.dtype == symbol.dtype:
        return array
    exact = isinstance(array, np.ndarray) and _is_exact(array, symbol.dtype)
    if not exact and not np.can_cast(array.dtype, symbol.dtype, "safe"):
        raise TypeError(
            f"Input {name} has the dtype {array.dtype}, which {symbol.dtype} does not hold "
            f"without loss. Convert it: value.astype({symbol.dtype!r})."
        )
    return array.astype(symbol.dtype)


def _is_exact(array: np.ndarray, dtype: str) -> bool:
    """Whether scalars, such as 2 or 0.5, survive a cast; arrays are taken as they are."""
    if array.ndim or array.dtype.kind not in "biuf" or np.dtype(dtype).kind not in "biuf":
        return False
    if np.dtype(dtype).kind == "f":
        return array.dtype.kind in "iuf"
    return bool(array.astype(dtype) == array)


def cut_by_rows(
    symbols: Sequence[Variable],
    arguments: Sequence[Any],
    rows: Collection[str] | None,
    replicated: Collection[str],
    n_inputs: int,
) -> Cut:
    """Decide which arguments have rows, and cut them alike.

    An argument has rows if `rows` names it; else, if it is a dask array of several blocks
    along axis 0, or of one block as long as the others, and `replicated` does not name it.
    Of the symbols, the first `n_inputs` have names that these mean.

    Raises
    ------
    ValueError
        If arguments with rows have different lengths, or one that is declared replicated
        is cut, or chunk sizes are not known where they must be compared.
    """
    declared = [_declared(symbol, rows, replicated) for symbol in symbols[:n_inputs]]
    declared += ["replicated"] * (len(symbols) - n_inputs)  # shared variables
    with_rows = _with_rows(arguments, declared)
    placements = tuple(Rows(0) if has else REPLICATED for has in with_rows)
    leader = _leader(arguments, with_rows)
    if leader is None:
        raise ValueError(
            "No input has rows: each dask array is declared replicated, or has no axis. Name "
            "those that have in rows=, or compute them and call the function on NumPy arrays."
        )
    row_chunks = tuple(arguments[leader].chunks[0])
    cut = []
    for place, (symbol, argument) in enumerate(zip(symbols, arguments, strict=True)):
        if with_rows[place]:
            name, lead = name_of(symbol, place), name_of(symbols[leader], leader)
            cut.append(_aligned(argument, row_chunks, name, lead))
        elif isinstance(argument, da.Array):
            cut.append(_joined(argument, name_of(symbol, place), declared[place]))
        else:
            cut.append(argument)
    return Cut(cut, placements, row_chunks)


def _declared(
    symbol: Variable, rows: Collection[str] | None, replicated: Collection[str]
) -> str | None:
    if symbol.name in replicated:
        return "replicated"
    if rows is not None:
        return "rows" if symbol.name in rows else "replicated"
    return None


def _with_rows(arguments: Sequence[Any], declared: Sequence[str | None]) -> list[bool]:
    lazy = [isinstance(value, da.Array) and value.ndim > 0 for value in arguments]
    free = [d is None and is_lazy for d, is_lazy in zip(declared, lazy, strict=True)]
    several = [
        is_free and value.numblocks[0] > 1
        for is_free, value in zip(free, arguments, strict=True)
    ]
    lengths = {
        len_of(value)
        for value, cut, said in zip(arguments, several, declared, strict=True)
        if cut or said == "rows"
    }
    if not lengths:  # all of one block: the first one tells the length
        candidates = [v for v, is_free in zip(arguments, free, strict=True) if is_free]
        lengths = {len_of(value) for value in candidates[:1]}
    with_rows = []
    for value, said, is_free, cut in zip(arguments, declared, free, several, strict=True):
        alone = is_free and not cut and len_of(value) in lengths
        with_rows.append(said == "rows" or cut or alone)
    return with_rows


def len_of(value: Any) -> float:
    """Rows of an array; NaN, as one object, where they are not known."""
    length = float(np.shape(value)[0]) if np.ndim(value) else 0.0
    return length if length == length else np.nan


def _leader(arguments: Sequence[Any], with_rows: Sequence[bool]) -> int | None:
    """The argument whose blocks the others are cut like: the one of the most blocks."""
    lazy = [i for i, has in enumerate(with_rows) if has and isinstance(arguments[i], da.Array)]
    return max(lazy, key=lambda i: (arguments[i].numblocks[0], -i), default=None)


def _aligned(array: Any, row_chunks: tuple[float, ...], name: str, lead: str) -> Any:
    unknown = bool(np.isnan(row_chunks).any())
    total = np.nan if unknown else float(sum(row_chunks))
    if array.ndim == 0:
        raise ValueError(f"Input {name} is declared to have rows, and is a scalar.")
    if not isinstance(array, da.Array):
        if unknown:
            raise ValueError(
                f"Input {name} is in memory and shall be cut like {lead}, whose chunk sizes "
                f"are not known. {_TO_KNOW}"
            )
        if array.shape[0] != total:
            raise ValueError(_lengths(name, array.shape[0], lead, total))
        pieces: da.Array = da.from_array(array, chunks=(row_chunks, *array.shape[1:]))
        return pieces
    others = {axis: -1 for axis in range(1, array.ndim) if array.numblocks[axis] > 1}
    if others:
        array = array.rechunk(others)
    own_unknown = bool(np.isnan(array.chunks[0]).any())
    if unknown or own_unknown:
        if array.numblocks[0] != len(row_chunks):
            raise ValueError(
                f"Inputs {name} and {lead} have {array.numblocks[0]} and {len(row_chunks)} "
                "blocks of rows, and not all of their sizes are known, so they cannot be cut "
                f"alike. {_TO_KNOW}"
            )
        return array
    if sum(array.chunks[0]) != total:
        raise ValueError(_lengths(name, sum(array.chunks[0]), lead, total))
    if array.chunks[0] != row_chunks:
        array = array.rechunk({0: row_chunks})
    cut: da.Array = array
    return cut


def _lengths(name: str, given: float, lead: str, total: float) -> str:
    return (
        f"Inputs with rows have different lengths: {lead} has {total:g} and {name} has "
        f"{given:g}. If {name} belongs to all rows alike, name it in replicated=."
    )


def _joined(array: da.Array, name: str, declared: str | None) -> da.Array:
    if all(n == 1 for n in array.numblocks):
        return array
    if declared == "replicated" and array.numblocks[0] > 1:
        raise ValueError(
            f"Input {name} is declared replicated, and is a dask array of "
            f"{array.numblocks[0]} blocks of rows. Give it as NumPy (compute() it), as one "
            "chunk (rechunk(-1)), or take it out of replicated=."
        )
    joined: da.Array = array.rechunk(-1)
    return joined
