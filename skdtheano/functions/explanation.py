"""What a function costs over the blocks of rows, and how it shows itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape

from skdtheano.functions.costs import Cost


@dataclass(frozen=True)
class PieceCost:
    """Of what is computed in one go: once, or on each block.

    Attributes
    ----------
    ops : tuple of (str, int)
        Ops by name and how many there are, the most frequent first.
    runs : int
        How often it is computed: 1, or the number of blocks; 0 without Ops.
    cost : Cost
        Of all runs together.
    """

    ops: tuple[tuple[str, int], ...]
    runs: int
    cost: Cost


@dataclass(frozen=True)
class CombineCost:
    """Of making one value of what the blocks give.

    Attributes
    ----------
    verbs : tuple of str
        One for each value that is combined, as in `skdtheano.graphs.plan.Combine`.
    block_bytes : int
        Bytes that one block gives, the largest one.
    bytes : int
        Bytes that all blocks give.
    flops : int
        Operations of all combines.
    levels : int
        Of the tree.
    """

    verbs: tuple[str, ...]
    block_bytes: int
    bytes: int
    flops: int
    levels: int


@dataclass(frozen=True)
class StageCost:
    """``once(...)``, then ``block(...)`` on each block, then what is combined.

    Attributes
    ----------
    once, block : PieceCost
    combine : CombineCost
    """

    once: PieceCost
    block: PieceCost
    combine: CombineCost

    @property
    def flops(self) -> int:
        """Operations of the stage, on all blocks."""
        return self.once.cost.flops + self.block.cost.flops + self.combine.flops

    @property
    def bytes(self) -> int:
        """Bytes that the Ops of the stage read and write, on all blocks."""
        return self.once.cost.bytes + self.block.cost.bytes


@dataclass(frozen=True)
class Explanation:
    r"""What `skdtheano.explain` found; printed, it is a table.

    Work is all there is to do, :math:`W = \sum_t c_t` over the tasks :math:`t` of the plan:
    each piece on each block, and each node of the trees of combines. The span :math:`S` is
    the longest path through them, which no number of workers shortens: :math:`T_p \geq
    \max(W / p, S)`. The predicted time is that of Brent's schedule [1]_: level by level, on
    each of which :math:`p` workers take the tasks in rounds, the longest first,

    .. math:: T_p = \sum_{l} \sum_{j \geq 0} c_{l, jp}, \qquad c_{l,0} \geq c_{l,1} \geq \dots

    which is :math:`\lceil m_l / p \rceil c_l` for :math:`m_l` equal tasks, and the speed-up
    is :math:`T_1 / T_p = W / T_p`. Costs are operations, or bytes in a graph without any;
    what it takes to send values and to start tasks is left out.

    Attributes
    ----------
    name : str
        Of the function.
    row_chunks : tuple of int
        Rows of each block.
    stages : tuple of StageCost
    work, span : int
        Operations (`unit`).
    unit : {"flops", "bytes"}
        What `work`, `span` and the speed-ups count.
    parallel_fraction : float
        Of the work, what is done on blocks; 0 to 1.
    workers : tuple of int
    speedups : tuple of float
        Predicted, for each of `workers`.
    unlisted : tuple of str
        Ops that the table of costs lacks; they count one operation per entry they give.
    levels : tuple of tuple of int
        Costs of the tasks of each level, the longest first; what `speedup` is made from.

    References
    ----------
    .. [1] R. P. Brent, "The parallel evaluation of general arithmetic expressions", Journal
       of the ACM 21 (2), 1974, 201-206, Lemma 2.
    """

    name: str
    row_chunks: tuple[int, ...]
    stages: tuple[StageCost, ...]
    work: int
    span: int
    unit: str
    parallel_fraction: float
    workers: tuple[int, ...]
    speedups: tuple[float, ...]
    unlisted: tuple[str, ...]
    levels: tuple[tuple[int, ...], ...] = field(repr=False)

    def speedup(self, workers: int) -> float:
        """Predicted time on one worker over that on so many."""
        return speedup_of(self.levels, workers)

    @property
    def flops(self) -> int:
        """Operations of all stages, on all blocks."""
        return sum(stage.flops for stage in self.stages)

    @property
    def bytes(self) -> int:
        """Bytes that all Ops read and write, on all blocks."""
        return sum(stage.bytes for stage in self.stages)

    @property
    def combined_bytes(self) -> int:
        """Bytes that one block, the largest, gives to be combined, in all stages."""
        return sum(stage.combine.block_bytes for stage in self.stages)

    def __str__(self) -> str:
        rows = [_HEAD, *self._table]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD) - 1)]
        lines = [self._title]
        for row in rows:
            cells = [
                cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=False))
            ]
            lines.append("  ".join([*cells, row[-1]]).rstrip())
        return "\n".join([*lines, *self._summary])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def line(cells: Sequence[str], tag: str) -> str:
            styled = (
                f'<{tag} style="text-align:{"right" if i in _NUMBERS else "left"};'
                f'vertical-align:top;padding:2px 8px">{escape(cell)}</{tag}>'
                for i, cell in enumerate(cells)
            )
            return f"<tr>{''.join(styled)}</tr>"

        body = "".join(line(row, "td") for row in self._table)
        summary = "<br/>".join(escape(text) for text in self._summary)
        return (
            f'<div><p>{escape(self._title)}</p><table style="border-collapse:collapse">'
            f"<thead>{line(_HEAD, 'th')}</thead><tbody>{body}</tbody></table>"
            f"<p>{summary}</p></div>"
        )

    @property
    def _title(self) -> str:
        few, many = min(self.row_chunks), max(self.row_chunks)
        rows = f"{many:,}" if few == many else f"{few:,} to {many:,}"
        return (
            f"{self.name}: {_counted(sum(self.row_chunks), 'row')} in "
            f"{_counted(len(self.row_chunks), 'block')} of {rows}, "
            f"{_counted(len(self.stages), 'stage')}"
        )

    @cached_property
    def _table(self) -> list[tuple[str, ...]]:
        return [
            row for number, stage in enumerate(self.stages) for row in _rows(number, stage)
        ]

    @property
    def _summary(self) -> list[str]:
        shown = sorted({p for p in self.workers if p & (p - 1) == 0} | {*self.workers[-1:]})
        speedups = dict(zip(self.workers, self.speedups, strict=True))
        unit = "flop" if self.unit == "flops" else "B"
        lines = [
            f"work {quantity(self.work, unit)}, span (longest path) "
            f"{quantity(self.span, unit)}, {100 * self.parallel_fraction:.4g} % of the work "
            f"on blocks, {quantity(self.combined_bytes, 'B')} combined per block",
            "predicted speed-up: "
            + ", ".join(f"{speedups[p]:.3g} on {_counted(p, 'worker')}" for p in shown),
        ]
        if self.unlisted:
            lines.append(
                f"counted as one operation per entry: {', '.join(self.unlisted)}, which the "
                "table of costs lacks"
            )
        return lines


_HEAD = ("stage", "piece", "runs", "flops", "bytes", "Ops")
_NUMBERS = (0, 2, 3, 4)


def _rows(number: int, stage: StageCost) -> Iterator[tuple[str, ...]]:
    for what, piece in (("once", stage.once), ("block", stage.block)):
        if not piece.runs:
            continue
        ops = ", ".join(f"{n} {name}" if n > 1 else name for name, n in piece.ops)
        cost = quantity(piece.cost.flops), quantity(piece.cost.bytes)
        yield str(number), what, f"{piece.runs:,}", *cost, ops
    combine = stage.combine
    if combine.verbs:
        verbs = ", ".join(dict.fromkeys(combine.verbs))
        yield (
            str(number),
            "combine",
            "",
            quantity(combine.flops),
            quantity(combine.bytes),
            f"{verbs}: {quantity(combine.block_bytes, 'B')} per block, "
            f"{_counted(combine.levels, 'level')}",
        )


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def quantity(value: float, unit: str = "") -> str:
    """Three digits and an SI prefix: 12.3 k, 4.56 Gflop."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:
            return f"{_three(value / factor)} {prefix}{unit}"
    return f"{value:g} {unit}".rstrip()


def _three(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def speedup_of(levels: Sequence[Sequence[int]], workers: int) -> float:
    """Work over the time of Brent's schedule; see `Explanation`.

    Parameters
    ----------
    levels : sequence of sequence of int
        Costs of tasks, the longest of a level first.
    workers : int
        1 or more.
    """
    if workers < 1:
        raise ValueError(f"workers={workers!r} is no number of workers. Give 1 or more.")
    time = sum(sum(level[::workers]) for level in levels)
    return sum(map(sum, levels)) / time if time else 1.0
