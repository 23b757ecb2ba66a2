"""The package vLLM as it is installed here: its version, its platform, and what it is not to change in this process."""

import importlib
import os
import random
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

# Those whose sources the engine was written with, of which docs/engines.md says what was run.
OLDEST, NEWEST = (0, 28), (0, 33)

# vLLM in this process reads the tensors that it is given; one in a process of its own could be sent messages alone.
_IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
# Where the environment says nothing else: standard output is the command's own, and no machine is told of a run.
_QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1",
}


def load() -> Any:
    """The module vllm. Raises RuntimeError where it is not installed or of an older version than is known, warns of a
    newer one."""
    os.environ.update({**_IN_PROCESS, **{name: os.environ.get(name, value) for name, value in _QUIET.items()}})
    try:
        vllm = importlib.import_module("vllm")
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise RuntimeError(
            "engine: found 'vllm', which is not installed; accepted is 'builtin', or 'vllm' after "
            "pip install instructrl[vllm]"
        ) from None
    check_version(vllm.__version__)
    return vllm


def check_version(said: str) -> None:
    """Raise RuntimeError for an older version of vLLM than is known, warn of a newer one."""
    found = re.match(r"(\d+)\.(\d+)", said)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < OLDEST:
        raise RuntimeError(f"engine: found vLLM {said}, accepted are versions from {_words(OLDEST)}")
    if version > NEWEST:
        known = f"{_words(OLDEST)} to {_words(NEWEST)}"
        warnings.warn(f"engine: found vLLM {said}, this was written with {known}", stacklevel=2)


def _words(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def platform_options() -> Mapping[str, Any]:
    """Arguments of `vllm.LLM` that the machine asks for."""
    platform = importlib.import_module("vllm.platforms").current_platform
    if platform.is_cpu():
        # A prompt that is read in parts sets a seeded generator back, which the one of the CPU cannot do.
        return {"enable_chunked_prefill": False}
    if platform.is_sleep_mode_available():
        return {"enable_sleep_mode": True}
    return {}


@contextmanager
def process_kept() -> Iterator[None]:
    """What runs inside leaves the global random generators and `torch.set_num_threads` as they are.

    vLLM seeds all generators when it opens, and on a CPU puts a function that does nothing in the place of the other.
    """
    own, numpy_own, set_threads = random.getstate(), np.random.get_state(), torch.set_num_threads
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(own)
            np.random.set_state(numpy_own)
            torch.set_num_threads = set_threads


def leave_process_group(llm: Any) -> None:
    """Where vLLM works in a job that others have made, keep the end of its engine from ending the job's process group.

    What it would give back lasts as long as the process.
    """
    if (end := getattr(llm.llm_engine.engine_core, "_finalizer", None)) is not None:
        end.detach()
