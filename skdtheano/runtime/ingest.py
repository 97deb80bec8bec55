"""From the user's collections to aligned, checked row blocks at a site.

`read_table` takes whatever holds rows: numpy, pandas, scipy.sparse, lists, dask Array,
DataFrame or Series. `align` cuts several tables at the same rows. Values are looked at
where they lie; what comes back to the caller is one small report per block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import scipy.sparse
from dask.base import is_dask_collection

from skdtheano.runtime.blocks import Block
from skdtheano.runtime.sites import ClusterSite, Handle, Site


@dataclass(frozen=True)
class Report:
    """What the caller learns of one block.

    Attributes
    ----------
    n_rows : int
    n_columns : int or None
        None for a vector.
    dtype : str
        Name of the NumPy dtype.
    sparse : bool
    bad : tuple of (str, int, int) or None
        The first value that is not finite: "NaN" or "infinity", its row and column.
    weight : float
        Sum of the values; weights only.
    positive, negative : bool
        Some value is above, below 0; weights and targets only.
    labels : ndarray or None
        The distinct values; class labels only.
    """

    n_rows: int
    n_columns: int | None
    dtype: str
    sparse: bool = False
    bad: tuple[str, int, int] | None = None
    weight: float = 0.0
    positive: bool = False
    negative: bool = False
    labels: np.ndarray | None = None


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
                kind, row, column = report.bad
                where = "" if report.n_columns is None else f", column {column}"
                raise ValueError(
                    f"Input {self.name} contains {kind}: block {number}, row {row} of the "
                    f"block (row {start + row} of the table){where}. Fill or drop such rows "
                    "before fit, for example with dask_ml.impute.SimpleImputer or dropna()."
                )
            start += report.n_rows


def to_array(block: Any) -> Any:
    """One block as an ndarray or a csr_array."""
    if hasattr(block, "tocsr"):  # scipy.sparse, and pydata's sparse.COO
        return scipy.sparse.csr_array(block.tocsr())
    if hasattr(block, "to_numpy"):
        return block.to_numpy()
    return np.asarray(block)


def to_rows(block: Any) -> Any:
    """One block of X as an ndarray or a csr_array; pandas' nullable numbers as floats."""
    dtypes = getattr(block, "dtypes", None)
    if isinstance(dtypes, pd.Series) and not all(isinstance(d, np.dtype) for d in dtypes):
        return block.to_numpy(dtype=np.float64, na_value=np.nan)
    return to_array(block)


def _first_bad(array: Any) -> tuple[str, int, int] | None:
    values = array.data if scipy.sparse.issparse(array) else array
    if values.dtype.kind == "O":
        missing = pd.isna(values)
        if not missing.any():
            return None
        place = np.unravel_index(int(missing.argmax()), values.shape)
        return "NaN", int(place[0]), int(place[1]) if len(place) > 1 else 0
    if values.dtype.kind not in "fc" or np.isfinite(values.sum(dtype=np.float64)):
        return None
    finite = np.isfinite(values)
    if finite.all():
        return None
    first = int((~finite).ravel().argmax())
    kind = "NaN" if np.isnan(values.ravel()[first]) else "infinity"
    if scipy.sparse.issparse(array):
        coo = array.tocoo()
        return kind, int(coo.row[first]), int(coo.col[first])
    place = np.unravel_index(first, values.shape)
    return kind, int(place[0]), int(place[1]) if len(place) > 1 else 0


def inspect_rows(block: Any) -> Report:
    """Report on a block of X."""
    array = to_rows(block)
    return Report(
        n_rows=array.shape[0],
        n_columns=array.shape[1] if array.ndim == 2 else None,
        dtype=array.dtype.name,
        sparse=scipy.sparse.issparse(array),
        bad=None if array.dtype.kind in "OSUMm" else _first_bad(array),
    )


