"""Step 0: a language model from plain text. Only for models small enough to be made here."""

from typing import Any

from torch import Tensor

from instructrl.data.encoding import blocks_as_sequences
from instructrl.models.base import home_of
from instructrl.models.passes import settled
from instructrl.models.policy import Policy
from instructrl.models.spread import spread
from instructrl.trainers.likelihood import accumulate_likelihood_gradient
from instructrl.trainers.loop import DataOrder, Trainer
from instructrl.trainers.optimization import Update
from instructrl.trainers.settings import PretrainingConfig
from instructrl.types import Sequences


class PretrainingTrainer(Trainer):
    """Next-token prediction on blocks of a corpus. blocks: [N, L] int64."""

    def __init__(self, policy: Policy, blocks: Tensor, config: PretrainingConfig, seed: int) -> None:
        self.policy, self.blocks, self.config = policy, blocks, config
        passes = settled(config.passes, home_of(policy))
        spread(policy, passes, head_inputs=Sequences.smallest())
        self.order = DataOrder(len(blocks), config.batch_size, seed)
        num_steps = config.epochs * self.order.steps_per_epoch
        self.update = Update(policy, config.adam).cosine(num_steps, warmup_steps=config.warmup_steps)
        super().__init__("pretraining", num_steps, {"policy": policy}, {"policy": self.update}, passes, (blocks, seed))

    def concerns(self) -> list[str]:
        return self.config.concerns(self.num_steps)

    def batch(self) -> dict[str, Any]:
        rows = self.order.batch(self.step)
        return {"rows": rows, "tokens": self.blocks[rows].tolist()}

    def _train_step(self) -> tuple[dict[str, float], float]:
        batch = blocks_as_sequences(self.blocks[self.order.batch(self.step)])
        (loss,), count = accumulate_likelihood_gradient(self.policy, [(1.0, batch)], self.config.microbatch)
        lr = self.update.lr
        norm = self.update.step(loss)
        self.update.advance_schedule()
        return {"loss": loss, "lr": lr, "gradient_norm": norm}, count
