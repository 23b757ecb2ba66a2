"""The whole miniature on next to nothing: every step in some seconds."""

from dataclasses import replace

from instructrl.runs.baseline_settings import BaselineConfig
from instructrl.runs.recipe import ModelShape
from instructrl.runs.settings import MINIATURE_RECIPE, MiniatureAmounts, MiniatureConfig
from instructrl.trainers.settings import AdamConfig, PPOConfig
from instructrl.worlds.exam_settings import ExamConfig
from instructrl.worlds.settings import WorldConfig


def small(ppo: PPOConfig) -> PPOConfig:
    return replace(ppo, num_episodes=16, rollout_batch=8, minibatch=4, policy_adam=AdamConfig(lr=1e-3))


MINIATURE = MiniatureConfig(
    seed=3,
    model=ModelShape(layers=1, width=16, heads=2, context=136),
    amounts=MiniatureAmounts(
        documents=60,
        held_out_documents=20,
        demonstrations=8,
        comparisons=8,
        min_completions=2,
        max_completions=3,
        ppo_prompts=8,
        validation=4,
        held_out_comparisons=6,
        test=12,
    ),
    world=WorldConfig(exams=ExamConfig(items=3)),
    recipe=replace(
        MINIATURE_RECIPE,
        sft=replace(MINIATURE_RECIPE.sft, epochs=2),
        ppo_start=replace(MINIATURE_RECIPE.ppo_start, epochs=1),
        ppo=small(MINIATURE_RECIPE.ppo),
        ppo_ptx=small(MINIATURE_RECIPE.ppo_ptx),
    ),
    baselines=BaselineConfig(examples=20, cap_per_task=4, batch_size=8, num_kept=2),
)
