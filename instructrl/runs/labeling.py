"""How the miniature's comparisons come about: who completes a prompt, who ranks, and how well the two sides agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from instructrl import progress
from instructrl.data.labels import comparison
from instructrl.evaluation import results as assemble
from instructrl.evaluation.contenders import Contender
from instructrl.labels import HELPFUL_FIRST, LabelTask, TaskOutput
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.rollout.generate import Samples
from instructrl.rollout.randomness import keyed_generator
from instructrl.rollout.scoring import comparison_scores, score_texts
from instructrl.runs import steps
from instructrl.types import Comparison, Demonstration, Prompt
from instructrl.worlds.labelers import Labeler
from instructrl.worlds.miniature import MiniatureWorld

# Which model completes a prompt next, in turn: mostly SFT, whose mistakes are those that PPO can still mend.
SAMPLER_TURNS = ("SFT", "SFT", "GPT (prompted)", "SFT", "SFT", "GPT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Labeling:
    """Completions from GPT, prompted GPT and the last SFT epoch, ranked by labelers.

    completions: fewest and most of a prompt.
    """

    world: MiniatureWorld
    work: steps.Workspace
    completions: tuple[int, int]
    gpt: Policy
    sft: Policy

    def compare(self, prompts: Sequence[Prompt], labelers: Sequence[Labeler], group: str) -> list[Comparison]:
        """One comparison a prompt, the labelers taking turns."""
        completions = self._completions(prompts, group)
        return _ranked(prompts, completions, labelers, turn=0)

    def quality(
        self,
        reward_model: RewardModel,
        comparisons: Sequence[Comparison],
        held_out: Sequence[Prompt],
        demonstrations: Sequence[Demonstration],
    ) -> dict[str, Any]:
        """The `reward_model` entry of the results: accuracy on pairs of labelers it was trained on and of held-out
        ones, both on prompts of held-out users, and how far the labelers agree among themselves on the same pairs."""
        completions = self._completions(held_out, "validation")
        entry: dict[str, Any] = assemble.comparison_counts(comparisons)
        for group, name in (("training", "training_labelers"), ("heldout", "heldout_labelers")):
            labelers = self.world.labelers(group)
            first, second = (_ranked(held_out, completions, labelers, turn=turn) for turn in (0, 1))
            scores = comparison_scores(reward_model, self.work.encoder, first)
            entry[f"accuracy_{name}"] = assemble.accuracy(scores, first)
            entry[f"agreement_{name}"] = assemble.agreement(first, second)
        texts = [row.completion for row in demonstrations]
        mean = score_texts(reward_model, self.work.encoder, [row.prompt for row in demonstrations], texts).mean()
        return {
            **entry,
            "bias": float(reward_model.bias),
            "mean_demonstration_score": float(mean),
        }

    def _completions(self, prompts: Sequence[Prompt], name: str) -> list[Samples]:
        generator = keyed_generator(self.work.seed_for(f"completions {name}"))
        low, high = self.completions
        counts = torch.randint(low, high + 1, (len(prompts),), generator=generator).tolist()
        samplers = {
            "GPT": Contender(name="GPT", policy=self.gpt),
            "GPT (prompted)": Contender(name="GPT (prompted)", policy=self.gpt, form=self.world.few_shot_prompt),
            "SFT": Contender(name="SFT", policy=self.sft),
        }
        return steps.sample_completions(
            self.work, [samplers[key] for key in SAMPLER_TURNS], [prompt.text for prompt in prompts], counts, name
        )


def _ranked(
    prompts: Sequence[Prompt], completions: Sequence[Samples], labelers: Sequence[Labeler], *, turn: int
) -> list[Comparison]:
    """Ranked with helpfulness first."""
    rows = []
    pairs = zip(prompts, progress.through("labeling", completions), strict=True)
    for index, (prompt, samples) in enumerate(pairs):
        task = LabelTask(
            id=str(index),
            kind="ranking",
            criteria=HELPFUL_FIRST,
            prompt=prompt.text,
            user=prompt.user,
            source=prompt.source,
            category=prompt.category,
            outputs=tuple(
                TaskOutput(id=str(place), text=text, finished=finished)
                for place, (text, finished) in enumerate(zip(samples.texts, samples.finished, strict=True))
            ),
        )
        rows.append(comparison(task, labelers[(index + turn) % len(labelers)].answer(task)))
    return rows
