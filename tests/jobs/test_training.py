"""Three processes with DDP and two with FSDP2 do what one does, on the CPU, started by torchrun."""

from pathlib import Path

import pytest
import torch
import worker
from launch import torchrun
from safetensors.torch import load_file

from instructrl.trainers.log import RunLog

JOBS = {"ddp over 3": ("ddp", 3), "fsdp over 2": ("fsdp", 2)}
# Rows in a forward pass.
OTHER_CUTS = (1, 8)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The same in a single process; and again cut otherwise, which changes rounding alone."""
    folder = tmp_path_factory.mktemp("alone")
    worker.job("ddp", folder / "2")
    for microbatch in OTHER_CUTS:
        worker.job("ddp", folder / str(microbatch), microbatch=microbatch)
    return folder


@pytest.fixture(scope="module", params=JOBS)
def job(request, alone, tmp_path_factory) -> Path:
    how, count = JOBS[request.param]
    folder = tmp_path_factory.mktemp("job")
    found = torchrun(count, worker.__file__, how, str(folder), str(alone / "2"))
    assert found.returncode == 0, found.stderr
    return folder


def distance(one: Path, other: Path) -> float:
    """The largest difference of two states, divided by the largest element of the tensor where that is above 1."""
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    shares = [float((a[name] - b[name]).abs().max() / a[name].abs().max().clamp(min=1.0)) for name in a]
    assert all(x.dtype in (torch.float64, torch.float32, torch.int64) for x in a.values())
    return max(shares)


def metrics_distance(one: Path, other: Path) -> float:
    rows = list(zip(*(RunLog(folder, continued=True).read_metrics() for folder in (one, other)), strict=True))
    assert rows
    assert all(a.keys() == b.keys() and (a["phase"], a["step"]) == (b["phase"], b["step"]) for a, b in rows)
    return max(abs(a[key] - b[key]) / max(abs(a[key]), 1.0) for a, b in rows for key in a if key != "phase")


def rounding(alone: Path, name: str) -> float:
    """How far rounding takes a single process whose forward passes are cut in other ways."""
    return max(
        distance(alone / "2" / name / "end.safetensors", alone / str(size) / name / "end.safetensors")
        for size in OTHER_CUTS
    )


@pytest.mark.parametrize("name", worker.TRAINERS)
def test_several_processes_end_where_one_does(name, job, alone):
    """1 x 2N equals 2 x N, uneven last batches included, but for rounding."""
    found = distance(alone / "2" / name / "end.safetensors", job / name / "end.safetensors")
    assert found <= 4 * rounding(alone, name)


@pytest.mark.parametrize("name", worker.TRAINERS)
def test_several_processes_go_on_where_one_stopped(name, job, alone):
    found = distance(alone / "2" / name / "end.safetensors", job / name / "continued.safetensors")
    assert found <= 4 * rounding(alone, name)


@pytest.mark.parametrize("name", worker.TRAINERS)
def test_one_process_goes_on_where_several_stopped(name, job, alone, tmp_path):
    trainer = worker.resumed(worker.TRAINERS[name](worker.PassConfig(), 2), worker.saved(job / name))
    worker.keep(trainer, tmp_path / "end.safetensors")
    found = distance(alone / "2" / name / "end.safetensors", tmp_path / "end.safetensors")
    assert found <= 4 * rounding(alone, name)


@pytest.mark.parametrize("name", worker.TRAINERS)
def test_the_metrics_are_those_of_one_process(name, job, alone):
    found = metrics_distance(alone / "2" / name, job / name)
    assert found <= 4 * max(metrics_distance(alone / "2" / name, alone / str(size) / name) for size in OTHER_CUTS)


def test_samples_are_those_of_one_process(job, alone):
    found, own = load_file(job / "samples.safetensors"), load_file(alone / "2" / "samples.safetensors")
    assert found.keys() == own.keys()
    for name, expected in own.items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=0)


def test_the_main_process_alone_writes(job):
    assert (job / "process-0" / "metrics.jsonl").read_text().count("\n") == 1
    assert not list(job.glob("process-[1-9]*"))


def test_the_main_process_alone_calls_callbacks(job, alone):
    found = {path.relative_to(job): path.read_text() for path in job.glob("*/told-*")}
    assert {path.name for path in found} == {"told-0"}
    assert len(found) == len(worker.TRAINERS)
    assert found == {path: (alone / "2" / path).read_text() for path in found}
    assert found[Path("ppo/told-0")].splitlines()[-1].endswith(" 3")
