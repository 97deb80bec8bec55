"""Which order a fit draws its minibatches in, and which rows it holds out."""

import logging
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from skdtheano.estimators.training_data import TrainingData
from skdtheano.notices import warn_user
from skdtheano.runtime.order import (
    MAX_GLOBAL_ROWS,
    BlockOrder,
    GlobalOrder,
    HeldOut,
    Order,
    RowMap,
    held_out_counts,
    n_windows_of,
)

logger = logging.getLogger(__name__)


def batch_order(
    estimator: Any, data: TrainingData, rng: np.random.RandomState, classifies: bool
) -> tuple[Order, HeldOut | None]:
    """Batch order of the training rows, and who holds which held-out row."""
    n_windows = windows_of(estimator, data)
    if n_windows is not None:
        return _block_order(estimator, data, rng, n_windows)
    rows = np.arange(data.n_rows)
    held_out: HeldOut | None = None
    if estimator.early_stopping:
        stratify = data.true_rows() if classifies and data.n_outputs == 1 else None
        rows, validation = train_test_split(
            rows,
            random_state=rng,
            test_size=estimator.validation_fraction,
            stratify=stratify,
        )
        _check_held_out(len(validation))

        def held_out(places: RowMap) -> list[np.ndarray]:
            return places.split(validation)

    batch_size = _batch_rows(estimator, len(rows))
    return GlobalOrder(rows, batch_size, bool(estimator.shuffle), rng), held_out


def windows_of(estimator: Any, data: TrainingData) -> int | None:
    """Windows of an order by blocks; None where the order is of all rows."""
    is_short = data.n_rows <= MAX_GLOBAL_ROWS
    if not estimator.shuffle or (is_short and estimator.shuffle != "blocks"):
        return None
    n_bytes = data.n_rows * data.n_features * np.dtype(data.row_dtype).itemsize
    return n_windows_of(len(data.lengths), n_bytes)


def _block_order(
    estimator: Any, data: TrainingData, rng: np.random.RandomState, n_windows: int
) -> tuple[Order, HeldOut | None]:
    if estimator.shuffle != "blocks":
        logger.warning(
            "shuffle=True with %d rows: above %d rows the order of the minibatches is drawn "
            "block by block (shuffle='blocks'), since a permutation of all rows would take "
            "%.1f GiB.",
            data.n_rows,
            MAX_GLOBAL_ROWS,
            data.n_rows * 16 / 2**30,
        )
    lengths = data.lengths
    fraction = estimator.validation_fraction if estimator.early_stopping else 0.0
    n_held_out = sum(held_out_counts(lengths, fraction))
    if estimator.early_stopping:
        _check_held_out(n_held_out)
        if n_held_out == data.n_rows:
            raise ValueError(
                f"With n_samples={data.n_rows} and validation_fraction={fraction:g}, the "
                "resulting train set will be empty. Use a smaller validation_fraction."
            )
    batch_size = _batch_rows(estimator, data.n_rows - n_held_out)
    seed = int(rng.randint(2**31 - 1))
    order = BlockOrder(lengths, batch_size, seed, held_out=fraction, n_windows=n_windows)
    return order, order.held_out_rows if estimator.early_stopping else None


def _check_held_out(n_rows: int) -> None:
    if n_rows < 2:
        raise ValueError(
            "The validation set is too small. Increase 'validation_fraction' or the size "
            "of your dataset."
        )


def _batch_rows(estimator: Any, n_rows: int) -> int:
    if estimator.batch_size != "auto" and estimator.batch_size > n_rows:
        warn_user(
            "Got `batch_size` less than 1 or larger than sample size. It is going to be "
            "clipped"
        )
    return batch_rows(estimator, n_rows)


def batch_rows(estimator: Any, n_rows: int) -> int:
    """Rows of a minibatch, of so many."""
    wanted = 200 if estimator.batch_size == "auto" else estimator.batch_size
    return int(np.clip(wanted, 1, n_rows))
