"""What becomes of the classes of a row before their softmax: tanh(tanh_slope * x) where CAPPED, -inf where not allowed.

A kernel without a cap and without a mask of ids is compiled without any of it.
"""

# ruff: noqa: N803  (constants of a kernel are written in capitals, as everywhere in Triton)

from instructrl.kernels.triton.elementary import tanh, tanh_derivative

import triton
import triton.language as tl


@triton.jit
def map_classes(x, k, inside, allowed, tanh_slope, CAPPED: tl.constexpr):
    """x: float32 logits, -inf where not inside. k: their ids. allowed: where the mask of ids is, or None."""
    if CAPPED:
        x = tl.where(x == float("-inf"), x, tanh(x * tanh_slope))
    if allowed is not None:
        x = tl.where(tl.load(allowed + k, mask=inside, other=0) != 0, x, float("-inf"))
    return x


@triton.jit
def map_slope(x, k, inside, allowed, tanh_slope, CAPPED: tl.constexpr):
    """The derivative of `map_classes` by x, 0 where that is -inf."""
    slope = tl.full(x.shape, 1.0, tl.float32)
    if CAPPED:
        slope = tl.where(x == float("-inf"), 0.0, tanh_slope * tanh_derivative(x * tanh_slope))
    if allowed is not None:
        slope = tl.where(tl.load(allowed + k, mask=inside, other=0) != 0, slope, 0.0)
    return slope
