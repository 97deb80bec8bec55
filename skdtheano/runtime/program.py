"""The pieces of a training program, compiled and shared by everything in this process.

A piece serves one thread at a time, so pieces are leased: a thread that finds none idle
compiles another. Graphs do not know layer sizes or hyperparameters, so a process compiles a
graph once for all models of one depth, activation and loss.
"""

import operator
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from skdtheano import engine
from skdtheano.cookbook import recipe_for
from skdtheano.graphs.losses import block_graph
from skdtheano.graphs.network import Network, network_graph
from skdtheano.graphs.optimizers import update_graph
from skdtheano.recipe import Recipe
from skdtheano.routine import Routine
from skdtheano.runtime.blocks import Rows
from skdtheano.runtime.update import CompiledUpdate, TiledUpdate, Update

#: The compile mode of `skdtheano.routine`: nothing to wait for, and nothing to allocate.
NUMPY = "NUMPY"

#: What `engine.compilations` tells of an optimizer's step.
_UPDATE = "skdtheano-update"

#: Of the values of one hidden layer.
_LAYER_BYTES = 2**22

_MAX_KEYS = 64
#: Batches of so many sizes are remembered with their arrays.
_MAX_BOUND = 256


def rows_per_call(widest: int, dtype: str) -> int:
    """Rows to compute with at once where all are visited, by the widest layer.

    So many that setting a call up is small beside it, and so few that hidden layers stay in
    a processor's last cache.
    """
    return max(256, _LAYER_BYTES // (max(widest, 1) * np.dtype(dtype).itemsize))


class Piece(Protocol):
    """A compiled graph."""

    @property
    def generation(self) -> int:
        """Goes up when what was bound before should be bound anew."""

    def bind(
        self, inputs: Sequence[np.ndarray], out: Sequence[np.ndarray]
    ) -> Callable[[], None]:
        """What reads `inputs` and fills `out` each time that it is called."""


class _Compiled:
    """A function of the engine, with results that it makes itself."""

    generation = 0

    def __init__(self, function: Callable[..., list[np.ndarray]]) -> None:
        self._function = function

    def bind(
        self, inputs: Sequence[np.ndarray], out: Sequence[np.ndarray]
    ) -> Callable[[], None]:
        def run() -> None:
            for target, result in zip(out, self._function(*inputs), strict=True):
                target[...] = result

        return run


_idle: OrderedDict[tuple[Any, ...], list[Any]] = OrderedDict()
_idle_lock = Lock()


@dataclass(frozen=True)
class ProgramSpec:
    """What to compile: hashable, and small enough to travel with every task.

    Parameters
    ----------
    network : Network
    loss : str
        A name in `skdtheano.graphs.losses.LOSSES`.
    rule : str or None
        An optimizer's rule; None where nothing is updated (L-BFGS, prediction).
    mode : str
        A name that `check_mode` has returned.
    """

    network: Network
    loss: str
    rule: str | None
    mode: str


def check_mode(mode: str | None) -> str:
    """Return the name of a mode that programs can be compiled in, `NUMPY` for None.

    Raises
    ------
    ValueError
        If it is neither `NUMPY` nor a compile mode of the engine.
    """
    if mode is None or mode == NUMPY:
        return NUMPY
    return engine.check_mode(mode, ours=NUMPY)


@dataclass(frozen=True)
class _BoundUpdate:
    """An update of certain vectors, and what it was bound for."""

    run: Callable[[], None]
    update: Update
    generation: int
    vectors: tuple[np.ndarray, ...]
    n_penalised: int
    alpha: float

    def serves(self, vectors: Sequence[np.ndarray], n_penalised: int, alpha: float) -> bool:
        return (
            all(map(operator.is_, vectors, self.vectors))
            and len(vectors) == len(self.vectors)
            and self.n_penalised == n_penalised
            and self.alpha == alpha
            and self.update.generation == self.generation
        )


class Leases:
    """Pieces of a model's program, leased to one thread for a ``with`` block.

    Parameters
    ----------
    spec : ProgramSpec
    """

    def __init__(self, spec: ProgramSpec) -> None:
        self.spec = spec
        self._pieces: dict[tuple[Any, ...], Any] = {}
        self._runs: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._sums: Piece | None = None

    def give_back(self) -> None:
        """Let others have the pieces."""
        self._runs.clear()
        self._sums = None
        with _idle_lock:
            for key, piece in self._pieces.items():
                _idle.setdefault(key, []).append(piece)
                _idle.move_to_end(key)
            while len(_idle) > _MAX_KEYS:
                _idle.popitem(last=False)
        self._pieces = {}

    def _leased(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        piece = self._pieces.get(key)
        if piece is None:
            with _idle_lock:
                waiting = _idle.get(key)
                piece = waiting.pop() if waiting else None
            piece = self._pieces[key] = make() if piece is None else piece
        return piece

    def _piece(
        self,
        key: tuple[Any, ...],
        graph: Callable[[], tuple[Sequence[Any], Sequence[Any]]],
        stacked: Sequence[int] = (),
    ) -> Piece:
        mode = self.spec.mode

        def make() -> Piece:
            name = f"skdtheano-{key[0]}"
            if mode == NUMPY:
                return Routine(recipe_for(repr(key), graph, name), stacked)
            return _Compiled(engine.compile_function(*graph(), mode, name))

        piece: Piece = self._leased((*key, mode, *stacked), make)
        return piece

    def _bound(
        self,
        things: Sequence[Any],
        key: tuple[int, ...],
        version: Any,
        bind: Callable[[], Callable[[], None]],
    ) -> Callable[[], None]:
        """What `bind` makes of some things, made once for the same key and version.

        The things are kept: what comes later cannot have their identity, or their place.
        """
        known = self._runs.get(key)
        if known is None or known[0] != version:
            known = self._runs[key] = (version, bind(), things)
            while len(self._runs) > _MAX_BOUND:
                self._runs.popitem(last=False)
        return known[1]

    def _run(
        self,
        piece: Piece,
        inputs: Sequence[np.ndarray],
        out: Sequence[np.ndarray],
        is_repeated: bool,
    ) -> None:
        if not is_repeated:
            piece.bind(inputs, out)()
            return
        things = (piece, *inputs, *out)
        key = tuple(map(id, things))
        self._bound(things, key, piece.generation, lambda: piece.bind(inputs, out))()

    def _sums_piece(self, stacked: Sequence[int] = ()) -> Piece:
        spec = self.spec

        def graph() -> tuple[Sequence[Any], Sequence[Any]]:
            sums = block_graph(spec.network, spec.loss)
            return sums.inputs, sums.outputs

        self._sums = self._piece(("sums", spec.network, spec.loss), graph, stacked)
        return self._sums

    def _rule(self) -> str:
        if self.spec.rule is None:
            raise ValueError("This program has no update: its spec names no optimizer rule.")
        return self.spec.rule

    def _update_recipe(self) -> Recipe:
        rule, dtype = self._rule(), self.spec.network.dtype

        def graph() -> tuple[Sequence[Any], Sequence[Any]]:
            update = update_graph(rule, dtype)
            return update.inputs, update.outputs

        return recipe_for(repr(("update", rule, dtype)), graph, _UPDATE)


class Program(Leases):
    """A model's compiled pieces, leased to one thread for a ``with`` block.

    Arrays that are passed to it again are bound once: to be quick, pass the same ones.
    """

    def __init__(self, spec: ProgramSpec) -> None:
        super().__init__(spec)
        self._loss = np.zeros((), spec.network.dtype)
        self._products: dict[tuple[object, ...], np.ndarray] = {}
        self._scalars: list[np.ndarray] = []
        self._last_update: _BoundUpdate | None = None

    def __enter__(self) -> "Program":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._last_update = None
        self.give_back()

    def sums(
        self,
        parameters: list[np.ndarray],
        rows: Rows,
        targets: np.ndarray,
        weights: np.ndarray,
        out: list[np.ndarray],
        is_repeated: bool = True,
    ) -> float:
        """Loss sum of a block; its gradient sums are written into `out`.

        Parameters
        ----------
        parameters : list of ndarray
            Weight matrices, then intercepts.
        rows : ndarray or csr_array of shape (n, n_features)
        targets : ndarray of shape (n, n_outputs)
        weights : ndarray of shape (n,)
        out : list of ndarray
            Shaped as `parameters`.
        is_repeated : bool
            Whether the same arrays will come again: then they are kept, and bound once.
        """
        piece = self._sums or self._sums_piece()
        if self.spec.network.sparse:
            product = self._product(rows, parameters[0])
            slope = self._room("slope", product.shape)
            inputs = [product, targets, weights, *parameters[1:]]
            self._run(piece, inputs, [self._loss, slope, *out[1:]], is_repeated)
            out[0][...] = rows.T @ slope
        else:
            inputs = [rows, targets, weights, *parameters]
            self._run(piece, inputs, [self._loss, *out], is_repeated)
        return float(self._loss)

    def outputs(self, parameters: list[np.ndarray], rows: Rows) -> np.ndarray:
        """The network's outputs, shape (n, n_outputs)."""
        network = self.spec.network

        def graph() -> tuple[Sequence[Any], Sequence[Any]]:
            symbols = network_graph(network)
            return [symbols.rows, *symbols.parameters], [symbols.outputs]

        piece = self._piece(("outputs", network), graph)
        n_rows, n_outputs = rows.shape[0], len(parameters[-1])
        wide = network.dtype if network.sparse else network.row_dtype
        out = np.empty((n_rows, n_outputs), np.result_type(wide, network.dtype))
        widest = max(array.shape[-1] for array in parameters)
        step = rows_per_call(widest, network.dtype)
        for start in range(0, n_rows, step):
            part = slice(start, min(start + step, n_rows))
            if network.sparse:
                first = (rows[part] @ parameters[0]).astype(network.dtype, copy=False)
                piece.bind([first, *parameters[1:]], [out[part]])()
            else:
                piece.bind([rows[part], *parameters], [out[part]])()
        return out

    def update(
        self,
        vectors: Sequence[np.ndarray],
        n_penalised: int,
        alpha: float,
        scalars: Sequence[float],
    ) -> None:
        """Take a step, in place; see `graphs.optimizers`.

        Parameters
        ----------
        vectors : sequence of ndarray of shape (n,)
            Parameters, sum of gradients, then the optimizer's slots. The sum is read only.
        n_penalised : int
            So many parameters, the first ones, have the L2 penalty `alpha`.
        alpha : float
        scalars : sequence of float
            Sum of weights, step size, and the optimizer's own.
        """
        if not self._scalars:
            self._scalars = [np.zeros((), self.spec.network.dtype) for _ in scalars]
        for array, value in zip(self._scalars, scalars, strict=True):
            array[...] = value
        last = self._last_update
        if last is None or not last.serves(vectors, n_penalised, alpha):
            last = self._last_update = self._bound_update(vectors, n_penalised, alpha)
        last.run()

    def _bound_update(
        self, vectors: Sequence[np.ndarray], n_penalised: int, alpha: float
    ) -> "_BoundUpdate":
        dtype = self.spec.network.dtype

        def make() -> Update:
            if self.spec.mode == NUMPY:
                return TiledUpdate(self._update_recipe(), dtype)
            graph = update_graph(self._rule(), dtype)
            return CompiledUpdate(
                engine.compile_function(graph.inputs, graph.outputs, self.spec.mode, _UPDATE)
            )

        update: Update = self._leased(("update", self._rule(), dtype, self.spec.mode), make)

        def bind() -> Callable[[], None]:
            n = len(vectors[0])
            parts = [(slice(0, n_penalised), alpha), (slice(n_penalised, n), 0.0)]
            return update.bind(vectors, self._scalars, parts)

        generation = update.generation
        # By place, which takes 1 us a vector to tell: a collective's sums are in the same
        # few places, as one view after another.
        places = [vector.__array_interface__["data"][0] for vector in vectors]
        key = (id(update), len(vectors[0]), *places)
        version = (n_penalised, alpha, generation)
        run = self._bound((update, *vectors), key, version, bind)
        return _BoundUpdate(run, update, generation, tuple(vectors), n_penalised, alpha)

    def _product(self, rows: Rows, coef: np.ndarray) -> np.ndarray:
        """Sparse rows times the first weight matrix."""
        product = self._room("product", (rows.shape[0], coef.shape[1]))
        product[...] = rows @ coef
        return product

    def _room(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        key = (name, *shape)
        if key not in self._products:
            if len(self._products) > _MAX_BOUND:
                self._products.clear()
            self._products[key] = np.empty(shape, self.spec.network.dtype)
        return self._products[key]
