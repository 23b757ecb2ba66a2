"""Calls the kernels of csrc/cuda on small inputs, for compute-sanitizer to look at: a step of gpu.py.

    compute-sanitizer --tool memcheck --kernel-name kns=instructrl python -m benchmarks.device.sanitized [--seconds 30]

Inputs are the cases of the ops, made on the CPU, so that hardly anything but our kernels runs on the GPU: both sides of
a tile's edge, masks, misaligned rows, packed sequences. Cases take turns by op, so that a run of any length sees all of
them. It ends by itself when its seconds are over. What the results are is for the tests.
"""

import time
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from benchmarks.core.tables import command
from benchmarks.core.workloads import public, tensors
from instructrl import ops
from instructrl.ops.cases import CASES, Case

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def jobs() -> list[tuple[Case, torch.dtype]]:
    """Every op's first case, then every op's second, and so on, for one dtype after the other; but for the linear ops,
    which are matrix products, a library's, and the kernels of the ops that are called here."""
    by_op: dict[str, list[Case]] = {}
    for case in CASES:
        if not case.large and "linear" not in case.op:
            by_op.setdefault(case.op, []).append(case)
    in_turns = [case for turn in zip_longest(*by_op.values()) for case in turn if case is not None]
    return [(case, dtype) for dtype in DTYPES for case in in_turns]


def moved(x: Any, device: torch.device) -> Any:
    """On a device, with its strides and as far from a 16-byte boundary as it was."""
    if not isinstance(x, Tensor):
        return x
    storage = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    return storage.to(device).as_strided(x.shape, x.stride(), x.storage_offset())


def call(case: Case, dtype: torch.dtype, device: torch.device) -> None:
    """Forward, and backward where there is one. The gradients that go in are made on the CPU as well."""
    given = {name: moved(x, device) for name, x in case.make(dtype).items()}
    leaves = [given[name].requires_grad_() for name in case.gradients]
    found = [x for x in tensors(public(case.op)(**given)) if x.requires_grad]
    if found:
        upstream = [torch.randn(x.shape, dtype=x.dtype).to(device) for x in found]
        torch.autograd.grad(found, leaves, upstream, allow_unused=True)
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Call what the seconds allow."""
    start, arguments = time.monotonic(), command(__doc__, seconds=30.0, device=("cuda", "cpu"))
    todo, done = jobs(), 0
    with ops.use_backend("native"):
        for case, dtype in todo:
            if time.monotonic() - start > arguments.seconds:
                break
            print(f"{case.op} {case.name} {dtype}", flush=True)
            call(case, dtype, torch.device(arguments.device))
            done += 1
    seen = len({case.op for case, _ in todo[:done]})
    print(f"{done} of {len(todo)} cases of {seen} ops in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
