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
    import scaling
    from harness import contenders, nets, rates, report, step_model, traffic

    class Harness:
        pass

    found = Harness()
    found.contenders, found.nets, found.report = contenders, nets, report
    found.rates, found.step_model, found.traffic = rates, step_model, traffic
    found.scaling = scaling
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


@pytest.mark.parametrize("is_sliced", [True, False], ids=["by slices", "all to all"])
@pytest.mark.parametrize("is_shared", [True, False], ids=["shared", "whole"])
@pytest.mark.parametrize("hosts, ranks", [(1, 2), (1, 5), (3, 1), (2, 2), (3, 4), (4, 3)])
def test_the_model_sends_what_sums_do(
    harness: Any, hosts: int, ranks: int, is_shared: bool, is_sliced: bool
) -> None:
    traffic = harness.traffic
    shape = traffic.Shape(hosts, ranks, is_shared and ranks > 1, is_sliced and hosts > 1)
    for counted, expected in zip(traffic.counted(shape), traffic.formulas(shape), strict=True):
        assert (counted.messages, counted.waits) == (expected.messages, expected.waits)
        assert counted.vectors == pytest.approx(expected.vectors)


def test_the_model_stops_where_counts_and_formulas_differ(
    harness: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic = harness.traffic
    assert traffic.check(4) == 12
    wrong = traffic.Traffic(1, 1.0, 2), traffic.Traffic(0, 0.0, 0)
    monkeypatch.setattr(traffic, "formulas", lambda shape: wrong)
    with pytest.raises(AssertionError, match=r"Shape\(.*counted .*, expected "):
        traffic.check(2)


def test_the_model_follows_the_rules_of_the_wires(harness: Any) -> None:
    shape_of, shape = harness.traffic.shape_of, harness.traffic.Shape
    assert shape_of(1, 8, 10**7) == shape(1, 1, False, False)
    assert shape_of(4, 8, 10**7) == shape(1, 4, True, False)
    assert shape_of(64, 8, 10**7) == shape(8, 8, True, True)
    assert shape_of(64, 8, 10**4) == shape(8, 8, False, False)
    assert shape_of(2, 1, 10**7) == shape(2, 1, False, False)


def made_up_rates(harness: Any, **given: float) -> Any:
    """A second a row, 8 for the update; and links that cost nothing but what is given."""
    rated = harness.rates.NetRates(10**6, [8, 1024], [8.0, 1024.0], (0.0, 8.0))
    parts = dict.fromkeys(("barrier", "reading", "latency", "message"), 0.0)
    per_byte = {name: {"small": given.pop(name, 0.0)} for name in ("add", "copy", "send")}
    return rated, harness.rates.Links(**(parts | given), **per_byte)


def test_a_step_is_compute_update_and_exchange(harness: Any) -> None:
    model = harness.step_model

    def step(n_workers: int, per_host: int, network: Any = None, **given: float) -> Any:
        rates = made_up_rates(harness, **given)
        return model.step_time(
            "small", 4096, n_workers, per_host, *rates, network or model.Network()
        )

    assert step(1, 1) == model.StepTime(4096.0, 8.0, 0.0)
    # The fullest of four has more than a quarter, and they share the update.
    four = step(4, 4)
    assert 1024 < four.compute < 1100 and (four.update, four.exchange) == (2.0, 0.0)
    assert step(4, 1).update == 8.0
    # On a host: two barriers, and what each has of the others to add and to copy.
    assert step(4, 4, barrier=1.0).exchange == 2
    assert step(4, 4, reading=1.0).exchange == 4
    assert step(4, 4, add=1e-6).exchange == pytest.approx(3 / 4)
    assert step(4, 4, copy=1e-6).exchange == pytest.approx(3 / 4)
    # Between hosts: all to all in one latency, or by slices in two.
    assert step(2, 1, latency=1.0, send=1e-6, message=5.0).exchange == pytest.approx(2)
    assert step(4, 1, latency=1.0).exchange == 2
    assert step(4, 1, message=1.0).exchange == 4
    assert step(4, 1, send=1e-6).exchange == pytest.approx(1.5)
    # With two hosts of two, they wait for the leaders too, which collect and give back.
    assert step(4, 2, barrier=1.0, latency=10.0).exchange == 4 + 10
    # A network adds to latencies, and bounds the rate.
    slow = model.Network(latency=1.0, per_byte=2e-6)
    assert step(2, 1, slow, latency=1.0, send=1e-6).exchange == pytest.approx(4)
    assert step(2, 1, slow, latency=1.0, send=3e-6).exchange == pytest.approx(5)


def test_rows_of_the_fullest_worker(harness: Any) -> None:
    fullest = harness.step_model.fullest
    assert fullest(200, 1) == 200
    assert 104 < fullest(200, 2) < 112
    assert fullest(64, 4096) == 8  # one row or two, filled up


def test_scaling_is_told_by_what_pays(
    harness: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    scaling, net = harness.scaling, harness.nets.NETS["small"]
    rated, links = made_up_rates(harness, latency=20.0)
    network = harness.step_model.Network()
    rows = scaling.modelled([net], [1], {"small": rated}, links, network)
    lines = scaling.lines_of(rows)
    strong, large, weak = lines.values()
    assert [row["workers"] for row in strong] == list(scaling.WORKERS)
    for line in lines.values():
        assert line[0]["speed-up"] == line[0]["efficiency"] == 1 and line[0]["exchange"] == 0
    # 200 rows on 32 workers are 16 on the fullest and cannot get much fewer.
    assert scaling.paying(strong)["workers"] <= 64 < scaling.paying(large)["workers"]
    assert weak[1]["efficiency"] == weak[1]["speed-up"] / 2
    assert scaling.paying(weak)["efficiency"] >= 0.5
    scaling.print_report(rows, [1])
    printed = capsys.readouterr().out
    assert "64-100-10, strong, 65,536 rows" in printed
    assert "64-100-10, weak, 200 rows a worker" in printed
    assert "208 ms" not in printed and "2.08e+05 ms (1.0x; 0%)" in printed
