"""How many epochs a round takes: so many that what it costs beside its steps is little."""

import threading
from collections import OrderedDict
from collections.abc import Hashable

from skdtheano.runtime.workers import seconds_of

#: Seconds of a round, by dask's configuration; an epoch that takes longer is a round.
SETTING = "skdtheano.round-seconds"
_ROUND_SECONDS = 1.0

#: A round that costs more beside its steps may take so many times this, within bounds.
_WORTH_IT = 30
_MOST_TIMES = 4

#: Row numbers of a round, of all its epochs: 4 bytes each that travel, and 8 at the caller.
_MOST_NUMBERS = 2**21

_MAX_KNOWN = 256
_known: OrderedDict[Hashable, int] = OrderedDict()
_lock = threading.Lock()


class Pace:
    """Learns from each round how long the next one should be.

    What is lost with a worker, or by Ctrl-C, is what its round had done: this bounds it.

    Parameters
    ----------
    n_rows : int
        Of an epoch.
    kind : hashable, optional
        Equal for fits whose epochs take as long: the first round is then as the last one of
        an earlier fit. Without one it is an epoch.
    """

    def __init__(self, n_rows: int, kind: Hashable = None) -> None:
        self._seconds = seconds_of(SETTING, _ROUND_SECONDS)
        self._most = max(_MOST_NUMBERS // max(n_rows, 1), 1)
        self._kind = None if kind is None else (kind, n_rows, self._seconds)
        with _lock:
            #: Epochs of the next round.
            self.n_at_once = _known.get(self._kind, 1)

    def note(self, wall: float, epochs: list[float]) -> None:
        """Take note of a round.

        Parameters
        ----------
        wall : float
            Seconds for its caller.
        epochs : list of float
            Seconds of each of its epochs.
        """
        epoch = max(min(epochs), 1e-6)
        # With what the first epoch takes longer: it makes the calls of the others.
        beside = max(wall - sum(epochs[1:]) - epoch, 0.0)
        wanted = min(max(_WORTH_IT * beside, self._seconds), _MOST_TIMES * self._seconds)
        # At most four times as many as before: the first epoch of a process is no measure.
        most = max(4 * len(epochs), self.n_at_once)
        self.n_at_once = max(1, min(int(wanted / epoch), self._most, most))
        if self._kind is not None:
            with _lock:
                _known[self._kind] = self.n_at_once
                _known.move_to_end(self._kind)
                while len(_known) > _MAX_KNOWN:
                    _known.popitem(last=False)
