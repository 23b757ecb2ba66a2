"""Where operations are tested: every backend on every device that it can use here.

INSTRUCTRL_TEST_PLUGIN names a module that attaches a further backend, and then only that one is tested: the CUDA
sources run on the host and Triton's interpreter need a process of their own.
"""

import importlib
import os
from collections import Counter

import torch

from instructrl import kernels, ops
from instructrl.ops.cases.case import Case

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PLUGIN = os.environ.get("INSTRUCTRL_TEST_PLUGIN")
_FURTHER = importlib.import_module(_PLUGIN).BACKEND if _PLUGIN else None
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def _supports(backend, device, dtype):
    if backend == kernels.REFERENCE:
        return True
    found = kernels.implementation("ranking.pairwise_ranking_loss", backend)
    return found is not None and found.unsupported(torch.zeros(1, 2, device=device, dtype=dtype)) is None


def _names():
    if _FURTHER is not None:
        return [_FURTHER]
    return [name for name in reversed(kernels.names()) if kernels.why_missing(name) is None]


PLACES = [
    (backend, device, dtype)
    for backend in _names()
    for device in DEVICES
    for dtype in DTYPES
    if _supports(backend, device, dtype)
]
BACKENDS = [(backend, device) for backend, device, dtype in PLACES if dtype == torch.float32]
COMPILED = [place for place in BACKENDS if place[0] != kernels.REFERENCE]


_HALVES = (torch.bfloat16, torch.float16)


def rounds(cases):
    """(case, backend, device, dtype) for each case in each place.

    The kernels of a further backend run hundreds of times slower than elsewhere: there a case is run in float32 and in
    one of the two halves, the cases of an op by turns.
    """
    found, seen = [], Counter()
    for case in cases:
        left_out = None if _FURTHER is None else _HALVES[seen[case.op] % 2]
        seen[case.op] += 1
        found += [(case, *place) for place in PLACES if place[2] != left_out]
    return found


PREFIXES = {"native": "_native_", "triton": "_triton_", "cuda_on_host": "_cuda_on_host_"}


def place_id(value):
    if isinstance(value, Case):
        return f"{value.op}-{value.name}"
    return str(value).removeprefix("torch.")


def on(device, arguments):
    """Tensors of a dict on a device, with their strides and as far from a 16-byte boundary as they were."""
    return {name: on_tensors(lambda tensor: _moved(tensor, device), x) for name, x in arguments.items()}


def on_tensors(function, x):
    """The function of a tensor, or of each tensor in a record."""
    if isinstance(x, tuple):
        return type(x)(*(on_tensors(function, part) for part in x))
    return function(x) if isinstance(x, torch.Tensor) else x


def _moved(x, device):
    if x.device.type == device or x.storage_offset() == 0:
        return x.to(device)
    storage = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    return storage.to(device).as_strided(x.shape, x.stride(), x.storage_offset())


def use(backend):
    return ops.use_backend(backend)
