"""Estimates of a KL from a log ratio, as `instructrl.ops.ppo_terms.kl_term` has them."""

# ruff: noqa: N803  (constants of a kernel are written in capitals, as everywhere in Triton)

from instructrl.kernels.triton.elementary import expm1

import triton
import triton.language as tl


@triton.jit
def clamped(x, limit):
    """x between minus and plus the limit, NaN where x is."""
    above = tl.maximum(x, -limit, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(above, limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def kl_estimate(log_ratio, input_clamp, output_clamp, ESTIMATOR: tl.constexpr):
    """The estimate at a place of KL_ESTIMATORS; a clamp that is none is infinite."""
    d = clamped(log_ratio, input_clamp)
    if ESTIMATOR == 0:
        estimate = d
    elif ESTIMATOR == 1:
        estimate = 0.5 * d * d
    elif ESTIMATOR == 2:
        estimate = expm1(-d) + d
    else:
        estimate = tl.abs(d)
    return clamped(estimate, output_clamp)
