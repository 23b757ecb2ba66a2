"""Checks at the boundary of the operations. Each names the argument, what was found and what is accepted."""

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from instructrl.ops import dispatch, transforms

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# What C++ has no whole number for.
_TOO_MANY = 2**63
_FLOATING_TEXT = "float32, bfloat16, float16, float64"
IGNORED_TOKEN = -100
"""The id of labels that do not count, as `torch.nn.functional.cross_entropy` has it, where no mask is given."""


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 as soon as one of the tensors is float64, else float32."""
    for tensor in tensors:
        if tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32


def is_tensor(name: str, found: object) -> None:
    """A tensor, and not what could be made into one: that would be a copy at each call."""
    if not isinstance(found, Tensor):
        raise TypeError(f"{name}: found {type(found).__name__}, accepted is a tensor")


def floating(name: str, tensor: Tensor) -> None:
    """A floating-point tensor of a dtype that the operations compute with."""
    is_tensor(name, tensor)
    if tensor.dtype not in FLOATING:
        raise ValueError(f"{name}: found dtype {tensor.dtype}, accepted are {_FLOATING_TEXT}")


def dims(name: str, tensor: Tensor, num_dims: int, meaning: str) -> None:
    """A tensor of so many dimensions."""
    is_tensor(name, tensor)
    if tensor.dim() != num_dims:
        raise ValueError(f"{name}: found shape {tuple(tensor.shape)}, accepted is {meaning}")


def like(name: str, tensor: Tensor, model_name: str, shape: tuple[int, ...], device: torch.device) -> None:
    """The shape and the device of another argument; nothing is broadcast."""
    is_tensor(name, tensor)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: found shape {tuple(tensor.shape)}, accepted is {shape}, as {model_name} has it")
    if tensor.device != device:
        raise ValueError(f"{name}: found device {tensor.device}, accepted is {device}, where {model_name} is")


def floating_like(name: str, tensor: Tensor, model_name: str, model: Tensor) -> None:
    """A floating-point tensor of the shape and on the device of another argument."""
    floating(name, tensor)
    like(name, tensor, model_name, tuple(model.shape), model.device)


def mask_like(name: str, mask: Tensor, model_name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A bool tensor, True where an element counts; it is made of one whose numbers are exactly 0 and 1."""
    is_tensor(name, mask)
    if mask.dtype.is_complex:
        raise ValueError(f"{name}: found dtype {mask.dtype}, accepted are bool, and 0 and 1 of other dtypes")
    like(name, mask, model_name, shape, device)
    if mask.dtype == torch.bool:
        return mask
    found, accepted = "a number other than 0 and 1", "bool (True where an element counts), 0 and 1"
    require(name, (mask == 0) | (mask == 1), found, accepted)
    return mask != 0


def allowed_ids(allowed: Tensor | None, logits: Tensor, *, in_each_row: bool = False) -> Tensor | None:
    """`[V]` ids that are allowed, for `[..., V]` logits; one at least. in_each_row: `[..., V]` is accepted too."""
    if allowed is None:
        return None
    is_tensor("allowed", allowed)
    of_all = allowed.dim() == 1 or not in_each_row
    model = ("logits (last dimension)", tuple(logits.shape[-1:])) if of_all else ("logits", tuple(logits.shape))
    allowed = mask_like("allowed", allowed, *model, logits.device)
    require("allowed", allowed.any(-1), "a row where none is allowed", "rows with at least one")
    return allowed


def per_token(name: str, x: Tensor, model_name: str, model: Tensor) -> Tensor:
    """A tensor of the shape of `model`, or one number a sequence of its [..., T] tokens: [...] or [..., 1].

    Returns a view. Compiled kernels read contiguous memory and make a copy of one that repeats its numbers.
    """
    is_tensor(name, x)
    is_tensor(model_name, model)
    shape = tuple(model.shape)
    if model.dim() < 2 or x.shape == shape:
        return x
    if x.shape == shape[:-1]:
        x = x.unsqueeze(-1)
    if x.shape != (*shape[:-1], 1):
        accepted = f"accepted is {shape}, as {model_name} has it, or {shape[:-1]} or {(*shape[:-1], 1)}"
        raise ValueError(f"{name}: found shape {tuple(x.shape)}, {accepted} (one number a sequence)")
    return x.expand(shape)


def not_overlapping(name: str, tensor: Tensor) -> None:
    """A tensor that may be written to: no two of its elements share memory, as far as strides show."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                found = f"shape {tuple(tensor.shape)} with strides {tensor.stride()}"
                raise ValueError(f"{name}: found {found}, accepted is a tensor whose elements share no memory")
            reach += (size - 1) * stride


def flag(name: str, value: object) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: found {type(value).__name__}, accepted is True or False")


def _whole(value: object) -> object:
    """The int that a float or a number of NumPy's is; anything else as it is."""
    if isinstance(value, int | torch.SymInt | Tensor):
        return value
    if getattr(value, "shape", None) == ():
        value = value.item()  # pyright: ignore[reportAttributeAccessIssue]
    return int(value) if isinstance(value, float) and value % 1 == 0 else value


