"""Settings of the trainers: the paper's numbers where it gives them."""

import math
from dataclasses import dataclass

from instructrl.data.settings import Turns
from instructrl.models.settings import PassConfig
from instructrl.settings import require_positive


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamConfig:
    """Adam as in the paper (C): beta2 0.95. What the paper leaves open is off or PyTorch's default."""

    # peak learning rate
    lr: float
    # decay of the gradient's mean
    beta1: float = 0.9
    # decay of the gradient's square
    beta2: float = 0.95
    # added to the square root of the second moment
    eps: float = 1e-8
    # weight decay, decoupled as in AdamW
    weight_decay: float = 0.0
    # largest norm of the gradient; None does not clip
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        require_positive(self, "lr", "eps", "max_grad_norm")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay: found {self.weight_decay}, accepted are numbers from 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, accepted are numbers in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """How often a run is saved, and how much of it stays. Changes no result."""

    # least seconds between two checkpoints, which are taken between optimiser steps or PPO iterations; 0 is after each
    every_seconds: float = 300.0
    # how many checkpoints are kept
    keep: int = 2

    def __post_init__(self) -> None:
        require_positive(self, "keep")
        if not self.every_seconds >= 0:
            raise ValueError(f"every_seconds: found {self.every_seconds}, accepted are numbers from 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingConfig:
    """For models small enough to be made here; the paper starts from GPT-3."""

    # Adam; the learning rate follows a cosine to a tenth
    adam: AdamConfig = AdamConfig(lr=1e-3)
    # steps over which the learning rate rises from zero
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

    def concerns(self, num_steps: int) -> list[str]:
        """What is allowed and seldom meant. num_steps: of the whole training."""
        if self.warmup_steps < num_steps or not self.warmup_steps:
            return []
        return [
            f"the warm-up of {self.warmup_steps} steps is as long as the whole of {num_steps}: the rate does not come "
            "to its peak; lower warmup_steps or raise epochs"
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTConfig:
    """The paper's numbers for 1.3B (C.1)."""

    # Adam; the learning rate follows a cosine to a tenth, without warm-up
    adam: AdamConfig = AdamConfig(lr=9.65e-6)
    # examples in an optimiser step, including those of the pretraining mix
    batch_size: int = 32
    # passes over the demonstrations
    epochs: int = 16
    # the model is kept whenever so many more examples are learned, and at the end; None keeps it after every epoch
    keep_every_examples: int | None = None
    # dropout on the outputs of attention and MLP blocks; None is the paper's 0.2 if the network has such dropout
    residual_dropout: float | None = None
    # f in the loss `(1 - f) * NLL(demonstrations) + f * NLL(plain text)`, each a mean over its own tokens, and the
    # share of a batch that is blocks of plain text (0.1 in the branch that PPO starts from)
    pretraining_fraction: float = 0.0
    # in conversations with a chat template: learn every turn of the assistant, or only the last one
    turns: Turns = "all"
    # examples in one forward pass; changes memory, and which units dropout leaves out
    microbatch: int = 32
    # precision and memory of the forward passes
    passes: PassConfig = PassConfig()

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "epochs", "keep_every_examples", "microbatch")
        if not 0 <= self.pretraining_fraction < 1 or self.num_pretraining >= self.batch_size:
            raise ValueError(
                f"pretraining_fraction: found {self.pretraining_fraction}, accepted are shares below 1 that leave "
                f"demonstrations in a batch of {self.batch_size}"
            )
        if self.residual_dropout is not None and not 0 <= self.residual_dropout < 1:
            raise ValueError(f"residual_dropout: found {self.residual_dropout}, accepted is [0, 1)")

    @property
    def num_pretraining(self) -> int:
        """Blocks of plain text in each batch: at least one where there is a mix at all."""
        return max(round(self.pretraining_fraction * self.batch_size), 1) if self.pretraining_fraction else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelConfig:
    """The paper's numbers (C.2)."""

    # Adam; the learning rate follows a cosine to a tenth
    adam: AdamConfig = AdamConfig(lr=9e-6)
    # comparisons (a prompt with its K completions and all their pairs) in an optimiser step
    batch_size: int = 64
    # every preferred pair is a row of its own, shuffled among those of all prompts, and batch_size counts pairs: what
    # footnote 5 of the paper warns of, because a completion is learned from in K - 1 steps
    pairs_as_rows: bool = False
    # passes over the comparisons; according to the paper, more than one overfits
    epochs: int = 1
    # prompts in one forward pass; changes memory, not the result
    microbatch: int = 8
    # precision and memory of the forward passes
    passes: PassConfig = PassConfig()

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "epochs", "microbatch")


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOConfig:
    """The paper's numbers (section 3.5, C.4 and E); where it is silent, the predecessor's."""

    # responses sampled in all
    num_episodes: int = 256_000
    # episodes per iteration
    rollout_batch: int = 512
    # episodes per optimiser step
    minibatch: int = 64
    # passes over a rollout batch
    num_epochs: int = 1
    # episodes in one forward pass; changes memory, not the result
    microbatch: int = 64
    # precision and memory of the forward passes
    passes: PassConfig = PassConfig()
    # Adam of the policy; the learning rate is constant after the warm-up
    policy_adam: AdamConfig = AdamConfig(lr=8.05e-6)
    # Adam of the value function, which is a separate network
    value_adam: AdamConfig = AdamConfig(lr=9e-6)
    # iterations over which both learning rates rise from a tenth of their peak
    warmup_iterations: int = 10
    # coefficient of the per-token KL penalty
    kl_coef: float = 0.02
    # the KL, in nats per episode, to which the coefficient adapts; None keeps it fixed, as in the paper
    kl_target: float | None = None
    # episodes over which an adaptive coefficient moves
    kl_horizon: int = 10_000
    # discount of later rewards, the gamma of reinforcement learning (the gamma of the paper's equation 2 is ptx_coef)
    discount: float = 1.0
    # lambda of generalized advantage estimation
    lam: float = 0.95
    # clip range of the probability ratio
    cliprange: float = 0.2
    # clip range of the change of values
    cliprange_value: float = 0.2
    # weight of the value loss relative to the policy loss
    vf_coef: float = 0.1
    # temperature of the rollout
    temperature: float = 1.0
    # where a response is cut in the rollout; None is limits.max_response_tokens
    max_response_tokens: int | None = None
    # score of a response without an end, on the reward model's scale; None keeps the reward model's score
    missing_eos_score: float | None = None
    # decay of the averaged policy in each optimiser step
    ema_decay: float = 0.992
    # weight of the pretraining loss, gamma of equation 2: 0 is PPO, more is PPO-ptx
    ptx_coef: float = 0.0
    # blocks of plain text for each episode
    ptx_examples_per_episode: float = 8.0

    def __post_init__(self) -> None:
        require_positive(
            self,
            "num_episodes",
            "rollout_batch",
            "minibatch",
            "num_epochs",
            "microbatch",
            "temperature",
            "max_response_tokens",
            "kl_target",
            "kl_horizon",
        )
        if self.rollout_batch % self.minibatch:
            raise ValueError(
                f"minibatch: found {self.minibatch}, accepted are divisors of rollout_batch {self.rollout_batch}"
            )
        if self.num_episodes % self.rollout_batch:
            raise ValueError(
                f"num_episodes: found {self.num_episodes}, accepted are multiples of rollout_batch {self.rollout_batch}"
            )
        for name in (
            "kl_coef",
            "ptx_coef",
            "ptx_examples_per_episode",
            "vf_coef",
            "cliprange",
            "cliprange_value",
            "warmup_iterations",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: found {getattr(self, name)}, accepted are numbers from 0")
        for name in ("discount", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, accepted are numbers from 0 to 1")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: found {self.ema_decay}, accepted is [0, 1)")
        if self.ptx_coef > 0 and self.num_ptx_examples < 1:
            raise ValueError(
                f"ptx_examples_per_episode: found {self.ptx_examples_per_episode}, accepted is at least one block of "
                f"plain text beside a minibatch of {self.minibatch}"
            )

    @property
    def num_iterations(self) -> int:
        return self.num_episodes // self.rollout_batch

    @property
    def num_optimizer_steps(self) -> int:
        return self.num_iterations * self.num_epochs * (self.rollout_batch // self.minibatch)

    def concerns(self) -> list[str]:
        """What is allowed and seldom meant: settings under which little is learned, and what helps."""
        found = []
        if self.warmup_iterations >= self.num_iterations:
            found.append(
                f"the warm-up of {self.warmup_iterations} iterations is as long as the whole of {self.num_iterations}: "
                "the rates do not come to their peak; lower warmup_iterations or raise num_episodes"
            )
        if (left := self.ema_decay**self.num_optimizer_steps) > 0.5:
            found.append(
                f"the averaged weights, which are what is saved, are {left:.0%} those of the start after "
                f"{self.num_optimizer_steps} optimiser steps; lower ema_decay {self.ema_decay} or raise num_episodes"
            )
        return found

    @property
    def num_ptx_examples(self) -> int:
        """Blocks of plain text beside each minibatch."""
        return round(self.ptx_examples_per_episode * self.minibatch) if self.ptx_coef > 0 else 0
