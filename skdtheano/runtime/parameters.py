"""The packed parameter vector and the training state that travels with it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in the packed vector.

    All weight matrices come first, raveled in C order, then all intercepts: the L2
    penalty is then a prefix, and L-BFGS sees scikit-learn's vector.

    Parameters
    ----------
    units : tuple of int
        Features, hidden units by layer, outputs.
    """

    units: tuple[int, ...]

    @cached_property
    def n_coefs(self) -> int:
        return sum(fan_in * fan_out for fan_in, fan_out in pairwise(self.units))

    @cached_property
    def n_parameters(self) -> int:
        return self.n_coefs + sum(self.units[1:])

    @cached_property
    def _cuts(self) -> list[tuple[int, int, tuple[int, ...]]]:
        shapes: list[tuple[int, ...]] = [
            *pairwise(self.units),
            *((n,) for n in self.units[1:]),
        ]
        stops = np.cumsum([int(np.prod(shape)) for shape in shapes]).tolist()
        starts = [0, *stops[:-1]]
        return list(zip(starts, stops, shapes, strict=True))

    def views(self, vector: np.ndarray) -> list[np.ndarray]:
        """Weight matrices, then intercepts, as views of a packed vector.

        Of vectors of several models, one a row, the views are stacked too.
        """
        models = vector.shape[:-1]
        return [
            vector[..., start:stop].reshape(*models, *shape)
            for start, stop, shape in self._cuts
        ]

    def pack(self, arrays: Sequence[np.ndarray], dtype: np.dtype) -> np.ndarray:
        """Copy weight matrices, then intercepts, into a new packed vector.

        Raises
        ------
        ValueError
            If the shapes are not those of ``units``.
        """
        vector = np.empty(self.n_parameters, dtype)
        views = self.views(vector)
        shapes = [np.shape(array) for array in arrays]
        if shapes != [view.shape for view in views]:
            raise ValueError(
                f"The fitted parameters have the shapes {shapes}, but the data and "
                f"hidden_layer_sizes ask for {[view.shape for view in views]}. To go on "
                "training, keep hidden_layer_sizes and the numbers of features and "
                "outputs; to start anew, use warm_start=False."
            )
        for view, array in zip(views, arrays, strict=True):
            view[...] = array
        return vector

    def unpack(self, vector: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Weight matrices and intercepts as arrays of their own."""
        arrays = [view.copy() for view in self.views(vector)]
        n_layers = len(self.units) - 1
        return arrays[:n_layers], arrays[n_layers:]

    def penalty(self, alpha: float, dtype: np.dtype) -> np.ndarray:
        """L2 strength of each parameter: `alpha` for weights, 0 for intercepts."""
        penalty = np.zeros(self.n_parameters, dtype)
        penalty[: self.n_coefs] = alpha
        return penalty


@dataclass
class TrainState:
    """What one step hands to the next.

    Attributes
    ----------
    theta : ndarray of shape (n_parameters,)
        Packed parameters.
    slots : list of ndarray of shape (n_parameters,)
        The optimizer's moments.
    step : int
        Number of steps taken.
    """

    theta: np.ndarray
    slots: list[np.ndarray] = field(default_factory=list)
    step: int = 0

    def copy(self) -> "TrainState":
        """Arrays of its own: steps write into those that they are given."""
        return TrainState(self.theta.copy(), [slot.copy() for slot in self.slots], self.step)

    def fill(self, other: "TrainState") -> None:
        """Take another's values over, into the arrays that are there."""
        for ours, theirs in zip(
            (self.theta, *self.slots), (other.theta, *other.slots), strict=True
        ):
            ours[...] = theirs
        self.step = other.step
