"""Warnings that point at the user's own line."""

import os
import sys
import warnings
from pathlib import Path

import sklearn

_INSIDE = tuple(f"{Path(module).parent}{os.sep}" for module in (__file__, sklearn.__file__))


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, with the first line outside this package and scikit-learn as the place."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
