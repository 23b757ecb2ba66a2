"""All steps on a chat model that exists: prompts go through its own template, and what is trained are adapters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructrl.data.encoding import Encoder
from instructrl.evaluation import results
from instructrl.evaluation.contenders import Contender, Exam
from instructrl.evaluation.reward_quality import quality_row
from instructrl.models.backbone import check_context
from instructrl.models.policy import Policy
from instructrl.models.roles import load_policy
from instructrl.models.scoring import RewardModel, check_scalar_head
from instructrl.rollout.scoring import comparison_scores, rollout_scores
from instructrl.runs import steps
from instructrl.runs.chat_data import PANDALM, UNSHOWN, ChatMaterial, read_material
from instructrl.runs.chat_settings import CHAT_DESCRIPTION, ChatRunConfig, check_chat
from instructrl.runs.examination import examine
from instructrl.runs.experiment import model_judge
from instructrl.runs.standalone import load_encoder
from instructrl.trainers.log import RunLog
from instructrl.trainers.ppo import RolloutObserver
from instructrl.types import Rollout

JUDGE = "reward model trained on other comparisons"
BEFORE = "Before"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatInput:
    """What the run works with, read and found good."""

    config: ChatRunConfig
    encoder: Encoder
    material: ChatMaterial
    start: Policy


def read_chat(config: ChatRunConfig) -> ChatInput:
    """Read the model and every row. Raises ValueError for input that cannot be used; writes nothing."""
    check_chat(config)
    assert config.model is not None
    encoder = load_encoder(config.model, config.recipe.limits, config)
    if encoder.chat is None and config.chat_template == "auto":
        raise ValueError(
            f"model {config.model}: found a tokenizer without a chat template, accepted is one with it, or "
            "--chat-template FILE or none"
        )
    start = load_policy(config.model, encoder.tokenizer, config.recipe.adapter, in_parts=config.recipe.in_parts)
    check_context(start.lm, max(config.recipe.limits.total, config.recipe.block_tokens))
    check_scalar_head(start)
    return ChatInput(config=config, encoder=encoder, material=read_material(config, encoder), start=start)


def run_chat(given: ChatInput, folder: Path, log: RunLog) -> dict[str, Any]:
    """All steps. Writes models and `results.json` into `folder`; returns the results."""
    config, material, encoder = given.config, given.material, given.encoder
    work = steps.Workspace.of_run(config, encoder, folder, log, {"model": config.model})
    sft, _ = steps.finetune(work, given.start, material.demonstrations, material.validation, phase="sft")
    reward_model = steps.fit_reward_model(work, sft, material.comparisons, material.demonstrations)
    judge = steps.fit_reward_model(work, sft, material.judge_comparisons, material.demonstrations, phase="judge")
    quality = _quality(work, material, {"reward model": reward_model, "judge": judge})
    observer = judge_observer(judge, encoder)
    ppo = steps.optimize_policy(work, sft, reward_model, material.ppo_prompts, phase="ppo", observer=observer)
    contenders = [
        Contender(name=BEFORE, policy=given.start),
        Contender(name="SFT", policy=sft),
        Contender(name="PPO", policy=ppo),
    ]
    exam = Exam(
        prompts=[prompt.text for prompt in material.test],
        blocks=material.blocks,
        questions=[],
        judge=model_judge(judge, encoder),
        judged_by=judge,
        reward_model=reward_model,
        start=sft,
        encoder=encoder,
        sampling=work.sampling("evaluation"),
    )
    parts = {
        "run": {
            "name": "chat",
            "seed": config.seed,
            "description": f"{CHAT_DESCRIPTION}: {config.model}",
            "judge": JUDGE,
            "baseline": "SFT",
            "prompts": f"{config.evaluate} prompts",
        },
        "reward_model": quality,
        "data": material.data,
    }
    shown = [i for i, prompt in enumerate(material.test) if prompt.source not in UNSHOWN]
    return examine(work, exam, contenders, material.test, parts, pretrained=BEFORE, favourite="PPO", shown=shown)


def judge_observer(judge: RewardModel, encoder: Encoder) -> RolloutObserver:
    """The judge's mean over each rollout batch and its standard deviation; nothing is trained on it."""

    def observe(prompts: Sequence[str], rollout: Rollout) -> dict[str, float]:
        scores = rollout_scores(judge, rollout, encoder.end_of_text).double()
        return {"gold": float(scores.mean()), "gold_std": float(scores.std(correction=0))}

    return observe


def _quality(work: steps.Workspace, material: ChatMaterial, models: Mapping[str, RewardModel]) -> dict[str, Any]:
    """The `reward_model` entry: both models on comparisons that neither was trained on."""
    encoder, held_out = work.encoder, material.held_out
    asked = [row for name, rows in held_out.items() if name != PANDALM for row in rows]

    def step(*_: object) -> dict[str, Any]:
        measured, accuracies = [], {}
        with work.log.phase("reward quality", len(models) * len(held_out), "comparisons") as bar:
            for name, model in models.items():
                scores = {}
                for data, rows in held_out.items():
                    scores[data] = comparison_scores(model, encoder, rows)
                    lengths = [[len(encoder.response(t, prompt=row.prompt)) for t in row.completions] for row in rows]
                    measured.append(quality_row(name, data, scores[data], lengths, rows))
                    bar.advance(units=len(rows), note=name)
                pooled = [row for data, found in scores.items() if data != PANDALM for row in found]
                accuracies[name] = results.accuracy(pooled, asked)
        return {"held_out": measured, "accuracies": accuracies}

    found = work.journal.once("reward_quality", step, {**models, "held-out comparisons": list(held_out.items())})
    return {
        **results.comparison_counts(material.comparisons),
        "accuracy_heldout_comparisons": found["accuracies"]["reward model"],
        "accuracy_judge": found["accuracies"]["judge"],
        "held_out": found["held_out"],
        "annotators": material.annotators,
        "bias": float(models["reward model"].bias),
    }
