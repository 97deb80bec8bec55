"""Scores from sums: those of scikit-learn on the whole, however the rows are split."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.metrics import accuracy_score, r2_score

from skdtheano.runtime.scores import accuracy, label_sums, merge, r2, regression_sums


@st.composite
def splits(draw: st.DrawFn) -> tuple[int, list[int], int]:
    """A number of rows, where to cut them, and a seed."""
    n_rows = draw(st.integers(2, 40))
    cuts = draw(st.lists(st.integers(0, n_rows), max_size=6).map(sorted))
    return n_rows, cuts, draw(st.integers(0, 10**6))


@given(splits(), st.sampled_from([0.0, 1e6]), st.integers(1, 3), st.booleans())
def test_r2_of_parts_is_that_of_the_whole(
    split: tuple[int, list[int], int], mean: float, n_outputs: int, weighted: bool
) -> None:
    n_rows, cuts, seed = split
    rng = np.random.RandomState(seed)
    truth = mean + rng.standard_normal((n_rows, n_outputs))
    predicted = truth + 0.3 * rng.standard_normal((n_rows, n_outputs))
    weights = rng.uniform(0.1, 2, n_rows) if weighted else np.ones(n_rows)
    parts = zip(*(np.split(a, cuts) for a in (truth, predicted, weights)), strict=True)
    found = r2(merge(regression_sums(*part) for part in parts))
    # Squares of a million have six digits less: the mean is taken off before.
    expected = r2_score(truth, predicted, sample_weight=weights)
    assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


@given(splits(), st.integers(1, 3))
def test_accuracy_of_parts_is_that_of_the_whole(
    split: tuple[int, list[int], int], n_labels: int
) -> None:
    n_rows, cuts, seed = split
    rng = np.random.RandomState(seed)
    shape = n_rows if n_labels == 1 else (n_rows, n_labels)
    truth, predicted = rng.randint(0, 2, shape), rng.randint(0, 2, shape)
    weights = rng.uniform(0.1, 2, n_rows)
    parts = zip(*(np.split(a, cuts) for a in (truth, predicted, weights)), strict=True)
    found = accuracy(merge(label_sums(*part) for part in parts))
    assert_allclose(found, accuracy_score(truth, predicted, sample_weight=weights))


@pytest.mark.parametrize("right", [True, False])
def test_r2_of_equal_targets_is_one_if_they_are_matched_else_zero(right: bool) -> None:
    truth = np.full((4, 1), 0.5)
    predicted = truth if right else truth + 1
    sums = merge(
        regression_sums(truth[i : i + 1], predicted[i : i + 1], np.ones(1)) for i in range(4)
    )
    assert r2(sums) == r2_score(truth, predicted) == float(right)


def test_labels_that_differ_in_a_row_of_weight_zero_tie() -> None:
    """The best epoch is the first of equals, so equal scores must be equal bits."""
    rng = np.random.RandomState(0)
    truth = rng.randint(0, 2, 50)
    weights = rng.uniform(0.1, 2, 50)
    weights[7] = 0
    one, other = truth.copy(), truth.copy()
    one[[3, 20]] ^= 1
    other[[3, 20, 7]] ^= 1
    scores = [accuracy(label_sums(truth, labels, weights)) for labels in (one, other)]
    assert scores[0] == scores[1]
