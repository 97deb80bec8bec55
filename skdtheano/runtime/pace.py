"""How many epochs a round takes: so many that what it costs beside its steps is little."""

from skdtheano.runtime.workers import seconds_of

#: Seconds of a round, by dask's configuration; an epoch that takes longer is a round.
SETTING = "skdtheano.round-seconds"
_ROUND_SECONDS = 0.5

#: A round that costs more beside its steps may take so many times this, within bounds.
_WORTH_IT = 25
_MOST_TIMES = 4

#: Row numbers of a round, of all its epochs: 4 bytes each that travel, and 8 at the caller.
_MOST_NUMBERS = 2**21


class Pace:
    """Learns from each round how long the next one should be.

    What is lost with a worker, or by Ctrl-C, is what its round had done: this bounds it.

    Parameters
    ----------
    n_rows : int
        Of an epoch.
    """

    def __init__(self, n_rows: int) -> None:
        self._seconds = seconds_of(SETTING, _ROUND_SECONDS)
        self._most = max(_MOST_NUMBERS // max(n_rows, 1), 1)
        #: Epochs of the next round.
        self.n_at_once = 1

    def note(self, wall: float, epochs: list[float]) -> None:
        """Take note of a round.

        Parameters
        ----------
        wall : float
            Seconds for its caller.
        epochs : list of float
            Seconds of each of its epochs.
        """
        beside = max(wall - sum(epochs), 0.0)
        wanted = min(max(_WORTH_IT * beside, self._seconds), _MOST_TIMES * self._seconds)
        epoch = max(min(epochs), 1e-6)
        # At most four times as many as before: the first epoch of a process is no measure.
        self.n_at_once = max(1, min(int(wanted / epoch), self._most, 4 * len(epochs)))
