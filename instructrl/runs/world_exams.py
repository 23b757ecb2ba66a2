"""Models through the exams of a generated world, and the `exams` entry of the results.

What a model answers is kept in portions, as that of suites: an examination that was stopped goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instructrl.evaluation import exam_verdicts
from instructrl.evaluation.contenders import Contender
from instructrl.evaluation.exam_verdicts import Verdicts, verdict_task, verdicts
from instructrl.evaluation.exams import SCORING, Scores, choice_task, exam_task, exam_tax, item_scores
from instructrl.evaluation.suites.protocol import Suite, Task
from instructrl.runs.steps import Workspace
from instructrl.runs.suites import Answered, Examinee, ReadSuite, answers, suite_results
from instructrl.worlds import exam_toxicity, exam_truth
from instructrl.worlds.exam_questions import NEWLINE
from instructrl.worlds.exam_toxicity import ToxicityExam
from instructrl.worlds.exam_truth import TruthExam
from instructrl.worlds.exams import MAX_ANSWER_TOKENS, Exams
from instructrl.worlds.miniature import MiniatureWorld

_SKILLS, _TRUTH, _TOXICITY = "exam ", "exam of truth", "exam of toxicity"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldExams:
    """What models of a world are examined in. shots: examples in front of questions, each an examination of its own."""

    exams: Exams
    truth: TruthExam
    toxicity: ToxicityExam
    shots: tuple[int, ...] = (0, 3)

    @classmethod
    def of(cls, world: MiniatureWorld) -> "WorldExams":
        """Those of its seed and settings."""
        return cls(
            exams=world.exams,
            truth=TruthExam(world.seed, world.facts),
            toxicity=ToxicityExam(world.seed),
            shots=world.config.exams.shots,
        )

    def suites(self) -> list[ReadSuite]:
        """Each of them with its tasks."""
        made = []
        for name in self.exams.names:
            items = {shots: self.exams.items(name, shots) for shots in self.shots}
            limits = {"max_tokens": MAX_ANSWER_TOKENS, "newline": NEWLINE}
            tasks = [exam_task(found, shots, **limits) for shots, found in items.items()]
            made.append(_suite(_SKILLS + name, SCORING[name].title, SCORING[name].what, tasks))
        truth = [
            verdict_task(
                self.truth.items(prompt),
                self.truth.verdict,
                max_tokens=exam_truth.MAX_REPLY_TOKENS,
                stop=exam_truth.STOP,
            )
            for prompt in exam_truth.PROMPTS
        ]
        truth.append(choice_task(self.truth.choices(), "MC1"))
        made.append(
            _suite(_TRUTH, "Truth (as TruthfulQA)", "replies about facts that are not asked in training", truth)
        )
        toxicity = [
            verdict_task(
                self.toxicity.items(prompt), self.toxicity.verdict, max_tokens=exam_toxicity.MAX_CONTINUATION_TOKENS
            )
            for prompt in exam_toxicity.PROMPTS
        ]
        made.append(_suite(_TOXICITY, "Toxicity (as RealToxicityPrompts)", "insults in continuations", toxicity))
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Sat:
    """What models did in exams. entries: of each exam, with its rows, as `suites` in the results has them. scores:
    those of the exams of skills, as `exam_tax` takes them. truth, toxicity: what is so of each reply, by model."""

    entries: list[dict[str, Any]]
    scores: Scores
    truth: Mapping[str, Verdicts]
    toxicity: Mapping[str, Verdicts]


def sit_exams(work: Workspace, contenders: Sequence[Contender], given: WorldExams) -> Sat:
    """Every policy through all exams, under the name of the first contender that has it: one that is given its prompts
    in another form is no other policy."""
    suites, answered = given.suites(), []
    seen = []
    for number, contender in enumerate(contenders):
        if contender.policy not in seen:
            seen.append(contender.policy)
            examinee = Examinee.of(contender.name, number, contender.policy, work.encoder)
            answered.append([*answers(examinee, suites, work.suite, work.folder, work.log)])
    by_model = {rows[0].model: {found.suite.name: found for found in rows} for rows in answered}
    return Sat(
        entries=suite_results(suites, [[found.measured() for found in rows] for rows in answered]),
        scores={
            model: {name: _scores(rows[_SKILLS + name]) for name in given.exams.names}
            for model, rows in by_model.items()
        },
        truth={model: _verdicts(rows[_TRUTH], given.truth.verdict) for model, rows in by_model.items()},
        toxicity={model: _verdicts(rows[_TOXICITY], given.toxicity.verdict) for model, rows in by_model.items()},
    )


def exam_results(sat: Sat, *, pretrained: str = "GPT", ppo: str = "PPO", ppo_ptx: str = "PPO-ptx") -> dict[str, Any]:
    """For `exams` in the results: entries as those of `suites`; `tax`, see `exam_tax`, whose names are given; of truth
    and toxicity the gains over the pretrained model, and what the other prompts do to each model, in points."""
    return {
        "entries": sat.entries,
        "tax": exam_tax(sat.scores, pretrained=pretrained, ppo=ppo, ppo_ptx=ppo_ptx),
        **{
            name: {
                "pretrained": pretrained,
                "gains": exam_verdicts.gains(found, pretrained),
                "effects": exam_verdicts.effects(found, basic),
            }
            for name, found, basic in (("truth", sat.truth, "QA"), ("toxicity", sat.toxicity, "basic"))
        },
    }


def _suite(name: str, title: str, what: str, tasks: Sequence[Task]) -> ReadSuite:
    about = Suite(title=title, what=what, files=(), tasks=lambda *_: [*tasks])
    return ReadSuite(name=name, suite=about, tasks=tuple(tasks))


def _scores(answered: Answered) -> dict[int, list[float]]:
    return {task.shots: item_scores(SCORING[task.suite].score, task.items, given) for task, given, _ in answered.tasks}


def _verdicts(answered: Answered, verdict: exam_verdicts.Verdict) -> dict[str, dict[str, list[float]]]:
    """Of the written replies."""
    return {task.prompt: verdicts(verdict, task.items, given) for task, given, _ in answered.tasks if task.is_written}
