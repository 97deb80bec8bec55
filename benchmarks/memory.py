"""The most memory that a fit and a prediction take beside what their data need.

    python benchmarks/memory.py [--megabytes N] [--nets small,medium]

Float32 rows in this process; each figure is of a process of its own. Its resident memory is
read when all is imported and no row is there (for a prediction: when a few rows have been
fitted), and at its peak. The difference, in MB, stands beside an allowance: the rows, three
copies of the parameters (Adam's moments are two), one batch, and 150 MB for all else.

Writes memory.json into `--out`. For Linux, which alone can forget an earlier peak.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from harness import report
from harness.contenders import options
from harness.nets import NETS, Net, chosen, table
from harness.processes import Host, Running

MB = 1e6
ALL_ELSE = 150.0


def resident(what: str) -> float:
    """MB of this process: VmRSS now, or VmHWM at the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) * 1024 / MB
    raise RuntimeError(f"No {what} in /proc/self/status: run this on Linux.")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


class Memory:
    """Fits or predicts, once, in a process that has done nothing else."""

    def __init__(self, rank: int, size: int, folder: str) -> None:
        warnings.filterwarnings("ignore", "Stochastic Optimizer: Maximum iterations")

    def close(self) -> None:
        pass

    def of_fit(self, net: Net, rows: int) -> float:
        clf = estimator(net)
        before = resident("VmRSS")
        X, y = table(net, rows)
        forget_peak()
        clf.fit(X, y)
        return resident("VmHWM") - before

    def of_predict(self, net: Net, rows: int) -> float:
        clf = estimator(net).fit(*table(net, 2 * net.batch))
        before = resident("VmRSS")
        X, _ = table(net, rows)
        forget_peak()
        clf.predict(X)
        return resident("VmHWM") - before


def estimator(net: Net) -> Any:
    from skdtheano import DistributedMLPClassifier

    return DistributedMLPClassifier(**options(net, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=float, default=200, help="of the rows")
    parser.add_argument("--nets", default=",".join(NETS), help="of %(default)s")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    given = parser.parse_args()
    if sys.platform != "linux":
        parser.error("the peak is read from /proc: run this on Linux")
    try:
        nets = chosen(given.nets)
    except ValueError as error:
        parser.error(str(error))
    found: dict[str, dict[str, float]] = {}
    for net in nets:
        row_bytes = 4 * net.n_features
        rows = int(given.megabytes * MB) // row_bytes // net.batch * net.batch
        needed = rows * row_bytes + 3 * 4 * net.n_parameters + net.batch * row_bytes
        figures = found[str(net)] = {"allowance": needed / MB + ALL_ELSE}
        for what in ("of_fit", "of_predict"):
            with (
                tempfile.TemporaryDirectory() as folder,
                Running(Host(Memory), folder) as host,
            ):
                figures[what] = host.ask(what, net, rows)[0]
    cells = {net: [f"{value:.0f}" for value in row.values()] for net, row in found.items()}
    title = f"MB above the start, {given.megabytes:.0f} MB of rows"
    report.print_table(title, ("allowance", "fit", "predict"), cells)
    report.write_json(given.out / "memory.json", {"unit": "MB", "peaks": found})


if __name__ == "__main__":
    main()
