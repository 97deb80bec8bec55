"""The checkpoint of one fit: which fit it is of, and how training goes on from it."""

import hashlib
import json
import logging
import sys
import time
import zlib
from dataclasses import asdict
from numbers import Integral, Real
from typing import Any

import numpy as np
from dask.utils import parse_timedelta

from skdtheano import engine
from skdtheano.course import Progress
from skdtheano.estimators.batch_order import windows_of
from skdtheano.estimators.training_data import TrainingData
from skdtheano.notices import warn_user
from skdtheano.runtime.blocks import Block
from skdtheano.runtime.checkpoint import Checkpoint, CheckpointFile
from skdtheano.runtime.failures import CheckpointRefused
from skdtheano.runtime.order import Order
from skdtheano.runtime.parameters import TrainState
from skdtheano.training import Runtime
from skdtheano.version import VERSION

logger = logging.getLogger(__name__)

#: Parameters that the epochs so far do not depend on.
_FREE = {
    "checkpoint",
    "checkpoint_every",
    "client",
    "max_fun",
    "max_iter",
    "random_state",  # compared apart: what a generator draws is in the checkpoint
    "verbose",
    "warm_start",
}

_LISTS = ("loss_curve", "validation_scores")


def check_checkpoint(estimator: Any, going_on: bool) -> None:
    """Refuse what a checkpoint cannot be kept of.

    Raises
    ------
    ValueError
    """
    if estimator.checkpoint is None:
        return
    given = f"checkpoint={estimator.checkpoint!r}"
    if estimator.solver == "lbfgs":
        raise ValueError(
            f"{given} needs solver='adam' or 'sgd': what L-BFGS has learned of the curvature "
            "cannot be had from SciPy. Use checkpoint=None."
        )
    if going_on:
        raise ValueError(
            f"{given} is of fit, and partial_fit trains one epoch that you can save by "
            "yourself. Use set_params(checkpoint=None) before it."
        )
    if estimator.warm_start:
        raise ValueError(
            f"{given} and warm_start=True both say where to begin. Use one of them; a fit "
            "with a checkpoint goes on for longer if max_iter is raised."
        )
    _interval(estimator.checkpoint_every)


