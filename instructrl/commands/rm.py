"""`instructrl rm`: step 2 on files."""

from instructrl.commands.settings import RewardModelCommand
from instructrl.data.readers import read_comparisons, read_demonstrations
from instructrl.evaluation.statistics import reward_accuracy
from instructrl.rollout.scoring import comparison_scores
from instructrl.runs.recipe import Recipe
from instructrl.runs.standalone import check_preferences, check_rows, load_start, open_workspace
from instructrl.runs.steps import fit_reward_model


def main(config: RewardModelCommand) -> int:
    """Carry out `instructrl rm`. Returns the exit code."""
    recipe = Recipe(limits=config.limits, reward_model=config.reward_model)
    encoder, policy = load_start(config.model, recipe, config)
    comparisons, demonstrations = read_comparisons(config.data), read_demonstrations(config.demonstrations)
    check_rows(comparisons, encoder)
    check_preferences(config.data, comparisons)
    check_rows(demonstrations, encoder)
    held_out = None if config.validation is None else read_comparisons(config.validation)
    if held_out is not None:
        check_rows(held_out, encoder)
    sources = {"model": config.model, "comparisons": config.data, "demonstrations": config.demonstrations}
    work = open_workspace(encoder, recipe, config, config.checkpoints, sources)
    reward_model = fit_reward_model(work, policy, comparisons, demonstrations)
    work.journal.tell_if_done()
    print(f"bias {float(reward_model.bias):+.4f}  {work.folder / 'models' / 'reward_model'}")
    if held_out is not None:
        held_out = list(held_out)
        rate = reward_accuracy(comparison_scores(reward_model, work.encoder, held_out), held_out)
        if rate is not None:
            print(f"accuracy {rate.rate:.1%} ({rate.low:.1%} to {rate.high:.1%}) on {rate.num_pairs} pairs")
    return 0
