"""The seam to the symbolic engine: the one module that names PyTensor or Theano.

The law of this file: what lies above it is written to the names in ``__all__``, which
mean the same on both engines, and to nothing else of either. ``SKDTHEANO_ENGINE``
(``pytensor``, the default, or ``theano``) chooses the engine when the package is imported.
"""

import logging
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

__all__ = [
    "DEFAULT_MODE",
    "ENGINE",
    "INDICES_ARE_NUMBERED",
    "Apply",
    "Op",
    "Variable",
    "arange",
    "as_variable",
    "cache_directory",
    "cast",
    "check_mode",
    "compilations",
    "compile_function",
    "dot",
    "either",
    "equal",
    "exp",
    "generator_type",
    "gradients",
    "graph_of",
    "identity",
    "is_generator_type",
    "isnan",
    "lengths_of",
    "log",
    "made_where",
    "matrix",
    "maximum",
    "maximum_over",
    "merge_equal_nodes",
    "minimum",
    "place_in_source",
    "rewritten",
    "scalar",
    "shapes_of",
    "shared",
    "sigmoid",
    "sqrt",
    "stacked",
    "switch",
    "symbol_like",
    "tanh",
    "tensor",
    "vector",
    "zeros_like",
]

ENGINE = os.environ.get("SKDTHEANO_ENGINE", "pytensor")


def _import_theano() -> Any:
    """Import Theano 1.0.5 on a Python and a NumPy that are younger than it is.

    NumPy 1.24 removed the aliases of built-in types that Theano still reads when it is
    imported, and Theano's search for a BLAS to link against fails on current NumPy
    builds, so no BLAS flags are given: products then go through ``numpy.dot``.
    """
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        raise ImportError(
            f"SKDTHEANO_ENGINE=theano needs NumPy below 2, and this is {np.__version__}. Use "
            "an environment of its own, which `make .venv-theano/ready` makes in a checkout, "
            "or PyTensor, the default engine, which runs on NumPy 2."
        )
    for builtin in (bool, int, float, complex, object, str):
        if builtin.__name__ not in vars(np):
            setattr(np, builtin.__name__, builtin)
    flags = os.environ.get("THEANO_FLAGS", "")
    if "blas.ldflags" not in flags:
        os.environ["THEANO_FLAGS"] = ",".join(filter(None, [flags, "blas.ldflags="]))
    # Without BLAS flags it warns at each import that it uses NumPy's BLAS: that is the plan.
    logging.getLogger("theano.tensor.blas").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # It uses names of NumPy and setuptools that are deprecated by now.
        warnings.simplefilter("ignore")
        import theano
        import theano.gpuarray  # which scan imports when it is called
        import theano.tensor

    # Where there is no C, an elementwise Op without a NumPy function is a Python loop over
    # the elements. Theano names none for these two; it looks a name up when it compiles.
    theano.tensor.nnet.sigmoid.nfunc_spec = ("scipy.special.expit", 1, 1)
    theano.tensor.second.nfunc_spec = ("skdtheano.engine.second", 2, 1)
    return theano


def second(shape_of: np.ndarray, value: np.ndarray) -> np.ndarray:
    """`value`, broadcast to the shape of both: Theano's ``second``, for whole arrays."""
    return np.broadcast_arrays(shape_of, value)[1]


def _import_engine() -> tuple[Any, Any, Any, Any]:
    """The engine, its tensor namespace, its logistic function and its compile modes."""
    if ENGINE == "pytensor":
        import pytensor
        import pytensor.tensor
        from pytensor.compile.mode import predefined_modes

        return pytensor, pytensor.tensor, pytensor.tensor.sigmoid, predefined_modes
    if ENGINE == "theano":
        theano = _import_theano()
        modes = theano.compile.mode.predefined_modes

        return theano, theano.tensor, theano.tensor.nnet.sigmoid, modes
    raise ValueError(
        f"SKDTHEANO_ENGINE={ENGINE!r} is not an engine. Use 'pytensor' (the default) or "
        "'theano' (classic Theano 1.0.5, installed by the extra skdtheano[theano])."
    )


_engine, _tensor, sigmoid, _modes = _import_engine()


def _import_rewriting() -> tuple[Any, Any, Any]:
    """The engine's class of graphs, what makes equal nodes of one into one, and lengths."""
    if ENGINE == "pytensor":
        from pytensor.graph.fg import FunctionGraph
        from pytensor.graph.rewriting.basic import MergeOptimizer
        from pytensor.tensor.rewriting.shape import ShapeFeature

        return FunctionGraph, MergeOptimizer().rewrite, ShapeFeature
    gof = _engine.gof
    return gof.FunctionGraph, gof.opt.MergeOptimizer().optimize, _tensor.opt.ShapeFeature


graph_of, _merge, _Shapes = _import_rewriting()


def _import_ops() -> tuple[Any, Any, Any]:
    """What an Op of our own is made of, and the type of random generators."""
    if ENGINE == "pytensor":
        from pytensor.graph.basic import Apply
        from pytensor.graph.op import Op
        from pytensor.tensor.random.type import RandomGeneratorType

        return Op, Apply, RandomGeneratorType()
    return _engine.gof.Op, _engine.gof.Apply, _engine.tensor.raw_random.random_state_type


