# Each target is one command and makes what it needs. PYTHON picks the interpreter, VENV the environment.
# A machine without a GPU can have the small CPU build of torch: make demo INDEX=<index URL of CPU builds>
PYTHON ?= python3
VENV ?= .venv
INDEX ?=

# Nothing is built in isolation here, and from 25.3 on pip refuses to hear of constraints for that.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
unexport PIP_BUILD_CONSTRAINT
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TOOLS := $(VENV)/.tools

.PHONY: help demo test smoke torture lint bench ahead-of-time gpu-check gpu-targets clean

help:
	@echo "make demo           the miniature experiment, from nothing to a report: about ten minutes on two cores"
	@echo "make test           all tests"
	@echo "make smoke          the miniature cut down to two minutes"
	@echo "make lint           ruff and pyright"
	@echo "make torture        a run that is killed sixty times, beside one that is not"
	@echo "make bench          the ops beside PyTorch and installed peers, into benchmarks/results/<machine>"
	@echo "make ahead-of-time  what the CUDA and Triton kernels compile to; needs nvcc, no GPU"
	@echo "make gpu-check      on a machine with an NVIDIA GPU: build, tests, compute-sanitizer, benchmarks"
	@echo "make gpu-targets    there too: the targets of the GPU ops beside their peers, in eight minutes"

# What the build needs comes first, so that the package can be built against the torch that it will run with.
$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(if $(INDEX),--extra-index-url $(INDEX)) setuptools torch pybind11 ninja
	$(BIN)/python -m pip install --no-build-isolation --editable .
	touch $@

$(TOOLS): $(STAMP)
	$(BIN)/python -m pip install --no-build-isolation --editable '.[test,parquet,hub,triton]'
	touch $@

demo: $(STAMP)
	$(BIN)/instructrl run miniature --out runs/miniature

test: $(TOOLS)
	$(BIN)/python -m pytest

smoke: $(STAMP)
	$(BIN)/instructrl run smoke --out runs/smoke

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

torture: $(TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture.py

bench: $(TOOLS)
	$(BIN)/python benchmarks/bench.py

ahead-of-time: $(TOOLS)
	$(BIN)/python benchmarks/ahead_of_time.py --write

# With the torch of PYTHON's own environment, which is the one that knows the GPU.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py

gpu-targets:
	$(PYTHON) benchmarks/gpu_targets.py

clean:
	rm -rf $(VENV) build *.egg-info instructrl/_C*.so
