"""The command line: what it says, what it refuses, and that it refuses with one clear line."""

import importlib
import importlib.metadata
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from instructrl import __version__, cli
from instructrl.commands import options, reading
from instructrl.integrations import adapter
from instructrl.ops import dispatch
from instructrl.runs.folder import open_folder
from instructrl.runs.named import RUNS

DRY = ["run", "smoke", "--dry-run"]


@pytest.fixture(autouse=True)
def _wide_and_elsewhere(monkeypatch, tmp_path):
    """Tables do not wrap, and what a command writes by mistake is found in an empty folder."""
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def call(capsys):
    """(arguments) -> (exit code, standard output, standard error), the texts with single spaces."""

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = cli.main(list(arguments))
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, " ".join(captured.out.split()), " ".join(captured.err.split())

    return run


def assert_refused(answer: tuple[int, str, str], *parts: str) -> None:
    code, out, err = answer
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    assert all(part in err for part in parts), err


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",)])
def test_help_names_every_command(call, arguments):
    code, out, err = call(*arguments)
    assert (code, err) == (0, "")
    assert all(f" {name} " in out for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(call, name):
    code, out, err = call(name, "--help")
    assert (code, err) == (0, "")
    assert f"usage: instructrl {name}" in out


def test_version(call):
    assert call("--version") == (0, f"instructrl {__version__}", "")


@pytest.mark.parametrize(("found", "meant"), [("rnu", "run"), ("docter", "doctor"), ("reprt", "report")])
def test_an_unknown_command_gets_a_suggestion(call, found, meant):
    assert_refused(call(found), f"found the command '{found}', did you mean '{meant}'?")


def test_a_command_like_no_other_gets_them_all(call):
    assert_refused(call("zzzz"), "found the command 'zzzz', accepted are run, study, sft")


def test_an_unknown_run_gets_a_suggestion(call):
    assert_refused(call("run", "minature"), "run: found the name 'minature', did you mean 'miniature'?")
    assert_refused(call("run", "zzzz"), "accepted are miniature, smoke")


def test_list_names_every_run(call):
    code, out, _ = call("run", "--list")
    assert code == 0
    assert all(f"{name} {run.description}" in out for name, run in RUNS.items())


@pytest.mark.parametrize("name", RUNS)
def test_a_dry_run_prints_the_plan_and_does_nothing(call, tmp_path, name):
    code, out, err = call("run", name, "--dry-run", "--seed", "7")
    assert (code, err) == (0, "")
    for row in RUNS[name].plan(RUNS[name].config):
        assert " ".join(row.work.split()) in out
    assert f"would write to runs/{name}-7" in out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_where_it_would_write(call):
    assert "would write to there" in call(*DRY, "--out", "there")[1]
    assert_refused(call(*DRY, "--out"), "argument --out: expected one argument")


def test_options_reach_the_plan(call):
    assert "2 epochs in batches of 32" not in call(*DRY)[1]
    assert "2 epochs in batches of 32" in call(*DRY, "--recipe.sft.epochs", "2")[1]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--nonsense", "1"), ("--nonsense",)),
        (("--recipe.sft.epoch", "1"), ("--recipe.sft.epoch",)),
        (("--seed", "x"), ("--seed", "'x'")),
        (("--seed",), ("--seed",)),
        (("--recipe.sft.adam.lr", "-0.5"), ("recipe.sft.adam", "lr: found -0.5, accepted are positive numbers")),
        (("--recipe.ppo.minibatch", "60"), ("minibatch: found 60, accepted are divisors of rollout_batch 256",)),
        (("--recipe.ppo.ptx-coef", "1"), ("ppo.ptx_coef: found 1.0, accepted is 0",)),
        (("--recipe.limits.max-prompt-tokens", "0"), ("max_prompt_tokens: found 0, accepted are positive numbers",)),
    ],
)
def test_a_bad_option_is_refused(call, arguments, parts):
    assert_refused(call(*DRY, *arguments), *parts)


@pytest.mark.parametrize(
    "option",
    [
        "recipe.sft.batch-size",
        "recipe.sft.epochs",
        "recipe.sft.microbatch",
        "recipe.reward-model.batch-size",
        "recipe.reward-model.microbatch",
        "recipe.pretraining.batch-size",
        "recipe.ppo.minibatch",
        "recipe.ppo.rollout-batch",
        "recipe.ppo.microbatch",
        "recipe.ppo.num-epochs",
        "recipe.ppo.max-response-tokens",
        "recipe.ppo.temperature",
        "recipe.block-tokens",
    ],
)
def test_a_count_of_zero_is_refused(call, option):
    assert_refused(call(*DRY, f"--{option}", "0"), "found 0")


