"""From tables that are cut alike to blocks of training rows, each on a worker."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from skdtheano.runtime.blocks import Block
from skdtheano.runtime.inspection import Report, to_numbers
from skdtheano.runtime.sites import Handle, Site
from skdtheano.runtime.tables import Table

#: Targets of a `Block` from a block of y, as it lies.
Encode = Callable[[Any], np.ndarray]


def make_block(
    rows: Any,
    targets: Any,
    weights: Any,
    row_dtype: str,
    sparse: bool,
    encode: Encode,
) -> Block:
    """A `Block` from the pieces of X, y and sample_weight that belong together."""
    table = to_numbers(rows)
    if sparse:  # blocks of one table are all of one kind
        table = scipy.sparse.csr_array(table).astype(row_dtype, copy=False)
    else:
        # What came over the network may begin at any byte; rows are read faster if aligned.
        table = np.require(table, row_dtype, ["C", "ALIGNED"])
    vector = None if weights is None else np.asarray(to_numbers(weights), np.float64).ravel()
    return Block(table, encode(targets), vector)


def place_blocks(
    rows: Table,
    targets: Table,
    weights: Table | None,
    site: Site,
    row_dtype: str,
    sparse: bool,
    encode: Encode,
) -> tuple[list[Handle], list[int], list[int]]:
    """Make a `Block` of each set of pieces with rows, and leave it at the site.

    Returns
    -------
    handles : list of Handle
    lengths : list of int
    numbers : list of int
        Which blocks of the table they are.
    """
    kept = [b for b, length in enumerate(rows.lengths) if length]
    lengths = [rows.lengths[b] for b in kept]
    where = site.spread([rows.handles[b] for b in kept], lengths)
    handles = [
        site.submit(
            make_block,
            rows.handles[b],
            targets.handles[b],
            None if weights is None else weights.handles[b],
            row_dtype,
            sparse,
            encode,
            **pin,
        )
        for b, pin in zip(kept, where, strict=True)
    ]
    site.wait(handles)
    return handles, lengths, kept


def row_dtype(reports: Sequence[Report]) -> str:
    """float32 if every block is, else float64."""
    if all(np.dtype(report.dtype) == np.float32 for report in reports):
        return "float32"
    return "float64"
