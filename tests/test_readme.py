"""The pages against the code: paths, links, commands, examples and tables."""

import argparse
import ast
import importlib
import inspect
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from chats import tokenizer_of

from instructrl import cli, kernels
from instructrl.commands import options
from instructrl.ops import compiled, dispatch, private_ops

ROOT = Path(__file__).parent.parent
BAD_INPUT = "docs/bad_input.md"
_PLACES = ("README.md", "CONTRIBUTING.md", "csrc/README.md", "kernels/README.md", "docs/**/*.md")
PAGES = sorted(path.relative_to(ROOT).as_posix() for place in _PLACES for path in ROOT.glob(place))
WIDTH, README_LINES = 120, 200
# Tables that a program wrote: the page, its file below benchmarks/results, and a column that the page leaves out.
WRITTEN = (
    ("docs/chat.md", "chat.md", None),
    ("docs/failures.md", "torture.md", None),
    ("docs/jobs.md", "jobs.md", None),
    ("docs/speed.md", "floors_cpu.md", "asked for"),
    ("docs/speed.md", "x86-64-2-threads/2026-11-22-summary.md", None),
)
FOLDERS = ("benchmarks", "csrc", "docs", "instructrl", "kernels", "tests")

# Who runs the Python of a page: a test in this file. What needs a host installed is run by tests/integrations.
RUN_BY = {
    "README.md": "test_the_ops_example_runs",
    "docs/adapters.md": "test_the_example_of_adapters_runs",
    "docs/chat_templates.md": "test_the_example_of_chat_templates_runs",
    "docs/conventions.md": "test_the_example_of_conventions_runs",
    "docs/files_and_models.md": "test_your_own_files_from_start_to_end",
    "docs/ops.md": "test_the_ops_example_runs",
    "kernels/README.md": "test_the_backend_examples_run",
}

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


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Contents of the fenced blocks in a language, "" for those that name none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [content for name, content in found if name == language]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def links(page: str) -> list[tuple[str, str]]:
    """(path relative to the repository, anchor) of each link and picture that stays in the repository."""
    text = re.sub(r"(`+).+?\1", "", without_code(read(page)))
    targets = [a or b for a, b in re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", text)]
    pairs = [target.partition("#")[::2] for target in targets if "://" not in target]
    folder = (ROOT / page).parent
    return [(str((folder / path if path else ROOT / page).resolve().relative_to(ROOT)), at) for path, at in pairs]


def anchors(page: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", without_code(read(page)), re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower()).replace(" ", "-")
        found.add(next(name for n in itertools.count() if (name := f"{plain}-{n}" if n else plain) not in found))
    return found


def named_paths(page: str) -> set[str]:
    """Relative to the repository: what stands in code spans, links and pictures and looks like a path. Pages that name
    files of other projects are asked for those in a folder that is here."""
    spans = re.findall(r"`([\w./-]+/|[\w./-]+" + SUFFIXES + r"|[\w.-]+(?:/[\w.-]+)+)`", without_code(read(page)))
    if page == BAD_INPUT or page.startswith("docs/hosts/"):
        spans = [path for path in spans if path.startswith(tuple(f"{folder}/" for folder in FOLDERS))]
    paths = {*spans, *(path for path, _ in links(page))}
    return {path for path in paths if not path.startswith(MADE) and not path.startswith("1/")}


def tree() -> Iterator[str]:
    """Paths of the annotated tree, its indentation put together."""
    folders: list[str] = []
    for line in next(block for block in blocks(read("CONTRIBUTING.md"), "") if "pyproject.toml" in block).splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = [*folders[:depth], name]
        yield "".join(folders)


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page):
    # `models/` in a sentence about the package is instructrl/models/, and `cpu/` on a page beside it is beside it.
    folders = (ROOT, ROOT / "instructrl", (ROOT / page).parent)
    places = {p: [folder / p.replace("FAMILY", "ranking") for folder in folders] for p in named_paths(page)}
    missing = {path for path, found in places.items() if not any(place.exists() for place in found)}
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_every_link_arrives(page):
    wrong = [(path, at) for path, at in links(page) if not (ROOT / path).exists() or (at and at not in anchors(path))]
    assert not wrong


def test_anchors_are_githubs(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "a.md").write_text("# K-wise [ops](b.md)\n```\n# code\n```\n## `x_y`: what's new?\n## Ops\n## Ops\n")
    assert anchors("a.md") == {"k-wise-ops", "x_y-whats-new", "ops", "ops-1"}


def test_every_page_can_be_reached():
    """From the README, or from the page of its folder."""
    indices = ("README.md", "docs/hosts/README.md")
    reached = {path for index in indices for path, _ in links(index)} | {"README.md"}
    assert set(PAGES) - {"csrc/README.md", "kernels/README.md"} <= reached, "a row of README.md links a page of docs/"


def test_the_readme_is_short():
    lines = read("README.md").splitlines()
    assert len(lines) <= README_LINES, "what is more goes to a page of docs/"
    assert not [line for line in lines if len(line) > WIDTH and not line.startswith(("|", "<img"))]


@pytest.mark.parametrize("page", PAGES)
def test_every_table_has_whole_rows(page):
    """As many cells as the head, which GitHub counts by bars without a backslash, in code spans too."""
    for table in re.findall(r"(?:^\|.*\n)+", without_code(read(page)), re.MULTILINE):
        cells = [len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()]
        assert len(set(cells)) == 1, f"{table.splitlines()[0]}: {[*map(str, cells)]}"


def rows_of_tables(page: str) -> list[list[str]]:
    lines = [line for line in read(page).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if not line.startswith("| --")]


@pytest.mark.parametrize(("page", "file", "left_out"), WRITTEN)
def test_tables_are_those_that_were_written(page, file, left_out):
    rows = rows_of_tables(f"benchmarks/results/{file}")
    assert len(rows) > 5
    if left_out is not None:
        column = rows[0].index(left_out)
        rows = [row[:column] + row[column + 1 :] for row in rows]
    shown = rows_of_tables(page)
    assert not [row for row in rows if row not in shown]


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
    """Of the bash blocks and code spans of all pages, but for those that are wrong on purpose."""
    pages = "\n".join(read(page) for page in PAGES if page != BAD_INPUT)
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
    return re.search(
        r"cat > toy/small.yaml <<'END'\n(.*?)^END$", read("docs/files_and_models.md"), re.MULTILINE | re.DOTALL
    )[1]


def test_your_own_files_from_start_to_end(tmp_path, monkeypatch, capsys):
    """The page as it stands: the toy files, then every command on them."""
    monkeypatch.chdir(tmp_path)
    page = read("docs/files_and_models.md")
    toy, talk, steps = blocks(page, "python")
    exec(compile(toy, "toy.py", "exec"), {})
    (tmp_path / "toy/small.yaml").write_text(small_yaml())
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


def test_every_example_is_run():
    pages = {page for page in PAGES if blocks(read(page), "python") and not page.startswith("docs/hosts/")}
    assert pages == set(RUN_BY), "Python on a page is run by a test that RUN_BY names"
    assert set(RUN_BY.values()) <= set(globals())


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
