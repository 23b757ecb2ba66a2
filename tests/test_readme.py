"""The pages against the code: every command is accepted, every example runs, and the rows of the examples are read."""

import argparse
import ast
import importlib
import inspect
import json
import re
import shlex
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from chats import tokenizer_of
from pages import BAD_INPUT, PAGES, ROOT, blocks, read, without_code

from instructrl import cli, kernels
from instructrl.commands import options
from instructrl.data import readers
from instructrl.ops import compiled, dispatch, private_ops
from instructrl.runs.chat_settings import ChatRecipe
from instructrl.runs.settings import FilesConfig

# Who runs the Python of a page: a test in this file, or FILE::TEST in another one. Pages of hosts are left to
# tests/integrations, which needs the hosts.
RUN_BY = {
    "README.md": "test_the_ops_example_runs",
    "docs/adapters.md": "test_the_example_of_adapters_runs",
    "docs/chat_templates.md": "test_the_example_of_chat_templates_runs",
    "docs/conventions.md": "test_the_example_of_conventions_runs",
    "docs/files_and_models.md": "test_your_own_files_from_start_to_end",
    "docs/lm_eval.md": "tests/integrations/test_lm_eval.py::test_the_example_of_the_page_runs",
    "docs/ops.md": "test_the_ops_example_runs",
    "docs/suites.md": "tests/runs/test_suites.py::test_the_example_of_the_page_runs",
    "docs/tracking.md": "tests/tracking/test_callbacks.py::test_the_example_of_the_page_runs",
    "docs/win_rates.md": "test_the_example_of_win_rates_runs",
    "kernels/README.md": "test_the_backend_examples_run",
}


def commands() -> list[list[str]]:
    """Of the bash blocks and code spans of all pages, but for those that are wrong on purpose."""
    pages = "\n".join(read(page) for page in PAGES if page != BAD_INPUT)
    text = "\n".join(blocks(pages, "bash")).replace("\\\n", " ")
    spans = re.findall(r"`(instructrl [a-z][^`]*)`", pages)
    lines = [line for line in text.splitlines() if line.startswith("instructrl ")] + spans
    lines += re.findall(r"torchrun .* -m (instructrl\.cli .*)", text)
    return [shlex.split(line, comments=True)[1:] for line in lines]


class _Accepted(BaseException):
    """The options were taken; what would follow is real work."""


@pytest.fixture
def no_work(monkeypatch):
    """Commands stop as soon as their arguments are read."""
    real_parse, real_arguments = options.parse, argparse.ArgumentParser.parse_args

    def parse(*arguments, **keywords):
        real_parse(*arguments, **keywords)
        raise _Accepted

    def parse_args(self, *arguments, **keywords):
        real_arguments(self, *arguments, **keywords)
        raise _Accepted

    monkeypatch.setattr(options, "parse", parse)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("arguments", commands(), ids=lambda arguments: " ".join(arguments)[:60])
def test_every_command_is_accepted(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").mkdir()
    for name, content in written_files().items():
        (tmp_path / name).write_text(content)
    (tmp_path / "ppo.yaml").write_text("model: a\nreward_model: b\ndata: c\n")
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    if arguments[1:] == ["--list"]:
        assert cli.main(arguments) == 0
    elif any(argument.startswith("--") for argument in arguments) or arguments == ["doctor"]:
        with pytest.raises(_Accepted):
            cli.main(arguments)
    elif arguments not in (["run"], ["COMMAND", "--help"]):
        with pytest.raises(SystemExit, match="0"):
            cli.main([*arguments, "--help"])


def test_commands_are_found():
    found = commands()
    assert {arguments[0] for arguments in found} >= set(cli.COMMANDS)
    assert sum("ppo.yaml" in arguments for arguments in found) == 2


def programs(page: str) -> list[tuple[str, str]]:
    """(`make`, target), (`-m`, module) and (`python`, file) of the bash blocks and code spans of a page."""
    text = without_code(read(page))
    code = "\n".join([*blocks(read(page), "bash"), *re.findall(r"`([^`]+)`", text)])
    targets = [("make", name) for name in re.findall(r"^(?:\w+=\S+ )?make ([\w-]+)", code, re.MULTILINE)]
    modules = [("-m", name) for name in re.findall(r"python -m ((?:benchmarks|instructrl)[\w.]*)", code)]
    return targets + modules + [("python", name) for name in re.findall(r"python ((?:tests|benchmarks)/\S+\.py)", code)]


@pytest.mark.parametrize("page", PAGES)
def test_every_program_is_there(page):
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))
    for how, name in programs(page):
        path = ROOT / (name.replace(".", "/") + ".py" if how == "-m" else name)
        assert name in targets if how == "make" else path.exists(), f"{how} {name}"


