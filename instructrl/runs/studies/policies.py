"""Points at which a policy is optimised anew: what changes is trained, everything before it is the base run's."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from instructrl.models.policy import Policy
from instructrl.runs import steps
from instructrl.runs.miniature import gold_observer
from instructrl.runs.studies.base import BaseRun
from instructrl.runs.studies.measures import Metrics, has_diverged, measured, perform
from instructrl.runs.studies.points import GPT, START, Point, at
from instructrl.trainers.optimization import NotFiniteError

Row = dict[str, Any]


def given(base: BaseRun) -> Mapping[str, Any]:
    """The networks and data that points of this kind work with, for the journal."""
    return {
        "GPT": base.gpt,
        "start of PPO": base.start,
        "reward model": base.reward_model,
        "SFT": base.sft,
        "prompts": base.prompts,
        "plain text": base.blocks,
    }


def references(base: BaseRun, work: steps.Workspace) -> dict[str, Metrics]:
    """The models that every figure has as dashed lines. work: of the study itself."""
    sft = perform(base, work, "SFT", base.sft, base.start)
    models = {"GPT": base.gpt, "SFT": base.sft, START: base.start}
    return {name: measured(base, work, name, policy, start=base.start, sft=sft) for name, policy in models.items()}


def rows_of(base: BaseRun, work: steps.Workspace, point: Point, *, unchanged: bool) -> list[Row]:
    """What came out at a point, one row for each policy that is kept.

    work: of the point, with its seed and its recipe. unchanged: the point is the base run's own.
    """
    start = _start(base, work, point)
    # From the run's own start, both are measured once for all points.
    shared = work if point.first == "ppo_start" else replace(work, folder=work.folder.parents[1])
    sft, before = (perform(base, shared, name, policy, start) for name, policy in (("SFT", base.sft), (START, start)))
    gold = [row.score for row in before.judgements]
    measure = partial(measured, base, work, start=start, sft=sft)
    config = at(work.recipe, point.phase)
    try:
        policy = _optimised(base, work, start, point, unchanged=unchanged)
    except NotFiniteError as error:
        work.log.say(f"{point.label}: diverged: {error}")
        return [{"x": point.x, "metrics": {}, "diverged": True}]
    found = []
    for iteration in point.keep:
        kept = work.load(steps.kept_policy(point.phase, iteration))
        found.append((iteration * config.rollout_batch, measure(f"iteration {iteration:04d}", kept)))
    found.append((point.x, measure("policy", policy)))
    return [{"x": x, "metrics": metrics, "diverged": has_diverged(metrics, gold)} for x, metrics in found]


def _start(base: BaseRun, work: steps.Workspace, point: Point) -> Policy:
    if point.first != "ppo_start":
        return base.start
    blocks = base.blocks if at(work.recipe, "ppo_start").pretraining_fraction else None
    return steps.finetune(work, base.gpt, base.demonstrations, base.validation, phase="ppo_start", blocks=blocks)[0]


def _optimised(base: BaseRun, work: steps.Workspace, start: Policy, point: Point, *, unchanged: bool) -> Policy:
    """The base run's own policy where nothing is changed and it has that one."""
    recalled = unchanged and point.phase in base.steps_done.names
    return steps.optimize_policy(
        base.work if recalled else work,
        start,
        base.reward_model,
        base.prompts,
        phase=point.phase,
        blocks=base.blocks if at(work.recipe, point.phase).ptx_coef else None,
        observer=gold_observer(base.world, work),
        reference=base.gpt if point.reference == GPT else None,
        keep=point.keep,
    )
