"""scikit-learn estimators that train a Theano graph over the rows of dask arrays."""

from skdtheano.estimators.classifier import DistributedMLPClassifier
from skdtheano.estimators.regressor import DistributedMLPRegressor
from skdtheano.version import VERSION

__version__ = VERSION

__all__ = ["DistributedMLPClassifier", "DistributedMLPRegressor"]
