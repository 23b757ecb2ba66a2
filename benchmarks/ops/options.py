"""Each option of the ops beside the same formula in eager PyTorch and torch.compile, and beside the op without it.

    OMP_NUM_THREADS=2 python -m benchmarks.ops.options [--out FILE.json] [--rounds 9] [--only NAME]

Results are checked before they are timed. Ratios are medians of the rounds' own: how many times as fast ours is as the
formula, eager and compiled, and what the option costs, as the time with it over the time without it.
"""

from typing import Any

import torch

from benchmarks.core.tables import command, markdown, median_ratio, spread, write_json
from benchmarks.core.workloads import COMPILE, EAGER
from benchmarks.ops.floor_rows import OURS, WITHOUT
from benchmarks.ops.floors import measured
from benchmarks.ops.option_advantages import ADVANTAGE_ROWS
from benchmarks.ops.option_ppo import PPO_ROWS
from benchmarks.ops.option_rows import LOGIT_ROWS, RANKING_ROWS, Option, one_process

ROWS = (*LOGIT_ROWS, *PPO_ROWS, *ADVANTAGE_ROWS, *RANKING_ROWS)
COLUMNS = ("op, shape", "option", "ms", "times as fast as eager", "as compile", "time over that without it")


def cells(found: dict[str, Any]) -> list[str]:
    times = found["seconds"]
    ratios = [f"{median_ratio(times[x], times[OURS]):.2f}" if x in times else "" for x in (EAGER, COMPILE)]
    cost = f"{median_ratio(times[OURS], times[WITHOUT]):.2f}" if WITHOUT in times else ""
    return [found["op"], found["option"], spread([1e3 * x for x in times[OURS]]), *ratios, cost]


def measure(row: Option, rounds: int) -> dict[str, Any]:
    with one_process():
        times = measured(row.name, row.providers(), row.inputs(), rounds, row.compared)
    torch.compiler.reset()
    return {"op": row.op, "option": row.option, "seconds": times}


def main() -> None:
    arguments = command(__doc__, rounds=9, only="ops and options").parse_args()
    found: list[dict[str, Any]] = []
    for row in ROWS:
        if arguments.only in row.name:
            found.append(measure(row, arguments.rounds))
            print(markdown(COLUMNS, [cells(found[-1])]).split("\n", 2)[2], end="", flush=True)
    if arguments.out:
        write_json(arguments.out, found)
        arguments.out.with_suffix(".md").write_text(markdown(COLUMNS, map(cells, found)), encoding="utf-8")


if __name__ == "__main__":
    main()
