"""What a model is to a runtime: a program to compile, and the layout of its parameters."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skdtheano.runtime.blocks import Block, RowBlocks
from skdtheano.runtime.parameters import Layout
from skdtheano.runtime.program import ProgramSpec


@dataclass(frozen=True)
class Model:
    """Symbols and sizes, no values; travels with every task.

    Parameters
    ----------
    spec : ProgramSpec
    layout : Layout
    """

    spec: ProgramSpec
    layout: Layout

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.spec.network.dtype)

    def rows_of(
        self, blocks: Sequence[Block], lengths: Sequence[int] | None = None
    ) -> RowBlocks:
        """The rows of one process, ready to gather minibatches from."""
        if lengths is None:
            lengths = [len(block) for block in blocks]
        return RowBlocks(blocks, lengths, self.layout.units[-1], self.spec.network.dtype)
