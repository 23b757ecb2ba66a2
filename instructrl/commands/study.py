"""`instructrl study NAME --run FOLDER`: settings of a run varied, in figures beside the paper's."""

from rich.console import Console
from rich.table import Table

from instructrl import distributed, progress, threads
from instructrl.commands.settings import StudyCommand
from instructrl.evaluation.formatting import DASH, decimal
from instructrl.evaluation.study_report import write_study
from instructrl.models.backbone import hide_loading_bars
from instructrl.runs.folder import check_folder, open_folder
from instructrl.runs.journal import FinishedSteps
from instructrl.runs.studies.carry_out import run_study
from instructrl.runs.studies.estimate import Planned, plan, read_profile
from instructrl.trainers.log import RunLog


def main(command: StudyCommand) -> int:
    """Carry out `instructrl study`. Returns the exit code."""
    console = Console()
    done = FinishedSteps(command.run)
    planned = plan(command.study, command.config, read_profile(command.run), done.names)
    if command.dry_run:
        console.print(_table(command, planned))
        return 0
    _check_apart(command)
    hide_loading_bars()
    check_folder(command.folder, command.config, fresh=command.fresh)
    open_folder(command.folder, command.config, fresh=command.fresh)
    log = RunLog(command.folder, continued=True)
    log.say(_in_all(planned))
    run_study(command.config, command.run, command.folder, log)
    if distributed.is_main():
        with progress.wait("writing the report"):
            report = write_study(command.folder)
        console.print(f"report: {report}", soft_wrap=True)
    return 0


def _check_apart(command: StudyCommand) -> None:
    """Nothing may be written into the base run."""
    run, folder = command.run.resolve(), command.folder.resolve()
    if run in (folder, *folder.parents):
        raise ValueError(f"out: found {command.folder} in the folder of the base run, accepted is another one")


def _table(command: StudyCommand, planned: list[Planned]) -> Table:
    table = Table("series", "point", command.study.x_label, "seeds", "work", "minutes")
    table.title, table.title_justify = f"{command.config.study}: {command.study.title} ({command.study.paper})", "left"
    for row in planned:
        point, minutes = row.point, DASH if row.minutes is None else decimal(row.minutes, 1)
        table.add_row(point.series, point.label, f"{point.x:g}", str(row.num_seeds), row.work, minutes)
    table.caption = f"{_in_all(planned)}\nwould write to {command.folder}\n{threads.described()}"
    return table


def _in_all(planned: list[Planned]) -> str:
    known = [row.minutes for row in planned if row.minutes is not None]
    points = f"{len(planned)} points, each of {planned[0].num_seeds} seeds"
    if not known:
        return f"{points}; the base run has not done what their minutes are taken from"
    missing = f", {len(planned) - len(known)} points not counted" if len(known) < len(planned) else ""
    return f"{points}: about {decimal(sum(known), 1)} minutes by the times of the base run{missing}"
