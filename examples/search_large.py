"""Large data, some models: candidates that are each trained by the whole cluster.

    python examples/search_large.py

The rows are made on the workers, scaled there by dask-ml and searched over there by
scikit-learn's own `GridSearchCV`: folds are dask arrays, and no row comes to this process.
Then `HyperbandSearchCV` looks at more candidates in less time: at most of them for a few
epochs only.
"""

import time
import warnings

import dask
import dask.array as da
from dask_ml.model_selection import train_test_split
from dask_ml.preprocessing import StandardScaler
from distributed import Client, LocalCluster, wait
from scipy.stats import loguniform
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline

from skdtheano import DistributedMLPClassifier
from skdtheano.model_selection import HyperbandSearchCV


def table() -> tuple[da.Array, da.Array]:
    """40,000 rows, of which a product of columns says the class."""
    rng = da.random.RandomState(0)
    X = rng.normal(5.0, 3.0, size=(40_000, 20), chunks=(5_000, -1))
    noise = rng.normal(size=40_000, chunks=5_000)
    return X, ((X[:, 0] - 5) * (X[:, 1] - 5) + noise > 0).astype(int)


def main() -> None:
    X, y = table()
    parts = train_test_split(X, y, random_state=0, shuffle=True)
    # Kept on the workers, all in one go, or each fit would make them again.
    X_train, X_test, y_train, y_test = kept = dask.persist(*parts)
    wait(kept)

    model = DistributedMLPClassifier((32,), batch_size=500, max_iter=3, random_state=0)
    candidates = {"distributedmlpclassifier__learning_rate_init": [1e-3, 1e-2]}
    # KFold: labels of classes would have to be brought here to draw from each alike.
    search = GridSearchCV(make_pipeline(StandardScaler(), model), candidates, cv=KFold(2))
    began = time.perf_counter()
    search.fit(X_train, y_train)
    print(f"Grid: {search.best_params_}, {time.perf_counter() - began:.1f} s")
    print(f"Its accuracy on the rest: {search.score(X_test, y_test):.4f}")

    scaler = StandardScaler().fit(X_train)
    hyperband = HyperbandSearchCV(
        DistributedMLPClassifier((32,), batch_size=500),
        {"alpha": loguniform(1e-6, 1e-1), "learning_rate_init": loguniform(1e-4, 1e-1)},
        max_iter=27,
        random_state=0,
    )
    began = time.perf_counter()
    hyperband.fit(scaler.transform(X_train), y_train)
    calls, models = (hyperband.metadata_[k] for k in ("partial_fit_calls", "n_models"))
    print(
        f"Hyperband: {models} candidates, {calls} blocks seen, "
        f"{time.perf_counter() - began:.1f} s"
    )
    print(f"Its accuracy on the rest: {hyperband.score(scaler.transform(X_test), y_test):.4f}")


if __name__ == "__main__":
    # Few epochs compare candidates; they are not meant to converge.
    warnings.simplefilter("ignore", ConvergenceWarning)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster),
    ):
        main()
