"""What would be left unused without a word, data of another kind than a step takes, what an earlier one left over."""

from pathlib import Path
from shutil import copy

from table import Row

_NO_MIX = "which nothing uses without ppo.ptx_coef; accepted is both, or neither"
_COMPARISONS = (
    "found comparisons, accepted are prompts that the reward model was not trained on; to use them all the same, write "
    "their column prompt into a file of its own"
)


def _left_over() -> None:
    Path("prepared").mkdir()
    copy("demonstrations.jsonl", "prepared/demonstrations.train.jsonl")


ROWS = [
    Row(
        what="plain text for PPO without the mix",
        step="ppo",
        options="--corpus corpus.jsonl",
        message=f"corpus: found corpus.jsonl, {_NO_MIX}",
    ),
    Row(
        what="size of the mix without the mix",
        step="ppo",
        options="--ppo.ptx-examples-per-episode 2",
        message=f"ppo.ptx_examples_per_episode: found 2.0, {_NO_MIX}",
    ),
    Row(
        what="length of blocks without plain text",
        step="ppo",
        options="--block-tokens 16",
        message="block_tokens: found 16, which nothing uses without corpus; accepted is both, or neither",
    ),
    Row(
        what="horizon of a KL target without the target",
        step="ppo",
        options="--ppo.kl-horizon 100",
        message="ppo.kl_horizon: found 100, which nothing uses without ppo.kl_target; accepted is both, or neither",
    ),
    Row(
        what="plain text for SFT without a share of it",
        step="sft",
        options="--corpus corpus.jsonl",
        message="corpus: found corpus.jsonl, which nothing uses without sft.pretraining_fraction; accepted is both, or "
        "neither",
    ),
    Row(
        what="length of blocks without plain text, SFT",
        step="sft",
        options="--block-tokens 16",
        message="block_tokens: found 16, which nothing uses without corpus; accepted is both, or neither",
    ),
    Row(
        what="horizon of a KL target without the target, in a run",
        step="smoke",
        options="--recipe.ppo-ptx.kl-horizon 100",
        message="recipe.ppo_ptx.kl_horizon: found 100, which nothing uses without recipe.ppo_ptx.kl_target; accepted "
        "is both, or neither",
    ),
    Row(
        what="size of the mix for the run without it",
        step="smoke",
        options="--recipe.ppo.ptx-examples-per-episode 2",
        message="recipe.ppo.ptx_examples_per_episode: found 2.0, which nothing uses without recipe.ppo.ptx_coef, which "
        "recipe.ppo_ptx alone has; accepted is both, or neither",
    ),
    Row(
        what="countries of phone numbers where personal data stay",
        step="prepare",
        options="--personal-data False --phone-regions DE",
        message="phone_regions: found ('DE',), which nothing uses without personal_data; accepted is both, or neither",
    ),
    Row(
        what="comparisons for the prompts of PPO",
        step="ppo",
        options="--data comparisons.jsonl",
        message=f"comparisons.jsonl: {_COMPARISONS}",
    ),
    Row(
        what="comparisons among prepared prompts",
        step="files",
        make=lambda: copy("comparisons.jsonl", "splits/prompts.train.jsonl"),
        message=f"splits/prompts.train.jsonl: {_COMPARISONS}",
    ),
    Row(
        what="comparisons to prepare as prompts",
        step="prepare",
        options="--prompts comparisons.jsonl",
        message=f"comparisons.jsonl: {_COMPARISONS}",
    ),
    Row(
        what="comparisons for demonstrations",
        step="sft",
        options="--data comparisons.jsonl",
        message="comparisons.jsonl:1: completion: found the columns prompt, …, accepted are …",
    ),
    Row(
        what="comparisons for the demonstrations of a reward model",
        step="rm",
        options="--demonstrations comparisons.jsonl",
        message="comparisons.jsonl:1: completion: found the columns prompt, …, accepted are …",
    ),
    Row(
        what="prompts for demonstrations",
        step="sft",
        options="--data prompts.jsonl",
        message="prompts.jsonl:1: completion: found the columns prompt, accepted are …",
    ),
    Row(
        what="prompts for comparisons",
        step="rm",
        options="--data prompts.jsonl",
        message="prompts.jsonl:1: completions: found the columns prompt, accepted are …",
    ),
    Row(
        what="plain text for prompts",
        step="ppo",
        options="--data corpus.jsonl",
        message="corpus.jsonl:1: prompt: found the columns text, accepted are …",
    ),
    Row(
        what="demonstrations for plain text",
        step="ppo",
        options="--corpus demonstrations.jsonl --block-tokens 16 --ppo.ptx-coef 1",
        message="demonstrations.jsonl:1: text: found the columns prompt, completion, accepted is text",
    ),
    Row(
        what="folder with sets of another preparation",
        step="prepare",
        make=_left_over,
        message="out: found prepared/demonstrations.train.jsonl of another preparation, which this one does not "
        "replace; accepted is another folder, or all sets prepared at once: only then is no training prompt in "
        "another split",
    ),
]
