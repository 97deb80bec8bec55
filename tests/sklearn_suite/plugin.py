"""A pytest plugin under which scikit-learn's tests import this package's estimators.

It is for a process of its own: what it replaces stays replaced until that process ends.
"""

import numpy as np
import pytest
import sklearn.neural_network

from skdtheano import DistributedMLPClassifier, DistributedMLPRegressor
from sklearn_suite.not_run import NOT_RUN

#: What the tests import, and what they get.
DROP_INS = {
    "MLPClassifier": DistributedMLPClassifier,
    "MLPRegressor": DistributedMLPRegressor,
}

# A plugin named by -p is imported before the tests are, so that theirs is this import.
for _name, _estimator in DROP_INS.items():
    setattr(sklearn.neural_network, _name, _estimator)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Leave out what cannot run, and refuse to test scikit-learn against itself."""
    for item in items:
        for name, estimator in DROP_INS.items():
            if getattr(item.module, name, estimator) is not estimator:
                raise pytest.UsageError(
                    f"{item.nodeid} imported scikit-learn's {name} before the plugin "
                    f"replaced it by {estimator.__name__}. Load the plugin by -p, first."
                )
    left_out = [item for item in items if item.originalname in NOT_RUN]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def global_random_seed() -> int:
    """The seed of scikit-learn's conftest, its default."""
    return 42


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Seed NumPy: many of the tests leave random_state at None."""
    np.random.seed(0)