def file_with(tmp_path, content: str) -> str:
    path = tmp_path / "my options.yaml"
    path.write_text(content)
    return str(path)


def test_a_file_overrides_defaults_and_the_command_line_the_file(call, tmp_path):
    path = file_with(tmp_path, "seed: 5\nrecipe:\n  sft: {epochs: 3}\n  ppo_start:\n    adam:\n      lr: 1e-4\n")
    out = call(*DRY, "--config", path)[1]
    assert "runs/smoke-5" in out
    assert "3 epochs in batches of 32" in out
    for order in (["--config", path, "--recipe.sft.epochs", "4"], ["--recipe.sft.epochs", "4", "--config", path]):
        out = call(*DRY, *order)[1]
        assert "runs/smoke-5" in out
        assert "4 epochs in batches of 32" in out


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("recipe:\n  sft:\n    epoch: 4\n", ("unknown key recipe.sft.epoch, did you mean 'epochs'?",)),
        ("sede: 4\n", ("unknown key sede, did you mean 'seed'?",)),
        ("- 1\n- 2\n", ("found a list, accepted is a mapping",)),
        ("text\n", ("found a str, accepted is a mapping",)),
        ("seed: [1\n", ("found invalid YAML",)),
        ("seed: {a: 1}\n", ("seed: found {'a': 1}, accepted is a value",)),
    ],
)
def test_a_bad_file_is_named(call, tmp_path, content, parts):
    path = file_with(tmp_path, content)
    assert_refused(call(*DRY, "--config", path), f"{path}: ", *parts)


def test_a_bad_value_in_a_file_is_refused(call, tmp_path):
    path = file_with(tmp_path, "recipe:\n  sft:\n    adam:\n      lr: -1.0\n")
    assert_refused(call(*DRY, "--config", path), "recipe.sft.adam", "lr: found -1.0, accepted are positive numbers")
    path = file_with(tmp_path, "recipe:\n  sft: 3\n")
    assert_refused(call(*DRY, "--config", path), "recipe.sft")


def test_an_empty_file_changes_nothing(call, tmp_path):
    assert call(*DRY, "--config", file_with(tmp_path, "# nothing\n")) == call(*DRY)


def test_a_file_that_is_not_there_is_named(call):
    assert_refused(call(*DRY, "--config", "nowhere.yaml"), "nowhere.yaml")


@pytest.mark.parametrize(
    "name",
    [n for n, run in RUNS.items()],
)
def test_the_resolved_configuration_round_trips(tmp_path, name):
    config = RUNS[name].config
    path = open_folder(tmp_path / "run", config) / "config.yaml"
    assert options.parse(config, ["--config", str(path)], program="p", description="d") == config
    assert yaml.safe_load(path.read_text())["seed"] == config.seed


def test_the_debug_flag_shows_where(call):
    with pytest.raises(ValueError, match="found the name 'smok'"):
        call("--debug", "run", "smok")


def test_a_folder_that_is_no_run_is_refused_and_left_alone(call, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("mine\n")
    assert_refused(call("run", "smoke", "--out", str(folder)), f"{folder}: found a folder that is no run")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"metrics.jsonl": "mine\n"}


def test_a_run_may_go_to_an_empty_folder_or_when_asked_over_an_earlier_run(tmp_path):
    config = RUNS["smoke"].config
    folder = tmp_path / "new" / "run"
    assert open_folder(folder, config) == folder
    (folder / "metrics.jsonl").write_text("kept")
    assert open_folder(folder, config) == folder
    assert (folder / "metrics.jsonl").read_text() == "kept"
    with pytest.raises(ValueError, match=r"found a run with other settings \(seed was 0, is 7\)"):
        open_folder(folder, replace(config, seed=7))
    assert open_folder(folder, replace(config, seed=7), fresh=True).is_dir()
    assert not (folder / "metrics.jsonl").exists()
    assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == 7


def test_a_bad_row_is_named_by_file_and_line(call, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "good"}\n{"prompt": 3}\n')
    assert_refused(call("data", "check", "prompts", str(path)), f"{path}:2: prompt: found int 3")
    path.write_text('{"prompt": "good"}\n{"prompt": "better"}\n')
    assert call("data", "check", "prompts", str(path)) == (0, "2 rows are good", "")


def test_data_says_what_it_takes(call):
    assert_refused(call("data", "chekc"), "found 'chekc', accepted are prepare and check")
    assert_refused(call("data", "check", "novels", "x.jsonl"), "novels")
    assert_refused(call("data", "check", "prompts", "nowhere.jsonl"), "nowhere.jsonl")


