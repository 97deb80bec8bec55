"""Loops that LLVM compiles: kept on the disk, and given only what they can take."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skdtheano import engine, loops, shelf
from skdtheano.recipe import derived
from skdtheano.routine import Routine

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not loops._is_available(), reason="classic Theano brings no LLVM"),
]


def source(dtype: str = "float64") -> str:
    x, y = (engine.vector(name, dtype=dtype) for name in "xy")
    s = engine.scalar("s", dtype=dtype)
    graph = derived([x, y, s], [engine.sqrt(x * x + y) / s + x + y], "sum")
    made = Routine(graph).loop_source(scalars=[2], in_place=[0])
    assert made is not None
    return made


def arrays(n: int, dtype: str = "float64") -> list[np.ndarray]:
    rng = np.random.RandomState(0)
    return [rng.random(n).astype(dtype), rng.random(n).astype(dtype), np.full((), 3, dtype)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of its own, and a process that has compiled nothing."""
    monkeypatch.setattr(shelf, "directory", lambda: tmp_path)
    monkeypatch.setattr(loops, "compiled_loop", loops.compiled_loop.__wrapped__)
    return tmp_path


def check(dtype: str = "float64") -> None:
    loop = loops.compiled_loop(source(dtype))
    assert loop is not None
    for n in (0, 1, 3, 1000):
        x, y, s = arrays(n, dtype)
        expected = np.sqrt(x * x + y) / s + x + y
        loops.bound_loop(loop, [x, y, s])()
        assert_array_equal(x, expected)
        assert x.dtype == dtype


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_loop_has_the_bits_of_numpy_compiled_or_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    assert not loops.is_compiled(source(dtype))
    check(dtype)
    assert loops.is_compiled(source(dtype))
    monkeypatch.setattr(loops, "_compiled", None)  # which nobody calls again
    check(dtype)


def test_machine_code_that_is_not_what_was_written_is_compiled_again(folder: Path) -> None:
    check()
    [file] = folder.iterdir()
    content = file.read_bytes()
    for spoilt in (b"", content[:-1], content[:-1] + b"?", content[65:]):
        file.write_bytes(spoilt)
        assert not loops.is_compiled(source())
        check()
        assert file.read_bytes() == content


def test_a_directory_that_cannot_be_written_is_no_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "a file"
    file.write_text("")
    monkeypatch.setattr(shelf, "directory", lambda: file / "shelf")
    check()


def test_arrays_that_a_loop_cannot_take_are_refused() -> None:
    loop = loops.compiled_loop(source())
    assert loop is not None
    x, y, s = arrays(10)
    for odd in (y.astype(np.float32), np.ones(20)[::2], y[:9]):
        with pytest.raises(ValueError, match="contiguous arrays of one dtype"):
            loops.bound_loop(loop, [x, odd, s])
