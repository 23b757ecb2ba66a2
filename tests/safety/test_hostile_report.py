"""The page of a run whose every text is hostile, read by a parser: nothing stands there that the report did not put."""

import json

import pytest
from hostile_page import ALL, LONG, PAYLOADS, POLICY, hostile_run, samples_of_each, shown, small_run, unexpected
from synthetic_run import make_metrics, make_profile, make_results, write_run

from instructrl import cli
from instructrl.data import tables
from instructrl.evaluation.report import render, visible, write_figure, write_report


def report(tmp_path, run: tuple[dict, list[dict], list[dict]]) -> str:
    """Written from files, as `instructrl report` does it."""
    folder = write_run(tmp_path / "run", *run)
    assert cli.main(["report", str(folder)]) == 0
    return (folder / "report.html").read_text(encoding="utf-8")


def test_a_harmless_report_has_nothing_unexpected():
    html = render(make_results(), make_metrics(), make_profile())
    assert unexpected(html) == []
    assert html.count(POLICY) == 1


# The others are in ALL, and by themselves in the samples: drawing a whole report takes two seconds.
@pytest.mark.parametrize("name", ["script", "attribute", "half a character", "style"])
def test_hostile_text_anywhere_adds_nothing_to_the_page(tmp_path, name):
    html = report(tmp_path, hostile_run(PAYLOADS[name]))
    assert unexpected(html) == []
    assert html.count(POLICY) == 1
    assert html.index(POLICY) < html.index("<title>")


def test_all_hostile_texts_together_add_nothing_to_the_page(tmp_path):
    html = report(tmp_path, hostile_run(ALL))
    assert unexpected(html) == []
    text = shown(html)
    for name in ("script", "entities", "template", "link"):
        assert text.count(PAYLOADS[name]) > 40, "what is given is shown"


def test_every_hostile_text_by_itself_adds_nothing_to_the_page(tmp_path):
    results = {"samples": samples_of_each(), "config": PAYLOADS, "run": make_results()["run"]}
    html = report(tmp_path, (results, [], []))
    assert unexpected(html) == []
    assert html.count("<article") == len(PAYLOADS)


def test_a_text_of_a_megabyte_is_a_text(tmp_path):
    html = report(tmp_path, small_run(LONG))
    assert unexpected(html) == []
    assert LONG in shown(html)


@pytest.mark.parametrize("name", PAYLOADS)
def test_the_figure_is_as_inert_as_the_page(tmp_path, name):
    folder = write_run(tmp_path / "run", hostile_run(PAYLOADS[name])[0])
    html = write_figure(folder, tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert unexpected(html) == []


def test_what_reorders_text_is_seen_and_does_nothing():
    assert visible("\u202eabc\u202d\u202c\u202a\u202b") == "\ufffdabc\ufffd\ufffd\ufffd\ufffd"
    assert visible("אב\u200f\u2067גד\u2069") == "אב\u200f\u2067גד\u2069"


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("<p>a<script>b</script></p>", "<script>"),
        ("<p onclick='x'>a</p>", "<p onclick>"),
        ("<a href='javascript:x'>a</a>", "<a href='javascript:x'>"),
        ("<img src=x>", "<img>"),
        ("<meta http-equiv=refresh content=0>", "<meta http-equiv='refresh'>"),
        ("<style>p { background: url(x) }</style>", "a style that fetches"),
        ("<p><!-- a --></p>", "a comment"),
    ],
)
def test_what_is_unexpected_is_found(page, expected):
    assert expected in unexpected(page)


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_source_in_the_report_on_data_begins_no_tag_and_no_link(name):
    """It is Markdown, which passes HTML through: only behind a backslash are `<` and `[` characters."""
    row = {"set": "SFT", "split": "train", "source": PAYLOADS[name] + "\\<b>", "num_prompts": 1}
    line = tables.sizes_markdown([row]).splitlines()[2]
    plain = line.replace("\\\\", "")
    assert plain.count("<") == plain.count("\\<")
    assert plain.count("[") == plain.count("\\[")
    assert plain.replace("\\|", "").count("|") == 4


def test_results_of_hostile_text_are_json(tmp_path):
    folder = write_run(tmp_path, hostile_run(ALL)[0])
    assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["run"]["name"] == ALL
    assert write_report(folder).is_file()
