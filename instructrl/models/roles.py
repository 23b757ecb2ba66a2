"""Roles as a run needs them: loaded on the base that they share, and ready to learn."""

from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from instructrl.model_names import is_adapter_folder
from instructrl.models.adapters import add_adapter, check_targets, has_adapter, lora_of, require_peft
from instructrl.models.base import another, share
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.models.settings import AdapterConfig

RoleT = TypeVar("RoleT", Policy, RewardModel)

ALL_WEIGHTS = AdapterConfig()


def load_policy(
    path: str | Path, tokenizer: PreTrainedTokenizerBase, adapter: AdapterConfig, *, in_parts: bool = False
) -> Policy:
    """A policy that can learn what `adapter` says: on a base, or with all weights its own.

    in_parts: each process of the job reads its rows of all weights alone; a base is whole in each.

    The folder of an adapter gives that adapter, which is what learns. Raises ValueError where it is another one than
    `adapter` asks for, where the network has no layers of the names that it gives, and as `Policy.load` does.
    """
    dtype = None if adapter.rank is None else adapter.base_dtype
    in_parts = in_parts and adapter.rank is None
    return _fitting(path, Policy.load(path, tokenizer, base_dtype=dtype, in_parts=in_parts), adapter)


def load_reward_model(path: str | Path, adapter: AdapterConfig, *, in_parts: bool = False) -> RewardModel:
    """The same for a reward model."""
    dtype = None if adapter.rank is None else adapter.base_dtype
    in_parts = in_parts and adapter.rank is None
    return _fitting(path, RewardModel.load(path, base_dtype=dtype, in_parts=in_parts), adapter)


def on_shared_base(role: Policy | RewardModel, adapter: AdapterConfig) -> None:
    """Where adapters are asked for: make the role's weights a base's, in place. Nothing where they are already."""
    if adapter.rank is not None and role.base is None:
        require_peft()
        own = () if isinstance(role, Policy) else (role.network.get_submodule("score"),)
        role.base = share(network_of(role), getattr(torch, adapter.base_dtype), own=own)
        role.to(role.base.device)


def learner(role: RoleT, adapter: AdapterConfig = ALL_WEIGHTS, seed: int = 0) -> RoleT:
    """Another one, which a trainer may change, move to the device of this process, and in a job leave a part of alone.

    Of a role on a base its adapter learns, a new one where it has none. seed: of a new adapter.
    """
    made = another(role)
    if made.base is not None and adapter.rank is not None and not has_adapter(made):
        add_adapter(network_of(made), adapter, seed)
    return made


def network_of(role: Policy | RewardModel) -> PreTrainedModel:
    """The transformers network of a role."""
    return role.lm if isinstance(role, Policy) else role.network


def _fitting(path: str | Path, role: RoleT, adapter: AdapterConfig) -> RoleT:
    if adapter.rank is None:
        return role
    if is_adapter_folder(path):
        lora = lora_of(network_of(role))
        wanted: dict[str, tuple[object, object]] = {
            "rank": (lora.r, adapter.rank),
            "alpha": (lora.lora_alpha, adapter.scale),
        }
        if adapter.targets != AdapterConfig().targets and isinstance(lora.target_modules, set):
            wanted["targets"] = ", ".join(sorted(lora.target_modules)), ", ".join(sorted(adapter.targets))
        for name, (found, asked) in wanted.items():
            if found != asked:
                raise ValueError(
                    f"adapter.{name}: found {asked}, accepted is the {found} of the adapter in {path}; "
                    f"`instructrl merge` makes whole weights of it, on which a new one can be trained"
                )
        return role
    on_shared_base(role, adapter)
    check_targets(network_of(role), adapter)
    return role
