#!/usr/bin/env bash
# Make one of the project's environments:
#   environment.sh pytensor|theano|lowest|newest PYTHON
set -euo pipefail
lane=$1
python=${2:?"no Python was given. Theano 1.0.5 needs Python 3.11: make PYTHON_THEANO=/path/to/python3.11; the newest PyTensor a newer one: make PYTHON_NEWEST=/path/to/python3.13"}
export PIP_DISABLE_PIP_VERSION_CHECK=1
cd "$(dirname "$0")/.."
case $lane in
pytensor) home=.venv ;;
*) home=.venv-$lane ;;
esac
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "skdtheano needs Python 3.11 or newer; $python is $("$python" --version). Give another: make PYTHON=/path/to/python" >&2
    exit 1
}
rm -rf "$home"
"$python" -m venv "$home"
pip() { "$home/bin/python" -m pip "$@"; }
pip install --quiet --upgrade pip
case $lane in
pytensor)
    pip install --quiet --editable '.[examples,test,lint]'
    ;;
newest)
    pip install --quiet --editable '.[test]'
    ;;
theano)
    "$python" -c 'import sys; sys.exit(sys.version_info >= (3, 12))' || {
        echo "Theano 1.0.5 needs Python 3.11; $python is newer. Give one: make PYTHON_THEANO=/path/to/python3.11" >&2
        exit 1
    }
    # All but PyTensor, which wants NumPy 2, in one resolution; see README.md.
    "$home/bin/python" - <<'PY' >"$home/requirements.txt"
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
wanted = project["dependencies"] + extras["theano"] + extras["test"]
print("\n".join(line for line in wanted if not line.startswith("pytensor")))
print("numpy==1.26.4")
PY
    pip install --quiet --requirement "$home/requirements.txt"
    pip install --quiet --no-deps --editable .
    ;;
lowest)
    "$home/bin/python" - <<'PY' >"$home/requirements.txt"
import re
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
for line in project["dependencies"]:
    name, version = re.match(r"([\w\[\],-]+)>=([\d.]+)", line).groups()
    if name == "numpy":  # the lane of classic Theano is the one with 1.26.4
        version = "2.0.0"
    print(f"{name}~={version}.0" if version.count(".") == 1 else f"{name}=={version}")
extras = project["optional-dependencies"]
print("\n".join(extras["test"] + [line.replace(">=", "==") for line in extras["pymc"]]))
PY
    pip install --quiet --requirement "$home/requirements.txt"
    pip install --quiet --no-deps --editable .
    ;;
*)
    echo "unknown lane $lane" >&2
    exit 1
    ;;
esac
touch "$home/ready"
