PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Nothing is compiled at installation, so each process would compile torch anew: 20 s in place of 5.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help quickstart docs test test-newest test-lowest soak fuzz mutants check fix setup clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: setup  ## from nothing to a pre-trained encoder and its scores
	$(BIN)/mapet quickstart

test: setup  ## all tests, one file at a time on each core, the longest first
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

docs: setup  ## the documentation site, into build/docs; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs
	@echo "open build/docs/index.html"

SECONDS ?= 600

soak: setup  ## trainings killed and damaged for SECONDS=600; the end must be bit-equal
	$(BIN)/python benchmarks/soak.py --seconds $(SECONDS)
	$(BIN)/python benchmarks/soak.py --seconds $(SECONDS) --processes 2

fuzz: setup  ## damaged files and odd settings for SECONDS=600
	$(BIN)/python benchmarks/fuzz.py --seconds $(SECONDS)

test-newest:  ## all tests with the newest versions that pyproject.toml allows, in their own environment
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --disable-pip-version-check -e '.[dev]'
	.venv-newest/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-lowest:  ## all tests with the lowest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check packaging
	.venv-lowest/bin/python tools/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-lowest/constraints.txt -e '.[dev]'
	.venv-lowest/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

mutants: setup  ## do the tests of ROOM notice NUMBER random changes of it? (SEED)
	$(BIN)/python tools/mutants.py --room $(or $(ROOM),method) --number $(or $(NUMBER),40) --seed $(or $(SEED),0)

check: setup  ## lint, types, import layers, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell *.md docs src tests benchmarks examples tools results

fix: setup  ## apply ruff's fixes and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(READY)  ## a virtual environment with the tested versions

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "mapet needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the tested versions into $(VENV) (about 5 GB; minutes)"
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:  ## remove the environment and caches
	rm -rf $(VENV) .venv-newest .venv-lowest build dist .pytest_cache .mypy_cache .ruff_cache
