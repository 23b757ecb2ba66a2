"""Each option of the ops beside the same formula in eager PyTorch and torch.compile, and beside the op without it.

    OMP_NUM_THREADS=2 python -m benchmarks.ops.options [--out FILE.json] [--rounds 9] [--only NAME]

How each row is measured is said in core/runner.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from benchmarks.core.report import run
from benchmarks.core.tables import command
from benchmarks.ops.option_advantages import ADVANTAGE_ROWS
from benchmarks.ops.option_ppo import PPO_ROWS
from benchmarks.ops.option_rows import LOGIT_ROWS, RANKING_ROWS

ROWS = (*LOGIT_ROWS, *PPO_ROWS, *ADVANTAGE_ROWS, *RANKING_ROWS)


@contextmanager
def one_process() -> Iterator[None]:
    """A process group of this process alone, for the options that ask for one: what they cost without a network."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def main() -> None:
    with one_process():
        run(__spec__.name, ROWS, command(__doc__, rounds=9, only="", out=Path))


if __name__ == "__main__":
    main()
