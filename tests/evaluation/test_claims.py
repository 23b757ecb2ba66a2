"""Every comparison that a report puts in words is carried by an interval: with noise of its size it is not written.

The words are looked up in the sources, so that a new sentence needs a case here.
"""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import make_results

from instructrl.evaluation import figures, narrative, sections, table
from instructrl.evaluation.narrative import sentences

# What makes a text a comparison.
COMPARES = re.compile(
    r"\b(best|better|worse|preferred|ahead|behind|higher|highest|lower|lowest|more|less|most|least|rose|fell|rise|fall|"
    r"paid|takes? back|took|over-optimised|order of|orders|as there|other way|chance|clear|clearly|recovered|still|"
    r"bought|cost|kept|improve[sd]?|beats?)\b"
)
# Not comparisons, or what is said where nothing can be.
NO_CLAIM = (
    "the paper’s figure 1 orders",  # noqa: RUF001
    "in which", "cannot be told apart", "no clear", "not clearly", "does not differ clearly", "differs clearly from",
    "No model", "for the better: the highest win rate", "In no training did", "may be no better than chance",
    "Dashed: chance", "changed by", "is not clear", "above the loss of",
    # A share that was measured, with its interval beside it.
    "model orders ", "The judge orders ", "Share of ", "Agreement on ",
)  # fmt: skip


