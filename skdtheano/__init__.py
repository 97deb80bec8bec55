"""scikit-learn estimators that train a Theano graph over the rows of dask arrays."""

from skdtheano.estimators.classifier import DistributedMLPClassifier
from skdtheano.estimators.regressor import DistributedMLPRegressor

__version__ = "0.1.0"

__all__ = ["DistributedMLPClassifier", "DistributedMLPRegressor"]
