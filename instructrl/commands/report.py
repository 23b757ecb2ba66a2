"""`instructrl report FOLDER`: the page of a finished run, written again."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from instructrl.evaluation.report import write_report


def main(arguments: Sequence[str]) -> int:
    """Carry out `instructrl report`. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="instructrl report", description="Write report.html from the results and metrics of a finished run."
    )
    parser.add_argument("folder", type=Path, help="folder of a run, with results.json and metrics.jsonl")
    print(write_report(parser.parse_args(arguments).folder))
    return 0
