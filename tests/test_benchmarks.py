"""What the benchmarks report, on made-up numbers: they themselves are run by hand."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    from harness import contenders, nets, report

    class Harness:
        pass

    found = Harness()
    found.contenders, found.nets, found.report = contenders, nets, report
    return found


def test_ratios_are_of_the_same_repeat(harness: Any) -> None:
    # The machine was half as fast in the second repeat, for both.
    rates = {"small": {"a": [4.0, 2.0, 4.4], "b": [2.0, 1.0, 2.0]}}
    pairs = [harness.report.Ratio("a / b", "a", "b"), harness.report.Ratio("a / c", "a", "c")]
    assert harness.report.ratios(rates, pairs) == {"a / b": {"small": (2.0, 2.0, 2.2)}}


def test_start_up_does_not_count(harness: Any) -> None:
    assert harness.report.steady_rates(100, [1.0, 1.0, 9.0], [2.0, 3.0, 5.0]) == [100, 50, 25]
    with pytest.raises(ValueError, match="Measure again when it is free"):
        harness.report.steady_rates(100, [2.0], [1.9])


def test_a_contender_without_its_package_is_left_out_with_a_line(
    harness: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = harness.contenders.present(["ours", "ddp-2p"])
    assert [contender.name for contender in found] == ["ours"]
    assert "PyTorch DDP, 2 processes: no torch. Install it with: pip install" in (
        capsys.readouterr().out
    )
    with pytest.raises(ValueError, match="choose from ours, ours-1w"):
        harness.contenders.present(["theirs"])


def test_tables_are_of_equal_steps_and_blocks(harness: Any) -> None:
    for net in harness.nets.NETS.values():
        assert net.rows % net.batch == 0
        assert net.rows % harness.contenders.N_BLOCKS == 0
    X, y = harness.nets.table(harness.nets.NETS["small"], 50)
    assert X.dtype == np.float32 and X.shape == (50, 64) and set(y) <= set(range(10))


def test_products_are_those_of_a_step(harness: Any) -> None:
    net = harness.nets.NETS["small"]
    products = harness.contenders.Products(net, 20)
    X, _ = harness.nets.table(net, 20)
    products.step(X)
    first, second = products.weights
    np.testing.assert_allclose(
        products.activations[2], X @ first @ second, rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(
        products.gradients[0], X.T @ (products.deltas[2] @ second.T), rtol=1e-3, atol=1e-3
    )
