"""`function`: a graph as a function of arrays, here or over the rows of dask arrays."""

import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import update_wrapper
from threading import Lock
from typing import Any

import cloudpickle
import dask.array as da
import dask.dataframe as dd
import numpy as np
from dask.base import compute, is_dask_collection, persist

from skdtheano import engine, symbolic
from skdtheano.engine import Variable
from skdtheano.functions.arguments import Cut, cut_by_rows, to_dask_or_numpy
from skdtheano.functions.outlines import outlines, shape_key
from skdtheano.functions.packing import pack
from skdtheano.graphs.placement import Placement
from skdtheano.graphs.plan import Plan
from skdtheano.graphs.splitting import split
from skdtheano.notices import warn_user
from skdtheano.runtime.lazy import Outline, lazy_outputs
from skdtheano.runtime.pieces import Source, source_of
from skdtheano.runtime.staged import Staged

TARGETS = (None, "cpu", "dask", "gpu")


@dataclass(frozen=True)
class Options:
    """How a function is made; see `function`."""

    on_unused_input: str
    target: str | None
    mode: str
    name: str
    rows: tuple[str, ...] | None
    replicated: tuple[str, ...]
    gather: bool


def function(
    inputs: Any = None,
    outputs: Any = None,
    updates: Any = None,
    givens: Any = None,
    on_unused_input: str = "raise",
    target: str | None = None,
    mode: str | None = None,
    name: str | None = None,
    *,
    rows: Sequence[str] | None = None,
    replicated: Sequence[str] = (),
    gather: str = "error",
) -> Any:
    """Make a function of arrays from a graph, as ``theano.function``; or decorate one.

    With ``target="dask"`` and dask arrays, the graph is cut by rows: what runs on each
    block, what is combined over the blocks, and what runs once follow from its Ops. The
    result is that of the same call with NumPy arrays, up to the rounding of sums.

    Parameters
    ----------
    inputs : list of Variable
        Symbols, in the order of the arguments. Without `inputs` this is a decorator for a
        Python function of symbols, which is traced once for each dtypes and ranks that it
        is called with; strings, bools, None and tuples are passed to it as they are.
    outputs : Variable or list of Variable
    updates : dict or list of pairs, optional
        Next values of shared variables, set after each call. On dask arrays such a call
        computes at once.
    givens : dict or list of pairs, optional
        Variables to replace in the graph, with what replaces them.
    on_unused_input : {"raise", "warn", "ignore"}
    target : {None, "cpu", "dask", "gpu"}
        None and ``"cpu"``: compile and call here. ``"dask"``: the same for arrays in
        memory; dask arrays give lazy dask arrays. ``"gpu"``: by JAX, on an accelerator.
    mode : str or None
        The engine's compile mode; None is ``"FAST_COMPILE"``.
    name : str, optional
        Begins the names of the tasks; by default that of the Python function.
    rows : sequence of str, optional
        Names of the inputs that are cut by rows; all others are then replicated. Without
        it, these are the dask arrays of several blocks along axis 0, and those of one
        block that are as long.
    replicated : sequence of str
        Names of inputs that are not cut, whatever they are given as.
    gather : {"error", "allow"}
        What to do where an Op needs all rows at one place: refuse, or bring them there.

    Returns
    -------
    callable
        Of arrays. It pickles, and runs in dask tasks; a process compiles a graph once.

    Raises
    ------
    ValueError, TypeError
        For a graph or arguments that do not fit; PlacementError, a ValueError, where an Op
        cannot be computed block by block.

    Examples
    --------
    >>> import dask.array as da
    >>> import skdtheano
    >>> @skdtheano.function(target="dask")
    ... def covariance(X):
    ...     centred = X - X.mean(axis=0)
    ...     return centred.T.dot(centred) / X.shape[0]
    >>> X = da.random.RandomState(0).normal(size=(1000, 3), chunks=(100, 3))
    >>> covariance(X).shape
    (3, 3)
    """
    if target not in TARGETS:
        raise ValueError(f"target={target!r} is not one of {TARGETS}.")
    if on_unused_input not in ("raise", "warn", "ignore"):
        raise ValueError(
            f"on_unused_input={on_unused_input!r} is not one of 'raise', 'warn', 'ignore'."
        )
    if gather not in ("error", "allow"):
        raise ValueError(f"gather={gather!r} is neither 'error' nor 'allow'.")
    options = Options(
        on_unused_input=on_unused_input,
        target=target,
        mode=engine.accelerator_mode(mode) if target == "gpu" else engine.check_mode(mode),
        name=name or "function",
        rows=None if rows is None else _names(rows, "rows"),
        replicated=_names(replicated, "replicated"),
        gather=gather == "allow",
    )
    if inputs is None and outputs is None:
        return lambda traced: TracedFunction(traced, _named(options, traced, name))
    if outputs is None and callable(inputs) and not hasattr(inputs, "owner"):
        return TracedFunction(inputs, _named(options, inputs, name))
    return GraphFunction(inputs, outputs, updates, givens, options)


