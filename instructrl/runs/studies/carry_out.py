"""A study from its base run to `study.json`: point by point, each of which is done once.

FOLDER/state/steps.json    the points that are done
FOLDER/points/NAME         what a point trained, with a journal of its own, so that one that was stopped goes on
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instructrl import distributed, durable
from instructrl.rollout.randomness import keyed_seed
from instructrl.runs.journal import Journal
from instructrl.runs.steps import Workspace
from instructrl.runs.studies import policies, reward_models
from instructrl.runs.studies.base import BaseRun
from instructrl.runs.studies.points import START, Kind, Point, Study, StudyConfig, units, varied
from instructrl.runs.studies.table import NUM_FOLDS, STUDIES
from instructrl.trainers.log import RunLog

RESULTS = "study.json"
Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrying:
    """How points of one kind are carried out. given: what of the base run they work with. rows: (base, the workspace of
    the point, the point, whether it is the base run's own) -> its rows. references: the models of dashed lines."""

    given: Callable[[BaseRun], Mapping[str, Any]]
    rows: Callable[[BaseRun, Workspace, Point, bool], Rows]
    references: Callable[[BaseRun, Workspace], dict[str, Any]] = lambda base, work: {}


KINDS: Mapping[Kind, Carrying] = {
    "policies": Carrying(
        given=policies.given,
        rows=lambda base, work, point, own: policies.rows_of(base, work, point, unchanged=own),
        references=policies.references,
    ),
    "folds": Carrying(
        given=reward_models.given,
        rows=lambda base, work, point, own: reward_models.rows_of_fold(base, work, point, NUM_FOLDS),
    ),
    "passes": Carrying(
        given=reward_models.given,
        rows=lambda base, work, point, own: reward_models.rows_of_pass(base, work, point),
    ),
}


def run_study(config: StudyConfig, run: Path, folder: Path, log: RunLog) -> dict[str, Any]:
    """All points of a study that are not done yet. Writes `study.json` into `folder`; returns what it holds.

    run: the folder of the base run, which is only read. Raises ValueError where it has not done what the study begins
    with, or is another one than the study began with.
    """
    study, base = STUDIES[config.study], BaseRun(config.base, run)
    carrying = KINDS[study.kind]
    journal = Journal(folder, log, config.checkpoints)
    given = carrying.given(base)
    own = replace(base.work, folder=folder, log=log, journal=journal)
    references = journal.once("references", lambda *_: carrying.references(base, own), given)
    rows: Rows = []
    todo = units(study, config)
    with log.phase(f"study {config.study}", len(todo), "points") as bar:
        for name, point, seed in todo:
            step = _step(carrying, base, config, folder / "points" / name, point, seed)
            about = {"study": config.study, "series": point.series, "label": point.label, "seed": seed}
            rows += [{**about, **row} for row in journal.once(name, step, given)]
            bar.advance(units=1, note=f"{point.series}, {point.label}")
    results = {**_about(config, study), "rows": rows, "references": references}
    text = json.dumps(results, indent=1, allow_nan=False)
    if distributed.is_main():
        durable.write_text(folder / RESULTS, text + "\n")
    return json.loads(text)


def _step(
    carrying: Carrying, base: BaseRun, config: StudyConfig, folder: Path, point: Point, seed: int
) -> Callable[..., Rows]:
    def carry_out(*_: object) -> Rows:
        log = RunLog(folder, continued=True)
        work = replace(
            base.work,
            folder=folder,
            log=log,
            journal=Journal(folder, log, config.checkpoints),
            recipe=varied(config.base.recipe, point.settings),
            seed=config.base.seed if seed == 0 else keyed_seed(config.base.seed, *f"repetition {seed}".encode()),
        )
        return carrying.rows(base, work, point, is_base(point, seed))

    return carry_out


def is_base(point: Point, seed: int) -> bool:
    """Whether a point is what the base run did itself."""
    return seed == 0 and not point.settings and point.reference == START and not point.keep


def _about(config: StudyConfig, study: Study) -> dict[str, Any]:
    """What a page says of a study without its table."""
    return {
        "study": config.study,
        "title": study.title,
        "paper": study.paper,
        "what": study.what,
        "kind": study.kind,
        "x_label": study.x_label,
        "log_x": study.log_x,
        "against": study.against,
        "shown": dict(study.shown),
        "base_seed": config.base.seed,
        "seeds": config.seeds,
    }
