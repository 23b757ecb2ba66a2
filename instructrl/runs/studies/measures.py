"""What every policy of a study is measured by, on prompts of validation users: a list of functions."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from instructrl.evaluation.contenders import Contender, Performance
from instructrl.evaluation.results import identities
from instructrl.evaluation.statistics import mean_interval, outcomes_from_scores, win_rate
from instructrl.models.policy import Policy
from instructrl.runs.portions import Portions
from instructrl.runs.steps import Workspace
from instructrl.runs.studies.base import BaseRun
from instructrl.runs.world_exams import sit_exams

# Without examples in front: as users would meet the exam's tasks.
_SHOTS = 0
MAX_KL_PER_TOKEN = 1.0
Metrics = dict[str, dict[str, float | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A policy that is measured. work: whose folder keeps what was done. performance, baseline: its and SFT's on the
    same prompts."""

    base: BaseRun
    work: Workspace
    contender: Contender
    performance: Performance
    baseline: Performance


def metric(value: float, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def mean_metric(values: Sequence[float]) -> dict[str, float | None]:
    """The mean of independent values with its 95% interval."""
    found = mean_interval(values)
    return metric(found.mean, found.low, found.high)


def _responses(subject: Subject) -> Metrics:
    """What the rubric and the reward model make of the responses, and how far they are from the start's."""
    found = subject.performance
    metrics = {
        "gold": mean_metric([row.score for row in found.judgements]),
        "likert": mean_metric([row.likert for row in found.judgements if row.likert is not None]),
        "reward": mean_metric(found.rewards),
        "response_tokens": mean_metric(found.num_tokens),
    }
    if found.kl is not None:
        # A mean of log ratios may be a little below 0.
        metrics["kl"], metrics["sqrt_kl"] = metric(found.kl), metric(math.sqrt(max(found.kl, 0.0)))
    return metrics


def _win_rate(subject: Subject) -> Metrics:
    """Against SFT, by the rubric."""
    ours, theirs = subject.performance, subject.baseline
    same = [a == b for a, b in zip(identities(ours), identities(theirs), strict=True)]
    scores, base = ([row.score for row in side.judgements] for side in (ours, theirs))
    found = win_rate(outcomes_from_scores(scores, base, same), [prompt.user for prompt in subject.base.sets.validation])
    return {"win_rate": metric(found.rate, found.low, found.high)}


def _plain_text(subject: Subject) -> Metrics:
    return {"corpus_loss": mean_metric(subject.performance.block_losses)}


def _exams(subject: Subject) -> Metrics:
    """The mean score in each exam, in points."""
    sat = sit_exams(subject.work, [subject.contender], subject.base.exams, (_SHOTS,))
    scores = sat.scores[subject.contender.name]
    return {exam: mean_metric([100 * score for score in by_shots[_SHOTS]]) for exam, by_shots in scores.items()}


MEASURES: tuple[Callable[[Subject], Metrics], ...] = (_responses, _win_rate, _plain_text, _exams)


def perform(base: BaseRun, work: Workspace, name: str, policy: Policy, start: Policy) -> Performance:
    """A policy on the prompts of validation users. name: of the folder in which it is kept how far that is."""
    exam, contender = base.exam(start), Contender(name=name, policy=policy)
    given = policy, start, exam.reward_model, exam.judged_by, exam.prompts, exam.blocks, exam.questions, exam.sampling
    return exam.take(contender, Portions(_corner(work, name).folder, work.log, "policy", *given).once)


def _corner(work: Workspace, name: str) -> Workspace:
    """For one of several policies that are measured in a folder."""
    return replace(work, folder=work.folder / "measured" / name)


def measured(base: BaseRun, work: Workspace, name: str, policy: Policy, *, start: Policy, sft: Performance) -> Metrics:
    """All measures of a policy."""
    found = perform(base, work, name, policy, start)
    contender = Contender(name=name, policy=policy)
    subject = Subject(base=base, work=_corner(work, name), contender=contender, performance=found, baseline=sft)
    return {key: value for measure in MEASURES for key, value in measure(subject).items()}


def has_diverged(metrics: Mapping[str, Any], start: Sequence[float]) -> bool:
    """Whether a policy is more than a nat a token away from its start, or its gold score clearly below the start's:
    the intervals do not meet. start: the start's gold scores."""
    kl_per_token = metrics["kl"]["value"] / max(metrics["response_tokens"]["value"], 1.0)
    high, low = metrics["gold"]["high"], mean_metric(start)["low"]
    return kl_per_token > MAX_KL_PER_TOKEN or (high is not None and low is not None and high < low)
