"""AlpacaEval's files: annotations of pairs and outputs of a model, read and written.

An annotation has `preference` 1 where `output_1` is better (the baseline's), 2 where `output_2` is, a number between
where a judge weighs, 1.5 or 0 for a tie, and NaN or null where there is no verdict. Each mistake is one line with the
file and the row.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructrl import durable
from instructrl.evaluation.preferences.judgements import Judgement
from instructrl.evaluation.preferences.length_control import Anchors
from instructrl.evaluation.suites.layouts import HALF_CHARACTER, LayoutError, table_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Responses of one model. All of the same length, one an instruction."""

    model: str
    instructions: tuple[str, ...]
    texts: tuple[str, ...]
    datasets: tuple[str, ...]


def read_annotations(path: str | Path) -> list[Judgement]:
    """The judgements of an `annotations.json`: at least `instruction`, `output_1`, `output_2` and `preference` in each
    row; `generator_1` and `generator_2` (both or none), `annotator` and `dataset` where they are there. Without an
    annotator the file's name is the judge's. PandaLM's test set is read too: its annotators are the judge "people".
    Raises LayoutError for anything else."""
    found = []
    for where, row in _rows(Path(path)):
        found += _of_people(row, where) if "annotator1" in row else [_judgement(row, where, Path(path).stem)]
    return found


def _of_people(row: Mapping[str, Any], where: str) -> list[Judgement]:
    """A row of PandaLM's test set (Wang et al. 2023): 0 is a tie, 1 or 2 the better response, by each of several
    people. A few of its responses are a boolean and no text; they are read as Python writes them."""
    asked, more = _text(row, "instruction", where), _optional(row, "input", where)
    first, _, second = _text(row, "cmp_key", where).partition("_")
    found = []
    for key in (key for key in row if key.startswith("annotator")):
        verdict = str(row[key])
        if verdict not in ("0", "1", "2"):
            raise LayoutError(f"{where}: {key}: found {row[key]!r}, accepted is 0, 1 or 2")
        found.append(
            Judgement(
                instruction=f"{asked}\n\n{more}" if more else asked,
                texts=(str(row.get("response1")), str(row.get("response2"))),
                models=(first, second),
                outcome={"0": 0.5, "1": 0.0, "2": 1.0}[verdict],
                judge="people",
            )
        )
    return found


def _judgement(row: Mapping[str, Any], where: str, judge: str) -> Judgement:
    first, second = (_optional(row, key, where) for key in ("generator_1", "generator_2"))
    if (first is None) != (second is None):
        raise LayoutError(f"{where}: found one of generator_1 and generator_2, accepted are both or none")
    return Judgement(
        instruction=_text(row, "instruction", where),
        texts=(_text(row, "output_1", where), _text(row, "output_2", where)),
        models=None if first is None or second is None else (first, second),
        outcome=_outcome(row, where),
        judge=_optional(row, "annotator", where) or judge,
        dataset=_optional(row, "dataset", where) or "",
    )


def _outcome(row: Mapping[str, Any], where: str) -> float | None:
    value = row.get("preference", "nothing")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (value == 0 or 1 <= value <= 2):
        raise LayoutError(f"{where}: preference: found {value!r:.60}, accepted is 1 to 2, 0 (a tie) or null")
    return 0.5 if value == 0 else float(value) - 1


def write_annotations(path: str | Path, judgements: Iterable[Judgement]) -> None:
    """An `annotations.json` that alpaca_eval and `read_annotations` read."""
    rows = []
    for row in judgements:
        names = {} if row.models is None else {"generator_1": row.models[0], "generator_2": row.models[1]}
        rows.append(
            {
                "instruction": row.instruction,
                "output_1": row.texts[0],
                "output_2": row.texts[1],
                **names,
                **({"dataset": row.dataset} if row.dataset else {}),
                "annotator": row.judge,
                "preference": None if row.outcome is None else 1 + row.outcome,
            }
        )
    _write(path, rows)


