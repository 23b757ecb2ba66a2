"""The pages against the repository: paths, links, tables, and how long the README may be."""

import re
from collections.abc import Iterator

import pages
import pytest
from pages import BAD_INPUT, PAGES, ROOT, anchors, blocks, links, read, without_code

from instructrl.evaluation.suites.table import SUITES

WIDTH, README_LINES = 120, 200
# Tables that a program wrote: the page, its file below benchmarks/results, and a column that the page leaves out.
WRITTEN = (
    ("docs/chat.md", "chat.md", None),
    ("docs/jobs.md", "jobs.md", None),
    ("docs/speed.md", "floors_cpu.md", "asked for"),
    ("docs/survival.md", "power.md", None),
    ("docs/survival.md", "torture.md", None),
    ("docs/speed.md", "x86-64-2-threads/2026-11-22-summary.md", None),
)
FOLDERS = ("benchmarks", "csrc", "docs", "instructrl", "kernels", "tests")

# Written by a run or by `make`, not part of the repository.
MADE = (
    "runs/",
    "models/",
    "state/",
    "judges/",
    "points/",
    "sizes/",
    "toy",
    ".venv",
    "report.html",
    "config.yaml",
    "metrics.jsonl",
    "judged",
    "profile.jsonl",
    "results.json",
    "study.json",
    "figure.svg",
    "annotations.json",
    "model_outputs.json",
    "tracking.json",
    "manifest.json",
    "generation_config.json",
    "instructrl.json",
)
SUITE_FILES = {file.removeprefix("?") for suite in SUITES.values() for file in suite.files}
SUFFIXES = r"\.(?:py|md|toml|txt|svg|html|yaml|json|jsonl)"


def named_paths(page: str) -> set[str]:
    """Relative to the repository: what stands in code spans, links and pictures and looks like a path. Pages that name
    files of other projects are asked for those in a folder that is here."""
    spans = re.findall(r"`([\w./-]+/|[\w./-]+" + SUFFIXES + r"|[\w.-]+(?:/[\w.-]+)+)`", without_code(read(page)))
    if page == BAD_INPUT or page.startswith("docs/hosts/"):
        spans = [path for path in spans if path.startswith(tuple(f"{folder}/" for folder in FOLDERS))]
    paths = {*spans, *(path for path, _ in links(page))} - SUITE_FILES
    return {path for path in paths if not path.startswith(MADE) and not path.startswith("1/")}


@pytest.mark.parametrize("suite", SUITES)
def test_the_page_of_suites_names_their_files(suite):
    """Those of which there are a source and its translations are named once, by what they begin with."""
    page = read("docs/suites.md")
    files = {file.removeprefix("?") for file in SUITES[suite].files}
    missing = {file for file in files if f"`{file}`" not in page and f"`{file.split('-fren')[0]}" not in page}
    assert f"`{suite}`" in page
    assert not missing


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
    monkeypatch.setattr(pages, "ROOT", tmp_path)
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
