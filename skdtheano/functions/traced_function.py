"""A function of arrays, from a Python function of symbols, traced when it is called."""

import inspect
import pickle
from collections import OrderedDict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from functools import update_wrapper
from threading import Lock
from typing import Any

import cloudpickle
import dask.array as da
import numpy as np
from dask.base import is_dask_collection

from skdtheano import engine
from skdtheano.engine import Variable
from skdtheano.functions.arguments import refuse_odd
from skdtheano.functions.frames import without_frames
from skdtheano.functions.graph_function import GraphFunction
from skdtheano.functions.options import Options

#: Graphs kept of one function: each new lambda among the arguments makes another one.
_MAX_TRACES = 256


class TracedFunction:
    """A function of arrays, from a Python function of symbols; made by `function`."""

    def __init__(self, traced: Callable[..., Any], options: Options) -> None:
        self.traced = traced
        self.options = options
        self._signature = inspect.signature(traced)
        self._functions: OrderedDict[Any, tuple[GraphFunction, Any]] = OrderedDict()
        self._lock = Lock()
        update_wrapper(self, traced)

    def __reduce__(self) -> Any:
        # By value: by name, the module would give this object in the place of its function.
        return _restored, (cloudpickle.dumps(self.traced), self.options)

    def __dask_tokenize__(self) -> Any:
        return type(self).__name__, cloudpickle.dumps(self.traced), self.options

    def __repr__(self) -> str:
        return f"<{self.options.name}{self._signature}, target={self.options.target!r}>"

    def __get__(self, instance: Any, owner: Any) -> "TracedFunction":
        if instance is None:
            return self
        raise TypeError(
            f"{self.options.name} is a method of {type(instance).__name__}, and a function "
            "of arrays has no self. Decorate a function that takes what it needs of it."
        )

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if any(map(_is_symbol, (*arguments, *named.values()))):
            return self.traced(*arguments, **named)  # inside another one that is traced
        graph, arrays, structure = self.traced_for(arguments, named)
        found = graph(*arrays)
        return structure(found)

    def graph_for(self, *arguments: Any, **named: Any) -> GraphFunction:
        """The function of symbols that a call with such arguments runs."""
        return self.traced_for(arguments, named)[0]

    def traced_for(
        self, arguments: Sequence[Any], named: Mapping[str, Any]
    ) -> tuple[GraphFunction, list[Any], Any]:
        """The function of symbols for a call, its arrays, and what to make of its outputs."""
        try:
            bound = self._signature.bind(*arguments, **named)  # defaults are its own
        except TypeError as error:
            raise TypeError(f"{self.options.name}{self._signature}: {error}.") from None
        arrays: dict[str, Any] = {}
        key: list[Any] = []
        for name, value in _flat(bound, self._signature).items():
            value = without_frames(value, repr(name))
            if is_dask_collection(value) and not isinstance(value, da.Array):
                raise TypeError(
                    f"Input {name!r} is a {type(value).__name__}. Give a dask Array, "
                    "DataFrame or Series; da.from_delayed makes one."
                )
            if value is None or isinstance(value, bool | str | tuple) or callable(value):
                key.append((name, _option(name, value)))
                continue
            refuse_odd(value, repr(name))
            array: Any = value if isinstance(value, da.Array) else np.asarray(value)
            if array.dtype.kind not in "biufc":
                kind = type(value).__name__
                raise TypeError(
                    f"Input {name!r} is a {kind} of dtype {array.dtype}, which is not a "
                    "number's. Encode or convert it before; an option of the function goes in "
                    "a tuple, a string, a bool or None."
                )
            arrays[name] = array
            key.append((name, str(array.dtype.newbyteorder("=")), array.ndim))
        with self._lock:
            made = self._functions.get(tuple(key))
        if made is None:
            # Without the lock: what is traced may call this function, or another one that
            # calls it. Two threads may trace the same, and the first one's is kept.
            made = self._trace(bound, arrays)
        with self._lock:
            made = self._functions.setdefault(tuple(key), made)
            self._functions.move_to_end(tuple(key))
            while len(self._functions) > _MAX_TRACES:
                self._functions.popitem(last=False)
        graph, structure = made
        return graph, list(arrays.values()), structure

    def _trace(self, bound: inspect.BoundArguments, arrays: Mapping[str, Any]) -> Any:
        symbols = {
            name: engine.tensor(name, str(array.dtype.newbyteorder("=")), array.ndim)
            for name, array in arrays.items()
        }
        replaced = _replaced(bound, symbols, self._signature)
        try:
            found = self.traced(*replaced.args, **replaced.kwargs)
        except Exception as error:
            error.add_note(_as_traced(self.options.name, bound, arrays))
            raise
        if found is None:
            raise TypeError(
                f"{self.options.name} returned None. Return what it computes: one symbol, or "
                "a list or tuple of them."
            )
        structure: Callable[[Any], Any] = tuple if isinstance(found, tuple) else _as_it_is
        outputs = list(found) if isinstance(found, tuple) else found
        options = self._options_for(symbols)
        return GraphFunction(list(symbols.values()), outputs, None, None, options), structure

    def _options_for(self, symbols: Container[str]) -> Options:
        """The options, but for names of parameters that are no arrays in this call."""
        absent = {
            name
            for name, parameter in self._signature.parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_POSITIONAL and name not in symbols
        }
        rows, replicated = self.options.rows, self.options.replicated
        return replace(
            self.options,
            rows=None if rows is None else tuple(n for n in rows if n not in absent),
            replicated=tuple(n for n in replicated if n not in absent),
        )


