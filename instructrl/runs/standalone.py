"""What a single step needs when it is run by itself."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instructrl.data.encoding import Encoder
from instructrl.data.tokenizers import load_tokenizer
from instructrl.models.backbone import hide_loading_bars
from instructrl.models.policy import Policy
from instructrl.runs.recipe import Recipe
from instructrl.runs.steps import Workspace
from instructrl.trainers.log import RunLog


def open_workspace(
    folder: Path, model: str, recipe: Recipe, seed: int, config: Mapping[str, Any]
) -> tuple[Workspace, Policy]:
    """A workspace with the model's own tokenizer, and the model. The configuration is saved beside the metrics."""
    hide_loading_bars()
    encoder = Encoder(load_tokenizer(model), recipe.limits)
    policy = Policy.load(model)
    log = RunLog(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return Workspace(folder=folder, log=log, encoder=encoder, recipe=recipe, seed=seed, config=config), policy