def test_a_message_moves_no_cursor(capsys):
    """Names in files become part of messages."""
    assert cli._fail("set.json, a\x1b[2J\x9b\rb: found nothing") == 2
    assert capsys.readouterr().err == (
        "instructrl: error: set.json, a\\x1b[2J\\x9b\ninstructrl: error: b: found nothing\n"
    )


def test_a_report_needs_a_run(call):
    assert_refused(call("report", "nowhere"), "found no results.json in nowhere")


def test_doctor_of_a_host_that_is_not_here(call, monkeypatch):
    monkeypatch.setattr(adapter.Adapter, "version", lambda self: "")
    code, out, _ = call("doctor", "--host", "trl")
    assert code == 1
    assert out == "instructrl for trl: nothing to replace left alone trl: found no installation"


def test_doctor_lists_every_op_on_every_backend(call):
    code, out, _ = call("doctor")
    assert code == 0
    rows = dispatch.usability()
    backends = list(dict.fromkeys(row.backend for row in rows))
    assert set(backends) >= {"native", "triton", "reference"}
    assert f"op {' '.join(backends)} " in out
    for op in {row.op for row in rows}:
        usable = {row.backend: "yes" if row.usable else "no" for row in rows if row.op == op}
        assert f"{op} {' '.join(usable[backend] for backend in backends)} " in out
    assert all(row.why_not in out for row in rows)
    assert f"instructrl {__version__}" in out
    assert f"adapters: peft {importlib.metadata.version('peft')}; their base lies whole on the device of each" in out


def test_steps_name_what_they_need(call):
    answer = call("sft", "--model", "x")
    assert answer[0] == 2
    assert answer[2].startswith("instructrl: error: --data, --out: missing, required")
    assert "--seed" not in answer[2]  # what has a default is not missing


def test_a_model_that_is_not_there_is_refused(call, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    answer = call("sft", "--model", "nowhere", "--data", str(data), "--validation", str(data), "--out", "out")
    assert_refused(answer, "found none at nowhere")


def test_neither_help_nor_a_mistake_loads_a_heavy_package():
    """In a fresh interpreter, since this one has them all."""
    code = (
        "import sys, instructrl\n"
        "from instructrl import cli\n"
        "def exit_code(*words):\n"
        "    try:\n"
        "        return cli.main(words)\n"
        "    except SystemExit as stop:\n"
        "        return stop.code or 0\n"
        "assert exit_code('--help') == exit_code('--version') == 0\n"
        "assert exit_code('rnu') == exit_code('run', 'minature') == exit_code('run', 'files', '--seed', '1') == 2\n"
        "rest = ['--data', 'd', '--out', 'o']\n"
        "assert exit_code('sft', '--model', './none', *rest) == exit_code('rm', '--model', './none', *rest) == 2\n"
        "assert exit_code('ppo', '--model', 'm', '--reward-model', './none', *rest) == 2\n"
        "assert exit_code('eval', '--baseline', 'b', '--models', './none', '--reward-model', 'r', *rest) == 2\n"
        "assert exit_code('run', 'files', '--model', './none', '--data', 'd', '--corpus', 'c') == 2\n"
        "assert exit_code('generate', '--model', './none') == 2\n"
        "from instructrl.runs.named import RUNS\n"
        "commands = [[name] for name in cli.COMMANDS] + [['run', name] for name in RUNS]\n"
        "for command in [*commands, ['data', 'prepare'], ['data', 'check']]:\n"
        "    assert exit_code(*command, '--help') == 0, command\n"
        "    assert exit_code(*command, '--no-such-option', '1') == 2, command\n"
        "    heavy = {'torch', 'transformers', 'numpy', 'matplotlib', 'tokenizers'} & set(sys.modules)\n"
        "    assert not heavy, (command, heavy)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_signal_waits_where_something_is_saved_and_ends_the_rest(name, monkeypatch):
    before, seen = signal.getsignal(signal.SIGTERM), []
    module = importlib.import_module(cli.COMMANDS[name][1])
    monkeypatch.setattr(reading, "READERS", {name: lambda words: seen.append(signal.getsignal(signal.SIGTERM)) or name})
    monkeypatch.setattr(module, "main", lambda settings: seen.append(signal.getsignal(signal.SIGTERM)) or 0)
    assert cli.main([name]) == 0
    assert seen[0] == before  # whoever waits for the options, or for what is imported behind them, is not kept
    assert (seen[1] != before) == (name in ("run", "study", "sft", "rm", "ppo", "eval"))
    assert signal.getsignal(signal.SIGTERM) == before
