"""The paper's experiment in a generated world, from pretraining to the report, in minutes on a laptop."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from instructrl.data import hygiene, tables
from instructrl.data.encoding import Encoder, pack_documents
from instructrl.data.tokenizers import word_tokenizer
from instructrl.evaluation.contenders import Contender, Exam, Judgement, Question
from instructrl.models.backbone import check_context
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.rollout.generate import response_texts
from instructrl.rollout.randomness import keyed_seed, take_disjoint
from instructrl.runs import steps
from instructrl.runs.baselines import Baselines
from instructrl.runs.examination import examine
from instructrl.runs.judging_step import JUDGES, Judging
from instructrl.runs.labeling import Labeling
from instructrl.runs.selection import select_checkpoint
from instructrl.runs.settings import MINIATURE_DESCRIPTION, MiniatureAmounts, MiniatureConfig
from instructrl.runs.world_exams import exam_results, sit_conduct, sit_exams
from instructrl.trainers.log import RunLog
from instructrl.types import Demonstration, Document, Prompt, Rollout
from instructrl.worlds.exam_toxicity import ToxicityExam
from instructrl.worlds.exam_truth import TruthExam
from instructrl.worlds.miniature import MiniatureWorld
from instructrl.worlds.overlap import Quotes, is_unseen, num_known_tasks, task_key, tasks_found

# Where prompts come from; the paper's PPO prompts are customers' alone, its demonstrations mostly labelers'.
SOURCE_SHARES = {"customer": 0.8, "labeler": 0.2}
# Raw prompts drawn for each that is needed: hygiene removes about a third, since many ask the same.
RAW_EXCESS = 2.0

# Prompts with the few-shot prefix still fit.
MAX_RAW_PROMPT_TOKENS = 30
# What counts as a long common prefix: prompts have 133 characters at most, half of them fewer than 50. Of 26,000 raw
# ones of training users 575 go by this length, half of them a task with other constraints; none would by the usual 200.
MIN_PREFIX_CHARS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class _PromptSets:
    """Disjoint prompts of training users for each step, and those of held-out users."""

    sft: list[Prompt]
    comparisons: list[Prompt]
    ppo: list[Prompt]
    validation: list[Prompt]
    held_out: list[Prompt]
    test: list[Prompt]

    def of_held_out_users(self) -> list[str]:
        """What the corpus must not hold."""
        return [prompt.text for prompt in (*self.validation, *self.held_out, *self.test)]


def run_miniature(config: MiniatureConfig, folder: Path, log: RunLog) -> dict[str, Any]:
    """All steps. Writes models and `results.json` into `folder`; returns the results."""
    world = MiniatureWorld(config.seed, config.world)
    tokenizer = word_tokenizer(world.vocabulary())
    work = steps.Workspace.of_run(config, Encoder(tokenizer, config.recipe.limits), folder, log)
    sets, data = collect_prompts(world, work, config.amounts)
    documents = world.documents(config.amounts.documents, seed=0, without=sets.of_held_out_users())
    blocks = pack_documents(documents, tokenizer, config.recipe.block_tokens)
    demonstrations = world.demonstrations(sets.sft)
    data["overlap"] = _overlap(world, documents, demonstrations, sets)
    validation = world.demonstrations(sets.validation, seed=1)
    baselines = Baselines.draw(config.baselines, world, demonstrations, config.seed)

    gpt = steps.new_policy(work, config.model)
    check_context(gpt.lm, max(config.recipe.limits.total, config.recipe.block_tokens))
    gpt = steps.pretrain(work, gpt, blocks)
    last_sft, epochs = steps.finetune(work, gpt, demonstrations, validation, phase="sft")
    start, _ = steps.finetune(work, gpt, demonstrations, validation, phase="ppo_start", blocks=blocks)

    labeling = Labeling(world=world, work=work, completions=config.amounts.completions, gpt=gpt, sft=last_sft)
    comparisons = labeling.compare(sets.comparisons, world.labelers("training"), "training")
    reward_model = steps.fit_reward_model(work, last_sft, comparisons, demonstrations)
    quality = labeling.quality(reward_model, comparisons, sets.held_out, demonstrations)
    asked = [row.text for row in sets.validation]
    sft, selection = select_checkpoint(work, epochs, reward_model, asked, "sft")
    prompted, tuned, baseline_rows = baselines.make(work, gpt, reward_model, asked, sets.test)

    observer = gold_observer(world, work)
    prompts = [prompt.text for prompt in sets.ppo]
    ppo = steps.optimize_policy(work, start, reward_model, prompts, phase="ppo", observer=observer)
    ppo_ptx = steps.optimize_policy(
        work, start, reward_model, prompts, phase="ppo_ptx", blocks=blocks, observer=observer
    )
    contenders = [
        Contender(name="GPT", policy=gpt),
        prompted,
        Contender(name="SFT", policy=sft),
        Contender(name="PPO", policy=ppo),
        Contender(name="PPO-ptx", policy=ppo_ptx),
        *tuned,
    ]
    parts = {
        "run": {
            "name": "miniature",
            "seed": config.seed,
            "description": MINIATURE_DESCRIPTION,
            "judge": JUDGES["training"],
            "baseline": "SFT",
        },
        "reward_model": quality,
        "sft_selection": selection,
        "baselines": baseline_rows,
        "data": data,
        "exams": _exams(world, work, contenders),
    }
    held_out = world.documents(config.amounts.held_out_documents, seed=1, without=sets.of_held_out_users())
    exam = exam_of(world, work, held_out, sets.test, reward_model, start)
    judging = Judging(world=world, prompts=sets.test, seed=work.seed_for("judging"), folder=folder)
    return examine(work, exam, contenders, sets.test, parts, panel=judging)


def _exams(world: MiniatureWorld, work: steps.Workspace, contenders: Sequence[Contender]) -> dict[str, Any]:
    """What no user asks for: skills of the corpus, facts that are kept out of training, and rude beginnings."""
    sat = sit_exams(work, contenders, world.exams, world.config.exams.shots)
    truth, toxicity = TruthExam(world.seed, world.facts), ToxicityExam(world.seed)
    return exam_results(sat, sit_conduct(work, contenders, truth, toxicity))


def _overlap(
    world: MiniatureWorld, documents: Sequence[Document], demonstrations: Sequence[Demonstration], sets: _PromptSets
) -> list[dict[str, Any]]:
    """What training texts hold of the test: prompts word for word, and tasks in any of their wordings."""
    test = [prompt.text for prompt in sets.test]
    training = [prompt.text for prompt in (*sets.sft, *sets.comparisons, *sets.ppo)]
    read = [*(document.text for document in documents), *(row.completion for row in demonstrations)]
    read += [world.few_shot_prompt(""), *training]
    unseen = [prompt for prompt in test if is_unseen(prompt)]
    counts = {
        "test prompts word for word in a training text": (len(Quotes(test).found_in(read)), len(test)),
        "tasks of test prompts meant to be unseen, in any wording, in a training text": (
            len(tasks_found(unseen, read)),
            len(set(map(task_key, unseen))),
        ),
        "questions of exams, with their answers, in a training text": (
            world.exams.num_leaked(read),
            len(world.exams.item_texts()),
        ),
        "test prompts for the task of a training prompt, in whatever words": (
            num_known_tasks(test, training),
            len(test),
        ),
    }
    return [{"what": what, "count": count, "total": total} for what, (count, total) in counts.items()]


def exam_of(
    world: MiniatureWorld,
    work: steps.Workspace,
    documents: Sequence[Document],
    test: Sequence[Prompt],
    reward_model: RewardModel,
    start: Policy,
) -> Exam:
    """Test users' prompts, held-out text and the world's facts, judged by the gold rubric."""
    return Exam(
        prompts=[prompt.text for prompt in test],
        blocks=pack_documents(documents, work.encoder.tokenizer, work.recipe.block_tokens),
        questions=[
            Question(context=q.context, correct=q.correct, alternatives=tuple(q.alternatives))
            for q in world.fact_questions()
        ],
        judge=_gold_judge(world),
        judged_by=f"{world.seed} {world.config}",
        reward_model=reward_model,
        start=start,
        encoder=work.encoder,
        sampling=work.sampling("evaluation"),
    )


def collect_prompts(
    world: MiniatureWorld, work: steps.Workspace, amounts: MiniatureAmounts
) -> tuple[_PromptSets, dict[str, Any]]:
    """Raw prompts of each group of users through the paper's hygiene, then disjoint sets for the steps.

    The groups of users are disjoint by construction, so splitting by user is already done. Two users may still ask
    the same thing: what test users ask is taken out of the other groups, then what validation users ask out of the
    training group. Nobody is asked what the few-shot prompt gives as an example.
    """
    counts = {
        "test": (amounts.test,),
        "validation": (amounts.validation, amounts.held_out_comparisons),
        "train": (amounts.demonstrations, amounts.comparisons, amounts.ppo_prompts),
    }
    taken: dict[str, list[list[Prompt]]] = {}
    steps_taken: list[dict[str, Any]] = []
    for split, wanted in counts.items():
        held_out = [prompt for subsets in taken.values() for subset in subsets for prompt in subset]
        quotes, examples = Quotes(prompt.text for prompt in held_out), world.few_shot_prompt("")
        raw = [
            prompt
            for source, share in _source_shares(split, world.config.gpt_style).items()
            for prompt in world.raw_prompts(split, round(share * RAW_EXCESS * sum(wanted)), source=source)
            if not quotes.stand_in(prompt.text) and not Quotes([prompt.text]).stand_in(examples)
        ]
        clean = _clean(raw, held_out, work, steps_taken, split=split)
        subsets = take_disjoint(len(clean), wanted, keyed_seed(work.seed_for("prompts"), *split.encode()))
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


def _source_shares(split: str, gpt_style: float) -> dict[str, float]:
    """Of the prompts of a split; those of models of plain text are met by test users alone."""
    if split != "test":
        return SOURCE_SHARES
    return {**{source: share * (1.0 - gpt_style) for source, share in SOURCE_SHARES.items()}, "gpt": gpt_style}


def _clean(
    prompts: list[Prompt], held_out: list[Prompt], work: steps.Workspace, counts: list[dict[str, Any]], *, split: str
) -> list[Prompt]:
    """The paper's order: duplicates, cap, prompts also held out, personal data (training split only), lengths."""
    filters = {
        "duplicates by common prefix": partial(hygiene.drop_common_prefixes, min_prefix_chars=MIN_PREFIX_CHARS),
        "cap per user": hygiene.cap_per_user,
        "prompt also held out": lambda rows: hygiene.drop_overlap(rows, held_out, min_prefix_chars=MIN_PREFIX_CHARS),
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
        row = {"step": f"{split}: {step}", "removed": kept.removed, "left": len(prompts)}
        counts.append({**row, "reasons": dict(kept.reasons)})
    return prompts


def _gold_judge(world: MiniatureWorld):
    def judge(prompts: Sequence[str], texts: Sequence[str], finished: Sequence[bool]) -> list[Judgement]:
        ratings = [world.rate(*row) for row in zip(prompts, texts, finished, strict=True)]
        return [Judgement(score=r.score, likert=float(r.likert), metadata=r.metadata) for r in ratings]

    return judge


def gold_observer(world: MiniatureWorld, work: steps.Workspace):
    """The gold rubric's mean over each rollout batch and its standard deviation: shows over-optimisation, and nothing
    is trained on it."""

    def observe(prompts: Sequence[str], rollout: Rollout) -> dict[str, float]:
        texts = response_texts(rollout, work.encoder)
        rows = zip(prompts, texts, rollout.finished.tolist(), strict=True)
        scores = [world.rate(*row).score for row in rows]
        return {"gold": mean(scores), "gold_std": pstdev(scores)}

    return observe
