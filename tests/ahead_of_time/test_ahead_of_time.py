"""The GPU kernels compile for GPUs that are not here, and need what benchmarks/results/ahead_of_time.json says.

All CUDA kernels are compiled for one architecture, and Triton's for the same in one of two dtypes, by turns;
`make ahead-of-time` compiles all of them for all. The stored table itself is looked at whole.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.ahead_of_time import report

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.timeout(900)
STORED = report.stored_rows()
# Kernels that read rows or runs of tokens move 16 bytes at a time. Those of ranking read a few scores a prompt.
WIDE = {
    # The forward with a map of the logits reads class by class.
    "csrc/cuda/logprobs.cu": (
        "logprobs_backward",
        *(f"logprobs_forward<{x}, {y}, false>" for x in ("float", "BFloat16", "Half") for y in ("false", "true")),
    ),
    "csrc/cuda/ppo.cu": ("ppo_kernel",),
    "csrc/cuda/sampling.cu": ("sample_kernel",),
    "csrc/cuda/whitening.cu": ("moments_kernel", "apply_kernel"),
    "csrc/cuda/advantages.cu": (
        "advantages_of_short_rows<float",
        "advantages_of_chunks<float",
        "carries_of_chunks<float",
    ),
}


def compared(found, architectures):
    """Problems of the rows that were compiled, against the stored ones of the same kernels."""
    keys = {(row.backend, row.file, row.kernel) for row in found}
    known = [row for row in STORED if row.arch in architectures and (row.backend, row.file, row.kernel) in keys]
    return report.problems(found, known)


@pytest.mark.skipif(report.why_not() is not None, reason=report.why_not() or "")
def test_cuda_kernels_need_what_the_table_says():
    found = report.cuda_rows(architectures=("sm_90a",))
    assert {row.kernel for row in found} == {row.kernel for row in STORED if row.backend == "cuda"}
    assert compared(found, ("sm_90a",)) == []


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_kernels_need_what_the_table_says():
    import triton

    from benchmarks.ahead_of_time import triton_kernels

    stored = report.stored_versions()["triton"]
    if triton.__version__ != stored:
        pytest.skip(f"the table is of triton {stored}, here is {triton.__version__}")
    pairs = zip(*map(triton_kernels.distinct, (torch.float32, torch.bfloat16)), strict=True)
    found = []
    for number, (full, half) in enumerate(pairs):
        assert full.kernel is half.kernel
        found.append(triton_kernels.compile_ahead("90", half if number % 2 else full))
    assert len(found) > 40
    assert compared(found, ("sm_90",)) == []


def test_the_table_has_every_kernel_for_every_architecture_and_no_spill():
    by_kernel = {}
    for row in STORED:
        assert row.spills == 0, row
        assert 0 < row.registers <= 255, row
        by_kernel.setdefault((row.backend, row.file, row.kernel), set()).add(row.arch)
    assert {frozenset(found) for (backend, *_), found in by_kernel.items() if backend == "cuda"} == {
        frozenset(report.ARCHITECTURES)
    }
    assert {frozenset(found) for (backend, *_), found in by_kernel.items() if backend == "triton"} == {
        frozenset({"sm_80", "sm_90", "sm_100", "gfx942"})
    }
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / "cuda").glob("*.cu")}
    assert {file for backend, file, _ in by_kernel if backend == "cuda"} == files


@pytest.mark.parametrize("file", WIDE)
def test_rows_are_read_16_bytes_at_a_time(file):
    for start in WIDE[file]:
        found = [row for row in STORED if row.file == file and row.kernel.startswith(start)]
        assert found
        assert all(row.wide_loads > 0 for row in found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spills": 8}, "8 bytes of local memory"),
        ({"registers": 200}, "200 registers"),
        ({"wide_loads": 0}, "0 wide_loads"),
        ({"wide_stores": 0}, "0 wide_stores"),
        ({"shared_bytes": 99999}, "99999 bytes shared"),
        ({"kernel": "other"}, "not in the stored report"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_got_worse_is_named(change, said):
    stored = next(row for row in STORED if row.kernel == "logprobs_backward<float, false>" and row.arch == "sm_90a")
    assert report.problems([stored], [stored]) == []
    lines = report.problems([replace(stored, **change)], [stored])
    assert said in lines[-1]
