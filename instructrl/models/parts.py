"""Networks in parts: of each parameter a process of a job holds its rows alone, from the file on.

A network in parts is a module tree like any other whose parameters are DTensors, cut along their first dimension as
FSDP2 cuts them. It can be copied, compared, trained (`models.spread` makes an FSDP network of it) and saved; nothing
can be computed with it as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from transformers import PretrainedConfig, PreTrainedModel

from instructrl import distributed


def is_in_parts(network: nn.Module) -> bool:
    return any(isinstance(p, DTensor) for p in network.parameters())


def cut(network: nn.Module) -> None:
    """Leave of each parameter this process's rows, in place. Numbers without a dimension stay whole."""
    replace(network, lambda p: p if isinstance(p, DTensor) or not p.dim() else _parameter(part_of(p.detach()), p))


def join(network: nn.Module) -> None:
    """Make a network in parts whole again, in place, in every process."""
    replace(network, lambda p: _parameter(p.full_tensor(), p) if isinstance(p, DTensor) else p)


def remember_copies(network: nn.Module, memo: dict[int, Any]) -> None:
    """Let `copy.deepcopy` have copies of the parts: those that it makes take twice the memory on the way."""
    for p in network.parameters():
        if isinstance(p, DTensor) and id(p) not in memo:
            memo[id(p)] = _parameter(of_rows(p.to_local().detach().clone(), p.shape), p)


def replace(network: nn.Module, function: Callable[[nn.Parameter], nn.Parameter]) -> None:
    """Put what a function makes of each parameter in its place, of tied ones once; each is let go of before the next is
    made."""
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(parameter, []).append((module, name))
    while places:
        parameter, found = places.popitem()
        made = function(parameter)
        for module, name in found:
            module._parameters[name] = made


def part_of(whole: Tensor) -> DTensor:
    """This process's rows of a tensor, on its device, in a storage of their own."""
    first, end = own_range(len(whole))
    return of_rows(whole[first:end].clone(), whole.shape)


def of_rows(rows: Tensor, shape: Sequence[int]) -> DTensor:
    """The tensor of that shape of which this process has these rows."""
    mesh = mesh_of(distributed.device() or rows.device)
    shape = torch.Size(shape)
    strides = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(rows.to(mesh.device_type), mesh, [Shard(0)], run_check=False, shape=shape, stride=strides)


def move(network: nn.Module, device: torch.device) -> None:
    """In place. Parts are on the device of their process; what is no parameter may not be."""
    if not is_in_parts(network):
        network.to(device)
        return
    for module in network.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


@dataclass(frozen=True, slots=True)
class Rows:
    """A tensor that lies in several files, rows behind rows, under the same name; it is read when asked for."""

    name: str
    files: tuple[Path, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self, first: int = 0, end: int | None = None) -> Tensor:
        """Rows first to end."""
        end, found, start = self.shape[0] if end is None else end, [], 0
        for file in self.files:
            with safe_open(file, "pt") as opened:
                saved = opened.get_slice(self.name)
                count = saved.get_shape()[0]
                if start < end and first < start + count:
                    found.append(saved[max(first - start, 0) : min(end - start, count)])
                start += count
        return torch.cat(found) if found else torch.empty(0, *self.shape[1:], dtype=self.dtype)


def own_range(count: int) -> tuple[int, int]:
    """Which of so many rows are this process's: first, end."""
    size = -(-count // distributed.size_of_job())
    return min(count, size * distributed.rank()), min(count, size * (distributed.rank() + 1))


def mesh_of(device: torch.device) -> DeviceMesh:
    """All processes of the job. Said where: the default is the kind of accelerator that torch was built for."""
    return init_device_mesh(device.type, (distributed.size_of_job(),))


def read_parts(
    kind: Any, config: PretrainedConfig, files: Mapping[str, Path]
) -> tuple[PreTrainedModel, dict[str, Any]] | None:
    """A network of which each process reads its rows alone, in float32, and what transformers says of the names.

    kind: a transformers class. files: of safetensors, by the names of their tensors. transformers is given tensors of
    the right shapes that take no memory, and puts each of them where it belongs. None where it makes new ones of them,
    as it does of the experts of most mixtures: such a network is read whole.
    """
    stand_ins = {}
    for file in set(files.values()):
        with safe_open(file, "pt") as opened:
            stand_ins |= {name: _stand_in(opened.get_slice(name)) for name in files if files[name] == file}
    names = {x.data_ptr(): name for name, x in stand_ins.items()}
    network, found = kind.from_pretrained(
        None,
        config=config,
        state_dict=dict(stand_ins),
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported, and refused by whoever asked
    )
    if found["missing_keys"] or found["mismatched_keys"]:
        return network, found
    if any(p.data_ptr() not in names for p in network.parameters()):
        return None

    def read(x: Tensor, *rows: slice) -> Tensor:
        name = names[x.data_ptr()]
        # Opened for each: the pages that were read of a file count as memory until it is closed.
        with safe_open(files[name], "pt") as opened:
            saved = opened.get_slice(name)[rows] if rows else opened.get_tensor(name)
            return saved.to(x.dtype, copy=True)

    def own(parameter: nn.Parameter) -> nn.Parameter:
        if not parameter.dim():
            return _parameter(read(parameter), parameter)
        return _parameter(of_rows(read(parameter, slice(*own_range(len(parameter)))), parameter.shape), parameter)

    replace(network, own)
    for module in network.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.data_ptr() in names:
                module._buffers[name] = read(buffer)
    return network, found


_DTYPES = {"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32}


def _stand_in(saved: Any) -> Tensor:
    """Of the shape of a tensor in a file, with an address that no other has; floating-point numbers are float32."""
    integer = saved.get_dtype()[0] in "BUI" and saved.get_dtype()[:2] != "BF"
    dtype = _DTYPES.get(saved.get_dtype(), torch.int64) if integer else torch.float32
    return torch.empty(1, dtype=dtype).reshape(()).expand(saved.get_shape())


def _parameter(x: Tensor, like: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(x, requires_grad=like.requires_grad)
