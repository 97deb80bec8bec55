"""Random draws over rows: generators as arrays, and one generator for each block.

A random variable reads a generator and gives the next one. Graphs that are cut keep no
generator in a value that travels: it comes in packed as bytes, is unpacked wherever a draw
reads it, and goes out packed again. On rows each block draws from a generator of its own,
whose seed is made of the whole's state and of the number of the block's first row.
"""

import copy
import pickle
from typing import Any

import numpy as np

from skdtheano import engine
from skdtheano.engine import Variable


class _Unpacked(engine.Op):
    """The generator that some bytes hold."""

    __props__ = ()

    def make_node(self, packed: Variable) -> Any:
        return engine.Apply(self, [packed], [engine.generator_type()])

    def perform(self, node: Any, inputs: Any, outputs: Any) -> None:
        outputs[0][0] = pickle.loads(inputs[0].tobytes())


class _Packed(engine.Op):
    """A generator as bytes."""

    __props__ = ()

    def make_node(self, generator: Variable) -> Any:
        return engine.Apply(self, [generator], [engine.vector(dtype="uint8")])

    def perform(self, node: Any, inputs: Any, outputs: Any) -> None:
        outputs[0][0] = pack_generator(inputs[0])


class RowGenerator(engine.Op):
    """A block's own generator: from that of the whole, and the numbers of the block's rows."""

    __props__ = ()

    def make_node(self, generator: Variable, numbers: Variable) -> Any:
        return engine.Apply(self, [generator, numbers], [engine.generator_type()])

    def perform(self, node: Any, inputs: Any, outputs: Any) -> None:
        generator, numbers = inputs
        first = int(numbers[0]) if len(numbers) else 0
        words = copy.deepcopy(generator).integers(2**32, size=8, dtype=np.uint64)
        seeds = np.random.SeedSequence([int(word) for word in words], spawn_key=(first,))
        outputs[0][0] = np.random.Generator(np.random.PCG64(seeds))


class NextGenerator(engine.Op):
    """The generator after a draw over rows, whatever the blocks."""

    __props__ = ()

    def make_node(self, generator: Variable) -> Any:
        return engine.Apply(self, [generator], [engine.generator_type()])

    def perform(self, node: Any, inputs: Any, outputs: Any) -> None:
        following = copy.deepcopy(inputs[0])
        following.integers(2**32, size=8, dtype=np.uint64)
        outputs[0][0] = following


def is_generator(variable: Variable) -> bool:
    """Whether a variable is a random generator, and no array."""
    return engine.is_generator_type(variable.type)


def pack_generator(generator: np.random.Generator) -> np.ndarray:
    """A generator with its state, as bytes."""
    return np.frombuffer(pickle.dumps(generator), np.uint8)


def unpack_generator(packed: np.ndarray) -> np.random.Generator:
    generator: np.random.Generator = pickle.loads(np.asarray(packed).tobytes())
    return generator


def unpacked(packed: Variable) -> Variable:
    """The generator that a vector of bytes holds."""
    return _Unpacked()(packed)


def packed(generator: Variable) -> Variable:
    """A generator as a vector of bytes."""
    return _Packed()(generator)


def of_rows(node: Any, numbers: Variable) -> list[Variable]:
    """The outputs of a random variable's node, drawn from the block's own generator."""
    generator, *rest = node.inputs
    own = RowGenerator()(generator, numbers)
    return [NextGenerator()(generator), node.op.make_node(own, *rest).outputs[1]]