def texts(module) -> set[str]:
    """The constant texts of a module that compare, docstrings left out."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, documented)}
    found = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)} - docstrings
    return {text for text in found if " " in text and COMPARES.search(text)}


def interval(results: dict, *path: str | int, value: float, half: float) -> None:
    record = results
    for key in path:
        record = record[key]
    key = "mean" if "mean" in record else "rate"
    record |= {key: value, "low": value - half, "high": value + half}
    if "bootstrap_low" in record:
        record |= {"bootstrap_low": value - half, "bootstrap_high": value + half}


def rates(half: float, **values: float) -> Callable[[dict], None]:
    order = ("gpt", "prompted", "sft", "ppo", "ptx")

    def change(results: dict) -> None:
        for name, value in values.items():
            interval(results, "models", order.index(name), "win_rate", value=value, half=half)

    return change


def tax(half: float, ppo: float, recovered_half: float = 0.1) -> Callable[[dict], None]:
    def change(results: dict) -> None:
        interval(results, "alignment_tax", "tax", "PPO", value=ppo, half=half)
        interval(results, "alignment_tax", "recovered", value=0.7, half=recovered_half)

    return change


def gold(error: float, score_error: float = 0.03) -> Callable[[dict], None]:
    def change(results: dict) -> None:
        for row in results["over_optimisation"]:
            row |= {"gold_error": error, "score_error": score_error}

    return change


def quality(half: float, key: str = "accuracy_heldout_labelers", value: float = 0.55) -> Callable[[dict], None]:
    def change(results: dict) -> None:
        results["reward_model"].setdefault(key, {"rate": value})
        interval(results, "reward_model", key, value=value, half=half)

    return change


# What is claimed, with an interval that carries it, and with one that does not.
CASES = [
    (r"PPO did best", rates(0.02, ppo=0.6, ptx=0.5), rates(0.12, ppo=0.6)),
    (r"PPO did best", rates(0.02, ppo=0.6, ptx=0.5), rates(0.02, ppo=0.6, ptx=0.58)),
    (r"PPO (did best: it )?was preferred to SFT", rates(0.05, ppo=0.6), rates(0.12, ppo=0.6)),
    (
        r"SFT was preferred to every other model",
        rates(0.02, ppo=0.45, ptx=0.4),
        rates(0.06, ppo=0.45, ptx=0.4),
    ),
    (r"which is the order of", rates(0.01, ppo=0.6, ptx=0.6), rates(0.12, ppo=0.6)),
    (r"\d stand as there", rates(0.02, ppo=0.4, ptx=0.6), rates(0.5, gpt=0.1, prompted=0.3, ppo=0.4, ptx=0.6)),
    (r"the other way round \(SFT ahead of PPO\)", rates(0.02, ppo=0.4), rates(0.12, ppo=0.4)),
    (r"PPO was over-optimised.*rose by.*fell by", gold(0.03), gold(0.8)),
    (r"PPO was over-optimised.*rose by.*fell by", gold(0.03), gold(0.03, score_error=0.8)),
    (r"PPO paid an alignment tax: its loss rose by", tax(0.05, 0.1), tax(0.12, 0.1)),
    (r"PPO paid no alignment tax", tax(0.05, -0.1), tax(0.12, -0.1)),
    (r"so the mix gave back", tax(0.05, 0.1), tax(0.12, 0.1)),
    (r"so the mix gave back", tax(0.05, 0.1), tax(0.05, 0.1, recovered_half=0.8)),
]
# What is said in their place, or beside a number that may be chance.
INSTEAD = [
    (rates(0.12, ppo=0.6), "No model differs clearly from SFT for the better"),
    (rates(0.02, ppo=0.6, ptx=0.58), "It does not differ clearly from PPO-ptx"),
    (rates(0.12, ppo=0.6), "cannot be told apart"),
    (gold(0.8), "In no training did the gold score clearly fall"),
    (tax(0.12, 0.1), "Whether PPO paid an alignment tax is not clear: its loss changed by"),
    (quality(0.06), "which is not clearly better than chance"),
    (quality(0.06, "accuracy_judge"), "its verdicts may be no better than chance"),
]


def said(change: Callable[[dict], None]) -> str:
    results = make_results()
    change(results)
    return " ".join(sentences(results))


@pytest.mark.parametrize(("claim", "clear", "noisy"), CASES)
def test_a_claim_is_written_where_an_interval_carries_it_alone(claim, clear, noisy):
    assert re.search(claim, said(clear)), said(clear)
    assert not re.search(claim, said(noisy)), said(noisy)


@pytest.mark.parametrize(("change", "expected"), INSTEAD)
def test_what_is_not_clear_is_said_to_be_so(change, expected):
    assert expected in said(change), said(change)


@pytest.mark.parametrize("key", ["accuracy_heldout_labelers", "accuracy_judge"])
def test_better_than_chance_is_not_doubted(key):
    assert "chance" not in said(quality(0.04, key))


def test_without_intervals_nothing_is_claimed():
    """As results of another program may be: the numbers are told, and no difference in words."""

    def strip(value):
        if isinstance(value, dict):
            ends = ("low", "high", "bootstrap_low", "bootstrap_high", "score_error", "gold_error", "intervals")
            return {key: strip(item) for key, item in value.items() if key not in ends}
        return [strip(item) for item in value] if isinstance(value, list) else value

    text = " ".join(sentences(strip(make_results())))
    assert "54.4%" in text
    for claim, *_ in CASES:
        assert not re.search(claim, text), (claim, text)


def test_every_text_that_compares_has_a_case():
    written = " ".join(said(clear) for _, clear, _ in CASES) + " ".join(said(change) for change, _ in INSTEAD)
    for text in texts(narrative):
        assert text in written or any(words in text for words in NO_CLAIM), text
        if not any(words in text for words in NO_CLAIM):
            # Some noise silences it: it depends on an interval.
            assert any(text in said(clear) and text not in said(noisy) for _, clear, noisy in CASES), text


@pytest.mark.parametrize("module", [sections, figures, table])
def test_headings_and_captions_compare_nothing(module):
    found = [text for text in texts(module) if not any(words in text for words in NO_CLAIM)]
    # The one number in large type that is a comparison has a case of its own below.
    assert [text for text in found if "given back by PPO-ptx" not in text] == []


@pytest.mark.parametrize(("change", "shown"), [(tax(0.05, 0.3), True), (tax(0.05, 0.3, recovered_half=0.8), False)])
def test_the_recovered_tax_in_large_type_has_to_be_clear(change, shown):
    results = make_results()
    change(results)
    found = [item for item in sections.highlights(results) if "given back" in item.text]
    assert bool(found) == shown
    assert all("95% interval" in item.detail for item in found)


def test_every_number_in_large_type_has_its_interval():
    results = make_results()
    quality(0.05, "accuracy_judge")(results)
    found = sections.highlights(results)
    assert len(found) == 4
    assert all("95% interval" in item.detail for item in found)


def test_noise_alone_is_seldom_over_optimisation():
    """200 trainings of 20 iterations whose gold score stands still: the interval of 95% may be wrong in 10 of them."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        rows = [
            {"model": "PPO", "kl": k, "score": k, "score_error": 0.01, "gold": g, "gold_error": 0.06}
            for k, g in enumerate(rng.normal(1.0, 0.06, 20).tolist())
        ]
        wrong += "was over-optimised" in " ".join(sentences({"over_optimisation": rows}))
    assert wrong <= 10
