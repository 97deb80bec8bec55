"""Elementwise graphs as one loop over the entries, compiled by Numba.

The loop computes what NumPy computes, bit for bit: sums, products, quotients and square roots
are rounded by IEEE 754 in both, in the same order, and Numba is not allowed to contract or
reorder them. So a training may change to it at any step. It reads every vector once where
NumPy's calls read and write them ten times.
"""

import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np

from skdtheano import shelf
from skdtheano.numpy_steps import Numbering, Step, View

try:
    import numba
except ImportError:  # classic Theano brings none
    numba = None

#: What is rounded alike by NumPy and by a compiled loop.
_EXPRESSIONS: dict[object, str] = {
    np.add: "{} + {}",
    np.subtract: "{} - {}",
    np.multiply: "{} * {}",
    np.true_divide: "{} / {}",
    np.square: "{0} * {0}",
    np.sqrt: "np.sqrt({})",
}

Loop = Callable[..., None]


def loop_source(
    numbers: Numbering,
    inputs: Sequence[int],
    outputs: Sequence[int],
    scalars: Sequence[int],
    in_place: Sequence[int],
) -> str | None:
    """Python source of the loop of an elementwise graph, or None if it is no such graph.

    Parameters
    ----------
    numbers : Numbering
    inputs, outputs : sequence of int
        Numbers of the graph's values. All are vectors of one length, but for the scalars.
    scalars : sequence of int
        Inputs that are arrays of one entry.
    in_place : sequence of int
        The input that each output is written over.

    Returns
    -------
    str or None
        Of a function ``loop`` of the inputs.
    """
    names = {number: f"x{number}" for number in inputs}
    body: list[str] = []
    for step in numbers.steps:
        if isinstance(step, View):
            if step.of_shape or step.input not in scalars or step.input not in names:
                return None
            names[step.output] = names[step.input]
            scalars = [*scalars, step.output]
            continue
        expression = _EXPRESSIONS.get(step.function)
        if expression is None or not set(step.inputs) <= set(names):
            return None
        names[step.output] = f"t{step.output}"
        body.append(
            f"{names[step.output]} = " + _read(expression, step, names, scalars, inputs)
        )
    arguments = ", ".join(f"x{number}" for number in inputs)
    first = next(number for number in inputs if number not in scalars)
    begin = [f"s{n} = x{n}[0]" for n in inputs if n in scalars]
    end = [f"x{to}[i] = {names[made]}" for made, to in zip(outputs, in_place, strict=True)]
    lines = [
        "import numpy as np",
        "",
        "",
        f"def loop({arguments}):",
        *(f"    {line}" for line in begin),
        f"    for i in range(x{first}.shape[0]):",
        *(f"        {line}" for line in [*body, *end]),
        "",
    ]
    return "\n".join(lines)


def _read(
    expression: str,
    step: Step,
    names: dict[int, str],
    scalars: Sequence[int],
    inputs: Sequence[int],
) -> str:
    def read(value: int) -> str:
        name = names[value]
        if value in scalars:
            return "s" + name[1:]
        return f"{name}[i]" if value in inputs else name

    first, *others = map(read, step.inputs)
    if not others:
        return expression.format(first)
    for other in others:
        first = f"({expression.format(first, other)})"
    return first


def is_cached(source: str) -> bool:
    """Whether an earlier process has left the compiled loop on this machine's disk."""
    return numba is not None and any(
        shelf.directory().glob(f"__pycache__/{_name(source)}*.nbc")
    )


def compiled_loop(source: str, n_arguments: int, dtype: str) -> Loop | None:
    """Compile a loop for arrays of one dtype, or load it; None where there is no Numba."""
    if numba is None:
        return None
    function = _module(source).loop
    signature = numba.void(*[numba.from_dtype(np.dtype(dtype))[::1]] * n_arguments)
    # nogil: heartbeats go on meanwhile. numpy's error model: x / 0 is infinite.
    decorate = numba.njit([signature], nogil=True, error_model="numpy", cache=True)
    loop: Loop = decorate(function)
    return loop


def _name(source: str) -> str:
    return "skdtheano_loop_" + hashlib.sha256(source.encode()).hexdigest()[:16]


def _module(source: str) -> ModuleType:
    """The source as a module of a file: Numba keeps what it compiled beside a file."""
    directory = shelf.directory()
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{_name(source)}.py"
    if not file.exists():
        with tempfile.NamedTemporaryFile("w", dir=directory, delete=False) as draft:
            draft.write(source)
        os.replace(draft.name, file)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # where Numba looks when it reads its cache
    spec.loader.exec_module(module)
    return module
