"""How the weights of a network lie over the processes of a job: a copy in each (DDP), or a part in each (FSDP2)."""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_layers import GradientCheckpointingLayer

from instructrl import distributed
from instructrl.models.base import attach, device_of, home_of
from instructrl.models.heap import give_back
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
from instructrl.models.parts import Rows, cut, is_in_parts, join, mesh_of, move, of_rows, own_range, part_of, replace
from instructrl.models.passes import applied, settled
from instructrl.models.paths import OF_A_NETWORK
from instructrl.models.settings import PassConfig, Precision

NetworkT = TypeVar("NetworkT", bound=nn.Module)
T = TypeVar("T")

# Where they are kept: beside the network's own modules, not among them.
_REPLICA, _UNSHARDED = "_instructrl_replica", "_instructrl_unsharded"
_AS_THEY_ARE = MixedPrecisionPolicy()


def spread(network: nn.Module, passes: PassConfig, **methods: Any) -> None:
    """Prepare a network, in place, for its passes: its weights in their precision, on the device of this process, and
    over the processes of a job.

    passes: settled. methods: the names of those that are called with gradient, with something that each can be called
    with; none for a network that does not learn. From then on their backward passes add the gradients of all processes
    up, without dividing by their number: see `synchronised`. With "fsdp" each process holds its part of every weight: a
    block of a network that learns is whole while it works, and what runs without gradient takes the network by
    `unsharded`.

    Weights in bfloat16 have float32 masters where they learn: `models.masters`. Parts of weights ("fsdp") are float32
    and so masters themselves; what is gathered of them is bfloat16. Raises ValueError for a network that does not run
    so.
    """
    if next(network.parameters(), None) is None:
        return
    restore(network)
    sharded = passes.spread == "fsdp" and distributed.size_of_job() > 1
    (cut if sharded else join)(network)
    # Rounded where they lie: on the device there may be no room for them in float32.
    if passes.weights == "bfloat16" and not methods:
        halve(network)
    if (here := distributed.device()) is not None:
        move(network, here)
    if passes.weights == "bfloat16" and methods and not sharded:
        keep_masters(network)
    if passes.weights == "bfloat16" and methods:
        _check_runs(network, passes, methods)
    if sharded and methods:
        _shard(network, methods, low=passes.weights == "bfloat16" and bool(halved(network)))
    elif methods and distributed.size_of_job() > 1 and not has_masters(network):
        _replicate(network, methods)


def spread_for_use(network: nn.Module, weights: Precision | None = None) -> None:
    """Prepare a network, in place, that is asked and never learns. weights: None is by the device, as in training."""
    spread(network, settled(PassConfig(weights=weights), home_of(network)))


