"""`instructrl eval`: models side by side, on prompts that a reward model judges and on public test sets."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from instructrl import distributed, durable
from instructrl.commands import lm_eval
from instructrl.commands.settings import EvalCommand
from instructrl.commands.tracked import tracked
from instructrl.commands.win_rates import answered, compared, read_comparing
from instructrl.data.encoding import Encoder
from instructrl.evaluation.results import versions
from instructrl.evaluation.suite_views import terminal_tables
from instructrl.evaluation.table import results_table
from instructrl.models.backbone import hide_loading_bars
from instructrl.models.policy import Policy
from instructrl.models.spread import spread_for_use
from instructrl.runs.folder import check_folder
from instructrl.runs.judging import short_names
from instructrl.runs.reading import Reader
from instructrl.runs.recipe import Recipe
from instructrl.runs.standalone import load_encoder, open_workspace
from instructrl.runs.suites import Examinee, ReadSuite, ask, check_fits, read_suites, suite_results, with_judges
from instructrl.tracking.masking import masked_values


def main(config: EvalCommand) -> int:
    """Carry out `instructrl eval`. Returns the exit code."""
    hide_loading_bars()
    check_folder(Path(config.out), config, fresh=config.fresh)
    suites, recipe = read_suites(config.suites, config.suite), Recipe(limits=config.limits)
    opened = lm_eval.open_asked(config)
    comparing = None if config.baseline is None else read_comparing(config, recipe)
    same = None if comparing is None else comparing.reader.encoder
    _check(config, same, suites, opened)
    reader = Reader(_encoder(config.paths[0], config), config.long_prompts) if comparing is None else comparing.reader
    work = open_workspace(reader, recipe, config)
    with tracked(config.track, work.log, work.folder, config) as tracker:
        suites = with_judges(suites, config.suite, work.folder, config.paths[0], work.log)
        performances, asked, harnessed = [], [], []
        for number, (name, policy, encoder) in enumerate(_models(config, same)):
            spread_for_use(policy, config.weights)
            if comparing is not None:
                performances.append(answered(work, number, name, policy, comparing))
            examinee = Examinee.of(name, number, policy, encoder)
            if suites:
                asked.append(ask(examinee, suites, config.suite, work.folder, work.log))
            if opened:
                harnessed.append(lm_eval.ask_tasks(work, examinee, opened, config))
        run = {"name": "eval", "seed": config.seed, "description": "models on public test sets"}
        names = [
            {"name": name, "path": path} for name, path in zip(short_names(config.paths), config.paths, strict=True)
        ]
        found = {"run": {}, "models": names, "pairings": {}, "samples": []}
        found |= {} if comparing is None else compared(config, comparing.prompts, performances)
        told = {"run": {**run, **found["run"]}, "models": found["models"], **found["pairings"]}
        told["config"] = asdict(config)
        public = suite_results(suites, asked) + lm_eval.lm_eval_results(harnessed)
        given = {"suites": public} if public else {}
        results = {**masked_values(told), **given, "samples": found["samples"], "versions": versions()}
        if distributed.is_main():
            durable.write_text(work.folder / "results.json", json.dumps(results, indent=1) + "\n")
        tracker.after_results(results)
    console = Console()
    for table in ([] if comparing is None else [results_table(results)]) + terminal_tables(results):
        console.print(table)
    return 0


def _check(
    config: EvalCommand, same: Encoder | None, suites: Sequence[ReadSuite], opened: "Sequence[lm_eval.Asked]"
) -> None:
    """Raise ValueError for a model that cannot be loaded or asked, before any is asked."""
    if same is None or suites or opened:
        for number, (name, policy, encoder) in enumerate(_models(config, same)):
            examinee = Examinee.of(name, number, policy, encoder)
            check_fits(examinee, suites)
            lm_eval.check_drawing(examinee, opened)


def _models(config: EvalCommand, same: Encoder | None) -> Iterator[tuple[str, Policy, Encoder]]:
    """All models, one at a time in memory. same: the encoder of all; None takes each model's own."""
    for path, name in zip(config.paths, short_names(config.paths), strict=True):
        encoder = _encoder(path, config) if same is None else same
        yield name, Policy.load(path, encoder.tokenizer).eval(), encoder


def _encoder(path: str, config: EvalCommand) -> Encoder:
    return load_encoder(path, config.limits, config)
