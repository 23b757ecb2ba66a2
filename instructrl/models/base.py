"""A base: the weights of one network, in memory once, on which any number of roles stand.

A role is a module tree of its own. Of what it computes with, the tensors of its base are the same objects as those of
the other roles, and no parameters: they lie in the modules as plain attributes. So whatever walks over parameters
(optimisers, averages, clipping, casts and moves, DDP and FSDP2, checkpoints) sees what the role has of its own, which
is what trains, and nothing else. What belongs to a base is known by identity, never by `requires_grad`.
"""

import copy
import hashlib
import weakref
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from instructrl import distributed
from instructrl.models.parts import remember_copies

NetworkT = TypeVar("NetworkT", bound=nn.Module)

# Where a module keeps the names of its tensors that belong to a base, and of what a job hung onto it.
BASED, _ATTACHED = "_instructrl_based", "_instructrl_attached"


class Base:
    """Tensors that roles share, and a network without any of its own for each model that was seen on them.

    trunk: by name below the head, which every class has. digest: of the content of the trunk, whatever the dtype.
    heads: of all models with this trunk, which may differ there.
    """

    def __init__(self, trunk: Mapping[str, Tensor], digest: str) -> None:
        self.trunk, self.digest = dict(trunk), digest
        self.heads: list[Tensor] = []
        self._bare: dict[tuple[type[nn.Module], str], PreTrainedModel] = {}

    @property
    def tensors(self) -> list[Tensor]:
        """Each once, tied or not."""
        return list({id(x): x for x in (*self.trunk.values(), *self.heads)}.values())

    @property
    def dtype(self) -> torch.dtype:
        return next(x.dtype for x in self.trunk.values() if x.is_floating_point())

    @property
    def device(self) -> torch.device:
        return next(iter(self.trunk.values())).device

    def keep(self, network: PreTrainedModel) -> None:
        """Remember a network that has nothing but the base's tensors, for `language_model`."""
        assert not any(True for _ in network.parameters())
        self._bare.setdefault((type(network), source_of(network)), self.copy(network))

    def language_model(self, source: str) -> PreTrainedModel | None:
        """That of a folder or name, with nothing of its own; None where it was not seen.

        By its content it is not known: others on the trunk may have another head, or be configured otherwise.
        """
        for (_, name), network in self._bare.items():
            if name == source and network.get_output_embeddings() is not None:
                return self.copy(network)
        return None

    def copy(self, module: NetworkT) -> NetworkT:
        """Another module tree on the same tensors."""
        return copy.deepcopy(module, self.spared())

    def spared(self) -> dict[int, Any]:
        """What `copy.deepcopy` is given for the base to stay one."""
        return {id(self): self, **{id(x): x for x in self.tensors}}


# Those that a role stands on, by digest, dtype and device.
_BASES: weakref.WeakValueDictionary[tuple[str, torch.dtype, torch.device], Base] = weakref.WeakValueDictionary()


def loaded_base(digest: str, dtype: torch.dtype) -> Base | None:
    """A base that is in memory already, on the device of this process."""
    here = distributed.device() or torch.device("cpu")
    return _BASES.get((digest, dtype, here))


class Role(nn.Module):
    """What is trained or asked. base: that its network stands on, None where all weights are its own."""

    base: Base | None = None

    @property
    def device(self) -> torch.device:
        return device_of(self)

    def __deepcopy__(self, memo: dict[int, Any]):
        """Another role on the same base; without one, a copy of everything. What a job hung onto it stays behind."""
        if self.base is not None:
            memo.update(self.base.spared())
        remember_copies(self, memo)
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        left = (_ATTACHED, *vars(self).get(_ATTACHED, ()))
        made.__setstate__(copy.deepcopy({name: x for name, x in vars(self).items() if name not in left}, memo))
        return made


def attach(module: nn.Module, name: str, value: Any) -> None:
    """Hang something onto a module that is none of its own modules, and that no copy of a role has."""
    vars(module)[name] = value
    vars(module)[_ATTACHED] = (*vars(module).get(_ATTACHED, ()), name)


RoleT = TypeVar("RoleT", bound=Role)


def another(role: RoleT) -> RoleT:
    """A role of its own that starts as this one: adapters and heads are copies that learn, the base is the same.

    Of a role whose weights are all its own, a copy of everything.
    """
    made = copy.deepcopy(role)
    return made if made.base is None else made.requires_grad_(True)


def base_of(module: nn.Module) -> Base | None:
    """That a role stands on."""
    found = getattr(module, "base", None)
    return found if isinstance(found, Base) else None


