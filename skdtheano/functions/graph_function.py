"""A function of arrays, from symbols: called here, or cut by the rows of dask arrays."""

import pickle
from collections.abc import Mapping, Sequence
from threading import Lock, RLock
from typing import Any

import numpy as np
from dask.base import compute, is_dask_collection, persist

from skdtheano import draws, engine, symbolic
from skdtheano.engine import Variable
from skdtheano.functions.arguments import Cut, cut_by_rows, name_of, to_dask_or_numpy
from skdtheano.functions.options import Options
from skdtheano.functions.outlines import Outlines
from skdtheano.functions.packing import pack
from skdtheano.graphs.placement import Placement
from skdtheano.graphs.plan import Plan
from skdtheano.graphs.splitting import split
from skdtheano.notices import warn_user
from skdtheano.runtime.lazy import lazy_outputs
from skdtheano.runtime.pieces import Source, source_of
from skdtheano.runtime.staged import Staged, telling_of


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
        given = dict(_pairs(givens, "givens"))
        changes = dict(_pairs(updates, "updates"))
        for shared in changes:
            if not hasattr(shared, "get_value"):
                raise TypeError(f"updates= names {shared!r}, which is no shared variable.")
        values = symbolic.substituted([*wanted, *changes.values()], given)
        # As for theano.function: the generators of random streams go on by themselves.
        while following := _default_updates(values, set(self.inputs), changes):
            changes |= following
            values += symbolic.substituted(list(following.values()), given)
        self.n_outputs = len(wanted)
        self.updated = list(changes)
        self.shared = symbolic.shared_variables(values, set(self.inputs))
        self.outputs, held = _with_symbols(values, self.shared)
        self.symbols = [*self.inputs, *held]
        self._check_leaves()
        self._start()

    def _start(self) -> None:
        self._lock = Lock()
        self._updating = RLock()
        self._here: Source | None = None
        self._plans: dict[tuple[Placement, ...], Plan] = {}
        self._staged: dict[tuple[Any, ...], Staged] = {}
        self._outlines: Outlines | None = None

    def __getstate__(self) -> dict[str, Any]:
        dropped = ("_lock", "_updating", "_here", "_plans", "_staged", "_outlines")
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
        if not self.updated:
            return self._called(arguments, named)
        with self._updating:  # or two threads would begin with the same values
            return self._called(arguments, named)

    def _called(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        values = [
            to_dask_or_numpy(value, symbol, place)
            for place, (symbol, value) in enumerate(
                zip(self.inputs, self.bound(arguments, named), strict=True)
            )
        ]
        values += [_value_of(shared) for shared in self.shared]
        if not any(is_dask_collection(value) for value in values):
            with telling_of(self.options.name, self._names(), values):
                found = self._source()(*values)
            return self._finished(found)
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
            self._shapes().of(cut.arguments),
            self.options.name,
            self._names(),
        )
        return self._finished(arrays)

    def _names(self) -> list[str]:
        return [name_of(symbol, place) for place, symbol in enumerate(self.symbols)]

    def plan(self, placements: Sequence[Placement]) -> Plan:
        """The graph, cut by rows, for inputs that are placed so."""
        key = tuple(placements)
        if key not in self._plans:
            self._plans[key] = split(self.symbols, self.outputs, key, self.options.gather)
        return self._plans[key]

    def bound(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
        """The arguments of a call, in the order of the inputs."""
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

    def _shapes(self) -> Outlines:
        with self._lock:
            if self._outlines is None:
                self._outlines = Outlines(self.symbols, self.outputs)
            return self._outlines

    def _finished(self, values: list[Any]) -> Any:
        """The outputs; shared variables take their next values before."""
        if self.updated:
            # A lazy call would leave the shared variables as they are.
            values = list(persist(*values))
            following = compute(*values[self.n_outputs :])
            for shared, value in zip(self.updated, following, strict=True):
                is_generator = draws.is_generator(shared)
                shared.set_value(draws.unpack_generator(value) if is_generator else value)
        outputs = values[: self.n_outputs]
        if not outputs:
            return None
        return outputs[0] if self.single else outputs


def _default_updates(
    values: Sequence[Variable], inputs: set[Variable], changes: Mapping[Variable, Variable]
) -> dict[Variable, Variable]:
    """Updates that shared variables bring along, of those that are read and not changed."""
    found = {
        shared: getattr(shared, "default_update", None)
        for shared in symbolic.shared_variables(values, inputs)
        if shared not in changes
    }
    return {shared: update for shared, update in found.items() if update is not None}


def _with_symbols(
    values: Sequence[Variable], shared: Sequence[Variable]
) -> tuple[list[Variable], list[Variable]]:
    """Values over symbols in the place of shared variables; generators are bytes."""
    symbols: list[Variable] = []
    stand_ins: dict[Variable, Variable] = {}
    for variable in shared:
        if not draws.is_generator(variable):
            symbols.append(engine.symbol_like(variable, None))
            stand_ins[variable] = symbols[-1]
            continue
        if engine.ENGINE != "pytensor":
            raise TypeError(
                f"{variable} is a random stream of {engine.ENGINE}. Draw with NumPy or dask, "
                "and give the function what was drawn; or use PyTensor."
            )
        symbols.append(engine.vector(variable.name, dtype="uint8"))
        stand_ins[variable] = draws.unpacked(symbols[-1])
    outputs = symbolic.substituted(values, stand_ins)
    return [draws.packed(v) if draws.is_generator(v) else v for v in outputs], symbols


def _value_of(shared: Variable) -> np.ndarray:
    value = shared.get_value()
    return draws.pack_generator(value) if draws.is_generator(shared) else np.asarray(value)


def _symbols(inputs: Any) -> list[Variable]:
    if not isinstance(inputs, list | tuple):
        raise TypeError(
            f"inputs={inputs!r} is no list. Give the symbols in the order of the arguments, "
            "or decorate a Python function: @function(target='dask')."
        )
    for place, symbol in enumerate(inputs):
        if not hasattr(symbol, "owner") or symbolic.is_constant(symbol):
            raise TypeError(f"Input {place} is {symbol!r}, which is no symbol.")
        if draws.is_generator(symbol) and not hasattr(symbol, "get_value"):
            raise TypeError(
                f"Input {symbol} is a random generator, and arguments are arrays. Make it a "
                "shared variable, with the generator's update in updates=."
            )
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
