"""What a loss of power leaves: the disk that stands in for one, what single files become, and a step that goes on."""

import mmap
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import power
import pytest
import torch
from recorded_disk import LOSSES, Call, Disk, Recorder, State, calls, of_folder
from safetensors.torch import save_file
from tiny import demonstrations, tiny_encoder, tiny_policy, tiny_reward_model

from instructrl import cli, durable
from instructrl.commands import win_rates
from instructrl.data.readers import write_jsonl
from instructrl.types import Prompt


def tracing_is_refused() -> bool:
    """Whether the kernel lets no process look at another that is not its child: Linux's Yama, for others than root."""
    try:
        scope = int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except OSError:
        return False
    return scope > 2 or (scope > 0 and os.geteuid() != 0)


pytestmark = [
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
    pytest.mark.skipif(tracing_is_refused(), reason="this kernel refuses tracing: kernel.yama.ptrace_scope"),
]


def recorded(tmp_path: Path, work: Callable[[Path], object]) -> tuple[list[Call], State]:
    """What a process of its own does to a folder, and the folder in the end."""
    root = tmp_path / "disk"
    root.mkdir()
    recorder = Recorder.compiled(tmp_path, root, tmp_path / "calls")
    begun, begin = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.read(begun, 1)
            work(root)
        finally:
            os._exit(0)
    with recorder(child):
        os.write(begin, b"x")
        os.waitpid(child, 0)
    return calls(tmp_path / "calls"), of_folder(root)


def after(root: Path, done: list[Call]) -> Disk:
    disk = Disk(root)
    for call in done:
        disk.apply(call)
    return disk


def everything(root: Path) -> None:
    """Each kind of call, by libraries in C, Python and Rust."""
    (root / "a" / "b c").mkdir(parents=True)
    save_file({"x": torch.zeros(3000)}, root / "a" / "b c" / "x.safetensors")
    with (root / "text").open("w") as file:
        file.write("some words\n" * 2000)
    with (root / "text").open("r+b") as file:
        file.seek(7)
        file.write(b"others")
        os.pwrite(file.fileno(), b"far", 50_000)
        os.writev(file.fileno(), [b"one", b"", b"two"])
    with (root / "text").open("ab") as file:
        file.write(b"more")
    os.truncate(root / "text", 100_000)
    (root / "text").rename(root / "new\u00e4me")
    (root / "gone").write_text("x")
    (root / "gone").unlink()
    (root / "left").write_text("x")
    (root / "left").write_text("")
    shutil.copytree(root / "a", root / "z", copy_function=lambda a, b: Path(b).write_bytes(Path(a).read_bytes()))
    shutil.rmtree(root / "a")


def test_a_record_gives_the_folder_again(tmp_path):
    done, left = recorded(tmp_path, everything)
    assert len(left) == 5
    assert after(tmp_path / "disk", done).seen() == left
    assert not after(tmp_path / "disk", done).after_power(LOSSES["nothing later than the last fsync"], random.Random(0))


def test_what_cannot_be_recorded_is_refused(tmp_path, capfd):
    def work(root: Path) -> None:
        with (root / "file").open("w+b") as file:
            file.truncate(100)
            mmap.mmap(file.fileno(), 100)[0] = 1

    with pytest.raises(AssertionError, match="not everything could be recorded"):
        recorded(tmp_path, work)
    assert "memory that is written through to a file" in capfd.readouterr().err


# What is done with a file "f" of a folder, and what may be in it after the power went; None: it is not there.
CUT = {b"", b"\0\0\0\0", b"data"}
WRITTEN = ("write", "0", "4", "f")
FATES = [
    ([("open", "64", "f"), WRITTEN], {None, *CUT}),
    ([("open", "64", "f"), WRITTEN, ("fsync", "f")], {None, b"data"}),
    ([("open", "64", "f"), WRITTEN, ("fsync", "f"), ("fsync", ".")], {b"data"}),
    ([("open", "64", "f"), ("fsync", "."), WRITTEN], CUT),
    ([("open", "64", "g"), ("rename", "g", "f"), WRITTEN, ("fsync", "f")], {None, b"data"}),
    ([("open", "64", "g"), ("rename", "g", "f"), WRITTEN, ("fsync", ".")], CUT),
    ([("open", "64", "f"), WRITTEN, ("fsync", "f"), ("fsync", "."), ("remove", "f")], {None, b"data"}),
    ([("open", "64", "f"), WRITTEN, ("fsync", "f"), ("fsync", "."), ("truncate", "2", "f")], {b"data", b"da"}),
]


@pytest.mark.parametrize(("done", "fates"), FATES)
def test_only_what_was_flushed_is_sure(tmp_path, done, fates):
    made = [
        Call(name, tuple(word if word.isdigit() else str(tmp_path / word) for word in words), b"data")
        for name, *words in done
    ]
    disk = after(tmp_path, made)
    states = [disk.after_power(loss, random.Random(seed)) for loss in LOSSES.values() for seed in range(9)]
    assert {state.get("f") for state in states} == fates


