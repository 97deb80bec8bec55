"""A running search: candidates, brackets, and who trains next."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skdtheano.model_selection.calls import Judgement, calls_by_block, judge, train
from skdtheano.model_selection.halving import Bracket
from skdtheano.model_selection.held_out import HeldOutSplit
from skdtheano.model_selection.places import Place


@dataclass
class Trainee:
    """A candidate of a running search.

    Attributes
    ----------
    newest : handle
        Of its `Candidate`, as far as it is to be trained.
    scored : handle or None
        As far as it was scored.
    """

    model_id: Any
    params: Mapping[str, Any]
    newest: Any
    scored: Any = None
    records: list[dict[str, Any]] = field(default_factory=list)


class SearchRun:
    """Brackets side by side: whatever ends first, the same candidates go on."""

    def __init__(
        self,
        place: Place,
        data: HeldOutSplit,
        scorer: Any,
        fit_params: dict[str, Any],
        order: list[int],
        say: Callable[[str], None],
    ) -> None:
        self._place, self._data = place, data
        self._scorer, self._fit_params = scorer, fit_params
        self._order, self._say = order, say
        self._began = time.perf_counter()
        self._waiting: dict[Any, tuple[int, int]] = {}  # by number, since values may repeat
        self._handles: dict[int, Any] = {}
        self._n = 0

    def all(self, brackets: dict[int, Bracket], candidates: dict[int, list[Trainee]]) -> None:
        try:
            for b, bracket in brackets.items():
                self._submit(b, candidates[b], bracket.begin())
            while self._waiting:
                number, judgement = self._next()
                b, i = self._waiting.pop(number)
                trainee, bracket = candidates[b][i], brackets[b]
                trainee.scored = trainee.newest
                trainee.records.append(self._record(b, trainee, judgement))
                rung = bracket.n_rungs
                more = bracket.take(i, judgement.n_calls, judgement.score)
                if bracket.n_rungs > rung or bracket.is_over:
                    self._tell(b, bracket, more)
                    self._release(bracket, candidates[b])
                self._submit(b, candidates[b], more)
        except BaseException:
            running = [candidates[b][i] for b, i in self._waiting.values()]
            handles = [trainee.newest for trainee in running]
            self._place.cancel([*handles, *self._handles.values()])
            raise

    def _submit(self, b: int, mine: list[Trainee], calls: Mapping[int, int]) -> None:
        for i, n_calls in calls.items():
            trainee = mine[i]
            done = trainee.records[-1]["partial_fit_calls"] if trainee.records else 0
            anew = True
            for block, n in calls_by_block(self._order, done, n_calls):
                X, y = self._data.blocks[block]
                trainee.newest = self._place.submit(
                    train, trainee.newest, X, y, n, self._fit_params, anew
                )
                anew = False
            self._n += 1
            self._waiting[self._n] = (b, i)
            self._handles[self._n] = self._place.submit(
                judge, trainee.newest, *self._data.test, self._scorer
            )

    def _next(self) -> tuple[int, Judgement]:
        done = self._place.first_done(list(self._handles.values()))
        number = next(n for n, handle in self._handles.items() if handle is done)
        return number, self._place.result(self._handles.pop(number))

    def _record(self, b: int, trainee: Trainee, judgement: Judgement) -> dict[str, Any]:
        return {
            "model_id": trainee.model_id,
            "bracket": b,
            "params": dict(trainee.params),
            "partial_fit_calls": judgement.n_calls,
            "partial_fit_time": judgement.partial_fit_seconds,
            "score": judgement.score,
            "score_time": judgement.score_seconds,
            "elapsed_wall_time": time.perf_counter() - self._began,
            "error": judgement.error,
        }

    def _release(self, bracket: Bracket, mine: list[Trainee]) -> None:
        """Let the cluster forget the models that train no further."""
        kept = set(bracket.retained)
        for i, trainee in enumerate(mine):
            if i not in kept:
                trainee.newest = trainee.scored = None

    def _tell(self, b: int, bracket: Bracket, more: Mapping[int, int]) -> None:
        score = np.nanmax([bracket.score(i) for i in bracket.retained] + [-np.inf])
        then = f"{len(more)} go on" if more else "done"
        self._say(f"Bracket {b}: best score {score:.4f}; {then}.")
