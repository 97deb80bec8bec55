"""Checkpoints: a fit that goes on ends as if it had never ended before, or is refused."""

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import dask.array as da
import fsspec
import numpy as np
import pytest
import scipy.sparse
from distributed import Client
from numpy.testing import assert_array_equal

from skdtheano import DistributedMLPClassifier, DistributedMLPRegressor
from skdtheano.estimators import batch_order, checkpoints
from skdtheano.runtime import checkpoint as files
from skdtheano.runtime.checkpoint import Checkpoint, CheckpointFile
from skdtheano.training import Progress

# A few epochs are not meant to converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.RandomState(0)
X = RNG.normal(size=(90, 4))
Y = (X[:, 0] + 0.3 * RNG.normal(size=90) > 0).astype(int)
EPOCHS = 9


class Interrupted(Exception):
    """What ends a fit in these tests."""


def classifier(**parameters: Any) -> DistributedMLPClassifier:
    chosen = {
        "hidden_layer_sizes": (5,),
        "batch_size": 16,
        "max_iter": EPOCHS,
        "random_state": 0,
        "checkpoint_every": 1,
    }
    return DistributedMLPClassifier(**{**chosen, **parameters})


@contextmanager
def ends_after(epoch: int) -> Iterator[None]:
    """A fit ends once it has written what it had after an epoch."""
    write = checkpoints.FitCheckpoint.write

    def write_and_end(self: Any, progress: Progress, runtime: Any) -> None:
        write(self, progress, runtime)
        if progress.n_iter == epoch:
            raise Interrupted

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(checkpoints.FitCheckpoint, "write", write_and_end)
        yield


def in_blocks(given: np.ndarray, chunks: Any = (31, 40, 19)) -> da.Array:
    return da.from_array(given, chunks=(chunks, *given.shape[1:]))


def assert_same(ours: Any, theirs: Any) -> None:
    """Bit for bit, with what further training would need."""
    for name in ("coefs_", "intercepts_"):
        for a, b in zip(getattr(ours, name), getattr(theirs, name), strict=True):
            assert_array_equal(a, b)
    for a, b in zip(ours._optimizer.slots, theirs._optimizer.slots, strict=True):
        assert_array_equal(a, b)
    names = ("loss_curve_", "validation_scores_", "n_iter_", "t_", "loss_", "best_loss_")
    for name in (*names, "best_validation_score_", "_no_improvement_count"):
        assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    assert ours._optimizer.step == theirs._optimizer.step
    assert ours._optimizer.learning_rate == theirs._optimizer.learning_rate


FITS: dict[str, dict[str, Any]] = {
    "adam": {},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.1},
    "invscaling": {
        "solver": "sgd",
        "learning_rate": "invscaling",
        "nesterovs_momentum": False,
    },
    # Learns slower from epoch 3 on, and then again.
    "adaptive": {
        "solver": "sgd",
        "learning_rate": "adaptive",
        "tol": 10,
        "n_iter_no_change": 2,
    },
    "early stopping": {"early_stopping": True, "validation_fraction": 0.2},
    "by blocks": {"shuffle": "blocks", "early_stopping": True},
    "in order": {"shuffle": False},
    "drawn": {"random_state": None},
    # Stops before the last epoch.
    "stopping": {"tol": 10, "n_iter_no_change": 4},
}


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("epoch", [1, 5])
def test_a_fit_in_memory_goes_on_as_if_it_had_not_ended(
    name: str, epoch: int, tmp_path: Path
) -> None:
    parameters = {**FITS[name], "checkpoint": tmp_path / "fit.npz"}
    with _global_seed(3):
        whole = classifier(**FITS[name]).fit(X, Y)
    with _global_seed(3), ends_after(epoch):
        classifier(**parameters).fit(X, Y)
    resumed = classifier(**parameters).fit(X, Y)
    assert_same(resumed, whole)


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    before = np.random.get_state()
    np.random.seed(seed)
    yield
    np.random.set_state(before)


@pytest.mark.cluster
@pytest.mark.table
@pytest.mark.parametrize("name", ["adam", "early stopping", "by blocks"])
def test_a_fit_on_a_cluster_goes_on_as_if_it_had_not_ended(
    name: str, client: Client, tmp_path: Path
) -> None:
    parameters = {**FITS[name], "checkpoint": str(tmp_path / "fit.npz")}
    given = in_blocks(X), in_blocks(Y)
    whole = classifier(**FITS[name]).fit(*given)
    with ends_after(4):
        classifier(**parameters).fit(*given)
    assert_same(classifier(**parameters).fit(*given), whole)


