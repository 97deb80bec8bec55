"""The rows of one argument in blocks at a site, and cutting several at the same rows.

`read_table` takes dask collections, `cut_table` whatever holds rows in memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import scipy.sparse
from dask.base import is_dask_collection

from skdtheano.runtime.inspection import Report, to_array
from skdtheano.runtime.sites import Handle, Site


@dataclass
class Table:
    """Rows of one argument, in blocks.

    Attributes
    ----------
    name : str
        The argument, for messages.
    handles : list of Handle
        The blocks, at the site.
    reports : list of Report
    """

    name: str
    handles: list[Handle]
    reports: list[Report]

    @property
    def lengths(self) -> list[int]:
        return [report.n_rows for report in self.reports]

    @property
    def n_rows(self) -> int:
        return sum(self.lengths)

    def raise_first_bad(self) -> None:
        """Raise for the first value that is not finite, by block and row.

        Raises
        ------
        ValueError
        """
        start = 0
        for number, report in enumerate(self.reports):
            if report.bad is not None:
                raise ValueError(
                    bad_value_message(self.name, report, number, "fitting or scoring", start)
                )
            start += report.n_rows


def bad_value_message(
    name: str, report: Report, number: int, before: str, start: int | None = None
) -> str:
    """What to say of the first value that is not finite.

    Parameters
    ----------
    name : str
        The argument.
    report : Report
        Of the block, with its bad value.
    number : int
        Of the block.
    before : str
        What cannot be done with such values.
    start : int, optional
        Rows in the blocks before, where they are known.
    """
    assert report.bad is not None
    kind, row, column = report.bad
    in_table = "" if start is None else f" (row {start + row} of the table)"
    where = "" if report.n_columns is None else f", column {column}"
    return (
        f"Input {name} contains {kind}: block {number}, row {row} of the block{in_table}"
        f"{where}. Fill or drop such rows before {before}, for example with "
        "dask_ml.impute.SimpleImputer or dropna()."
    )


def check_kind(name: str, value: Any) -> None:
    """Refuse dask collections that hold no rows, such as a Bag or a Delayed.

    Raises
    ------
    TypeError
    """
    if not isinstance(value, da.Array | dd.DataFrame | dd.Series):
        raise TypeError(
            f"{name} is a {type(value).__name__}. Give a dask Array, DataFrame or Series, or "
            "data in memory; Bag.to_dataframe() and dask.array.from_delayed() make them."
        )


def read_table(
    name: str, value: Any, site: Site, inspect: Callable[[Any], Report]
) -> Table | None:
    """Load a dask collection's blocks at a site; None for anything else.

    Raises
    ------
    TypeError
        For a dask collection that holds no rows, or DataFrame columns that are not
        numeric where numbers are needed.
    ValueError
        For an array of more than two dimensions.
    """
    if not is_dask_collection(value):
        return None
    if isinstance(value, da.Array):
        if value.ndim not in (1, 2):
            raise ValueError(
                f"{name} has {value.ndim} dimensions, shape {value.shape}. Give a table of "
                "shape (n_rows, n_columns), or a vector where one is asked for."
            )
        if value.ndim == 2 and value.numblocks[1] > 1:
            value = value.rechunk({1: -1})
    else:
        check_kind(name, value)
    delayed = value.to_delayed()
    blocks = list(np.ravel(np.asarray(delayed, dtype=object)))
    handles = site.load(blocks)
    reports = site.get([site.submit(inspect, handle) for handle in handles])
    return Table(name, handles, reports)


def keep_together(site: Site, arguments: Sequence[Any]) -> list[Any]:
    """The arguments, the dask collections among them computed in one go at a site.

    X and y often come from one source. Read one after the other, a source that does not
    repeat itself (an unseeded sample, a queue) would give each of them other rows.
    """
    kept = list(arguments)
    for kinds in ((da.Array,), (dd.DataFrame, dd.Series)):  # dask mixes the two with a warning
        places = [i for i, value in enumerate(kept) if isinstance(value, kinds)]
        if places:
            for i, value in zip(places, site.keep([kept[i] for i in places]), strict=True):
                kept[i] = value
    return kept


def cut_table(
    name: str, value: Any, like: Table, site: Site, inspect: Callable[[Any], Report]
) -> Table:
    """Cut data in memory at the rows of another table and put it at a site."""
    if isinstance(value, Number):
        value = np.full(like.n_rows, value, np.float64)
    array = value if hasattr(value, "shape") else np.asarray(value)
    given = array.shape[0] if array.shape else 1
    if given != like.n_rows:
        raise ValueError(length_message(name, given, like.name, like.n_rows))
    return put_table(name, array, like.lengths, site, inspect)


def put_table(
    name: str, array: Any, lengths: Sequence[int], site: Site, inspect: Callable[[Any], Report]
) -> Table:
    """Put data in memory at a site, in blocks of these lengths."""
    if hasattr(array, "tocsr"):
        array = array.tocsr()
    stops = np.cumsum(lengths).tolist()
    cuts = [slice(stop - length, stop) for stop, length in zip(stops, lengths, strict=True)]
    pieces = [array.iloc[cut] if hasattr(array, "iloc") else array[cut] for cut in cuts]
    return Table(name, site.put(pieces), [inspect(piece) for piece in pieces])


def recut_table(table: Table, like: Table, site: Site) -> Table:
    """Cut a table's rows at the rows of another table, where they lie."""
    if table.lengths == like.lengths:
        return table
    if table.n_rows != like.n_rows:
        raise ValueError(length_message(table.name, table.n_rows, like.name, like.n_rows))
    starts = np.cumsum([0, *table.lengths])
    handles: list[Handle] = []
    begin = 0
    for length in like.lengths:
        end = begin + length
        parts, cuts = [], []
        first = max(int(np.searchsorted(starts, begin, side="right")) - 1, 0)
        last = int(np.searchsorted(starts, end, side="left"))
        for block in range(first, min(last, len(table.handles))):
            low, high = max(begin, starts[block]), min(end, starts[block + 1])
            if low < high:
                parts.append(table.handles[block])
                cuts.append((int(low - starts[block]), int(high - starts[block])))
        handles.append(site.submit(_join, parts or table.handles[:1], cuts or [(0, 0)]))
        begin = end
    example = table.reports[0]
    reports = [Report(n, example.n_columns, example.dtype) for n in like.lengths]
    return Table(table.name, handles, reports)


def length_message(name: str, given: int, other: str, n_other: int) -> str:
    """The message for two arguments of different lengths; X is named first."""
    if name == "X":
        name, given, other, n_other = other, n_other, name, given
    return (
        f"Found input variables with inconsistent numbers of samples: {other} has {n_other} "
        f"rows and {name} has {given}. Give one entry of {name} per row of {other}, in the "
        "same order."
    )


def _join(blocks: Sequence[Any], cuts: Sequence[tuple[int, int]]) -> Any:
    if hasattr(blocks[0], "iloc"):
        return pd.concat(
            [b.iloc[low:high] for b, (low, high) in zip(blocks, cuts, strict=True)]
        )
    parts = [to_array(b)[low:high] for b, (low, high) in zip(blocks, cuts, strict=True)]
    if scipy.sparse.issparse(parts[0]):
        return scipy.sparse.vstack(parts, format="csr")
    return np.concatenate(parts)


def even_lengths(n_rows: int, n_blocks: int) -> list[int]:
    """Lengths of at most `n_blocks` blocks that differ by one row at most."""
    n_blocks = max(1, min(n_blocks, n_rows))
    lengths: list[int] = np.diff(np.linspace(0, n_rows, n_blocks + 1).astype(int)).tolist()
    return lengths
