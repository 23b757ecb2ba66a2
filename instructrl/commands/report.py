"""`instructrl report FOLDER`: the page of a finished run, written again, and its main plot as a picture."""

from collections.abc import Sequence
from pathlib import Path

from instructrl.commands import options
from instructrl.evaluation.report import check_figure, write_figure, write_report


def main(arguments: Sequence[str]) -> int:
    """Carry out `instructrl report`. Returns the exit code."""
    parser = options.Parser(
        prog="instructrl report", description="Write report.html from the results and metrics of a finished run."
    )
    parser.add_argument("folder", type=Path, help="folder of a run, with results.json and metrics.jsonl")
    parser.add_argument("--figure", type=Path, metavar="FILE.svg", help="also write the win rates as an SVG picture")
    chosen = parser.parse_args(arguments)
    if chosen.figure is not None:
        check_figure(chosen.folder, chosen.figure)  # before the report is written
    print(write_report(chosen.folder))
    if chosen.figure is not None:
        print(write_figure(chosen.folder, chosen.figure))
    return 0
