"""Trackers: what they show is what `metrics.jsonl` says, whoever was killed; what fails ends nothing."""

import io
import signal
from functools import partial
from pathlib import Path

import lives
import pytest
import shown
import small
import stand_ins
from lives import NAMES, life
from rich.console import Console
from shown import assert_shows

from instructrl import cli
from instructrl.tracking import settings
from instructrl.tracking import tracker as trackers
from instructrl.tracking.wandb_run import log_records

STAND_INS = [f"stand-in for {name}" for name in NAMES]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory) -> bytes:
    """The metrics of a run without a tracker, and without a kill."""
    folder = tmp_path_factory.mktemp("untouched")
    small.run(folder, "none")
    return (folder / "metrics.jsonl").read_bytes()


def test_a_run_is_shown_and_leaves_the_generators_alone(tracker, untouched):
    name, real = tracker
    for track in ("none", name):
        code, said = life(partial(small.run, Path(track), track), real=real)
        assert code == 0, said
        Path("random").rename(f"random-{track}")
    assert Path(name, "metrics.jsonl").read_bytes() == untouched
    assert Path(f"random-{name}").read_text() == Path("random-none").read_text()
    found = assert_shows(name, Path(name))
    assert set(found.texts) == {"first 0", "second 0"}
    assert "why 1?" in found.texts["first 0"].replace("why 1??", "why 1?"), "half a character is shown as ?"
    assert "| *so* |" in found.texts["second 0"]
    assert "lr" in found.config
    assert {"first/seconds", "second/seconds", "first/peak_memory_bytes"} <= set(found.profile)


# Rows: 3 steps, validation, 3 steps, validation, and all again. Checkpoints before a kill: none, some, or the one right
# before validation, which adds a row to a step that is not repeated.
@pytest.mark.parametrize(
    ("kills", "save_after"),
    [
        ((6, 6), (2,)),
        ((4,), (3,)),
        ((1, 2, 5, 3), ()),
        ((2, 4, 4), (1, 2, 3, 4, 5, 6)),
    ],
    ids=str,
)
def test_a_killed_run_goes_on_in_the_same_run_of_the_tracker(tracker, kills, save_after, untouched):
    name, real = tracker
    folder = Path("run")
    for row in kills:
        code, said = life(partial(small.run, folder, name), real=real, kill_at_row=row, save_after=save_after)
        assert code == -signal.SIGKILL, said
    for _ in range(2):  # the second time there is nothing to do
        code, said = life(partial(small.run, folder, name), real=real)
        assert code == 0, said
        assert (folder / "metrics.jsonl").read_bytes() == untouched
        assert_shows(name, folder)


def test_a_tracker_that_comes_later_or_pauses_has_everything(tracker, untouched):
    name, real = tracker
    folder = Path("run")
    for track, row in (("none", 2), (name, 5), ("none", 4), (name, 3)):
        code, said = life(partial(small.run, folder, track), real=real, kill_at_row=row, save_after=(2,))
        assert code == -signal.SIGKILL, said
    assert life(partial(small.run, folder, name), real=real)[0] == 0
    assert (folder / "metrics.jsonl").read_bytes() == untouched
    assert_shows(name, folder)


@pytest.mark.parametrize("tracker", STAND_INS, indirect=True)
def test_an_event_file_that_was_cut_short_is_gone_on_with(tracker):
    """And a database, which takes rows as a whole."""
    name, _ = tracker
    folder = Path("run")
    assert life(partial(small.run, folder, name), kill_at_row=6)[0] == -signal.SIGKILL
    for path in [*folder.rglob("first/*tfevents*"), *folder.rglob("run-*.wandb")]:
        path.write_bytes(path.read_bytes()[:-3])
    assert life(partial(small.run, folder, name))[0] == 0
    assert_shows(name, folder)


def test_records_of_every_length_are_read_back(tmp_path):
    log = stand_ins._Log(tmp_path / "log")
    texts = ["x" * length for length in (0, 1, 32_700, 5, 40, 70_000, 32_740, 3, 99_000)]
    for text in texts:
        log.add({"text": text})
    log.flush()
    data = (tmp_path / "log").read_bytes()
    assert [stand_ins.Record.FromString(x).text for x in log_records(data)] == texts
    assert len([*log_records(data[:-1])]) == len(texts) - 1
    assert [*log_records(data[:7])] == []
    assert [*log_records(data[:7] + bytes(100))] == []
    assert len([*log_records(data[:40_000] + b"?" + data[40_001:])]) == 5


