"""The rows of bench.py under pytest-benchmark: our backends, forward and backward.

    pytest benchmarks/ops/test_ops.py --benchmark-json=results.json

A backend is timed after its results were held against float64. Wall times; a GPU is synchronised inside.
"""

import functools

import pytest

from benchmarks.core.rows import BACKENDS, EAGER
from benchmarks.core.runner import Attempt, check
from benchmarks.core.timing import forced, meter_here
from benchmarks.ops.bench import ROWS

METER = meter_here()
RUNS = [(row, name) for row in ROWS for name in row.providers(METER) if name in BACKENDS]


BY_NAME = {row.name: row for row in ROWS}


@functools.lru_cache(maxsize=1)
def ready(row_name):
    """Inputs, providers, and what a check found of each."""
    row = BY_NAME[row_name]
    inputs = row.inputs(METER)
    providers = {name: x for name, x in row.providers(METER).items() if name in (*BACKENDS, EAGER)}
    return inputs, providers, check(providers, inputs, row.truth(inputs), METER, Attempt(rounds=1))


@pytest.mark.parametrize(("row", "name"), RUNS, ids=lambda x: x if isinstance(x, str) else x.name.replace(" ", "-"))
def test_op(benchmark, row, name):
    inputs, providers, found = ready(row.name)
    assert "left_out" not in found[name], found[name]
    benchmark.group = row.name
    with forced(name):
        run = providers[name].run
        benchmark.pedantic(METER.wall, args=(lambda: run(inputs), 1), rounds=5, warmup_rounds=1)