def count(name: str, value: object) -> int:
    """An int >= 0 that C++ has, or a symbol for one; 5.0 and NumPy's integers are read as such."""
    found = _whole(value)
    if isinstance(found, bool) or not isinstance(found, int | torch.SymInt):
        raise TypeError(f"{name}: found {value!r} of type {type(value).__name__}, accepted is a whole number")
    if not 0 <= found < _TOO_MANY:
        raise ValueError(f"{name}: found {found}, accepted are whole numbers from 0 to below 2**63")
    return found  # pyright: ignore[reportReturnType]


def _is_number(name: str, value: object) -> None:
    if type(value) is float or type(value) is int:
        return
    if isinstance(value, Tensor):  # to read it would wait for the device
        raise TypeError(f"{name}: found a tensor of shape {tuple(value.shape)}, accepted is a number")
    found = value.item() if getattr(value, "shape", None) == () else value  # pyright: ignore[reportAttributeAccessIssue]
    # Under torch.compile numbers are symbols. True is no number here: a cap or a clamp of 1 is not what it asks for.
    if isinstance(found, bool) or not isinstance(found, (numbers.Real, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{name}: found {value!r}, accepted is a number".replace("\n", " "))


def within(name: str, value: float, low: float, high: float) -> None:
    """A number in a closed interval; NaN is in none."""
    _is_number(name, value)
    if not low <= value <= high:
        raise ValueError(f"{name}: found {value}, accepted is a number from {low:g} to {high:g}")


def fraction(
    name: str, value: float | Tensor, device: torch.device, num_sequences: int | None = None
) -> float | Tensor:
    """A number from 0 to 1, as a float; or a tensor that is not waited for: 0-dim or, with num_sequences, one each.

    A 0-dim tensor on the CPU is read. Values of the others are checked where `require` does.
    """
    if not isinstance(value, Tensor):
        within(name, value, 0.0, 1.0)
        return float(value)
    on_cpu = value.dim() == 0 and value.device.type == "cpu" and not value.dtype.is_complex
    if on_cpu and not torch.compiler.is_compiling() and not dispatch.transformed():
        within(name, value.item(), 0.0, 1.0)
        return float(value.item())
    shapes = [(), *([] if num_sequences is None else [(num_sequences,)])]
    if value.device != device or value.dtype not in FLOATING or tuple(value.shape) not in shapes:
        found = f"a tensor of shape {tuple(value.shape)}, dtype {value.dtype}, device {value.device}"
        many = "" if num_sequences is None else f", or one of shape ({num_sequences},)"
        raise TypeError(f"{name}: found {found}, accepted is a number from 0 to 1, a 0-dim tensor of it{many}")
    require(name, (value >= 0.0) & (value <= 1.0), "a number outside", "numbers from 0 to 1")
    return value.detach()


def finite(name: str, value: float) -> None:
    """A finite number."""
    _is_number(name, value)
    # Not math.isfinite: torch.compile cannot trace it where numbers are symbols.
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name}: found {value}, accepted is a finite number")


def above(name: str, value: float, low: float) -> None:
    """A finite number above another."""
    _is_number(name, value)
    if not low < value < math.inf:
        raise ValueError(f"{name}: found {value}, accepted is a finite number above {low:g}")


def positive(name: str, value: float) -> None:
    """A finite number above 0."""
    above(name, value, 0.0)


def temperature(value: float) -> None:
    """A finite number above 0."""
    positive("temperature", value)


def one_of(name: str, value: object, accepted: Sequence[str]) -> None:
    """One of the names of a table."""
    if not isinstance(value, str) or value not in accepted:
        raise ValueError(f"{name}: found {value!r}, accepted are {', '.join(accepted)}")


def settings(name: str, value: object, kind: type) -> None:
    """A record of settings."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: found {type(value).__name__}, accepted is {kind.__name__}")


def num_tokens(value: int | Tensor | None, device: torch.device) -> int | Tensor | None:
    """A denominator of a loss, as `_divisor` takes it."""
    return _divisor("num_tokens", "the mask's own count", value, device)


def num_sequences(value: int | Tensor | None, device: torch.device) -> int | Tensor | None:
    """A number of sequences, as `_divisor` takes it."""
    return _divisor("num_sequences", "those of which a token counts", value, device)


def _divisor(name: str, none: str, value: int | Tensor | None, device: torch.device) -> int | Tensor | None:
    """None, a whole number >= 0 (`count`), or a 0-dim tensor of numbers on the device of the other arguments."""
    others = f"a 0-dim tensor of numbers on the same device, or None ({none})"
    accepted = f"accepted is a whole number >= 0, {others}"
    if value is None:
        return None
    if isinstance(value, Tensor):
        if value.dim() != 0 or value.dtype == torch.bool or value.dtype.is_complex or value.device != device:
            found = f"shape {tuple(value.shape)}, dtype {value.dtype}, device {value.device}"
            raise ValueError(f"{name}: found a tensor of {found}; {accepted}")
        return value
    found = _whole(value)
    if isinstance(found, bool) or not isinstance(found, int | torch.SymInt):
        raise ValueError(f"{name}: found {value!r} of type {type(value).__name__}; {accepted}")
    if not 0 <= found < _TOO_MANY:
        raise ValueError(f"{name}: found {found}; {accepted}")
    return found  # pyright: ignore[reportReturnType]


def require(name: str, valid: Tensor, found: str, accepted: str) -> None:
    """A condition on the values of a tensor, read where `dispatch.checks_values` says so.

    valid: [...] bool. Under torch.compile the check becomes an assertion in the graph.
    """
    if not dispatch.checks_values(valid.device.type):
        return
    message = f"{name}: found {found}, accepted are {accepted}"
    if torch.compiler.is_compiling():
        if dispatch.transformed():  # The assertion does not know batches.
            return
        torch._assert_async(valid.all(), message)  # pyright: ignore[reportPrivateImportUsage]
    elif not bool(transforms.below(valid).all()):
        raise ValueError(message)


def values_within(name: str, x: Tensor, low: float, high: float, found: str, accepted: str) -> None:
    """Every element from `low` to below `high`, read as in `require`; NaN is nowhere."""
    if not dispatch.checks_values(x.device.type):
        return
    if torch.compiler.is_compiling():
        require(name, (x >= low) & (x < high), found, accepted)
    elif x.numel() > 0:
        # One pass that makes two numbers: comparing, combining and reducing would be a third of a small call.
        smallest, largest = torch.aminmax(transforms.below(x))
        if not (low <= smallest.item() and largest.item() < high):
            raise ValueError(f"{name}: found {found}, accepted are {accepted}")


def token_ids(tokens: Tensor, mask: Tensor | None, num_classes: int, name: str = "tokens") -> Tensor | None:
    """Integer token ids; those that count are in range wherever values are read.

    Returns the mask. Where none is given, tokens of `IGNORED_TOKEN` do not count; None where all of them are known to.
    """
    is_tensor(name, tokens)
    if tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name}: found dtype {tokens.dtype}, accepted are int64, int32")
    reads = dispatch.checks_values(tokens.device.type)
    if mask is None:
        # The check that would be made anyway finds out that no mask is needed.
        if reads and not torch.compiler.is_compiling() and _are_ids(tokens, num_classes):
            return None
        mask = tokens != IGNORED_TOKEN
    if reads:
        found, accepted = "an id out of range where the mask is True", f"ids from 0 to {num_classes - 1}"
        values_within(name, torch.where(mask, tokens, 0), 0, num_classes, found, accepted)
    return mask


def _are_ids(tokens: Tensor, num_classes: int) -> bool:
    if tokens.numel() == 0:
        return True
    smallest, largest = torch.aminmax(transforms.below(tokens))
    return smallest.item() >= 0 and largest.item() < num_classes


def weights(weights: Tensor, mask: Tensor) -> None:
    """Floating, as the mask; finite and not negative where the mask is True, read as in `require`."""
    floating("weights", weights)
    like("weights", weights, "mask", tuple(mask.shape), mask.device)
    if not dispatch.checks_values(mask.device.type):
        return
    counted = torch.where(mask, weights, 0.0)
    found, accepted = "one that is negative, infinite or NaN where the mask is True", "finite numbers from 0"
    values_within("weights", counted, 0.0, math.inf, found, accepted)


def sequence_offsets(cu_seqlens: Tensor, num_elements: int, device: torch.device) -> None:
    """[B + 1] int32 or int64 offsets that start at 0, never fall and end at the number of packed elements."""
    is_tensor("cu_seqlens", cu_seqlens)
    if cu_seqlens.dtype not in (torch.int64, torch.int32) or cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        found = f"shape {tuple(cu_seqlens.shape)}, dtype {cu_seqlens.dtype}"
        raise ValueError(f"cu_seqlens: found {found}, accepted is [B + 1] of int32 or int64")
    if cu_seqlens.device != device:
        raise ValueError(f"cu_seqlens: found device {cu_seqlens.device}, accepted is {device}")
    if not dispatch.checks_values(device.type):
        return
    valid = (cu_seqlens[1:] >= cu_seqlens[:-1]).all() & (cu_seqlens[0] == 0) & (cu_seqlens[-1] == num_elements)
    require("cu_seqlens", valid, "other offsets", f"offsets that rise from 0 to {num_elements}, the packed length")


def group_ids(groups: Tensor, num_groups: object, num_rows: int, device: torch.device, model_name: str) -> int:
    """[B] integer ids of the groups of rows, from 0 to below `num_groups` wherever values are read; their number."""
    is_tensor("groups", groups)
    if groups.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"groups: found dtype {groups.dtype}, accepted are int64, int32")
    like("groups", groups, f"{model_name} (first dimension)", (num_rows,), device)
    number = count("num_groups", num_groups)
    if not 0 < number < 2**31:
        raise ValueError(f"num_groups: found {number}, accepted are whole numbers from 1 to below 2**31")
    values_within("groups", groups, 0, number, "an id out of range", f"ids from 0 to {number - 1}")
    return number
