"""A nested state as files: its tensors in safetensors, everything else in JSON. Nothing is pickled.

The JSON mirrors the nesting; `{"tensor": NAME}` stands for a tensor, and where two places share one, as tied weights
do, for the same one. Integers, floats and texts are exact. Of a state in parts (`models.parts`) each process of a job
writes a file with its rows, for which `{"rows": NAME}` stands; any number of processes reads them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from instructrl import distributed
from instructrl.models.parts import Rows

TENSORS, STRUCTURE = "tensors.safetensors", "state.json"
_ANY_TENSORS = "tensors*.safetensors"
_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def file_of_part(number: int, count: int) -> str:
    """Where the process of this number, of so many, writes its rows."""
    return TENSORS if count == 1 else f"tensors-{number + 1:05d}-of-{count:05d}.safetensors"


def write_state(folder: Path, state: Any) -> list[str]:
    """Write this process's files into a folder that exists. Returns their names: those of all processes are a state.

    state: mappings with texts or integers as keys, lists, tuples, tensors, numbers, texts, None.
    Raises TypeError for anything else, ValueError for a number that is not finite.
    """
    tensors: dict[str, Tensor] = {}
    structure = _encode(state, "", tensors, {})
    main, count = distributed.is_main(), distributed.size_of_job() if _in_parts(tensors) else 1
    if count == 1 and not main:
        return []
    file = file_of_part(distributed.rank(), count)
    save_file({name: _alone(x) for name, x in tensors.items() if main or isinstance(x, DTensor)}, folder / file)
    if not main:
        return [file]
    (folder / STRUCTURE).write_text(json.dumps(structure, allow_nan=False), encoding="utf-8")
    return [file, STRUCTURE]


def read_state(folder: Path) -> Any:
    """What was written; of tensors in parts `Rows`. Raises ValueError where the files do not hold a state."""
    try:
        files = tuple(sorted(folder.glob(_ANY_TENSORS)))
        with safe_open(files[0], "pt") as opened:
            return _decode(json.loads((folder / STRUCTURE).read_text(encoding="utf-8")), opened, files)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{folder}: found no state ({type(error).__name__}: {error})") from error


def state_bytes(state: Any) -> int:
    """About what this process's files will take."""
    tensors: dict[str, Tensor] = {}
    structure = _encode(state, "", tensors, {})
    if not distributed.is_main():
        tensors = {name: x for name, x in tensors.items() if isinstance(x, DTensor)}
    return sum(_local(x).nbytes for x in tensors.values()) + len(json.dumps(structure)) + 200 * len(tensors)


def _alone(x: Tensor) -> Tensor:
    """On the CPU, contiguous, in a storage of its own: safetensors takes nothing else."""
    x = _local(x.detach()).cpu().contiguous()
    return x if x.untyped_storage().nbytes() == x.nbytes else x.clone()


def _local(x: Tensor) -> Tensor:
    return x.to_local() if isinstance(x, DTensor) else x


def _in_parts(tensors: Mapping[str, Tensor]) -> bool:
    return any(isinstance(x, DTensor) for x in tensors.values())


def _encode(value: Any, place: str, tensors: dict[str, Tensor], seen: dict[tuple, str]) -> Any:
    if isinstance(value, Tensor):
        own = _local(value)
        same = (own.data_ptr(), value.shape, value.stride(), value.dtype)
        name = seen.setdefault(same, place) if own.numel() else place
        tensors[name] = value
        if isinstance(value, DTensor):
            return {"rows": [name, list(value.shape), _NAMES[value.dtype]]}
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


def _decode(value: Any, opened: Any, files: tuple[Path, ...]) -> Any:
    """opened: the first of the files."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return opened.get_tensor(content)
    if kind == "rows":
        name, shape, dtype = content
        return Rows(name, files, tuple(shape), _DTYPES[dtype])
    if kind == "mapping":
        return {key: _decode(item, opened, files) for key, item in content}
    return {"list": list, "tuple": tuple}[kind](_decode(item, opened, files) for item in content)


def differences(found: Any, own: Any, place: str = "") -> str | None:
    """The first place where one nested state has a tensor of another shape or dtype than the other, in words."""
    if isinstance(found, Tensor | Rows) and isinstance(own, Tensor):
        shapes = [f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in (found, own)]
        return None if shapes[0] == shapes[1] else f"{place}: found {shapes[0]}, accepted is {shapes[1]}"
    if isinstance(found, Mapping) and isinstance(own, Mapping):
        if found.keys() != own.keys():
            other = sorted(map(str, found.keys() ^ own.keys()))[0]
            return f"{place}/{other}: found in one of the two alone"
        return next((text for key in own if (text := differences(found[key], own[key], f"{place}/{key}"))), None)
    return None
