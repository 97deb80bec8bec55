"""An optimizer's step over packed vectors, in place.

It begins as NumPy calls on tiles that stay in a core's cache, which need no compiler. Once
they have taken as long as compiling takes, or loading if an earlier process has compiled it,
one loop does all: with the same bits, so no result tells when that was.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from skdtheano.loops import Loop, bound_loop, compiled_loop, is_compiled
from skdtheano.recipe import Recipe
from skdtheano.routine import Routine

#: Entries of a tile: with the optimizer's moments and what is between they stay in a core's
#: second cache (1 MiB) while fifteen calls in a row work on them.
_TILE = 2**14

#: Seconds that it takes to compile a loop, and to load one that is on the disk.
_COMPILE_SECONDS, _LOAD_SECONDS = 0.02, 0.003


class Update(Protocol):
    """The step of one rule and dtype; serves one thread at a time."""

    @property
    def generation(self) -> int:
        """Goes up when what was bound before should be bound anew."""

    def bind(
        self,
        vectors: Sequence[np.ndarray],
        scalars: Sequence[np.ndarray],
        penalties: Sequence[tuple[slice, float]],
    ) -> Callable[[], None]:
        """A step, bound to arrays.

        Parameters
        ----------
        vectors : sequence of ndarray of shape (n,)
            Parameters, sum of gradients, then the optimizer's slots.
        scalars : sequence of ndarray of shape ()
            Sum of weights, step size, and the optimizer's own.
        penalties : sequence of (slice, float)
            Parts of the vectors, with their L2 strength.
        """


class CompiledUpdate:
    """A step as a function of the engine, which makes new vectors.

    Parameters
    ----------
    function : callable
    """

    generation = 0

    def __init__(self, function: Callable[..., list[np.ndarray]]) -> None:
        self._function = function

    def bind(
        self,
        vectors: Sequence[np.ndarray],
        scalars: Sequence[np.ndarray],
        penalties: Sequence[tuple[slice, float]],
    ) -> Callable[[], None]:
        theta, gradient, *slots = vectors
        penalty = np.empty_like(theta)
        for part, strength in penalties:
            penalty[part] = strength

        def run() -> None:
            new = self._function(theta, gradient, penalty, scalars[0], *slots, *scalars[1:])
            for vector, value in zip((theta, *slots), new, strict=True):
                vector[...] = value

        return run


class _Warming:
    """An update that is NumPy's calls first and a loop later.

    Parameters
    ----------
    recipe : Recipe
        Of `skdtheano.graphs.optimizers.update_graph`.
    stacked : bool
        Whether everything is of several models.
    """

    def __init__(self, recipe: Recipe, stacked: bool = False) -> None:
        n_inputs = len(recipe.inputs)
        self._routine = Routine(recipe, range(n_inputs if stacked else 0))
        self._loop: Loop | None = None
        self._seconds = 0.0
        self._n_inputs, self._n_slots = n_inputs, len(recipe.outputs) - 1
        self._source = self._source_of()
        self._patience = _COMPILE_SECONDS
        if self._source is not None and is_compiled(self._source):
            self._patience = _LOAD_SECONDS

    def _source_of(self, beside: int | None = None) -> str | None:
        # Parameters, gradient, penalty, sum of weights, slots, and then scalars again.
        slots = range(4, 4 + self._n_slots)
        return self._routine.loop_source(
            [i for i in range(self._n_inputs) if i not in (0, 1, *slots)], [0, *slots], beside
        )

    @property
    def generation(self) -> int:
        """Goes up when what was bound before is slower than what would be bound now."""
        return int(self._loop is not None)

    def _timed(self, calls: Sequence[Callable[[], None]]) -> Callable[[], None]:
        """Some calls in a row; the loop is compiled once waiting has cost as much."""

        def run() -> None:
            began = time.perf_counter()
            for call in calls:
                call()
            self._note(time.perf_counter() - began)

        return run

    def _note(self, seconds: float) -> None:
        # Never more than twice the best.
        self._seconds += seconds
        if self._source is not None and self._seconds > self._patience:
            source, self._source = self._source, None
            self._loop = compiled_loop(source)


class TiledUpdate(_Warming):
    """The step of one rule and dtype; serves one thread at a time.

    Parameters
    ----------
    recipe : Recipe
        Of `skdtheano.graphs.optimizers.update_graph`.
    dtype : str
    """

    def __init__(self, recipe: Recipe, dtype: str) -> None:
        super().__init__(recipe)
        self._dtype = dtype

    def bind(
        self,
        vectors: Sequence[np.ndarray],
        scalars: Sequence[np.ndarray],
        penalties: Sequence[tuple[slice, float]],
    ) -> Callable[[], None]:
        if self._loop is not None:
            return self._bound_loop(vectors, scalars, penalties, self._loop)
        n = len(vectors[0])
        runs = []
        for start in range(0, n, _TILE):
            tile = slice(start, min(start + _TILE, n))
            penalty = _penalty_of(tile, penalties, self._dtype)
            theta, gradient, *slots = (vector[tile] for vector in vectors)
            inputs = [theta, gradient, penalty, scalars[0], *slots, *scalars[1:]]
            runs.append(self._routine.bind(inputs, [theta, *slots]))
        return self._timed(runs)

    @staticmethod
    def _bound_loop(
        vectors: Sequence[np.ndarray],
        scalars: Sequence[np.ndarray],
        penalties: Sequence[tuple[slice, float]],
        loop: Loop,
    ) -> Callable[[], None]:
        weight_sum, *others = scalars
        calls = []
        for part, strength in penalties:
            theta, gradient, *slots = (vector[part] for vector in vectors)
            penalty = np.full(1, strength, theta.dtype)
            _check_vectors((theta, gradient, *slots))
            arrays = (theta, gradient, penalty, weight_sum, *slots, *others)
            calls.append(bound_loop(loop, arrays, [len(theta), 1, 0, 1]))
        return _in_turn(calls)


@dataclass(frozen=True)
class StackedPart:
    """A range of the vectors of several models.

    Attributes
    ----------
    vectors : sequence of ndarray of shape (n_models, n)
        Parameters, sum of gradients, then the optimizer's slots; contiguous for each model,
        and all as far apart from one model to the next.
    penalties : ndarray of shape (n_models,)
        L2 strength.
    beside : tuple of ndarray of shape (n_models, r, n / r), optional
        The same parameters once more, and where their gradient is instead, both with the rows
        of all models side by side.
    """

    vectors: Sequence[np.ndarray]
    penalties: np.ndarray
    beside: tuple[np.ndarray, np.ndarray] | None = None


class StackedUpdate(_Warming):
    """The step of several models of one rule and dtype, each with its own numbers.

    Parameters
    ----------
    recipe : Recipe
        Of `skdtheano.graphs.optimizers.update_graph`.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe, stacked=True)

    def bind(
        self, parts: Sequence[StackedPart], scalars: Sequence[np.ndarray]
    ) -> Callable[[], None]:
        """A step, bound to arrays.

        Parameters
        ----------
        parts : sequence of StackedPart
        scalars : sequence of ndarray of shape (n_models,)
            Sum of weights, step size, and the optimizer's own.
        """
        calls = [call for part in parts for call in self._calls(part, scalars)]
        return self._timed(calls) if self._loop is None else _in_turn(calls)

    def _calls(
        self, part: StackedPart, scalars: Sequence[np.ndarray]
    ) -> list[Callable[[], None]]:
        weight_sum, *others = scalars
        theta, gradient, *slots = part.vectors
        apart = theta.strides[0] // theta.itemsize
        call: Callable[[], None]
        if self._loop is None:
            strengths = np.broadcast_to(part.penalties[:, None], theta.shape)
            inputs = [theta, gradient, strengths, weight_sum, *slots, *others]
            call = self._routine.bind(inputs, [theta, *slots])
        else:
            _check_vectors(part.vectors)
            loop, lengths = self._loop, [*theta.shape[::-1], apart, 1]
            arrays = [theta, gradient, part.penalties, weight_sum, *slots, *others]
            if part.beside is not None and (joint := self._loop_beside()) is not None:
                again, arrays[1] = part.beside
                n_models, n_rows, n = again.shape
                return [bound_loop(joint, [*arrays, again], [n, n_models, apart, n_rows])]
            call = bound_loop(loop, arrays, lengths)
        if part.beside is None:
            return [call]
        again, beside = part.beside
        return [
            partial(np.copyto, gradient.reshape(beside.shape), beside),
            call,
            partial(np.copyto, again, theta.reshape(again.shape)),
        ]

    def _loop_beside(self) -> Loop | None:
        """The loop for a part whose gradient lies side by side."""
        source = self._source_of(beside=1)
        return None if source is None else compiled_loop(source)


