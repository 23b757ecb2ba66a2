"""Names the Triton backend, which TRITON_INTERPRET=1 lets run on the CPU. For INSTRUCTRL_TEST_PLUGIN.

Reductions and scans by a function of ours take the interpreter a call for each element, half of the time of all cases.
Here they are trees over whole arrays, as on a GPU: neighbours are combined in their order, so any associative function
may be given.
"""

import functools

import numpy as np
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

BACKEND = "triton"


def _combined(self, arrays, dtypes):
    """combine_fn of a left and a right tuple of arrays, as arrays."""
    found = self.combine_fn.fn(*(self.to_tensor(x, dtype) for x, dtype in zip(arrays, dtypes * 2, strict=True)))
    return [x.handle.data for x in (found if isinstance(found, tuple) else (found,))]


def _scan(self, inputs):
    dtypes = [x.dtype for x in inputs]
    arrays = [np.moveaxis(x.handle.data.copy(), self.axis, 0) for x in inputs]
    step = 1
    while step < len(arrays[0]):
        # Whole arrays, because a block's size is a power of two; what came around the end is not taken.
        found = _combined(self, [*(np.roll(x, step, axis=0) for x in arrays), *arrays], dtypes)
        arrays = [np.concatenate([x[:step], y[step:]]) for x, y in zip(arrays, found, strict=True)]
        step *= 2
    whole = [np.ascontiguousarray(np.moveaxis(x, 0, self.axis)) for x in arrays]
    return [self.to_tensor(x, dtype) for x, dtype in zip(whole, dtypes, strict=True)]


def _reduce(self, inputs):
    assert self.axis is not None, "no kernel here reduces over all axes at once"
    inputs, axis = self.unravel(inputs, self.axis)
    dtypes = [x.dtype for x in inputs]
    arrays = [np.moveaxis(x.handle.data, axis, 0) for x in inputs]
    while len(arrays[0]) > 1:
        arrays = _combined(self, [*(x[0::2] for x in arrays), *(x[1::2] for x in arrays)], dtypes)
    arrays = [np.moveaxis(x, 0, axis) if self.keep_dims else x[0] for x in arrays]
    return [self.to_tensor(x, dtype) for x, dtype in zip(arrays, dtypes, strict=True)]


def _no_overflow(self, left, right, binary_op):
    """Fails where an integer result does not fit its type, as the interpreter's own: that takes eight operations."""
    scalar = left.type.scalar
    if scalar.int_bitwidth < 64:
        exact = _EXACT[binary_op.__name__](left.handle.data.astype(np.int64), right.handle.data.astype(np.int64))
        low, high = scalar.get_int_min_value(), scalar.get_int_max_value()
        assert bool(((low <= exact) & (exact <= high)).all()), f"{scalar} overflow in {binary_op.__name__}"


def _np_dtype(dtype):
    """As the interpreter's own, which makes a table of all types for each value."""
    if dtype.name not in _NP_DTYPES:
        _NP_DTYPES[dtype.name] = _new_np_dtype(dtype)
    return _NP_DTYPES[dtype.name]


_EXACT = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
_NP_DTYPES, _new_np_dtype = {}, interpreter._get_np_dtype
TritonSemantic.binary_op_sanitize_overflow_impl = _no_overflow
interpreter._get_np_dtype = _np_dtype
# The language is replaced for each call of a function and put back after each launch: once is enough here.
interpreter._patch_lang = functools.cache(interpreter._patch_lang)
interpreter._LangPatchScope.restore = lambda self: None
interpreter.ScanOps.generic_scan = _scan
interpreter.ReduceOps.generic_reduce = _reduce
