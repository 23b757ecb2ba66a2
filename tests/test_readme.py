"""README and CONTRIBUTING against the code: paths, commands, examples, and every value of the paper index."""

import argparse
import ast
import dataclasses
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chats import tokenizer_of

from instructrl import cli, kernels
from instructrl.commands import options
from instructrl.ops import compiled, dispatch, private_ops

ROOT = Path(__file__).parent.parent
CHATS = "docs/chat_templates.md"
_DOCS = (CHATS, "docs/chat.md", "docs/adapters.md", "docs/memory.md")
PAGES = ("README.md", "CONTRIBUTING.md", "csrc/README.md", "kernels/README.md", *_DOCS)
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Written by a run or by `make`, not part of the repository.
MADE = (
    "runs/",
    "models/",
    "toy",
    ".venv",
    "report.html",
    "config.yaml",
    "metrics.jsonl",
    "profile.jsonl",
    "results.json",
    "generation_config.json",
    "instructrl.json",
)
SUFFIXES = r"\.(?:py|md|toml|txt|svg|html|yaml|json|jsonl)"


def blocks(text: str, language: str) -> list[str]:
    """Contents of the fenced blocks in a language, "" for those that name none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [content for name, content in found if name == language]


def named_paths(page: str) -> set[str]:
    """Relative to the repository: what stands in code spans, links and pictures and looks like a path."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([\w./-]+/|[\w./-]+" + SUFFIXES + r"|[\w.-]+(?:/[\w.-]+)+)`", text)
    links = re.findall(r"\]\(([^)#:]+)\)|src=\"([^\"]+)\"", text)
    folder = Path(page).parent
    paths = {str((ROOT / folder / (a or b)).resolve().relative_to(ROOT)) for a, b in links}
    return {path for path in {*spans, *paths} if not path.startswith(MADE) and not path.startswith("1/")}


def tree() -> Iterator[str]:
    """Paths of the annotated tree, its indentation put together."""
    folders: list[str] = []
    for line in next(block for block in blocks(README, "") if "pyproject.toml" in block).splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = [*folders[:depth], name]
        yield "".join(folders)


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page):
    # `models/` in a sentence about the package is instructrl/models/, and `cpu/` on a page beside it is beside it.
    folders = (ROOT, ROOT / "instructrl", (ROOT / page).parent)
    places = {p: [folder / p.replace("FAMILY", "ranking") for folder in folders] for p in named_paths(page)}
    missing = {path for path, found in places.items() if not any(place.exists() for place in found)}
    if "The numbers are filled in from a run" in README:
        missing = {path for path in missing if not path.startswith("benchmarks/results/")}
    assert not missing


def test_paths_are_found():
    found = set().union(*map(named_paths, PAGES))
    assert {
        "instructrl/ops/ranking.py",
        "kernels/README.md",
        "csrc/README.md",
        ".ci/run",
        "tests/test_readme.py",
    } <= found
    assert "benchmarks/results/miniature_win_rates.svg" in found


def test_the_tree_is_the_repository():
    listed = list(tree())
    assert all((ROOT / path).exists() for path in listed), listed
    package = {path.name for path in (ROOT / "instructrl").iterdir() if path.suffix == ".py" or path.is_dir()}
    package -= {"__init__.py", "__pycache__"}
    assert {path.split("/")[1] for path in listed if path.startswith("instructrl/") and path.count("/") > 0} >= package
    top = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    top -= {"runs", "shared", "build", "dist"} | {name for name in top if name.endswith(".egg-info")}
    assert {path.split("/")[0] for path in listed} >= top


def commands() -> list[list[str]]:
    pages = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    text = "\n".join(blocks(pages, "bash")).replace("\\\n", " ")
    spans = re.findall(r"`(instructrl [a-z][^`]*)`", pages)
    lines = [line for line in text.splitlines() if line.startswith("instructrl ")] + spans
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
    (tmp_path / "toy/small.yaml").write_text(small_yaml())
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    if arguments == ["run", "--list"]:
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


def small_yaml() -> str:
    return re.search(r"cat > toy/small.yaml <<'END'\n(.*?)^END$", README, re.MULTILINE | re.DOTALL)[1]


