"""How fast a machine copies and multiplies: what shares and limits are of."""

import statistics

import torch

from benchmarks.core.timing import CpuMeter, Step, contender, take_turns

Amount = tuple[Step, int]
"""A step, and the bytes or FLOPs that it takes."""


def copy(num_bytes: int, device: torch.device) -> Amount:
    """Between two buffers of this size; read and write counted."""
    source = torch.empty(num_bytes // 4, device=device).normal_()
    target = torch.empty_like(source)
    return lambda: [target.copy_(source)], 2 * source.nbytes


def product(size: int, device: torch.device, dtype: torch.dtype) -> Amount:
    """Of two random square matrices."""
    a, b = (torch.empty(size, size, device=device, dtype=dtype).normal_() for _ in range(2))
    out = torch.empty_like(a)
    return lambda: [torch.mm(a, b, out=out)], 2 * size**3


def rate(amount: Amount, meter: CpuMeter, rounds: int) -> float:
    """A second, of device time."""
    step, number = amount
    step()
    times = take_turns({"": contender(step, meter)}, meter, rounds)[""]
    return number / statistics.median(device for _, device in times)