def _check_runs(network: nn.Module, passes: PassConfig, methods: Mapping[str, Any]) -> None:
    device = device_of(network)
    try:
        with torch.no_grad(), in_turn(network) as whole, applied(passes, [whole]):
            for name, example in methods.items():
                getattr(whole, name)(example.to(device))
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
    """low: whether weights are bfloat16 where they are whole. FSDP2 takes whole ones or such as take no memory: it is
    given the latter, then the parts."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if low else _AS_THEY_ARE
    attach(network, _UNSHARDED, _without_weights(network, halved(network) if low else ()))
    # What is returned is a view, of the states of a response, and nothing is done to it in place.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view")
    parts = {name: p for name, p in network.named_parameters(remove_duplicate=False)}
    mesh = mesh_of(device_of(network))
    replace(network, lambda p: nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta"), p.requires_grad))
    for part in kept_parts(network) if low else ():
        fully_shard(part, mesh=mesh)
    for block in network.modules():
        if isinstance(block, GradientCheckpointingLayer):
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)
    network.load_state_dict(parts, strict=False, assign=True)  # not strict: buffers are where they were
    for part in network.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo has no other
    for name in methods:
        if name != "forward":
            register_fsdp_forward_method(network, name)


def _without_weights(network: NetworkT, low: Iterable[nn.Parameter] = ()) -> NetworkT:
    """A copy for `unsharded` to fill. low: those that will be bfloat16 there."""
    halves = {id(p) for p in low}

    def nothing(p: nn.Parameter) -> nn.Parameter:
        dtype = torch.bfloat16 if id(p) in halves else p.dtype
        return nn.Parameter(torch.empty(0, dtype=dtype, device=p.device), requires_grad=False)

    shared = {id(buffer): buffer for buffer in network.buffers()}
    return copy.deepcopy(network, {**{id(p): nothing(p) for p in network.parameters()}, **shared}).eval()


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
    found: Any = _bare(network)
    if found is None:
        with _on_device(network):
            yield network
    elif next(found.parameters()).numel():  # already, further out
        yield found
    else:
        with _filled(found, network, {name: p.dtype for name, p in found.named_parameters()}):
            yield found


@contextmanager
def in_turn(network: NetworkT) -> Iterator[NetworkT]:
    """The same, of a network in parts a block at a time: it is whole while it works, and what is in no block all along.

    The least memory, and all weights travel with every pass. Every process does the same passes inside.
    """
    found: Any = vars(network).get(_UNSHARDED) or (_without_weights(network) if is_in_parts(network) else None)
    if found is None or next(found.parameters()).numel():
        with unsharded(network) as whole:
            yield whole
        return
    parts = dict(network.named_parameters())
    names = {id(p): name for name, p in found.named_parameters()}
    blocks = [block for block in found.modules() if isinstance(block, GradientCheckpointingLayer)]
    of_block = {block: {names[id(p)]: p for p in block.parameters()} for block in blocks}
    inner = {name for own in of_block.values() for name in own}
    with ExitStack() as stack:
        for block, own in of_block.items():
            nothing = {name: p.data for name, p in own.items()}
            fill, empty = _filler(own, parts), _filler(own, nothing)
            stack.callback(block.register_forward_pre_hook(lambda *_, fill=fill: fill()).remove)
            stack.callback(block.register_forward_hook(lambda *_, empty=empty: empty(), always_call=True).remove)
        rest = {name: p for name, p in found.named_parameters() if name not in inner}
        stack.enter_context(_filled(found, network, {name: p.dtype for name, p in rest.items()}))
        yield found


def _filler(own: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> Callable[[], None]:
    def fill() -> None:
        for name, parameter in own.items():
            parameter.data = _full(weights[name].detach().to(parameter.dtype))

    return fill


@contextmanager
def exact(network: NetworkT, *, main_alone: bool = False) -> Iterator[NetworkT]:
    """The same with the weights as they are learned: of those in bfloat16 the masters. For what is saved and measured;
    not inside of `unsharded`. main_alone: the other processes have an empty one, whose weights they only send."""
    found: Any = _bare(network)
    if found is None:
        with _on_device(own := in_float32(network)):
            yield own
    else:
        dtypes = {name: p.dtype for name, p in network.named_parameters()}
        with _filled(found, network, dtypes, kept=distributed.is_main() or not main_alone):
            yield found


def _bare(network: nn.Module) -> nn.Module | None:
    """Of a network in parts its copy without weights; None of others."""
    if _UNSHARDED not in vars(network) and is_in_parts(network):
        attach(network, _UNSHARDED, _without_weights(network))
    return vars(network).get(_UNSHARDED)


@contextmanager
def _filled(
    empty: nn.Module, network: nn.Module, dtypes: Mapping[str, torch.dtype], *, kept: bool = True
) -> Iterator[None]:
    """Those of the parameters that have a dtype."""
    parts, parameters = dict(network.named_parameters()), dict(empty.named_parameters())
    before = {name: parameters[name].data for name in dtypes}
    for name, dtype in dtypes.items():
        weight = _full(parts[name].detach().to(dtype))
        if kept:
            parameters[name].data = weight
    try:
        yield
    finally:
        for name, nothing in before.items():
            parameters[name].data = nothing
        give_back()


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


def placed_like(tensors: Mapping[Any, Any], own: Mapping[Any, Any]) -> dict[Any, Any]:
    """Whole tensors, cut where this process's own of the same name are. Anything else stays as it is."""
    return {key: _cut(value, own.get(key)) for key, value in tensors.items()}


def _cut(value: Any, own: Any) -> Any:
    if isinstance(value, Rows):
        return (
            of_rows(value.read(*own_range(value.shape[0])), value.shape) if isinstance(own, DTensor) else value.read()
        )
    if not isinstance(own, DTensor) or not isinstance(value, Tensor) or value.shape != own.shape:
        return value
    return part_of(value)
