"""Step 2: the reward model on comparisons (paper, 3.5 and C.2)."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from instructrl import distributed
from instructrl.data.encoding import Encoder, preferred_pairs
from instructrl.models.base import home_of
from instructrl.models.heap import give_back
from instructrl.models.passes import settled
from instructrl.models.scoring import RewardModel
from instructrl.models.spread import exact, spread, synchronised
from instructrl.objectives.reward_modeling import ComparisonLoss, comparison_loss
from instructrl.rollout.scoring import score_texts
from instructrl.trainers.loop import DataOrder, Trainer
from instructrl.trainers.optimization import Update
from instructrl.trainers.settings import RewardModelConfig
from instructrl.types import Comparison, Demonstration, SharedPrompts


class RewardModelTrainer(Trainer):
    """Trains on rankings. A batch element is a prompt with all of its preferred pairs; each completion is read once.

    With `pairs_as_rows` it is one pair, which weighs what it does among those of its prompt: over a pass, every prompt
    weighs the same either way.
    """

    def __init__(
        self,
        reward_model: RewardModel,
        comparisons: Sequence[Comparison],
        encoder: Encoder,
        config: RewardModelConfig,
        *,
        seed: int = 0,
        phase: str = "reward_model",
    ) -> None:
        self.reward_model, self.encoder, self.config = reward_model, encoder, config
        pairs = separate_pairs(comparisons) if config.pairs_as_rows else []
        self.comparisons = [pair for pair, _ in pairs] or comparisons
        self._weights = {id(pair): weight for pair, weight in pairs}
        self.order = DataOrder(len(self.comparisons), config.batch_size, seed)
        num_steps = config.epochs * self.order.steps_per_epoch
        passes = settled(config.passes, home_of(reward_model))
        spread(reward_model, passes, shared_prompt_scores=SharedPrompts.smallest())
        self.update = Update(reward_model, config.adam).cosine(num_steps)
        super().__init__(
            phase,
            num_steps,
            {"reward_model": reward_model},
            {"reward_model": self.update},
            passes,
            (self.comparisons, seed),
        )
        reward_model.eval()

    unit = "comparisons"

    def batch(self) -> dict[str, Any]:
        rows = self.order.batch(self.step)
        found = [self.comparisons[i] for i in rows]
        return {"rows": rows, "comparisons": [{**asdict(row), "preferred": sorted(row.preferred)} for row in found]}

    def _loss(self, rows: Sequence[Comparison], scores: Tensor, preferred: Tensor, num_prompts: int) -> ComparisonLoss:
        weights = (
            torch.tensor([self._weights[id(row)] for row in rows], device=scores.device) if self._weights else None
        )
        return comparison_loss(scores, preferred, num_prompts, weights=weights)

    def _train_step(self) -> tuple[dict[str, float], float]:
        rows = [self.comparisons[i] for i in self.order.batch(self.step)]
        num_prompts = sum(bool(row.preferred) for row in rows)
        device = self.reward_model.bias.device
        loss, num_pairs, num_correct = 0.0, 0, 0
        # Rows of similar length share a forward pass.
        rows.sort(key=lambda row: len(row.prompt) + sum(map(len, row.completions)))
        microbatches = distributed.microbatches(torch.arange(len(rows)), self.config.microbatch)
        for own in synchronised(microbatches, [self.reward_model]):
            # Where others have one more, the first comparison again, with nothing preferred in it.
            part = [rows[i] for i in own] or rows[:1]
            preferred = preferred_pairs(part) & bool(len(own))
            scores = self.reward_model.shared_prompt_scores(self.encoder.shared_prompts(part).to(device))
            result = self._loss(part, scores, preferred.to(device), num_prompts)
            result.loss.backward()
            give_back()
            loss += float(result.loss.detach())
            num_pairs += int(result.num_pairs)
            num_correct += int(result.num_correct)
        loss, num_pairs, num_correct = distributed.total([loss, num_pairs, num_correct])
        lr = self.update.lr
        norm = self.update.step(loss)
        self.update.advance_schedule()
        accuracy = num_correct / max(num_pairs, 1)
        return {"loss": loss, "accuracy": accuracy, "lr": lr, "gradient_norm": norm}, num_pairs


def separate_pairs(comparisons: Sequence[Comparison]) -> list[tuple[Comparison, float]]:
    """Every preferred pair as a comparison of its own, the preferred completion first, and its weight in the loss.

    A pair of a prompt with n pairs weighs `mean(n) / n`, the mean being over prompts with pairs: all pairs weigh 1 on
    average, and those of each prompt weigh the same together, as in equation 1.
    """
    counts = [len(row.preferred) for row in comparisons if row.preferred]
    mean = sum(counts) / max(len(counts), 1)
    pairs = []
    for row in comparisons:
        for pair in sorted(row.preferred):
            texts = tuple(row.completions[i] for i in pair)
            finished = tuple(row.finished[i] for i in pair) if row.finished else ()
            own = replace(row, completions=texts, preferred=frozenset({(0, 1)}), finished=finished)
            pairs.append((own, mean / len(row.preferred)))
    return pairs


def normalize_on_demonstrations(
    reward_model: RewardModel, encoder: Encoder, demonstrations: Sequence[Demonstration]
) -> float:
    """Set the bias such that demonstrations score 0 on average (paper, 3.5). Returns the bias."""
    prompts = [row.prompt for row in demonstrations]
    with exact(reward_model) as learned:
        scores = score_texts(learned, encoder, prompts, [row.completion for row in demonstrations])
    reward_model.bias -= scores.mean().to(reward_model.bias)
    return float(reward_model.bias)