def test_programs_are_found():
    found = [program for page in PAGES for program in programs(page)]
    assert {("make", "demo"), ("-m", "benchmarks.ops.floors"), ("python", "tests/jobs/figures.py")} <= set(found)


def written_files() -> dict[str, str]:
    """What the page of files and models writes by `cat`: content by name."""
    page = read("docs/files_and_models.md")
    return dict(re.findall(r"^cat > (\S+) <<'END'\n(.*?)^END$", page, re.MULTILINE | re.DOTALL))


def test_the_settings_of_a_small_model_are_those_of_the_chat_run(tmp_path):
    """But for PPO-ptx and the branch it starts from, which that run does not have."""
    (tmp_path / "own.yaml").write_text(written_files()["own.yaml"])
    words = ["--config", str(tmp_path / "own.yaml")]
    recipe, chat = options.parse(FilesConfig(), words, program="run", description="").recipe, ChatRecipe()
    for name in ("block_tokens", "limits", "adapter", "sft", "reward_model", "ppo"):
        assert getattr(recipe, name) == getattr(chat, name)
    assert recipe.ppo_start == replace(recipe.sft, pretraining_fraction=0.1)
    assert recipe.ppo_ptx == replace(recipe.ppo, ptx_coef=1.0, ptx_examples_per_episode=0.5)


