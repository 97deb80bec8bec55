"""How a fit would scale on 2 to 4096 workers: a model of rates and counts.

    python benchmarks/scaling.py [--nets small,medium] [--per-host 1 8 32]
        [--latency-us N] [--gbit N] [--rates FILE] [--quick]

Prints, for each net, the strong scaling of its own minibatch and of one of 65,536 rows, and
the weak scaling with its own minibatch on each worker: milliseconds of a step, and in brackets
how many times as fast it is (of weak scaling: the efficiency) and the share of exchange. Then
how many workers pay: with more, less than 5 % is to be won (or of weak scaling, less than half
of their time is used). And what is modelled beside what fits take on one and two workers.

The step of a worker is *compute + update + exchange*:

- *compute*: what the real step takes on one process of this machine, for as many rows as the
  worker that has most rows of a minibatch. Rows are drawn, so it has more than its share:
  256 rows over 32 workers are 8 on average and some 14 on the fullest. As in training, they
  are filled up to a multiple of 8.
- *update*: the optimizer, on the part of the parameters that the worker updates.
- *exchange*: messages, bytes and latencies in a row of the leader of a host, by formulas that
  are held against counts of the real sums over threads, up to `--ranks` of them; times what
  these take between two processes of this machine, in shared memory and over dask's comms.

Assumed are hosts with a processor like this machine's for each worker, and memory that serves
all of them as fast as two; a switch to which each host has a full duplex link of its own, as
fast as this machine's comms with itself, unless `--latency-us` adds to each latency or
`--gbit` bounds the rate; rows shared out evenly, in four blocks a worker; nobody who is slow.
Each message but the first that a leader waits for costs what an event loop takes to send and
receive a small one.

Not in the model is what an epoch takes once, whatever its steps: the caller's permutation, a
round of tasks in which every worker says hello to every other one, and binding to arrays of
each size that a worker's share of a minibatch has. Nor is it that ranks which arrive at
different times sleep and are woken, where a *barrier* measured in lockstep spins: so for small
networks it is too good, and the ratios at the end tell by how much.

Writes scaling.json and scaling.png into `--out`. With `--rates` and an earlier scaling.json
its rates are taken, and nothing is measured: to try other networks and numbers a host.
"""

import argparse
import json
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dask
from harness import rates, report, traffic
from harness.contenders import Cluster, TwoWorkers
from harness.nets import NETS, Net, chosen
from harness.rates import Links, NetRates
from harness.step_model import Network, step_time

from skdtheano.runtime.crew import best_of

WORKERS = tuple(2**i for i in range(13))
LARGE_BATCH = 65_536
EPOCHS = 5


def modelled(
    nets: list[Net],
    per_host: list[int],
    rated: dict[str, NetRates],
    links: Links,
    network: Network,
) -> list[dict[str, Any]]:
    """A row for each net, way of scaling, number of workers a host, and number of workers."""
    rows = []
    for net in nets:
        for way, batch in (
            ("strong", net.batch),
            ("strong", LARGE_BATCH),
            ("weak", net.batch),
        ):
            for ranks in per_host:
                given = ranks, rated[net.name], links, network
                one = step_time(net.name, batch, 1, *given)
                for n in WORKERS:
                    size = batch * n if way == "weak" else batch
                    step = step_time(net.name, size, n, *given)
                    speed_up = one.total / step.total * (n if way == "weak" else 1)
                    rows.append(
                        {
                            "net": net.name,
                            "scaling": way,
                            "batch": batch,
                            "per host": ranks,
                            "workers": n,
                            "seconds": step.total,
                            "parts": asdict(step),
                            "speed-up": speed_up,
                            "efficiency": speed_up / n,
                            "exchange": step.exchange / step.total,
                        }
                    )
    return rows