@pytest.mark.cluster
@pytest.mark.table
def test_a_fit_goes_on_over_other_chunks(client: Client, tmp_path: Path) -> None:
    clf = classifier(checkpoint=tmp_path / "fit.npz")
    with ends_after(4):
        clf.fit(in_blocks(X), in_blocks(Y))
    clf.fit(in_blocks(X, (45, 45)), in_blocks(Y, (45, 45)))
    whole = classifier().fit(X, Y)
    np.testing.assert_allclose(clf.loss_curve_, whole.loss_curve_, rtol=1e-9)


def test_what_an_instance_of_randomstate_draws_goes_on_too(tmp_path: Path) -> None:
    whole = classifier(random_state=np.random.RandomState(5)).fit(X, Y)
    drawn_next = whole.random_state.normal()
    kept = classifier(random_state=np.random.RandomState(5), checkpoint=tmp_path / "fit.npz")
    with ends_after(3):
        kept.fit(X, Y)
    resumed = kept.fit(X, Y)  # with an instance that has been drawn from
    assert_same(resumed, whole)
    assert resumed.random_state.normal() == drawn_next


@pytest.mark.parametrize(
    "kind", ["float32", "sparse", "multilabel", "regression", "weighted", "strings"]
)
def test_any_rows_and_targets(kind: str, tmp_path: Path) -> None:
    def fit(epoch: int | None, **parameters: Any) -> Any:
        make = DistributedMLPRegressor if kind == "regression" else DistributedMLPClassifier
        model = make(
            hidden_layer_sizes=(5,),
            batch_size=16,
            max_iter=EPOCHS,
            random_state=0,
            **parameters,
        )
        rows = {"float32": X.astype("f4"), "sparse": scipy.sparse.csr_array(X)}.get(kind, X)
        targets = {
            "multilabel": (X[:, :2] > 0).astype(int),
            "regression": X[:, 0],
            "strings": np.where(Y, "late", "in time"),
        }.get(kind, Y)
        weights = np.linspace(0.5, 2, len(X)) if kind == "weighted" else None
        if epoch is None:
            return model.fit(rows, targets, weights)
        with ends_after(epoch):
            model.fit(rows, targets, weights)

    path = tmp_path / "fit.npz"
    fit(4, checkpoint=path, checkpoint_every=2)
    assert_same(fit(None, checkpoint=path), fit(None))


def test_a_finished_fit_is_not_trained_again_but_for_longer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fit.npz"
    first = classifier(checkpoint=path).fit(X, Y)
    content = path.read_bytes()
    again = classifier(checkpoint=path, verbose=True).fit(X, Y)
    assert_same(again, first)
    assert capsys.readouterr().out.count("\n") == 1  # and no iteration
    assert path.read_bytes() == content
    longer = classifier(checkpoint=path, max_iter=EPOCHS + 4).fit(X, Y)
    assert_same(longer, classifier(max_iter=EPOCHS + 4).fit(X, Y))
    stopped = {"tol": 10, "n_iter_no_change": 3, "checkpoint": tmp_path / "stopped.npz"}
    first = classifier(**stopped).fit(X, Y)
    assert first.n_iter_ < EPOCHS
    assert_same(classifier(**stopped, max_iter=50).fit(X, Y), first)


