"""All steps on records that are already there: a user's own files, or public data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from instructrl.data.encoding import Encoder
from instructrl.evaluation import results as assemble
from instructrl.evaluation.contenders import Contender, Exam, Judge, Judgement
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.rollout.scoring import comparison_scores, score_texts
from instructrl.runs import steps
from instructrl.runs.examination import examine
from instructrl.runs.selection import select_checkpoint
from instructrl.types import Comparison, Conversation, Demonstration, Message, Prompt

# Nobody can be asked about new responses: a second reward model, which PPO never sees, stands in.
JUDGE = "reward model trained on the held-out comparisons"


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The data of a run. blocks, held_out_blocks: [N, L] int64 of plain text. tables: for the results."""

    demonstrations: Sequence[Demonstration]
    validation: Sequence[Demonstration]
    comparisons: Sequence[Comparison]
    held_out_comparisons: Sequence[Comparison]
    ppo_prompts: Sequence[str]
    test: Sequence[Prompt]
    blocks: Tensor
    held_out_blocks: Tensor
    tables: dict[str, Any]


def run_experiment(
    work: steps.Workspace, material: Material, gpt: Policy, run: dict[str, Any], reward_base: Policy | None = None
) -> dict[str, Any]:
    """Every step after pretraining. Writes models and `results.json`; returns the results.

    run: name, seed and description. reward_base: what the reward model starts from, if not the last SFT epoch (the
    paper's is a 6B model for policies of every size).
    """
    last_sft, epochs = steps.finetune(work, gpt, material.demonstrations, material.validation, phase="sft")
    start, _ = steps.finetune(
        work, gpt, material.demonstrations, material.validation, phase="ppo_start", blocks=material.blocks
    )
    base = last_sft if reward_base is None else reward_base
    reward_model = steps.fit_reward_model(work, base, material.comparisons, material.demonstrations)
    judge = steps.fit_reward_model(work, base, material.held_out_comparisons, material.demonstrations, phase="judge")
    selection_prompts = [row.prompt for row in material.validation]
    sft, selection = select_checkpoint(work, epochs, reward_model, selection_prompts, "sft")
    ppo = steps.optimize_policy(work, start, reward_model, material.ppo_prompts, phase="ppo")
    ppo_ptx = steps.optimize_policy(
        work, start, reward_model, material.ppo_prompts, phase="ppo_ptx", blocks=material.blocks
    )
    contenders = [
        Contender(name="GPT", policy=gpt),
        Contender(name="GPT (prompted)", policy=gpt, form=few_shot_form(material.demonstrations, work.encoder)),
        Contender(name="SFT", policy=sft),
        Contender(name="PPO", policy=ppo),
        Contender(name="PPO-ptx", policy=ppo_ptx),
    ]
    exam = Exam(
        prompts=[prompt.text for prompt in material.test],
        blocks=material.held_out_blocks,
        questions=[],
        judge=model_judge(judge, work.encoder),
        judged_by=judge,
        reward_model=reward_model,
        start=start,
        encoder=work.encoder,
        sampling=work.sampling("evaluation"),
    )
    parts = {
        "run": {**run, "judge": JUDGE, "baseline": "SFT"},
        "reward_model": _quality(work.encoder, reward_model, judge, material),
        "sft_selection": selection,
        "data": material.tables,
    }
    return examine(work, exam, contenders, material.test, parts)


def few_shot_form(
    demonstrations: Sequence[Demonstration], encoder: Encoder, num_examples: int = 3
) -> Callable[[str], str]:
    """A prompt behind the shortest demonstrations, as far as they fit under the prompt limit beside it: texts before a
    text, earlier turns before the first of a conversation."""
    candidates = [row for row in demonstrations[:1000] if not getattr(row.prompt, "needs_template", "")]
    shortest = sorted(candidates, key=lambda row: len(row.prompt) + len(row.completion))[:num_examples]

    def form(prompt: str) -> str:
        for count in range(len(shortest), -1, -1):
            text = behind_examples(prompt, shortest[:count])
            if count == 0 or encoder.fits(text):
                return text
        raise AssertionError("the loop ends at no examples")

    return form


def behind_examples(prompt: str, examples: Sequence[Demonstration]) -> str:
    """A prompt with examples before it; without any, the prompt as it is."""
    if not examples:
        return prompt
    if not isinstance(prompt, Conversation):
        return "".join(f"{row.prompt}\n{row.completion}\n\n" for row in examples) + prompt + "\n"
    turns: list[Message] = []
    for row in examples:
        asked = row.prompt.messages if isinstance(row.prompt, Conversation) else [Message("user", row.prompt)]
        turns += [*(m for m in asked if m.role != "system"), Message("assistant", row.completion)]
    system = [message for message in prompt.messages if message.role == "system"]
    return Conversation([*system, *turns, *(m for m in prompt.messages if m.role != "system")], prompt.tools)


def model_judge(judge: RewardModel, encoder: Encoder) -> Judge:
    """A reward model as a judge."""

    def judgements(prompts: Sequence[str], texts: Sequence[str], finished: Sequence[bool]) -> list[Judgement]:
        return [Judgement(score=score) for score in score_texts(judge, encoder, prompts, texts, finished).tolist()]

    return judgements


def _quality(encoder: Encoder, reward_model: RewardModel, judge: RewardModel, material: Material) -> dict[str, Any]:
    """The `reward_model` entry. Each model is measured on the comparisons that the other one was trained on."""
    held_out = list(material.held_out_comparisons)
    train = list(material.comparisons)
    demonstrations = material.demonstrations
    prompts = [row.prompt for row in demonstrations]
    mean = score_texts(reward_model, encoder, prompts, [row.completion for row in demonstrations]).mean()
    return {
        **assemble.comparison_counts(train),
        "accuracy_heldout_comparisons": assemble.accuracy(comparison_scores(reward_model, encoder, held_out), held_out),
        "accuracy_judge": assemble.accuracy(comparison_scores(judge, encoder, train), train),
        "bias": float(reward_model.bias),
        "mean_demonstration_score": float(mean),
    }
