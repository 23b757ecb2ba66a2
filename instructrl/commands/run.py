"""`instructrl run NAME`: all steps, from data to report."""

from rich.console import Console
from rich.table import Table

from instructrl import distributed, progress, threads
from instructrl.commands.settings import RunCommand
from instructrl.commands.tracked import tracked
from instructrl.evaluation.report import write_report
from instructrl.evaluation.suite_views import terminal_tables
from instructrl.evaluation.table import results_table
from instructrl.models.backbone import hide_loading_bars
from instructrl.runs.folder import check_folder, open_folder, settled_config
from instructrl.runs.suites import read_suites
from instructrl.trainers.log import RunLog


def main(command: RunCommand) -> int:
    """Carry out `instructrl run`. Returns the exit code."""
    console, config, folder = Console(), command.config, command.folder
    if command.dry_run:
        console.print(_plan(command))
        for text in command.named.concerns(config):
            console.print(f"warning: {text}", markup=False, soft_wrap=True)
        return 0
    hide_loading_bars()
    config = settled_config(config, folder, fresh=command.fresh)
    check_folder(folder, config, fresh=command.fresh)
    read_suites(config.suites, config.suite)  # hours before they are needed
    given = command.named.read(config)
    open_folder(folder, config, fresh=command.fresh)
    log = RunLog(folder, continued=True)
    for text in command.named.concerns(config):  # hours before the steps that they are about
        log.warn(text)
    with tracked(config.track, log, folder, config) as tracker:
        results = command.named.carry_out(given, folder, log)
        tracker.after_results(results)
    if distributed.is_main():
        with progress.wait("writing the report"):
            report = write_report(folder)
        for table in [results_table(results), *terminal_tables(results)]:
            console.print(table)
        console.print(f"report: {report}", soft_wrap=True)
    return 0


def _plan(command: RunCommand) -> Table:
    named = command.named
    table = Table(
        "step",
        "data",
        "work",
        title=f"{command.name}, seed {command.config.seed}: {named.description}",
        title_justify="left",
    )
    for row in named.plan(command.config):
        table.add_row(*row)
    table.caption = f"would write to {command.folder}\n{threads.described()}"
    return table
