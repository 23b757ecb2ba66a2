"""Step 1: supervised fine-tuning on demonstrations (paper, 3.5, C.1 and C.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from instructrl import distributed
from instructrl.data.encoding import Encoder, blocks_as_sequences
from instructrl.data.settings import Turns
from instructrl.models.backbone import set_residual_dropout
from instructrl.models.base import home_of
from instructrl.models.passes import settled
from instructrl.models.policy import Policy
from instructrl.models.spread import exact, spread
from instructrl.rollout.randomness import keyed_seed
from instructrl.rollout.scoring import mean_loss
from instructrl.trainers.likelihood import accumulate_likelihood_gradient
from instructrl.trainers.loop import DataOrder, Trainer
from instructrl.trainers.optimization import Update
from instructrl.trainers.settings import SFTConfig
from instructrl.types import Demonstration, Sequences

# The key of the order of plain text, beside those of dropout, which are the numbers of the steps.
_BLOCK_ORDER = -1


class SFTTrainer(Trainer):
    """Minimises the negative log-likelihood per response token, and per token of plain text if that is mixed in.

    The loss is `(1 - f) * demonstration_loss + f * pretraining_loss` with f = `pretraining_fraction`: a block has
    many times the tokens of a demonstration, so a mean over all tokens together would be mostly plain text.

    blocks: [N, L] int64 of plain text; None if `pretraining_fraction` is 0. keeps: the steps after which the model is
    to be kept. validation_losses: one for each of those so far; the caller measures them and fills them in. Dropout is
    only on during a step.
    """

    def __init__(
        self,
        policy: Policy,
        demonstrations: Sequence[Demonstration],
        encoder: Encoder,
        config: SFTConfig,
        *,
        seed: int = 0,
        blocks: Tensor | None = None,
        phase: str = "sft",
    ) -> None:
        if config.num_pretraining and blocks is None:
            raise ValueError(f"blocks: found None, pretraining_fraction {config.pretraining_fraction} needs plain text")
        self.policy, self.demonstrations, self.encoder = policy, demonstrations, encoder
        self.config, self.blocks, self.seed = config, blocks, seed
        self.validation_losses: list[float | None] = []
        self.order = DataOrder(len(demonstrations), config.batch_size - config.num_pretraining, seed)
        self.steps_per_epoch = self.order.steps_per_epoch
        passes = settled(config.passes, home_of(policy))
        spread(policy, passes, head_inputs=Sequences.smallest())
        num_steps = config.epochs * self.steps_per_epoch
        self.keeps = self._keeps(num_steps)
        self.update = Update(policy, config.adam).cosine(num_steps)
        super().__init__(
            phase, num_steps, {"policy": policy}, {"policy": self.update}, passes, (demonstrations, blocks, seed)
        )
        set_residual_dropout(policy.lm, config.residual_dropout)

    def num_examples(self, step: int) -> int:
        """How many demonstrations are learned after so many steps, those of every epoch counted anew."""
        epochs, batches = divmod(step, self.steps_per_epoch)
        return epochs * self.order.num_rows + batches * self.order.batch_size

    def _keeps(self, num_steps: int) -> list[int]:
        """An amount that ends within a batch is kept after that batch."""
        every = self.config.keep_every_examples
        if every is None:
            return list(range(self.steps_per_epoch, num_steps + 1, self.steps_per_epoch))
        reached = [self.num_examples(step) // every for step in range(num_steps + 1)]
        return [step for step in range(1, num_steps + 1) if reached[step] > reached[step - 1] or step == num_steps]

    def batch(self) -> dict[str, Any]:
        rows = self.order.batch(self.step)
        return {"rows": rows, "demonstrations": [asdict(self.demonstrations[i]) for i in rows]}

    def extra_state(self) -> dict[str, Any]:
        return {"validation_losses": self.validation_losses}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.validation_losses = list(state["validation_losses"])

    def _train_step(self) -> tuple[dict[str, float], float]:
        self.policy.train()
        device = self.policy.device
        elsewhere = [] if device.type == "cpu" else [device]
        with torch.random.fork_rng(elsewhere, device_type=device.type if elsewhere else "cuda"):
            # Dropout cannot take a generator: its global one is put where (seed, step) says, and put back after.
            # Processes other than the first drop other units.
            own = [distributed.rank()] if distributed.rank() else []
            torch.manual_seed(keyed_seed(self.seed, self.step, *own))
            terms = self._terms()
            losses, count = accumulate_likelihood_gradient(self.policy, terms, self.config.microbatch)
        self.policy.eval()
        lr = self.update.lr
        loss = sum(coefficient * found for (coefficient, _), found in zip(terms, losses, strict=True))
        norm = self.update.step(loss)
        self.update.advance_schedule()
        mixed = dict(zip(("demonstration_loss", "pretraining_loss"), losses, strict=True)) if len(losses) > 1 else {}
        return {"loss": loss, **mixed, "lr": lr, "gradient_norm": norm}, count

    def _terms(self) -> list[tuple[float, Sequences]]:
        """What each kind of row weighs in the loss, and its rows in this step."""
        chosen = [self.demonstrations[i] for i in self.order.batch(self.step)]
        rows = self.encoder.demonstrations(chosen, self.config.turns)
        num_mixed, weight = self.config.num_pretraining, self.config.pretraining_fraction
        if not num_mixed or self.blocks is None:
            return [(1.0, rows)]
        order = DataOrder(len(self.blocks), num_mixed, keyed_seed(self.seed, _BLOCK_ORDER))
        mixed = blocks_as_sequences(self.blocks[order.rows(self.step * num_mixed, num_mixed)])
        return [(1 - weight, rows), (weight, mixed)]


def demonstration_loss(
    policy: Policy, demonstrations: Sequence[Demonstration], encoder: Encoder, turns: Turns = "last"
) -> float:
    """Validation loss: NLL per response token in nats, of the weights that are saved. turns: as in
    `Encoder.demonstrations`."""
    chunks = range(0, len(demonstrations), 64)
    with exact(policy) as learned:
        return mean_loss(learned, [encoder.demonstrations(demonstrations[i : i + 64], turns) for i in chunks])
