"""Numeric targets: how they are looked at, checked and encoded."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from skdtheano.estimators.reading import check_columns_of_y, warn_of_a_column
from skdtheano.runtime.inspection import Report, dense, inspect_numbers, to_numbers


@dataclass(frozen=True)
class NumberEncoder:
    """Encodes numeric targets as a float matrix of shape (n, n_outputs)."""

    n_outputs: int

    def __call__(self, block: Any) -> np.ndarray:
        y = dense(to_numbers(block))
        dtype = y.dtype if y.dtype == np.float32 else np.float64
        return np.ascontiguousarray(y, dtype).reshape(-1, self.n_outputs)


class NumberTargets:
    """Numeric targets of a dask fit.

    Parameters
    ----------
    loss : {"squared_error", "poisson"}
        Poisson targets must not be negative.
    """

    def __init__(self, loss: str) -> None:
        self._loss = loss

    inspect = staticmethod(inspect_numbers)

    def learn(self, reports: list[Report]) -> tuple[int, NumberEncoder]:
        warn_of_a_column(reports)
        encoder = learn_numbers(reports)
        check_sign(self._loss, any(report.negative for report in reports))
        return encoder.n_outputs, encoder


class TrueNumbers:
    """Numeric targets that predictions are compared with.

    Parameters
    ----------
    n_outputs : int
        Of the fitted model.
    """

    def __init__(self, n_outputs: int) -> None:
        self._n_outputs = n_outputs

    inspect = staticmethod(inspect_numbers)

    def learn(self, reports: list[Report]) -> tuple[int, NumberEncoder]:
        encoder = learn_numbers(reports)
        check_columns_of_y(encoder.n_outputs, self._n_outputs)
        return encoder.n_outputs, encoder


def learn_numbers(reports: list[Report]) -> NumberEncoder:
    """An encoder for the numbers that were found.

    Raises
    ------
    ValueError
        If some block holds no real numbers, or has other columns than the rest.
    """
    for number, report in enumerate(reports):
        if np.dtype(report.dtype).kind not in "fiub":
            raise ValueError(
                f"Block {number} of y has the dtype {np.dtype(report.dtype)}, which is not a "
                "real number's. Convert it before, for example y.astype('float64')."
            )
    columns = {report.n_columns or 1 for report in reports if report.n_rows}
    if len(columns) != 1:
        raise ValueError(
            f"The blocks of y have different numbers of columns: {sorted(columns)}."
        )
    return NumberEncoder(columns.pop())


def check_sign(loss: str, some_negative: bool) -> None:
    """Refuse negative targets where the loss is not defined for them."""
    if loss == "poisson" and some_negative:
        raise ValueError(
            "Some values of y are negative, and loss='poisson' is defined for y >= 0 only. "
            "Use loss='squared_error', or shift y."
        )