def test_files_and_folders_are_whole_or_not_there_at_any_moment(tmp_path):
    """Each is written twice: whenever the power goes, what is there is what it was before, or what it becomes."""
    old, new = (b"old" * 3000, b"new" * 4000)

    def work(root: Path) -> None:
        durable.make_folder(root / "f" / "g")
        for content in (old, new):
            durable.write_bytes(root / "f" / "file", content)
            with durable.whole_folder(root / "f" / "g" / "h") as aside:
                (aside / "i").mkdir(parents=True)
                (aside / "i" / "j").write_bytes(content)

    done, left = recorded(tmp_path, work)
    assert left["f/file"] == left["f/g/h/i/j"] == new
    seen = set()
    for count in range(len(done) + 1):
        disk = after(tmp_path / "disk", done[:count])
        for loss in LOSSES.values():
            state = disk.after_power(loss, random.Random(count))
            file, inner = state.get("f/file"), state.get("f/g/h/i/j")
            assert file in (None, old, new)
            assert inner in (None, old, new)
            assert inner is None or file is not None, "the later one without the earlier"
            assert inner != new or file == new
            seen.add((file, inner))
    assert seen >= {(None, None), (old, None), (old, old), (new, old), (new, new)}
    disk = after(tmp_path / "disk", done)
    assert disk.after_power(LOSSES["nothing later than the last fsync"], random.Random(0)) == left


def test_a_folder_that_cannot_be_flushed_is_written_into_all_the_same(tmp_path, monkeypatch):
    """As on some file systems of a network; a file that cannot be flushed is an error."""
    flush = os.fsync

    def refuse(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(22, "Invalid argument")
        flush(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    durable.write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"
    monkeypatch.setattr(os, "fsync", lambda handle: refuse(os.open(tmp_path, os.O_RDONLY)))
    with pytest.raises(OSError, match="Invalid argument"):
        durable.write_text(tmp_path / "a", "other")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "text"}


def test_a_step_goes_on_after_the_power_went(tmp_path):
    encoder = tiny_encoder()
    tiny_policy(encoder).save(tmp_path / "model", encoder.tokenizer)
    write_jsonl(tmp_path / "rows.jsonl", demonstrations(6))
    words = ["sft", "--model", tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--validation", "none"]
    words += ["--sft.epochs", 2, "--sft.batch-size", 3, "--checkpoints.every-seconds", 0]
    words += ["--limits.max-prompt-tokens", 12, "--limits.max-response-tokens", 8]
    recording = power.record(tmp_path, [str(word) for word in words])
    points = power.points(recording.calls, 200, 0)
    chosen = {point.window: point for point in points if point.loss != "everything"}
    windows = ("config.yaml", "a checkpoint", "steps.json", "a model")
    found = [power.outcome(recording, chosen[window], 0) for window in windows]
    assert [(one.point, one.said) for one in found if not one.good] == []
    assert any(one.lost for one in found)


def test_an_evaluation_of_its_own_goes_on_from_what_was_answered(tmp_path, monkeypatch):
    """Five prompts in portions of two; of each of two models, one portion is there."""
    encoder = tiny_encoder()
    for number in (0, 1):
        tiny_policy(encoder, number).save(tmp_path / f"model{number}", encoder.tokenizer)
    tiny_reward_model(tiny_policy(encoder)).save(tmp_path / "judge", encoder.tokenizer)
    write_jsonl(tmp_path / "rows.jsonl", [Prompt(text=row.prompt) for row in demonstrations(5)])
    words = ["eval", "--baseline", tmp_path / "model0", "--models", tmp_path / "model1", "--out", tmp_path / "out"]
    words += ["--reward-model", tmp_path / "judge", "--data", tmp_path / "rows.jsonl"]
    words += ["--limits.max-prompt-tokens", 12, "--limits.max-response-tokens", 8]
    asked, sample = [], win_rates.sample_texts
    monkeypatch.setattr(win_rates, "sample_texts", lambda *a, **k: asked.append(k["first_episode"]) or sample(*a, **k))
    monkeypatch.setattr(win_rates, "PORTION", 2)
    assert cli.main([str(word) for word in words]) == 0
    assert asked == [0, 2, 4] * 2
    whole = (tmp_path / "out" / "results.json").read_bytes()
    for name in ("00-000002", "00-000004", "01-000000", "01-000004"):
        (tmp_path / "out" / "state" / "evaluation" / f"{name}.json").unlink()
    (tmp_path / "out" / "results.json").write_bytes(whole[:100])
    assert cli.main([str(word) for word in words]) == 0
    assert asked[6:] == [2, 4, 0, 4]
    assert (tmp_path / "out" / "results.json").read_bytes() == whole
