"""docs/paper_index.md against the code: every name is defined where the page says, with the value that it says."""

import ast
import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/paper_index.md"


def index_rows() -> list[tuple[str, str]]:
    """(file, claim) for each code span in the last column of the index."""
    rows = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
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
            names.update(part.id for part in ast.walk(target) if isinstance(part, ast.Name))
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
