"""`instructrl rm`: step 2 on files."""

from pathlib import Path

from instructrl.commands.settings import RewardModelCommand
from instructrl.commands.tracked import tracked
from instructrl.evaluation.statistics import reward_accuracy
from instructrl.models.scoring import check_scalar_head
from instructrl.rollout.scoring import comparison_scores
from instructrl.runs.folder import settled_config
from instructrl.runs.reading import Reader, check_preferences
from instructrl.runs.recipe import Recipe
from instructrl.runs.standalone import load_start, open_workspace
from instructrl.runs.steps import fit_reward_model


def main(config: RewardModelCommand) -> int:
    """Carry out `instructrl rm`. Returns the exit code."""
    config = settled_config(config, Path(config.out), fresh=config.fresh)
    recipe = Recipe(limits=config.limits, adapter=config.adapter, reward_model=config.reward_model)
    encoder, policy = load_start(config.model, recipe, config)
    check_scalar_head(policy)
    reader = Reader(encoder, config.long_prompts)
    comparisons, held_out = reader.with_validation(config.data, config.validation, reader.comparisons)
    check_preferences(config.data, comparisons)
    demonstrations = None if config.demonstrations is None else reader.demonstrations(config.demonstrations)
    sources = {"model": config.model, "comparisons": config.data, "demonstrations": config.demonstrations}
    work = open_workspace(reader, recipe, config, config.checkpoints, sources)
    with tracked(config.track, work.log, work.folder, config):
        reward_model = fit_reward_model(work, policy, comparisons, demonstrations)
    work.journal.tell_if_done()
    why = "" if demonstrations is not None else " (there are no --demonstrations that are to score 0)"
    print(f"bias {float(reward_model.bias):+.4f}{why}  {work.folder / 'models' / 'reward_model'}")
    if held_out is not None:
        held_out = list(held_out)
        rate = reward_accuracy(comparison_scores(reward_model, work.encoder, held_out), held_out)
        if rate is not None:
            print(f"accuracy {rate.rate:.1%} ({rate.low:.1%} to {rate.high:.1%}) on {rate.num_pairs} pairs")
    return 0