def _interval(every: Any) -> tuple[float, float]:
    """Epochs and seconds between two checkpoints, one of them infinite."""
    if isinstance(every, Integral):
        return float(every), np.inf
    try:
        seconds = float(parse_timedelta(every, default="s"))
    except (IndexError, KeyError, TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds < np.inf:
        raise ValueError(
            f"checkpoint_every={every!r} is neither a number of epochs nor a time. Give an "
            "int of 1 or more, or a text such as '30 s' or '5 minutes'."
        )
    return np.inf, seconds


class FitCheckpoint:
    """Reads what an earlier process left of a fit, and writes how far this one is.

    Made before the rows are read, so that a damaged file is refused before that work.

    Parameters
    ----------
    estimator : DistributedPerceptron
        Its `checkpoint` is not None.

    Raises
    ------
    CheckpointRefused
        If the file is damaged, or not a checkpoint.
    """

    def __init__(self, estimator: Any) -> None:
        self._estimator = estimator
        self._file = CheckpointFile(estimator.checkpoint)
        self._epochs, self._seconds = _interval(estimator.checkpoint_every)
        self._before: Progress | None = None
        try:
            self._found = self._file.read()
            if self._found is not None:
                self._before = _progress_in(self._found)
        except CheckpointRefused as refusal:
            raise self._refused(str(refusal)) from refusal
        self._file.check_writable()
        self._facts: dict[str, Any] = {}
        self._written_at = time.monotonic()
        self._warned = False

    def _refused(self, reason: str) -> CheckpointRefused:
        return CheckpointRefused(
            f"The file of checkpoint={self._file.url!r} was not used: {reason}. Give another "
            "path, or remove the file to train from the beginning."
        )

    def begin(self, data: TrainingData, rng: np.random.RandomState) -> np.random.RandomState:
        """See that the file is of this fit.

        Returns
        -------
        RandomState
            To draw from as the fit did that wrote the file.

        Raises
        ------
        CheckpointRefused
            If the file is of another fit; the text names all differences.
        """
        self._facts = _facts_of(self._estimator, data)
        self._contents = _contents_of(data)
        if self._found is None or self._before is None:
            self._keep_generator(rng)
            return rng
        facts = self._found.facts
        differences = list(_differences(facts, self._facts))
        done, max_iter = self._before.n_iter, self._estimator.max_iter
        if done > max_iter:
            differences.append(f"it is of {done} epochs, and max_iter={max_iter}")
        if differences:
            raise self._refused("it is of another fit: " + "; ".join(differences))
        self._compare_contents(facts)
        if not isinstance(self._estimator.random_state, Integral):
            if self._estimator.random_state in (None, np.random):
                rng = np.random.RandomState()  # not to set back the one that all share
            try:
                rng.set_state(facts["generator"])
            except (KeyError, TypeError, ValueError) as error:
                raise self._refused(
                    f"it has another kind of random_state ({error})"
                ) from error
        self._keep_generator(rng)
        return rng

    def _keep_generator(self, rng: np.random.RandomState) -> None:
        self._facts["generator"] = _state_of(rng)
        self._rng = rng

    def _compare_contents(self, facts: dict[str, Any]) -> None:
        then, now = facts["contents"], self._contents
        if facts["data"]["lengths"] != self._facts["data"]["lengths"]:
            return  # cut otherwise, which changes the rounding of sums alone
        other = [b for b, (a, c) in enumerate(zip(then, now, strict=True)) if a != c]
        if not other:
            return
        told = f"{len(other)} of {len(now)} blocks (the first of them is block {other[0]})"
        if self._is_finished(self._before):
            raise self._refused(
                f"it is of a finished fit of other rows, which differ in {told}. In a search "
                "or a cross-validation all fits share one path: use checkpoint=None there"
            )
        warn_user(
            f"The rows of {told} are not those that checkpoint={self._file.url!r} was trained "
            "on. Training goes on, and will not end as an uninterrupted fit would."
        )

    def _is_finished(self, progress: Progress | None) -> bool:
        if progress is None:
            return False
        return progress.stopped or progress.n_iter == self._estimator.max_iter

    def resume(
        self, state: TrainState, progress: Progress, order: Order
    ) -> tuple[TrainState, np.ndarray | None]:
        """Where the fit that wrote the file was; `progress` and `order` are brought there.

        Returns
        -------
        state : TrainState
        best : ndarray or None
            The parameters with the best score.
        """
        if self._found is None or self._before is None:
            return state, None
        facts, arrays, before = self._found.facts, self._found.arrays, self._before
        slots = [arrays.get(f"slot_{i}") for i in range(len(state.slots))]
        best = arrays.get("best")
        for array in (arrays.get("theta"), *slots, *([] if best is None else [best])):
            if (
                array is None
                or array.shape != state.theta.shape
                or array.dtype != state.theta.dtype
            ):
                raise self._refused("its arrays are not those of this network")
        for _ in range(before.n_iter):
            order.draw()
        if _digest(self._rng) != facts["generator_after"]:
            raise self._refused(
                "the order of its minibatches cannot be drawn again: others drew from the "
                "same random_state during that fit, or a version of NumPy or scikit-learn "
                "draws otherwise. An int for random_state is safe from the former"
            )
        vars(progress).update(vars(before))
        ended = self._is_finished(progress)
        told = "is finished, and is not trained again" if ended else "goes on"
        text = (
            f"The fit of checkpoint={self._file.url!r} {told} after {progress.n_iter} epochs."
        )
        logger.info(text)
        if self._estimator.verbose:
            print(text, flush=True)
        present = [slot for slot in slots if slot is not None]
        self._found = None  # a large model is not held twice
        return TrainState(arrays["theta"], present, facts["step"]), best

    def saver(self, runtime: Runtime) -> "Saver":
        """To call after epochs; writes when it is time."""
        return Saver(self, runtime)

    def is_due(self, progress: Progress) -> bool:
        return (
            self._is_finished(progress)
            or time.monotonic() - self._written_at >= self._seconds
            or progress.n_iter % self._epochs == 0
        )

    def epochs_left(self, progress: Progress) -> int:
        """In how many epochs it is due, by their number.

        By the clock it may be late by as long as epochs are run at once, a second or two.
        """
        if np.isinf(self._epochs):
            return sys.maxsize if self._seconds else 1
        return int(self._epochs - progress.n_iter % self._epochs)

    def write(self, progress: Progress, runtime: Runtime) -> None:
        try:
            state, best = runtime.state(), runtime.best()
            told = asdict(progress)
            lists = {name: told.pop(name) for name in _LISTS}
            facts = {
                **self._facts,
                "progress": told,
                "step": state.step,
                "generator_after": _digest(self._rng),
                "contents": self._contents,
            }
            arrays = {"theta": state.theta}
            arrays |= {f"slot_{i}": slot for i, slot in enumerate(state.slots)}
            arrays |= {name: np.asarray(g) for name, g in lists.items() if g is not None}
            if best is not None:
                arrays["best"] = best
            self._file.write(Checkpoint(facts, arrays))
        except Exception as error:
            # A fit of hours does not end for a full disk or a store that is away.
            if not self._warned:
                self._warned = True
                warn_user(
                    f"checkpoint={self._file.url!r} could not be written after epoch "
                    f"{progress.n_iter}: {error!r}. Training goes on, and tries again."
                )
        self._written_at = time.monotonic()


class Saver:
    """Writes a checkpoint of a runtime's state each time that it is due.

    Parameters
    ----------
    checkpoint : FitCheckpoint
    runtime : Runtime
    """

    def __init__(self, checkpoint: FitCheckpoint, runtime: Runtime) -> None:
        self._checkpoint, self._runtime = checkpoint, runtime

    def __call__(self, progress: Progress) -> None:
        if self._checkpoint.is_due(progress):
            self._checkpoint.write(progress, self._runtime)

    def epochs_left(self, progress: Progress) -> int:
        return self._checkpoint.epochs_left(progress)


def _progress_in(found: Checkpoint) -> Progress:
    """The history in a file, whose parts are all looked for before any is used."""
    facts, arrays = found.facts, found.arrays
    try:
        lists = {name: arrays[name].tolist() for name in _LISTS if name in arrays}
        progress = Progress(**facts["progress"], **lists)
        for name in ("estimator", "parameters", "data", "contents", "step"):
            facts[name]
        if len(progress.loss_curve) < progress.n_iter:
            raise ValueError("loss_curve")
        facts["generator"], facts["generator_after"], facts["data"]["lengths"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointRefused(f"its content is not that of a fit ({error!r})") from error
    return progress


def _facts_of(estimator: Any, data: TrainingData) -> dict[str, Any]:
    """What two fits must agree on, one to go on where the other was."""
    given = estimator.get_params(deep=False)
    parameters = {name: _plain(v) for name, v in given.items() if name not in _FREE}
    parameters["hidden_layer_sizes"] = estimator._hidden_sizes()
    seed = estimator.random_state
    parameters["random_state"] = int(seed) if isinstance(seed, Integral) else None
    classes = getattr(estimator, "classes_", None)
    return {
        "estimator": type(estimator).__name__,
        "versions": {"skdtheano": VERSION, "engine": engine.ENGINE},
        "parameters": parameters,
        "data": {
            "n_rows": data.n_rows,
            "n_features": data.n_features,
            "n_outputs": data.n_outputs,
            "dtype": data.row_dtype,
            "sparse": data.sparse,
            "classes": None if classes is None else repr(np.asarray(classes).tolist()),
            "lengths": list(data.lengths),
            "windows": windows_of(estimator, data),
        },
    }


def _plain(value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _differences(then: dict[str, Any], now: dict[str, Any]) -> "list[str]":
    found = []
    if then["estimator"] != now["estimator"]:
        found.append(f"that was a {then['estimator']}, and this is a {now['estimator']}")
    for name in sorted({*then["parameters"], *now["parameters"]}):
        a, b = then["parameters"].get(name), now["parameters"].get(name)
        if a != b:
            found.append(f"{name} was {_short(a)}, and is {_short(b)}")
    by_blocks = now["data"]["windows"] is not None
    for name, b in now["data"].items():
        a = then["data"].get(name)
        if a != b and name == "lengths":
            # The order of minibatches is of the blocks' lengths only if drawn by blocks.
            if by_blocks:
                found.append(f"the rows were in {len(a)} blocks of other lengths")
        elif a != b:
            found.append(f"the data had {name}={_short(a)}, and have {_short(b)}")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _contents_of(data: TrainingData) -> list[int]:
    """A checksum of each block, computed where it lies."""
    where = data.site.spread(data.handles, data.lengths)
    sums = [
        data.site.submit(_checksum, handle, **pin)
        for handle, pin in zip(data.handles, where, strict=True)
    ]
    return data.site.get(sums)


def _checksum(block: Block) -> int:
    checksum = 0
    rows = block.rows
    parts = [rows] if isinstance(rows, np.ndarray) else [rows.indptr, rows.indices, rows.data]
    for array in (*parts, block.targets, block.weights):
        if array is not None:
            checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return checksum


def _digest(rng: np.random.RandomState) -> str:
    """Names the state of a generator."""
    return hashlib.sha256(json.dumps(_state_of(rng), sort_keys=True).encode()).hexdigest()


def _state_of(rng: np.random.RandomState) -> dict[str, Any]:
    """What JSON takes of a generator of any kind."""
    state: Any = rng.get_state(legacy=False)
    text = json.dumps(state, default=np.ndarray.tolist)  # its integers are of any length
    plain: dict[str, Any] = json.loads(text)
    return plain
