"""scikit-learn's own `test_mlp.py`, as installed, with this package's estimators in it.

By hand, from the repository's root, with any of pytest's options (``-k``, ``--pdb``)::

    PYTHONPATH=tests python -m pytest -c /dev/null --noconftest -p no:cacheprovider \
        -p sklearn_suite.plugin --pyargs sklearn.neural_network.tests.test_mlp

The plugin puts the estimators in the place of scikit-learn's, and leaves out what
`not_run` lists.
"""

import ast
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest
import sklearn
from sklearn.neural_network import MLPClassifier, MLPRegressor

from skdtheano import DistributedMLPClassifier, DistributedMLPRegressor
from sklearn_suite.not_run import NOT_RUN

MODULE = "sklearn.neural_network.tests.test_mlp"

#: Tests that pass, a parametrized one once for each case, by version of scikit-learn.
#: Other versions are only asked for every function of theirs.
PASSED = {"1.9.1": 58}


def sources() -> dict[str, str]:
    """Source of each test function of the installed file, by name."""
    spec = find_spec(MODULE)
    assert spec is not None and spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    return {
        node.name: ast.get_source_segment(text, node) or ""
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def outcomes(report: Path) -> dict[str, str]:
    """What became of each test of a JUnit report: "passed", or "failure", "skipped", ..."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        odd = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[case.attrib["name"]] = odd[0] if odd else "passed"
    return found


def run_suite(report: Path) -> subprocess.CompletedProcess[str]:
    # A process of its own: the plugin changes scikit-learn for good. The configuration is
    # none, since this project's turns warnings into errors that scikit-learn's tests
    # expect to be warnings; its conftest sets up data sets and threads of other tests.
    environment = dict(os.environ)
    environment.pop("PYTEST_ADDOPTS", None)
    tests = str(Path(__file__).parents[1])
    paths = [tests, environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    own = ["-c", os.devnull, "--noconftest", "-p", "no:cacheprovider"]
    ours = ["-p", "sklearn_suite.plugin", f"--junitxml={report}"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *own, *ours, "--pyargs", MODULE],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_scikit_learns_tests_pass(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    run = run_suite(report)
    if run.returncode != 0:
        pytest.fail(f"exit status {run.returncode} of:\n{run.stdout}", pytrace=False)
    found = outcomes(report)
    assert {name: odd for name, odd in found.items() if odd != "passed"} == {}
    functions = {name.partition("[")[0] for name in found}
    assert functions == set(sources()) - set(NOT_RUN)
    assert len(found) == PASSED.get(sklearn.__version__, len(found))


@pytest.mark.parametrize("name", NOT_RUN)
def test_left_out_test_needs_a_private_member(name: str) -> None:
    members = re.findall(r"`(_\w+)`", NOT_RUN[name])
    assert members, "the reason names no private member"
    installed = sources()
    assert name in installed, "scikit-learn has no such test"
    for member in members:
        assert f".{member}" in installed[name]
        assert hasattr(MLPClassifier, member) or hasattr(MLPRegressor, member)
        assert not hasattr(DistributedMLPClassifier, member)
        assert not hasattr(DistributedMLPRegressor, member)
