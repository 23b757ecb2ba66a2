"""How the weights of a network lie over the processes of a job: a copy in each (DDP), or a part in each (FSDP2)."""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_layers import GradientCheckpointingLayer

from instructrl import distributed
from instructrl.models.base import device_of
from instructrl.models.settings import Spread

NetworkT = TypeVar("NetworkT", bound=nn.Module)
T = TypeVar("T")

# Where they are kept: beside the network's own modules, not among them.
_REPLICA, _UNSHARDED = "_instructrl_replica", "_instructrl_unsharded"


def spread(network: nn.Module, layout: Spread, **methods: Any) -> None:
    """Prepare a network, in place, for a job of several processes; for a single one nothing is done.

    methods: the names of those that are called with gradient, with something that each can be called with; none for a
    network that does not learn. From then on their backward passes add the gradients of all processes up, without
    dividing by their number: see `synchronised`. With "fsdp" each process holds its part of every weight: a block of
    the network is whole while it works, and what runs without gradient takes the network by `unsharded`.
    """
    if distributed.size_of_job() == 1 or next(network.parameters(), None) is None:
        return
    if layout == "fsdp":
        _shard(network, methods)
    elif methods:
        _replicate(network, methods)


class _Called(nn.Module):
    """A network whose forward pass is any of its methods: DDP knows no other."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, method, *inputs):
        return method(*inputs)


def _replicate(network: nn.Module, methods: Mapping[str, Any]) -> None:
    replica = DistributedDataParallel(_Called(network), gradient_as_bucket_view=True)
    replica.broadcast_buffers = False  # the argument of that name is on its way out, and its successor is new
    replica.register_comm_hook(None, _sum)
    device = device_of(network)
    for name, example in methods.items():
        setattr(network, name, _through(replica, getattr(network, name)))
        _settle(replica, getattr(network, name)(example.to(device)))
    vars(network)[_REPLICA] = replica


def _settle(replica: DistributedDataParallel, outputs: Any) -> None:
    """After its first backward pass DDP lays the gradients out anew, in the order in which they came, and with that
    sums them in another one. Done here, the first step of a run that goes on rounds as it did before it was stopped."""
    found = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.stack([0.0 * x.float().sum() for x in found if x is not None]).sum().backward()
    replica.zero_grad(set_to_none=True)


def _through(replica: DistributedDataParallel, method):
    def call(*inputs):
        return replica(method, *inputs) if torch.is_grad_enabled() else method(*inputs)

    return call


def _sum(state: None, bucket: dist.GradBucket):  # pyright: ignore[reportPrivateImportUsage]
    """Losses are divided by counts of the whole batch, so gradients are added up."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None  # this process is in the group
    return work.get_future().then(lambda found: found.value()[0])


def _shard(network: nn.Module, methods: Iterable[str]) -> None:
    nothing = {id(p): nn.Parameter(p.new_empty(0)) for p in network.parameters()}
    shared = {id(buffer): buffer for buffer in network.buffers()}
    vars(network)[_UNSHARDED] = copy.deepcopy(network, {**nothing, **shared}).eval()
    # What is returned is a view, of the states of a response, and nothing is done to it in place.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view")
    # Said where: the default is the kind of accelerator that torch was built for.
    mesh = init_device_mesh(next(network.parameters()).device.type, (distributed.size_of_job(),))
    for block in network.modules():
        if isinstance(block, GradientCheckpointingLayer):
            fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    for part in network.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo has no other
    for name in methods:
        if name != "forward":
            register_fsdp_forward_method(network, name)


def synchronised(
    parts: Sequence[T], networks: Sequence[nn.Module], *, unfinished: Sequence[nn.Module] = ()
) -> Iterator[T]:
    """The parts of a batch, one after the other; with the last one's backward pass the gradients are added up.

    networks: that learn from them. unfinished: those of them that learn from other parts after these. Every process
    goes through the same number of parts.
    """
    for number, part in enumerate(parts, start=1):
        waiting = unfinished if number == len(parts) else networks
        with ExitStack() as stack:
            for network in waiting:
                if (replica := vars(network).get(_REPLICA)) is not None:
                    stack.enter_context(replica.no_sync())
            yield part


@contextmanager
def unsharded(network: NetworkT) -> Iterator[NetworkT]:
    """The network with all of its weights, on the device of this process, for use without gradient.

    Every process enters this; a network that lies whole in each is given as it is.
    """
    found = vars(network).get(_UNSHARDED)
    if found is None:
        with _on_device(network):
            yield network
    elif next(found.parameters()).numel():  # already, further out
        yield found
    else:
        shards = dict(network.named_parameters())
        for name, parameter in found.named_parameters():
            parameter.data = _full(shards[name].detach())
        try:
            yield found
        finally:
            for parameter in found.parameters():
                parameter.data = parameter.data.new_empty(0)


@contextmanager
def _on_device(network: nn.Module) -> Iterator[None]:
    before, here = device_of(network), distributed.device()
    if here is None or here == before:
        yield
        return
    network.to(here)
    try:
        yield
    finally:
        network.to(before)


def _full(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def whole_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients together, a scalar: the same in every process."""
    return _full(nn.utils.get_total_norm(gradients))


def gathered(state: Any) -> Any:
    """A nested state with its tensors whole: in the main process, which gets them on the CPU; None in the others."""
    if isinstance(state, Mapping):
        return {key: gathered(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered(value) for value in state)
    if not isinstance(state, DTensor):
        return state
    found = state.full_tensor()
    return found.cpu() if distributed.is_main() else None


def placed_like(tensors: Mapping[Any, Any], own: Mapping[Any, Any]) -> dict[Any, Any]:
    """Whole tensors, cut where this process's own of the same name are. Anything else stays as it is."""
    return {key: _cut(value, own.get(key)) for key, value in tensors.items()}


def _cut(value: Any, own: Any) -> Any:
    if not isinstance(own, DTensor) or not isinstance(value, Tensor) or value.shape != own.shape:
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