# ---- failures


def fails_after(rows: int):
    """Every write of a stand-in fails once so many were done."""

    def prepare(patch) -> None:
        for owner, method in ((stand_ins.RecordWriter, "write"), (stand_ins.WandbRun, "log")):
            patch.setattr(owner, method, failing(getattr(owner, method), rows))
        patch.setattr(stand_ins.TrackioRun, "log", failing(stand_ins.TrackioRun.log, rows))

    return prepare


def failing(real, rows: int):
    calls = [0]

    def call(*args, **kwargs):
        calls[0] += 1
        if calls[0] > rows:
            with Path("failures").open("a") as file:
                file.write("x")
            raise OSError(28, "No space left on device: https://me:secret@host")
        return real(*args, **kwargs)

    return call


@pytest.mark.parametrize("tracker", STAND_INS, indirect=True)
def test_a_tracker_that_fails_ends_nothing(tracker, untouched):
    name, _ = tracker
    said, folder = io.StringIO(), Path("run")

    def work() -> None:
        console = Console(file=said, width=500)
        small.run(folder, name, console)
        Path("told").write_text(said.getvalue())

    code, trace = life(work, prepare=fails_after(6), save_after=(2,))
    assert code == 0, trace
    assert (folder / "metrics.jsonl").read_bytes() == untouched
    assert Path("failures").read_text() == "x", "what failed once is not asked again"
    (line,) = [line for line in Path("told").read_text().splitlines() if "warning" in line]
    assert line == (
        f"warning: track {name}: found [Errno 28] No space left on device: https://***@host; training goes on "
        "without it. The same command sends what is missing, where the run is not over"
    )
    assert life(partial(small.run, folder, name))[0] == 0
    assert_shows(name, folder)


@pytest.mark.parametrize("tracker", STAND_INS, indirect=True)
def test_a_tracker_that_cannot_be_begun_is_an_error(tracker, monkeypatch):
    name, _ = tracker

    def fail(*args, **kwargs):
        raise stand_ins.Error("no answer\nfor long") if name == "wandb" else OSError(28, "No space left on device")

    monkeypatch.setattr(stand_ins.RecordWriter, "write", fail)
    monkeypatch.setattr(stand_ins, "WandbRun", fail)
    monkeypatch.setattr(stand_ins, "TrackioRun", fail)
    found = r"no answer, accepted is a server that answers to a key \(wandb login\), or WANDB_MODE=offline"
    with pytest.raises(RuntimeError, match=rf"^track {name}: found {found if name == 'wandb' else '.*No space'}"):
        small.run(Path("run"), name)


# ---- what is refused


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_is_not_installed_or_unknown_is_one_line(name, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)

    def missing(name: str) -> str:
        raise settings.importlib.metadata.PackageNotFoundError(name)

    command = [*lives.SFT, "--out", "sft", "--track", name]
    for version in (missing, lambda name: "0.1.0", lambda name: "99.0"):
        monkeypatch.setattr(settings.importlib.metadata, "version", version)
        assert cli.main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"instructrl: error: track: found {'no package ' if version is missing else ''}{name}")
        assert f"pip install 'instructrl[{name}]'" in line
        with pytest.raises(ValueError, match=r"^track: found"):
            trackers.open_tracker(name, "run", {})
    assert not list(tmp_path.iterdir())


def test_an_identity_that_is_damaged_is_refused(tmp_path):
    (tmp_path / trackers.IDENTITY).write_text("{}")
    with pytest.raises(ValueError, match=r"tracking.json: found it damaged, accepted is the file as it was written"):
        trackers._identity(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_the_extra_asks_for_the_versions_that_are_known(name):
    first, last = settings.VERSIONS[name]
    assert f'{name} = ["{name}>={first},<{last}"]' in Path(__file__).parents[2].joinpath("pyproject.toml").read_text()
    settings_of_stand_in = settings._numbers(stand_ins.VERSIONS[name])
    assert settings._numbers(first) <= settings_of_stand_in < settings._numbers(last)


@pytest.mark.parametrize("tracker", [f"real {name}" for name in NAMES], indirect=True)
def test_the_stand_in_has_the_signatures_of_the_real_one(tracker):
    shown.assert_signatures(tracker[0])
