"""A nested state as two files: its tensors in safetensors, everything else in JSON. Nothing is pickled.

The JSON mirrors the nesting; `{"tensor": NAME}` stands for a tensor, and where two places share one, as tied weights
do, for the same one. Integers, floats and texts are exact.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

TENSORS, STRUCTURE = "tensors.safetensors", "state.json"


def write_state(folder: Path, state: Any) -> None:
    """Write both files into a folder that exists.

    state: mappings with texts or integers as keys, lists, tuples, tensors, numbers, texts, None.
    Raises TypeError for anything else, ValueError for a number that is not finite.
    """
    tensors: dict[str, Tensor] = {}
    structure = _encode(state, "", tensors, {})
    save_file({name: _alone(x) for name, x in tensors.items()}, folder / TENSORS)
    (folder / STRUCTURE).write_text(json.dumps(structure, allow_nan=False), encoding="utf-8")


def read_state(folder: Path) -> Any:
    """What was written. Raises ValueError where the files do not hold a state."""
    try:
        tensors = load_file(folder / TENSORS)
        return _decode(json.loads((folder / STRUCTURE).read_text(encoding="utf-8")), tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}: found no state ({type(error).__name__}: {error})") from error


def state_bytes(state: Any) -> int:
    """About what the files will take."""
    tensors: dict[str, Tensor] = {}
    structure = _encode(state, "", tensors, {})
    return sum(x.nbytes for x in tensors.values()) + len(json.dumps(structure)) + 200 * len(tensors)


def _alone(x: Tensor) -> Tensor:
    """On the CPU, contiguous, in a storage of its own: safetensors takes nothing else."""
    x = x.detach().cpu().contiguous()
    return x if x.untyped_storage().nbytes() == x.nbytes else x.clone()


def _encode(value: Any, place: str, tensors: dict[str, Tensor], seen: dict[tuple, str]) -> Any:
    if isinstance(value, Tensor):
        same = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        name = seen.setdefault(same, place) if value.numel() else place
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        items = value.items()
        if not all(isinstance(key, str | int) for key in value):
            raise TypeError(f"{place}: found keys {list(value)}, accepted are texts and integers")
        return {"mapping": [[key, _encode(item, f"{place}/{key}", tensors, seen)] for key, item in items]}
    if isinstance(value, list | tuple):
        parts = [_encode(item, f"{place}/{i}", tensors, seen) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": parts}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{place}: found a {type(value).__name__}, accepted are tensors, numbers, texts and None")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "mapping":
        return {key: _decode(item, tensors) for key, item in content}
    return {"list": list, "tuple": tuple}[kind](_decode(item, tensors) for item in content)


def differences(found: Any, own: Any, place: str = "") -> str | None:
    """The first place where one nested state has a tensor of another shape or dtype than the other, in words."""
    if isinstance(found, Tensor) and isinstance(own, Tensor):
        shapes = [f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in (found, own)]
        return None if shapes[0] == shapes[1] else f"{place}: found {shapes[0]}, accepted is {shapes[1]}"
    if isinstance(found, Mapping) and isinstance(own, Mapping):
        if found.keys() != own.keys():
            other = sorted(map(str, found.keys() ^ own.keys()))[0]
            return f"{place}/{other}: found in one of the two alone"
        return next((text for key in own if (text := differences(found[key], own[key], f"{place}/{key}"))), None)
    return None
