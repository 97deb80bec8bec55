"""Small data, many models: a grid of candidates on the workers of a cluster.

    python examples/search_small.py

Under joblib's dask backend scikit-learn's searches send rows in memory to the workers, and a
fit there computes in its own task: as many models at once as the cluster has threads.
`BatchedGridSearchCV` trains the candidates of one architecture as one model, and finds the
same.
"""

import time
import warnings

import joblib
from distributed import Client, LocalCluster
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from skdtheano import DistributedMLPClassifier
from skdtheano.model_selection import BatchedGridSearchCV


def main() -> None:
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    model = DistributedMLPClassifier((50,), max_iter=30, n_iter_no_change=31, random_state=0)
    candidates = {
        "distributedmlpclassifier__alpha": [1e-4, 1e-2, 1.0],
        "distributedmlpclassifier__learning_rate_init": [1e-3, 3e-3, 1e-2],
    }
    pipeline = make_pipeline(MinMaxScaler(), model)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster),
        joblib.parallel_config("dask"),
    ):
        scores = []
        for kind in (GridSearchCV, BatchedGridSearchCV):
            search = kind(pipeline, candidates, cv=3)
            began = time.perf_counter()
            search.fit(X_train, y_train)
            seconds = time.perf_counter() - began
            n_fits = len(search.cv_results_["params"]) * search.n_splits_
            print(f"{kind.__name__}: {n_fits} fits in {seconds:.1f} s on two workers")
            scores.append(search.cv_results_["mean_test_score"].tolist())
    print(f"The scores are {'the same' if scores[0] == scores[1] else 'not the same'}.")
    found = search.cv_results_
    for params, score in zip(found["params"], found["mean_test_score"], strict=True):
        named = {name.split("__")[1]: value for name, value in params.items()}
        print(f"{score:.4f}  {named}")
    best = search.score(X_test, y_test)
    print(f"Best: {search.best_params_}, accuracy {best:.4f} on the rest")


if __name__ == "__main__":
    # 30 epochs compare candidates; they are not meant to converge.
    warnings.simplefilter("ignore", ConvergenceWarning)
    main()
