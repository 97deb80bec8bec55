"""Many models of one architecture that take their steps together, in this process.

Their parameters are stacked along an axis of models. A minibatch is gathered once for all
models that read the same rows in the same order. Each model has the numbers that it has when
it is trained alone, bit for bit: its products, sums and updates are the same operations in
the same order. A model that has come to its end leaves the stack, and the others go on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from skdtheano.runtime.background import training_thread
from skdtheano.runtime.blas import blas_threads, threads_of_process, threads_that_pay
from skdtheano.runtime.blocks import Batch, BatchRoom, Block
from skdtheano.runtime.model import Model
from skdtheano.runtime.order import Batches, Gathered, ListedBatches, Order, RowMap
from skdtheano.runtime.parameters import TrainState
from skdtheano.runtime.stacked_program import StackedProgram
from skdtheano.runtime.stacked_vectors import StackedVectors
from skdtheano.runtime.steps import Course, quietly
from skdtheano.side_by_side import have_same_bits

#: Rows of so few bytes are gathered for an epoch at once: that saves 10 us a minibatch.
_EPOCH_BYTES = 2**22


#: Steps of all models of a stack that gain, by a tenth each, about what it takes to try how
#: BLAS rounds products side by side.
_FEWEST_STEPS = 1000


class Stream:
    """Rows, and the order that minibatches of them come in: of one model or of several.

    Parameters
    ----------
    block : Block
    order : Order
    """

    def __init__(self, block: Block, order: Order) -> None:
        self.block, self.order = block, order
        self._room: BatchRoom | None = None
        self._parts: list[Batch] = []

    def epoch(self) -> Batches:
        """The minibatches of the next epoch."""
        [batches] = self.order.draw().shares(RowMap((len(self.block),), (0,)))
        return batches

    def gathered(self, batches: Batches, model: Model) -> Iterator[Gathered]:
        """Their rows, in the same arrays in each epoch: few rows all at once."""
        if self._room is None:
            self._room = BatchRoom(model.rows_of([self.block]))
        is_small = self.block.rows.nbytes <= _EPOCH_BYTES
        if not (is_small and isinstance(batches, ListedBatches)):
            yield from batches.gathered(self._room)
            return
        whole, _ = self._room.gather(batches.rows)
        cuts = pairwise([0, *np.cumsum(batches.counts, dtype=np.int64).tolist()])
        self._parts = self._parts or [
            Batch(whole.rows[i:j], whole.targets[i:j], whole.weights[i:j]) for i, j in cuts
        ]
        is_weighted = self.block.weights is not None
        for (rows, size), part in zip(batches, self._parts, strict=True):
            weight = part.weights.sum(dtype=np.float64) if is_weighted else len(rows)
            yield rows, size, part, float(weight)


@dataclass(eq=False)
class Member:
    """A model on its way.

    Attributes
    ----------
    stream : Stream
    state : TrainState
        As of the beginning; as of the end, when it has left the stack.
    course : Course
    is_finite : bool
        False where a loss, a gradient or a parameter was not: the state is then of no use.
    """

    stream: Stream
    state: TrainState
    course: Course
    is_finite: bool = True


def train_together(model: Model, members: Sequence[Member]) -> None:
    """Train models to their ends, each by its own course.

    Parameters
    ----------
    model : Model
        Of all of them; see `skdtheano.runtime.stacked_program.can_stack`.
    members : sequence of Member
        Brought up to date. Their minibatches have the same lengths.
    """
    going_on = [member for member in members if member.course.n_left]
    while going_on:
        with training_thread(), _Stack(model, going_on) as stack:
            going_on = stack.run_until_one_ends()


class _Stack:
    """The models that train on, and what they compute with.

    Parameters
    ----------
    model : Model
    members : list of Member
    """

    def __init__(self, model: Model, members: Sequence[Member]) -> None:
        self._model, self._members = model, members
        self._streams = list({id(m.stream): m.stream for m in members}.values())
        places = {id(stream): place for place, stream in enumerate(self._streams)}
        self._stream_of = [places[id(m.stream)] for m in members]
        self._program = StackedProgram(model.spec, len(members), len(self._streams) == 1)
        self._steps = [m.state.step for m in members]
        settings = [m.course.settings() for m in members]
        self._alphas = np.array([s.alpha for s in settings], np.float64)
        order = self._streams[0].order
        self._n_threads = threads_that_pay(
            model.layout, order.batch_size, threads_of_process()
        )
        states, beside = [m.state for m in members], self._may_lie_side_by_side()
        memory = self._program.memory()
        self._vectors = StackedVectors(model.layout, states, self._alphas, memory, beside)
        own = np.array([s.optimizer.scalars() for s in settings], model.dtype)
        #: Sums of weights and step sizes, of each step, and the optimizers' own numbers.
        self._scalars = [np.empty_like(own[:, 0]) for _ in range(2)] + list(own.T.copy())
        self._batches: dict[int, Batch] = {}

    def _may_lie_side_by_side(self) -> bool:
        """Whether the first layer's products may be one of all models: with the same bits."""
        n_in, n_out, *more = self._model.layout.units
        # How several threads share a product depends on its shape, and their number on what
        # other threads of this process ask for; one stays one.
        if not more or len(self._streams) > 1 or self._n_threads > 1:
            return False
        order, dtype = self._streams[0].order, self._model.dtype.name
        sizes = {min(order.batch_size, order.n_rows), order.n_rows % order.batch_size} - {0}
        n_models = len(self._members)
        n_epochs = min(member.course.n_left for member in self._members)
        n_steps = n_epochs * n_models * -(-order.n_rows // order.batch_size)
        if n_steps < _FEWEST_STEPS:
            return False
        shape = (n_in, n_out, more[0], n_models, dtype)
        with blas_threads(1):
            return all(have_same_bits(n, *shape) for n in sizes)

    def __enter__(self) -> "_Stack":
        return self

    def __exit__(self, *error: object) -> None:
        self._program.give_back()

    @quietly
    def run_until_one_ends(self) -> list[Member]:
        """Epoch after epoch; the members that train on then, with the others up to date."""
        going_on = list(self._members)
        while len(going_on) == len(self._members):
            with blas_threads(self._n_threads):
                losses = self._run_epoch()
            # What is not finite stays so, in the parameters or in the sum of losses.
            are_finite = np.isfinite(losses) & self._vectors.are_finite()
            for member, loss, is_finite in zip(
                self._members, losses.tolist(), are_finite.tolist(), strict=True
            ):
                member.is_finite = is_finite
                if member.is_finite:
                    member.course.take(loss)
                if not (member.is_finite and member.course.n_left):
                    going_on.remove(member)
        for k, member in enumerate(self._members):
            member.state = self._vectors.state(k, self._steps[k])
        return going_on

    def _run_epoch(self) -> np.ndarray:
        """One epoch of all models; sums of loss times rows."""
        settings = [member.course.settings() for member in self._members]
        epochs = [stream.epoch() for stream in self._streams]
        batches = [
            stream.gathered(epoch, self._model)
            for stream, epoch in zip(self._streams, epochs, strict=True)
        ]
        n_steps, vectors = len(epochs[0]), self._vectors
        of_step = (n_steps, len(settings))
        rows, weights = np.empty((n_steps, 1)), np.empty(of_step)
        losses, squares = (np.empty(of_step, self._model.dtype) for _ in range(2))
        step_sizes = [
            [
                s.optimizer.step_size(s.learning_rate, step + number)
                for s, step in zip(settings, self._steps, strict=True)
            ]
            for number in range(1, n_steps + 1)
        ]
        coefs = vectors.theta[:, None, : self._model.layout.n_coefs]
        turned = coefs.swapaxes(1, 2)
        for number, gathered in enumerate(zip(*batches, strict=True)):
            rows[number] = gathered[0][1]
            batch = self._batch(gathered, weights[number])
            losses[number] = self._program.sums_of_all(
                vectors.parameters, batch.rows, batch.targets, batch.weights, vectors.out
            )
            np.matmul(coefs, turned, out=squares[number, :, None, None])
            self._scalars[0][...] = weights[number]
            self._scalars[1][...] = step_sizes[number]
            self._program.update_all(vectors.parts, self._scalars)
        self._steps = [step + n_steps for step in self._steps]
        total = np.zeros(len(settings))
        for term in rows * (losses / weights + 0.5 * self._alphas * squares / weights):
            total += term  # one after another, as one model's are
        return total

    def _batch(self, gathered: Sequence[Gathered], weights: np.ndarray) -> Batch:
        """The rows of a step: of all models, or one matrix for each; and sums of weights."""
        batches = [batch for _, _, batch, _ in gathered]
        first = batches[0]
        assert first is not None
        if len(batches) == 1:
            weights[...] = gathered[0][-1]
            return first
        weights[...] = [gathered[stream][-1] for stream in self._stream_of]
        n, n_models = len(first.weights), len(self._members)
        if n not in self._batches:
            self._batches[n] = Batch(
                *(
                    np.empty((n_models, *array.shape), array.dtype)
                    for array in (first.rows, first.targets, first.weights)
                )
            )
        whole = self._batches[n]
        for k, stream in enumerate(self._stream_of):
            part = batches[stream]
            assert part is not None
            whole.rows[k], whole.targets[k] = part.rows, part.targets
            whole.weights[k] = part.weights
        return whole
