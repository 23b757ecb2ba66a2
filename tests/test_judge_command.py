"""`instructrl judge`: files alone, a reward model beside people, outputs, results of `eval`, benchmarks."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from chats import tokenizer_of
from tiny import demonstrations, tiny_encoder, tiny_policy, tiny_reward_model

from instructrl import cli
from instructrl.commands.judge_model import Judge
from instructrl.commands.settings import JudgeCommand
from instructrl.data.chat import ChatTemplate
from instructrl.data.encoding import Encoder
from instructrl.data.readers import write_jsonl
from instructrl.data.settings import Limits
from instructrl.evaluation.preferences.alpaca_eval import read_annotations, read_outputs
from instructrl.models.scoring import RewardModel
from instructrl.rollout.scoring import score_texts
from instructrl.types import Conversation, Message, Prompt

LIMITS = "--limits.max-prompt-tokens 12 --limits.max-response-tokens 8"
LONG = " ".join(["w1"] * 9)


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = tiny_encoder()
    policy = tiny_policy(encoder)
    tiny_reward_model(policy).save(Path("reward"), encoder.tokenizer)
    return encoder


def carried_out(line: str) -> dict:
    """The results of a command that is given a folder `out`."""
    assert cli.main(shlex.split(f"judge {line} --out out --fresh True")) == 0
    return json.loads(Path("out/results.json").read_text())


def annotations(name: str, outcomes, *, judge="people", models=("base", "m")) -> None:
    rows = [
        {
            "instruction": f"w{i} w2",
            "output_1": f"w{i % 5}",
            "output_2": f"w{i % 7} w3",
            "generator_1": models[0],
            "generator_2": models[1],
            "annotator": judge,
            "preference": 1 + outcome,
        }
        for i, outcome in enumerate(outcomes)
    ]
    Path(name).write_text(json.dumps(rows))


def outputs(name: str, texts) -> None:
    rows = [
        {"instruction": f"w{i} w2", "output": text, "generator": name, "dataset": "d"} for i, text in enumerate(texts)
    ]
    Path(f"{name}.json").write_text(json.dumps(rows))


def scores(encoder, pairs) -> list[float]:
    model = RewardModel.load("reward").eval()
    return score_texts(model, encoder, [p for p, _ in pairs], [r for _, r in pairs]).tolist()


def test_files_alone_need_no_torch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    annotations("a.json", [1, 0, 0.5, 1, 1, 0.2])
    line = "from instructrl import cli; import sys; code = cli.main(['judge', '--annotations', 'a.json']); "
    line += "assert 'torch' not in sys.modules; sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert "61.7%" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_annotations_of_several_judges_and_models(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    annotations("people.json", [1, 0, 1, 1, 0.5, 1, 0, 1])
    annotations("judge.json", [1, 0, 0, 1, 1.0, 1, 0, 1], judge="a judge")
    annotations("other.json", [0, 0, 0, 1, 0.5, 0, 0, 0], models=("base", "n"))
    found = carried_out("--annotations people.json judge.json other.json")
    assert (found["run"]["judge"], found["run"]["baseline"]) == ("people", "base")
    rates = {row["name"]: row.get("win_rate", {}).get("rate") for row in found["models"]}
    assert rates == {"base": None, "m": 5.5 / 8, "n": 1.5 / 8}
    assert [row["model"] for row in found["ratings"]] == ["base", "m", "n"]
    assert found["agreements"][0]["three_way"]["rate"] == 6 / 8
    assert found["agreements"][0]["strict"]["rate"] == 6 / 7
    page = Path("out/report.html").read_text()
    assert "people and a judge" in page
    assert "Model against model" in page
    printed = capsys.readouterr().out
    assert "68.8%" in printed
    assert "Agreement of judges" in printed
    assert {path.name for path in Path("out").iterdir()} == {"results.json", "report.html"}


def test_all_columns_fit_a_terminal(tmp_path, monkeypatch, capsys):
    """And there is none of wins and losses where there is no baseline to win against."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    third, names = "a/model/of/a/very/long/name/indeed", ("people", "another judge of a long name")
    for number, judge in enumerate(names):
        annotations(f"x{number}.json", [1, 0, 1, 1, 0, 1], judge=judge)
        annotations(f"y{number}.json", [1, 1, 0, 1, 0, 1], judge=judge, models=(third, "m"))
    carried_out("--annotations x0.json x1.json y0.json y1.json")
    printed = capsys.readouterr().out
    for heading in ("Judges", "For the first", "Kappa"):
        assert heading in printed
    assert "…" not in printed
    assert "tied" not in printed


def test_a_reward_model_beside_people(world):
    outcomes = [1, 0, 1, 0, 0.5, 1]
    annotations("people.json", outcomes)
    found = carried_out(f"--annotations people.json --reward-model reward {LIMITS}")
    asked = [(f"w{i} w2", text) for i in range(6) for text in (f"w{i % 5}", f"w{i % 7} w3")]
    given = scores(world, asked)
    says = [float(given[2 * i + 1] > given[2 * i]) for i in range(6)]
    (agreed,) = found["agreements"]
    assert agreed["judges"] == ["people", "reward model reward"]
    assert agreed["three_way"]["rate"] == sum(a == b for a, b in zip(says, outcomes, strict=True)) / 6
    assert found["judges"][1]["models"][1]["win_rate"]["rate"] == sum(says) / 6


