"""A copy of a run up to a finished step: the journal takes it, and the rest is not there."""

import json

import pytest
import yaml

from benchmarks.end_to_end.branch import branch, changed
from instructrl.runs.journal import Journal
from instructrl.trainers.checkpoints import json_digest
from instructrl.trainers.log import RunLog
from instructrl.trainers.settings import CheckpointConfig

SETTINGS = {"seed": 0, "recipe": {"ppo": {"num_episodes": 32, "kl_coef": 0.05}}}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "state").mkdir(parents=True)
    (folder / "models" / "sft").mkdir(parents=True)
    (folder / "models" / "sft" / "weights").write_text("as they were")
    lines = [json.dumps({"phase": phase, "step": 0, "loss": 1.0}) + "\n" for phase in ("sft", "judge", "ppo")]
    (folder / "metrics.jsonl").write_text("".join(lines))
    lengths = [len("".join(lines[: i + 1])) for i in range(3)]
    steps = [
        {"name": name, "given": "{}", "result": i, "metrics_bytes": lengths[i]}
        for i, name in enumerate(("sft", "judge", "ppo"))
    ]
    content = {"steps": steps, "sha256": json_digest(steps)}
    (folder / "state" / "steps.json").write_text(json.dumps(content))
    (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


def test_it_goes_on_behind_the_step_with_other_settings(run, tmp_path):
    out = tmp_path / "more"
    branch(run, "judge", {"recipe": {"ppo": {"num_episodes": 96}}}, out)
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert settings == {"seed": 0, "recipe": {"ppo": {"num_episodes": 96, "kl_coef": 0.05}}}
    assert (out / "models" / "sft" / "weights").read_text() == "as they were"
    journal = Journal(out, RunLog(out, continued=True), CheckpointConfig())
    assert journal.once("judge", lambda *_: "anew") == 1
    assert journal.once("ppo", lambda *_: "anew") == "anew"
    assert '"ppo"' not in (out / "metrics.jsonl").read_text()


def test_what_is_not_there_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="step: found rm, accepted are sft, judge, ppo"):
        branch(run, "rm", {}, tmp_path / "more")
    with pytest.raises(ValueError, match="found kl, accepted are num_episodes, kl_coef"):
        changed(SETTINGS, {"recipe": {"ppo": {"kl": 1}}})
    assert not (tmp_path / "more").exists()
