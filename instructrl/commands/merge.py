"""`instructrl merge`: whole weights of an adapter and its base."""

from pathlib import Path

import torch

from instructrl.commands.settings import MergeCommand
from instructrl.data.tokenizers import load_tokenizer
from instructrl.durable import whole_folder
from instructrl.model_names import is_adapter_folder, refuse_no_model
from instructrl.models.adapter_folders import is_of_reward_model
from instructrl.models.adapters import rounding_of_merged, whole
from instructrl.models.backbone import hide_loading_bars
from instructrl.models.folders import room_for
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel


def main(config: MergeCommand) -> int:
    """Carry out `instructrl merge`. Returns the exit code."""
    hide_loading_bars()
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out: found {out}, which holds something, accepted is a new folder")
    refuse_no_model(config.model)
    if not is_adapter_folder(config.model):
        found = "whole weights" if Path(config.model).is_dir() else "no such folder"
        raise ValueError(f"model {config.model}: found {found}, accepted is the folder of an adapter")
    tokenizer = load_tokenizer(config.model)
    reward = is_of_reward_model(config.model)
    role = RewardModel.load(config.model) if reward else Policy.load(config.model, tokenizer)
    assert role.base is not None
    dtype = role.base.dtype if config.dtype is None else getattr(torch, config.dtype)
    rounding = rounding_of_merged(role, dtype)
    with room_for(out), whole_folder(out) as aside:
        whole(role, dtype).save(aside, tokenizer)
    print(f"{out}: {str(dtype).removeprefix('torch.')}, {rounding}")
    return 0
