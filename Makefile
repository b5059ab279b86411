# `make demo` and `make test` need Python (3.10 or newer) and make: they set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check long bench clean help

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(READY): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing cvad into $(VENV) (about 6 GB with torch; some minutes the first time) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $(READY)

demo: $(READY) ## generate images, train, evaluate, print the table
	@$(BIN)/cvad demo

test: $(READY) ## run the tests, by two processes
	@$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(READY) ## format check, lint, types, tests: what CI runs
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

long: $(READY) ## hours of checks that resume: kills, soak, every model name (scripts/long_checks)
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/long_checks

bench: $(READY) ## measure training against anomalib's own (needs MVTec AD grid; some ten minutes)
	@$(BIN)/python scripts/bench_train.py

clean: ## remove the environment and the caches, not the results
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
