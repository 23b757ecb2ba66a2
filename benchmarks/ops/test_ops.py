"""Every operation on every backend that can run it here: forward, and backward where there is one.

    pytest benchmarks/ops/test_ops.py --benchmark-json=results.json

A backend is timed only after its outputs were found to be as close to float64 as those of the float32 reference. The
bytes of the case and the rate they make are stored with each result. Wall times; a GPU is synchronised inside.
"""

import functools

import pytest

from benchmarks.core.checks import distances, why_ours_is_wrong
from benchmarks.core.timing import forced
from benchmarks.core.workloads import Provider, public, running
from benchmarks.ops import bench
from instructrl import ops
from instructrl.ops.cases import CASES

USABLE = {(row.op, row.backend) for row in ops.usability() if row.usable}
RUNS = [(case, backend) for case in CASES if case.large for op, backend in sorted(USABLE) if op == case.op]


def provider(case, backend):
    return Provider(run=running(public(case.op), case.gradients), backend=backend)


@functools.lru_cache(maxsize=1)
def truth_and_yardstick(case):
    arguments = bench.inputs(case)
    exact = bench.truth(case, arguments)
    return exact, distances(bench.results(provider(case, "reference"), arguments), exact)


@pytest.mark.parametrize(("case", "backend"), RUNS, ids=lambda x: x if isinstance(x, str) else f"{x.op}-{x.name}")
def test_op(benchmark, case, backend):
    (truth, plain), arguments, found = truth_and_yardstick(case), bench.inputs(case), provider(case, backend)
    assert why_ours_is_wrong(distances(bench.results(found, arguments), truth), plain, 1.0) == ""
    meter = bench.meter_of(bench.DEVICE)
    benchmark.group = f"{case.op} {case.name}"
    with forced(backend):
        benchmark.pedantic(meter.wall, args=(lambda: found.run(arguments), 1), rounds=5, warmup_rounds=1)
    if benchmark.disabled:
        return
    num_bytes = case.bytes_moved(arguments)
    benchmark.extra_info["bytes_moved"] = num_bytes
    benchmark.extra_info["bytes_per_second"] = num_bytes / benchmark.stats["median"]
