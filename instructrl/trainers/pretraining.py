"""Step 0: a language model from plain text. Only for models small enough to be made here."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from instructrl.data.encoding import blocks_as_sequences
from instructrl.models.passes import PassConfig
from instructrl.models.policy import Policy
from instructrl.models.spread import spread
from instructrl.trainers.likelihood import accumulate_likelihood_gradient
from instructrl.trainers.loop import DataOrder, Trainer
from instructrl.trainers.optimization import AdamConfig, Update
from instructrl.types import Sequences, require_positive


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingConfig:
    """For models small enough to be made here; the paper starts from GPT-3."""

    # its rate follows a cosine to a tenth
    adam: AdamConfig = AdamConfig(lr=1e-3)
    # steps over which the rate rises from zero
    warmup_steps: int = 0
    # blocks in an optimiser step
    batch_size: int = 32
    # passes over the corpus
    epochs: int = 1
    # blocks in one forward pass; changes memory, not the result
    microbatch: int = 64
    # precision and memory of the forward passes
    passes: PassConfig = PassConfig()

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "epochs", "microbatch")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps: found {self.warmup_steps}, accepted are numbers from 0")


class PretrainingTrainer(Trainer):
    """Next-token prediction on blocks of a corpus. blocks: [N, L] int64."""

    def __init__(self, policy: Policy, blocks: Tensor, config: PretrainingConfig, seed: int) -> None:
        self.policy, self.blocks, self.config = policy, blocks, config
        spread(policy, config.passes.spread, head_inputs=Sequences.smallest())
        self.order = DataOrder(len(blocks), config.batch_size, seed)
        num_steps = config.epochs * self.order.steps_per_epoch
        self.update = Update(policy, config.adam).cosine(num_steps, warmup_steps=config.warmup_steps)
        super().__init__(
            "pretraining", num_steps, {"policy": policy}, {"policy": self.update}, config.passes, (blocks, seed)
        )

    def batch(self) -> dict[str, Any]:
        rows = self.order.batch(self.step)
        return {"rows": rows, "tokens": self.blocks[rows].tolist()}

    def _train_step(self) -> tuple[dict[str, float], float]:
        batch = blocks_as_sequences(self.blocks[self.order.batch(self.step)])
        loss, count = accumulate_likelihood_gradient(self.policy, [batch], self.config.microbatch)
        lr = self.update.lr
        norm = self.update.step(loss)
        self.update.advance_schedule()
        return {"loss": loss, "lr": lr, "gradient_norm": norm}, count
