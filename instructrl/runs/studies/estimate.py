"""What a study is going to take, from the times of the run that it varies. Nothing here needs torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructrl.runs.studies.points import START, Point, Study, StudyConfig, at, units, varied

Profile = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A point and its seeds. work: what is trained, in words. minutes: of a CPU, all seeds; None where the run has not
    done what they are taken from."""

    point: Point
    num_seeds: int
    work: str
    minutes: float | None


def read_profile(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's `profile.jsonl`; none where there is no such file."""
    path = run / "profile.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline is not finished
    return [json.loads(line) for line in lines if line.strip()]


def plan(study: Study, config: StudyConfig, profile: Profile, done: Sequence[str]) -> list[Planned]:
    """The points with what each takes. done: steps that the base run has finished."""
    rows = []
    for point in study.points(config.base):
        seeds = [seed for _, other, seed in units(study, config) if other == point]
        own = point.phase in done and not point.settings and point.reference == START and study.kind == "policies"
        costs = [_seconds(study, config, point, profile, recalled=own and seed == 0) for seed in seeds]
        known = [cost for cost in costs if cost is not None]
        minutes = sum(known) / 60 if len(known) == len(costs) else None
        work = _work(study, config, point, recalled=own)
        rows.append(Planned(point=point, num_seeds=len(seeds), work=work, minutes=minutes))
    return rows


def _work(study: Study, config: StudyConfig, point: Point, *, recalled: bool) -> str:
    recipe = varied(config.base.recipe, point.settings)
    if study.kind != "policies":
        return "a reward model"
    if recalled:
        return "the base run’s own: measured"  # noqa: RUF001
    ppo = at(recipe, point.phase)
    before = f"{recipe.ppo_start.epochs} epochs of ppo_start, " if point.first == "ppo_start" else ""
    return f"{before}{ppo.num_iterations:,} iterations of {point.phase}"


def _seconds(study: Study, config: StudyConfig, point: Point, profile: Profile, *, recalled: bool) -> float | None:
    recipe = varied(config.base.recipe, point.settings)
    if study.kind != "policies":
        return _reading(config, _spent(profile, "reward_model"), pairs=recipe.reward_model.pairs_as_rows)
    measuring = _measuring(config, profile, len(point.keep) + 3)  # the policy, its start and SFT
    if recalled:
        return measuring
    parts = [measuring, _optimising(config, at(recipe, point.phase), profile)]
    if point.first == "ppo_start":
        spent, base = _spent(profile, "ppo_start"), config.base.recipe.ppo_start
        parts.append(None if spent is None else spent * recipe.ppo_start.epochs / base.epochs)
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _optimising(config: StudyConfig, ppo: Any, profile: Profile) -> float | None:
    """By the episode, and what a block of plain text adds to it."""
    plain, mixed = (_spent(profile, phase) for phase in ("ppo", "ppo_ptx"))
    base = config.base.recipe
    if plain is None:
        return None if mixed is None else mixed * ppo.num_episodes / base.ppo_ptx.num_episodes
    episode = plain / base.ppo.num_episodes
    added = 0.0
    if mixed is not None:
        blocks = base.ppo_ptx.ptx_examples_per_episode
        added = max(mixed / base.ppo_ptx.num_episodes - episode, 0.0) / blocks
    examples = ppo.ptx_examples_per_episode if ppo.ptx_coef else 0.0
    return ppo.num_episodes * (episode + added * examples)


def _reading(config: StudyConfig, seconds: float | None, *, pairs: bool) -> float | None:
    """Of a pass over the comparisons. In rows of pairs, each of K completions is read K - 1 times, ties aside."""
    low, high = config.base.amounts.completions
    return seconds * ((low + high) / 2 - 1) if pairs and seconds is not None else seconds


def _measuring(config: StudyConfig, profile: Profile, models: int) -> float:
    """Of responses, by those of the run's evaluation; 0 where that has not been."""
    rows = [row for row in profile if row["phase"] == "evaluation" and row.get("responses")]
    responses = sum(row["responses"] for row in rows)
    each = sum(row["seconds"] for row in rows) / responses if responses else 0.0
    exams = [row["seconds"] for row in profile if str(row["phase"]).startswith("suites: ")]
    return models * (each * config.base.amounts.validation + (sum(exams) / len(exams) if exams else 0.0))


def _spent(profile: Profile, phase: str) -> float | None:
    """Seconds of a phase, in however many pieces."""
    found = [row["seconds"] for row in profile if row["phase"] == phase]
    return sum(found) if found else None
