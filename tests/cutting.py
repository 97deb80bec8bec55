"""Graphs of either engine, cut by rows and run here, against the whole."""

from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import import_module
from inspect import signature
from typing import Any

import numpy as np

from skdtheano import engine
from skdtheano.functions.packing import pack
from skdtheano.graphs.placement import Placement, Rows
from skdtheano.graphs.plan import Plan
from skdtheano.graphs.splitting import split
from skdtheano.runtime.staged import Staged, run_here

library: Any = import_module(engine.ENGINE)
pt: Any = import_module(f"{engine.ENGINE}.tensor")

#: PyTensor draws no line between an Op of a vector and one of each row; Theano has only those.
PYTENSOR = engine.ENGINE == "pytensor"


def import_from(module: str, name: str) -> Any:
    """A name of the engine that its tensor module does not offer."""
    return getattr(import_module(f"{engine.ENGINE}.{module}"), name)


def log_softmax(x: Any, axis: int) -> Any:
    """Over an axis of a matrix; Theano's is of each row."""
    if PYTENSOR:
        return pt.special.log_softmax(x, axis=axis)
    logsoftmax = import_from("tensor.nnet", "logsoftmax")
    return logsoftmax(x) if axis in (1, -1) else logsoftmax(x.T).T


def tanh_of_sum(x: Any, state: Any) -> Any:
    return pt.tanh(state + x)


def looped(sequence: Any, start: Any, step: Callable[..., Any] = tanh_of_sum) -> Any:
    """The last state of a loop."""
    # PyTensor warns unless it is told to return no updates; Theano cannot be told.
    is_told = "return_updates" in signature(library.scan).parameters
    more = {"return_updates": False} if is_told else {}
    states = library.scan(step, sequences=[sequence], outputs_info=[start], **more)
    return (states if is_told else states[0])[-1]


def softmax(x: Any, axis: int) -> Any:
    """Over an axis of a matrix; Theano's is of each row."""
    if PYTENSOR:
        return pt.special.softmax(x, axis=axis)
    nnet_softmax = import_from("tensor.nnet", "softmax")
    return nnet_softmax(x) if axis in (1, -1) else nnet_softmax(x.T).T


def gradients(cost: Any, of: Sequence[Any]) -> list[Any]:
    """The engine's; zeros where the cost does not depend on a symbol."""
    found: list[Any] = library.grad(cost, list(of), disconnected_inputs="ignore")
    return found


def summary(outputs: Sequence[Any]) -> Any:
    """A smooth scalar that depends on every entry of the outputs that are floats."""
    floats = [v for v in outputs if v.dtype == "float64"]
    return sum((pt.sin(v + 0.3) * (v + 2)).sum() for v in floats)


class Cutting:
    """One graph, as the engine runs it whole and as its plan runs it by blocks."""

    def __init__(
        self,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        placements: Sequence[Placement],
        gather: bool = False,
    ) -> None:
        self.inputs, self.outputs = list(inputs), list(outputs)
        self.placements = tuple(placements)
        self.plan: Plan = split(inputs, outputs, placements, gather)

    @cached_property
    def staged(self) -> Staged:
        return pack(self.plan, engine.DEFAULT_MODE, "test")

    @cached_property
    def whole(self) -> Callable[..., list[np.ndarray]]:
        return engine.compile_function(
            self.inputs, self.outputs, engine.DEFAULT_MODE, "test-whole"
        )

    def structure(self) -> str:
        """What each stage computes: once, rows that stay, and how parts are combined.

        As in ``"max > rows sum > once"``: three stages; in the second, each block keeps its
        rows and has a part of a sum.
        """
        return " > ".join(
            " ".join(["once"] * bool(stage.once.results) + sorted(_words(stage.block)))
            for stage in self.plan.stages
        )

    def check(
        self,
        values: Sequence[np.ndarray],
        cuts: Sequence[Sequence[int]],
        rtol: float = 1e-9,
        atol: float = 1e-11,
    ) -> None:
        """The law: however the rows are cut, the blocks give what the whole gives."""
        expected = self.whole(*values)
        for lengths in cuts:
            found = run_here(self.staged, values, lengths)
            for place, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
                note = f"output {place}, blocks of {tuple(lengths)} rows"
                assert np.shape(ours) == np.shape(theirs), note
                assert ours.dtype == np.asarray(theirs).dtype, note
                np.testing.assert_allclose(ours, theirs, rtol, atol, err_msg=note)


def _words(piece: Any) -> list[str]:
    return [
        "rows" if result.combine is None else result.combine.verb
        for result in piece.results
        if result.combine is not None or result.axis is not None
    ]


def cut_values(values: Sequence[np.ndarray], placements: Sequence[Placement], n: int) -> Any:
    """The arguments with only the first `n` rows."""
    return [
        np.take(v, range(n), axis=p.axis) if isinstance(p, Rows) else v
        for v, p in zip(values, placements, strict=True)
    ]
