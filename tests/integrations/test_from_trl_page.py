"""docs/hosts/from_trl_ppo.md against the code: every script on it runs, and its lists are those of the code."""

import ast
import json
import re
from pathlib import Path

import pytest

from benchmarks.end_to_end.host_runs import trl_ppo
from instructrl.integrations.trl import arguments

PAGE = (Path(__file__).parents[2] / "docs/hosts/from_trl_ppo.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"^```diff\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
AFTER = re.split(r"^```diff$.*?^```$", PAGE, flags=re.MULTILINE | re.DOTALL)[1:]
MADE = [
    ["policy/value_model/model.safetensors", "ppo/metrics.jsonl", "short/checkpoints"],
    ["policy", "state"],
    ["reward_model/model/config.json"],
]
RECORDS = json.loads((Path(__file__).parent / "trl_records.json").read_text(encoding="utf-8"))


def side(diff, sign):
    """The script before ("-") or after ("+") a change."""
    return "".join(line[1:] for line in diff.splitlines(keepends=True) if line[:1] in (" ", sign, "\n"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = trl_ppo.tokenizer()
    trl_ppo.network("llama", "policy").save_pretrained("sft")
    words.save_pretrained("sft")
    trl_ppo.network("llama", "reward").save_pretrained("reward")
    rows = [{"prompt": " ".join(f"w{i}" for i in ids)} for ids in trl_ppo.PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("number", range(len(DIFFS)))
def test_a_script_runs_once_its_import_is_another(number, folder):
    if "load_dataset" in DIFFS[number]:
        pytest.importorskip("datasets", reason="datasets is not installed")
    names: dict = {}
    exec(compile(side(DIFFS[number], "+"), "from_trl_ppo.md", "exec"), names)
    for example in re.findall(r"^```python\n(.*?)^```$", AFTER[number], re.MULTILINE | re.DOTALL):
        exec(compile(example, "from_trl_ppo.md", "exec"), names)
    assert all((folder / name).exists() for name in MADE[number])


@pytest.mark.parametrize("number", range(len(DIFFS)))
def test_the_script_before_has_arguments_that_trl_has(number):
    """By the records of TRL's own, so that the change is what a person would make."""
    kinds = {"PPOConfig": RECORDS["arguments"]["0.11" if number == 1 else "1.12"]["PPOConfig"]}
    kinds["RewardConfig"] = RECORDS["arguments"]["1.12"]["RewardConfig"]
    found = 0
    for node in ast.walk(ast.parse(side(DIFFS[number], "-"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in kinds:
            assert {keyword.arg for keyword in node.keywords} <= set(kinds[ast.unparse(node.func)])
            found += 1
    assert found == 1


def test_the_list_of_arguments_is_that_of_the_code():
    listed = PAGE.split("<!-- arguments:begin -->")[1].split("<!-- arguments:end -->")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == arguments._honoured(arguments.PPOConfig)
    assert arguments._honoured(arguments.PPOConfig).isdisjoint(arguments.NO_EFFECT)