def _is_symbol(value: Any) -> bool:
    # A dask.delayed has every attribute that it is asked for.
    return hasattr(value, "owner") and not is_dask_collection(value)


def _restored(traced: bytes, options: Options) -> TracedFunction:
    return TracedFunction(pickle.loads(traced), options)


def _option(name: str, value: Any) -> Any:
    """The value of an option as a part of a key.

    Raises
    ------
    TypeError
        If it has no hash.
    """
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(
            f"Argument {name!r} is {value!r}, which is no array and has no hash ({error}), so "
            "that calls with it cannot be told apart. Give arrays as arguments of their own."
        ) from error
    return _typed(value)


def _typed(value: Any) -> Any:
    """A value as a key: (1,) and (1.0,) are equal, and trace two graphs; so do 0. and -0."""
    if isinstance(value, tuple):
        return tuple(map(_typed, value))
    return type(value), repr(value) if isinstance(value, float | complex) else value


def _flat(bound: inspect.BoundArguments, signature: inspect.Signature) -> dict[str, Any]:
    """Arguments by name; those of ``*args`` are numbered."""
    flat: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            raise TypeError(f"**{name} of a traced function has no order. Name the arguments.")
        several = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
        own = _numbered(name, value) if several else {name: value}
        clash = sorted(set(own) & set(flat))
        if clash:
            raise TypeError(f"*{name} gives a second input named {clash[0]!r}. Rename one.")
        flat.update(own)
    return flat


def _numbered(name: str, values: Sequence[Any]) -> dict[str, Any]:
    return {f"{name}_{i}": one for i, one in enumerate(values)}


def _replaced(
    bound: inspect.BoundArguments,
    symbols: Mapping[str, Variable],
    signature: inspect.Signature,
) -> inspect.BoundArguments:
    """The arguments of a call, with symbols in the place of arrays."""
    replaced: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            replaced[name] = tuple(
                symbols.get(n, one) for n, one in _numbered(name, value).items()
            )
        else:
            replaced[name] = symbols.get(name, value)
    return inspect.BoundArguments(signature, OrderedDict(replaced))


def _as_traced(function: str, bound: inspect.BoundArguments, arrays: Mapping[str, Any]) -> str:
    """What a function was traced with, for who reads its error."""
    given = [
        f"{name} a symbol of {a.ndim} dimensions, {a.dtype}" for name, a in arrays.items()
    ]
    given += [f"{name}={v!r}" for name, v in bound.arguments.items() if name not in arrays]
    note = f"{function} was traced with {', '.join(given)}."
    for name, a in arrays.items():
        if isinstance(a, np.ndarray) and a.ndim == 0 and a.dtype.kind in "iu":
            note += (
                f" {name!r} was given as a whole number, which is a symbol too. Where its "
                f"value is needed, as for an axis, give it as a tuple, {name}=({a},), or bind "
                f"it before: functools.partial({function}, {name}={a})."
            )
    return note


def _as_it_is(value: Any) -> Any:
    return value
