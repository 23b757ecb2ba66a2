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
        bounds = {"low": rate - half, "high": rate + half}
        model["win_rate"] |= {"rate": rate, **bounds, **{f"bootstrap_{end}": value for end, value in bounds.items()}}
    return results


def said(results: dict) -> str:
    return " ".join(sentences(results))


def test_what_every_interval_carries_is_said():
    text = said(with_rates(ppo=0.6, ptx=0.55))
    assert (
        "PPO did best: it was preferred to SFT on 60.0% of 1,000 held-out prompts (95% interval 58.0 to 62.0%)" in text
    )
    assert "which is the order of the paper’s figure 1" in text  # noqa: RUF001
    assert "PPO paid an alignment tax: its loss rose by 0.316 nats a token" in text
    # 1 - 0.017 / 0.316 = 0.946
    assert "so the mix gave back 95% (" in text
    # gold = 3.9 + 0.32 k - 0.021 k^2 at k = 14 i / 11, in 8 parts of 12 points: the fifth is the highest, i = 6 alone,
    # at 7.6 nats; the last is i = 10 and 11, at 13.4 nats on average.
    rows = [3.9 + 0.32 * k - 0.021 * k**2 for k in (14 * i / 11 for i in range(12))]
    rise = 2.2 * ((10 / 11) ** 0.5 + 1) / 2 - 2.2 * (6 / 11) ** 0.5
    assert f"PPO was over-optimised: from 7.6 to 13.4 nats its reward rose by {rise:.2f}" in text
    assert f"while the gold score fell by {rows[6] - (rows[10] + rows[11]) / 2:.2f}" in text


def test_the_interval_that_resamples_users_counts_too():
    """54.4% with 52.2 to 56.6% by prompts; by users it may hold one half."""
    results = make_results()
    assert "PPO was preferred to SFT on 54.4% of 1,000 held-out prompts" in said(results)
    results["models"][3]["win_rate"]["bootstrap_low"] = 0.49
    assert "No model differs clearly from SFT" in said(results)
    assert "(95% interval over prompts and users 49.0 to 57.1%)" in said(results)


def test_the_highest_of_several_is_the_best_only_where_it_is_ahead_of_them():
    assert "It does not differ clearly from PPO-ptx." in said(with_rates(ppo=0.57, ptx=0.55))


def test_ppo_and_ppo_ptx_have_no_order_in_the_paper():
    assert "which is the order" in said(with_rates(ppo=0.53, ptx=0.55))


def test_another_order_is_said_plainly():
    text = said(with_rates(ppo=0.386, ptx=0.55))
    assert "Of the 9 pairs that the paper’s figure 1 orders, 8 stand as there and 1 the other way round " in text  # noqa: RUF001
    assert "(SFT ahead of PPO)." in text
    text = said(with_rates(ppo=0.49, ptx=0.55))
    assert "8 stand as there and 1 cannot be told apart: their intervals meet." in text


def test_no_win_is_no_win():
    text = said(with_rates(ppo=0.386, ptx=0.47))
    assert "SFT was preferred to every other model: the highest win rate is that of PPO-ptx, 47.0%" in text
    assert "did best" not in text


def test_many_reversed_pairs_are_counted():
    # Above SFT's 0.5, PPO's 0.49 to 0.53 and PPO-ptx' 0.53 to 0.57: GPT (0.58 to 0.62) over all three, prompted GPT
    # (0.56 to 0.60) over SFT and PPO; it meets PPO-ptx, and GPT meets it; SFT meets PPO. SFT under PPO-ptx is as there.
    text = said(with_rates(gpt=0.6, prompted=0.58, ppo=0.51, ptx=0.55))
    assert "1 stand as there, 5 the other way round" in text
    assert "3 cannot be told apart" in text


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


def test_a_fall_of_the_gold_score_needs_the_reward_to_rise():
    results = make_results()
    for row in results["over_optimisation"]:
        row["score"] = 1.0
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