def _in_turn(calls: Sequence[Callable[[], None]]) -> Callable[[], None]:
    def run() -> None:
        for call in calls:
            call()

    return run


def _check_vectors(vectors: Sequence[np.ndarray]) -> None:
    """Raise where a loop would read or write what is not theirs."""
    first = vectors[0]
    for vector in vectors:
        if (
            vector.dtype != first.dtype
            or vector.shape != first.shape
            or vector.strides != first.strides
            or vector.strides[-1] != vector.itemsize
        ):
            raise ValueError(
                f"An update of {first.shape} of {first.dtype} was given a vector of shape "
                f"{vector.shape}, dtype {vector.dtype} and strides {vector.strides}. Give "
                "contiguous vectors of one length and dtype."
            )


def _penalty_of(
    tile: slice, penalties: Sequence[tuple[slice, float]], dtype: str
) -> np.ndarray:
    """L2 strength of each parameter of a tile, without memory where it is one number."""
    n = tile.stop - tile.start
    strengths = [
        (strength, min(tile.stop, part.stop) - max(tile.start, part.start))
        for part, strength in penalties
    ]
    for strength, count in strengths:
        if count == n:
            return np.broadcast_to(np.asarray(strength, dtype), (n,))
    return np.concatenate([np.full(max(k, 0), strength, dtype) for strength, k in strengths])
