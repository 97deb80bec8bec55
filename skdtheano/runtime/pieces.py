"""Pieces of users' graphs: sent as bytes, compiled once per process, leased to threads."""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np

from skdtheano import engine, symbolic

Compiled = Callable[..., list[np.ndarray]]

_MAX_KEYS = 256
_idle: OrderedDict[tuple[str, str], list[Compiled]] = OrderedDict()
_idle_lock = Lock()


@dataclass(frozen=True)
class Source:
    """A graph in bytes, to be compiled where it is called.

    Attributes
    ----------
    name : str
        For people: what the compiled function is called.
    mode : str
        The engine's compile mode.
    key : str
        Says what is computed: equal for equal graphs, in any process.
    payload : bytes
        Inputs and outputs.
    """

    name: str
    mode: str
    key: str
    payload: bytes = field(repr=False, compare=False)

    def __call__(self, *arguments: np.ndarray) -> list[np.ndarray]:
        # What comes over the network may begin at any byte, and C code refuses that.
        aligned = [np.require(argument, requirements="A") for argument in arguments]
        with leased(self) as function:
            return list(function(*aligned))

    def __dask_tokenize__(self) -> tuple[str, str]:
        return self.key, self.mode

    @cached_property
    def graph(self) -> tuple[list[Any], list[Any]]:
        inputs, outputs = pickle.loads(self.payload)
        return inputs, outputs

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("name", "mode", "key", "payload")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def source_of(inputs: Sequence[Any], outputs: Sequence[Any], mode: str, name: str) -> Source:
    """Pack a graph."""
    key = symbolic.graph_key(inputs, outputs)
    return Source(name, mode, key, symbolic.dumps((list(inputs), list(outputs))))


@contextmanager
def leased(source: Source) -> Iterator[Compiled]:
    """A compiled function that no other thread has meanwhile.

    It keeps its inputs and outputs in containers of its own, so two threads that call one
    get wrong results.
    """
    key = (source.key, source.mode)
    with _idle_lock:
        waiting = _idle.get(key)
        function = waiting.pop() if waiting else None
    if function is None:
        inputs, outputs = source.graph
        function = engine.compile_function(inputs, outputs, source.mode, source.name)
    try:
        yield function
    finally:
        with _idle_lock:
            _idle.setdefault(key, []).append(function)
            _idle.move_to_end(key)
            while len(_idle) > _MAX_KEYS:
                _idle.popitem(last=False)
