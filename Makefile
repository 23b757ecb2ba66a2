# Each target is one command and makes what it needs. PYTHON picks the interpreter, VENV the environment.
# A machine without a GPU can have the small CPU build of torch: make demo INDEX=<index URL of CPU builds>
PYTHON ?= python3
VENV ?= .venv
INDEX ?=

# pip before 25.3 reads the first for build environments too, later ones read only the second.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test smoke lint bench clean

help:
	@echo "make demo   the miniature experiment, from nothing to a report: about ten minutes on two cores"
	@echo "make test   all tests"
	@echo "make smoke  the miniature cut down to two minutes"
	@echo "make lint   ruff and pyright"
	@echo "make bench  speed of the ops"

$(STAMP): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(if $(INDEX),--extra-index-url $(INDEX)) --editable '.[test,parquet,hub]'
	touch $@

demo: $(STAMP)
	$(BIN)/instructrl run miniature --out runs/miniature

test: $(STAMP)
	$(BIN)/python -m pytest

smoke: $(STAMP)
	$(BIN)/instructrl run smoke --out runs/smoke

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-only

clean:
	rm -rf $(VENV) build *.egg-info
