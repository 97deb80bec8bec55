"""The table of the fault matrix, printed where the whole of it was run."""

from collections import defaultdict
from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    n_rows = 0
    for report in terminalreporter.getreports("passed"):
        told = dict(report.user_properties)
        if "recovery" in told:
            rows[told["fault"]][told["place"]].append(told["recovery"])
            n_rows += 1
    if n_rows < 50:
        return
    places = list(dict.fromkeys(place for row in rows.values() for place in row))
    terminalreporter.section(
        "seconds from the fault to the end of the fit, for 1 to 3 workers"
    )
    terminalreporter.line("| | " + " | ".join(places) + " |")
    terminalreporter.line("|" + " --- |" * (len(places) + 1))
    for fault, row in rows.items():
        cells = (" ".join(f"{s:.1f}" for s in row.get(place, ())) for place in places)
        terminalreporter.line(f"| {fault} | " + " | ".join(cells) + " |")
