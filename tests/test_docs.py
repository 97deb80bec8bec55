"""Documents and examples run as they are written."""

import doctest
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import skdtheano.estimators.classifier
import skdtheano.estimators.regressor
import skdtheano.functions.calling
import skdtheano.functions.explaining

ROOT = Path(__file__).parent.parent


def run_script(script: Path, *arguments: str, cwd: Path) -> str:
    """Run a script as a user would, in a process of its own; return what it prints."""
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=cwd,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "module",
    [
        skdtheano.estimators.classifier,
        skdtheano.estimators.regressor,
        skdtheano.functions.calling,
        skdtheano.functions.explaining,
    ],
    ids=lambda module: module.__name__,
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_examples_in_docstrings_run(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted >= 3
    assert result.failed == 0


def readme_scripts() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_function_of_the_readme_runs(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(readme_scripts()[1])
    slopes = [
        float(x) for x in re.findall(r"-?[\d.]+(?:e-?\d+)?", run_script(script, cwd=tmp_path))
    ]
    assert abs(slopes[0] - 2) < 0.1 and all(abs(slope) < 0.1 for slope in slopes[1:])


def test_the_quickstart_of_the_readme_runs(tmp_path: Path) -> None:
    code, _ = readme_scripts()
    script = tmp_path / "script.py"  # a file: worker processes import the main module
    script.write_text(code)
    printed = run_script(script, cwd=tmp_path)
    assert re.search(r"Dashboard: http://127\.0\.0\.1:\d+/status", printed)
    assert printed.count("Iteration") == 5
    [accuracy] = re.findall(r"Accuracy: ([\d.]+)", printed)
    assert float(accuracy) > 0.9
    assert "Probabilities, lazily: dask.array<" in printed


def test_the_example_of_many_small_fits_runs(tmp_path: Path) -> None:
    printed = run_script(ROOT / "examples" / "search_small.py", cwd=tmp_path)
    assert "BatchedGridSearchCV: 27 fits in" in printed and "Warning" not in printed
    assert "The scores are the same." in printed
    assert printed.count("'alpha'") == 9
    [accuracy] = re.findall(r"accuracy ([\d.]+) on the rest", printed)
    assert float(accuracy) > 0.95


def test_the_example_of_searches_by_the_whole_cluster_runs(tmp_path: Path) -> None:
    printed = run_script(ROOT / "examples" / "search_large.py", cwd=tmp_path)
    assert "Grid: {'distributedmlpclassifier__learning_rate_init': 0.01}" in printed
    assert "Hyperband: 49 candidates" in printed and "Warning" not in printed
    scores = [float(score) for score in re.findall(r"on the rest: ([\d.]+)", printed)]
    assert len(scores) == 2 and min(scores) > 0.85


def test_links_of_the_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for link in re.findall(r"\]\(([^)#]+)", document.read_text()):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_the_demo_runs_on_a_part_of_the_flights(tmp_path: Path) -> None:
    demo = ROOT / "examples" / "flights.py"
    printed = run_script(demo, "--rows", "20000", "--epochs", "2", cwd=tmp_path)
    assert "Iteration 2, loss" in printed
    [ours, trees] = re.findall(r"ROC AUC: ([\d.]+) \(.*?: ([\d.]+)\)", printed)[0]
    assert 0.65 < float(ours) < float(trees) + 0.02
    assert "rows per second" in printed
    assert "Warning" not in printed
