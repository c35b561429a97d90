# make audit   the shipped audit of the miniature, with a report
# make test    the default tests, one process per core
# make check   ruff, formatting, mypy
# make docs    the documentation, into site/
#
# The first of them makes .venv; on Linux without a GPU, set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# to get PyTorch without CUDA.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: audit test check docs clean

audit: $(READY)
	$(BIN)/palimpsest audit

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n logical --maxprocesses 8 --dist worksteal

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) site .mypy_cache .pytest_cache .ruff_cache

# The stamp is written last: a set-up that was interrupted starts again, one that is done is not repeated.
$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV), once: this takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@
