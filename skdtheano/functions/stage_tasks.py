"""The tasks of one stage over the blocks of rows, and what each of them costs."""

from collections import Counter
from math import prod
from typing import Any

import numpy as np

from skdtheano.engine import Variable
from skdtheano.functions.costs import Cost, cost_of, op_name
from skdtheano.functions.explanation import CombineCost, PieceCost, StageCost
from skdtheano.functions.lengths import Shape, SizedPiece, SizedStage
from skdtheano.runtime.lazy import FAN_IN


class StageTasks:
    """The tasks of one stage and what each costs.

    Attributes
    ----------
    once : Cost
    block : list of Cost
        By block.
    tree : list of list of (list of int, Cost)
        By level of the tree of combines: of each of its tasks, which it combines of the
        level below, the blocks at first, and its cost.
    """

    def __init__(self, stage: SizedStage, row_chunks: tuple[int, ...]) -> None:
        total = sum(row_chunks)
        self.stage = stage
        self.once = _piece_cost(stage.once, 0, total)
        by_rows = {
            rows: _piece_cost(stage.block, rows, total) for rows in dict.fromkeys(row_chunks)
        }
        self.block = [by_rows[rows] for rows in row_chunks]
        self.results = [r for r in stage.block.piece.results if r.combine is not None]
        parts = {
            rows: [
                (
                    _entries(stage.block.shapes[r.value], rows, total),
                    np.dtype(r.value.dtype).itemsize,
                )
                for r in self.results
            ]
            for rows in by_rows
        }
        self.part_bytes = [
            sum(entries * size for entries, size in parts[rows]) for rows in row_chunks
        ]
        joined = [r.combine is not None and r.combine.verb == "rows" for r in self.results]
        self.joined_bytes = [
            sum(
                n * size for (n, size), joins in zip(parts[rows], joined, strict=True) if joins
            )
            for rows in row_chunks
        ]
        # Verbs that pick, or that join rows, compute nothing.
        self.part_flops = sum(
            entries
            for r, (entries, _) in zip(self.results, parts[row_chunks[0]], strict=True)
            if r.combine is not None and r.combine.verb not in ("same", "rows")
        )
        self.tree = self._tree() if self.results else []

    def _tree(self) -> list[list[tuple[list[int], Cost]]]:
        """As `skdtheano.runtime.lazy` makes it."""
        levels: list[list[tuple[list[int], Cost]]] = []
        joined = self.joined_bytes
        fixed = self.part_bytes[0] - joined[0]
        while not levels or len(joined) > 1:
            groups = [
                list(range(i, min(i + FAN_IN, len(joined))))
                for i in range(0, len(joined), FAN_IN)
            ]
            joined = [sum(joined[i] for i in group) for group in groups]
            levels.append(
                [
                    (
                        group,
                        Cost((len(group) - 1) * self.part_flops, len(group) * fixed + rows),
                    )
                    for group, rows in zip(groups, joined, strict=True)
                ]
            )
        return levels

    @property
    def cost(self) -> Cost:
        return sum((c for level in self.levels() for c in level), Cost())

    def levels(self) -> list[list[Cost]]:
        return [
            [self.once],
            self.block,
            *([cost for _, cost in level] for level in self.tree),
        ]

    def summary(self) -> StageCost:
        runs = len(self.block)
        return StageCost(
            once=_summary(self.stage.once, 1, self.once),
            block=_summary(self.stage.block, runs, sum(self.block, Cost())),
            combine=CombineCost(
                verbs=tuple(r.combine.verb for r in self.results if r.combine is not None),
                block_bytes=max(self.part_bytes),
                bytes=sum(self.part_bytes),
                flops=sum(cost.flops for level in self.tree for _, cost in level),
                levels=len(self.tree),
            ),
        )


def _entries(shape: Shape, rows: int, total: int) -> int:
    return prod(length.at(rows, total) for length in shape)


def nodes_of(piece: SizedPiece) -> list[Any]:
    """All nodes of a piece; of what a loop repeats, each once."""
    return [*piece.nodes, *(node for loop in piece.loops.values() for node in loop.nodes)]


def _piece_cost(piece: SizedPiece, rows: int, total: int) -> Cost:
    def sizes(variable: Variable) -> tuple[int, ...] | None:
        shape = piece.shapes.get(variable)
        return None if shape is None else tuple(n.at(rows, total) for n in shape)

    def cost(node: Any) -> Cost:
        loop = piece.loops.get(node)
        if loop is None:
            return cost_of(node, sizes)
        return sum(map(cost, loop.nodes), Cost()) * _entries(
            piece.shapes[loop.steps], rows, total
        )

    return sum(map(cost, piece.nodes), Cost())


def _summary(piece: SizedPiece, runs: int, cost: Cost) -> PieceCost:
    ops = Counter(op_name(node.op) for node in nodes_of(piece))
    return PieceCost(tuple(ops.most_common()), runs if piece.piece.results else 0, cost)
