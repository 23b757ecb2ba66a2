"""Settings of the named runs."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from instructrl.data.settings import DATE, Limits, LongPrompts
from instructrl.evaluation.suites.settings import SuiteConfig
from instructrl.runs.baseline_settings import BaselineConfig
from instructrl.runs.recipe import ModelShape, Recipe
from instructrl.settings import DeviceName, require_positive
from instructrl.tracking.settings import TrackerName
from instructrl.trainers.settings import (
    AdamConfig,
    CheckpointConfig,
    PPOConfig,
    PretrainingConfig,
    RewardModelConfig,
    SFTConfig,
)
from instructrl.worlds.settings import WorldConfig

MINIATURE_DESCRIPTION = "a generated world in which the paper's experiment takes minutes"
# Of a run of all sizes, behind the description.
PLAIN_NAMES = "models with no size in their name are of size S"
PUBLIC_DESCRIPTION = "real human rankings and demonstrations with the GPT-2 tokenizer and a small model"


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniatureAmounts:
    """How much of everything the world provides."""

    # documents of the pretraining corpus, about 48 tokens each
    documents: int = 60_000
    # documents held out, to measure the alignment tax
    held_out_documents: int = 1_000
    # demonstrations that labelers write for SFT
    demonstrations: int = 2_500
    # prompts whose completions are ranked for the reward model
    comparisons: int = 4_500
    # fewest and most completions of a ranked prompt
    min_completions: int = 4
    max_completions: int = 9
    # prompts that PPO samples responses to
    ppo_prompts: int = 3_000
    # prompts of validation users: validation loss and the selection of the SFT baseline
    validation: int = 300
    # comparisons by held-out labelers on validation users' prompts
    held_out_comparisons: int = 400
    # prompts of test users, GPT-style ones included: the evaluation
    test: int = 1_200

    @property
    def completions(self) -> tuple[int, int]:
        """Fewest and most completions of a ranked prompt."""
        return self.min_completions, self.max_completions

    def __post_init__(self) -> None:
        require_positive(self, *(field.name for field in fields(self)))
        if not 2 <= self.min_completions <= self.max_completions:
            raise ValueError(
                f"min_completions: found {self.min_completions}, accepted are 2 to max_completions "
                f"{self.max_completions}"
            )


def _miniature_ppo(ptx_coef: float) -> PPOConfig:
    return PPOConfig(
        num_episodes=40 * 256,
        rollout_batch=256,
        minibatch=64,
        microbatch=64,
        policy_adam=AdamConfig(lr=3e-4),
        value_adam=AdamConfig(lr=5e-4),
        warmup_iterations=5,
        kl_coef=0.05,
        ema_decay=0.9,
        ptx_coef=ptx_coef,
        ptx_examples_per_episode=0.5,
    )


MINIATURE_RECIPE = Recipe(
    limits=Limits(max_prompt_tokens=104, max_response_tokens=32),
    block_tokens=128,
    pretraining=PretrainingConfig(adam=AdamConfig(lr=4e-3, max_grad_norm=1.0), warmup_steps=100, batch_size=8),
    sft=SFTConfig(adam=AdamConfig(lr=3e-3), batch_size=32, epochs=6, residual_dropout=0.1),
    ppo_start=SFTConfig(
        adam=AdamConfig(lr=2e-3), batch_size=32, epochs=4, residual_dropout=0.1, pretraining_fraction=0.1
    ),
    reward_model=RewardModelConfig(adam=AdamConfig(lr=1e-3), batch_size=16),
    ppo=_miniature_ppo(0.0),
    ppo_ptx=_miniature_ppo(1.0),
)


# That of `MiniatureConfig.model`, and others beside it. Heads are as wide in all of them.
OWN_SIZE = "S"
_OTHER_SIZES = {"XS": {"layers": 1, "width": 48, "heads": 1}, "M": {"layers": 2, "width": 144, "heads": 3}}


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniatureConfig:
    """One run of the miniature."""

    # seed of the world, the data, the models and the sampling
    seed: int = 0
    # shape of the model that is made
    model: ModelShape = ModelShape(layers=2, width=96, heads=2, context=136)
    # what the world is made of
    world: WorldConfig = WorldConfig()
    # amounts of data that the world provides
    amounts: MiniatureAmounts = MiniatureAmounts()
    # what each step does
    recipe: Recipe = MINIATURE_RECIPE
    # sizes of the policies: S, which is model, or all: XS and M too, with the reward model of S
    sizes: Literal["S", "all"] = "S"
    # models that the trained ones are compared with
    baselines: BaselineConfig = BaselineConfig()
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
        needed = max(self.recipe.limits.total, self.recipe.block_tokens)
        if self.model.context < needed:
            raise ValueError(
                f"model.context: found {self.model.context}, accepted is at least {needed}, which recipe.limits and "
                "recipe.block_tokens take"
            )
        if self.recipe.pretraining is None:
            raise ValueError("recipe.pretraining: found null, accepted are settings: the model is made here")

    @property
    def other_sizes(self) -> dict[str, ModelShape]:
        """The shapes of policies beside those of `model`, by the name of the size."""
        if self.sizes == OWN_SIZE:
            return {}
        return {name: ModelShape(**shape, context=self.model.context) for name, shape in _OTHER_SIZES.items()}


MINIATURE = MiniatureConfig()


SMOKE = MiniatureConfig(
    amounts=MiniatureAmounts(
        documents=3_000,
        held_out_documents=100,
        demonstrations=200,
        comparisons=200,
        ppo_prompts=200,
        validation=60,
        held_out_comparisons=60,
        test=200,
    ),
    recipe=replace(
        MINIATURE_RECIPE,
        ppo=replace(MINIATURE_RECIPE.ppo, num_episodes=512, warmup_iterations=1),
        ppo_ptx=replace(MINIATURE_RECIPE.ppo_ptx, num_episodes=512, warmup_iterations=1),
    ),
    baselines=BaselineConfig(examples=420, cap_per_task=70, num_kept=3),
)


def _public_ppo(ptx_coef: float) -> PPOConfig:
    return PPOConfig(
        num_episodes=128,
        rollout_batch=32,
        minibatch=16,
        microbatch=16,
        policy_adam=AdamConfig(lr=1e-4),
        value_adam=AdamConfig(lr=3e-4),
        warmup_iterations=2,
        max_response_tokens=48,
        ema_decay=0.8,
        ptx_coef=ptx_coef,
        ptx_examples_per_episode=0.5,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicConfig:
    """One run on public data."""

    # seed of the splits, the models and the sampling
    seed: int = 0
    # folder with the data sets finegrained_qa_feedback_k4, gsm8k, english_novels_pre1900, squality and gpt2_bpe
    data: str = "../shared/data"
    # a pretrained model with its tokenizer, a transformers folder or name; None makes and pretrains one
    model: str | None = None
    # shape of the model that is made
    shape: ModelShape = ModelShape(layers=2, width=128, heads=4, context=320)
    # words of a question's passages that are used
    max_passage_words: int = 40
    # blocks of plain text, for pretraining and for the pretraining mix
    blocks: int = 500
    # demonstrations, after the split
    demonstrations: int = 200
    # prompts that PPO samples responses to, and that the models are compared on
    ppo_prompts: int = 128
    test_prompts: int = 60
    # what each step does
    recipe: Recipe = Recipe(
        limits=Limits(max_prompt_tokens=160, max_response_tokens=128),
        block_tokens=128,
        pretraining=PretrainingConfig(adam=AdamConfig(lr=2e-3), batch_size=16),
        sft=SFTConfig(adam=AdamConfig(lr=5e-4), batch_size=16, epochs=2, residual_dropout=0.1),
        ppo_start=SFTConfig(
            adam=AdamConfig(lr=5e-4), batch_size=16, epochs=2, residual_dropout=0.1, pretraining_fraction=0.1
        ),
        reward_model=RewardModelConfig(adam=AdamConfig(lr=3e-4), batch_size=8),
        ppo=_public_ppo(0.0),
        ppo_ptx=_public_ppo(1.0),
    )
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


PUBLIC = PublicConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesConfig:
    """All steps on files."""

    # seed of all random numbers
    seed: int = 0
    # folder that `instructrl data prepare` wrote
    data: str | None = None
    # plain text for the pretraining mix: a path or hub:NAME
    corpus: str | None = None
    # the pretrained model: a transformers folder or name
    model: str | None = None
    # the model that the reward model starts from, with the same tokenizer; None is the last SFT epoch
    reward_base: str | None = None
    # rows whose prompt is longer than the limit: leave them out and count them, or refuse them
    long_prompts: LongPrompts = "drop"
    # template for prompts that are messages: auto (the tokenizer's, if it has one), none, or a Jinja file, which is
    # saved with the models
    chat_template: str = "auto"
    # today's date, for a template that asks for it
    chat_date: str = DATE
    # test prompts that the models are compared on
    test_prompts: int = 1_000
    # what each step does
    recipe: Recipe = Recipe()
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
        require_positive(self, "test_prompts")


# What a run on files cannot do without.
PATHS = ("data", "corpus", "model")


def check_paths(config: FilesConfig, needed: Sequence[str] = PATHS) -> None:
    """Raise ValueError where a path that the run needs is not given."""
    missing = [name for name in needed if getattr(config, name) is None]
    if missing:
        *most, last = (f"--{name.replace('_', '-')}" for name in needed)
        raise ValueError(f"{', '.join(missing)}: found nothing, this run needs {', '.join(most)} and {last}")
