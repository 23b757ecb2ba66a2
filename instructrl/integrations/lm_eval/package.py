"""The package lm-eval as it is installed here, and what it is not to change in this process."""

import importlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

# Its standard errors by resampling are otherwise made by processes that are forked from this one, with its network and
# its threads.
_ONE_PROCESS = {"DISABLE_MULTIPROC": "1"}


def module(name: str) -> Any:
    """A module of lm-eval. Raises ValueError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "lm_eval":
            raise
        raise ValueError(
            "lm_eval: found no lm-eval, which is not installed; accepted is pip install instructrl[lm-eval]"
        ) from None


@contextmanager
def untouched() -> Iterator[None]:
    """Leaves the global generators of Python, NumPy and torch, and the environment, as they were: a run that continues
    to the same bits may draw from them afterwards, and tasks can have code that seeds them."""
    python, numpy_state = random.getstate(), np.random.get_state()
    before = {name: os.environ.get(name) for name in _ONE_PROCESS}
    os.environ.update(_ONE_PROCESS)
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