def lines_of(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Rows by net, way and batch, and workers a host; by ascending number of workers."""
    lines: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = row["net"], row["scaling"], row["batch"], row["per host"]
        lines.setdefault(key, []).append(row)
    return lines


def paying(line: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the most workers that pay: of weak scaling, those half of whose time does."""
    if line[0]["scaling"] == "weak":
        return [row for row in line if row["efficiency"] >= 0.5][-1]
    n = best_of({row["workers"]: row["seconds"] for row in line})
    return next(row for row in line if row["workers"] == n)


def title_of(net: str, way: str, batch: int) -> str:
    rows = f"{batch:,} rows" + (" a worker" if way == "weak" else "")
    return f"{NETS[net].layers}, {way}, {rows}"


def print_report(rows: list[dict[str, Any]], per_host: list[int]) -> None:
    lines = lines_of(rows)
    cases = list(dict.fromkeys(key[:3] for key in lines))
    hosts = [f"{ranks} a host" for ranks in per_host]
    for case in cases:
        cells: dict[str, list[str]] = {}
        for ranks in per_host:
            for row in lines[*case, ranks]:
                gain = (
                    f"{row['efficiency']:.0%}"
                    if row["scaling"] == "weak"
                    else f"{row['speed-up']:.1f}x"
                )
                cell = f"{1e3 * row['seconds']:.3g} ms ({gain}; {row['exchange']:.0%})"
                cells.setdefault(f"{row['workers']}", []).append(cell)
        report.print_table(f"workers: {title_of(*case)}", hosts, cells)
    found = {}
    for case in cases:
        best = [paying(lines[*case, ranks]) for ranks in per_host]
        found[title_of(*case)] = [f"{row['workers']} ({row['speed-up']:.1f}x)" for row in best]
    report.print_table("workers that pay (weak: at 50 % or more)", hosts, found)


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """A panel for each net and way: times as fast, by number of workers."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print('No plot: no matplotlib. Install it with: pip install "skdtheano[bench]"')
        return
    lines = lines_of(rows)
    cases = list(dict.fromkeys(key[:3] for key in lines))
    n_nets = len({case[0] for case in cases})
    figure = Figure(figsize=(4 * len(cases) / n_nets, 3.1 * n_nets), layout="constrained")
    panels = figure.subplots(n_nets, len(cases) // n_nets, sharex=True, squeeze=False)
    for panel, case in zip(panels.flat, cases, strict=True):
        of_case = {key[3]: line for key, line in lines.items() if key[:3] == case}
        for place, (ranks, line) in enumerate(of_case.items()):
            xs, ys = zip(*((row["workers"], row["speed-up"]) for row in line), strict=True)
            # Where lines are one, all can be seen.
            style = {"linewidth": max(3 - place, 1), "markersize": max(6 - place, 2)}
            style["marker"] = "osd^v"[place % 5]
            panel.plot(xs, ys, label=f"{ranks} a host", **style)
        panel.plot(WORKERS, WORKERS, color="0.6", linestyle="--", linewidth=1, label="ideal")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        highest = max(row["speed-up"] for line in of_case.values() for row in line)
        panel.set_ylim(0.5, max(2.5 * highest, 4))
        ticks = [2**i for i in range(0, 13, 2)]
        panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.set_title(title_of(*case), fontsize="small")
        panel.grid(alpha=0.3)
    for panel in panels[-1]:
        panel.set_xlabel("workers")
    for row in panels:
        row[0].set_ylabel("times as fast as one")
    panels[0][0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"Wrote {path}")


def measured_steps(cluster: Cluster, nets: list[Net], repeats: int) -> dict[str, float]:
    """Seconds of a step of fits on all workers, by net; the least of the repeats.

    Of long and short fits on many and on few rows: so neither what a fit nor what an epoch
    takes once is in it.
    """
    found = {}
    with dask.config.set({"skdtheano.workers": "all"}):
        for net in nets:
            few = replace(net, rows=net.batch)
            turns = [(table, epochs) for table in (net, few) for epochs in (1, 1 + EPOCHS)]
            for turn in turns:
                cluster.seconds(*turn, "fit")
            spent = [[cluster.seconds(*turn, "fit") for turn in turns] for _ in range(repeats)]
            least = list(map(min, zip(*spent, strict=True)))
            beyond = (least[1] - least[0]) - (least[3] - least[2])
            found[net.name] = beyond / EPOCHS / ((net.rows - few.rows) // net.batch)
    return found


def validated(
    nets: list[Net], rated: dict[str, NetRates], links: Links, steps: dict[int, Any]
) -> list[dict[str, Any]]:
    """Modelled and measured seconds of a step on workers of one host, and their ratio."""
    rows = []
    for net in nets:
        for n, by_net in steps.items():
            step = step_time(net.name, net.batch, n, n, rated[net.name], links, Network())
            row = {"net": net.name, "workers": n, "modelled": step.total}
            row |= {"measured": by_net[net.name], "ratio": step.total / by_net[net.name]}
            rows.append(row)
    return rows


def measured(
    nets: list[Net], repeats: int
) -> tuple[dict[str, NetRates], Links, list[dict[str, Any]]]:
    """Rates of this machine, and what the model makes of them beside fits."""
    rated = {net.name: rates.net_rates(net) for net in nets}
    steps = {}
    with tempfile.TemporaryDirectory() as folder:
        with closing(Cluster(0, 1, folder)) as one:
            steps[1] = measured_steps(one, nets, repeats)
        with closing(TwoWorkers(0, 1, folder)) as two:
            links = rates.links(two.client, nets)
            steps[2] = measured_steps(two, nets, repeats)
    return rated, links, validated(nets, rated, links, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nets", default=",".join(NETS), help="of %(default)s")
    parser.add_argument("--per-host", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--latency-us", type=float, default=0.0, help="of the network")
    parser.add_argument("--gbit", type=float, help="per second, of each host's link")
    parser.add_argument("--rates", type=Path, help="of a scaling.json, not measured anew")
    parser.add_argument("--ranks", type=int, default=64, help="at most, that are counted")
    parser.add_argument("--repeats", type=int, default=3, help="of the fits that are timed")
    parser.add_argument("--quick", action="store_true", help="1 repeat, and 16 ranks")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    given = parser.parse_args()
    try:
        nets = chosen(given.nets)
    except ValueError as error:
        parser.error(str(error))
    start = time.perf_counter()
    n_shapes = traffic.check(16 if given.quick else given.ranks)
    print(f"Counts and formulas agree for {n_shapes} shapes of hosts and workers.")
    if given.rates is not None:
        told = json.loads(given.rates.read_text())
        rated = {net.name: NetRates(**told["rates"][net.name]) for net in nets}
        links, validation = Links(**told["links"]), told["validation"]
    else:
        rated, links, validation = measured(nets, 1 if given.quick else given.repeats)
    network = Network(
        1e-6 * given.latency_us, 0.0 if given.gbit is None else 8e-9 / given.gbit
    )
    rows = modelled(nets, given.per_host, rated, links, network)
    print_report(rows, given.per_host)
    report.print_table(
        "a step, ms",
        ("modelled", "measured", "ratio"),
        {
            f"{NETS[row['net']]}, {row['workers']} worker(s)": [
                f"{1e3 * row['modelled']:.3g}",
                f"{1e3 * row['measured']:.3g}",
                f"{row['ratio']:.2f}",
            ]
            for row in validation
        },
    )
    for name in ("barrier", "reading", "latency", "message"):
        print(f"{name}: {1e6 * getattr(links, name):.3g} us")
    print(f"{time.perf_counter() - start:.0f} s in all")
    content = {
        "unit": "seconds",
        "network": asdict(network),
        "links": asdict(links),
        "rates": {name: asdict(one) for name, one in rated.items()},
        "validation": validation,
        "steps": rows,
    }
    report.write_json(given.out / "scaling.json", content)
    plot(given.out / "scaling.png", rows)


if __name__ == "__main__":
    main()
