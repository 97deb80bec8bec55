"""What a search tells of its candidates, as arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from skdtheano.model_selection.search_run import Trainee


def cv_results(trainees: Sequence[Trainee], scores: Sequence[float]) -> dict[str, Any]:
    """One entry a candidate; names are dask-ml's."""
    times = {
        key: [[record[key] for record in trainee.records] for trainee in trainees]
        for key in ("partial_fit_time", "score_time")
    }
    names = sorted({name for trainee in trainees for name in trainee.params})
    results: dict[str, Any] = {
        "model_id": np.array([trainee.model_id for trainee in trainees]),
        "params": [dict(trainee.params) for trainee in trainees],
        "test_score": np.array(scores),
        "partial_fit_calls": np.array(
            [trainee.records[-1]["partial_fit_calls"] for trainee in trainees]
        ),
        # The worst rank for what failed, as scikit-learn has it.
        "rank_test_score": rankdata(
            [np.inf if np.isnan(score) else -score for score in scores], method="min"
        ).astype(int),
    }
    for key, values in times.items():
        results[f"mean_{key}"] = np.array([np.mean(some) for some in values])
        results[f"std_{key}"] = np.array([np.std(some) for some in values])
    for name in names:
        column = np.ma.masked_all(len(trainees), dtype=object)
        for i, trainee in enumerate(trainees):
            if name in trainee.params:
                column[i] = trainee.params[name]
        results[f"param_{name}"] = column
    return results
