"""Pictures of learning: the curves that are drawn are the numbers that were learned."""

import builtins
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.datasets import load_iris
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skdtheano import DistributedMLPClassifier
from skdtheano.model_selection import LearningCurvesDisplay, SuccessiveHalvingSearchCV

matplotlib = pytest.importorskip("matplotlib", reason="of the extra [plot]")
matplotlib.use("agg")


@pytest.fixture
def iris() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_iris(return_X_y=True)
    return X, y


@pytest.fixture(autouse=True)
def no_figure_is_left() -> Any:
    yield
    from matplotlib import pyplot

    pyplot.close("all")


def searched(iris: tuple[np.ndarray, np.ndarray]) -> SuccessiveHalvingSearchCV:
    grid = {"alpha": [1e-4, 1e-2], "learning_rate_init": [1e-2, 0.1]}
    return SuccessiveHalvingSearchCV(
        DistributedMLPClassifier((5,)), grid,
        n_initial_parameters=4, n_initial_iter=2, aggressiveness=2, random_state=0,
    ).fit(*iris)  # fmt: skip


def test_a_search_has_a_curve_for_each_candidate(iris: tuple[np.ndarray, np.ndarray]) -> None:
    search = searched(iris)
    display = LearningCurvesDisplay.from_search(search)
    assert len(display.lines_) == 4
    for line, history in zip(display.lines_, search.model_history_.values(), strict=True):
        assert_array_equal(line.get_xdata(), [r["partial_fit_calls"] for r in history])
        assert_array_equal(line.get_ydata(), [r["score"] for r in history])
    widths = [line.get_linewidth() for line in display.lines_]
    assert np.argmax(widths) == search.best_index_
    assert display.ax_.get_xlabel() == "calls of partial_fit"
    texts = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert "alpha=0.01, learning_rate_init=0.1" in " ".join(texts)
    display.figure_.canvas.draw()


def test_an_estimator_has_its_loss_and_its_validation_scores(
    iris: tuple[np.ndarray, np.ndarray],
) -> None:
    clf = MLPClassifier((5,), early_stopping=True, max_iter=300, random_state=0).fit(*iris)
    display = LearningCurvesDisplay.from_estimator(clf, color="k")
    loss, score = display.lines_
    assert_array_equal(loss.get_ydata(), clf.loss_curve_)
    assert_array_equal(score.get_ydata(), clf.validation_scores_)
    assert loss.get_color() == "k"


def test_the_best_of_a_grid_of_pipelines_has_one_on_axes_that_are_given(
    iris: tuple[np.ndarray, np.ndarray],
) -> None:
    from matplotlib import pyplot

    pipeline = make_pipeline(StandardScaler(), DistributedMLPClassifier((5,), max_iter=400))
    grid = GridSearchCV(pipeline, {"distributedmlpclassifier__tol": [1e-2]}, cv=2).fit(*iris)
    _, ax = pyplot.subplots()
    display = LearningCurvesDisplay.from_estimator(grid, ax=ax, legend=False)
    assert display.ax_ is ax
    assert ax.get_legend() is None
    model = grid.best_estimator_[-1]
    assert_array_equal(display.lines_[0].get_ydata(), model.loss_curve_)


def test_what_has_no_curve_is_named(iris: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(TypeError, match="estimator=SGDClassifier has no loss_curve_"):
        LearningCurvesDisplay.from_estimator(SGDClassifier().fit(*iris))
    grid = GridSearchCV(SGDClassifier(), {"alpha": [1e-4]})
    with pytest.raises(TypeError, match="search=GridSearchCV has no model_history_"):
        LearningCurvesDisplay.from_search(grid)


def test_without_matplotlib_it_is_said_how_to_get_it(
    iris: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = searched(iris)
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'skdtheano\[plot\]'"):
        LearningCurvesDisplay.from_search(search)
