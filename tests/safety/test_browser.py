"""The page of a hostile run in a browser that runs script: it changes nothing. Needs a headless Chromium."""

import shutil
import subprocess
from pathlib import Path

import pytest
from hostile_page import ALL, MARK, PAYLOADS, POLICY, hostile_run, samples_of_each, unexpected
from synthetic_run import make_results, write_run

from instructrl.evaluation.report import write_figure, write_report

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
PLACE = "PLACE-OF-A-TEXT"


@pytest.fixture(scope="module")
def browser() -> str:
    for program in PROGRAMS:
        if found := shutil.which(program):
            return found
    pytest.skip(f"none of {', '.join(PROGRAMS)} is on PATH")


@pytest.fixture
def opened(browser, tmp_path):
    """(file) -> the document as it is after its scripts have run."""

    def open_page(path: Path) -> str:
        command = [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", path.as_uri()),
        ]
        found = subprocess.run(command, capture_output=True, check=False, timeout=120)
        assert found.returncode == 0, found.stderr.decode(errors="replace")[-2000:]
        return found.stdout.decode("utf-8")

    return open_page


@pytest.fixture
def pages(tmp_path):
    """(name, html) -> a file."""

    def write(name: str, html: str) -> Path:
        path = tmp_path / f"{name}.html"
        path.write_bytes(html.encode("utf-8", errors="backslashreplace"))
        return path

    return write


def went_off(document: str) -> bool:
    return MARK in document[: document.index(">", document.index("<html"))]


def escaped_nowhere(tmp_path: Path, text: str) -> str:
    """A report with a text put in after the template has done its work, as if it escaped nothing."""
    results = make_results()
    results["samples"][0]["responses"]["PPO"]["text"] = PLACE
    html = write_report(write_run(tmp_path / "broken", results)).read_text(encoding="utf-8")
    assert html.count(PLACE) == 1
    return html.replace(PLACE, text)


@pytest.mark.parametrize("name", ["script", "image", "attribute", "frame"])
def test_script_that_is_there_is_noticed(opened, pages, tmp_path, name):
    """Otherwise the tests below would prove nothing."""
    text = f'<p title="{PAYLOADS[name]}">' if name == "attribute" else PAYLOADS[name]
    html = escaped_nowhere(tmp_path, text).replace(POLICY, "")
    assert went_off(opened(pages("page", html)))


def test_the_policy_of_the_page_stops_script_by_itself(opened, pages, tmp_path):
    """The second lock, behind the escaping."""
    assert not went_off(opened(pages("page", escaped_nowhere(tmp_path, ALL))))


@pytest.mark.parametrize("policy", [POLICY, ""], ids=["as it is", "without its policy"])
def test_no_hostile_text_runs(opened, pages, tmp_path, policy):
    html = write_report(write_run(tmp_path / "run", *hostile_run(ALL))).read_text(encoding="utf-8")
    document = opened(pages("page", html.replace(POLICY, policy)))
    assert not went_off(document)
    assert unexpected(document) == []
    assert "7*7" in document


def test_every_hostile_text_by_itself_runs_nothing(opened, pages, tmp_path):
    """One page in which each sample has another text, without the page's policy."""
    results = make_results()
    results = {"samples": samples_of_each(), "config": PAYLOADS, "run": results["run"]}
    html = write_report(write_run(tmp_path / "run", results)).read_text(encoding="utf-8")
    document = opened(pages("page", html.replace(POLICY, "")))
    assert not went_off(document)
    assert unexpected(document) == []
    assert document.count("<article") == len(PAYLOADS)


def test_the_figure_runs_nothing_when_it_is_opened_by_itself(opened, tmp_path):
    results = make_results()
    for model, text in zip(results["models"], ("script", "image", "drawing", "double quote", "CDATA"), strict=True):
        model["name"] = PAYLOADS[text]
    results["run"]["baseline"] = PAYLOADS["end of a drawing"]
    path = write_figure(write_run(tmp_path / "run", results), tmp_path / "figure.svg")
    document = opened(path)
    assert "<svg" in document
    assert MARK not in document[: document.index(">", document.index("<svg"))]
    assert "<script" not in document
