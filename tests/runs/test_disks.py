"""A disk that is full, and one that cannot be written to: a plain error, what was saved stays, and the run goes on."""

import subprocess
from pathlib import Path

import pytest
import torture
from test_resume import files, run

from instructrl.runs.folder import open_folder
from instructrl.trainers.checkpoints import Checkpoints
from instructrl.trainers.settings import CheckpointConfig


@pytest.fixture
def small_disk(tmp_path) -> Path:
    """A file system of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # the lock of the run is still open


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def newest_step(folder: Path) -> int | None:
    stores = [path for path in (folder / "state").glob("*") if path.is_dir()]
    warnings: list[str] = []
    found = [Checkpoints(path, CheckpointConfig(), warnings.append).newest() for path in stores]
    assert not warnings
    return next((checkpoint.step for checkpoint in found if checkpoint is not None), None)


def test_a_full_disk_is_one_line_and_with_more_room_the_run_goes_on(small_disk, tmp_path, capsys):
    config = open_folder(tmp_path / "settings", torture.CONFIG) / "config.yaml"
    folder = small_disk / "run"
    assert run(folder, config) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("instructrl: error:")
    assert "no space left" in line.lower() or "are needed" in line
    assert str(small_disk) in line
    newest_step(folder)  # what is there is good
    remount(small_disk, "size=64m")
    assert run(folder, config) == 0
    assert run(tmp_path / "untouched", config) == 0
    assert files(folder) == files(tmp_path / "untouched")


def test_a_disk_that_becomes_read_only_leaves_the_checkpoint(small_disk, tmp_path):
    remount(small_disk, "size=8m")
    store = Checkpoints(small_disk / "c", CheckpointConfig(), print)
    store.save({"x": 1}, step=1, metrics_bytes=0, inputs="")
    remount(small_disk, "ro")
    with pytest.raises(OSError, match=r"step-00000002: found read-only file system.*intact before it: step-00000001"):
        store.save({"x": 2}, step=2, metrics_bytes=0, inputs="")
    found = store.newest()
    assert found is not None
    assert found.state == {"x": 1}


def test_a_run_in_a_read_only_folder_is_refused(small_disk, tmp_path, capsys):
    config = open_folder(tmp_path / "settings", torture.CONFIG) / "config.yaml"
    remount(small_disk, "ro")
    assert run(small_disk / "run", config) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "read-only" in line.lower()
    assert str(small_disk / "run") in line
