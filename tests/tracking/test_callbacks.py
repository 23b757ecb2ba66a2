"""Callbacks: what they are told, in which order, and that nothing is half done where one of them raises."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import shown
import small
import stand_ins
from pages import blocks, read
from small import SmallTrainer, quiet_log

import instructrl
from instructrl import distributed
from instructrl.tracking.callbacks import Callback, CheckpointDone, PhaseDone, StepDone
from instructrl.tracking.tracker import open_tracker
from instructrl.trainers.checkpoints import Checkpoints
from instructrl.trainers.settings import CheckpointConfig

STEPS = small.EPOCHS * small.STEPS


class Notes(Callback):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def after_step(self, done: StepDone) -> None:
        self.told.append(done)

    def after_checkpoint(self, done: CheckpointDone) -> None:
        self.told.append(done)

    def after_phase(self, done: PhaseDone) -> None:
        self.told.append(done)

    def of(self, kind: type) -> list:
        return [done for done in self.told if isinstance(done, kind)]


class OneMethod(Callback):
    """The others do nothing."""

    def after_checkpoint(self, done: CheckpointDone) -> None:
        assert done.folder.exists()


@pytest.fixture
def saved_after(monkeypatch) -> Callable[..., None]:
    """(steps) after which it is time for a checkpoint, counted over all runs."""

    def choose(*steps: int) -> None:
        looks = [0]

        def due(self) -> bool:
            looks[0] += 1
            return looks[0] in steps

        monkeypatch.setattr(Checkpoints, "due", due)

    choose()
    return choose


def test_steps_checkpoints_and_the_phase_are_told_in_their_order(tmp_path, saved_after):
    saved_after(2)
    notes, again = Notes(), Notes()
    SmallTrainer("first").run(tmp_path, until=4, callbacks=[notes])
    SmallTrainer("first").run(tmp_path, callbacks=[again, OneMethod()])
    kinds = [StepDone, StepDone, CheckpointDone, StepDone, StepDone, PhaseDone, CheckpointDone]
    assert [type(done) for done in notes.told] == kinds
    steps = [*notes.of(StepDone), *again.of(StepDone)]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [{"phase": x.phase, "step": x.step, **x.metrics} for x in steps] == rows
    assert [x.row for x in steps] == [*range(STEPS)]
    assert [(x.step, x.folder.name) for x in notes.of(CheckpointDone)] == [(2, "step-00000002"), (4, "step-00000004")]
    assert all(x.folder == tmp_path / "checkpoints" / x.folder.name for x in notes.of(CheckpointDone))
    profiles = [json.loads(line) for line in (tmp_path / "profile.jsonl").read_text().splitlines()]
    assert [dict(x.profile) for x in (*notes.of(PhaseDone), *again.of(PhaseDone))] == profiles
    assert [x.response for x in steps[0].samples(4)] == ["| *so* |"]
    assert steps[0].samples(0) == []


def test_without_a_folder_there_are_steps_alone():
    notes = Notes()
    SmallTrainer("first").run(callbacks=[notes])
    assert [x.row for x in notes.of(StepDone)] == [*range(STEPS)]
    assert [type(x) for x in notes.told[-1:]] == [PhaseDone]


def test_what_is_told_cannot_be_changed(tmp_path):
    notes = Notes()
    SmallTrainer("first").run(tmp_path, until=1, callbacks=[notes])
    (done,) = notes.of(StepDone)
    with pytest.raises(TypeError):
        done.metrics["loss"] = 0.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        done.step = 3


@pytest.mark.parametrize("method", ["after_step", "after_checkpoint", "after_phase"])
@pytest.mark.parametrize("kind", [KeyError, OSError])
def test_an_exception_ends_the_training_where_a_checkpoint_is_whole(tmp_path, saved_after, method, kind):
    """And the run goes on to the same bits."""

    class Fails(Callback):
        pass

    def fail(self, done) -> None:
        if isinstance(done, PhaseDone) or done.step == 3:
            raise kind("of a callback")

    setattr(Fails, method, fail)
    saved_after(2, 3)
    with pytest.raises(kind, match="of a callback"):
        SmallTrainer("first").run(tmp_path / "run", callbacks=[Fails()])
    store = Checkpoints(tmp_path / "run" / "checkpoints", CheckpointConfig(), pytest.fail)
    found = store.newest()
    assert found is not None
    assert found.step == {"after_step": 3, "after_checkpoint": 3, "after_phase": 3}[method]
    assert not [*store.folder.glob("writing-*")]
    ends = []
    for folder in (tmp_path / "run", tmp_path / "untouched"):
        trainer = SmallTrainer("first")
        trainer.run(folder)
        ends.append((trainer.digest(), (folder / "metrics.jsonl").read_bytes()))
    assert ends[0] == ends[1]


def test_callbacks_of_a_log_and_of_a_run_are_told_both(tmp_path):
    one, other = Notes(), Notes()
    log = quiet_log(tmp_path)
    with log.calling([one]):
        SmallTrainer("first").run(log, callbacks=[other])
    SmallTrainer("second").run(log)
    assert one.told == other.told
    assert len(one.of(StepDone)) == STEPS


def test_rows_of_a_run_that_goes_on_are_counted_from_where_it_goes_on(tmp_path, saved_after):
    """A row that comes again has the number that it had."""
    saved_after(2)

    class Stop(Callback):
        def after_step(self, done: StepDone) -> None:
            if done.step == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SmallTrainer("first").run(tmp_path, callbacks=[Stop()])
    notes = Notes()
    SmallTrainer("first").run(tmp_path, callbacks=[notes])
    assert [(x.step, x.row) for x in notes.of(StepDone)] == [(step, step) for step in range(2, STEPS)]


@pytest.mark.parametrize("other", [print, object(), "x"], ids=["function", "object", "text"])
def test_what_is_no_callback_is_refused(other, tmp_path):
    with pytest.raises(TypeError, match=r"^callbacks: found .+, accepted is what derives from Callback"):
        SmallTrainer("first").run(quiet_log(None), callbacks=[other])


def test_other_processes_are_told_nothing_and_open_no_tracker(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    notes = Notes()
    SmallTrainer("first").run(quiet_log(None), callbacks=[notes])
    assert notes.told == []
    with open_tracker("wandb", tmp_path / "run", {}) as tracker:  # which is not installed, or would write
        tracker.after_results({})
    assert not [*tmp_path.iterdir()]


def test_the_example_of_the_page_runs(tmp_path, monkeypatch, saved_after):
    (example,) = blocks(read("docs/tracking.md"), "python")
    monkeypatch.chdir(tmp_path)
    stand_ins.install(monkeypatch)
    saved_after(2)
    made = {"trainer": SmallTrainer("first")}
    exec(compile(example, "tracking.md", "exec"), made)
    shown.assert_shows("tensorboard", tmp_path / "runs" / "mine")
    assert {path.name for path in (tmp_path / "copies" / "first").iterdir()} == {"step-00000002", "step-00000006"}
    far = StepDone(phase="ppo", step=3, row=3, metrics={"kl": 21.0}, seconds={}, samples=lambda count: ())
    with pytest.raises(RuntimeError, match=r"step 3: the KL is 21\.0"):
        made["TooFar"]().after_step(far)


def test_names_at_the_top():
    assert instructrl.Callback is Callback
    assert (instructrl.StepDone, instructrl.CheckpointDone, instructrl.PhaseDone) == (
        StepDone,
        CheckpointDone,
        PhaseDone,
    )
    assert instructrl.open_tracker is open_tracker
    assert Path(instructrl.__file__).name == "__init__.py"
