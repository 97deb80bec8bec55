"""scikit-learn estimators that train a Theano graph over the rows of dask arrays."""

from skdtheano import viz
from skdtheano.estimators.classifier import DistributedMLPClassifier
from skdtheano.estimators.regressor import DistributedMLPRegressor
from skdtheano.functions.calling import function
from skdtheano.functions.explaining import explain
from skdtheano.graphs.placement import PlacementError
from skdtheano.version import VERSION

__version__ = VERSION

__all__ = [
    "DistributedMLPClassifier",
    "DistributedMLPRegressor",
    "PlacementError",
    "explain",
    "function",
    "viz",
]
