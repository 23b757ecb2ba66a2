"""`instructrl report FOLDER`: the page of a run or of a single step, and the main plot of a run as a picture."""

from instructrl.commands.settings import ReportCommand
from instructrl.evaluation.report import check_figure, write_figure, write_report


def main(config: ReportCommand) -> int:
    """Carry out `instructrl report`. Returns the exit code."""
    if config.figure is not None:
        check_figure(config.folder, config.figure)  # before the report is written
    print(write_report(config.folder))
    if config.figure is not None:
        print(write_figure(config.folder, config.figure))
    return 0
