"""`instructrl run NAME`: all steps, from data to report."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from instructrl import distributed
from instructrl.commands import options
from instructrl.evaluation.report import write_report
from instructrl.evaluation.table import results_table
from instructrl.models.backbone import hide_loading_bars
from instructrl.runs.folder import check_folder, open_folder
from instructrl.runs.named import RUNS, NamedRun
from instructrl.trainers.log import RunLog

_USAGE = """usage: instructrl run NAME [--out FOLDER] [--dry-run] [--fresh] [--config FILE] [OPTIONS]
       instructrl run --list

All steps of a named run. `instructrl run NAME --help` lists its options, each of which can also be set in a YAML file.
--dry-run prints the plan, the sizes and the steps, and does nothing. --out: where models, metrics, results.json and
report.html go (default: runs/NAME-SEED). The same command continues a run that was stopped; --fresh
starts over."""


def main(arguments: Sequence[str]) -> int:
    """Carry out `instructrl run`. Returns the exit code."""
    console = Console()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{_USAGE}\n")
        console.print(_list())
        return 0
    if arguments[0] == "--list":
        console.print(_list())
        return 0
    name, rest = arguments[0], list(arguments[1:])
    if name not in RUNS:
        close = difflib.get_close_matches(name, RUNS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"accepted are {', '.join(RUNS)}"
        raise ValueError(f"run: found the name {name!r}, {hint}")
    named = RUNS[name]
    own = options.Parser(prog=f"instructrl run {name}", add_help=False, allow_abbrev=False)
    own.add_argument("--out", type=Path)
    own.add_argument("--dry-run", action="store_true")
    own.add_argument("--fresh", action="store_true")
    chosen, rest = own.parse_known_args(rest)
    config = options.parse(
        named.config,
        rest,
        program=f"instructrl run {name}",
        description=f"{named.description.capitalize()}. Beside these: --out FOLDER, --dry-run, --fresh.",
    )
    folder = Path("runs") / f"{name}-{config.seed}" if chosen.out is None else chosen.out
    if chosen.dry_run:
        console.print(_plan(name, named, config, folder))
        return 0
    hide_loading_bars()
    check_folder(folder, config, fresh=chosen.fresh)
    given = named.read(config)
    open_folder(folder, config, fresh=chosen.fresh)
    results = named.carry_out(given, folder, RunLog(folder, continued=True))
    if distributed.is_main():
        report = write_report(folder)
        console.print(results_table(results))
        console.print(f"report: {report}", soft_wrap=True)
    return 0


def _list() -> Table:
    table = Table("run", "what it does", box=None, pad_edge=False)
    for name, run in RUNS.items():
        table.add_row(name, run.description)
    return table


def _plan(name: str, named: NamedRun, config, folder: Path) -> Table:
    table = Table(
        "step", "data", "work", title=f"{name}, seed {config.seed}: {named.description}", title_justify="left"
    )
    for row in named.plan(config):
        table.add_row(*row)
    table.caption = f"would write to {folder}"
    return table
