"""How fast networks are trained, here and by what people use otherwise.

    python benchmarks/compare.py [--repeats N] [--nets small,medium] [--only NAME,...]

One run measures all contenders on the same float32 rows, layers and batch sizes with Adam, and
prints samples per second of steady training: medians, with the least and the most, of repeats
in which each contender has its turn, since machines drift. What is fair, and the same for all:

- A fit of 1 epoch and one of some more, each network's own number, are timed in each repeat:
  so many that the fastest takes half a second for them. What the second takes beyond
  the median of the first counts, so nobody pays for start-up, compilation, or the first look
  at the rows; `cold_start.py` measures these. The first epoch of all is not measured.
- Each shuffles the rows anew in each epoch, adds up the loss, decays the weights, and none
  stops early. The rows are in memory: a NumPy array, or 8 blocks on dask's workers.
- Each has processes of its own, with 1 BLAS thread each unless its name says 2, which wait
  while others run. dask-ml's Incremental has the same workers as ours.
- PyTorch is a loop by hand: a permutation, `index_select`, `zero_grad(set_to_none=True)`, Adam
  with `fused=True`, its fastest here, and `weight_decay` of alpha / batch, on intercepts too
  (scikit-learn's are free of it). With DDP each of two processes has half of each batch.
- Incremental trains on block after block, in batches within a block: other numbers, so only
  its speed compares.

The limit is the products alone: NumPy's BLAS on operands of the same shapes and layouts, into
arrays that are there. PyTorch has a BLAS of its own, so its products are measured as well.

Writes compare.json and compare.png into `--out`.
"""

import argparse
import tempfile
import time
from contextlib import ExitStack
from itertools import product
from pathlib import Path

from harness import report
from harness.contenders import CONTENDERS, Contender, present
from harness.nets import NETS, Net, chosen
from harness.processes import Host, Running
from harness.report import Ratio, steady_rates

RATIOS = (
    Ratio("ours / scikit-learn, 1 thread", "ours", "sklearn-1t"),
    Ratio("ours / PyTorch, 1 thread", "ours", "torch-1t"),
    Ratio("ours, 2 workers / scikit-learn, 2 threads", "ours-2w", "sklearn-2t"),
    Ratio("ours, 2 workers / DDP, 2 processes", "ours-2w", "ddp-2p"),
    Ratio("ours, 2 workers / Incremental, 2 workers", "ours-2w", "incremental-2w"),
    Ratio("ours, 2 workers / 1 worker", "ours-2w", "ours-1w"),
    Ratio("ours, 1 worker / in process", "ours-1w", "ours"),
    Ratio("share of our time in process that products take", "ours", "gemm-1t"),
    Ratio("share of our time on 2 workers that products take", "ours-2w", "gemm-2p"),
)
LIMITS = {"gemm-1t": "-", "gemm-2p": "--", "torch-gemm-1t": ":"}


def measured(
    contenders: list[Contender], nets: list[Net], repeats: int, epochs: dict[str, int]
) -> dict[str, dict[str, list[float]]]:
    """Samples per second by net and contender, of each repeat."""
    turns = list(product(nets, contenders))
    short: dict[tuple[Net, Contender], list[float]] = {turn: [] for turn in turns}
    long: dict[tuple[Net, Contender], list[float]] = {turn: [] for turn in turns}
    with ExitStack() as stack:
        # Their clusters write here, and PyTorch's ranks meet here.
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        hosts = dict.fromkeys(contender.host for contender in contenders)
        running: dict[Host, Running] = {
            host: stack.enter_context(Running(host, folder)) for host in hosts
        }

        def seconds(net: Net, contender: Contender, n: int) -> float:
            return max(running[contender.host].ask("seconds", net, n, contender.how))

        for net, contender in turns:
            with running[contender.host].awake():
                seconds(net, contender, 1)
        for repeat in range(repeats):
            start = time.perf_counter()
            for net, contender in turns:
                with running[contender.host].awake():
                    seconds(net, contender, 1)  # whatever has waited meanwhile
                    short[net, contender].append(seconds(net, contender, 1))
                    long[net, contender].append(seconds(net, contender, 1 + epochs[net.name]))
            print(f"Repeat {repeat + 1}: {time.perf_counter() - start:.0f} s", flush=True)
    rates: dict[str, dict[str, list[float]]] = {net.name: {} for net in nets}
    for net, contender in turns:
        rates[net.name][contender.name] = steady_rates(
            epochs[net.name] * net.rows, short[net, contender], long[net, contender]
        )
    return rates


def print_report(rates: report.Rates) -> None:
    nets = [str(NETS[name]) for name in rates]
    names = list(dict.fromkeys(name for rows in rates.values() for name in rows))
    report.print_table(
        "samples per second, in 1000",
        nets,
        {
            CONTENDERS[name].label: [
                f"{report.spread(value / 1e3 for value in rows[name]):.1f}"
                for rows in rates.values()
            ]
            for name in names
        },
    )
    ratios = report.ratios(rates, RATIOS)
    if ratios:
        report.print_table(
            "ratio",
            nets,
            {
                label: [
                    f"{by_net[name]:{'.0%' if 'share' in label else '.2f'}}" for name in rates
                ]
                for label, by_net in ratios.items()
            },
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--nets", default=",".join(NETS), help="of %(default)s")
    parser.add_argument("--only", default=",".join(CONTENDERS), help="of %(default)s")
    parser.add_argument("--quick", action="store_true", help="1 repeat of 2 epochs")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    given = parser.parse_args()
    try:
        nets, contenders = chosen(given.nets), present(given.only.split(","))
    except ValueError as error:
        parser.error(str(error))
    repeats = 1 if given.quick else given.repeats
    epochs = {net.name: 2 if given.quick else net.epochs for net in nets}
    rates = measured(contenders, nets, repeats, epochs)
    print_report(rates)
    content = {
        "unit": "samples per second",
        "epochs": epochs,
        "nets": {net.name: str(net) for net in nets},
        "rates": rates,
        "ratios": {
            label: {net: ratio._asdict() for net, ratio in by_net.items()}
            for label, by_net in report.ratios(rates, RATIOS).items()
        },
    }
    report.write_json(given.out / "compare.json", content)
    labels = {name: contender.label for name, contender in CONTENDERS.items()}
    titles = {net.name: str(net) for net in nets}
    report.plot(given.out / "compare.png", rates, labels, titles, LIMITS)


if __name__ == "__main__":
    main()
