"""The hyperparameters of all steps together, and the paper's for its three sizes."""

from collections.abc import Mapping
from dataclasses import dataclass

from instructrl.data.settings import Limits
from instructrl.models.settings import AdapterConfig
from instructrl.settings import require_positive
from instructrl.trainers.settings import AdamConfig, PPOConfig, PretrainingConfig, RewardModelConfig, SFTConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A GPT-2 made from nothing."""

    # transformer blocks
    layers: int = 2
    # hidden size
    width: int = 128
    # attention heads
    heads: int = 4
    # positions
    context: int = 128

    def __post_init__(self) -> None:
        require_positive(self, "layers", "width", "heads", "context")
        if self.width % self.heads:
            raise ValueError(f"heads: found {self.heads}, accepted are divisors of width {self.width}")


def any_in_parts(*steps: PretrainingConfig | SFTConfig | RewardModelConfig | PPOConfig | None) -> bool:
    """Whether a job reads networks so that each process has its rows alone: where a step has it so."""
    return any(step.passes.spread == "fsdp" for step in steps if step is not None)


def check_lengths(limits: Limits, block_tokens: int, steps: Mapping[str, PPOConfig]) -> None:
    """Raise ValueError for blocks that predict nothing, and for a step that samples more than a response may have."""
    if block_tokens < 2:
        raise ValueError(f"block_tokens: found {block_tokens}, accepted is at least 2: one predicts the next")
    for name, step in steps.items():
        if step.max_response_tokens is not None and step.max_response_tokens > limits.max_response_tokens:
            raise ValueError(
                f"{name}.max_response_tokens: found {step.max_response_tokens}, accepted are up to "
                f"limits.max_response_tokens {limits.max_response_tokens}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What each step does with the data it is given."""

    # length limits of prompts and responses, in tokens
    limits: Limits = Limits()
    # length of a block of plain text: the paper's "pretraining example"
    block_tokens: int = 2048
    # pretraining, only for models made here; None if the model is already pretrained
    pretraining: PretrainingConfig | None = None
    # what is trained: adapters on a base that all models share, or all weights
    adapter: AdapterConfig = AdapterConfig()
    # step 1: supervised fine-tuning
    sft: SFTConfig = SFTConfig()
    # step 1: the separate branch that PPO starts from (paper, C.3)
    ppo_start: SFTConfig = SFTConfig(adam=AdamConfig(lr=5e-6), epochs=2, pretraining_fraction=0.1)
    # step 2: the reward model
    reward_model: RewardModelConfig = RewardModelConfig()
    # step 3 without the pretraining mix: PPO
    ppo: PPOConfig = PPOConfig()
    # step 3 with the pretraining mix: PPO-ptx
    ppo_ptx: PPOConfig = PPOConfig(ptx_coef=27.8)

    @property
    def in_parts(self) -> bool:
        return any_in_parts(self.pretraining, self.sft, self.ppo_start, self.reward_model, self.ppo, self.ppo_ptx)

    def __post_init__(self) -> None:
        check_lengths(self.limits, self.block_tokens, {"ppo": self.ppo, "ppo_ptx": self.ppo_ptx})
        if self.ppo_ptx.ptx_coef == 0:
            raise ValueError("ppo_ptx.ptx_coef: found 0, accepted are positive numbers: ppo is the run without the mix")
        if self.ppo.ptx_coef != 0:
            raise ValueError(f"ppo.ptx_coef: found {self.ppo.ptx_coef}, accepted is 0: ppo_ptx is the run with the mix")


def paper_recipe(*, sft_lr: float, start_lr: float, sft_batch: int, policy_lr: float, value_lr: float) -> Recipe:
    """The numbers that the paper gives for all sizes, with those that depend on the size passed in."""

    def ppo(ptx_coef: float) -> PPOConfig:
        return PPOConfig(policy_adam=AdamConfig(lr=policy_lr), value_adam=AdamConfig(lr=value_lr), ptx_coef=ptx_coef)

    return Recipe(
        sft=SFTConfig(adam=AdamConfig(lr=sft_lr), batch_size=sft_batch),
        ppo_start=SFTConfig(adam=AdamConfig(lr=start_lr), batch_size=sft_batch, epochs=2, pretraining_fraction=0.1),
        ppo=ppo(0.0),
        ppo_ptx=ppo(27.8),
    )


# The policy rates are not stated: these are the largest of the sweeps in E.9 that did not diverge without the mix, and
# the smaller of the two tried for 175B.
PAPER_1_3B = paper_recipe(sft_lr=9.65e-6, start_lr=5e-6, sft_batch=32, policy_lr=8.05e-6, value_lr=9e-6)
PAPER_6B = paper_recipe(sft_lr=9.65e-6, start_lr=1.04e-5, sft_batch=32, policy_lr=8.05e-6, value_lr=9e-6)
PAPER_175B = paper_recipe(sft_lr=5.03e-6, start_lr=2.45e-6, sft_batch=8, policy_lr=2.55e-6, value_lr=5e-6)