REFUSED: dict[str, tuple[dict[str, Any], Callable[[], tuple[Any, Any]], str]] = {
    "another step": (
        {"learning_rate_init": 0.1, "alpha": 1},
        lambda: (X, Y),
        "alpha was 0.0001, and is 1.*learning_rate_init was 0.001, and is 0.1",
    ),
    "another seed": ({"random_state": 1}, lambda: (X, Y), "random_state was 0, and is 1"),
    "another network": (
        {"hidden_layer_sizes": (5, 5)},
        lambda: (X, Y),
        r"hidden_layer_sizes was \[5\], and is \[5, 5\]",
    ),
    "fewer epochs": ({"max_iter": 2}, lambda: (X, Y), "of 4 epochs, and max_iter=2"),
    "fewer rows": ({}, lambda: (X[:-1], Y[:-1]), "n_rows=90, and have n_rows|n_rows=90"),
    "more columns": ({}, lambda: (np.c_[X, X], Y), "n_features=4"),
    "float32": ({}, lambda: (X.astype("f4"), Y), "dtype='float64', and have 'float32'"),
    "sparse": ({}, lambda: (scipy.sparse.csr_array(X), Y), "sparse=False"),
    "other classes": ({}, lambda: (X, Y + 5), r"classes='\[0, 1\]', and have '\[5, 6\]'"),
    "other blocks": (
        {"shuffle": "blocks"},
        lambda: (in_blocks(X, (45, 45)), in_blocks(Y, (45, 45))),
        "shuffle was True, and is 'blocks'.*1 blocks of other lengths",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_checkpoint_of_another_fit_is_refused(what: str, tmp_path: Path) -> None:
    parameters, given, said = REFUSED[what]
    path = tmp_path / "fit.npz"
    with ends_after(4):
        classifier(checkpoint=path).fit(X, Y)
    content = path.read_bytes()
    clf = classifier(**parameters).fit(X, Y)
    before = [coef.copy() for coef in clf.coefs_]
    with pytest.raises(ValueError, match=said) as told:
        clf.set_params(checkpoint=path).fit(*given())
    assert str(path) in str(told.value)
    assert "remove the file" in str(told.value)
    for ours, theirs in zip(clf.coefs_, before, strict=True):
        assert_array_equal(ours, theirs)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "given", [{"X": X + 1e-9}, {"y": 1 - Y}, {"sample_weight": np.linspace(1, 2, 90)}]
)
def test_a_finished_fit_of_other_rows_is_no_fit_of_these(
    given: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "fit.npz"
    classifier(checkpoint=path).fit(X, Y)
    with pytest.raises(ValueError, match=r"finished fit of other rows.*checkpoint=None"):
        classifier(checkpoint=path).fit(**{"X": X, "y": Y, **given})


def test_a_checkpoint_of_another_estimator_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fit.npz"
    classifier(checkpoint=path).fit(X, Y)
    with pytest.raises(ValueError, match="was a DistributedMLPClassifier"):
        DistributedMLPRegressor(hidden_layer_sizes=(5,), batch_size=16, checkpoint=path).fit(
            X, X[:, 0]
        )


def test_other_numbers_in_the_rows_are_told(tmp_path: Path) -> None:
    path = tmp_path / "fit.npz"
    with ends_after(4):
        classifier(checkpoint=path).fit(in_blocks(X), in_blocks(Y))
    other = X.copy()
    other[50, 2] += 1e-12
    with pytest.warns(UserWarning, match=r"1 of 3 blocks \(the first of them is block 1\)"):
        classifier(checkpoint=path).fit(in_blocks(other), in_blocks(Y))


def test_random_numbers_that_others_drew_are_told(tmp_path: Path) -> None:
    generator = np.random.RandomState(0)
    clf = classifier(random_state=generator, checkpoint=tmp_path / "fit.npz")
    with ends_after(4):
        write = checkpoints.FitCheckpoint.write
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                checkpoints.FitCheckpoint,
                "write",
                lambda *given: (generator.normal(), write(*given)),
            )
            clf.fit(X, Y)
    with pytest.raises(ValueError, match="others drew from the same random_state"):
        clf.fit(X, Y)


@pytest.mark.parametrize("kind", ["PCG64", "SFC64", "Philox"])
def test_other_kinds_of_generators(kind: str, tmp_path: Path) -> None:
    def generator(kind: str) -> np.random.RandomState:
        return np.random.RandomState(getattr(np.random, kind)(5))

    whole = classifier(random_state=generator(kind)).fit(X, Y)
    path = tmp_path / "fit.npz"
    with ends_after(3):
        classifier(random_state=generator(kind), checkpoint=path).fit(X, Y)
    assert_same(classifier(random_state=generator(kind), checkpoint=path).fit(X, Y), whole)
    path.unlink()
    with ends_after(3):
        classifier(random_state=generator(kind), checkpoint=path).fit(X, Y)
    with pytest.raises(ValueError, match="another kind of random_state"):
        classifier(random_state=generator("MT19937"), checkpoint=path).fit(X, Y)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "lbfgs": ({"solver": "lbfgs"}, "needs solver='adam' or 'sgd'"),
    "warm start": ({"warm_start": True}, "warm_start=True both say where to begin"),
    "no epochs": ({"checkpoint_every": 0}, "checkpoint_every"),
    "no time": ({"checkpoint_every": "soon"}, "checkpoint_every='soon'.*'5 minutes'"),
    "time back": ({"checkpoint_every": "-3 s"}, "checkpoint_every='-3 s'"),
    "number": ({"checkpoint": 3}, "'checkpoint' parameter"),
    "protocol": ({"checkpoint": "gopher://a/b"}, "gopher.*fsspec"),
    "read only": ({"checkpoint": "https://localhost:1/a"}, "localhost"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_checkpoint_that_cannot_be_is_refused_at_once(what: str, tmp_path: Path) -> None:
    parameters, said = WRONG[what]
    clf = classifier(**{"checkpoint": tmp_path / "fit.npz", **parameters})
    with pytest.raises((ValueError, TypeError), match=said):
        clf.fit(X, Y)
    assert not list(tmp_path.iterdir())
    assert not hasattr(clf, "coefs_")


def test_partial_fit_keeps_no_checkpoint(tmp_path: Path) -> None:
    clf = classifier(checkpoint=tmp_path / "fit.npz")
    with pytest.raises(ValueError, match="partial_fit trains one epoch"):
        clf.partial_fit(X, Y, classes=[0, 1])
    clf.set_params(checkpoint=None).partial_fit(X, Y, classes=[0, 1])


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, said in ((tmp_path / "file" / "fit.npz", "cannot be"), (tmp_path, "cannot be")):
        with pytest.raises(ValueError, match=said):
            classifier(checkpoint=place).fit(X, Y)


@pytest.mark.parametrize("url", ["memory://runs/fit.npz", "file", "folder"])
def test_places(url: str, tmp_path: Path) -> None:
    places = {"file": f"file://{tmp_path}/fit.npz", "folder": tmp_path / "a" / "b" / "fit.npz"}
    place = places.get(url, url)
    with ends_after(5):
        classifier(checkpoint=place).fit(X, Y)
    assert_same(classifier(checkpoint=place).fit(X, Y), classifier().fit(X, Y))
    if url.startswith("memory"):
        files_there = fsspec.filesystem("memory")
        assert [Path(name).name for name in files_there.ls("/runs", detail=False)] == [
            "fit.npz"
        ]
        files_there.rm("/runs", recursive=True)
    else:
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["fit.npz"]


def test_numpy_opens_a_checkpoint_without_pickle(tmp_path: Path) -> None:
    path = tmp_path / "fit.npz"
    clf = classifier(checkpoint=path, early_stopping=True).fit(X, Y)
    with np.load(path, allow_pickle=False) as archive:
        assert_array_equal(archive["loss_curve"], clf.loss_curve_)
        assert archive["theta"].shape == archive["slot_1"].shape == (31,)
        assert b'"n_rows": 90' in archive["checkpoint.json"]


def test_a_write_that_fails_costs_a_warning_and_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fit.npz"
    write_synced = files._write_synced
    n_writes = 0

    def full(path: str, content: bytes) -> None:
        nonlocal n_writes
        n_writes += 1
        if n_writes > 4:  # the first is the look whether one can write there
            write_synced(path, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        write_synced(path, content)

    monkeypatch.setattr(files, "_write_synced", full)
    with pytest.warns(UserWarning, match=r"after epoch 4: OSError\(28") as told:
        clf = classifier(checkpoint=path).fit(X, Y)
    assert told[0].filename == __file__
    assert_same(clf, classifier().fit(X, Y))
    monkeypatch.undo()
    kept = CheckpointFile(path).read()
    assert kept is not None
    assert kept.facts["progress"]["n_iter"] == 3
    assert list(tmp_path.iterdir()) == [path]
    assert_same(classifier(checkpoint=path).fit(X, Y), clf)


def test_fits_that_write_to_one_path_do_not_tear_its_file(tmp_path: Path) -> None:
    path = tmp_path / "fit.npz"

    def write(number: int) -> None:
        of_one = Checkpoint({"number": number}, {"theta": np.full(2**15, number)})
        for _ in range(30):
            CheckpointFile(path).write(of_one)

    threads = [Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    seen = set()
    while any(thread.is_alive() for thread in threads):
        found = CheckpointFile(path).read()
        if found is not None:
            seen.add(found.facts["number"])
            assert (found.arrays["theta"] == found.facts["number"]).all()
    assert len(seen) > 1
    assert list(tmp_path.iterdir()) == [path]


def test_an_order_by_blocks_that_was_not_asked_for_goes_on_with_the_same_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_order, "MAX_GLOBAL_ROWS", 50)
    path = tmp_path / "fit.npz"

    def fit(*lengths: int, **more: Any) -> DistributedMLPClassifier:
        return classifier(**more).fit(in_blocks(X, lengths), in_blocks(Y, lengths))

    with ends_after(4):
        fit(40, 50, checkpoint=path)
    with pytest.raises(ValueError, match="the rows were in 2 blocks of other lengths"):
        fit(45, 45, checkpoint=path)
    assert_same(fit(40, 50, checkpoint=path), fit(40, 50))


def test_checkpoints_are_written_as_often_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    written: list[int] = []

    def clock() -> float:
        nonlocal now
        now += 1  # looked at once before the first epoch, after each, and after a write
        return now

    def write(self: Any, progress: Progress, runtime: Any) -> None:
        written.append(progress.n_iter)
        self._written_at = clock()

    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(checkpoints.FitCheckpoint, "write", write)
    for every, epochs in (
        (1, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (4, [4, 8, 9]),
        (100, [9]),
        ("3 s", [3, 6, 9]),
        ("1 hour", [9]),
    ):
        written.clear()
        classifier(checkpoint=tmp_path / "fit.npz", checkpoint_every=every).fit(X, Y)
        assert written == epochs


def test_a_newer_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fit.npz"
    monkeypatch.setattr(files, "SCHEMA", 2)
    classifier(checkpoint=path).fit(X, Y)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"has schema 2, and this version .* up to 1"):
        classifier(checkpoint=path).fit(X, Y)


def _forged(checkpoint: Checkpoint, **facts: Any) -> bytes:
    return Checkpoint({**checkpoint.facts, **facts}, checkpoint.arrays).to_bytes()


def test_what_has_a_right_checksum_and_other_content_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fit.npz"
    with ends_after(4):
        classifier(checkpoint=path).fit(X, Y)
    good = Checkpoint.from_bytes(path.read_bytes())
    shorter = {**good.arrays, "theta": good.arrays["theta"][:-1]}
    without = {name: array for name, array in good.arrays.items() if name != "slot_1"}
    for content in (
        Checkpoint(good.facts, shorter).to_bytes(),
        Checkpoint(good.facts, without).to_bytes(),
        Checkpoint({}, good.arrays).to_bytes(),
        _forged(good, progress={"n_iter": 4}),
        _forged(good, progress={**good.facts["progress"], "n_iter": 400}),
        _forged(good, data={}),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="was not used"):
            classifier(checkpoint=path).fit(X, Y)


def mutated(content: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """What disks, networks and people make of a file."""
    kind = draw.choice(["cut", "bit", "bits", "zeros", "grown", "moved", "file", "text"])
    at, to = sorted(draw.sample(range(len(content) + 1), 2))
    if kind == "cut":
        return content[:at]
    if kind in ("bit", "bits"):
        damaged = bytearray(content)
        for _ in range(1 if kind == "bit" else 20):
            damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        return bytes(damaged)
    if kind == "zeros":  # a sector that was never written
        return content[:at] + bytes(to - at) + content[to:]
    if kind == "grown":
        return content + draw.randbytes(draw.randint(1, 100))
    if kind == "moved":  # a head and a tail of two files
        other = draw.choice(others)
        return content[:at] + other[at:]
    if kind == "file":
        return draw.choice(others)
    return draw.choice([b"", b"PK", b"\x80\x04K\x01.", b"{}", content.hex().encode()])


def test_a_mutated_checkpoint_is_refused_or_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "fit.npz"
    states = []
    for epoch in (2, 4, 6):
        with ends_after(epoch):
            classifier(checkpoint=path).fit(X, Y)
        states.append(path.read_bytes())
    foreign = tmp_path / "other.npz"
    classifier(checkpoint=foreign, alpha=0.1).fit(X, Y)
    np.savez(tmp_path / "arrays.npz", theta=X)
    others = [*states, foreign.read_bytes(), (tmp_path / "arrays.npz").read_bytes()]
    whole = classifier().fit(X, Y)
    draw = random.Random(0)
    refused = resumed = 0
    for _ in range(500):
        content = mutated(states[1], others, draw)
        path.write_bytes(content)
        clf = classifier(checkpoint=path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                clf.fit(X, Y)
        except ValueError as error:
            assert "was not used" in str(error)
            assert not hasattr(clf, "coefs_")
            assert path.read_bytes() == content
            refused += 1
        else:
            assert_same(clf, whole)
            resumed += 1
    assert refused > 400
    assert resumed > 10  # of the files swapped, some are of the same fit
