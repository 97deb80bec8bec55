"""How a fit can fail, and what its driver does about it."""

from collections.abc import Sequence


class ValueLost(RuntimeError):
    """A value cannot be had: its task was cancelled, or lost with its worker."""


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


class NotFinite(EndedEarly, ValueError):
    """A loss or a gradient is infinite or no number.

    Parameters
    ----------
    epoch, minibatch : int
        Counted from 1.
    blocks : sequence of int
        Those whose rows of the minibatch held it, as numbered where it was found.
    """

    def __init__(self, epoch: int, minibatch: int, blocks: Sequence[int]) -> None:
        # All of them, or it could not be pickled.
        super().__init__(epoch, minibatch, tuple(blocks))
        self.epoch, self.minibatch, self.blocks = epoch, minibatch, tuple(blocks)

    def __str__(self) -> str:
        where = f"minibatch {self.minibatch} of epoch {self.epoch}"
        if self.blocks:
            where += f", in its rows of block {', '.join(map(str, self.blocks))}"
        # As scikit-learn says it, which finds out once it has finished.
        return (
            "Solver produced non-finite parameter weights. The input data may contain large "
            f"values and need to be preprocessed. The first loss or gradient that is not "
            f"finite is that of {where}. Scale the columns of X, clip large targets, or take "
            "a smaller learning_rate_init."
        )