def inspect_numbers(block: Any) -> Report:
    """Report on a block of weights or of numeric targets."""
    array = to_array(block)
    if scipy.sparse.issparse(array):
        array = array.toarray()
    numeric = array.dtype.kind in "fiub"
    return Report(
        n_rows=array.shape[0],
        n_columns=array.shape[1] if array.ndim == 2 else None,
        dtype=array.dtype.name,
        bad=_first_bad(array),
        weight=float(array.sum(dtype=np.float64)) if numeric else 0.0,
        positive=bool(numeric and (array > 0).any()),
        negative=bool(numeric and (array < 0).any()),
    )


def inspect_labels(block: Any) -> Report:
    """Report on a block of class labels."""
    array = to_array(block)
    if scipy.sparse.issparse(array):
        array = array.toarray()
    bad = _first_bad(array)
    return Report(
        n_rows=array.shape[0],
        n_columns=array.shape[1] if array.ndim == 2 else None,
        dtype=array.dtype.name,
        bad=bad,
        labels=None if bad else _distinct(array),
    )


def _distinct(array: np.ndarray) -> np.ndarray:
    try:
        labels: np.ndarray = np.unique(array)
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in array.ravel()})
        raise TypeError(
            f"y mixes labels of the types {kinds}, which have no order. Convert them to one "
            "type, for example y.astype(str)."
        ) from error
    if labels.dtype.kind == "f":
        fractions = labels[labels != np.floor(labels)]
        if len(fractions):  # no class labels at all: a few of them tell the caller so
            labels = fractions[:10]
    return labels


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
    elif not hasattr(value, "_meta") or not hasattr(value, "npartitions"):
        raise TypeError(
            f"{name} is a {type(value).__name__}. Give a dask Array, DataFrame or Series, or "
            "data in memory."
        )
    delayed = value.to_delayed()
    blocks = list(np.ravel(np.asarray(delayed, dtype=object)))
    handles = site.load(blocks)
    reports = site.get([site.submit(inspect, handle) for handle in handles])
    return Table(name, handles, reports)


def cut_table(
    name: str, value: Any, lengths: Sequence[int], site: Site, inspect: Callable[[Any], Report]
) -> Table:
    """Cut data in memory at the rows of another table and put it at a site."""
    n_rows = sum(lengths)
    if isinstance(value, Number):
        value = np.full(n_rows, value, np.float64)
    array = value if hasattr(value, "shape") else np.asarray(value)
    if hasattr(array, "tocsr"):
        array = array.tocsr()
    elif hasattr(array, "to_numpy"):
        array = array.to_numpy()
    if not array.shape or array.shape[0] != n_rows:
        given = array.shape[0] if array.shape else 1
        raise ValueError(_length_message(name, given, n_rows))
    stops = np.cumsum(lengths).tolist()
    pieces = [array[stop - length : stop] for stop, length in zip(stops, lengths, strict=True)]
    return Table(name, site.put(pieces), [inspect(piece) for piece in pieces])


def recut_table(table: Table, lengths: Sequence[int], site: Site) -> Table:
    """Cut a table's rows at the rows of another table, where they lie."""
    if table.lengths == list(lengths):
        return table
    if table.n_rows != sum(lengths):
        raise ValueError(_length_message(table.name, table.n_rows, sum(lengths)))
    starts = np.cumsum([0, *table.lengths])
    handles: list[Handle] = []
    begin = 0
    for length in lengths:
        end = begin + length
        parts, cuts = [], []
        for block, handle in enumerate(table.handles):
            low, high = max(begin, starts[block]), min(end, starts[block + 1])
            if low < high:
                parts.append(handle)
                cuts.append((int(low - starts[block]), int(high - starts[block])))
        handles.append(site.submit(_join, parts or table.handles[:1], cuts or [(0, 0)]))
        begin = end
    reports = [Report(n, table.reports[0].n_columns, table.reports[0].dtype) for n in lengths]
    return Table(table.name, handles, reports)


def _length_message(name: str, given: int, needed: int) -> str:
    return (
        f"Found input variables with inconsistent numbers of samples: X has {needed} rows "
        f"and {name} has {given}. Give one entry of {name} per row of X, in the same order."
    )


