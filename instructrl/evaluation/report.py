"""`report.html` of a run: one file that asks for nothing from outside, made from the run's JSON alone.

The same input gives the same bytes. Text from models and data is escaped by the template engine and shown as text.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from instructrl.evaluation import sections
from instructrl.evaluation.figures import win_rate_plot
from instructrl.evaluation.narrative import sentences

Record = dict[str, Any]


def write_report(run_folder: Path | str) -> Path:
    """Reads `results.json`, and where they exist `metrics.jsonl` and `profile.jsonl`; writes `report.html` beside them.

    Parts whose data is absent or null are left out. Returns the path of the report.
    Raises FileNotFoundError without `results.json`, ValueError where a file does not hold what it should.
    """
    folder = Path(run_folder)
    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"run_folder: found no results.json in {folder}, accepted is the folder of a run")
    results = _record(path.read_text(encoding="utf-8"), str(path))
    html = render(results, _rows(folder / "metrics.jsonl"), _rows(folder / "profile.jsonl"))
    report = folder / "report.html"
    # A lone surrogate can stand in JSON but not in UTF-8.
    report.write_bytes(html.encode("utf-8", errors="backslashreplace"))
    return report


def render(results: Mapping[str, Any], metrics: Sequence[Record] = (), profile: Sequence[Record] = ()) -> str:
    """The page as text. results, metrics, profile: what the three files hold."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("instructrl.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["visible"] = visible
    return environment.get_template("report.html.j2").render(
        run={key: (results.get("run") or {}).get(key) for key in ("name", "description", "seed", "judge", "baseline")},
        intro=sentences(results),
        highlights=sections.highlights(results),
        hero=win_rate_plot(results),
        sections=sections.all_sections(results, metrics, profile),
        num_open_samples=sections.NUM_OPEN_SAMPLES,
    )


def visible(text: Any) -> str:
    """Control characters as their pictures (U+2400 and up), so that they show and do nothing; tab and newline stay."""
    characters = str(text).replace("\r\n", "\n")
    return "".join(_picture(character) for character in characters)


def _picture(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or 0x20 <= code < 0x7F or code > 0x9F:
        return character
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"


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
    lines = path.read_text(encoding="utf-8").split("\n")
    # What follows the last newline is a row that a run in progress has not finished writing.
    return [_record(line, f"{path}, line {number}") for number, line in enumerate(lines[:-1], 1) if line.strip()]
