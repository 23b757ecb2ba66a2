"""A run that is left in the middle goes on to the same bytes; one with other settings or files is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torture
from tiny import tiny_encoder, tiny_policy
from tiny_runs import MINIATURE

from instructrl import cli, durable
from instructrl.evaluation.contenders import Exam
from instructrl.runs import steps
from instructrl.runs.folder import open_folder
from instructrl.runs.journal import Journal
from instructrl.runs.portions import Portions
from instructrl.runs.recipe import Recipe
from instructrl.trainers.log import RunLog
from instructrl.trainers.settings import CheckpointConfig


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A whole run, and the file of its settings beside it."""
    folder = tmp_path_factory.mktemp("finished")
    open_folder(folder / "settings", MINIATURE)
    assert run(folder / "run", folder / "settings" / "config.yaml") == 0
    return folder


def run(folder: Path, config: Path, *more: str) -> int:
    return cli.main(["run", "miniature", "--config", str(config), "--out", str(folder), *more])


def files(folder: Path) -> dict[str, bytes]:
    """What the run determines; the report and the profile have times in them."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("profile.jsonl", "report.html")
    }


def test_eight_kills_change_nothing(tmp_path):
    figures = torture.torture(8, 0, tmp_path)
    assert figures.kills == 8
    assert figures.exit_code == 0
    assert not figures.different
    assert sum(figures.steps.values()) == 8


def test_the_torture_finds_a_byte_that_differs(tmp_path, finished):
    for name in ("one", "other"):
        shutil.copytree(finished / "run", tmp_path / name)
    assert not torture._differences(tmp_path / "one", tmp_path / "other")
    weights = tmp_path / "other" / "models" / "ppo" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    (tmp_path / "other" / "models" / "gpt" / "config.json").unlink()
    size = (tmp_path / "one" / "models" / "gpt" / "config.json").stat().st_size
    found = torture._differences(tmp_path / "one", tmp_path / "other")
    assert found == {"models/gpt/config.json": size, "models/ppo/model.safetensors": 1}


def test_a_finished_run_is_not_done_again(finished, capsys):
    before = files(finished / "run")
    started = time.time()
    assert run(finished / "run", finished / "settings" / "config.yaml") == 0
    assert files(finished / "run") == before
    trained = [path for path in (finished / "run" / "models").rglob("*") if path.stat().st_mtime > started]
    assert not trained
    assert "PPO-ptx" in capsys.readouterr().out


def test_another_setting_is_refused_with_the_difference(finished, capsys):
    before = files(finished / "run")
    config = finished / "settings" / "config.yaml"
    assert run(finished / "run", config, "--recipe.ppo.kl-coef", "0.3", "--seed", "9") == 2
    error = capsys.readouterr().err
    was = MINIATURE.recipe.ppo.kl_coef
    assert f"seed was 3, is 9; recipe.ppo.kl_coef was {was}, is 0.3" in error
    assert "--fresh" in error
    assert files(finished / "run") == before


def test_how_often_it_is_saved_may_change(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    assert run(tmp_path / "run", finished / "settings" / "config.yaml", "--checkpoints.every-seconds", "1") == 0


def test_fresh_starts_over(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished / "run", folder)
    (folder / "failed-ppo-00000001.json").write_text("{}")
    config = finished / "settings" / "config.yaml"
    assert run(folder, config, "--fresh", "--recipe.ppo.kl-coef", "0.3") == 0
    assert not (folder / "failed-ppo-00000001.json").exists()
    changed = {name for name, content in files(finished / "run").items() if files(folder).get(name) != content}
    assert "models/ppo/model.safetensors" in changed
    assert "models/sft/model.safetensors" not in changed


def test_metrics_that_are_shorter_than_they_were_are_refused(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished / "run", folder)
    os.truncate(folder / "metrics.jsonl", 100)
    assert run(folder, finished / "settings" / "config.yaml") == 2
    assert "metrics.jsonl: found 100 bytes, the run had written" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[", "{}", "[1]", '{"steps": [], "sha256": ""}'])
def test_a_damaged_journal_is_refused(finished, tmp_path, capsys, content):
    folder = tmp_path / "run"
    shutil.copytree(finished / "run", folder)
    (folder / "state" / "steps.json").write_text(content)
    assert run(folder, finished / "settings" / "config.yaml") == 2
    assert "steps.json: found it damaged" in capsys.readouterr().err


def test_a_journal_in_which_a_letter_was_changed_is_refused(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished / "run", folder)
    path = folder / "state" / "steps.json"
    path.write_text(path.read_text().replace('"selected": true', '"selected": false', 1))
    assert run(folder, finished / "settings" / "config.yaml") == 2
    assert "steps.json: found it damaged" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["sft_epoch_02", "ppo"])
def test_a_model_that_was_changed_or_taken_away_is_noticed(finished, tmp_path, capsys, model):
    folder = tmp_path / "run"
    shutil.copytree(finished / "run", folder)
    shutil.rmtree(folder / "models" / model)
    assert run(folder, finished / "settings" / "config.yaml") == 2
    assert f"models/{model}: found nothing" in capsys.readouterr().err
    if model == "ppo":
        return  # nothing that is kept was made from it
    shutil.copytree(finished / "run" / "models" / "sft_epoch_01", folder / "models" / model)
    assert run(folder, finished / "settings" / "config.yaml") == 2
    assert "found the step reward_model of a run with other content of the model; accepted" in capsys.readouterr().err


def test_a_step_that_was_begun_with_other_data_is_not_continued(tmp_path):
    log = RunLog(tmp_path)

    def journal() -> Journal:
        return Journal(tmp_path, log, CheckpointConfig(), {"prompts": "p.jsonl"})

    def begin(checkpoints, found):
        checkpoints.save({"x": 1}, step=1, metrics_bytes=0, inputs="")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        journal().once("name", begin, {"prompts": ["some", "rows"], "counts": [1]})
    with pytest.raises(ValueError, match=r"the step name of a run with other content of the prompts \(p.jsonl\); acc"):
        journal().once("name", begin, {"prompts": ["other", "rows"], "counts": [1]})
    with pytest.raises(ValueError, match=r"other content of the prompts \(p.jsonl\) and the counts; acc"):
        journal().once("name", begin, {"prompts": [], "counts": [2]})
    given = {"prompts": ["some", "rows"], "counts": [1]}
    found = journal().once("name", lambda _, found: found.step, given)
    assert found == 1


def test_a_run_that_was_done_before_says_so(tmp_path, capsys):
    log = RunLog(tmp_path)
    for names, done_before in ((["first"], False), (["first"], True), (["first", "second"], False)):
        journal = Journal(tmp_path, log, CheckpointConfig())
        for name in names:
            journal.once(name, lambda *_: 1)
        journal.tell_if_done()
        said = capsys.readouterr().err
        assert ("all steps were done before" in said and "--fresh starts over" in said) == done_before


def test_what_would_round_differently_is_told(tmp_path, capsys, monkeypatch):
    log = RunLog(tmp_path)

    def begin(checkpoints, found):
        checkpoints.save({"x": 1}, step=1, metrics_bytes=0, inputs="")
        raise KeyboardInterrupt

    def go_on() -> str:
        with pytest.raises(KeyboardInterrupt):
            Journal(tmp_path, log, CheckpointConfig()).once("name", begin)
        return capsys.readouterr().err

    assert "begun with" not in go_on() + go_on()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert "name: begun with threads" in go_on()
    assert "begun with" not in go_on()


def test_a_step_is_carried_out_once_and_gives_what_json_gives(tmp_path):
    log = RunLog(tmp_path)
    calls = []

    def step(checkpoints, found):
        calls.append(found)
        return {"pair": (1, 0.1)}

    for _ in range(2):
        found = Journal(tmp_path, log, CheckpointConfig()).once("name", step)
        assert found == {"pair": [1, 0.1]}
    assert calls == [None]


def test_metrics_behind_the_last_step_are_forgotten(tmp_path):
    log = RunLog(tmp_path)
    journal = Journal(tmp_path, log, CheckpointConfig())
    journal.once("first", lambda *_: log.metrics("first", 0, {"loss": 1.0}))
    log.metrics("second", 0, {"loss": 2.0})  # and then the power went
    Journal(tmp_path, log, CheckpointConfig()).once("second", lambda *_: log.metrics("second", 0, {"loss": 3.0}))
    assert [row["loss"] for row in log.read_metrics()] == [1.0, 3.0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_after_its_step_and_the_same_command_goes_on(finished, tmp_path, number, code):
    command = [sys.executable, "-m", "instructrl.cli", "run", "miniature", "--out", str(tmp_path / "run")]
    command += ["--config", str(finished / "settings" / "config.yaml")]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while started.poll() is None and (not metrics.exists() or len(metrics.read_text().splitlines()) < 2):
        time.sleep(0.01)
    started.send_signal(number)
    _, error = started.communicate(timeout=60)
    assert started.returncode == code
    assert f"stopped by {number.name}" in error
    assert "the same command goes on from" in error
    assert "Traceback" not in error
    assert run(tmp_path / "run", finished / "settings" / "config.yaml") == 0
    assert files(tmp_path / "run") == files(finished / "run")


def test_a_model_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """What stands under a model's name was flushed before it got it."""
    log, encoder = RunLog(tmp_path), tiny_encoder()
    journal = Journal(tmp_path, log, CheckpointConfig())
    config = asdict(MINIATURE)
    work = steps.Workspace(
        folder=tmp_path, log=log, encoder=encoder, recipe=Recipe(), seed=0, config=config, journal=journal
    )
    work.save(tiny_policy(encoder, 1), "x")
    before = files(tmp_path / "models")

    def fail(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "sync", fail)
    with pytest.raises(OSError, match="No space left"):
        work.save(tiny_policy(encoder, 2), "x")
    assert {name: content for name, content in files(tmp_path / "models").items() if name.startswith("x/")} == before


