"""`make headers`: what it compiles against, and that what an older torch does not have is found."""

import re
import shutil
from pathlib import Path

import pytest
import torch_headers

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"


def test_the_oldest_torch_is_the_same_everywhere():
    version = torch_headers.oldest()
    major, minor = map(int, version.split("."))
    target = re.findall(r"#define TORCH_TARGET_VERSION (0x\w+)ULL", (CSRC / "stable.h").read_text())
    assert [int(text, 16) for text in target] == [(major << 56) | (minor << 48)]
    assert f'{{"torch_target", "{version}"}}' in (CSRC / "bindings.cpp").read_text()
    needs = (ROOT / "pyproject.toml").read_text().partition("\nbuild-backend")[0]
    assert f'"torch>={version}"' in needs
    assert f"torch from {version} on" in " ".join((ROOT / "docs/ops.md").read_text().split())


def test_ci_compiles_against_it():
    assert "make headers" in (ROOT / ".ci" / "run").read_text()


@pytest.fixture
def old_torch(tmp_path):
    """Headers that know one name, and sources that use it, and one that uses a newer name in a template."""
    include = tmp_path / "include"
    include.mkdir()
    (include / "old.h").write_text("inline int old_name() { return 0; }\n")
    texts = {
        "old": "#include <old.h>\nint f() { return old_name(); }\n",
        "new": "#include <old.h>\ntemplate <class T> int f(T x) { return new_name(x); }\nint g() { return f(1); }\n",
        "loud": "#include <old.h>\nint f() { int unused; return old_name(); }\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.cpp").write_text(text)
    return tmp_path, include


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.parametrize(("name", "code", "said"), [("old", 0, ""), ("new", 1, "new_name"), ("loud", 1, "unused")])
def test_what_it_says_of_a_file(old_torch, capsys, name, code, said):
    folder, include = old_torch
    assert torch_headers.check("1.0", [folder / f"{name}.cpp"], include) == code
    printed = capsys.readouterr().out
    assert said in printed
    assert printed.endswith(f"torch 1.0: {1 - code} of 1 files compiled\n")


@pytest.mark.skipif(torch_headers.tool("nvcc") is None, reason="nvcc is not installed")
def test_it_reads_device_code(old_torch):
    folder, include = old_torch
    (folder / "new.cu").write_text("#include <old.h>\n__global__ void kernel(int* x) { *x = new_name(); }\n")
    assert "new_name" in torch_headers.refused(folder / "new.cu", include)


def test_without_a_compiler_the_others_are_compiled_and_it_is_told(old_torch, capsys, monkeypatch):
    folder, include = old_torch
    monkeypatch.setattr(torch_headers, "tool", lambda name: None)
    monkeypatch.setenv("CXX", "true")
    assert torch_headers.check("1.0", [folder / "old.cpp", folder / "old.cu"], include) == 2
    printed = capsys.readouterr().out
    assert "old.cu: not compiled: nvcc not found" in printed
    assert "1 of 2 files compiled" in printed


def test_without_a_registry_it_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(torch_headers, "headers", lambda version: HEADERS(version, tmp_path))
    assert torch_headers.main(["2.10"]) == 2
    assert "torch 2.10: its headers could not be had: pip download" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


HEADERS = torch_headers.headers
