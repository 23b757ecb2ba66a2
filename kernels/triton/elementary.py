"""Elementary functions where `tl.exp` is not accurate enough, or where Triton has none.

`tl.exp` is the hardware's base-2 exponential of a rounded product: its relative error grows with the argument, which a
sum of probabilities does not notice and a ratio at its clip bound does. What is here uses additions, products and bit
patterns only, so that every GPU and the interpreter compute alike.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
# log(2) in two parts; the first has so few bits that its products with exponents are exact.
_LOG_2_HIGH = tl.constexpr(0.693359375)
_LOG_2_LOW = tl.constexpr(-2.12194440054690583e-4)


@triton.jit
def _power_of_2(exponent):
    """2^exponent as float32 for integers from -126 to 127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _split(x):
    """x as `exponent * log(2) + rest` with |rest| of at most log(2) / 2: the exponent and `expm1(rest)`."""
    exponent = tl.floor(x * LOG2_E + 0.5)
    rest = (x - exponent * _LOG_2_HIGH) - exponent * _LOG_2_LOW
    # The Taylor series: past its eighth term it is below a hundredth of the last bit.
    tail = rest * (1.0 / 40320.0) + 1.0 / 5040.0
    tail = tail * rest + 1.0 / 720.0
    tail = tail * rest + 1.0 / 120.0
    tail = tail * rest + 1.0 / 24.0
    tail = tail * rest + 1.0 / 6.0
    tail = tail * rest + 0.5
    return exponent.to(tl.int32), rest + rest * rest * tail


@triton.jit
def exp(x):
    """e^x to the last bit or two; infinity, 0 and NaN where they belong."""
    x = tl.where(x > 89.0, 89.0, tl.where(x < -105.0, -105.0, x))
    exponent, growth = _split(x)
    half = exponent >> 1
    # Two factors, because one would leave the range of float32 before the result does.
    return (1.0 + growth) * _power_of_2(half) * _power_of_2(exponent - half)


@triton.jit
def expm1(x):
    """e^x - 1 without cancellation near 0."""
    x = tl.where(x > 89.0, 89.0, tl.where(x < -30.0, -30.0, x))
    exponent, growth = _split(x)
    # Half of the power and twice the sum: 2^128 alone would be infinite.
    half_power = _power_of_2(exponent - 1)
    return 2.0 * (half_power * growth + (half_power - 0.5))


@triton.jit
def tanh(x):
    """-m / (2 + m) with m = expm1(-2 |x|): nothing cancels near 0."""
    m = expm1(-2.0 * tl.abs(x))
    size = tl.div_rn(-m, 2.0 + m)
    return tl.where(x < 0.0, -size, size)


@triton.jit
def tanh_derivative(x):
    """1 - tanh(x)^2 as 4 e / (1 + e)^2 with e = exp(-2 |x|): nothing cancels far out."""
    e = exp(-2.0 * tl.abs(x))
    return tl.div_rn(4.0 * e, (1.0 + e) * (1.0 + e))


@triton.jit
def log1p(x):
    """log(1 + x) for finite x from 0 on: the quotient gives back what rounding took from 1 + x."""
    y = 1.0 + x
    return tl.where(y == 1.0, x, tl.div_rn(tl.log(y) * x, tl.where(y == 1.0, 1.0, y - 1.0)))


@triton.jit
def larger(a, b):
    """The larger of two, NaN when one is, as torch.maximum."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
