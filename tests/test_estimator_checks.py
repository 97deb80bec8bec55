"""scikit-learn's estimator checks, all of them, for each solver; none may fail."""

from collections.abc import Callable
from unittest import SkipTest

import pytest
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

from skdtheano import DistributedMLPClassifier, DistributedMLPRegressor

# Fits are stopped at max_iter to save time, by scikit-learn's own run of the checks too,
# which ignores the warning.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

# As few iterations as the checks of training allow: they want 83% of the labels right, and
# an R² of 0.5. Nearly all of the time goes into epochs.
ESTIMATORS = [
    DistributedMLPClassifier(max_iter=50),
    DistributedMLPRegressor(max_iter=50),
    DistributedMLPClassifier(solver="sgd", max_iter=50),
    DistributedMLPRegressor(solver="sgd", max_iter=50),
    DistributedMLPClassifier((10,), solver="lbfgs", max_iter=10),
    DistributedMLPRegressor(hidden_layer_sizes=(10,), solver="lbfgs", max_iter=10),
]


ORIGINALS = {
    DistributedMLPClassifier: MLPClassifier,
    DistributedMLPRegressor: MLPRegressor,
}


@parametrize_with_checks(ESTIMATORS)
def test_estimator_check(
    estimator: DistributedMLPClassifier | DistributedMLPRegressor,
    check: Callable[[object], None],
) -> None:
    try:
        check(estimator)
    except SkipTest:
        # Only what is skipped for scikit-learn's own estimator may be.
        with pytest.raises(SkipTest):
            check(ORIGINALS[type(estimator)]())
        raise
