"""Compiled pieces of a training program, shared by everything in this process.

A compiled function serves one thread at a time, so functions are leased: a thread that
finds none idle compiles another. Graphs do not know layer sizes or hyperparameters, so a
process compiles a graph once for all models of one depth, activation and loss.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np

from skdtheano import engine
from skdtheano.graphs.losses import block_graph
from skdtheano.graphs.network import Network, network_graph
from skdtheano.graphs.optimizers import update_graph
from skdtheano.runtime.blocks import Rows

Function = Callable[..., list[np.ndarray]]

_MAX_KEYS = 64
_idle: OrderedDict[tuple[Any, ...], list[Function]] = OrderedDict()
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
        The engine's compile mode.
    """

    network: Network
    loss: str
    rule: str | None
    mode: str


class Program:
    """A model's compiled functions, leased to one thread for a ``with`` block."""

    def __init__(self, spec: ProgramSpec) -> None:
        self.spec = spec
        self._leased: dict[tuple[Any, ...], Function] = {}

    def __enter__(self) -> "Program":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with _idle_lock:
            for key, function in self._leased.items():
                _idle.setdefault(key, []).append(function)
                _idle.move_to_end(key)
            while len(_idle) > _MAX_KEYS:
                _idle.popitem(last=False)
        self._leased = {}

    def _function(
        self, key: tuple[Any, ...], graph: Callable[[], tuple[Sequence[Any], Sequence[Any]]]
    ) -> Function:
        function = self._leased.get(key)
        if function is None:
            with _idle_lock:
                waiting = _idle.get(key)
                function = waiting.pop() if waiting else None
            if function is None:
                inputs, outputs = graph()
                function = engine.compile_function(
                    inputs, outputs, mode=self.spec.mode, name=f"skdtheano-{key[0]}"
                )
            self._leased[key] = function
        return function

    def sums(
        self,
        parameters: list[np.ndarray],
        rows: Rows,
        targets: np.ndarray,
        weights: np.ndarray,
        out: list[np.ndarray],
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
        """
        spec = self.spec

        def graph() -> tuple[Sequence[Any], Sequence[Any]]:
            sums = block_graph(spec.network, spec.loss)
            return sums.inputs, sums.outputs

        function = self._function(("sums", spec.network, spec.loss, spec.mode), graph)
        if spec.network.sparse:
            product = (rows @ parameters[0]).astype(spec.network.dtype, copy=False)
            loss, slope, *gradients = function(product, targets, weights, *parameters[1:])
            out[0][...] = rows.T @ slope
            rest = out[1:]
        else:
            loss, *gradients = function(rows, targets, weights, *parameters)
            rest = out
        for view, gradient in zip(rest, gradients, strict=True):
            view[...] = gradient
        return float(loss)

    def outputs(self, parameters: list[np.ndarray], rows: Rows) -> np.ndarray:
        """The network's outputs, shape (n, n_outputs)."""
        network = self.spec.network

        def graph() -> tuple[Sequence[Any], Sequence[Any]]:
            symbols = network_graph(network)
            return [symbols.rows, *symbols.parameters], [symbols.outputs]

        function = self._function(("outputs", network, self.spec.mode), graph)
        if network.sparse:
            product = (rows @ parameters[0]).astype(network.dtype, copy=False)
            return function(product, *parameters[1:])[0]
        return function(rows, *parameters)[0]

    def update(
        self,
        theta: np.ndarray,
        gradient_sum: np.ndarray,
        penalty: np.ndarray,
        weight_sum: float,
        slots: list[np.ndarray],
        scalars: Sequence[float],
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Next parameters and slots, as new arrays; see `graphs.optimizers`."""
        rule, dtype = self.spec.rule, self.spec.network.dtype
        if rule is None:
            raise ValueError("This program has no update: its spec names no optimizer rule.")

        def graph() -> tuple[Sequence[Any], Sequence[Any]]:
            update = update_graph(rule, dtype)
            return update.inputs, update.outputs

        function = self._function(("update", rule, dtype, self.spec.mode), graph)
        typed = [np.asarray(value, dtype) for value in (weight_sum, *scalars)]
        new_theta, *new_slots = function(
            theta, gradient_sum, penalty, typed[0], *slots, *typed[1:]
        )
        return new_theta, new_slots
