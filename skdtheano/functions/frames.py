"""Data frames as arrays of one dtype."""

from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype


def without_frames(value: Any, name: str) -> Any:
    """The array of a data frame or a series; anything else as it is.

    Columns of several dtypes meet in one that holds them all, and nullable ones become
    floats, with NaN where a value is missing.

    Parameters
    ----------
    value : Any
    name : str
        Of the argument, for people.

    Raises
    ------
    TypeError
        If a column is not of numbers.
    """
    if not isinstance(value, dd.DataFrame | dd.Series | pd.DataFrame | pd.Series):
        return value
    columns = value.dtypes.items() if value.ndim == 2 else [(value.name, value.dtype)]
    odd = {str(column): str(dtype) for column, dtype in columns if not is_numeric_dtype(dtype)}
    if odd:
        raise TypeError(
            f"Input {name} has columns that are not numbers: {odd}. Encode or drop them "
            "before, for example with dask_ml.preprocessing.OrdinalEncoder."
        )
    dtypes = list(value.dtypes) if value.ndim == 2 else [value.dtype]
    plain = [d if isinstance(d, np.dtype) else np.dtype("float64") for d in dtypes]
    if len(set(dtypes)) > 1 or plain != dtypes:
        value = value.astype(np.result_type(*plain))
    if isinstance(value, dd.DataFrame | dd.Series):
        return value.to_dask_array()
    return value.to_numpy()
