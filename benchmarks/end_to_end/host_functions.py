"""A host's functions beside what stands in for them, in an environment with the host: one row each, as JSON.

python -m benchmarks.end_to_end.host_functions HOST [--rounds 15] [--memory]

Forward and, where there is one, backward of a row's first example at its own sizes, the two in turns. Memory is the
peak of one call in a process of its own.
"""

import argparse
import importlib
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from benchmarks.core.memory import extra_bytes, in_process
from benchmarks.core.timing import cpu_seconds
from instructrl.integrations import adapter, selfcheck

WHOSE = ("own", "ours")


def step(each: adapter.Replacement, whose: str) -> Callable[[], object]:
    """A call of either, with the backward of all that it returns with gradients."""
    own = adapter.own_function(each.name)
    function = own if whose == "own" else each.stand_in(own)
    example = selfcheck.drawn(each.examples, each.measured)[0]
    leaves = [x for x in _pytree.tree_leaves(tuple(example)) if isinstance(x, Tensor) and x.requires_grad]

    def call() -> object:
        returned = _pytree.tree_leaves(each.call(function, *example.args, **example.kwargs))
        ends = [x for x in returned if isinstance(x, Tensor) and x.requires_grad]
        if not ends or not leaves:
            return returned
        return torch.autograd.grad(ends, leaves, [torch.ones_like(x) for x in ends], allow_unused=True)

    return call


def memory(host: str, name: str, whose: str) -> int:
    return extra_bytes(step(_rows(host)[name], whose))


def _rows(host: str) -> dict[str, adapter.Replacement]:
    module = importlib.import_module(f"instructrl.integrations.{host}")
    return {each.name: each for each in module.ADAPTER.replacements}


def _largest_gap(each: adapter.Replacement) -> float:
    """Of all examples, in roundings of float32 of the largest number."""
    own = adapter.own_function(each.name)
    pairs = selfcheck.outcomes(own, each.stand_in(own), each.examples, each.call, "cpu")
    gaps = [selfcheck.gap(*pair) for theirs, found in pairs for pair in zip(theirs, found, strict=True)]
    return max([selfcheck.ROUNDINGS * error / bound for error, bound in gaps if bound], default=0.0)


def measured(host: str, each: adapter.Replacement, rounds: int, with_memory: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"name": each.name, "roundings": _largest_gap(each)}
    found["seconds"] = cpu_seconds({whose: step(each, whose) for whose in WHOSE}, rounds)
    if with_memory:
        found["extra_bytes"] = {whose: in_process(memory, host, each.name, whose) for whose in WHOSE}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("host")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory", action="store_true")
    given = parser.parse_args()
    module = importlib.import_module(f"instructrl.integrations.{given.host}")
    report, rows = module.ADAPTER.examine(), _rows(given.host)
    found = {"host": given.host, "version": report.version, "problems": report.problems}
    passed = [rows[row.name] for row in report.rows if not row.why]
    found["rows"] = [measured(given.host, each, given.rounds, given.memory) for each in passed]
    print("@" + json.dumps(found))


if __name__ == "__main__":
    main()
