"""Parameters, gradients and moments of several models, one a row of a matrix each."""

from collections.abc import Sequence

import numpy as np

from skdtheano.memory import Memory, nbytes_of
from skdtheano.runtime.parameters import Layout, TrainState
from skdtheano.runtime.update import StackedPart
from skdtheano.side_by_side import side_by_side


class StackedVectors:
    """The vectors of models that train together.

    Parameters
    ----------
    layout : Layout
    states : sequence of TrainState
        Of each model.
    alphas : ndarray of shape (n_models,)
        L2 strengths.
    memory : Memory
        Where they are to be, in slots from 0 on.
    beside : bool
        Whether the first layer's weights and intercepts, and their gradients, lie beside
        those of the other models: its products are one product then. The weights are kept in
        the rows as well, where the penalty sums them up as it does those of one model.

    Attributes
    ----------
    theta : ndarray of shape (n_models, n_parameters)
    parameters, out : list of ndarray of shape (n_models, ...)
        Weight matrices, then intercepts, and where their gradients go.
    parts : list of StackedPart
        What an update takes.
    """

    def __init__(
        self,
        layout: Layout,
        states: Sequence[TrainState],
        alphas: np.ndarray,
        memory: Memory,
        beside: bool,
    ) -> None:
        self._memory, self._n_arrays = memory, 0
        self.theta, *self._slots = [
            np.stack(
                vectors, out=self._room((len(states), *vectors[0].shape), vectors[0].dtype)
            )
            for vectors in zip(*([s.theta, *s.slots] for s in states), strict=True)
        ]
        gradient = self._room(self.theta.shape, self.theta.dtype)
        self.parameters, self.out = layout.views(self.theta), layout.views(gradient)
        self._vectors = [self.theta, gradient, *self._slots]
        n_coefs = layout.n_coefs
        strengths = alphas.astype(self.theta.dtype)
        of_coefs, of_intercepts = (
            (0, n_coefs, strengths),
            (n_coefs, None, np.zeros_like(strengths)),
        )
        self.parts: list[StackedPart] = []
        for place, (start, stop, penalties) in (
            (0, of_coefs),
            (len(layout.units) - 1, of_intercepts),
        ):
            if beside:
                n = self.parameters[place][0].size
                self.parts.append(self._beside(place, slice(start, start + n), penalties))
                start += n
            self.parts.append(self._part(slice(start, stop), penalties))

    def _room(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        slot, self._n_arrays = self._n_arrays, self._n_arrays + 1
        self._memory.make_room(slot, nbytes_of(dtype.name, shape))
        return self._memory.array(slot, dtype.name, shape)

    def are_finite(self) -> np.ndarray:
        """Whether all parameters are, of each model."""
        rows = self.theta[:, None, :]
        squares = np.matmul(rows, rows.swapaxes(1, 2))[:, 0, 0]
        # As `steps.is_finite`: squares may overflow.
        found: np.ndarray = np.isfinite(squares)
        return found if found.all() else np.isfinite(self.theta).all(axis=1)

    def state(self, k: int, step: int) -> TrainState:
        """A copy of a model's vectors."""
        return TrainState(self.theta[k].copy(), [slot[k].copy() for slot in self._slots], step)

    def _part(self, part: slice, penalties: np.ndarray) -> StackedPart:
        return StackedPart([vector[:, part] for vector in self._vectors], penalties)

    def _beside(self, place: int, part: slice, penalties: np.ndarray) -> StackedPart:
        """Parameters that lie side by side from now on; a vector is a matrix of one row."""
        pair = []
        for arrays in (self.parameters, self.out):
            array = arrays[place]
            rows = array.reshape(len(array), -1, array.shape[-1])
            n_models, n, m = rows.shape
            matrix = side_by_side(self._room((n, n_models * m), array.dtype), n_models)
            matrix[...] = rows
            arrays[place] = matrix.reshape(array.shape)
            pair.append(matrix)
        made = self._part(part, penalties)
        return StackedPart(made.vectors, penalties, (pair[0], pair[1]))