def test_your_own_files_from_start_to_end(tmp_path, monkeypatch, capsys):
    """The section as it stands: the toy files, then every command on them."""
    monkeypatch.chdir(tmp_path)
    section = README.split("## Your own files and model")[1].split("\n## ")[0]
    toy, talk, steps = blocks(section, "python")
    exec(compile(toy, "README.md", "exec"), {})
    (tmp_path / "toy/small.yaml").write_text(small_yaml())
    text = "\n".join(blocks(section, "bash")).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("instructrl ") and "toy/" in line]
    assert len(lines) == 12
    for line in lines:
        assert cli.main(shlex.split(line)[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
    err = capsys.readouterr().err
    assert "the warm-up of" not in err, "settings that show something"
    assert "averaged" not in err
    exec(compile(talk, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()
    exec(compile(steps, "README.md", "exec"), {})
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
    table = README.split("## What a run leaves behind")[1].split("\n## ")[0]
    assert {name.rstrip("/") for name in re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)} == run


def test_the_example_of_chat_templates_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer_of("chatml", "byte level").save_pretrained("models/chat")
    (example,) = blocks((ROOT / CHATS).read_text(encoding="utf-8"), "python")
    exec(compile(example, CHATS, "exec"), {})
    shown = "system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
    assert capsys.readouterr().out == f"<|im_start|>{shown}Because of Rayleigh.<|im_end|>\n"


def test_the_ops_example_runs():
    made: dict[str, Any] = {}
    for example in blocks(README.split("## The ops alone")[1].split("\n## ")[0], "python"):
        exec(compile(example, "README.md", "exec"), made)
    assert made["loss"].num_pairs.tolist() == [5, 1]
    assert made["scores"].grad.isfinite().all()
    assert made["new"].grad.isfinite().all()
    assert float(made["step"].metrics["num_tokens"]) == float(made["mask"].sum())


DEFINE, ATTACH = inspect.signature(private_ops.define), inspect.signature(compiled.attach)


def test_the_backend_examples_run(monkeypatch):
    whole, example = blocks((ROOT / "kernels/README.md").read_text(encoding="utf-8"), "python")
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
    section = README.split("## The ops alone")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)) == sorted(dispatch.OPS)
    assert f"a library of {len(dispatch.OPS)} functions" in README


# ---- the paper index


def index_rows() -> list[tuple[str, str]]:
    """(file, claim) for each code span in the last column of the index."""
    rows = []
    for line in README.split("## Paper index")[1].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[-1].startswith("`"):
            (path,) = re.findall(r"`([^`]+)`", cells[2])
            rows += [(path, claim) for claim in re.findall(r"`([^`]+)`", cells[3])]
    return rows


def member(owner: Any, name: str) -> Any:
    """An attribute, or the default of a dataclass' field."""
    if inspect.isclass(owner) and dataclasses.is_dataclass(owner):
        for field in dataclasses.fields(owner):
            if field.name == name:
                return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return getattr(owner, name)


def defined_in(path: str) -> set[str]:
    """Names that a file defines at its top, what it imports left out."""
    names = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        for target in [*getattr(node, "targets", []), *([node.target] if isinstance(node, ast.AnnAssign) else [])]:
            names.add(ast.unparse(target))
    return names


@pytest.mark.parametrize(("path", "claim"), index_rows(), ids=lambda text: text)
def test_the_paper_index(path, claim):
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    name, _, value = claim.partition(" = ")
    name, _, parameter = name.rstrip(")").partition("(")
    found: Any = module
    for part in name.split("."):
        found = member(found, part)
    assert name.split(".")[0] in defined_in(path)
    if parameter:
        parameter, _, value = parameter.partition("=")
        found = inspect.signature(found).parameters[parameter].default
    if value:
        assert found == ast.literal_eval(value)
    else:
        assert found is not dataclasses.MISSING


def test_the_index_is_read():
    rows = index_rows()
    assert ("instructrl/trainers/settings.py", "PPOConfig.kl_coef = 0.02") in rows
    assert len(rows) > 100
