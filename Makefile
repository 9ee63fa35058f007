# make demo | test | test-all | checks | format | oracle: each works alone on a fresh clone with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all checks format oracle clean

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python 3.11 or newer is needed, but this is " + sys.version.split()[0] + "; use make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/quadriga train mae_digits --work-dir runs/demo --resume

PYTEST := $(BIN)/python -m pytest tests -n auto --maxprocesses 4

test: $(STAMP)
	$(PYTEST) -m 'not long'

test-all: $(STAMP)
	$(PYTEST)

checks: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/gates.py

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Code of the systems that we are compared with, each in an environment of its own; the tests
# that ask it are skipped without it.
ORACLES := .oracle

oracle: $(ORACLES)/mmselfsup/.installed

$(ORACLES)/%/.installed: tests/oracles/%.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --no-deps --requirement $<
	touch $@

clean:
	rm -rf $(VENV) $(ORACLES) runs build dist .mypy_cache .ruff_cache .hypothesis
