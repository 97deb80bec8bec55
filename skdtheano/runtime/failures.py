"""How a fit can fail, and what its driver does about it."""

from collections.abc import Sequence


class ValueLost(RuntimeError):
    """A value cannot be had: its task was cancelled, or lost with its worker."""


class CheckpointRefused(ValueError):
    """A file cannot be gone on from; the text says why."""


class RoundFailed(Exception):
    """A round has to be run again; the text says why."""


class EndedEarly(Exception):
    """A fit cannot go on, and what it has learned so far is as good as after Ctrl-C.

    Attributes
    ----------
    model_kept : bool
        Whether the estimator has it.
    """

    model_kept = False


class RoundsFailed(EndedEarly, RuntimeError):
    """A round failed too often; the text names the causes."""


class WorkersLost(EndedEarly, RuntimeError):
    """There is no worker, or what it had cannot be had again."""


class SchedulerLost(EndedEarly, ConnectionError):
    """The client has lost its scheduler, or was closed."""


class NotFinite(EndedEarly, ValueError):
    """A loss or a gradient is infinite or no number.

    Parameters
    ----------
    what : {"loss", "gradient"}
    epoch, minibatch : int
        Counted from 1.
    blocks : sequence of int
        Those whose rows of the minibatch held it, as numbered where it was found.
    """

    def __init__(self, what: str, epoch: int, minibatch: int, blocks: Sequence[int]) -> None:
        # All of them, or it could not be pickled.
        super().__init__(what, epoch, minibatch, tuple(blocks))
        self.what, self.epoch, self.minibatch, self.blocks = (
            what,
            epoch,
            minibatch,
            tuple(blocks),
        )

    def named(self, blocks: Sequence[int]) -> "NotFinite":
        """The same, with other numbers for the blocks."""
        return NotFinite(self.what, self.epoch, self.minibatch, blocks)

    def __repr__(self) -> str:  # which workers log, and notebooks show
        return f"{type(self).__name__}({str(self)!r})"

    def __str__(self) -> str:
        where = f"minibatch {self.minibatch} of epoch {self.epoch}"
        if self.blocks:
            where += f", in its rows of block {', '.join(map(str, self.blocks))}"
        said = f"The first {self.what} that is not finite is that of {where}. "
        if self.what == "gradient":  # scikit-learn says this once it has finished
            said = (
                "Solver produced non-finite parameter weights. The input data may contain "
                f"large values and need to be preprocessed. {said}"
            )
        return (
            f"{said}Scale the columns of X, clip large targets, or take a smaller "
            "learning_rate_init."
        )
