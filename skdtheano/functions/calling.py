"""`function`: a graph as a function of arrays, here or over the rows of dask arrays."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from skdtheano import engine
from skdtheano.functions.graph_function import GraphFunction
from skdtheano.functions.options import TARGETS, Options, accelerator_mode
from skdtheano.functions.traced_function import TracedFunction


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
    result is that of the same call with NumPy arrays, up to the rounding of sums; but a
    random variable over rows draws, on each block, from a generator made of the seed and
    of the number of the block's first row, so other chunks give other draws.

    Parameters
    ----------
    inputs : list of Variable
        Symbols, in the order of the arguments. Without `inputs` this is a decorator for a
        Python function of symbols, which is traced once for each dtypes and ranks that it
        is called with; strings, bools, None, tuples and callables are passed to it as they
        are, and so is what it has by default or by `functools.partial`.
        What it takes from outside, globals say, keeps the value of that time: pass what
        changes as an argument.
    outputs : Variable or list of Variable
    updates : dict or list of pairs, optional
        Next values of shared variables, set after each call; a shared variable's own
        ``default_update`` counts too, as that of a random stream. On dask arrays such a
        call computes at once.
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
    twice = sorted(set(rows or ()) & set(replicated))
    if twice:
        raise ValueError(f"{twice[0]!r} is named in rows= and in replicated=. Choose one.")
    options = Options(
        on_unused_input=on_unused_input,
        target=target,
        mode=accelerator_mode(mode) if target == "gpu" else engine.check_mode(mode),
        name=name or "function",
        rows=None if rows is None else _names(rows, "rows"),
        replicated=_names(replicated, "replicated"),
        gather=gather == "allow",
    )
    is_list = inputs is not None and not (callable(inputs) and not hasattr(inputs, "owner"))
    if not is_list and (updates is not None or givens is not None):
        raise TypeError(
            "updates= and givens= go with inputs= and outputs=: a Python function that is "
            "traced returns what it computes. Give the symbols, as to theano.function."
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
    inner = traced.func if isinstance(traced, partial) else traced
    given = str(name or getattr(inner, "__name__", "function"))
    return replace(options, name=given.strip("<>"))
