"""Ten things to do to the rows of a dask array, each a graph of a few lines.

    python examples/gallery.py                   # a minute on two cores
    python examples/gallery.py --rows 1000000

Each function is written as for one array in memory. Called with dask arrays, it is cut by
rows: some of it runs on every block, sums and maxima of all blocks are combined, and what
is needed for the next part goes back to the blocks. One such round is a stage. Below each
function is the same in NumPy or scikit-learn, which the result is compared with.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import SGDRegressor
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import StandardScaler, normalize

import skdtheano
from skdtheano.engine import ENGINE
from skdtheano.graphs.placement import REPLICATED, Rows

# The gallery runs on classic Theano too. Elsewhere this is `import pytensor` and
# `import pytensor.tensor as pt`, or the same of theano: the names below are in both.
pytensor, pt = import_module(ENGINE), import_module(f"{ENGINE}.tensor")


def scan(step, **arguments):
    """States of a loop; classic Theano returns updates of shared variables beside them."""
    if ENGINE == "theano":
        return pytensor.scan(step, **arguments)[0]
    return pytensor.scan(step, **arguments, return_updates=False)


# --- one stage: a sum over rows, and its gradient --------------------------------------------


@skdtheano.function(target="dask")
def logistic_regression(w, b, X, y):
    """Mean loss of a logistic regression, and its gradient."""
    z = X.dot(w) + b
    # log(1 + exp(z)), written so that exp of a large z does not overflow.
    loss = (pt.maximum(z, 0) + pt.log1p(pt.exp(-abs(z))) - y * z).mean()
    # The gradient is a graph like any other, and it is cut by rows like any other: its
    # product over rows, X.T.dot(...), is computed block by block and summed.
    grad_w, grad_b = pytensor.grad(loss, [w, b])
    return loss, grad_w, grad_b


def logistic_regression_here(w, b, X, y):
    p = 1 / (1 + np.exp(-(X @ w + b)))
    return log_loss(y, p), X.T @ (p - y) / len(y), (p - y).mean()


@skdtheano.function(target="dask")
def embedding(table, v, words, y):
    """Squared error of what is read from a table of vectors, and its gradient."""
    # Rows of `words` pick rows of `table`, which is the same on all blocks. In the gradient
    # each block adds to the entries that it has read, and the blocks' tables are summed.
    error = table[words].dot(v) - y
    loss = (error**2).mean()
    return loss, pytensor.grad(loss, table)


def embedding_here(table, v, words, y):
    error = table[words] @ v - y
    slope = np.zeros_like(table)
    np.add.at(slope, words, 2 / len(y) * error[:, None] * v)
    return (error**2).mean(), slope


@skdtheano.function(target="dask")
def kmeans_step(centres, X):
    """One step of k-means: the new centres, and where each row was assigned to."""
    # |x - c|^2 less |x|^2, which is the same for all centres.
    distance = (centres**2).sum(axis=1) - 2 * X.dot(centres.T)
    nearest = distance.argmin(axis=1)
    member = pt.eq(nearest[:, None], pt.arange(centres.shape[0])).astype(X.dtype)
    sizes = member.sum(axis=0)
    return member.T.dot(X) / sizes[:, None], nearest


def kmeans_step_here(centres, X):
    ours = KMeans(len(centres), init=centres, n_init=1, max_iter=1, algorithm="lloyd").fit(X)
    nearest = ((X[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    return ours.cluster_centers_, nearest


@skdtheano.function(target="dask")
def gaussian_mixture(logits, means, log_scales, X):
    """Mean log-likelihood of a mixture of diagonal Gaussians, and its gradient."""
    weights = pt.exp(logits) / pt.exp(logits).sum()
    z = (X[:, None, :] - means) / pt.exp(log_scales)
    # One column per component, then the logarithm of the sum of their exponentials.
    each = pt.log(weights) - (z**2 / 2 + log_scales + np.log(2 * np.pi) / 2).sum(axis=2)
    highest = each.max(axis=1, keepdims=True)
    of_row = pt.log(pt.exp(each - highest).sum(axis=1)) + highest[:, 0]
    likelihood = of_row.mean()
    return likelihood, *pytensor.grad(likelihood, [logits, means, log_scales])


def gaussian_mixture_here(logits, means, log_scales, X):
    theirs = GaussianMixture(len(means), covariance_type="diag")
    theirs.weights_ = np.exp(logits) / np.exp(logits).sum()
    theirs.means_, theirs.covariances_ = means, np.exp(2 * log_scales)
    theirs.precisions_cholesky_ = np.exp(-log_scales)
    share = theirs.predict_proba(X)[:, :, None]
    z = (X[:, None, :] - means) / np.exp(log_scales)
    return (
        theirs.score(X),
        share[:, :, 0].mean(axis=0) - theirs.weights_,
        (share * z / np.exp(log_scales)).mean(axis=0),
        (share * (z**2 - 1)).mean(axis=0),
    )


# --- no combining at all, and rows as a result -----------------------------------------------


@skdtheano.function(target="dask")
def unit_rows(X):
    """Rows of length 1: a lazy dask array, with the blocks of X."""
    return X / pt.sqrt((X**2).sum(axis=1, keepdims=True))


def unit_rows_here(X):
    return normalize(X)


@skdtheano.function(target="dask")
def scan_over_features(decay, X):
    """A recurrence over the columns of each row: its last state, and a gradient."""
    # scan goes along the first axis, so it is given the columns; rows are the second axis
    # of these, and stay on their blocks.
    states = scan(
        lambda column, state, decay: pt.tanh(decay * state + column),
        sequences=X.T,
        outputs_info=pt.zeros_like(X[:, 0]),
        non_sequences=decay,
    )
    last = states[-1]
    return last, pytensor.grad((last**2).mean(), decay)


def scan_over_features_here(decay, X):
    state, slope = np.zeros(len(X)), np.zeros(len(X))
    for column in X.T:
        before, state = state, np.tanh(decay * state + column)
        slope = (1 - state**2) * (before + decay * slope)
    return state, (2 * state * slope).mean()


# --- several stages: a sum over rows goes back to the rows -----------------------------------


@skdtheano.function(target="dask")
def pca_covariance(X):
    """The covariance of the columns."""
    # Two stages: the mean of all rows has to be known before any row can be centred.
    centred = X - X.mean(axis=0)
    return centred.T.dot(centred) / (X.shape[0] - 1)


def pca_covariance_here(X):
    return PCA().fit(X).get_covariance()


@skdtheano.function(target="dask")
def standardise_then_regress(w, b, X, y):
    """Squared error of a regression on columns of mean 0 and deviation 1, and its gradient."""
    # The scaler is no step of its own, with a pass and a fit: it is a part of the graph.
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    loss = ((Z.dot(w) + b - y) ** 2).mean()
    return loss, *pytensor.grad(loss, [w, b])


def standardise_then_regress_here(w, b, X, y):
    Z = StandardScaler().fit_transform(X)
    theirs = SGDRegressor()
    theirs.coef_, theirs.intercept_ = w, np.atleast_1d(b)
    error = theirs.predict(Z) - y
    loss = mean_squared_error(y, theirs.predict(Z))
    return loss, 2 * Z.T @ error / len(y), 2 * error.mean()


@skdtheano.function(target="dask")
def weighted_moments(X, weight):
    """Weighted mean and variance of the columns."""
    # Sums and weights travel, never means: blocks of any length count for what they hold.
    total = weight.sum()
    mean = weight.dot(X) / total
    return mean, weight.dot((X - mean) ** 2) / total


def weighted_moments_here(X, weight):
    variance = np.cov(X.T, aweights=weight, ddof=0).diagonal()
    return np.average(X, axis=0, weights=weight), variance


@skdtheano.function(target="dask")
def attention_over_rows(queries, keys, values):
    """What each query reads from all rows, by a softmax over them."""
    # The table is the second axis of the scores. The largest score of all rows is known
    # after one stage, the sum of the exponentials after the next.
    scores = queries.dot(keys.T) / np.sqrt(8.0)
    share = pt.exp(scores - scores.max(axis=1, keepdims=True))
    return (share / share.sum(axis=1, keepdims=True)).dot(values)


def attention_over_rows_here(queries, keys, values):
    share = np.exp(queries @ keys.T / np.sqrt(8.0))
    return share / share.sum(axis=1, keepdims=True) @ values


# --- the data, and the comparison ------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One function of the gallery, with what it is called with.

    Attributes
    ----------
    function, here : callable
        Of tensors, and the same of NumPy arrays.
    whole : dict of ndarray
        Arguments that all blocks see.
    rows : dict of ndarray
        Arguments that are cut by rows.
    """

    function: Any
    here: Callable[..., Any]
    whole: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        return self.function.__name__

    def expected(self) -> tuple[np.ndarray, ...]:
        """What NumPy or scikit-learn gives."""
        return _several(self.here(**self.whole, **self.rows))

    def lazy(self, cut: Callable[[np.ndarray], da.Array]) -> tuple[da.Array, ...]:
        """What the function gives for arrays that are cut so: nothing is computed yet."""
        rows = {name: cut(array) for name, array in self.rows.items()}
        return _several(self.function(**self.whole, **rows))

    def stages(self) -> int:
        """How often something runs on all blocks; after each time, results are combined."""
        graph = self.function.graph_for(**self.whole, **self.rows)
        placements = [
            Rows(0) if symbol.name in self.rows else REPLICATED for symbol in graph.inputs
        ]
        stages = graph.plan(placements).stages
        return sum(bool(stage.block.results) for stage in stages)


