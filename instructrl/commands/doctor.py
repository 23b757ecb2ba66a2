"""`instructrl doctor`: what this machine can run."""

import argparse
import platform
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from instructrl.evaluation.results import versions
from instructrl.ops import dispatch


def main(arguments: Sequence[str]) -> int:
    """Carry out `instructrl doctor`. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="instructrl doctor", description="Every op and backend: usable here or not, and why not; versions."
    )
    parser.parse_args(arguments)
    console = Console()
    console.print(f"{platform.system()} {platform.machine()}")
    console.print("  ".join(f"{name} {version}" for name, version in versions().items()))
    table = Table("op", "backend", "usable", "why not")
    for row in dispatch.usability():
        table.add_row(row.op, row.backend, "yes" if row.usable else "no", row.why_not)
    console.print(table)
    return 0