def read_outputs(path: str | Path) -> Outputs:
    """A `model_outputs.json`: `instruction` and `output` in each row, the same `generator` in all (without one, the
    name of the file's folder is the model's), and `dataset`. Raises LayoutError for anything else."""
    rows = _rows(Path(path))
    names = [_optional(row, "generator", where) for where, row in rows]
    for (where, _), name in zip(rows, names, strict=True):
        if name != names[0]:
            raise LayoutError(f"{where}: generator: found {name!r} after {names[0]!r}, accepted is one model a file")
    instructions = tuple(_text(row, "instruction", where) for where, row in rows)
    seen: dict[str, str] = {}
    for instruction, (where, _) in zip(instructions, rows, strict=True):
        if instruction in seen:
            raise LayoutError(f"{where}: found the instruction of {seen[instruction]} again, accepted is each once")
        seen[instruction] = where.rpartition(", ")[2]
    return Outputs(
        model=names[0] or Path(path).resolve().parent.name,
        instructions=instructions,
        texts=tuple(_text(row, "output", where) for where, row in rows),
        datasets=tuple(_optional(row, "dataset", where) or "" for where, row in rows),
    )


def write_outputs(path: str | Path, outputs: Outputs) -> None:
    """A `model_outputs.json` that alpaca_eval and `read_outputs` read."""
    rows = [
        {"instruction": instruction, "output": text, "generator": outputs.model, "dataset": dataset}
        for instruction, text, dataset in zip(outputs.instructions, outputs.texts, outputs.datasets, strict=True)
    ]
    _write(path, rows)


def read_gamed(path: str | Path, num_instructions: int) -> tuple[list[float], Anchors]:
    """alpaca_eval's `df_gamed.csv`: the difficulty of each instruction, in the order of its set, and the annotations of
    the brief and the wordy baseline. Raises LayoutError for another table, and where an instruction has no difficulty.
    """
    columns = ("preference", "index", "std_delta_len", "instruction_difficulty")
    found: dict[str, list[float]] = {column: [] for column in columns}
    difficulty: dict[int, float] = {}
    for where, row in table_rows(Path(path), columns):
        for column in columns:
            found[column].append(_number(row[column], column, where))
        difficulty.setdefault(int(found["index"][-1]), found["instruction_difficulty"][-1])
    missing = next((i for i in range(num_instructions) if i not in difficulty), None)
    if missing is not None:
        raise LayoutError(
            f"{path}: found no row of index {missing}, accepted is one for each of {num_instructions} rows"
        )
    anchors = Anchors(
        outcomes=found["preference"],
        differences=found["std_delta_len"],
        difficulties=found["instruction_difficulty"],
    )
    return [difficulty[i] for i in range(num_instructions)], anchors


def _number(text: str, column: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise LayoutError(f"{where}: {column}: found {text!r}, accepted is a number")
    return value


def _rows(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise LayoutError(f"{path}: found bytes that are not UTF-8, accepted is a text file") from None
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{path}: found no JSON ({error}), accepted is a list of objects") from None
    if not isinstance(found, list) or not found:
        what = "an empty list" if isinstance(found, list) else type(found).__name__
        raise LayoutError(f"{path}: found {what}, accepted is a list of objects")
    rows = [(f"{path}, row {number}", row) for number, row in enumerate(found, 1)]
    for where, row in rows:
        if not isinstance(row, dict):
            raise LayoutError(f"{where}: found {type(row).__name__}, accepted is an object")
    return rows


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or HALF_CHARACTER.search(value):
        found = repr(value)[:60] if key in row else "nothing"
        raise LayoutError(f"{where}: {key}: found {found}, accepted is a text")
    return value


def _optional(row: Mapping[str, Any], key: str, where: str) -> str | None:
    return None if row.get(key) is None else _text(row, key, where)


def _write(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    durable.write_text(Path(path), json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
