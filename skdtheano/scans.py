"""The parts of a Scan node: what each step reads and gives."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from skdtheano import engine, symbolic
from skdtheano.engine import Variable


@dataclass(frozen=True)
class LoopState:
    """What a loop carries from step to step.

    Attributes
    ----------
    outer : int
        Number of its buffer, over all steps, among the node's inputs.
    inner, inner_outputs : list of Variable
        What a step reads and gives of it.
    """

    outer: int
    inner: list[Variable]
    inner_outputs: list[Variable]


@dataclass(frozen=True)
class Loop:
    """The parts of a Scan node; outer ones by their number among its inputs.

    Attributes
    ----------
    sequences, inner_sequences : list
        What is read step by step along its first axis.
    states : list of LoopState
        In the order of the node's first outputs.
    traced : list of Variable
        What a step gives that no step reads; the node's next outputs.
    constants, inner_constants : list
    is_while : bool
    """

    sequences: list[int]
    inner_sequences: list[Variable]
    states: list[LoopState]
    traced: list[Variable]
    constants: list[int]
    inner_constants: list[Variable]
    is_while: bool


def loop_along(node: Any, nodes: Iterable[Any]) -> Any:
    """The first Scan node, of nodes in their order, that steps along what a node picks.

    A part of a part counts, as in ``x[a:][:n]``; None if there is no such loop, or if the
    node picks no part.
    """
    if not _picks(node):
        return None
    picked = set(node.outputs)
    for other in nodes:
        if type(other.op).__name__ == "Scan" and picked.intersection(other.inputs):
            return other
        if _picks(other) and other.inputs[0] in picked:
            picked.update(other.outputs)
    return None


def _picks(node: Any) -> bool:
    return type(node.op).__name__ == "Subtensor"


def loop_of(node: Any) -> Loop:
    """Read a Scan node: its inputs are steps, sequences, states, lengths, constants."""
    op = node.op
    if engine.ENGINE == "pytensor":
        info, read, given = op.info, list(op.inner_inputs), list(op.inner_outputs)
        n_shared, is_while = info.n_untraced_sit_sot, info.as_while
        taps = [*info.mit_mot_in_slices, *info.mit_sot_in_slices, *info.sit_sot_in_slices]
        written = [len(slices) for slices in info.mit_mot_out_slices]
        n_seqs, n_traced = info.n_seqs, info.n_nit_sot
    else:
        read, given = list(op.inputs), list(op.outputs)
        n_shared, is_while = op.n_shared_outs, op.as_while
        n_kept = op.n_mit_mot + op.n_mit_sot + op.n_sit_sot
        taps = list(op.tap_array)[:n_kept]
        written = [len(slices) for slices in op.mit_mot_out_slices]
        n_seqs, n_traced = op.n_seqs, op.n_nit_sot
    written += [1] * (len(taps) - len(written))
    states = []
    place, output = n_seqs, 0
    for k, (tap, n_outputs) in enumerate(zip(taps, written, strict=True)):
        states.append(
            LoopState(
                1 + n_seqs + k,
                read[place : place + len(tap)],
                given[output : output + n_outputs],
            )
        )
        place += len(tap)
        output += n_outputs
    first_constant = 1 + n_seqs + len(taps) + n_shared + n_traced
    return Loop(
        sequences=list(range(1, 1 + n_seqs)),
        inner_sequences=read[:n_seqs],
        states=states,
        traced=given[output : output + n_traced],
        constants=list(range(first_constant, len(node.inputs))),
        inner_constants=read[place + n_shared :],
        is_while=bool(is_while),
    )


def loop_step(node: Any) -> tuple[Variable, list[Variable], list[Variable]]:
    """One step of a Scan: how many there are, what the first reads, and what it gives."""
    op, outer = node.op, list(node.inputs)
    if engine.ENGINE == "pytensor":
        inside, outputs, info = op.inner_inputs, op.inner_outputs, op.info
        taps = [*info.mit_mot_in_slices, *info.mit_sot_in_slices, *info.sit_sot_in_slices]
        carried = op.outer_untraced_sit_sot(outer)
    else:
        inside, outputs, taps = op.inputs, op.outputs, op.tap_array
        carried = op.outer_shared(outer)
    states = [*op.outer_mitmot(outer), *op.outer_mitsot(outer), *op.outer_sitsot(outer)]
    reads = [
        *(sequence[0] for sequence in op.outer_seqs(outer)),
        *(state[0] for state, own in zip(states, taps, strict=False) for _ in own),
        *carried,
        *op.outer_non_seqs(outer),
    ]
    return outer[0], reads, symbolic._over(inside, outputs, reads)