def answered(monkeypatch) -> list[str]:
    """Names of the models that are asked from here on."""
    names, answer = [], Exam._answers

    def noted(exam, contender, *arguments):
        names.append(contender.name)
        return answer(exam, contender, *arguments)

    monkeypatch.setattr(Exam, "_answers", noted)
    return names


def test_an_evaluation_goes_on_from_what_was_done(finished, tmp_path, monkeypatch):
    folder, names = tmp_path / "run", answered(monkeypatch)
    shutil.copytree(finished / "run", folder)
    (folder / "results.json").unlink()
    for path in (folder / "state" / "evaluation").glob("0[34]-*"):
        path.unlink()
    assert run(folder, finished / "settings" / "config.yaml") == 0
    assert names == ["PPO", "PPO-ptx"]
    assert files(folder) == files(finished / "run")


def test_a_damaged_part_of_an_evaluation_is_done_again(finished, tmp_path, monkeypatch, capsys):
    folder, names = tmp_path / "run", answered(monkeypatch)
    shutil.copytree(finished / "run", folder)
    cut, wrong, changed = (folder / "state" / "evaluation" / f"0{n}-000000.json" for n in (0, 1, 2))
    cut.write_text(cut.read_text()[:100])
    wrong.write_text("[1]")
    changed.write_text(changed.read_text().replace("true", "false", 1))
    (folder / "results.json").write_text("{")  # as a program leaves it that writes in place
    assert run(folder, finished / "settings" / "config.yaml") == 0
    error = capsys.readouterr().err
    for path in (cut, wrong, changed):
        assert f"warning: {path}: found it damaged. This part of the evaluation is done again" in error
    assert names == ["GPT", "GPT (prompted)", "SFT"]
    assert files(folder) == files(finished / "run")


