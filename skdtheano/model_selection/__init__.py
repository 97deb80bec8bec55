"""Searches for hyperparameters, on the cluster that trains."""

from skdtheano.model_selection.batched import (
    BatchedGridSearchCV,
    BatchedRandomizedSearchCV,
)
from skdtheano.model_selection.hyperband import HyperbandSearchCV
from skdtheano.model_selection.learning_curves import LearningCurvesDisplay
from skdtheano.model_selection.successive_halving import SuccessiveHalvingSearchCV

__all__ = [
    "BatchedGridSearchCV",
    "BatchedRandomizedSearchCV",
    "HyperbandSearchCV",
    "LearningCurvesDisplay",
    "SuccessiveHalvingSearchCV",
]