Op, Apply, generator_type = _import_ops()


def is_generator_type(kind: Any) -> bool:
    """Whether a type is of random generators."""
    return isinstance(kind, type(generator_type))


#: PyTensor 3 lists the indices of a node by their number among its inputs.
INDICES_ARE_NUMBERED = ENGINE == "pytensor" and int(_engine.__version__.split(".")[0]) >= 3

Variable: TypeAlias = Any  # a symbol of either engine; Theano has no types

arange = _tensor.arange
cast = _tensor.cast
dot = _tensor.dot
either = _tensor.or_
equal = _tensor.eq
exp = _tensor.exp
isnan = _tensor.isnan
log = _tensor.log
matrix = _tensor.matrix
maximum = _tensor.maximum
minimum = _tensor.minimum
scalar = _tensor.scalar
shared = _engine.shared
sqrt = _tensor.sqrt
switch = _tensor.switch
tanh = _tensor.tanh
vector = _tensor.vector
zeros_like = _tensor.zeros_like
stacked = _tensor.stack

# FAST_COMPILE compiles an MLP's gradient at once; numba's kernels run it faster, after some
# 20 s of compilation. docs/design.md has the figures.
DEFAULT_MODE = "FAST_COMPILE"

# Neither engine's compiler may run in two threads at once (aesara#1006, pymc#7819).
_compiler = threading.Lock()
_compiled: list[str] = []


def check_mode(mode: str | None, ours: str = DEFAULT_MODE) -> str:
    """Return the name of an engine's compile mode, ``DEFAULT_MODE`` for ``None``.

    `ours` is what messages call the default.

    Raises
    ------
    ValueError
        If the engine has no such mode; the message lists the ones that it has.
    """
    if mode is None:
        return DEFAULT_MODE
    if mode not in _modes:
        raise ValueError(
            f"mode={mode!r} is not a compile mode of {ENGINE}. Use None (which is "
            f"{ours!r} now) or one of {sorted(_modes)}."
        )
    return mode


def gradients(
    seeds: dict[Variable, Variable], parameters: Sequence[Variable]
) -> list[Variable]:
    r"""Gradients of a cost that is known by its derivatives alone.

    Parameters
    ----------
    seeds : dict
        :math:`\partial C / \partial z` for each variable :math:`z` that the cost
        :math:`C` reads.
    parameters : sequence of Variable
        The variables to differentiate by.

    Returns
    -------
    list of Variable
        :math:`\partial C / \partial \theta` for each parameter, by the chain rule.
    """
    found = _engine.grad(None, list(parameters), known_grads=OrderedDict(seeds))
    return list(found)


def compile_function(
    inputs: Sequence[Variable], outputs: Sequence[Variable], mode: str, name: str
) -> Callable[..., list[np.ndarray]]:
    """Compile a graph into a function of arrays.

    The function checks nothing: its caller passes arrays of the declared dtypes and
    ranks. It serves one thread at a time, since it keeps its inputs and its outputs in
    containers of its own.
    """
    with _compiler:
        function = _engine.function(
            list(inputs),
            list(outputs),
            mode=_mode(mode),
            name=name,
            on_unused_input="ignore",
        )
        _compiled.append(name)
    function.trust_input = True
    compiled: Callable[..., list[np.ndarray]] = function
    return compiled


def rewritten(
    inputs: Sequence[Variable], outputs: Sequence[Variable], name: str
) -> tuple[list[Variable], list[Any], list[Variable]]:
    """A copy of a graph as the mode ``FAST_COMPILE`` would run it: inputs, nodes, outputs.

    It counts as a compilation: the rewrites are what takes the time of one.
    """
    with _compiler:
        graph = graph_of(list(inputs), list(outputs), clone=True)
        _rewrite(graph)
        _compiled.append(name)
        return list(graph.inputs), list(graph.toposort()), list(graph.outputs)


#: Rewrites that find nothing in our graphs. Most of these look for patterns, and the first
#: pattern of a process costs it 0.13 s in PyTensor 3, which then puts the cases of its
#: unification in order.
_USELESS = (
    "local_logit_sigmoid",
    "local_sigmoid_logit",
    "useless_Neg_of_Neg",
    "useless_Tanh_of_Arctanh",
    # Changes none of our graphs; but PyTensor 2's makes a quotient by a sum of exponentials an
    # Op of its own meanwhile, and leaves it so.
    "local_greedy_distributor",
)


def _rewrite(graph: Any) -> None:
    rewrites = _mode("FAST_COMPILE").excluding(*_USELESS).optimizer
    if ENGINE == "pytensor":
        rewrites.rewrite(graph)
        return
    # Or Theano compiles C to fold constants, and its processes get into each other's way.
    with _engine.change_flags(cxx=""):
        rewrites.optimize(graph)


