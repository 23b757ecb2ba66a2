"""LoRA adapters (https://arxiv.org/abs/2106.09685) on a network of a base, by peft's layers.

A role has one adapter, which is always on. What it adds to a layer, `scale * B @ A`, is computed beside the layer where
there is a gradient, and inside of a copy of its weight (`merged`) where many passes are made without one.
"""

import copy
import importlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from instructrl.models.base import BASED, Role, RoleT, named_weights, unshare
from instructrl.models.settings import AdapterConfig

# peft's name of the one adapter that there is.
_NAME = "default"
_ALL = "all-linear"
_KINDS = (nn.Linear, Conv1D)


def require_peft() -> Any:
    """The package. Raises RuntimeError where it is not installed."""
    try:
        return importlib.import_module("peft")
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise RuntimeError(
            "adapter: found no peft, which is not installed; accepted is pip install instructrl[adapters], or a model "
            "and settings without adapters"
        ) from None


def add_adapter(network: PreTrainedModel, config: AdapterConfig, seed: int) -> None:
    """Put a new adapter into a network on a base, in place: it adds nothing yet, and is all that learns beside heads.

    seed: of its random half. Raises ValueError where the network has no layers by the names of `config.targets`.
    """
    peft = require_peft()
    assert config.rank is not None
    lora = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.scale,
        target_modules=_targets(network, config.targets),
        lora_dropout=0.0,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        inject(network, lora)


def check_targets(network: PreTrainedModel, config: AdapterConfig) -> None:
    """Raise ValueError where a network has no layers by the names of `config.targets`; before anything is written."""
    _targets(network, config.targets)


def inject(network: PreTrainedModel, lora: Any) -> None:
    """The layers of an adapter, in place. lora: peft's `LoraConfig`."""
    vars(network)["hf_device_map"] = {"": _device(network)}  # peft asks, and would look at parameters
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it stores matrices of Conv1D as they are
            require_peft().inject_adapter_in_model(lora, network, _NAME)
    except ImportError as error:  # it looks for other packages, and refuses some versions of them
        raise RuntimeError(f"adapter: peft does not work beside what is installed: {error}") from error
    finally:
        del vars(network)["hf_device_map"]
    for _, layer in adapter_layers(network):
        for part in (layer.lora_A, layer.lora_B):
            part.float()  # peft gives them the dtype of the base
    network.requires_grad_(True)  # all that is its own: peft stops heads


# Of peft's `LoraConfig`: what an `AdapterConfig` says, what peft fills in by itself, and noise that is off in training.
_SAID = ("r", "lora_alpha", "target_modules", "lora_dropout")
_FILLED_IN = ("task_type", "peft_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
              "peft_version", "runtime_config")  # fmt: skip


def adapter_of(network: PreTrainedModel, lora: Any) -> AdapterConfig:
    """The adapter that peft's `LoraConfig` describes; without names of layers, on those that peft takes for a network.

    Dropout is left out: a policy would differ from the one that sampled. Raises TypeError for another kind of adapter,
    ValueError for settings that an adapter here does not have.
    """
    peft = require_peft()
    if type(lora) is not peft.LoraConfig:
        raise TypeError(f"peft_config: found {type(lora).__name__}, accepted is peft's LoraConfig")
    plain = peft.LoraConfig().to_dict()
    for name, value in lora.to_dict().items():
        head = name == "modules_to_save" and list(value or ()) == ["score"]  # learns whatever is said
        if name not in (*_SAID, *_FILLED_IN) and value != plain.get(name) and not head:
            raise ValueError(f"peft_config: {name}: found {value!r}, accepted is {plain.get(name)!r}")
    targets = lora.target_modules
    if targets is None:
        known = importlib.import_module("peft.utils").TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
        kind = network.config.model_type
        if kind not in known:
            raise ValueError(f"peft_config: target_modules: found None, accepted for {kind} are names of linear layers")
        targets = known[kind]
    if isinstance(targets, str) and targets != _ALL:
        raise ValueError(f"peft_config: target_modules: found {targets!r}, accepted are names, and {_ALL!r}")
    names = (targets,) if isinstance(targets, str) else tuple(sorted(targets))
    return AdapterConfig(rank=lora.r, alpha=lora.lora_alpha, targets=names)


def adapter_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """peft's layers, by name."""
    for name, part in module.named_modules():
        if hasattr(part, "lora_A") and hasattr(part, "base_layer"):
            yield name, part


def has_adapter(module: nn.Module) -> bool:
    return next(adapter_layers(module), None) is not None


def lora_of(network: nn.Module) -> Any:
    """peft's `LoraConfig` of the adapter, None where there is none."""
    return getattr(network, "peft_config", {}).get(_NAME) if has_adapter(network) else None


def adapter_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """Those that a network has of its adapter, by the names of peft's files without their prefix."""
    return {
        f"{name}.{half}.weight": getattr(layer, half)[_NAME].weight
        for name, layer in adapter_layers(network)
        for half in ("lora_A", "lora_B")
    }


