"""The compiled pieces of many models that are trained together."""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from skdtheano.memory import Memory
from skdtheano.runtime.program import NUMPY, Leases, ProgramSpec
from skdtheano.runtime.update import StackedPart, StackedUpdate

#: Memory for vectors is kept for the next models if it is at most so much, and of the last two
#: that were given back: a process that rests does not hold more.
_MOST_KEPT_BYTES = 2**25
_kept: deque[Memory] = deque(maxlen=2)


class StackedProgram(Leases):
    """A program of several models of one architecture; what it computes is theirs alone.

    Parameters
    ----------
    spec : ProgramSpec
        Of dense rows, in the mode `NUMPY`: see `can_stack`.
    n_models : int
    same_rows : bool
        Whether all models are given the same rows; else rows, targets and weights are
        stacked as well.
    """

    def __init__(self, spec: ProgramSpec, n_models: int, same_rows: bool) -> None:
        super().__init__(spec)
        self._losses = np.zeros(n_models, spec.network.dtype)
        self._same_rows = same_rows
        self._memory: Memory | None = None
        self._bound_step: tuple[int, Callable[[], None]] | None = None

    def memory(self) -> Memory:
        """For vectors of these models; others have it when the pieces are given back.

        Its pages are there: new ones for each stack would take 2 % of a search's time.
        """
        if self._memory is None:
            try:
                self._memory = _kept.pop()
            except IndexError:
                self._memory = Memory()
        return self._memory

    def give_back(self) -> None:
        if self._memory is not None and self._memory.nbytes <= _MOST_KEPT_BYTES:
            _kept.append(self._memory)
        self._memory = None
        super().give_back()

    def sums_of_all(
        self,
        parameters: Sequence[np.ndarray],
        rows: np.ndarray,
        targets: np.ndarray,
        weights: np.ndarray,
        out: Sequence[np.ndarray],
    ) -> np.ndarray:
        """Loss sums, shape (n_models,), until the next call; gradient sums go into `out`.

        Parameters
        ----------
        parameters : list of ndarray of shape (n_models, ...)
            Weight matrices, then intercepts.
        rows, targets, weights : ndarray
            As of `Program.sums`; of shape (n_models, ...) where each model has its own.
        out : list of ndarray
            Shaped as `parameters`.
        """
        n_first = 3 if self._same_rows else 0
        piece = self._sums or self._sums_piece(range(n_first, 3 + len(parameters)))
        inputs = [rows, targets, weights, *parameters]
        self._run(piece, inputs, [self._losses, *out], is_repeated=True)
        return self._losses

    def update_all(self, parts: Sequence[StackedPart], scalars: Sequence[np.ndarray]) -> None:
        """Take a step, in place. All arrays are those of the first call.

        Parameters
        ----------
        parts : sequence of StackedPart
        scalars : sequence of ndarray of shape (n_models,)
            Sums of weights, step sizes, and the optimizer's own.
        """
        dtype, mode = self.spec.network.dtype, self.spec.mode
        update: StackedUpdate = self._leased(
            ("update", self._rule(), dtype, mode, "stacked"),
            lambda: StackedUpdate(self._update_recipe()),
        )
        bound = self._bound_step
        if bound is None or bound[0] != update.generation:
            bound = (update.generation, update.bind(parts, scalars))
            self._bound_step = bound
        bound[1]()


def can_stack(spec: ProgramSpec) -> bool:
    """Whether models of a kind can be trained together."""
    network = spec.network
    is_plain = not network.sparse and network.row_dtype == network.dtype
    return is_plain and spec.mode == NUMPY and spec.rule is not None