def _several(found: Any) -> tuple[Any, ...]:
    return found if isinstance(found, tuple) else (found,)


def gallery(n_rows: int) -> list[Item]:
    """All items, on data of so many rows."""
    random = np.random.default_rng(0)
    X = random.normal(size=(n_rows, 4)) * [1.0, 2.0, 0.5, 3.0] + [0.0, 5.0, -1.0, 2.0]
    y = X @ [0.3, -0.2, 1.0, 0.1] + random.normal(size=n_rows)
    w, b = random.normal(size=4), np.float64(0.3)
    table, v = random.normal(size=(20, 3)), random.normal(size=3)
    words = random.integers(0, 20, size=n_rows)
    keys, values = random.normal(size=(n_rows, 8)), random.normal(size=(n_rows, 2))
    centres, means = X.mean(axis=0) + random.normal(size=(2, 3, 4))
    logits, log_scales = random.normal(size=3), 0.2 * random.normal(size=(3, 4))
    return [
        Item(logistic_regression, logistic_regression_here,
             {"w": w, "b": b}, {"X": X, "y": (y > 0).astype(float)}),
        Item(standardise_then_regress, standardise_then_regress_here,
             {"w": w, "b": b}, {"X": X, "y": y}),
        Item(pca_covariance, pca_covariance_here, {}, {"X": X}),
        Item(kmeans_step, kmeans_step_here, {"centres": centres}, {"X": X}),
        Item(gaussian_mixture, gaussian_mixture_here,
             {"logits": logits, "means": means, "log_scales": log_scales}, {"X": X}),
        Item(attention_over_rows, attention_over_rows_here,
             {"queries": random.normal(size=(5, 8))}, {"keys": keys, "values": values}),
        Item(embedding, embedding_here, {"table": table, "v": v}, {"words": words, "y": y}),
        Item(weighted_moments, weighted_moments_here,
             {}, {"X": X, "weight": random.uniform(0, 2, size=n_rows)}),
        Item(unit_rows, unit_rows_here, {}, {"X": X}),
        Item(scan_over_features, scan_over_features_here,
             {"decay": np.float64(0.7)}, {"X": X / 4}),
    ]  # fmt: skip


def ragged(array: np.ndarray) -> da.Array:
    """Eight blocks of different lengths, one of them empty and one of a single row."""
    n = len(array)
    lengths = [n // 4, 0, 1, n // 8, n // 8, n // 16, n // 5]
    return da.from_array(array, chunks=((*lengths, n - sum(lengths)), *array.shape[1:]))


def difference(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """The largest difference of any result, relative to its largest entry."""
    return max(
        float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        for ours, theirs in zip(found, expected, strict=True)
    )


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run and compare all items; return the largest difference of each."""
    parser = argparse.ArgumentParser(description="Graphs over the rows of dask arrays.")
    parser.add_argument("--rows", type=int, default=20_000)
    options = parser.parse_args(argv)
    differences = {}
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        print(f"Dashboard: {client.dashboard_link}")
        print(f"{'':26} {'stages':>6} {'difference':>12}")
        items = gallery(options.rows)
        # Nothing is computed until here, and then all ten at once.
        [found] = dask.compute([item.lazy(ragged) for item in items])
        for item, results in zip(items, found, strict=True):
            differences[item.name] = difference(results, item.expected())
            print(f"{item.name:26} {item.stages():6} {differences[item.name]:12.1e}")
    return differences


if __name__ == "__main__":
    main()
