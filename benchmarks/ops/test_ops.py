"""Every operation on every backend that can run it here: forward, and backward where there is one.

    pytest benchmarks/ops/test_ops.py --benchmark-json=results.json

A backend is timed only after its outputs were found to be as close to float64 as those of the float32 reference. The
bytes of the case and the rate they make are stored with each result. Wall times; a GPU is synchronised inside.
"""

import functools
import importlib

import pytest
import torch

from instructrl import ops
from instructrl.ops.cases import CASES

USABLE = {(row.op, row.backend) for row in ops.usability() if row.usable}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RUNS = [(case, backend) for case in CASES if case.large for op, backend in sorted(USABLE) if op == case.op]


def step(case, arguments):
    """One forward, and the backward of the sum of what carries a gradient."""
    family, function = case.op.split(".")
    output = getattr(importlib.import_module(f"instructrl.ops.{family}"), function)(**arguments)
    tensors = [x for x in ([output] if isinstance(output, torch.Tensor) else output) if isinstance(x, torch.Tensor)]
    differentiable = [x.sum() for x in tensors if x.requires_grad]
    if differentiable:
        inputs = [arguments[name] for name in case.gradients]
        tensors += torch.autograd.grad(sum(differentiable[1:], differentiable[0]), inputs)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return tensors


@functools.lru_cache(maxsize=1)
def inputs_of(case):
    made = case.make(torch.float32)
    return {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in made.items()}


def prepared(case, dtype):
    """The inputs in a dtype, which a backend may write over."""
    found = {
        name: x.to(dtype, copy=True) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for name, x in inputs_of(case).items()
    }
    return found | {name: found[name].requires_grad_() for name in case.gradients}


@functools.lru_cache(maxsize=1)
def truth_and_yardstick(case):
    with ops.use_backend("reference"):
        return step(case, prepared(case, torch.float64)), step(case, prepared(case, torch.float32))


@pytest.mark.parametrize(("case", "backend"), RUNS, ids=lambda x: x if isinstance(x, str) else f"{x.op}-{x.name}")
def test_op(benchmark, case, backend):
    truth, plain = truth_and_yardstick(case)
    arguments = prepared(case, torch.float32)
    with ops.use_backend(backend):
        for actual, yardstick, exact in zip(step(case, arguments), plain, truth, strict=True):
            bound = 2 * (yardstick - exact).abs().max() + torch.finfo(torch.float32).eps * exact.abs().max()
            assert (actual - exact).abs().max() <= bound
        benchmark.group = f"{case.op} {case.name}"
        benchmark.pedantic(step, args=(case, arguments), rounds=5, warmup_rounds=1)
    if benchmark.disabled:
        return
    num_bytes = case.bytes_moved(inputs_of(case))
    benchmark.extra_info["bytes_moved"] = num_bytes
    benchmark.extra_info["bytes_per_second"] = num_bytes / benchmark.stats["median"]
