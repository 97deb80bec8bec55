"""Elementwise graphs as one loop over the entries, compiled by LLVM.

The loop computes what NumPy computes, bit for bit: sums, products, quotients and square roots
are rounded by IEEE 754 in both, in the same order, and LLVM contracts and reorders only what
is marked for it. So a training may change to it at any step. It reads every vector once where
NumPy's calls read and write them ten times.

PyTensor brings llvmlite along with Numba. Numba's own compiler takes 0.25 s for such a loop,
most of it for types that are known here; from LLVM's language it takes 0.02 s, and 0.003 s
from the machine code that an earlier process has left on the disk.
"""

import ctypes
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache, partial
from typing import Any

import numpy as np

from skdtheano import shelf
from skdtheano.numbering import Numbering, Step, View

try:
    import llvmlite
    import llvmlite.binding as llvm
except ImportError:  # classic Theano brings none
    llvm = None

logger = logging.getLogger(__name__)

#: What is rounded alike by NumPy and by a compiled loop; {0} is a dtype, {1} and {2} operands.
INSTRUCTIONS: dict[object, str] = {
    np.add: "fadd {0} {1}, {2}",
    np.subtract: "fsub {0} {1}, {2}",
    np.multiply: "fmul {0} {1}, {2}",
    np.true_divide: "fdiv {0} {1}, {2}",
    np.square: "fmul {0} {1}, {1}",
    np.sqrt: "call {0} @sqrt({0} {1})",
}
_SQRTS = {"float": "llvm.sqrt.f32", "double": "llvm.sqrt.f64"}
_FLOATS = {"float32": "float", "float64": "double"}
#: LLVM's name of what lies in an array; a condition takes a byte there.
TYPES = {**_FLOATS, "int32": "i32", "int64": "i64", "bool": "i8"}

#: How a loop goes on to the next model, or ends.
END_OF_MODEL = (
    "model.end:",
    "  %next.k = add i64 %k, 1",
    "  %more.k = icmp slt i64 %next.k, %l",
    "  br i1 %more.k, label %model, label %end",
    "end:",
    "  ret void",
    "}",
    "",
)

#: LLVM has pointers without a type since then, and `llvmlite` its new passes.
_OLDEST_LLVM = 17

Loop = Callable[..., None]


def loop_source(
    numbers: Numbering,
    inputs: Sequence[int],
    outputs: Sequence[int],
    scalars: Sequence[int],
    in_place: Sequence[int],
    beside: int | None = None,
) -> str | None:
    """The loop of an elementwise graph in LLVM's language, or None if it is no such graph.

    Parameters
    ----------
    numbers : Numbering
    inputs, outputs : sequence of int
        Numbers of the graph's values. All are vectors of one length and dtype, but for the
        scalars.
    scalars : sequence of int
        Inputs that are arrays of one entry for each model.
    in_place : sequence of int
        The input that each output is written over.
    beside : int, optional
        An input whose rows lie beside those of the other models; then the first output is
        written a second time, in the same order.

    Returns
    -------
    str or None
        Of a function ``loop`` of pointers to the inputs, and to the second first output if
        there is one; of the length of a row, of how many models there are, of the entries
        from a vector of one model to that of the next, and of how many rows a vector has.
        No two vectors share memory.
    """
    dtypes = {step.dtype for step in numbers.steps if isinstance(step, Step)}
    kind = _FLOATS.get(dtypes.pop()) if len(dtypes) == 1 else None
    if kind is None:
        return None
    names = {number: f"%v{number}" for number in inputs}
    body: list[str] = []
    for step in numbers.steps:
        if isinstance(step, View):
            if step.of_shape or step.input not in scalars or step.input not in names:
                return None
            names[step.output] = names[step.input]
            scalars = [*scalars, step.output]
            continue
        instruction = INSTRUCTIONS.get(step.operation)
        if instruction is None or not set(step.inputs) <= set(names):
            return None
        first, *others = (names[value] for value in step.inputs)
        made = names[step.output] = f"%v{step.output}"
        for place, other in enumerate(others or [first], 1):
            into = made if place >= len(others) else f"{made}.{place}"
            body.append(f"{into} = {instruction.format(kind, first, other)}")
            first = into
    vectors = [number for number in inputs if number not in scalars]
    pointers = [f"ptr noalias %x{number}" for number in inputs]
    written = [(names[made], f"%p{to}") for made, to in zip(outputs, in_place, strict=True)]
    at, again = dict.fromkeys(vectors, "%at"), []
    if beside is not None:
        at[beside] = "%at.beside"
        again = [names[outputs[0]]]
        pointers.append("ptr noalias %again")
        written.append((again[0], "%p.again"))
    lines = [
        f"declare {kind} @{_SQRTS[kind]}({kind})",
        f"define void @loop({', '.join(pointers)}, i64 %n, i64 %l, i64 %p, i64 %r) {{",
        "start:",
        "  %some.j = icmp sgt i64 %n, 0",
        "  %some.i = icmp sgt i64 %r, 0",
        "  %some.ij = and i1 %some.i, %some.j",
        "  %some.k = icmp sgt i64 %l, 0",
        "  %some = and i1 %some.ij, %some.k",
        "  br i1 %some, label %model, label %end",
        "model:",
        "  %k = phi i64 [0, %start], [%next.k, %model.end]",
        "  %first = mul i64 %k, %p",
        *(
            f"  %p{n} = getelementptr {kind}, ptr %x{n}, i64 %k"
            for n in inputs
            if n in scalars
        ),
        *(f"  %v{n} = load {kind}, ptr %p{n}" for n in inputs if n in scalars),
        "  br label %row",
        "row:",
        "  %i = phi i64 [0, %model], [%next.i, %row.end]",
        "  %in = mul i64 %i, %n",
        "  %at = add i64 %first, %in",
        "  %il = mul i64 %i, %l",
        "  %ilk = add i64 %il, %k",
        "  %at.beside = mul i64 %ilk, %n",
        *(f"  %m{n} = getelementptr {kind}, ptr %x{n}, i64 {at[n]}" for n in vectors),
        *(f"  %m.again = getelementptr {kind}, ptr %again, i64 %at.beside" for _ in again),
        "  br label %body",
        "body:",
        "  %j = phi i64 [0, %row], [%next.j, %body]",
        *(f"  %p{n} = getelementptr {kind}, ptr %m{n}, i64 %j" for n in vectors),
        *(f"  %p.again = getelementptr {kind}, ptr %m.again, i64 %j" for _ in again),
        *(f"  %v{n} = load {kind}, ptr %p{n}" for n in vectors),
        *(f"  {line}" for line in body),
        *(f"  store {kind} {made}, ptr {to}" for made, to in written),
        "  %next.j = add i64 %j, 1",
        "  %more.j = icmp slt i64 %next.j, %n",
        "  br i1 %more.j, label %body, label %row.end",
        "row.end:",
        "  %next.i = add i64 %i, 1",
        "  %more.i = icmp slt i64 %next.i, %r",
        "  br i1 %more.i, label %row, label %model.end",
        *END_OF_MODEL,
    ]
    return "\n".join(lines).replace("@sqrt(", f"@{_SQRTS[kind]}(")


