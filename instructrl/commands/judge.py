"""`instructrl judge`: who is preferred to whom, from files alone; with a reward model, by its verdicts too."""

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from instructrl import __version__, durable
from instructrl.commands.settings import JudgeCommand
from instructrl.evaluation.preferences.alpaca_eval import (
    Outputs,
    read_annotations,
    read_gamed,
    read_outputs,
    write_annotations,
    write_outputs,
)
from instructrl.evaluation.preferences.benchmarks import Trial, benchmark_entry, read_trials
from instructrl.evaluation.preferences.judgements import Judgement, by_scores_of_pairs, of_scores
from instructrl.evaluation.preferences.judges import judged
from instructrl.evaluation.preferences.results_file import read_results
from instructrl.evaluation.report import write_report
from instructrl.evaluation.verdict_views import terminal_tables

# Below `out`: of each model, what alpaca_eval reads.
_EXPORT = "alpaca_eval"


@dataclass(slots=True, kw_only=True)
class _Given:
    """What was read. notes: lines for people."""

    judgements: list[Judgement] = field(default_factory=list)
    outputs: list[Outputs] = field(default_factory=list)
    trials: dict[str, list[Trial]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def main(config: JudgeCommand) -> int:
    """Carry out `instructrl judge`. Returns the exit code."""
    if config.out is not None:
        _check_out(Path(config.out), fresh=config.fresh)
    given = _read(config)
    benchmarks = [] if config.reward_model is None else _by_reward_model(config, config.reward_model, given)
    gamed = None if config.gamed is None else partial(read_gamed, config.gamed)
    found = judged(given.judgements, config.baseline or _first(given), gamed) if given.judgements else {}
    num_instructions = len({row.instruction for row in given.judgements})
    run = {
        "name": "judge",
        "description": f"verdicts on {num_instructions} instructions"
        if num_instructions
        else "a reward model measured",
        "judge": found.pop("judge", None),
        "baseline": found.pop("baseline", None),
        "prompts": "prompts",
    }
    results = {
        "run": {key: value for key, value in run.items() if value is not None},
        **found,
        **({"benchmarks": benchmarks} if benchmarks else {}),
        **({"notes": given.notes} if given.notes else {}),
        "config": asdict(config),
        "versions": {"instructrl": __version__, "python": platform.python_version(), "numpy": version("numpy")},
    }
    if config.out is not None:
        _write(Path(config.out), results, given)
    console = Console()
    for note in given.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    for table in terminal_tables(results):
        console.print(table)
    return 0


def _read(config: JudgeCommand) -> _Given:
    """Raises ValueError for a file that cannot be used, and for one whose verdicts were read already."""
    given = _Given()
    for path in config.annotations:
        given.judgements += read_annotations(path)
    if config.results is not None:
        outputs, judgements = read_results(config.results)
        given.outputs += outputs
        given.judgements += judgements
    for path in config.outputs:
        found = read_outputs(path)
        if found.model in {row.model for row in given.outputs}:
            raise ValueError(f"{path}: found the model {found.model!r} again, accepted are different ones")
        if given.outputs and set(found.instructions) != set(given.outputs[0].instructions):
            raise ValueError(
                f"{path}: found other instructions than {given.outputs[0].model!r} has, accepted are the same ones"
            )
        given.outputs.append(found)
    for path in config.benchmark:
        given.trials[path] = read_trials(path)
    return given


def _first(given: _Given) -> str | None:
    return given.outputs[0].model if given.outputs else None


def _by_reward_model(config: JudgeCommand, reward_model: str, given: _Given) -> list[dict[str, Any]]:
    """Adds the reward model's judgements to what was read. Returns the entries of the benchmarks."""
    from instructrl.commands.judge_model import Judge  # imports torch

    judge = Judge.load(config, reward_model)
    if config.annotations:
        scored = by_scores_of_pairs(given.judgements, judge.scores, judge.name)
        given.judgements += _kept(scored, given, "annotated pairs")
    if config.outputs:
        given.judgements += _kept(_of_outputs(given.outputs, judge), given, "pairs of outputs")
    return [
        {"file": Path(path).name, "model": judge.name, **_measured(trials, judge, path, given)}
        for path, trials in given.trials.items()
    ]


def _of_outputs(outputs: Sequence[Outputs], judge: Any) -> list[Judgement]:
    """The judge's verdicts on all pairs of models; None where it cannot read a response."""
    first = outputs[0]
    texts, scores = {}, {}
    for row in outputs:
        said = dict(zip(row.instructions, row.texts, strict=True))
        texts[row.model] = [said[instruction] for instruction in first.instructions]
        scores[row.model] = judge.scores(list(zip(first.instructions, texts[row.model], strict=True)))
    return of_scores(first.instructions, texts, scores, judge.name, first.datasets)


def _kept(judgements: Sequence[Judgement], given: _Given, what: str) -> list[Judgement]:
    kept = [row for row in judgements if row.outcome is not None]
    if len(kept) < len(judgements):
        given.notes.append(
            f"{len(judgements) - len(kept)} of {len(judgements)} {what} are left out: longer than the limits"
        )
    return kept


def _measured(trials: Sequence[Trial], judge: Any, path: str, given: _Given) -> dict[str, Any]:
    asked = [(trial.prompt, text) for trial in trials for text in (*trial.right, *trial.wrong)]
    scores = iter(judge.scores(asked))
    rows = [([next(scores) for _ in trial.right], [next(scores) for _ in trial.wrong]) for trial in trials]
    whole = [place for place, (right, wrong) in enumerate(rows) if None not in (*right, *wrong)]
    # A prompt of the subset Ties counts with its twin.
    ids = {(trials[place].subset, trials[place].id) for place in whole}
    whole = [place for place in whole if (twin := trials[place].twin) is None or (trials[place].subset, twin) in ids]
    if not whole:
        raise ValueError(f"{path}: found nothing but rows longer than the limits, accepted is at least one that fits")
    left_out = len(trials) - len(whole)
    if left_out:
        given.notes.append(f"{path}: {left_out} of {len(trials)} rows are left out: longer than the limits")
    return {**benchmark_entry([trials[i] for i in whole], [rows[i] for i in whole]), "num_left_out": left_out}


def _check_out(folder: Path, *, fresh: bool) -> None:
    if folder.is_file():
        raise ValueError(f"out: found the file {folder}, accepted is a folder")
    results = folder / "results.json"
    if fresh and results.is_file():
        try:
            name = json.loads(results.read_text(encoding="utf-8"))["run"]["name"]
        except (ValueError, KeyError, TypeError):
            name = "something else"
        if name != "judge":
            raise ValueError(
                f"out: found the results of {name} in {folder}, accepted are those of judge, or a new folder"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"out: found files in {folder}, accepted is a new folder, or --fresh True for one of judge")


def _write(folder: Path, results: Mapping[str, Any], given: _Given) -> None:
    durable.make_folder(folder)
    durable.remove(folder / _EXPORT)
    for number, outputs in enumerate(given.outputs, 1):
        # A model's name may be a path; the number tells those apart that are alike without what a path has.
        own = folder / _EXPORT / f"{number:02d}-{re.sub(r'[^A-Za-z0-9.-]', '_', outputs.model)}"
        durable.make_folder(own)
        write_outputs(own / "model_outputs.json", outputs)
        pairs = _with_baseline(given.judgements, results["run"].get("baseline"), outputs.model)
        if pairs:
            write_annotations(own / "annotations.json", pairs)
    durable.write_text(folder / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    write_report(folder)


def _with_baseline(judgements: Sequence[Judgement], baseline: str | None, model: str) -> list[Judgement]:
    """As alpaca_eval has them: the baseline's response is the first one."""
    pairs = [row for row in judgements if baseline != model and set(row.models or ()) == {baseline, model}]
    return [row if row.models == (baseline, model) else row.swapped for row in pairs]
