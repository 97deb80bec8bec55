"""From tables that are cut alike to blocks of training rows, each on a worker."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from skdtheano.runtime.blocks import Block
from skdtheano.runtime.inspection import Report, to_numbers
from skdtheano.runtime.sites import ClusterSite, Handle, Site
from skdtheano.runtime.tables import Table

#: Targets of a `Block` from a block of y, as it lies.
Encode = Callable[[Any], np.ndarray]


def make_block(
    rows: Any,
    targets: Any,
    weights: Any,
    row_dtype: str,
    encode: Encode,
) -> Block:
    """A `Block` from the pieces of X, y and sample_weight that belong together."""
    table = to_numbers(rows)
    if scipy.sparse.issparse(table):
        table = table.astype(row_dtype, copy=False)
    else:
        table = np.ascontiguousarray(table, row_dtype)
    vector = None if weights is None else np.asarray(to_numbers(weights), np.float64).ravel()
    return Block(table, encode(targets), vector)


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
    encode: Encode,
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