def is_compiled(source: str) -> bool:
    """Whether a process has left the compiled loop on this machine's disk."""
    return are_available() and shelf.kept(_key(source)) is not None


def compiled_loop(source: str) -> Loop | None:
    """Compile a loop, or load it; None where that cannot be: NumPy's calls go on then.

    It takes addresses and lengths, which `bound_loop` knows, serves any number of threads,
    and does not hold the interpreter: heartbeats go on meanwhile.
    """
    if source not in _loops:
        with _lock:
            if source not in _loops:
                _loops[source] = _made(source) if are_available() else None
    return _loops[source]


def _made(source: str) -> Loop | None:
    try:
        key = _key(source)
        code = shelf.kept(key)
        if code is None:
            code = _compiled(source)
            shelf.keep(key, code)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
    except RuntimeError as error:  # LLVM's
        logger.warning("A loop cannot be compiled here, and NumPy goes on alone: %s", error)
        return None
    _engines.append(engine)  # the code is the engine's
    head = source[: source.index("{")]
    pointers = [ctypes.c_void_p] * head.count("ptr ")
    kind = ctypes.CFUNCTYPE(None, *pointers, *[ctypes.c_int64] * head.count("i64 "))
    loop: Loop = kind(engine.get_function_address("loop"))
    return loop


def compile_ahead(sources: Iterable[str]) -> threading.Thread:
    """Compile loops in a thread, beside what goes on: LLVM does not hold the interpreter."""

    def compile_all(sources: Sequence[str] = tuple(sources)) -> None:
        for source in sources:
            compiled_loop(source)

    thread = threading.Thread(target=compile_all, name="skdtheano-loops")
    with suppress(RuntimeError):  # there can be no more threads: they are compiled when asked
        thread.start()
    return thread


#: What was compiled or loaded in this process; None for what could not be.
_loops: dict[str, Loop | None] = {}
_lock = threading.Lock()
# LLVM has a lock of its own, which a process that is forked while a loop is compiled would
# find held for good.
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


def bound_loop(
    loop: Loop, arrays: Sequence[np.ndarray], lengths: Sequence[int]
) -> Callable[[], None]:
    """A call of a loop, which has taken the addresses of the arrays; it costs 0.4 us.

    Nothing is checked: dtypes, lengths and order are for the caller to know.
    """
    # These pointers keep their arrays.
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in arrays]
    return partial(loop, *pointers, *map(ctypes.c_int64, lengths))


_engines: list[Any] = []


@cache
def are_available() -> bool:
    """Whether loops can be compiled in this environment."""
    return llvm is not None and llvm.llvm_version_info[0] >= _OLDEST_LLVM


@cache
def _machine() -> Any:
    """A compiler for this processor, with all that it has."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    features = llvm.get_host_cpu_features().flatten()
    return target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3)


def _key(source: str) -> str:
    return f"{_made_by()}\n{source}"


@cache
def _made_by() -> str:
    """Machine code is that of a processor and a compiler."""
    features = llvm.get_host_cpu_features().flatten()
    made_by = [llvmlite.__version__, llvm.get_process_triple(), llvm.get_host_cpu_name()]
    return "\n".join(["loop", *made_by, features])


def _compiled(source: str) -> bytes:
    module = llvm.parse_assembly(source)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    builder = llvm.create_pass_builder(_machine(), options)
    builder.getModulePassManager().run(module, builder)
    code: bytes = _machine().emit_object(module)
    return code