def test_your_own_files_from_start_to_end(tmp_path, monkeypatch, capsys):
    """The page as it stands: the toy files, then every command on them."""
    monkeypatch.chdir(tmp_path)
    page = read("docs/files_and_models.md")
    toy, talk, steps = blocks(page, "python")
    exec(compile(toy, "toy.py", "exec"), {})
    (tmp_path / "toy/small.yaml").write_text(written_files()["toy/small.yaml"])
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("instructrl ") and "toy/" in line]
    assert len(lines) == 12
    for line in lines:
        assert cli.main(shlex.split(line)[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
    err = capsys.readouterr().err
    assert "the warm-up of" not in err, "settings that show something"
    assert "averaged" not in err
    exec(compile(talk, "talk.py", "exec"), {})
    assert capsys.readouterr().out.strip()
    exec(compile(steps, "steps.py", "exec"), {})
    for made in (
        "python/metrics.jsonl",
        "python/model/model.safetensors",
        "run/report.html",
        "run/results.json",
        "ppo/report.html",
        "eval/results.json",
        "win_rates.svg",
    ):
        assert (tmp_path / "toy" / made).exists()
    run = {path.name for path in (tmp_path / "toy/run").iterdir()}
    assert {name.rstrip("/") for name in re.findall(r"^\| `([^`]+)` \|", read("docs/runs.md"), re.MULTILINE)} == run


def test_the_example_of_chat_templates_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer_of("chatml", "byte level").save_pretrained("models/chat")
    (example,) = blocks(read("docs/chat_templates.md"), "python")
    exec(compile(example, "chat_templates.md", "exec"), {})
    shown = "system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
    assert capsys.readouterr().out == f"<|im_start|>{shown}Because of Rayleigh.<|im_end|>\n"


READERS = {
    "completion": readers.read_demonstrations,
    "messages": readers.read_demonstrations,
    "completions": readers.read_comparisons,
    "chosen": readers.read_comparisons,
    "text": readers.read_corpus,
    "prompt": readers.read_prompts,
}


@pytest.mark.parametrize("page", ["README.md", "docs/formats.md"])
def test_rows_on_a_page_are_read(page, tmp_path):
    lines = [line for block in blocks(read(page), "json") for line in block.splitlines()]
    assert len(lines) >= 4
    for line in lines:
        (tmp_path / "row.jsonl").write_text(line)
        reader = next(reader for column, reader in READERS.items() if column in json.loads(line))
        assert len([*reader(tmp_path / "row.jsonl")]) == 1


def test_the_ops_example_runs():
    short: dict[str, Any] = {}
    (example,) = blocks(read("README.md"), "python")
    exec(compile(example, "README.md", "exec"), short)
    assert short["loss"].num_pairs.tolist() == [5, 1]
    assert short["scores"].grad.isfinite().all()
    made: dict[str, Any] = {}
    for example in blocks(read("docs/ops.md"), "python"):
        exec(compile(example, "ops.md", "exec"), made)
    assert made["loss"].num_pairs.tolist() == [5, 1]
    assert made["scores"].grad.isfinite().all()
    assert made["new"].grad.isfinite().all()
    assert float(made["step"].metrics["num_tokens"]) == float(made["mask"].sum())


def test_the_example_of_conventions_runs():
    (example,) = blocks(read("docs/conventions.md"), "python")
    names = ("logprobs", "ref_logprobs", "values", "new_logprobs", "new_values")
    made: dict[str, Any] = {name: torch.randn(3, 7, requires_grad=name.startswith("new")) for name in names}
    made |= {"scores": torch.randn(3), "mask": torch.rand(3, 7) > 0.2}
    exec(compile(example, "conventions.md", "exec"), made)
    made["loss"].backward()
    assert made["new_logprobs"].grad.isfinite().all()


def test_the_example_of_adapters_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = tiny.tiny_encoder()
    tiny.tiny_policy(encoder).save("toy/model", encoder.tokenizer)
    (example,) = blocks(read("docs/adapters.md"), "python")
    made: dict[str, Any] = {"tokenizer": encoder.tokenizer}
    exec(compile(example, "adapters.md", "exec"), made)
    assert made["policy"].base is made["start"].base


def test_the_example_of_win_rates_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(read("docs/win_rates.md"), "python")
    exec(compile(example, "win_rates.md", "exec"), {})
    said = re.findall(r"print\(.*# ([\d.]+)", example)
    assert capsys.readouterr().out.split() == said


def test_every_example_is_run():
    pages = {page for page in PAGES if blocks(read(page), "python") and not page.startswith("docs/hosts/")}
    assert pages == set(RUN_BY), "Python on a page is run by a test that RUN_BY names"
    for place in RUN_BY.values():
        file, _, test = place.rpartition("::")
        assert f"\ndef {test}(" in read(file or "tests/test_readme.py")


@pytest.mark.parametrize("page", PAGES)
def test_what_examples_import_is_there(page):
    for example in blocks(read(page), "python"):
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("instructrl"):
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name) or importlib.import_module(f"{node.module}.{name.name}")


DEFINE, ATTACH = inspect.signature(private_ops.define), inspect.signature(compiled.attach)


def test_the_backend_examples_run(monkeypatch):
    whole, example = blocks(read("kernels/README.md"), "python")
    defined = []
    monkeypatch.setattr(private_ops, "define", lambda *a: defined.append(DEFINE.bind(*a).arguments))
    monkeypatch.setattr(compiled, "attach", lambda *a, **k: defined.append(ATTACH.bind(*a, **k).arguments))
    exec(compile(whole, "kernels/README.md", "exec"), {})
    assert defined[0]["prefix"] == defined[1]["prefix"] == "_mine_"
    assert set(defined[0]["implementations"]) <= set(private_ops.SCHEMAS)
    attach, report = inspect.signature(kernels.attach), inspect.signature(kernels.report_missing)
    calls = []
    monkeypatch.setattr(kernels, "attach", lambda *a, **k: calls.append(attach.bind(*a, **k).arguments))
    monkeypatch.setattr(kernels, "report_missing", lambda *a: calls.append(report.bind(*a).arguments))
    exec(compile(example, "kernels/README.md", "exec"), {})
    attached, missing = calls
    assert (attached["backend"], attached["devices"], missing["backend"]) == ("mine", ("cpu",), "native")
    assert set(attached["implementations"]) <= set(dispatch.OPS)


def test_the_table_of_ops_is_complete():
    assert sorted(re.findall(r"^\| `([\w.]+)` \|", read("docs/ops.md"), re.MULTILINE)) == sorted(dispatch.OPS)
    assert f"a library of {len(dispatch.OPS)} functions" in read("README.md")
