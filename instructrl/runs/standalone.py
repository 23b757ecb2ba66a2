"""What a single step needs when it is run by itself."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from instructrl.data.encoding import Encoder
from instructrl.data.tokenizers import load_tokenizer
from instructrl.models.backbone import check_context, hide_loading_bars
from instructrl.models.policy import Policy
from instructrl.runs.folder import open_folder
from instructrl.runs.recipe import Recipe
from instructrl.runs.steps import Workspace
from instructrl.trainers.log import RunLog


def open_workspace(
    folder: Path, model: str, recipe: Recipe, config: Any, block_tokens: int = 0
) -> tuple[Workspace, Policy]:
    """A workspace with the model's own tokenizer, and the model.

    config: the command's options, a dataclass with a `seed`; kept in the folder. block_tokens: length of the blocks of
    plain text, where the step uses any. Raises ValueError where the model's context is too short.
    """
    hide_loading_bars()
    encoder = Encoder(load_tokenizer(model), recipe.limits)
    policy = Policy.load(model)
    check_context(policy.lm, max(recipe.limits.total, block_tokens))
    log = RunLog(open_folder(folder, config))
    work = Workspace(folder=folder, log=log, encoder=encoder, recipe=recipe, seed=config.seed, config=asdict(config))
    return work, policy


def check_tokenizer(path: str, encoder: Encoder) -> None:
    """Raise ValueError where a model that is to read the same tokens has another tokenizer."""
    if load_tokenizer(path).get_vocab() != encoder.tokenizer.get_vocab():
        raise ValueError(f"{path}: found another tokenizer than the model's, accepted is a model with the same one")
