"""Points at which reward models learn from other comparisons, or from the same ones in another way."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from instructrl.evaluation.statistics import PairRate, reward_accuracy
from instructrl.models.roles import learner
from instructrl.models.scoring import RewardModel
from instructrl.rollout.randomness import keyed_generator, keyed_seed, take_disjoint
from instructrl.rollout.scoring import comparison_scores
from instructrl.runs import steps
from instructrl.runs.studies.base import BaseRun
from instructrl.runs.studies.measures import metric
from instructrl.runs.studies.points import Point
from instructrl.trainers.reward_model import RewardModelTrainer
from instructrl.types import Comparison

# Of the prompts, those that no reward model of these studies learns from: one in so many.
ONE_HELD_OUT_OF = 10
# Measurements during a pass.
NUM_LOOKS = 8
Row = dict[str, Any]


def given(base: BaseRun) -> Mapping[str, Any]:
    """As for policies."""
    return {"SFT": base.last_sft, "comparisons": base.comparisons}


def groups_of_labelers(comparisons: Sequence[Comparison], number: int) -> list[frozenset[str]]:
    """Labelers in groups with about as many pairs each: the busiest first, each into the group with the fewest."""
    pairs: Counter[str] = Counter()
    for row in comparisons:
        pairs[row.labeler] += len(row.preferred)
    if len(pairs) < number:
        raise ValueError(f"labelers: found {len(pairs)} in the comparisons, accepted are at least {number}")
    groups: list[set[str]] = [set() for _ in range(number)]
    loads = [0] * number
    for labeler in sorted(pairs, key=lambda name: (-pairs[name], name)):
        # Of groups with as many pairs the one with the fewest people: one without pairs is somebody too.
        least = min(range(number), key=lambda i: (loads[i], len(groups[i])))
        groups[least].add(labeler)
        loads[least] += pairs[labeler]
    return [frozenset(group) for group in groups]


def split_prompts(comparisons: Sequence[Comparison], seed: int) -> tuple[list[Comparison], list[Comparison]]:
    """Those to learn from and those that are held out; a comparison is a prompt."""
    number = max(len(comparisons) // ONE_HELD_OUT_OF, 1)
    held_out, learned = take_disjoint(len(comparisons), (number, len(comparisons) - number), seed)
    return [comparisons[i] for i in sorted(learned)], [comparisons[i] for i in sorted(held_out)]


def rows_of_fold(base: BaseRun, work: steps.Workspace, point: Point, num_folds: int) -> list[Row]:
    """A reward model of all groups of labelers but one: its accuracy on theirs, and on that of the one."""
    assert point.fold is not None
    own, strangers = fold(base.comparisons, point.fold, num_folds)
    learned, held_in = split_prompts(own, _split_seed(base))
    reward_model = steps.fit_reward_model(work, base.last_sft, learned, None)
    metrics = {
        "held_in": _accuracy(reward_model, base, held_in),
        "held_out": _accuracy(reward_model, base, strangers),
    }
    return [{"x": point.x, "metrics": {name: found for name, found in metrics.items() if found}, "diverged": False}]


def fold(comparisons: Sequence[Comparison], number: int, num_folds: int) -> tuple[list[Comparison], list[Comparison]]:
    """Comparisons of all groups of labelers but one, and of that one."""
    stranger = groups_of_labelers(comparisons, num_folds)[number]
    return (
        [row for row in comparisons if row.labeler not in stranger],
        [row for row in comparisons if row.labeler in stranger],
    )


def rows_of_pass(base: BaseRun, work: steps.Workspace, point: Point) -> list[Row]:
    """A pass over the comparisons, looked at on the way: rows over the share of it that is done.

    It takes seconds, so that one that was stopped is done again.
    """
    learned, held_out = split_prompts(base.comparisons, _split_seed(base))
    head = keyed_generator(work.seed_for("reward_model head"))
    reward_model = learner(RewardModel.from_policy(base.last_sft, head), work.recipe.adapter)
    config = work.recipe.reward_model
    seed = work.seed_for("reward_model")
    trainer = RewardModelTrainer(reward_model, learned, work.encoder, config, seed=seed)
    rows = []
    for end in sorted({math.ceil(trainer.num_steps * look / NUM_LOOKS) for look in range(1, NUM_LOOKS + 1)}):
        begin = trainer.step
        trainer.run(work.log, until=end)
        losses = [row["loss"] for row in work.log.read_metrics() if begin <= row["step"] < end]
        metrics = {"loss": metric(_loss(reward_model, base, held_out)), "training_loss": metric(mean(losses))}
        if (accuracy := _accuracy(reward_model, base, held_out)) is not None:
            metrics["accuracy"] = accuracy
        rows.append({"x": end / trainer.num_steps, "metrics": metrics, "diverged": False})
    return rows


def _split_seed(base: BaseRun) -> int:
    """The same prompts are held out whatever the seed of a point is."""
    return keyed_seed(base.config.seed, *b"held out of studies")


def _accuracy(
    reward_model: RewardModel, base: BaseRun, comparisons: Sequence[Comparison]
) -> dict[str, float | None] | None:
    found: PairRate | None = reward_accuracy(
        comparison_scores(reward_model, base.work.encoder, comparisons), comparisons
    )
    return None if found is None else metric(found.rate, found.low, found.high)


def _loss(reward_model: RewardModel, base: BaseRun, comparisons: Sequence[Comparison]) -> float:
    """Equation 1: the mean over prompts of the mean over their pairs."""
    scores = comparison_scores(reward_model, base.work.encoder, comparisons)
    means = [
        mean(math.log1p(math.exp(-abs(gap))) + max(-gap, 0.0) for gap in gaps)
        for row, found in zip(comparisons, scores, strict=True)
        if (gaps := [found[i] - found[j] for i, j in sorted(row.preferred)])
    ]
    return mean(means)
