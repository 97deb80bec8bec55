"""A graph as a list of NumPy calls into arrays that were made before.

The compile mode ``NUMPY``: each node of a recipe, a graph as an engine has derived and
rewritten it, becomes a NumPy call that is bound, once per shape, to the arrays that it reads
and writes. There is nothing to compile, so the first call comes at once; a call allocates
nothing; and an array whose value is not needed any more is written over.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from skdtheano.binding import Graph, Plan, pattern
from skdtheano.loops import (
    Loop,
    compile_ahead,
    compiled_loop,
    is_compiled,
    loop_source,
)
from skdtheano.memory import Memory
from skdtheano.numbering import Numbering, Step
from skdtheano.numpy_steps import add_node
from skdtheano.recipe import Recipe

#: Seconds of calls after which loops that are on the disk are loaded, and after which others
#: are compiled, beside the calls. The six of a layer, a softmax and its loss take 10 and
#: 100 ms, and save a sixth of a step to a quarter.
_LOAD_AFTER, _COMPILE_AFTER = 0.01, 0.1

#: Plans for so many shapes of arrays are kept, of the last ones that came.
_MAX_PLANS = 64


class Routine:
    """The calls of one graph; serves one thread at a time.

    Parameters
    ----------
    recipe : Recipe
    stacked : sequence of int
        Places of the inputs that are of several models, along an axis in front of their
        own. Outputs that depend on one have such an axis too.

    Raises
    ------
    NotImplementedError
        If an Op of the graph is none that NumPy computes; names it.
    """

    def __init__(self, recipe: Recipe, stacked: Sequence[int] = ()) -> None:
        self._recipe, self._stacked = recipe, stacked
        self._numbers, self._graph = self._numbered(remakes=False)
        self._inputs = self._graph.inputs
        self._graph_of_loops: Graph | None = None
        self._memory = Memory()
        self._plans: OrderedDict[object, Plan] = OrderedDict()
        self._seconds, self._changes = 0.0, 0
        #: Whether neighbouring steps are loops where these are compiled, or in any case.
        self._loads = self._compiles = False
        self._missing: set[str] = set()  # sources of loops that are not compiled
        self._compiling: threading.Thread | None = None

    def _numbered(self, remakes: bool) -> tuple[Numbering, Graph]:
        recipe, numbers = self._recipe, Numbering(remakes)
        inputs = [numbers.of(value) for value in recipe.inputs]
        numbers.stacked.update(inputs[place] for place in self._stacked)
        for node in recipe.nodes:
            add_node(node, numbers)
        outputs = [numbers.of(value) for value in recipe.outputs]
        return numbers, Graph(inputs, outputs, numbers.steps, numbers.constants)

    @property
    def generation(self) -> int:
        """Goes up when memory was replaced by more of it, or when calls have become loops.

        What was bound before still works, but keeps the old memory, or is slower.
        """
        return self._memory.generation + self._changes

    def loop_source(
        self, scalars: Sequence[int], in_place: Sequence[int], beside: int | None = None
    ) -> str | None:
        """See `skdtheano.loops.loop_source`; inputs are told by their places."""
        return loop_source(
            self._numbers,
            self._inputs,
            self._graph.outputs,
            [self._inputs[i] for i in scalars],
            [self._inputs[i] for i in in_place],
            None if beside is None else self._inputs[beside],
        )

    @property
    def n_steps(self) -> int:
        """NumPy calls are about as many."""
        return sum(isinstance(step, Step) for step in self._graph.steps)

    @property
    def nbytes(self) -> int:
        """Bytes of memory for values between inputs and outputs."""
        return self._memory.nbytes

    def bind(
        self, inputs: Sequence[np.ndarray], out: Sequence[np.ndarray]
    ) -> Callable[[], None]:
        """The calls, bound to arrays: calling the result reads `inputs` and fills `out`.

        Parameters
        ----------
        inputs : sequence of ndarray
            Of the declared dtypes and ranks.
        out : sequence of ndarray
            Of the outputs' dtypes and shapes. One may be one of the inputs: it is written
            when nothing reads that input any more. No two overlap otherwise.
        """
        calls = self._plan(inputs, out).calls(inputs, out)

        if self._compiles:

            def run() -> None:
                for call in calls:
                    call()

        else:

            def run() -> None:
                began = time.perf_counter()
                for call in calls:
                    call()
                self._note(time.perf_counter() - began)

        return run

    def _plan(self, inputs: Sequence[np.ndarray], out: Sequence[np.ndarray]) -> Plan:
        arrays = pattern([*inputs, *out])
        plan = self._plans.get((self.generation, arrays))
        if plan is None:
            find = compiled_loop if self._compiles else self._loaded if self._loads else None
            before = self.generation
            try:
                plan = Plan(self._graph_for(find), self._memory, inputs, out, find)
            finally:
                if self.generation != before:
                    self._plans.clear()  # these have memory that was replaced
            self._plans[self.generation, arrays] = plan
            while len(self._plans) > _MAX_PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end((self.generation, arrays))
        return plan

    def _graph_for(self, find: Callable[[str], Loop | None] | None) -> Graph:
        """Steps for calls, or for loops, to which computing anew is less than memory."""
        if find is None:
            return self._graph
        if self._graph_of_loops is None:
            _, self._graph_of_loops = self._numbered(remakes=True)
        return self._graph_of_loops

    def _note(self, seconds: float) -> None:
        """Change to loops once that is small beside what has been waited for; same bits."""
        self._seconds += seconds
        if self._compiles or self._seconds <= _LOAD_AFTER:
            return
        if not self._loads:
            self._loads = True
        elif self._compiling is None:
            if self._seconds > _COMPILE_AFTER:
                self._compiling = compile_ahead(self._missing)
            return
        elif self._compiling.is_alive():
            return
        else:  # also in a process that was forked meanwhile
            self._compiles = True
        self._changes += 1
        self._plans.clear()

    def _loaded(self, source: str) -> Loop | None:
        """A loop if it is compiled; else it is noted."""
        if is_compiled(source):
            return compiled_loop(source)
        self._missing.add(source)
        return None
