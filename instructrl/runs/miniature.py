"""The paper's experiment in a generated world, from pretraining to the report, in minutes on a laptop."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from instructrl.data.encoding import Encoder, pack_documents
from instructrl.data.tokenizers import word_tokenizer
from instructrl.evaluation.contenders import Contender, Exam, Judgement, Question
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.rollout.generate import response_texts
from instructrl.runs import steps
from instructrl.runs.baselines import Baselines
from instructrl.runs.examination import examine
from instructrl.runs.judging_step import JUDGES, Judging
from instructrl.runs.labeling import Labeling
from instructrl.runs.miniature_data import collect_prompts, overlap
from instructrl.runs.selection import select_checkpoint
from instructrl.runs.settings import MINIATURE_DESCRIPTION, OWN_SIZE, PLAIN_NAMES, MiniatureConfig
from instructrl.runs.sizes import Lessons, Size, other_size
from instructrl.runs.world_exams import exam_results, sit_conduct, sit_exams
from instructrl.trainers.log import RunLog
from instructrl.types import Document, Prompt, Rollout
from instructrl.worlds.exam_toxicity import ToxicityExam
from instructrl.worlds.exam_truth import TruthExam
from instructrl.worlds.miniature import MiniatureWorld


def run_miniature(config: MiniatureConfig, folder: Path, log: RunLog) -> dict[str, Any]:
    """All steps. Writes models and `results.json` into `folder`; returns the results."""
    world = MiniatureWorld(config.seed, config.world)
    tokenizer = word_tokenizer(world.vocabulary())
    work = steps.Workspace.of_run(config, Encoder(tokenizer, config.recipe.limits), folder, log)
    sets, data = collect_prompts(world, work, config.amounts)
    documents = world.documents(config.amounts.documents, seed=0, without=sets.of_held_out_users())
    blocks = pack_documents(documents, tokenizer, config.recipe.block_tokens)
    demonstrations = world.demonstrations(sets.sft)
    baselines = Baselines.draw(config.baselines, world, demonstrations, config.seed)
    data["overlap"] = overlap(world, documents, [*demonstrations, *baselines.taught], sets)
    lessons = Lessons(
        blocks=blocks,
        demonstrations=demonstrations,
        validation=world.demonstrations(sets.validation, seed=1),
        asked=[prompt.text for prompt in sets.validation],
        prompts=[prompt.text for prompt in sets.ppo],
        observer=gold_observer(world, work),
    )

    before = lessons.imitated(work, config.model)
    labeling = Labeling(
        world=world, work=work, completions=config.amounts.completions, gpt=before.gpt, sft=before.last_sft
    )
    comparisons = labeling.compare(sets.comparisons, world.labelers("training"), "training")
    reward_model = steps.fit_reward_model(work, before.last_sft, comparisons, demonstrations)
    quality = labeling.quality(reward_model, comparisons, sets.held_out, demonstrations)
    sft, selection = select_checkpoint(work, before.epochs, reward_model, lessons.asked, "sft")
    prompted, tuned, baseline_rows = baselines.make(work, before.gpt, reward_model, lessons.asked, sets.test)
    optimized = lessons.optimized(work, before.start, reward_model)
    contenders = [
        Contender(name="GPT", policy=before.gpt),
        prompted,
        Contender(name="SFT", policy=sft),
        *(Contender(name=name, policy=policy) for name, policy in optimized.items()),
        *tuned,
    ]
    sizes = {OWN_SIZE: Size.of(config.model, contenders)} | {
        name: other_size(work, config, name, lessons, reward_model, prompted.form) for name in config.other_sizes
    }
    contenders = [contender for size in sizes.values() for contender in size.contenders]
    parts = {
        "run": {
            "name": "miniature",
            "seed": config.seed,
            "description": "; ".join([MINIATURE_DESCRIPTION, *([PLAIN_NAMES] if config.other_sizes else [])]),
            "judge": JUDGES["training"],
            "baseline": "SFT",
        },
        "sizes": {name: size.about for name, size in sizes.items()},
        "reward_model": quality,
        "sft_selection": selection,
        "baselines": baseline_rows,
        "data": data,
        "exams": _exams(world, work, contenders, [*config.other_sizes]),
    }
    held_out = world.documents(config.amounts.held_out_documents, seed=1, without=sets.of_held_out_users())
    exam = exam_of(world, work, held_out, sets.test, reward_model, before.start)
    judging = Judging(world=world, prompts=sets.test, seed=work.seed_for("judging"), folder=folder)
    return examine(work, exam, contenders, sets.test, parts, panel=judging)


def _exams(
    world: MiniatureWorld, work: steps.Workspace, contenders: Sequence[Contender], sizes: Sequence[str]
) -> dict[str, Any]:
    """What no user asks for: skills of the corpus, facts that are kept out of training, and rude beginnings. sizes:
    other ones, whose models are named after them."""
    sat = sit_exams(work, contenders, world.exams, world.config.exams.shots)
    truth, toxicity = TruthExam(world.seed, world.facts), ToxicityExam(world.seed)
    return exam_results(sat, sit_conduct(work, contenders, truth, toxicity), sizes)


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
