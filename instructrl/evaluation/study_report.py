"""`report.html` and `figure.svg` of a study, from its `study.json` alone."""

import json
from pathlib import Path

from instructrl.evaluation.report import page_of, standalone, written
from instructrl.evaluation.study_views import metric_plot, study_sections, study_sentences


def write_study(folder: Path) -> Path:
    """Writes the page of a study, and its first figure as a picture, beside its numbers. Returns the page's path."""
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    run = {"name": study["title"], "description": study["paper"], "seed": study["base_seed"]}
    judge = "gold rubric" if study["kind"] == "policies" else None
    html = page_of({**run, "judge": judge, "baseline": None}, study_sentences(study), study_sections(study))
    drawn = [plot for name in study["shown"] if (plot := metric_plot(study, name)) is not None]
    if drawn:
        written(folder / "figure.svg", standalone(drawn[0]))
    return written(folder / "report.html", html)
