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


def open_workspace(folder: Path, model: str, recipe: Recipe, config: Any) -> tuple[Workspace, Policy]:
    """A workspace with the model's own tokenizer, and the model.

    config: the command's options, a dataclass with a `seed`; kept in the folder.
    """
    hide_loading_bars()
    encoder = Encoder(load_tokenizer(model), recipe.limits)
    policy = Policy.load(model)
    check_context(policy.lm, recipe.limits.total)
    log = RunLog(open_folder(folder, config))
    work = Workspace(folder=folder, log=log, encoder=encoder, recipe=recipe, seed=config.seed, config=asdict(config))
    return work, policy
