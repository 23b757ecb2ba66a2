"""What a run is going to do, in numbers, before it does anything."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from instructrl.runs.baseline_settings import BaselineConfig
from instructrl.runs.chat_settings import ChatRecipe, ChatRunConfig
from instructrl.runs.recipe import ModelShape, Recipe
from instructrl.trainers.settings import PPOConfig, SFTConfig


class PlanRow(NamedTuple):
    """step: its name. size: what it is given. work: optimiser steps and the like."""

    step: str
    size: str
    work: str


LAST_EPOCH = "the last SFT epoch"


def plan(recipe: Recipe, counts: Mapping[str, int | None], reward_start: str = LAST_EPOCH) -> list[PlanRow]:
    """The steps of a run.

    reward_start: what the reward model starts from.
    counts: "demonstrations", "comparisons" and "ppo_prompts", "blocks" of plain text and "test" prompts; None (or
    absent) where nothing is known before the data are read.
    """
    rows = []
    if recipe.pretraining is not None:
        work = _epochs(counts.get("blocks"), recipe.pretraining.batch_size, recipe.pretraining.epochs)
        size = f"{_count(counts.get('blocks'))} blocks of {recipe.block_tokens} tokens"
        rows.append(PlanRow("pretraining", size, work))
    rows += [_sft("sft", recipe.sft, counts), _sft("ppo_start", recipe.ppo_start, counts)]
    reward = recipe.reward_model
    work = _epochs(counts.get("comparisons"), reward.batch_size, reward.epochs)
    size = f"{_count(counts.get('comparisons'))} prompts with K completions each, from {reward_start}"
    rows.append(PlanRow("reward_model", size, work))
    rows += [_ppo("ppo", recipe.ppo, counts), _ppo("ppo_ptx", recipe.ppo_ptx, counts)]
    rows.append(PlanRow("evaluation", f"{_count(counts.get('test'))} test prompts", "5 models against SFT"))
    return rows


def with_baselines(rows: Sequence[PlanRow], config: BaselineConfig) -> list[PlanRow]:
    """The plan of a run that also makes the paper's baselines; all are done before the evaluation, its last row."""
    *before, last = rows
    source = "made from demonstrations" if config.prefixes is None else f"of {config.prefixes}"
    before.append(PlanRow("prompted GPT", f"prefixes {source}", "responses to the validation prompts with each"))
    if not config.examples:
        return [*before, last]
    work = f"2 learning rates, {_epochs(config.examples, config.batch_size, 1)} each"
    before += [PlanRow(name, f"{config.examples:,} examples, each once", work) for name in ("FLAN-like", "T0-like")]
    return [*before, last._replace(work="7 models against SFT")]


def with_sizes(rows: Sequence[PlanRow], shapes: Mapping[str, ModelShape]) -> list[PlanRow]:
    """The plan of a run that also trains policies of other sizes, all before the evaluation, its last row."""
    *before, last = rows
    for name, shape in shapes.items():
        size = f"policies of {shape.layers} x {shape.width}, the same data"
        before.append(PlanRow(f"size {name}", size, "pretraining, sft, ppo_start, ppo and ppo_ptx as above"))
    others = f", and 5 each of {' and '.join(shapes)}" if shapes else ""
    return [*before, last._replace(work=f"{last.work}{others}")]


def plan_chat(config: ChatRunConfig) -> list[PlanRow]:
    """The steps of the run on a chat model; what is left of the data may be less than is asked for."""
    recipe, counts = config.recipe, {"demonstrations": config.demonstrations, "ppo_prompts": config.ppo_prompts}
    rows = [_sft("sft", recipe.sft, counts)]
    for name, number in (("reward_model", config.comparisons), ("judge", config.judge_comparisons)):
        work = _epochs(number, recipe.reward_model.batch_size, recipe.reward_model.epochs)
        rows.append(PlanRow(name, f"{number:,} prompts with 2 or 4 completions each, from {LAST_EPOCH}", work))
    rows.append(_ppo("ppo", recipe.ppo, counts))
    measured = f"{config.held_out_comparisons:,} comparisons, {config.test_prompts:,} {config.evaluate} prompts"
    rows.append(PlanRow("evaluation", measured, "the model before, SFT and PPO"))
    return rows


def concerns(recipe: Recipe | ChatRecipe, counts: Mapping[str, int | None]) -> list[str]:
    """What the trainers are going to warn of at their start, as far as it is known before the data are read."""
    found = []
    pretraining = recipe.pretraining if isinstance(recipe, Recipe) else None
    if pretraining is not None and (blocks := counts.get("blocks")) is not None:
        steps = pretraining.epochs * _steps_per_epoch(blocks, pretraining.batch_size)
        found += [f"pretraining: {text}" for text in pretraining.concerns(steps)]
    for phase in ("ppo", "ppo_ptx"):
        found += [f"{phase}: {text}" for text in getattr(recipe, phase).concerns()] if hasattr(recipe, phase) else []
    return found


def _sft(name: str, config: SFTConfig, counts: Mapping[str, int | None]) -> PlanRow:
    share = f"{config.pretraining_fraction:.0%} of the loss"
    mix = f" + {config.num_pretraining} blocks a batch, {share}" if config.num_pretraining else ""
    batch = config.batch_size - config.num_pretraining
    number = counts.get("demonstrations")
    return PlanRow(name, f"{_count(number)} demonstrations{mix}", _epochs(number, batch, config.epochs))


def _ppo(name: str, config: PPOConfig, counts: Mapping[str, int | None]) -> PlanRow:
    mix = f" + {config.num_ptx_examples} blocks a minibatch" if config.num_ptx_examples else ""
    size = f"{config.num_episodes:,} episodes over {_count(counts.get('ppo_prompts'))} prompts{mix}"
    return PlanRow(name, size, f"{config.num_iterations:,} iterations, {config.num_optimizer_steps:,} optimiser steps")


def _epochs(number: int | None, batch: int, epochs: int) -> str:
    what = f"{epochs} epoch{'s' if epochs > 1 else ''} in batches of {batch}"
    return what if number is None else f"{what}: {epochs * _steps_per_epoch(number, batch):,} optimiser steps"


def _steps_per_epoch(number: int, batch: int) -> int:
    return -(-number // min(batch, number))


def _count(number: int | None) -> str:
    return "all" if number is None else f"{number:,}"
