# Two commands, each of which sets up what it needs (see README.md):
#   make demo    train on the flights of 2013, on a local dask cluster
#   make test    lint, types, and the tests of both engines

PYTHON ?= python3
# Theano 1.0.5 imports modules that Python 3.12 removed.
PYTHON_THEANO ?= $(shell command -v python3.11 || command -v python3)

.PHONY: demo test test-pytensor test-theano test-lowest lint bench clean

demo: .venv/ready
	.venv/bin/python examples/flights.py

test: lint test-pytensor test-theano

test-pytensor: .venv/ready
	.venv/bin/python -m pytest

test-theano: .venv-theano/ready
	SKDTHEANO_ENGINE=theano .venv-theano/bin/python -m pytest -m "parity or cluster"

test-lowest: .venv-lowest/ready
	.venv-lowest/bin/python -m pytest -m "parity or cluster"

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

clean:
	rm -rf .venv .venv-theano .venv-lowest