def device_of(module: nn.Module) -> torch.device:
    """Where a module is to be given its inputs."""
    base = base_of(module)
    return next(module.parameters()).device if base is None else base.device


def home_of(module: nn.Module) -> torch.device:
    """Where a module will lie when it is trained: on the device of this process; outside of `joined` where it is."""
    return distributed.device() or device_of(module)


def content_of(module: nn.Module) -> dict[str, Any]:
    """What tells a module from others: its state, and for a role on a base what it stands on."""
    base = base_of(module)
    if base is None:
        return module.state_dict()
    heads = {id(x) for x in base.heads}
    used = {name: x for name, x in named_weights(module) if id(x) in heads}
    return {"base": base.digest, "base_dtype": str(base.dtype), "heads": used, "own": module.state_dict()}


def source_of(network: PreTrainedModel) -> str:
    """The folder or name that a network came from, "" where there is none."""
    return network.config.name_or_path or ""


def named_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and tensors of a base alike, by the names of the former; tied ones once."""
    seen: set[int] = set()
    for name, tensor in every_named_weight(module):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def every_named_weight(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The same, tied ones by each of their names."""
    for path, part in module.named_modules():
        own = {**part._parameters, **{name: vars(part)[name] for name in vars(part).get(BASED, ())}}
        yield from ((f"{path}.{name}" if path else name, x) for name, x in own.items() if x is not None)


def share(network: PreTrainedModel, dtype: torch.dtype | None = None, *, own: Collection[nn.Module] = ()) -> Base:
    """Make the weights of a network a base's, in place: one that is in memory where its content is the same.

    network: with parameters, none of them learned by anybody. dtype: of the base; None keeps what there is. own:
    modules that stay the network's, as a scalar head does.
    """
    here = distributed.device() or next(network.parameters()).device
    trunk = {id(p): name for name, p in network.base_model.named_parameters()}
    digest = trunk_digest(network)
    dtype = dtype or next(p.dtype for p in network.base_model.parameters() if p.is_floating_point())
    base = _BASES.get((digest, dtype, here))
    known = {} if base is None else base.trunk
    made: dict[int, Tensor] = {}

    def of_the_base(parameter: nn.Parameter) -> Tensor:
        if (found := known.get(trunk.get(id(parameter), ""))) is not None:
            return found
        cast = parameter.detach().to(here, dtype if parameter.is_floating_point() else None)
        seen = [] if base is None or id(parameter) in trunk else base.heads
        return next((x for x in seen if x.dtype == cast.dtype and torch.equal(x, cast)), cast)

    spared = {id(part) for module in own for part in module.modules()}
    heads: list[Tensor] = []
    for part in network.modules():
        if id(part) in spared:
            continue
        names = [name for name, parameter in part._parameters.items() if parameter is not None]
        for name in names:
            parameter = part._parameters.pop(name)
            assert parameter is not None
            if id(parameter) not in made:
                made[id(parameter)] = of_the_base(parameter)
                if id(parameter) not in trunk:
                    heads.append(made[id(parameter)])
            vars(part)[name] = made[id(parameter)]
        vars(part)[BASED] = tuple(names)
    nn.Module.to(network, here)
    if base is None:
        base = Base({name: made[key] for key, name in trunk.items()}, digest)
        _BASES[digest, dtype, here] = base
    base.heads = list({id(x): x for x in (*base.heads, *heads)}.values())
    if not own:
        base.keep(network)
    return base


@torch.no_grad()
def unshare(module: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Make what belongs to a base parameters again, in place: the same tensors, which are not to be changed, or copies
    of another dtype."""
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name in vars(part).pop(BASED, ()):
            tensor = vars(part).pop(name)
            if id(tensor) not in made:
                cast = tensor.to(dtype) if tensor.is_floating_point() else tensor
                made[id(tensor)] = nn.Parameter(cast, requires_grad=False)
            part._parameters[name] = made[id(tensor)]


def trunk_digest(network: PreTrainedModel) -> str:
    """Of names, shapes and numbers below the head; a dtype that holds the same numbers gives the same."""
    digest = hashlib.sha256()
    content = dict(named_weights(network.base_model))
    content |= {name: x for name, x in network.base_model.state_dict().items() if name not in content}
    for name in sorted(content):
        x = content[name].detach()
        x = x.float() if x.is_floating_point() else x
        digest.update(f"{name}{list(x.shape)}".encode())
        digest.update(x.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