def test_outputs_are_judged_and_written_as_alpaca_eval_has_them(world):
    texts = {"a": ["w1", "w2", "w3"], "b": ["w4", "w2", "w5 w6"], "c": ["w7 w8", "w9", LONG]}
    for name, row in texts.items():
        outputs(name, row)
    found = carried_out(f"--outputs a.json b.json c.json --reward-model reward {LIMITS}")
    assert found["run"]["baseline"] == "a"
    assert found["notes"] == ["2 of 9 pairs of outputs are left out: longer than the limits"]
    given = {name: scores(world, [(f"w{i} w2", text) for i, text in enumerate(row[:2])]) for name, row in texts.items()}
    won = [0.5 if x == y else float(x > y) for x, y in zip(given["c"], given["a"], strict=True)]
    assert found["win_rate_matrix"]["rates"][2][0]["rate"] == sum(won) / 2
    assert read_outputs("out/alpaca_eval/02-b/model_outputs.json") == read_outputs("b.json")
    rows = read_annotations("out/alpaca_eval/03-c/annotations.json")
    assert [row.outcome for row in rows] == won
    assert {row.models for row in rows} == {("a", "c")}
    assert not Path("out/alpaca_eval/01-a/annotations.json").exists()
    # What was written gives the same numbers again, without the model.
    again = carried_out("--annotations out/alpaca_eval/02-b/annotations.json out/alpaca_eval/03-c/annotations.json")
    assert [row.get("win_rate") for row in again["models"]] == [row.get("win_rate") for row in found["models"]]


def test_results_of_eval(world):
    for name, seed in (("sft", 0), ("ppo", 1), ("x", 2)):
        tiny_policy(world, seed=seed).save(Path(name), world.tokenizer)
    write_jsonl("prompts.jsonl", [Prompt(text=row.prompt, category="c") for row in demonstrations(6)])
    line = f"eval --baseline sft --models ppo x --reward-model reward --data prompts.jsonl --out e {LIMITS}"
    assert cli.main(shlex.split(line)) == 0
    theirs = json.loads(Path("e/results.json").read_text())
    ours = carried_out("--results e/results.json")
    for key in ("win_rate_matrix", "ratings"):
        assert ours[key] == theirs[key]
    rates = [row["win_rate"]["rate"] for row in theirs["models"]]
    assert [row["win_rate"]["rate"] for row in ours["models"][1:]] == rates[1:]
    assert {row["length_controlled"]["num_prompts"] for row in theirs["models"]} == {6}
    assert read_outputs("out/alpaca_eval/02-ppo/model_outputs.json").datasets == ("c",) * 6


def test_benchmarks(world, capsys):
    rows = [
        {"prompt": f"w{i} w2", "chosen": ["w1"], "rejected": ["w2", "w3", "w4"], "id": str(i), "subset": "Math"}
        for i in range(4)
    ]
    for kind, right in (("tied", ["w5", "w6"]), ("ref", ["w5"])):
        rows.append({"prompt": kind[:1], "chosen": right, "rejected": ["w7"], "id": f"{kind}:0", "subset": "Ties"})
    rows.append({"prompt": "w1", "chosen": [LONG], "rejected": ["w2"], "id": "9", "subset": "Math"})
    Path("bench.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (found,) = carried_out(f"--benchmark bench.jsonl --reward-model reward {LIMITS}")["benchmarks"]
    given = [scores(world, [(f"w{i} w2", f"w{j}") for j in (1, 2, 3, 4)]) for i in range(4)]
    assert found["subsets"]["Math"]["mean"] == sum(max(row) == row[0] for row in given) / 4
    assert found["subsets"]["Ties"]["num_items"] == 2
    assert found["num_left_out"] == 1
    assert "bench.jsonl: 1 of 7 rows are left out: longer than the limits" in capsys.readouterr().out


def test_an_instruction_is_the_message_of_a_user_where_there_is_a_template(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = tokenizer_of("plain", "byte level")
    limits = Limits(max_prompt_tokens=24, max_response_tokens=8)
    encoder = Encoder(tokenizer, limits, ChatTemplate(tokenizer))
    tiny_reward_model(tiny_policy(encoder)).save(Path("reward"), tokenizer)
    config = JudgeCommand(annotations=("a",), reward_model="reward", limits=limits)
    model = RewardModel.load("reward").eval()
    as_message = score_texts(model, encoder, [Conversation([Message("user", "a")])], ["so"]).tolist()
    plain = score_texts(model, Encoder(tokenizer, limits), ["a"], ["so"]).tolist()
    assert Judge.load(config, "reward").scores([("a", "so")]) == as_message
    assert Judge.load(replace(config, chat_template="none"), "reward").scores([("a", "so")]) == plain != as_message


def test_an_earlier_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    annotations("a.json", [1, 0])
    line = ["judge", "--annotations", "a.json", "--out", "out"]
    assert cli.main(line) == 0
    assert cli.main(line) == 2
    assert "out: found files in out, accepted is a new folder, or --fresh True" in capsys.readouterr().err
    assert cli.main([*line, "--fresh", "True"]) == 0
    Path("out/results.json").write_text(json.dumps({"run": {"name": "eval"}}))
    assert cli.main([*line, "--fresh", "True"]) == 2
    assert "out: found the results of eval in out" in capsys.readouterr().err
