"""The sentences say what the numbers say, also where that is not what the paper says; the terminal's table."""

import io

import numpy as np
import pytest
from rich.console import Console
from synthetic_run import MODELS, make_results

from instructrl.evaluation.formatting import decimal, duration, label, percent
from instructrl.evaluation.narrative import sentences
from instructrl.evaluation.plots import moving_average, thin
from instructrl.evaluation.table import results_table


def with_rates(half: float = 0.02, **rates: float) -> dict:
    results = make_results()
    names = {"gpt": "GPT", "prompted": "GPT (prompted)", "ppo": "PPO", "ptx": "PPO-ptx"}
    for key, rate in rates.items():
        model = results["models"][MODELS.index(names[key])]
        model["win_rate"] |= {"rate": rate, "low": rate - half, "high": rate + half}
    return results


def said(results: dict) -> str:
    return " ".join(sentences(results))


def test_the_papers_order_is_named_as_such():
    text = said(make_results())
    assert "PPO did best: it was preferred to SFT on 54.4% of 1,000 held-out prompts" in text
    assert "which is the order of the paper’s figure 1" in text  # noqa: RUF001
    # 1 - 0.017 / 0.316 = 0.946
    assert "so the mix gave back 95% (" in text
    # gold = 3.9 + 0.32 k - 0.021 k^2 on the grid of 14 / 11 nats: highest at 6 * 14 / 11.
    assert "past 7.6 nats its reward still rose" in text


def test_ppo_and_ppo_ptx_have_no_order_in_the_paper():
    assert "which is the order" in said(with_rates(ppo=0.51, ptx=0.55))


def test_another_order_is_said_plainly():
    text = said(with_rates(ppo=0.386))
    assert "not the order of the paper’s figure 1: here SFT ahead of PPO." in text  # noqa: RUF001
    text = said(with_rates(ppo=0.49))
    assert "here SFT ahead of PPO, where the intervals overlap." in text
    text = said(with_rates(gpt=0.4, prompted=0.3, ptx=0.49))
    assert "here GPT ahead of GPT (prompted) and SFT ahead of PPO-ptx, where the intervals overlap." in text


def test_no_win_is_no_win():
    text = said(with_rates(ppo=0.386, ptx=0.47))
    assert "No model was preferred to SFT: PPO-ptx came closest, at 47.0%" in text
    assert "did best" not in text


def test_a_lead_within_the_interval_is_no_certainty():
    text = said(with_rates(ppo=0.515, ptx=0.51))
    assert "No model was clearly preferred to SFT: PPO came out highest, at 51.5%" in text


def test_many_reversed_pairs_are_counted():
    # GPT above all four (4), prompted GPT above three (3): 7 of the 9 pairs that the paper orders.
    text = said(with_rates(gpt=0.6, prompted=0.58, ppo=0.51, ptx=0.55))
    # By more than +-0.02 on both sides: GPT over SFT, PPO, PPO-ptx (0.58 > 0.57); prompted GPT over SFT, PPO.
    assert "7 of 9 pairs stand the other way round, five of them by more than the intervals." in text


def taxed(**taxes: float) -> dict:
    """A tax of each model, known to 0.03 on both sides."""
    return {name.replace("_", "-"): {"mean": tax, "low": tax - 0.03, "high": tax + 0.03} for name, tax in taxes.items()}


@pytest.mark.parametrize(
    ("tax", "recovered", "expected"),
    [
        (taxed(PPO=-0.1, PPO_ptx=-0.2), None, "PPO paid no alignment tax: its loss changed by −0.100 nats"),  # noqa: RUF001
        (taxed(PPO=0.02, PPO_ptx=0.01), None, "Whether PPO paid an alignment tax is not clear"),
        (
            taxed(PPO=0.1),
            None,
            "by 0.100 nats a token (95% interval 0.070 to 0.130) on pretraining text, from that of GPT.",
        ),
        (taxed(PPO=0.1, PPO_ptx=0.03), {"mean": 0.7, "low": 0.6, "high": 0.8}, "gave back 70% (60.0 to 80.0%)."),
        (taxed(PPO=0.1, PPO_ptx=0.2), {"mean": -1.0, "low": -1.5, "high": -0.5}, "by 0.200 nats a token"),
    ],
)
def test_tax_sentences(tax, recovered, expected):
    results = make_results() | {"alignment_tax": {"pretrained": "GPT", "tax": tax, "recovered": recovered}}
    assert expected in said(results)


def test_what_is_set_by_hand_is_said():
    results = make_results()
    assert "set by hand: the noise of their opinions is 0.7 points where that of training labelers is 1.1." in said(
        results
    )
    results["reward_model"]["accuracy_heldout_labelers"]["rate"] = 0.73
    assert "right on 73.0% of their pairs and on 71.2% of those of training labelers, where the paper" in said(results)
    results["reward_model"]["labeler_noise"] = {"training": 1.0, "heldout": 1.0}
    assert "by hand" not in said(results)


def test_no_fall_no_over_optimisation():
    results = make_results()
    for row in results["over_optimisation"]:
        row["gold"] = row["kl"]
    assert "over-optimised" not in said(results)


def test_nothing_is_said_of_nothing():
    assert sentences({}) == []


def printed(results: dict, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(results_table(results))
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_the_table_fits_a_terminal():
    text = printed(make_results())
    assert "…" not in text
    for expected in (*MODELS, "54.4%", "52.2–56.6%", "baseline", "−1.52", "0.938"):  # noqa: RUF001
        assert expected in text


def test_the_table_shows_names_and_never_markup():
    results = make_results()
    results["models"][0]["name"] = "[red]x[/red]"
    results["run"]["name"] = "[/]"
    assert "[red]x[/red]" in printed(results, 120)
    assert "[/]" in printed(results, 120)


def test_columns_without_values_are_left_out():
    results = make_results()
    for model in results["models"]:
        model |= {"likert": None, "kl": None}
    text = printed(results)
    assert "Likert" not in text
    assert "KL" not in text
    assert "Model" in printed({})


def test_numbers():
    assert [decimal(x) for x in (-0.001, -1.5, 1234.567, None, float("nan"), True)] == [
        *("0.00", "−1.50", "1,234.57", "–", "–", "–"),  # noqa: RUF001
    ]
    assert (percent(0.5434), percent(-0.2, 0)) == ("54.3%", "−20%")  # noqa: RUF001
    assert [duration(x) for x in (0.0, 9.96, 59.6, 185, 7599)] == [
        *("0.0 s", "10 s", "1 min 00 s", "3 min 05 s", "2 h 07 min"),
    ]
    assert (label("open_qa"), label("closed qa")) == ("Open QA", "Closed QA")


def test_thinning_keeps_the_mean_and_averaging_keeps_constants():
    values = np.arange(1000.0) ** 2
    xs, ys = thin(range(1000), values, 250)
    assert len(xs) == len(ys) == 250
    assert ys.mean() == values.mean()
    assert xs[0] == 1.5
    assert (moving_average(np.full(20, 3.0), 5) == 3.0).all()
    # At the start of 0, 1, 2, ... three of the five places exist: (0 + 1 + 2) / 3.
    assert moving_average(np.arange(20.0), 5)[:3].tolist() == [1.0, 1.5, 2.0]
