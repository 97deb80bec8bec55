"""Fits of many models in this process, those of one architecture together."""

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import scipy.sparse
from sklearn.utils import check_random_state

from skdtheano.course import Progress
from skdtheano.estimators.batch_order import batch_order
from skdtheano.estimators.fitted_state import OptimizerState
from skdtheano.estimators.perceptron import DistributedPerceptron
from skdtheano.estimators.training_data import TrainingData, data_in_memory
from skdtheano.runtime.model import Model
from skdtheano.runtime.program import NUMPY
from skdtheano.runtime.sites import LocalSite
from skdtheano.runtime.stack import Member, Stream, train_together
from skdtheano.runtime.stacked_program import can_stack

#: Parameters that models which are trained together may differ in.
NUMBERS = frozenset(
    {
        "alpha",
        "beta_1",
        "beta_2",
        "epsilon",
        "learning_rate",
        "learning_rate_init",
        "max_iter",
        "momentum",
        "n_iter_no_change",
        "power_t",
        "random_state",
        "tol",
    }
)

#: Of parameters, gradients, moments and layers of the models that take their steps together,
#: and how many there are at least: calls cost more than memory then.
_STACK_BYTES, _FEWEST = 2**23, 4


@dataclass(eq=False)
class Table:
    """Rows in memory that some models are fitted to: arguments of their ``fit``."""

    X: Any
    y: Any
    sample_weight: Any = None


@dataclass(eq=False)
class Fit:
    """A model to be fitted.

    Attributes
    ----------
    estimator : DistributedPerceptron
        Not fitted yet.
    table : Table
    seconds : float
        Its share of the time that fits take.
    error : Exception or None
        What its fit has raised.
    was_stacked : bool
        Whether it was trained together with others.
    ended_at_max_iter : bool
        Whether a model that was had not converged then: a ``fit`` of its own warns of it.
    """

    estimator: DistributedPerceptron
    table: Table
    seconds: float = 0.0
    error: Exception | None = None
    was_stacked: bool = False
    ended_at_max_iter: bool = False


@dataclass(frozen=True)
class _Prepared:
    """All of a fit but its steps."""

    fit: Fit
    model: Model
    member: Member
    stream_key: Any
    progress: Progress
    optimizer: OptimizerState
    unfitted: dict[str, Any]

    def give_up(self) -> None:
        """Leave the estimator as it was."""
        self.fit.estimator.__dict__.clear()
        self.fit.estimator.__dict__.update(self.unfitted)


def fit_each(fits: Iterable[Fit]) -> Iterator[Fit]:
    """Fit some models, and yield each when it is done; each is what its own `fit` makes of it.

    Models of one architecture are trained as one (see `skdtheano.runtime.stack`), whatever
    their rows, seeds and numbers are, if their minibatches have the same lengths; but for
    those of `_trains_alone`, which are trained one after another. Bits are those of fits one
    by one, but for a ``random_state`` of None: these draw from one generator in turn. What
    is yielded is not kept here: of fitted models there are as many as the caller keeps, and
    as many as are trained at once.
    """
    groups: dict[Any, deque[Fit]] = {}
    alone: deque[Fit] = deque()
    reader = _Reader()
    for fit in fits:
        kind = alone if _trains_alone(fit) else groups.setdefault(_kind(fit), deque())
        kind.append(fit)
    for group in groups.values():
        yield from _fitted_together(group, reader)
    while alone:
        yield _fitted_alone(alone.popleft())


def _kind(fit: Fit) -> Any:
    """Equal for models that may be of one architecture: all but their numbers."""
    params = fit.estimator.get_params(deep=False)
    kept = sorted((name, repr(value)) for name, value in params.items() if name not in NUMBERS)
    return type(fit.estimator), *kept


def _fitted_together(group: deque[Fit], reader: "_Reader") -> Iterator[Fit]:
    """Models that may be of one architecture; those that read the same rows side by side."""
    tables = {id(fit.table): place for place, fit in enumerate(group)}
    seeds = {repr(fit.estimator.random_state): place for place, fit in enumerate(group)}
    ordered = deque(
        sorted(
            group, key=lambda f: (tables[id(f.table)], seeds[repr(f.estimator.random_state)])
        )
    )
    group.clear()
    n_fits, n_streams = len(ordered), len(tables) * len(seeds)
    waiting: dict[Any, list[_Prepared]] = {}
    while ordered:
        fit = ordered.popleft()
        with _shared_time([fit]):
            ready = _prepared(fit, reader)
        if ready is None:
            yield _fitted_alone(fit)
            continue
        order = ready.member.stream.order
        key = (ready.model, order.batch_size, order.n_rows)
        stack = waiting.setdefault(key, [])
        stack.append(ready)
        n_at_once = _n_at_once(ready, own_rows=n_streams > 1)
        if len(stack) >= math.ceil(n_fits / math.ceil(n_fits / n_at_once)):  # even stacks
            yield from _trained(waiting.pop(key))
    for stack in waiting.values():
        yield from _trained(stack)


