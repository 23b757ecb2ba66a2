"""Models through the exams of a generated world, and the `exams` entry of the results.

What a model answers is kept in portions, as that of suites: an examination that was stopped goes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instructrl.evaluation.contenders import Contender
from instructrl.evaluation.exams import SCORING, exam_task, exam_tax, item_scores
from instructrl.evaluation.suites.protocol import Suite
from instructrl.runs.steps import Workspace
from instructrl.runs.suites import Answered, Examinee, ReadSuite, answers, suite_results
from instructrl.worlds.exam_questions import NEWLINE
from instructrl.worlds.exams import MAX_ANSWER_TOKENS, Exams


@dataclass(frozen=True, slots=True, kw_only=True)
class Sat:
    """What models did in exams. entries: of each exam, with its rows, as `suites` in the results has them. scores:
    model -> exam -> shots -> a score for each item, as `exam_tax` takes them."""

    entries: list[dict[str, Any]]
    scores: Mapping[str, Mapping[str, Mapping[int, list[float]]]]


def exam_suites(exams: Exams, shots: Sequence[int]) -> list[ReadSuite]:
    """The exams as suites, with a task for each number of examples."""
    made = []
    for name in exams.names:
        tasks = tuple(
            exam_task(exams.items(name, number), number, max_tokens=MAX_ANSWER_TOKENS, newline=NEWLINE)
            for number in shots
        )
        about = Suite(title=SCORING[name].title, what=SCORING[name].what, files=(), tasks=lambda *_: [])
        made.append(ReadSuite(name=f"exam {name}", suite=about, tasks=tasks))
    return made


def sit_exams(work: Workspace, contenders: Sequence[Contender], exams: Exams, shots: Sequence[int] = (0, 3)) -> Sat:
    """Every policy through all exams. One that is given its prompts in another form is no other policy."""
    suites = exam_suites(exams, shots)
    answered = {row[0].model: row for row in ask_policies(work, contenders, suites)}
    scores = {
        model: {
            found.suite.name.removeprefix("exam "): {
                task.shots: item_scores(SCORING[task.suite].score, task.items, given) for task, given, _ in found.tasks
            }
            for found in row
        }
        for model, row in answered.items()
    }
    entries = suite_results(suites, [[found.measured() for found in row] for row in answered.values()])
    return Sat(entries=entries, scores=scores)


def ask_policies(work: Workspace, contenders: Sequence[Contender], suites: Sequence[ReadSuite]) -> list[list[Answered]]:
    """What each policy answers to each of the suites, under the name of the first contender that has it."""
    seen, found = [], []
    for number, contender in enumerate(contenders):
        if contender.policy not in seen:
            seen.append(contender.policy)
            examinee = Examinee.of(contender.name, number, contender.policy, work.encoder)
            found.append([*answers(examinee, suites, work.suite, work.folder, work.log)])
    return found


def exam_results(sat: Sat, *, pretrained: str = "GPT", ppo: str = "PPO", ppo_ptx: str = "PPO-ptx") -> dict[str, Any]:
    """For `exams` in the results. The names are those that `exam_tax` takes."""
    return {"entries": sat.entries, "tax": exam_tax(sat.scores, pretrained=pretrained, ppo=ppo, ppo_ptx=ppo_ptx)}
