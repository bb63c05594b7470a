# `make search` and `make test` set up all they need: Python 3.11 or newer and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SPACE ?= ldrnet
ARGS ?=

.PHONY: search test lint types lock clean

search: $(VENV)/.ready
	$(BIN)/python run_search.py --space $(SPACE) $(ARGS)

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.ready
	$(BIN)/mypy

# The marker is written last: an interrupted set-up is done again, and finds what was already downloaded.
$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# Pins every dependency with its hashes; index addresses stay out, so that any mirror can serve them.
lock: $(VENV)/.ready
	$(BIN)/uv pip compile pyproject.toml --quiet --extra dev --universal --generate-hashes --no-emit-index-url \
		--no-annotate --python-version 3.11 --output-file requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