def test_a_part_of_an_evaluation_of_something_else_is_done_again(tmp_path, capsys):
    log, calls = RunLog(tmp_path), []

    def once(*given: object) -> object:
        return Portions(tmp_path, log, "00", *given).once("text", lambda: calls.append(given) or {"number": 0.1})

    for given in (("a", torch.zeros(2)), ("a", torch.zeros(2)), ("a", torch.ones(2)), ("b", torch.ones(2))):
        assert once(*given) == {"number": 0.1}
    assert len(calls) == 3
    assert "00-text.json: of other models, prompts or settings." in capsys.readouterr().err


def test_another_number_of_seconds_between_checkpoints_gives_the_same_run(finished, tmp_path):
    folder = open_folder(tmp_path / "settings", replace(MINIATURE, checkpoints=CheckpointConfig(every_seconds=0)))
    assert run(tmp_path / "run", folder / "config.yaml") == 0
    one, other = files(finished / "run"), files(tmp_path / "run")
    for found in (one, other):
        del found["config.yaml"]
        results = json.loads(found["results.json"])
        del results["config"]["checkpoints"]
        found["results.json"] = json.dumps(results).encode()
    assert one == other


def test_two_processes_do_not_share_a_folder(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished / "run", folder)
    hold = "import sys, time; from pathlib import Path; from instructrl.runs import folder; "
    hold += "folder._hold(Path(sys.argv[1])); print(flush=True); time.sleep(600)"
    other = subprocess.Popen([sys.executable, "-c", hold, str(folder)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    config = finished / "settings" / "config.yaml"
    assert run(folder, config) == 2
    assert f"{folder}: found a run that another process is carrying out" in capsys.readouterr().err
    other.kill()
    other.wait()
    assert run(folder, config) == 0
