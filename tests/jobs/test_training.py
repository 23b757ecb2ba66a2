"""Three processes with DDP and two with FSDP2 do what one does, on the CPU, started by torchrun."""

import re
import shutil
from pathlib import Path

import pytest
import torch
import worker
from launch import torchrun
from safetensors.torch import load_file

from instructrl.trainers.checkpoints import Checkpoints
from instructrl.trainers.log import RunLog
from instructrl.trainers.settings import CheckpointConfig

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


SHARDS = {
    "missing": (lambda one, two: two.unlink(), "tensors-00002-of-00002.safetensors is missing"),
    "of another checkpoint": (
        lambda one, two: two.write_bytes(two.read_bytes()[:-8] + bytes(8)),
        "tensors-00002-of-00002.safetensors was changed",
    ),
    "cut": (lambda one, two: two.write_bytes(two.read_bytes()[:-8]), "tensors-00002-of-00002.safetensors has"),
    "of three processes": (
        lambda one, two: two.rename(two.with_name("tensors-00002-of-00003.safetensors")),
        "tensors-00002-of-00003.safetensors does not belong to it",
    ),
    "one more": (
        lambda one, two: shutil.copy(two, two.with_name("tensors-00003-of-00002.safetensors")),
        "tensors-00003-of-00002.safetensors does not belong to it",
    ),
}


@pytest.mark.parametrize("name", SHARDS)
def test_shards_that_do_not_belong_together_are_refused(name, job, tmp_path):
    """In one line that names the file. Those of another number of processes are cut anew: see above."""
    there = sorted((job / "sft" / "state").glob("step-*/tensors*"))
    if len(there) == 1:
        assert there[0].name == "tensors.safetensors"  # copies: the first process writes
        return
    shutil.copytree(job / "sft" / "state", tmp_path / "state")
    spoil, expected = SHARDS[name]
    spoil(*sorted((tmp_path / "state").glob("step-*/tensors*")))
    with pytest.raises(ValueError, match=re.escape(expected)) as caught:
        Checkpoints(tmp_path / "state", CheckpointConfig(), print).newest()
    assert "\n" not in str(caught.value)