def named_products(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a pass multiplies by that is worth a thread: weights by name, but for the thin matrices of an adapter."""
    thin = {id(x) for x in adapter_weights(network).values()}
    yield from ((name, x) for name, x in named_weights(network) if id(x) not in thin)


def _targets(network: PreTrainedModel, wanted: tuple[str, ...]) -> list[str]:
    """The last names of the layers that get an adapter; whole names where others end likewise."""
    trunk = network.base_model
    places = {name for name, part in network.named_modules() if part is trunk}
    prefix = next((f"{name}." for name in places if name), "")
    linear = [f"{prefix}{name}" for name, part in trunk.named_modules() if _is_linear(part)]
    if prefix == "" and (head := network.get_output_embeddings()) is not None:
        linear = [name for name in linear if network.get_submodule(name) is not head]
    chosen = [name for name in linear if wanted == (_ALL,) or any(_is_named(name, target) for target in wanted)]
    unknown = [target for target in wanted if target != _ALL and not any(_is_named(name, target) for name in linear)]
    if unknown or not chosen:
        there = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linear)) or "none: it has no linear layers"
        name = network.config.name_or_path or network.config.model_type
        raise ValueError(
            f"adapter.targets: found {', '.join(unknown or wanted)}, accepted are linear layers of {name}: {there}"
        )
    last = sorted({name.rpartition(".")[2] for name in chosen})
    alike = [name for name, _ in network.named_modules() if name.rpartition(".")[2] in last]
    return last if set(alike) == set(chosen) else sorted(chosen)


def _is_linear(part: nn.Module) -> bool:
    """Whether its output is a product: some routers are linear layers that give more than that."""
    return isinstance(part, _KINDS) and type(part).forward in [kind.forward for kind in _KINDS]


def _is_named(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


@contextmanager
def merged(role: RoleT) -> Iterator[RoleT]:
    """The role as a network without adapter layers, for passes without gradient.

    The adapted layers are copies with `W + scale * B @ A` in the dtype of the base, and are gone afterwards; everything
    else is the base's, which stays as it is. A role without an adapter is given as it is.
    """
    yield _plain(role, None) if has_adapter(role) else role


def whole(role: RoleT, dtype: torch.dtype | None = None) -> RoleT:
    """The role with all weights as parameters, the adapter's share in them: what is not adapted is the base's own and
    is not to be changed. A role without a base is given as it is.

    dtype: of the weights but a head's; None is that of the base.
    """
    if role.base is None:
        return role
    made = _plain(role, dtype)
    made.base = None
    unshare(made, dtype)
    return made


def _plain(role: RoleT, dtype: torch.dtype | None) -> RoleT:
    """A copy whose adapted layers are plain ones with weights of their own."""
    made: RoleT = role.__deepcopy__({id(layer): _merged_layer(layer, dtype) for _, layer in adapter_layers(role)})
    for part in made.modules():
        vars(part).pop("peft_config", None)
    return made


@torch.no_grad()
def _merged_layer(layer: Any, dtype: torch.dtype | None) -> nn.Module:
    plain = layer.base_layer
    names = vars(plain)[BASED]
    made = copy.deepcopy(plain, {id(vars(plain)[name]): vars(plain)[name] for name in names})
    del vars(made)["weight"]
    vars(made)[BASED] = tuple(name for name in names if name != "weight")
    # A leaf that asks for a gradient: autocast keeps what it makes of those alone.
    made.weight = nn.Parameter(merged_weight(layer).to(dtype or plain.weight.dtype))
    return made


def merged_weight(layer: Any) -> Tensor:
    """The weight of an adapted layer with what the adapter adds, in float32 or the base's own precision above it."""
    weight = layer.base_layer.weight
    with torch.autocast(weight.device.type, enabled=False):
        return weight.to(torch.promote_types(weight.dtype, torch.float32)) + layer.get_delta_weight(_NAME)


@torch.no_grad()
def rounding_of_merged(role: Role, dtype: torch.dtype) -> str:
    """What becomes of an adapter in merged weights of a dtype, in words."""
    added = rounded = largest = 0.0
    count = 0
    for _, layer in adapter_layers(role):
        exact = merged_weight(layer)
        error = (exact.to(dtype).float() - exact).abs()
        added += float((exact - layer.base_layer.weight.float()).abs().sum())
        rounded, largest = rounded + float(error.sum()), max(largest, float(error.max()))
        count += exact.numel()
    words = f"the adapter changes {count:,} weights by {added / count:.3g} in the mean"
    if dtype == torch.float32:
        return words
    return f"{words}, rounding them by {rounded / count:.3g} in the mean and {largest:.3g} at most"


@torch.no_grad()
def without_idle_adapter(role: RoleT) -> RoleT:
    """In place, for a role that does not learn: layers whose adapter adds nothing are plain again."""
    for name, layer in list(adapter_layers(role)):
        if not bool(layer.lora_B[_NAME].weight.any()):
            role.set_submodule(name, layer.base_layer)
    return role


def check_places(network: PreTrainedModel, where: str) -> None:
    """Raise ValueError where an adapter has other layers than linear ones below the head. where: for the message."""
    inside = {id(part) for part in network.base_model.modules()}
    for name, layer in network.named_modules():
        plain = getattr(layer, "base_layer", None)
        if isinstance(plain, nn.Module) and not (id(layer) in inside and _is_linear(plain)):
            kind = type(plain).__name__
            raise ValueError(
                f"{where}: found an adapter of {name} ({kind}), accepted are linear layers below the output embedding"
            )


def _device(network: PreTrainedModel) -> torch.device:
    embeddings: Any = network.get_input_embeddings()
    return embeddings.weight.device


def copy_weights(network: nn.Module, given: Mapping[str, Tensor]) -> list[str]:
    """Take over an adapter's weights by their names. Returns what is wrong with them, a text each; then nothing was."""
    own = adapter_weights(network)
    wrong = [f"{name} is missing" for name in own if name not in given]
    wrong += [f"{name} has no place" for name in given if name not in own]
    wrong += [
        f"{name} is {list(given[name].shape)} and not {list(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    if not wrong:
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(given[name])
    return wrong
