"""Models through the exams of a generated world, and the `exams` entry of the results.

What a model answers is kept in portions, as that of suites: an examination that was stopped goes on. A model that is
given its prompts in another form is no other model, and is asked once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instructrl.evaluation import exam_verdicts
from instructrl.evaluation.contenders import Contender
from instructrl.evaluation.exam_verdicts import Verdict, Verdicts, verdict_task, verdicts
from instructrl.evaluation.exams import SCORING, Scores, choice_task, exam_task, exam_tax, item_scores
from instructrl.evaluation.suites.protocol import Suite, Task
from instructrl.runs.steps import Workspace
from instructrl.runs.suites import Answered, Examinee, ReadSuite, answers, suite_results
from instructrl.worlds import exam_toxicity, exam_truth
from instructrl.worlds.exam_questions import NEWLINE
from instructrl.worlds.exam_toxicity import ToxicityExam
from instructrl.worlds.exam_truth import TruthExam
from instructrl.worlds.exams import MAX_ANSWER_TOKENS, Exams


@dataclass(frozen=True, slots=True, kw_only=True)
class Sat:
    """What models did in exams. entries: of each exam, with its rows, as `suites` in the results has them. scores:
    model -> exam -> shots -> a score for each item, as `exam_tax` takes them."""

    entries: list[dict[str, Any]]
    scores: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """Whether models spoke the truth, and politely. entries: as those of `Sat`. truth, toxicity: model -> prompt ->
    what is so -> 1 or 0 for each reply."""

    entries: list[dict[str, Any]]
    truth: Mapping[str, Verdicts]
    toxicity: Mapping[str, Verdicts]


def sit_exams(work: Workspace, contenders: Sequence[Contender], exams: Exams, shots: Sequence[int] = (0, 3)) -> Sat:
    """Every model through the exams of skills, with each number of examples."""
    suites = [_skill(exams, name, shots) for name in exams.names]
    answered = _answered(work, contenders, suites)
    scores = {
        model: {name: _scores(found) for name, found in zip(exams.names, rows, strict=True)}
        for model, rows in answered.items()
    }
    return Sat(entries=_entries(suites, answered), scores=scores)


def sit_conduct(work: Workspace, contenders: Sequence[Contender], truth: TruthExam, toxicity: ToxicityExam) -> Conduct:
    """Every model through the exams of truth and toxicity, under each of their prompts."""
    suites = [_truth(truth), _toxicity(toxicity)]
    answered = _answered(work, contenders, suites)
    return Conduct(
        entries=_entries(suites, answered),
        truth={model: _verdicts(rows[0], truth.verdict) for model, rows in answered.items()},
        toxicity={model: _verdicts(rows[1], toxicity.verdict) for model, rows in answered.items()},
    )


def exam_results(sat: Sat, conduct: Conduct, sizes: Sequence[str] = ()) -> dict[str, Any]:
    """For `exams` in the results.

    entries: as those of `suites`. tax: see `exam_tax`. truth, toxicity: of what is so of replies `gains`, each model's
    difference from the pretrained one, and `effects`, what other prompts do to each model, in points of 100 with
    intervals of paired differences. sizes: by each name that is given here, the same of the models whose names begin
    with it, beside the pretrained one of that size; they are not among the others.
    """
    of_size = {size: [model for model in sat.scores if model.startswith(f"{size} ")] for size in sizes}
    apart = {model for models in of_size.values() for model in models}
    return {
        "entries": [*sat.entries, *conduct.entries],
        **_compared(sat, conduct, [model for model in sat.scores if model not in apart]),
        "sizes": {size: _compared(sat, conduct, models, f"{size} ") for size, models in of_size.items()},
    }


def _compared(sat: Sat, conduct: Conduct, models: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """These models with GPT among them, PPO and PPO-ptx, whose names begin with the prefix."""
    pretrained = f"{prefix}GPT"
    scores = {model: sat.scores[model] for model in models}
    tax = exam_tax(scores, pretrained=pretrained, ppo=f"{prefix}PPO", ppo_ptx=f"{prefix}PPO-ptx")
    found: dict[str, Any] = {"tax": tax}
    for name, verdicts_of, basic in (
        ("truth", conduct.truth, exam_truth.BASIC),
        ("toxicity", conduct.toxicity, exam_toxicity.BASIC),
    ):
        some = {model: verdicts_of[model] for model in models}
        found[name] = {
            "pretrained": pretrained,
            "unit": "points",
            "gains": exam_verdicts.gains(some, pretrained),
            "effects": exam_verdicts.effects(some, basic),
        }
    return found


# ---- exams as suites


def _skill(exams: Exams, name: str, shots: Sequence[int]) -> ReadSuite:
    tasks = [
        exam_task(exams.items(name, number), number, max_tokens=MAX_ANSWER_TOKENS, newline=NEWLINE) for number in shots
    ]
    return _suite(f"exam {name}", SCORING[name].title, SCORING[name].what, tasks)


def _truth(exam: TruthExam) -> ReadSuite:
    limits: dict[str, Any] = {"max_tokens": exam_truth.MAX_REPLY_TOKENS, "stop": exam_truth.STOP}
    tasks = [verdict_task(exam.items(prompt), exam.verdict, **limits) for prompt in exam_truth.PROMPTS]
    what = "replies about facts that no training prompt asks for"
    return _suite("exam of truth", "Truth (as TruthfulQA)", what, [*tasks, choice_task(exam.choices(), "MC1")])


def _toxicity(exam: ToxicityExam) -> ReadSuite:
    limit = exam_toxicity.MAX_CONTINUATION_TOKENS
    tasks = [verdict_task(exam.items(prompt), exam.verdict, max_tokens=limit) for prompt in exam_toxicity.PROMPTS]
    return _suite("exam of toxicity", "Toxicity (as RealToxicityPrompts)", "insults in continuations", tasks)


def _suite(name: str, title: str, what: str, tasks: Sequence[Task]) -> ReadSuite:
    about = Suite(title=title, what=what, files=(), tasks=lambda *_: [*tasks])
    return ReadSuite(name=name, suite=about, tasks=tuple(tasks))


# ---- what is answered


def _answered(
    work: Workspace, contenders: Sequence[Contender], suites: Sequence[ReadSuite]
) -> dict[str, list[Answered]]:
    """What each policy answers to each of the suites, by the name of the first contender that has it."""
    seen, found = [], {}
    for number, contender in enumerate(contenders):
        if contender.policy not in seen:
            seen.append(contender.policy)
            examinee = Examinee.of(contender.name, number, contender.policy, work.encoder)
            found[contender.name] = [*answers(examinee, suites, work.suite, work.folder, work.log)]
    return found


def _entries(suites: Sequence[ReadSuite], answered: Mapping[str, Sequence[Answered]]) -> list[dict[str, Any]]:
    return suite_results(suites, [[found.measured() for found in rows] for rows in answered.values()])


def _scores(answered: Answered) -> dict[int, list[float]]:
    return {task.shots: item_scores(SCORING[task.suite].score, task.items, given) for task, given, _ in answered.tasks}


def _verdicts(answered: Answered, verdict: Verdict) -> dict[str, dict[str, list[float]]]:
    """Of the written replies."""
    return {task.prompt: verdicts(verdict, task.items, given) for task, given, _ in answered.tasks if task.is_written}
