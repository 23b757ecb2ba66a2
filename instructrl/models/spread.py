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
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_layers import GradientCheckpointingLayer

from instructrl import distributed
from instructrl.models.base import attach, device_of
from instructrl.models.masters import (
    halve,
    halved,
    has_masters,
    in_float32,
    keep_masters,
    kept_parts,
    learned,
    restore,
)
from instructrl.models.passes import applied
from instructrl.models.paths import OF_A_NETWORK
from instructrl.models.settings import PassConfig

NetworkT = TypeVar("NetworkT", bound=nn.Module)
T = TypeVar("T")

# Where they are kept: beside the network's own modules, not among them.
_REPLICA, _UNSHARDED = "_instructrl_replica", "_instructrl_unsharded"
_AS_THEY_ARE = MixedPrecisionPolicy()


def spread(network: nn.Module, passes: PassConfig, **methods: Any) -> None:
    """Prepare a network, in place, for its passes: its weights in their precision, and over the processes of a job.

    passes: settled. methods: the names of those that are called with gradient, with something that each can be called
    with; none for a network that does not learn. From then on their backward passes add the gradients of all processes
    up, without dividing by their number: see `synchronised`. With "fsdp" each process holds its part of every weight: a
    block of the network is whole while it works, and what runs without gradient takes the network by `unsharded`.

    Weights in bfloat16 have float32 masters where they learn: `models.masters`. Parts of weights ("fsdp") are float32
    and so masters themselves; what is gathered of them is bfloat16. Raises ValueError for a network that does not run
    so.
    """
    if next(network.parameters(), None) is None:
        return
    restore(network)
    sharded = passes.spread == "fsdp" and distributed.size_of_job() > 1
    if passes.weights == "bfloat16" and not methods:
        halve(network)
    elif passes.weights == "bfloat16" and not sharded:
        keep_masters(network)
    if passes.weights == "bfloat16" and methods:
        _check_runs(network, passes, methods)
    if sharded:
        _shard(network, methods, low=passes.weights == "bfloat16" and bool(halved(network)))
    elif methods and distributed.size_of_job() > 1 and not has_masters(network):
        _replicate(network, methods)


def _check_runs(network: nn.Module, passes: PassConfig, methods: Mapping[str, Any]) -> None:
    device = device_of(network)
    try:
        with applied(passes, [network]), torch.no_grad():
            for name, example in methods.items():
                getattr(network, name)(example.to(device))
    except OF_A_NETWORK as error:
        found = (str(error) or type(error).__name__).partition("\n")[0]
        raise ValueError(
            f"passes.weights: found bfloat16, in which this network does not run ({found}); accepted is float32"
        ) from error


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
        attach(network, name, _through(replica, getattr(network, name)))
        _settle(replica, getattr(network, name)(example.to(device)))
    attach(network, _REPLICA, replica)


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


def _shard(network: nn.Module, methods: Iterable[str], *, low: bool) -> None:
    """low: whether weights are bfloat16 where they are whole."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if low else _AS_THEY_ARE
    nothing = {id(p): nn.Parameter(p.new_empty(0)) for p in network.parameters()}
    if low:
        nothing |= {id(p): nn.Parameter(p.new_empty(0, dtype=torch.bfloat16)) for p in halved(network)}
    shared = {id(buffer): buffer for buffer in network.buffers()}
    attach(network, _UNSHARDED, copy.deepcopy(network, {**nothing, **shared}).eval())
    # What is returned is a view, of the states of a response, and nothing is done to it in place.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view")
    # Said where: the default is the kind of accelerator that torch was built for.
    mesh = init_device_mesh(next(network.parameters()).device.type, (distributed.size_of_job(),))
    for part in kept_parts(network) if low else ():
        fully_shard(part, mesh=mesh)
    for block in network.modules():
        if isinstance(block, GradientCheckpointingLayer):
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)
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
    """The parts of a batch, one after the other; with the last one's backward pass the gradients are added up, or, of
    masters, behind it, in float32.

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
    for network in networks:
        if has_masters(network) and not any(network is other for other in unfinished):
            _add_up([p.grad for p in learned(network) if p.grad is not None])


def _add_up(gradients: Sequence[Tensor]) -> None:
    """Of all processes, which have the same ones."""
    if distributed.size_of_job() == 1:
        return
    waits = [dist.all_reduce(gradient, async_op=True) for gradient in gradients]
    for wait in waits:
        assert wait is not None  # this process is in the group
        wait.wait()


@contextmanager
def unsharded(network: NetworkT) -> Iterator[NetworkT]:
    """The network with all of its weights, as its passes have them, on the device of this process, for use without
    gradient.

    Every process enters this; a network that lies whole in each is given as it is.
    """
    found = vars(network).get(_UNSHARDED)
    if found is None:
        with _on_device(network):
            yield network
    elif next(found.parameters()).numel():  # already, further out
        yield found
    else:
        with _filled(found, network, {name: p.dtype for name, p in found.named_parameters()}):
            yield found


@contextmanager
def exact(network: NetworkT) -> Iterator[NetworkT]:
    """The same with the weights as they are learned: of those in bfloat16 the masters. For what is saved and measured;
    not inside of `unsharded`."""
    found = vars(network).get(_UNSHARDED)
    if found is None:
        with _on_device(own := in_float32(network)):
            yield own
    else:
        with _filled(found, network, {name: p.dtype for name, p in network.named_parameters()}):
            yield found


@contextmanager
def _filled(empty: nn.Module, network: nn.Module, dtypes: Mapping[str, torch.dtype]) -> Iterator[None]:
    shards, before = dict(network.named_parameters()), [p.data for p in empty.parameters()]
    for name, parameter in empty.named_parameters():
        parameter.data = _full(shards[name].detach().to(dtypes[name]))
    try:
        yield
    finally:
        for parameter, nothing in zip(empty.parameters(), before, strict=True):
            parameter.data = nothing


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
