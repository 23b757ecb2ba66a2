"""The paper's experiment in a generated world, from pretraining to the report, in minutes on a laptop."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from instructrl.data import hygiene, tables
from instructrl.data.encoding import Encoder, Limits, pack_documents
from instructrl.data.tokenizers import word_tokenizer
from instructrl.evaluation.contenders import Contender, Exam, Judgement, Question
from instructrl.models.backbone import check_context
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.rollout.randomness import keyed_seed
from instructrl.runs import steps
from instructrl.runs.journal import Journal
from instructrl.runs.labeling import Labeling
from instructrl.runs.recipe import ModelShape, Recipe
from instructrl.trainers.checkpoints import CheckpointConfig
from instructrl.trainers.log import RunLog
from instructrl.trainers.optimization import AdamConfig
from instructrl.trainers.ppo import PPOConfig
from instructrl.trainers.pretraining import PretrainingConfig
from instructrl.trainers.reward_model import RewardModelConfig
from instructrl.trainers.sft import SFTConfig
from instructrl.types import Prompt, Rollout, require_positive
from instructrl.worlds.miniature import MiniatureWorld, WorldConfig

# Where prompts come from; the paper's PPO prompts are customers' alone, its demonstrations mostly labelers'.
SOURCE_SHARES = {"customer": 0.8, "labeler": 0.2}
# Raw prompts drawn for each that is needed: hygiene removes about a third, since many ask the same.
RAW_EXCESS = 2.0

# Prompts with the few-shot prefix still fit.
MAX_RAW_PROMPT_TOKENS = 30
# Mean length of a document with its end of text, for the plan.
_DOCUMENT_TOKENS = 48

DESCRIPTION = "a generated world in which the paper's experiment takes minutes"


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniatureSizes:
    """How much of everything the world provides."""

    # documents of the pretraining corpus, about 40 tokens each
    documents: int = 60_000
    # documents held out, to measure the alignment tax
    held_out_documents: int = 1_000
    # demonstrations that labelers write for SFT
    demonstrations: int = 4_000
    # prompts whose completions are ranked for the reward model
    comparisons: int = 6_000
    # fewest and most completions of a ranked prompt
    min_completions: int = 4
    max_completions: int = 9
    # prompts that PPO samples responses to
    ppo_prompts: int = 3_000
    # prompts of validation users: validation loss and the selection of the SFT baseline
    validation: int = 300
    # comparisons by held-out labelers on validation users' prompts
    held_out_comparisons: int = 400
    # prompts of test users: the evaluation
    test: int = 1_500

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


def _ppo(ptx_coef: float) -> PPOConfig:
    return PPOConfig(
        num_episodes=20 * 256,
        rollout_batch=256,
        minibatch=64,
        microbatch=64,
        policy_adam=AdamConfig(lr=3e-4),
        value_adam=AdamConfig(lr=5e-4),
        warmup_iterations=5,
        kl_coef=0.15,
        ema_decay=0.9,
        ptx_coef=ptx_coef,
        ptx_examples_per_episode=0.5,
    )


MINIATURE_RECIPE = Recipe(
    limits=Limits(max_prompt_tokens=104, max_response_tokens=32),
    block_tokens=128,
    pretraining=PretrainingConfig(adam=AdamConfig(lr=4e-3, max_grad_norm=1.0), warmup_steps=100, batch_size=8),
    sft=SFTConfig(adam=AdamConfig(lr=5e-4), batch_size=32, epochs=6, residual_dropout=0.1),
    ppo_start=SFTConfig(
        adam=AdamConfig(lr=5e-4), batch_size=32, epochs=6, residual_dropout=0.1, pretraining_fraction=0.1
    ),
    reward_model=RewardModelConfig(adam=AdamConfig(lr=1e-3), batch_size=16),
    ppo=_ppo(0.0),
    ppo_ptx=_ppo(1.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniatureConfig:
    """One run of the miniature."""

    # of the world, the data, the models and everything sampled
    seed: int = 0
    # of the model that is made
    model: ModelShape = ModelShape(heads=2, context=136)
    # of the data that the world provides
    sizes: MiniatureSizes = MiniatureSizes()
    # what each step does
    recipe: Recipe = MINIATURE_RECIPE
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


MINIATURE = MiniatureConfig()
SMOKE = MiniatureConfig(
    sizes=MiniatureSizes(
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
        ppo=replace(MINIATURE_RECIPE.ppo, num_episodes=512),
        ppo_ptx=replace(MINIATURE_RECIPE.ppo_ptx, num_episodes=512),
    ),
)


def counts(config: MiniatureConfig) -> dict[str, int | None]:
    """The sizes of the data, known before they are made."""
    sizes = config.sizes
    return {
        "blocks": sizes.documents * _DOCUMENT_TOKENS // config.recipe.block_tokens,
        "demonstrations": sizes.demonstrations,
        "comparisons": sizes.comparisons,
        "ppo_prompts": sizes.ppo_prompts,
        "test": sizes.test,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _PromptSets:
    """Disjoint prompts of training users for each step, and those of held-out users."""

    sft: list[Prompt]
    comparisons: list[Prompt]
    ppo: list[Prompt]
    validation: list[Prompt]
    held_out: list[Prompt]
    test: list[Prompt]


def run_miniature(config: MiniatureConfig, folder: Path, log: RunLog) -> dict[str, Any]:
    """All steps. Writes models and `results.json` into `folder`; returns the results."""
    world = MiniatureWorld(WorldConfig(seed=config.seed))
    tokenizer = word_tokenizer(world.vocabulary())
    work = steps.Workspace(
        folder=folder,
        log=log,
        encoder=Encoder(tokenizer, config.recipe.limits),
        recipe=config.recipe,
        seed=config.seed,
        config=asdict(config),
        journal=Journal(folder, log, config.checkpoints),
    )
    sets, data = _collect_prompts(world, work, config.sizes)
    blocks = pack_documents(world.documents(config.sizes.documents, seed=0), tokenizer, config.recipe.block_tokens)
    demonstrations = world.demonstrations(sets.sft)
    validation = world.demonstrations(sets.validation, seed=1)

    gpt = steps.new_policy(work, config.model)
    check_context(gpt.lm, max(config.recipe.limits.total, config.recipe.block_tokens))
    gpt = steps.pretrain(work, gpt, blocks)
    last_sft, epochs = steps.finetune(work, gpt, demonstrations, validation, phase="sft")
    start, _ = steps.finetune(work, gpt, demonstrations, validation, phase="ppo_start", blocks=blocks)

    labeling = Labeling(world=world, work=work, completions=config.sizes.completions, gpt=gpt, sft=last_sft)
    comparisons = labeling.compare(sets.comparisons, world.labelers("training"), "training")
    reward_model = steps.fit_reward_model(work, last_sft, comparisons, demonstrations)
    quality = labeling.quality(reward_model, comparisons, sets.held_out, demonstrations)
    sft, selection = steps.select_sft(work, epochs, reward_model, [prompt.text for prompt in sets.validation])

    observer = _gold_observer(world, work)
    prompts = [prompt.text for prompt in sets.ppo]
    ppo = steps.optimize_policy(work, start, reward_model, prompts, phase="ppo", observer=observer)
    ppo_ptx = steps.optimize_policy(
        work, start, reward_model, prompts, phase="ppo_ptx", blocks=blocks, observer=observer
    )
    contenders = [
        Contender(name="GPT", policy=gpt),
        Contender(name="GPT (prompted)", policy=gpt, form=world.few_shot_prompt),
        Contender(name="SFT", policy=sft),
        Contender(name="PPO", policy=ppo),
        Contender(name="PPO-ptx", policy=ppo_ptx),
    ]
    parts = {
        "run": {
            "name": "miniature",
            "seed": config.seed,
            "description": DESCRIPTION,
            "judge": "gold rubric",
            "baseline": "SFT",
        },
        "reward_model": quality,
        "sft_selection": selection,
        "data": data,
    }
    return steps.examine(
        work, _exam(world, work, config.sizes, sets.test, reward_model, start), contenders, sets.test, parts
    )


def _exam(
    world: MiniatureWorld,
    work: steps.Workspace,
    sizes: MiniatureSizes,
    test: Sequence[Prompt],
    reward_model: RewardModel,
    start: Policy,
) -> Exam:
    """Test users' prompts, held-out text and the world's facts, judged by the gold rubric."""
    return Exam(
        prompts=[prompt.text for prompt in test],
        blocks=pack_documents(
            world.documents(sizes.held_out_documents, seed=1), work.encoder.tokenizer, work.recipe.block_tokens
        ),
        questions=[
            Question(context=q.context, correct=q.correct, alternatives=tuple(q.alternatives))
            for q in world.fact_questions()
        ],
        judge=_gold_judge(world),
        reward_model=reward_model,
        start=start,
        encoder=work.encoder,
        sampling=work.sampling("evaluation"),
    )


def _collect_prompts(
    world: MiniatureWorld, work: steps.Workspace, sizes: MiniatureSizes
) -> tuple[_PromptSets, dict[str, Any]]:
    """Raw prompts of each group of users through the paper's hygiene, then disjoint sets for the steps.

    The groups of users are disjoint by construction, so splitting by user is already done. Two users may still ask
    the same thing: what test users ask is taken out of the other groups, then what validation users ask out of the
    training group.
    """
    counts = {
        "test": (sizes.test,),
        "validation": (sizes.validation, sizes.held_out_comparisons),
        "train": (sizes.demonstrations, sizes.comparisons, sizes.ppo_prompts),
    }
    taken: dict[str, list[list[Prompt]]] = {}
    steps_taken: list[dict[str, Any]] = []
    for split, wanted in counts.items():
        raw = [
            prompt
            for source, share in SOURCE_SHARES.items()
            for prompt in world.raw_prompts(split, round(share * RAW_EXCESS * sum(wanted)), source=source)
        ]
        held_out = [prompt for subsets in taken.values() for subset in subsets for prompt in subset]
        clean = _clean(raw, held_out, work, steps_taken, split=split)
        subsets = steps.take_disjoint(len(clean), wanted, keyed_seed(work.seed_for("prompts"), *split.encode()))
        taken[split] = [[clean[i] for i in subset] for subset in subsets]
    sets = _PromptSets(
        sft=taken["train"][0],
        comparisons=taken["train"][1],
        ppo=taken["train"][2],
        validation=taken["validation"][0],
        held_out=taken["validation"][1],
        test=taken["test"][0],
    )
    splits = {
        "SFT": {"train": sets.sft, "valid": sets.validation},
        "RM": {"train": sets.comparisons, "valid": sets.held_out},
        "PPO": {"train": sets.ppo, "test": sets.test},
    }
    return sets, {
        "sizes": tables.size_rows(splits),
        "lengths": tables.prompt_length_rows(splits, work.encoder.tokenizer),
        "hygiene": steps_taken,
    }


def _clean(
    prompts: list[Prompt], held_out: list[Prompt], work: steps.Workspace, counts: list[dict[str, Any]], *, split: str
) -> list[Prompt]:
    """The paper's order: duplicates, cap, prompts also held out, personal data (training split only), lengths."""
    filters = {
        "duplicates by common prefix": hygiene.drop_common_prefixes,
        "cap per user": hygiene.cap_per_user,
        "prompt also held out": lambda rows: hygiene.drop_overlap(rows, held_out),
        "personal data": hygiene.remove_personal_data,
        "length": lambda rows: hygiene.limit_lengths(
            rows,
            work.encoder.tokenizer,
            max_prompt_tokens=MAX_RAW_PROMPT_TOKENS,
            max_response_tokens=work.recipe.limits.max_response_tokens,
        ),
    }
    if split != "train":
        del filters["personal data"]
    for step, keep in filters.items():
        kept = keep(prompts)
        prompts = kept.records
        counts.append({"step": f"{split}: {step}", "removed": kept.removed, "left": len(prompts)})
    return prompts


def _gold_judge(world: MiniatureWorld):
    def judge(prompts: Sequence[str], texts: Sequence[str], finished: Sequence[bool]) -> list[Judgement]:
        ratings = [world.rate(*row) for row in zip(prompts, texts, finished, strict=True)]
        return [Judgement(score=r.score, likert=float(r.likert), metadata=r.metadata) for r in ratings]

    return judge


def _gold_observer(world: MiniatureWorld, work: steps.Workspace):
    """The gold rubric's mean over each rollout batch: shows over-optimisation, and nothing is trained on it."""

    def observe(prompts: Sequence[str], rollout: Rollout) -> dict[str, float]:
        sequences = rollout.sequences
        texts = work.encoder.decode(sequences.response, sequences.response_mask)
        rows = zip(prompts, texts, rollout.finished.tolist(), strict=True)
        return {"gold": sum(world.rate(*row).score for row in rows) / len(prompts)}

    return observe
