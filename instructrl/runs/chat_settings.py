"""Settings of the run that aligns a chat model."""

from dataclasses import dataclass
from typing import Literal

from instructrl.data.settings import DATE, Limits
from instructrl.evaluation.suites.settings import SuiteConfig
from instructrl.models.settings import AdapterConfig
from instructrl.runs.recipe import any_in_parts, check_lengths
from instructrl.settings import DeviceName, require_positive
from instructrl.tracking.settings import TrackerName
from instructrl.trainers.settings import AdamConfig, CheckpointConfig, PPOConfig, RewardModelConfig, SFTConfig

CHAT_DESCRIPTION = "your chat model, aligned by public human comparisons through its own chat template"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRecipe:
    """What each step does with the data it is given."""

    # length limits in tokens, of prompts with what the template puts around them, and of responses
    limits: Limits = Limits(max_prompt_tokens=128, max_response_tokens=96)
    # length of a block of plain text
    block_tokens: int = 128
    # what is trained: adapters on a base that all models share
    adapter: AdapterConfig = AdapterConfig(rank=16, base_dtype="bfloat16")
    # step 1: supervised fine-tuning
    sft: SFTConfig = SFTConfig(adam=AdamConfig(lr=5e-4), batch_size=8, epochs=1, residual_dropout=0.0, microbatch=8)
    # step 2: the reward model and the judge
    reward_model: RewardModelConfig = RewardModelConfig(adam=AdamConfig(lr=5e-4), batch_size=8, microbatch=4)
    # step 3: PPO
    ppo: PPOConfig = PPOConfig(
        num_episodes=320,
        rollout_batch=32,
        minibatch=8,
        microbatch=8,
        policy_adam=AdamConfig(lr=1.5e-4),
        value_adam=AdamConfig(lr=5e-4),
        warmup_iterations=1,
        kl_coef=0.05,
        max_response_tokens=32,
        ema_decay=0.8,
    )

    @property
    def in_parts(self) -> bool:
        return any_in_parts(self.sft, self.reward_model, self.ppo)

    def __post_init__(self) -> None:
        check_lengths(self.limits, self.block_tokens, {"ppo": self.ppo})
        if self.ppo.ptx_coef != 0:
            raise ValueError(f"ppo.ptx_coef: found {self.ppo.ptx_coef}, accepted is 0: there is no mix in this run")
        if self.sft.pretraining_fraction != 0:
            raise ValueError(
                f"sft.pretraining_fraction: found {self.sft.pretraining_fraction}, accepted is 0: there is no mix in "
                "this run"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRunConfig:
    """One run on a chat model."""

    # seed of the splits, the heads, the adapters and the sampling
    seed: int = 0
    # folder with the data sets finegrained_qa_feedback_k4, hh_rlhf_harmless_test, self_instruct, pandalm_testset and
    # english_novels_pre1900
    data: str = "../shared/data"
    # the model: a transformers folder or name, with a chat template
    model: str | None = None
    # template of prompts: auto (the tokenizer's), none (plain text), or a Jinja file, which is saved with the models
    chat_template: str = "auto"
    # today's date, for a template that asks for it
    chat_date: str = DATE
    # rows for the evaluation: test for what is reported, validation for choosing settings
    evaluate: Literal["test", "validation"] = "test"
    # demonstrations for SFT
    demonstrations: int = 150
    # comparisons for the reward model
    comparisons: int = 400
    # other comparisons, for the judge
    judge_comparisons: int = 300
    # other comparisons, on which both are measured
    held_out_comparisons: int = 200
    # instructions of PandaLM, on which both are measured
    pandalm: int = 60
    # prompts that PPO samples responses to
    ppo_prompts: int = 320
    # prompts on which the models are compared
    test_prompts: int = 100
    # longest prompt of PPO and of the evaluation, in tokens, with what the template puts around it
    max_ppo_prompt_tokens: int = 64
    # blocks of plain text on which the loss is measured
    blocks: int = 16
    # what each step does
    recipe: ChatRecipe = ChatRecipe()
    # public test sets for all models at the end (docs/suites.md): NAME, or NAME=FOLDER
    suites: tuple[str, ...] = ()
    # of the public test sets
    suite: SuiteConfig = SuiteConfig()
    # also shows curves, samples, settings and times there (docs/tracking.md)
    track: TrackerName = "none"
    # where networks lie and run: auto is a CUDA GPU where there is one, else the CPU (docs/devices.md)
    device: DeviceName = "auto"
    # how often the run is saved
    checkpoints: CheckpointConfig = CheckpointConfig()

    def __post_init__(self) -> None:
        require_positive(
            self,
            "demonstrations",
            "comparisons",
            "judge_comparisons",
            "held_out_comparisons",
            "pandalm",
            "ppo_prompts",
            "test_prompts",
            "max_ppo_prompt_tokens",
            "blocks",
        )


def check_chat(config: ChatRunConfig) -> None:
    """Raise ValueError where the model is not given."""
    if config.model is None:
        raise ValueError("model: found nothing, this run needs --model, a chat model with its tokenizer and template")
