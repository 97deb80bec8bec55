"""Medians, ratios, tables, files and pictures of what was measured."""

import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy  # noqa: F401  (whose BLAS is asked for its kernels)
import threadpoolctl

#: By net, and in it by contender: samples per second of each repeat.
Rates = Mapping[str, Mapping[str, Sequence[float]]]


class Spread(NamedTuple):
    """The median of repeats, and how far they are apart."""

    median: float
    least: float
    most: float

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} [{self.least:{spec}}–{self.most:{spec}}]"


class Ratio(NamedTuple):
    label: str
    of: str
    to: str


def spread(values: Iterable[float]) -> Spread:
    values = list(values)
    return Spread(statistics.median(values), min(values), max(values))


def steady_rates(samples: int, short: Sequence[float], long: Sequence[float]) -> list[float]:
    """Samples per second of each long run, beyond what a short one takes.

    The median of the short ones: of a pair of runs, one that was disturbed would count twice.
    """
    start_up = statistics.median(short)
    if min(long) <= start_up:
        raise ValueError(
            f"A long run took {min(long):.2f} s, and a short one {start_up:.2f} s: something "
            "else keeps this machine busy. Measure again when it is free, with more repeats."
        )
    return [samples / (seconds - start_up) for seconds in long]


def ratios(rates: Rates, pairs: Iterable[Ratio]) -> dict[str, dict[str, Spread]]:
    """By label, and in it by net: the spread of the ratios *within* each repeat.

    What slows the machine down for a while slows both down, and cancels. Pairs that lack one
    are left out.
    """
    found: dict[str, dict[str, Spread]] = {}
    for pair in pairs:
        for net, rows in rates.items():
            if pair.of in rows and pair.to in rows:
                both = zip(rows[pair.of], rows[pair.to], strict=True)
                found.setdefault(pair.label, {})[net] = spread(a / b for a, b in both)
    return found


def print_table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """Of Markdown, so that it can be pasted into a document."""
    lines = [[title, *columns], *([name, *cells] for name, cells in rows.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    print()
    for line in lines:
        first, *others = zip(line, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        print("| " + " | ".join(cells) + " |")
    print(flush=True)


def machine() -> dict[str, Any]:
    """What to know of the machine and the packages to compare figures with others."""
    packages = ("skdtheano", "numpy", "scikit-learn", "pytensor", "dask", "dask-ml", "torch")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "kernels": kernels(),
        "python": platform.python_version(),
        "versions": versions,
    }


def kernels() -> list[str]:
    """Which kernels each BLAS here multiplies with, and what the environment says of them."""
    given = [f"{k}={os.environ[k]}" for k in ("OPENBLAS_CORETYPE",) if k in os.environ]
    libraries = threadpoolctl.threadpool_info()
    names = {library["architecture"] for library in libraries if "architecture" in library}
    return [*sorted(names), *given]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **content}, indent=1) + "\n")
    print(f"Kernels of NumPy's BLAS: {', '.join(kernels())}")
    print(f"Wrote {path}")


def _figures(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def plot(
    path: Path,
    rates: Rates,
    labels: Mapping[str, str],
    titles: Mapping[str, str],
    limits: Mapping[str, str],
) -> None:
    """A panel per net and a bar per contender; those in `limits` are lines, with this dash."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print('No plot: no matplotlib. Install it with: pip install "skdtheano[bench]"')
        return
    n = max(len(rows) for rows in rates.values())
    figure = Figure(figsize=(4.2 * len(rates) + 2.2, 2.4 + 0.36 * n), layout="constrained")
    panels = figure.subplots(1, len(rates), squeeze=False, sharey=True)[0]
    for panel, (net, rows) in zip(panels, rates.items(), strict=True):
        bars = {
            name: spread(v / 1e3 for v in rows[name]) for name in rows if name not in limits
        }
        lines = {name: spread(rows[name]).median / 1e3 for name in rows if name in limits}
        for name, (median, least, most) in bars.items():
            colour = "tab:orange" if name.startswith("ours") else "tab:blue"
            panel.barh(labels[name], median, color=colour)
            panel.plot([least, most], [labels[name]] * 2, color="0.25", linewidth=1)
            panel.annotate(
                f" {_figures(median)}", (most, labels[name]), va="center", fontsize="small"
            )
        # Bars stay readable: lines that are far from them are only in the legend.
        longest = max(
            (bar.most for bar in bars.values()), default=max(lines.values(), default=1)
        )
        panel.set_xlim(
            0, 1.2 * max([longest, *(x for x in lines.values() if x < 3 * longest)])
        )
        for name, x in lines.items():
            off = " (off the axis)" if x >= 3 * longest else ""
            style = {"color": "0.2", "linestyle": limits[name]}
            panel.axvline(x, label=f"{labels[name]}: {_figures(x)}{off}", **style)
        panel.set_title(titles[net], fontsize="medium")
        panel.set_xlabel("1000 samples per second")
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)
        if lines:
            panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), fontsize="small")
    panels[0].invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"Wrote {path}")
