"""The baselines in the report: lines with their intervals on one scale, and prefixes with the chosen one in bold."""

import re

import pytest
from synthetic_run import make_results

from instructrl.evaluation import plots
from instructrl.evaluation.baseline_views import mixture_plots, prefix_table
from instructrl.evaluation.sections import all_sections


def row(lr: float, examples: int, score: float, *, selected: bool = False) -> dict:
    return {
        "lr": lr, "examples": examples, "score": score, "low": score - 0.5, "high": score + 0.5, "selected": selected
    }  # fmt: skip


FLAN = [row(4e-4, 10, -1.0), row(4e-4, 20, 0.0, selected=True), row(6e-4, 10, 2.0), row(6e-4, 20, 3.0)]
RESULTS = {
    "baselines": {
        "prefixes": [
            {"prefix": "one", "text": "a {prompt}", "score": 0.25, "low": None, "high": None, "selected": False},
            {"prefix": "two", "text": "b {prompt}", "score": 1.0, "low": 0.5, "high": 1.5, "selected": True},
        ],
        "FLAN-like": FLAN,
        "T0-like": [row(4e-4, 10, -2.0)],
    }
}


def test_a_panel_a_learning_rate_and_a_line_a_mixture(monkeypatch):
    drawn = []
    lines = plots.lines
    monkeypatch.setattr(plots, "lines", lambda series, **more: drawn.append((series, more)) or lines(series, **more))
    found = mixture_plots(RESULTS)
    assert [plot.title for plot in found] == [
        "Score by examples at a rate of 0.0004",
        "Score by examples at a rate of 0.0006",
    ]
    (lower, more), (higher, other) = drawn
    assert [(line.label, list(line.xs), list(line.ys), line.ringed) for line in lower] == [
        ("FLAN-like", [10, 20], [-1.0, 0.0], 1),
        ("T0-like", [10], [-2.0], None),
    ]
    assert [(line.label, list(line.ys), line.ringed) for line in higher] == [("FLAN-like", [2.0, 3.0], None)]
    assert list(lower[0].intervals) == [(-1.5, -0.5), (-0.5, 0.5)]
    assert len({line.colour for line in lower}) == 2
    # From the lowest end of an interval to the highest, in both panels.
    assert more["limits"] == other["limits"] == (-2.5, 3.5)
    for plot in found:
        assert "400,000" in plot.caption
        assert "896,000" in plot.caption


def test_panels_have_the_same_scale():
    """Without it the first would end at 0.5 and the second begin at 1.5."""
    lower, higher = (re.findall(r">([^<>]*)</text>", str(plot.svg)) for plot in mixture_plots(RESULTS))
    marks = [text for text in lower if text not in ("10", "20", "examples")]
    assert marks == [text for text in higher if text in marks]
    assert {"\N{MINUS SIGN}2", "2"} <= {text.removesuffix(".0") for text in marks}


def test_the_prefix_that_was_chosen_is_in_bold_and_texts_are_told():
    table = prefix_table(RESULTS)
    assert [[cell.main for cell in cells] for cells in table.rows] == [["one", "0.25"], ["two", "1.00"]]
    assert [cells[0].detail for cells in table.rows] == ["", "selected"]
    assert table.strong == (1,)
    assert table.notes == ("one: a {prompt}", "two: b {prompt}")


@pytest.mark.parametrize(
    "baselines",
    [None, {}, {"prefixes": []}, {"FLAN-like": [{"lr": 4e-4, "examples": 10, "score": None}]}, {"T0-like": [{}]}],
)
def test_a_run_without_baselines_has_no_such_section(baselines):
    made = [section.id for section in all_sections({**make_results(), "baselines": baselines}, [], [])]
    assert "baselines" not in made
    assert "baselines" in [section.id for section in all_sections(make_results(), [], [])]
