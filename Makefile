# Two commands, each of which sets up what it needs (see README.md):
#   make demo    train on the flights of 2013, on a local dask cluster
#   make test    lint, types, and the tests of both engines

PYTHON ?= python3
# Processes that share the tests out among them; see tests/shared_clusters.py.
JOBS ?= 2
PYTEST = -m pytest -n $(JOBS) --dist loadgroup
# Theano 1.0.5 does not build on Python 3.12: its lane takes a Python 3.11 if there is one.
PYTHON_THEANO ?= $(shell for p in $(PYTHON) python3.11; do \
	$$p -c 'import sys, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)

# What is newest of PyTensor and NumPy asks for a newer Python than the oldest one we serve.
PYTHON_NEWEST ?= $(shell for p in python3.14 python3.13 python3.12; do \
	$$p -c 'import ensurepip' 2>/dev/null && echo $$p && break; done)

.PHONY: demo environments test test-pytensor test-theano test-lowest test-newest test-exhaustive test-faults lint docs clean

demo: .venv/ready
	.venv/bin/python examples/flights.py

# Each lane makes its own if need be; with -j, these are made side by side.
environments: .venv/ready .venv-lowest/ready $(if $(PYTHON_THEANO),.venv-theano/ready)

test: lint test-pytensor
	@if [ -n "$(PYTHON_THEANO)" ]; then $(MAKE) test-theano; \
	else echo "The lane of classic Theano was not run: it needs Python 3.11, and none was \
	found. Give one with: make test PYTHON_THEANO=/path/to/python3.11"; fi

test-pytensor: .venv/ready
	.venv/bin/python $(PYTEST)

test-theano: .venv-theano/ready
	SKDTHEANO_ENGINE=theano .venv-theano/bin/python $(PYTEST) -m "(parity or cluster) and not table and not exhaustive"

test-lowest: .venv-lowest/ready
	.venv-lowest/bin/python $(PYTEST) -m "(parity or cluster) and not (table or exhaustive or engines)"

# For a machine whose PYTHON is an older one, before a release; not in .ci/run.
test-newest: .venv-newest/ready
	.venv-newest/bin/python $(PYTEST) -m "(parity or cluster) and not table and not exhaustive"

# Every row of the parity table on a cluster: about 25 minutes.
test-exhaustive: .venv/ready
	.venv/bin/python $(PYTEST) tests/test_parity.py -m exhaustive

# Every fault at every place of a fit, on clusters of 1 to 3 workers: about 30 minutes.
test-faults: .venv/ready
	.venv/bin/python -m pytest tests/faults -m ''

# The pages of docs/, in docs/_build/html.
docs: .venv/ready
	.venv/bin/python -m pip install --quiet --editable '.[docs]'
	.venv/bin/python -m sphinx -W --keep-going -q docs docs/_build/html

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

.venv/ready: pyproject.toml scripts/environment.sh
	bash scripts/environment.sh pytensor $(PYTHON)

.venv-theano/ready: pyproject.toml scripts/environment.sh
	bash scripts/environment.sh theano $(PYTHON_THEANO)

.venv-lowest/ready: pyproject.toml scripts/environment.sh
	bash scripts/environment.sh lowest $(PYTHON)

.venv-newest/ready: pyproject.toml scripts/environment.sh
	bash scripts/environment.sh newest $(PYTHON_NEWEST)

clean:
	rm -rf .venv .venv-theano .venv-lowest .venv-newest