def _n_at_once(ready: _Prepared, own_rows: bool) -> int:
    """So many models that a core's caches hold what they compute with."""
    layout, batch_size = ready.model.layout, ready.member.stream.order.batch_size
    n_entries = 4 * layout.n_parameters + 2 * batch_size * sum(layout.units[1:])
    if own_rows:
        n_entries += batch_size * layout.units[0]
    return max(_FEWEST, _STACK_BYTES // (n_entries * ready.model.dtype.itemsize))


def _trained(stack: list[_Prepared]) -> Iterator[Fit]:
    streams: dict[Any, Stream] = {}
    for ready in stack:  # one for all that read the same rows in the same order
        member = ready.member
        member.stream = streams.setdefault(ready.stream_key, member.stream)
    is_one_of_many, has_ended = len(stack) > 1, False
    with suppress(Exception), _shared_time([ready.fit for ready in stack]):
        train_together(stack[0].model, [ready.member for ready in stack])
        has_ended = True
    while stack:
        ready = stack.pop(0)
        if has_ended and ready.member.is_finite:
            _finish(ready, is_one_of_many)
            yield ready.fit
        else:  # its own fit describes what was wrong
            ready.give_up()
            yield _fitted_alone(ready.fit)


def _fitted_alone(fit: Fit) -> Fit:
    with _shared_time([fit]):
        try:
            fit.estimator.fit(fit.table.X, fit.table.y, fit.table.sample_weight)
        except Exception as error:
            fit.error = error
    return fit


@contextmanager
def _shared_time(fits: Sequence[Fit]) -> Iterator[None]:
    """Add the time of a ``with`` block to some fits, in equal shares."""
    began = time.perf_counter()
    yield
    share = (time.perf_counter() - began) / len(fits)
    for fit in fits:
        fit.seconds += share


def _trains_alone(fit: Fit) -> bool:
    """Whether a model cannot be trained with others: for what differs from model to model."""
    model = fit.estimator
    return (
        # Another class may do something else in its own.
        type(model).fit is not DistributedPerceptron.fit
        or model.solver == "lbfgs"
        or bool(model.early_stopping)
        or bool(model.verbose)
        or bool(model.warm_start)
        or model.sync_every != 1
        or model.client is not None
        or model.checkpoint is not None
        or model.mode not in (None, NUMPY)
        # One generator for several models: they would draw in another order than alone.
        or not isinstance(model.random_state, Integral | None)
        or scipy.sparse.issparse(fit.table.X)
    )


def _prepared(fit: Fit, reader: "_Reader") -> _Prepared | None:
    """What comes before the steps; None where that fails, which `fit` describes."""
    model = fit.estimator
    before = dict(vars(model))
    try:
        reader.validate(model)
        model._check_parameters(going_on=False)
        data = reader.read(model, fit.table)
        rng = check_random_state(model.random_state)
        symbols, state, progress, optimizer = model._begin(data, rng, True, False)
        assert optimizer is not None
        order, _ = batch_order(model, data, rng, model._classifies)
        course = model._course(optimizer, progress, order)
        if not can_stack(symbols.spec):
            raise ValueError(f"{symbols.spec} is trained alone.")
    except Exception:  # whatever it is, the model's own `fit` meets it again, and is recorded
        model.__dict__.clear()
        model.__dict__.update(before)
        return None
    member = Member(Stream(data.handles[0], order), state, course)
    key = _stream_key(model, data, order.batch_size)
    return _Prepared(fit, symbols, member, key, progress, optimizer, before)


def _stream_key(model: DistributedPerceptron, data: TrainingData, batch_size: int) -> Any:
    """Equal for models of one architecture that see the same rows in the same order."""
    # A generator that is shared with others gives each model draws of its own.
    seed = object() if model.random_state is None else int(model.random_state)
    return id(data), seed, model.shuffle, batch_size


class _Reader:
    """Reads each table once for all models that read it alike."""

    def __init__(self) -> None:
        self._read: dict[Any, tuple[TrainingData, dict[str, Any]]] = {}
        self._valid: set[Any] = set()

    def validate(self, model: DistributedPerceptron) -> None:
        """Check each parameter by itself, if no model before had the same values."""
        params = model.get_params(deep=False).items()
        values = [(type(model), name, type(value), value) for name, value in params]
        with suppress(TypeError):  # a value without a hash
            if self._valid.issuperset(values):
                return
        model._validate_params()
        with suppress(TypeError):
            self._valid.update(values)

    def read(self, model: DistributedPerceptron, table: Table) -> TrainingData:
        """The rows to train on; what `fit` learns of them is set on the model."""
        key = (id(table), type(model), getattr(model, "loss", None))
        if key not in self._read:
            before = set(vars(model))
            X, y, n_outputs, encode = model._data_in_memory(table.X, table.y, True, False)
            data = data_in_memory(X, y, table.sample_weight, n_outputs, encode, LocalSite())
            learned = {k: v for k, v in vars(model).items() if k not in before}
            self._read[key] = data, learned
        data, learned = self._read[key]
        model.__dict__.update(learned)
        return data


def _finish(ready: _Prepared, is_one_of_many: bool) -> None:
    """Set what training has found."""
    fit, final = ready.fit, ready.member.state
    fit.estimator._keep_learned(
        ready.model, final.theta, ready.progress, ready.optimizer, final
    )
    fit.was_stacked = is_one_of_many
    fit.ended_at_max_iter = not ready.progress.stopped