def _names(given: Sequence[str], argument: str) -> tuple[str, ...]:
    if isinstance(given, str) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"{argument}={given!r} is not a sequence of input names.")
    return tuple(given)


def _named(options: Options, traced: Callable[..., Any], name: str | None) -> Options:
    given = str(name or getattr(traced, "__name__", "function"))
    return replace(options, name=given.strip("<>"))


class GraphFunction:
    """A function of arrays, from symbols; made by `function`."""

    def __init__(
        self, inputs: Any, outputs: Any, updates: Any, givens: Any, options: Options
    ) -> None:
        self.options = options
        self.single = not isinstance(outputs, list | tuple)
        self.inputs: list[Variable] = _symbols(inputs)
        wanted = [] if outputs is None else [outputs] if self.single else list(outputs)
        for place, variable in enumerate(wanted):
            if not hasattr(variable, "owner"):
                raise TypeError(
                    f"Output {place} is {variable!r}, a {type(variable).__name__}. Outputs "
                    "are symbols, made from those of the inputs."
                )
        changes = _pairs(updates, "updates")
        for shared, _ in changes:
            if not hasattr(shared, "get_value"):
                raise TypeError(f"updates= names {shared!r}, which is no shared variable.")
        values = [*wanted, *(value for _, value in changes)]
        values = symbolic.substituted(values, dict(_pairs(givens, "givens")))
        self.n_outputs = len(wanted)
        self.updated = [shared for shared, _ in changes]
        self.shared = symbolic.shared_variables(values, set(self.inputs))
        stand_ins = {shared: engine.symbol_like(shared, None) for shared in self.shared}
        self.outputs = symbolic.substituted(values, stand_ins)
        self.symbols = [*self.inputs, *stand_ins.values()]
        self._check_leaves()
        self._start()

    def _start(self) -> None:
        self._lock = Lock()
        self._here: Source | None = None
        self._plans: dict[tuple[Placement, ...], Plan] = {}
        self._staged: dict[tuple[Any, ...], Staged] = {}
        self._outlines: dict[Any, list[Outline]] = {}

    def __getstate__(self) -> dict[str, Any]:
        dropped = ("_lock", "_here", "_plans", "_staged", "_outlines")
        state = {name: value for name, value in vars(self).items() if name not in dropped}
        return {"pickled": symbolic.dumps(state)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(pickle.loads(state["pickled"]))
        self._start()

    def __dask_tokenize__(self) -> Any:
        return type(self).__name__, self._source().key, self.options.mode

    def __repr__(self) -> str:
        names = ", ".join(str(symbol.name or symbol.type) for symbol in self.inputs)
        return f"<{self.options.name}({names}), target={self.options.target!r}>"

    @property
    def __name__(self) -> str:
        return self.options.name

    def _check_leaves(self) -> None:
        known = set(self.symbols)
        free = [
            variable
            for variable in symbolic.leaves(self.outputs, known)
            if not symbolic.is_constant(variable) and variable not in known
        ]
        if free:
            raise ValueError(
                f"The outputs depend on {free[0]}, which is no input. Name it among the "
                "inputs, or give it a value with givens=."
            )
        used = symbolic.reached(self.outputs, known)
        unused = [v for v in self.inputs if v not in used]
        if unused and self.options.on_unused_input != "ignore":
            text = (
                f"Input {unused[0]} is not used by any output. Leave it out, or use "
                "on_unused_input='ignore'."
            )
            if self.options.on_unused_input == "raise":
                raise ValueError(text)
            warn_user(text)

    # --- calling ----------------------------------------------------------------------------

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        values = [
            to_dask_or_numpy(value, symbol, place)
            for place, (symbol, value) in enumerate(
                zip(self.inputs, self._bound(arguments, named), strict=True)
            )
        ]
        values += [np.asarray(shared.get_value()) for shared in self.shared]
        if not any(is_dask_collection(value) for value in values):
            return self._finished(self._source()(*values))
        if self.options.target != "dask":
            raise TypeError(
                f"{self.options.name} was given a dask array and has "
                f"target={self.options.target!r}. Make it with target='dask', or call it on "
                "blocks: x.map_blocks(f)."
            )
        cut = self.cut(values)
        arrays = lazy_outputs(
            self._staged_for(cut.placements, self.options.mode),
            cut.arguments,
            cut.row_chunks,
            self._outlines_for(cut),
            self.options.name,
        )
        return self._finished(arrays)

    def plan(self, placements: Sequence[Placement]) -> Plan:
        """The graph, cut by rows, for inputs that are placed so."""
        key = tuple(placements)
        if key not in self._plans:
            self._plans[key] = split(self.symbols, self.outputs, key, self.options.gather)
        return self._plans[key]

    def _bound(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
        names = [symbol.name for symbol in self.inputs]
        if len(arguments) > len(names):
            raise TypeError(
                f"{self.options.name} takes {len(names)} arguments, and got {len(arguments)}."
            )
        given = dict(enumerate(arguments))
        for name, value in named.items():
            if name not in names or names.index(name) in given:
                raise TypeError(f"{self.options.name} has no further input named {name!r}.")
            given[names.index(name)] = value
        missing = [names[i] or i for i in range(len(names)) if i not in given]
        if missing:
            raise TypeError(f"{self.options.name} needs a value for {missing[0]!r}.")
        return [given[i] for i in range(len(names))]

    def cut(self, values: Sequence[Any]) -> Cut:
        """Decide which arguments have rows, and cut them alike."""
        options = self.options
        known = {symbol.name for symbol in self.inputs}
        for argument, names in (
            ("rows", options.rows or ()),
            ("replicated", options.replicated),
        ):
            odd = [name for name in names if name not in known]
            if odd:
                raise ValueError(
                    f"{argument}={list(names)} names {odd[0]!r}, and the inputs are "
                    f"{sorted(map(str, known))}."
                )
        return cut_by_rows(
            self.symbols, values, options.rows, options.replicated, len(self.inputs)
        )

    def _source(self) -> Source:
        with self._lock:
            if self._here is None:
                self._here = source_of(
                    self.symbols, self.outputs, self.options.mode, self.options.name
                )
            return self._here

    def _staged_for(self, placements: tuple[Placement, ...], mode: str) -> Staged:
        with self._lock:
            key = (placements, mode)
            if key not in self._staged:
                self._staged[key] = pack(self.plan(placements), mode, self.options.name)
            return self._staged[key]

    def _outlines_for(self, cut: Cut) -> list[Outline]:
        key = (cut.placements, shape_key(cut.arguments))
        if key not in self._outlines:
            staged = self._staged_for(cut.placements, engine.DEFAULT_MODE)
            self._outlines[key] = outlines(staged, self.outputs, cut.arguments)
        return self._outlines[key]

    def _finished(self, values: list[Any]) -> Any:
        """The outputs; shared variables take their next values before."""
        if self.updated:
            # A lazy call would leave the shared variables as they are.
            values = list(persist(*values))
            following = compute(*values[self.n_outputs :])
            for shared, value in zip(self.updated, following, strict=True):
                shared.set_value(value)
        outputs = values[: self.n_outputs]
        if not outputs:
            return None
        return outputs[0] if self.single else outputs


class TracedFunction:
    """A function of arrays, from a Python function of symbols; made by `function`."""

    def __init__(self, traced: Callable[..., Any], options: Options) -> None:
        self.traced = traced
        self.options = options
        self._signature = inspect.signature(traced)
        self._functions: dict[Any, tuple[GraphFunction, Any]] = {}
        self._lock = Lock()
        update_wrapper(self, traced)

    def __getstate__(self) -> dict[str, Any]:
        return {"traced": cloudpickle.dumps(self.traced), "options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # By value: by name, the module would give this object in the place of its function.
        self.__init__(pickle.loads(state["traced"]), state["options"])  # type: ignore[misc]

    def __dask_tokenize__(self) -> Any:
        return type(self).__name__, cloudpickle.dumps(self.traced), self.options

    def __repr__(self) -> str:
        return f"<{self.options.name}{self._signature}, target={self.options.target!r}>"

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        graph, arrays, structure = self._traced_for(arguments, named)
        found = graph(*arrays)
        return structure(found)

    def graph_for(self, *arguments: Any, **named: Any) -> GraphFunction:
        """The function of symbols that a call with such arguments runs."""
        return self._traced_for(arguments, named)[0]

    def _traced_for(
        self, arguments: Sequence[Any], named: Mapping[str, Any]
    ) -> tuple[GraphFunction, list[Any], Any]:
        bound = self._signature.bind(*arguments, **named)
        bound.apply_defaults()
        arrays: dict[str, Any] = {}
        key: list[Any] = []
        for name, value in _flat(bound, self._signature).items():
            if value is None or isinstance(value, bool | str | tuple) or callable(value):
                key.append((name, value))
                continue
            if isinstance(value, dd.DataFrame | dd.Series):
                value = value.to_dask_array()
            array: Any = value if isinstance(value, da.Array) else np.asarray(value)
            arrays[name] = array
            key.append((name, str(array.dtype), array.ndim))
        with self._lock:
            made = self._functions.get(tuple(key))
            if made is None:
                made = self._trace(bound, arrays)
                self._functions[tuple(key)] = made
        graph, structure = made
        return graph, list(arrays.values()), structure

    def _trace(self, bound: inspect.BoundArguments, arrays: Mapping[str, Any]) -> Any:
        symbols = {
            name: engine.tensor(name, str(array.dtype), array.ndim)
            for name, array in arrays.items()
        }
        found = self.traced(*_replaced(bound.args, bound, symbols, self._signature))
        structure: Callable[[Any], Any] = tuple if isinstance(found, tuple) else _as_it_is
        outputs = list(found) if isinstance(found, tuple) else found
        graph = GraphFunction(list(symbols.values()), outputs, None, None, self.options)
        return graph, structure


def _flat(bound: inspect.BoundArguments, signature: inspect.Signature) -> dict[str, Any]:
    """Arguments by name; those of ``*args`` are numbered."""
    flat: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            flat.update({f"{name}_{i}": one for i, one in enumerate(value)})
        elif signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            raise TypeError(f"**{name} of a traced function has no order. Name the arguments.")
        else:
            flat[name] = value
    return flat


def _replaced(
    arguments: Sequence[Any],
    bound: inspect.BoundArguments,
    symbols: Mapping[str, Variable],
    signature: inspect.Signature,
) -> list[Any]:
    flat = _flat(bound, signature)
    assert len(flat) == len(arguments) + len(bound.kwargs)
    return [symbols.get(name, value) for name, value in flat.items()]


def _as_it_is(value: Any) -> Any:
    return value


def _symbols(inputs: Any) -> list[Variable]:
    if not isinstance(inputs, list | tuple):
        raise TypeError(
            f"inputs={inputs!r} is no list. Give the symbols in the order of the arguments, "
            "or decorate a Python function: @function(target='dask')."
        )
    for place, symbol in enumerate(inputs):
        if not hasattr(symbol, "owner") or symbolic.is_constant(symbol):
            raise TypeError(f"Input {place} is {symbol!r}, which is no symbol.")
        if hasattr(symbol, "get_value"):
            raise TypeError(
                f"Input {symbol} is a shared variable, which has a value of its own. Leave it "
                "out, or replace it with givens=."
            )
    if len(set(inputs)) < len(inputs):
        raise ValueError("The same symbol is an input twice.")
    return list(inputs)


def _pairs(given: Any, name: str) -> list[tuple[Variable, Variable]]:
    if given is None:
        return []
    pairs = given.items() if isinstance(given, Mapping) else given
    try:
        return [(old, engine.as_variable(new, old)) for old, new in pairs]
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name}= takes a dict or a list of pairs of symbols and what takes their place: "
            f"{error}"
        ) from error
