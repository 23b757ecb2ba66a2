"""`instructrl rm`: step 2 on files."""

from collections.abc import Sequence
from dataclasses import dataclass

from instructrl.commands import options
from instructrl.data.encoding import Limits
from instructrl.data.readers import read_comparisons, read_demonstrations
from instructrl.evaluation.statistics import reward_accuracy
from instructrl.rollout.scoring import comparison_scores
from instructrl.runs.recipe import Recipe
from instructrl.runs.standalone import check_preferences, check_rows, load_start, open_workspace
from instructrl.runs.steps import fit_reward_model
from instructrl.trainers.checkpoints import CheckpointConfig
from instructrl.trainers.reward_model import RewardModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelCommand:
    """Train a reward model on all pairs of K-wise comparisons, then set its bias on demonstrations."""

    # what it starts from, usually the last SFT epoch: a transformers folder or name
    model: str
    # comparisons: a .jsonl, .jsonl.gz or .parquet file, or hub:NAME
    data: str
    # demonstrations, which are to score 0 on average
    demonstrations: str
    # folder for the model and metrics
    out: str
    # comparisons to measure the accuracy on
    validation: str | None = None
    # start over where `out` holds an earlier run; without it the same command goes on where it was left
    fresh: bool = False
    # of everything random
    seed: int = 0
    # of prompts and responses, in tokens
    limits: Limits = Limits()
    # of the training
    reward_model: RewardModelConfig = RewardModelConfig()
    # how often the run is saved
    checkpoints: CheckpointConfig = CheckpointConfig()


def main(arguments: Sequence[str]) -> int:
    """Carry out `instructrl rm`. Returns the exit code."""
    config = options.parse(
        RewardModelCommand, arguments, program="instructrl rm", description="Step 2: the reward model."
    )
    recipe = Recipe(limits=config.limits, reward_model=config.reward_model)
    encoder, policy = load_start(config.model, recipe, config)
    comparisons, demonstrations = read_comparisons(config.data), read_demonstrations(config.demonstrations)
    check_rows(comparisons, encoder)
    check_preferences(config.data, comparisons)
    check_rows(demonstrations, encoder)
    held_out = None if config.validation is None else read_comparisons(config.validation)
    if held_out is not None:
        check_rows(held_out, encoder)
    work = open_workspace(encoder, recipe, config, config.checkpoints)
    reward_model = fit_reward_model(work, policy, comparisons, demonstrations)
    print(f"bias {float(reward_model.bias):+.4f}  {work.folder / 'models' / 'reward_model'}")
    if held_out is not None:
        held_out = list(held_out)
        rate = reward_accuracy(comparison_scores(reward_model, work.encoder, held_out), held_out)
        if rate is not None:
            print(f"accuracy {rate.rate:.1%} ({rate.low:.1%} to {rate.high:.1%}) on {rate.num_pairs} pairs")
    return 0