def _mode(name: str) -> Any:
    """The engine's mode of that name, less what makes it slow.

    Without C, an elementwise Op of more inputs than its NumPy function takes is a Python
    loop over the elements. FAST_COMPILE runs without C, and one of its rewrites joins
    chains of products into such Ops: the backward pass of a logistic layer then took 50 to
    100 times as long. (Its sibling for sums stays: it takes away additions of 0, one of
    which brings a float32 layer a cast, and a cast is such a loop too.)
    """
    if name != "FAST_COMPILE":
        return name
    return _modes[name].excluding("local_mul_canonizer")


def cache_directory() -> str:
    """Where the engine keeps what it compiles, for this user, machine and Python."""
    with _compiler:  # read first by two threads at once, a setting of the engine is an error
        return str(_engine.config.compiledir)


def identity() -> list[str]:
    """What decides, besides a graph, how this engine derives and rewrites it."""
    settings = ("floatX", "cast_policy", "optimizer_excluding", "optimizer_including")
    with _compiler:
        chosen = [f"{name}={getattr(_engine.config, name)}" for name in settings]
    return [ENGINE, str(_engine.__version__), *chosen]


def compilations() -> list[str]:
    """Names of the functions that this process has compiled, in order."""
    return list(_compiled)


def tensor(name: str | None, dtype: str, ndim: int) -> Variable:
    """A symbol of a dtype and a rank, of any lengths."""
    if ENGINE == "pytensor":
        return _tensor.tensor(name, dtype=dtype, shape=(None,) * ndim)
    return _tensor.TensorType(dtype, (False,) * ndim)(name)


def maximum_over(variable: Variable, axes: tuple[int, ...]) -> Variable:
    """Maximum over axes that stay, of length 1; Theano's own also looks for its place."""
    if ENGINE == "pytensor":
        return variable.max(axis=axes, keepdims=True)
    reduced = _tensor.elemwise.CAReduce(_engine.scalar.maximum, axis=list(axes))(variable)
    kept = iter(range(reduced.ndim))
    return reduced.dimshuffle(
        *["x" if axis in axes else next(kept) for axis in range(variable.ndim)]
    )


def as_variable(value: Any, like: Variable) -> Variable:
    """A symbol for a value, of the type of another symbol."""
    if not hasattr(value, "owner"):
        value = np.asarray(value, like.dtype)
    elif value.type == like.type:
        return value
    variable = _tensor.as_tensor_variable(value)
    if variable.type == like.type:
        return variable
    return like.type.filter_variable(variable)


def symbol_like(variable: Variable, axis: int | None) -> Variable:
    """A new symbol of the same dtype and rank, of any length along `axis`."""
    kind = variable.type
    if axis is not None:
        if ENGINE == "pytensor":
            lengths = list(kind.shape)
            lengths[axis] = None
            kind = kind.clone(shape=tuple(lengths))
        else:
            stretched = list(kind.broadcastable)
            stretched[axis] = False
            kind = kind.clone(broadcastable=tuple(stretched))
    return kind(variable.name)


def lengths_of(variable: Variable) -> tuple[int | None, ...]:
    """The lengths of a tensor that its type tells."""
    if ENGINE == "pytensor":
        return tuple(variable.type.shape)
    return tuple(1 if stretched else None for stretched in variable.type.broadcastable)


def merge_equal_nodes(graph: Any) -> None:
    """Make equal nodes of a graph into one, in place."""
    with _compiler:
        _merge(graph)


def shapes_of(
    inputs: Sequence[Variable], outputs: Sequence[Variable]
) -> tuple[list[Variable], list[tuple[Variable, ...]]]:
    """The lengths of outputs as graphs, by what each Op says of its outputs' shapes.

    Returns
    -------
    inputs : list of Variable
        Clones, which the lengths are made of.
    lengths : list of tuple of Variable
        Scalars, by output and axis.
    """
    with _compiler:
        graph = graph_of(list(inputs), list(outputs), clone=True)
        shapes = _Shapes()
        graph.attach_feature(shapes)
        # In PyTensor 3.3 `shape_of` is a property that warns; in 3.0 it is a dict, and
        # `shape_tuple` is something else.
        is_new = hasattr(type(shapes), "shape_of")
        lengths = shapes.shape_tuple if is_new else shapes.shape_of.__getitem__
        return list(graph.inputs), [tuple(lengths(v)) for v in graph.outputs]


def made_where(variable: Variable, other: Variable) -> Variable:
    """A variable, remembered as made where another one was."""
    trace = getattr(other.tag, "trace", None)
    if trace is not None:
        variable.tag.trace = trace
    return variable


def place_in_source(node: Any) -> str | None:
    """File and line where a node was made, if the engine remembers: the user's.

    Nodes of a gradient are made inside the engine, and mostly have none.
    """
    own = tuple(os.path.dirname(file) + os.sep for file in (_engine.__file__, __file__))
    for variable in node.outputs:
        for frames in getattr(variable.tag, "trace", None) or ():
            for file, line, _, _ in reversed(frames):
                if not file.startswith(own):
                    return f"{file}:{line}"
    return None
