"""`report.html` of a run, and its main plot as a file. Both need the JSON of the run alone, and nothing from outside.

The same input gives the same bytes. Text from models and data is escaped by the template engine and shown as text.
"""

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from instructrl import durable
from instructrl.evaluation import sections
from instructrl.evaluation.figures import Plot, win_rate_plot
from instructrl.evaluation.formatting import visible
from instructrl.evaluation.narrative import sentences

Record = dict[str, Any]

# Of a plot that stands alone, in pixels: around it, and how much of a caption a line of its width holds.
_MARGIN = 20
_CAPTION_CHARACTERS = 62
# What comes of JSON whose parts are missing or of other types than a run writes.
_OF_OTHER_JSON = (TypeError, KeyError, AttributeError, IndexError, ValueError, ArithmeticError, jinja2.TemplateError)


def write_report(run_folder: Path | str) -> Path:
    """Reads what is there of `results.json`, `metrics.jsonl` and `profile.jsonl`; writes `report.html` beside them.

    A single step, and a run that is under way, have no results: their page has the curves and the settings. Parts whose
    data is absent or null are left out. Returns the path of the report. Raises FileNotFoundError without `results.json`
    and `metrics.jsonl`, ValueError where a file does not hold what it should.
    """
    folder = Path(run_folder)
    started = not (folder / "results.json").is_file() and (folder / "metrics.jsonl").is_file()
    results = _without_results(folder) if started else _results(folder)
    metrics, profile = _rows(folder / "metrics.jsonl"), _rows(folder / "profile.jsonl")
    try:
        html = render(results, metrics, profile)
    except _OF_OTHER_JSON as error:
        found = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{folder}: found results or metrics that no run writes ({found}), accepted are the files of a finished run"
        ) from error
    path = folder / "report.html"
    return written(path, html)


def write_figure(run_folder: Path | str, path: Path | str) -> Path:
    """Writes the win rates of a run as an SVG file of its own, for a README or a slide. Returns its path.

    Raises FileNotFoundError without `results.json`, ValueError for another ending than `.svg`, for results without
    win rates, and where a file does not hold what it should.
    """
    plot = _figure_plot(run_folder, path)
    return written(Path(path), standalone(plot))


def check_figure(run_folder: Path | str, path: Path | str) -> None:
    """Raise as `write_figure` does, and where the folder of the file is not there; write nothing."""
    _figure_plot(run_folder, path)
    if not Path(path).parent.is_dir():
        raise ValueError(f"figure: found no folder {Path(path).parent}, accepted is a file in a folder that is there")


def _figure_plot(run_folder: Path | str, path: Path | str) -> Plot:
    if Path(path).suffix != ".svg":
        raise ValueError(f"figure: found {str(path)!r}, accepted is a path that ends in .svg")
    results = _results(Path(run_folder))
    try:
        plot = win_rate_plot(results)
    except _OF_OTHER_JSON as error:
        found = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{run_folder}: found {found}, accepted are the results of a finished run") from error
    if plot is None:
        raise ValueError(f"run_folder: found no win rates in {run_folder}, accepted is the folder of a finished run")
    return plot


def standalone(plot: Plot) -> str:
    """A plot on a card with its title and caption, as an SVG document that follows the reader's colour scheme."""
    width, height = _view_box(plot)
    caption = textwrap.wrap(plot.caption, _CAPTION_CHARACTERS)
    return (
        _environment()
        .get_template("figure.svg.j2")
        .render(
            plot=plot,
            caption=caption,
            plot_width=width,
            plot_height=height,
            width=width + 2 * _MARGIN,
            height=height + 2 * _MARGIN + 28 + 16 * len(caption),
            margin=_MARGIN,
        )
    )


def render(results: Mapping[str, Any], metrics: Sequence[Record] = (), profile: Sequence[Record] = ()) -> str:
    """The page as text. results, metrics, profile: what the three files hold."""
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            run={
                key: (results.get("run") or {}).get(key) for key in ("name", "description", "seed", "judge", "baseline")
            },
            intro=sentences(results),
            highlights=sections.highlights(results),
            hero=win_rate_plot(results),
            sections=sections.all_sections(results, metrics, profile),
            num_open_samples=sections.NUM_OPEN_SAMPLES,
        )
    )


def page_of(run: Mapping[str, Any], intro: Sequence[str], parts: Sequence[sections.Section]) -> str:
    """A page that is made of these alone. run: name, description, seed, judge and baseline."""
    template = _environment().get_template("report.html.j2")
    open_samples = sections.NUM_OPEN_SAMPLES
    return template.render(
        run=run, intro=intro, highlights=[], hero=None, sections=parts, num_open_samples=open_samples
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("instructrl.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["visible"] = visible
    return environment


def _view_box(plot: Plot) -> tuple[int, int]:
    found = re.match(r'<svg viewBox="0 0 (\d+) (\d+)"', plot.svg)
    assert found is not None, "the drawings of style.py begin with their size"
    return int(found[1]), int(found[2])


def written(path: Path, text: str) -> Path:
    """The path, with the text in the file."""
    # A lone surrogate can stand in JSON but not in UTF-8.
    durable.write_bytes(path, text.encode("utf-8", errors="backslashreplace"))
    return path


def _results(folder: Path) -> Record:
    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"run_folder: found no results.json in {folder} and no metrics.jsonl, accepted is the folder of a run or a "
            "step"
        )
    return _record(_text(path), str(path))


def _without_results(folder: Path) -> Record:
    """What the settings of a run say of it."""
    path = folder / "config.yaml"
    if not path.is_file():
        return {"run": {"name": folder.resolve().name}}
    try:
        config = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise ValueError(
            f"{path}: found no settings ({type(error).__name__}), accepted is the file as written"
        ) from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: found a {type(config).__name__}, accepted are settings")
    return {"run": {"name": folder.resolve().name, "seed": config.get("seed")}, "config": config}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        found = f"the byte 0x{error.object[error.start]:02x} at byte {error.start + 1}"
        raise ValueError(f"{path}: found {found}, accepted is UTF-8") from error


def _record(text: str, where: str) -> Record:
    try:
        # NaN and infinities are not JSON, though Python writes them: they are values that are not there.
        value = json.loads(text, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: found {error}, accepted is a JSON object") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: found a JSON {type(value).__name__}, accepted is a JSON object")
    return value


def _rows(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    lines = _text(path).split("\n")
    # What follows the last newline is a row that a run in progress has not finished writing.
    return [_record(line, f"{path}, line {number}") for number, line in enumerate(lines[:-1], 1) if line.strip()]