def _join(blocks: Sequence[Any], cuts: Sequence[tuple[int, int]]) -> Any:
    parts = [to_array(b)[low:high] for b, (low, high) in zip(blocks, cuts, strict=True)]
    if scipy.sparse.issparse(parts[0]):
        return scipy.sparse.vstack(parts, format="csr")
    joined: np.ndarray = np.concatenate(parts)
    return joined


def even_lengths(n_rows: int, n_blocks: int) -> list[int]:
    """Lengths of at most `n_blocks` blocks that differ by one row at most."""
    n_blocks = max(1, min(n_blocks, n_rows))
    lengths: list[int] = np.diff(np.linspace(0, n_rows, n_blocks + 1).astype(int)).tolist()
    return lengths


def make_block(
    rows: Any,
    targets: Any,
    weights: Any,
    row_dtype: str,
    encode: Callable[[np.ndarray], np.ndarray],
) -> Block:
    """A `Block` from the pieces of X, y and sample_weight that belong together."""
    table = to_rows(rows)
    if scipy.sparse.issparse(table):
        table = table.astype(row_dtype, copy=False)
    else:
        table = np.ascontiguousarray(table, row_dtype)
    truth = to_array(targets)
    if scipy.sparse.issparse(truth):
        truth = truth.toarray()
    vector = None if weights is None else np.asarray(to_array(weights), np.float64).ravel()
    return Block(table, encode(truth), vector)


def assign_blocks(
    lengths: Sequence[int], holders: Sequence[str | None], workers: Sequence[str]
) -> list[str]:
    """Choose each block's worker: where it lies, unless that worker holds too much.

    Parameters
    ----------
    lengths : sequence of int
        Rows of each block.
    holders : sequence of str or None
        A worker that holds the block now.
    workers : sequence of str
        All workers.

    Returns
    -------
    list of str
        A block moves only from a worker that would hold more than a tenth above the
        mean, and only if its new worker then holds less.
    """
    load = dict.fromkeys(workers, 0)
    chosen: list[str] = []
    for length, holder in zip(lengths, holders, strict=True):
        chosen.append(holder if holder in load else min(load, key=lambda w: load[w]))
        load[chosen[-1]] += length
    limit = 1.1 * sum(lengths) / len(load)
    for block in sorted(range(len(lengths)), key=lambda b: (-lengths[b], b)):
        source = chosen[block]
        target = min(load, key=lambda w: load[w])
        if load[source] > limit and load[target] + lengths[block] < load[source]:
            load[source] -= lengths[block]
            load[target] += lengths[block]
            chosen[block] = target
    return chosen


def place_blocks(
    rows: Table,
    targets: Table,
    weights: Table | None,
    site: Site,
    row_dtype: str,
    encode: Callable[[np.ndarray], np.ndarray],
) -> tuple[list[Handle], list[int]]:
    """Make a `Block` of each set of pieces with rows, and leave it at the site.

    Returns
    -------
    handles : list of Handle
    lengths : list of int
    """
    kept = [b for b, length in enumerate(rows.lengths) if length]
    lengths = [rows.lengths[b] for b in kept]
    where: list[dict[str, Any]] = [{} for _ in kept]
    if isinstance(site, ClusterSite):
        site.wait(rows.handles)
        holders = site.holders([rows.handles[b] for b in kept])
        chosen = assign_blocks(lengths, holders, site.workers())
        # allow_other_workers: a block whose worker is lost is made again elsewhere.
        where = [{"workers": [worker], "allow_other_workers": True} for worker in chosen]
    handles = [
        site.submit(
            make_block,
            rows.handles[b],
            targets.handles[b],
            None if weights is None else weights.handles[b],
            row_dtype,
            encode,
            **pin,
        )
        for b, pin in zip(kept, where, strict=True)
    ]
    if isinstance(site, ClusterSite):
        site.wait(handles)
    return handles, lengths


def row_dtype(reports: Sequence[Report]) -> str:
    """float32 if every block is, else float64."""
    if all(np.dtype(report.dtype) == np.float32 for report in reports):
        return "float32"
    return "float64"
