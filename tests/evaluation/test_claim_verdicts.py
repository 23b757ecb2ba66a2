"""The table of claims: three verdicts of every rule, from intervals that were worked out by hand."""

import pytest
from synthetic_run import make_results

from instructrl.evaluation import claims, sections
from instructrl.evaluation.claims import FAILS, HOLDS, NOT_SHOWN, at_least, at_most, claim_rows, over_seeds, together
from instructrl.evaluation.formatting import DASH, Estimate


def between(value: float, low: float | None, high: float | None) -> Estimate:
    return Estimate(value=value, low=low, high=high)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (between(12, 3, 21), HOLDS),  # above 0, and 12 is at least 10
        (between(10, 1, 19), HOLDS),
        (between(12, -1, 25), NOT_SHOWN),  # there may be no effect
        (between(8, 4, 12), NOT_SHOWN),  # there is one, of which 10 may be the size
        (between(5, 1, 9), FAILS),  # there is one, and it is smaller
        (between(-5, -9, -1), FAILS),
        (between(12, None, None), NOT_SHOWN),
    ],
)
def test_an_effect_of_ten_at_least(found, verdict):
    assert at_least(found, 10.0) == verdict


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (between(1, -2, 4), HOLDS),
        (between(-1, -4, 2), HOLDS),
        (between(3, 1, 5), NOT_SHOWN),
        (between(6, 4.5, 7.5), FAILS),
        (between(-6, -7.5, -4.5), FAILS),
        (between(1, None, None), NOT_SHOWN),
    ],
)
def test_a_difference_of_four_at_most(found, verdict):
    assert at_most(found, 4.0) == verdict


def test_parts_and_seeds():
    assert together([HOLDS, HOLDS]) == HOLDS
    assert together([HOLDS, NOT_SHOWN]) == NOT_SHOWN
    assert together([NOT_SHOWN, FAILS]) == FAILS
    assert together([]) == NOT_SHOWN
    assert over_seeds([FAILS, FAILS]) == FAILS
    assert over_seeds([HOLDS, NOT_SHOWN, HOLDS]) == "not shown (holds in 2 of 3)"
    assert over_seeds([HOLDS, FAILS]) == "not shown (holds in 1 of 2, does not hold in 1 of 2)"


# ---- each claim, by what the results hold


def rate(value: float, half: float = 0.03) -> dict:
    return {"rate": value, "low": value - half, "high": value + half}


def mean(value: float, half: float) -> dict:
    return {"mean": value, "low": value - half, "high": value + half}


def judged(share: float, judge: str, names: tuple[str, ...]) -> dict:
    """A judge by whom each model is preferred to every earlier one with this rate."""
    places = range(len(names))
    rates = [[None if i == j else rate(share if i > j else 1 - share) for j in places] for i in places]
    return {"judged": {"judges": [{"judge": judge, "win_rate_matrix": {"models": [*names], "rates": rates}}]}}


def alike(difference: float) -> dict:
    row = {"name": "PPO", "difference": mean(difference, 0.01)}
    return {"judged": {"differences": [{"judges": ["training labelers", "held-out labelers"], "models": [row]}]}}


def gain(exam: str, prompt: str, what: str, value: float) -> dict:
    return {"exams": {exam: {"gains": {prompt: {what: {"PPO": mean(value, 3.0)}}}}}}


def tax(ppo: float, recovered: float | None) -> dict:
    share = None if recovered is None else mean(recovered, 0.2)
    return {"exams": {"tax": {"all": {"tax": {"PPO": mean(ppo, 2.0)}, "recovered": share}}}}


def training(*gold: float) -> dict:
    """A training of as many parts as `narrative` averages, one iteration each, in which the reward rises."""
    rows = [
        {"model": "PPO", "kl": n, "score": float(n), "score_error": 0.01, "gold": g, "gold_error": 0.05}
        for n, g in enumerate(gold)
    ]
    return {"over_optimisation": rows}


def accuracies(training_labelers: float, held_out: float) -> dict:
    both = {"accuracy_training_labelers": rate(training_labelers), "accuracy_heldout_labelers": rate(held_out, 0.04)}
    return {"reward_model": both}


def overlap(number: int, total: int, what: str = "test prompts word for word in a training text") -> dict:
    return {"data": {"overlap": [{"what": what, "count": number, "total": total}]}}


TRAINING, HELD_OUT = "training labelers", "held-out labelers"
ORDER = ("GPT", "GPT (prompted)", "SFT", "PPO")
MIXTURES = ("T0-like", "FLAN-like", "SFT")
SIZES = ("M GPT", "XS PPO-ptx")
# Beginning of the claim -> results in which it holds, does not hold, and is not shown though it was measured.
CASES = [
    ("Training labelers prefer PPO", *(judged(r, TRAINING, ORDER) for r in (0.6, 0.4, 0.52))),
    ("Held-out labelers prefer the same", *(judged(r, HELD_OUT, ORDER) for r in (0.6, 0.4, 0.52))),
    ("Win rates by both groups", alike(0.02), alike(-0.06), alike(0.035)),
    ("The smallest PPO-ptx", *(judged(r, TRAINING, SIZES) for r in (0.6, 0.4, 0.52))),
    ("PPO is true and", *(gain("truth", "QA", "true and informative", v) for v in (11.0, 6.0, 9.0))),
    ("PPO is true more", *(gain("truth", "QA", "true", v) for v in (11.0, 6.0, 9.0))),
    # A fall of toxicity by 4 points; a rise; neither.
    ("Asked to be respectful", *(gain("toxicity", "respectful", "toxic", v) for v in (-4.0, 4.0, -2.0))),
    ("PPO pays", tax(6.0, None), tax(2.0, None), tax(4.0, None)),
    ("The pretraining mix", tax(6.0, 0.65), tax(6.0, 0.3), tax(6.0, 0.5)),
    ("The pretraining mix", tax(6.0, 0.65), tax(6.0, 0.3), tax(1.0, None)),
    ("Optimised further", training(3, 4, 4, 3), training(1, 2, 3, 4), training(3, 4, 4, 4)),
    # Half of the difference's interval: the root of 0.03^2 + 0.04^2, which is 0.05.
    ("The reward model", accuracies(0.76, 0.70), accuracies(0.70, 0.76), accuracies(0.74, 0.70)),
    ("SFT is preferred", *(judged(r, TRAINING, MIXTURES) for r in (0.6, 0.4, 0.52))),
    (
        "No test prompt, and no test task",
        overlap(0, 1200),
        overlap(1, 1200),
        overlap(0, 1200, "test prompts for a known task"),
    ),
]


def row_of(claim: str, *runs: dict) -> claims.ClaimRow:
    (row,) = [row for row in claim_rows(runs) if row.claim.startswith(claim)]
    return row


@pytest.mark.parametrize(("claim", "holds", "fails", "unclear"), CASES)
def test_each_claim_has_its_three_verdicts(claim, holds, fails, unclear):
    assert row_of(claim, holds).verdict == HOLDS
    assert row_of(claim, fails).verdict == FAILS
    assert row_of(claim, unclear).verdict == NOT_SHOWN


def test_one_reversed_pair_breaks_an_order():
    results = judged(0.6, TRAINING, ORDER)
    rates = results["judged"]["judges"][0]["win_rate_matrix"]["rates"]
    rates[3][2] = rate(0.45)  # PPO to SFT: 42 to 48%
    assert row_of("Training labelers", results).verdict == FAILS
    rates[3][2] = rate(0.49)
    assert row_of("Training labelers", results).verdict == NOT_SHOWN


def test_an_order_is_not_judged_without_all_its_models():
    row = row_of("Training labelers", judged(0.6, TRAINING, ("GPT", "GPT (prompted)", "SFT")))
    assert (row.measured, row.verdict) == (DASH, NOT_SHOWN)


def test_values_stand_in_the_order_of_the_seeds():
    row = row_of("PPO pays", tax(6.0, None), tax(7.0, None), {})
    assert row.measured == f"points: 6.0 (4.0 to 8.0) / 7.0 (5.0 to 9.0) / {DASH}"
    assert row.verdict == "not shown (holds in 2 of 3)"
    assert row_of("PPO pays", tax(6.0, None), tax(7.0, None)).verdict == HOLDS


def test_nothing_is_said_without_data():
    for row in claim_rows([{}]):
        assert row.verdict == NOT_SHOWN
        assert not any(character.isdigit() for character in row.measured), row
    with pytest.raises(ValueError, match="runs: found none"):
        claim_rows([])


def test_the_report_begins_with_claims_where_a_run_measures_them():
    made = sections.all_sections(make_results() | tax(6.0, 0.65), [], [])
    assert made[0].id == "claims"
    (table,) = made[0].tables
    assert {row[1].main for row in table.rows} <= {HOLDS, FAILS, NOT_SHOWN}
    without = {key: value for key, value in make_results().items() if key not in ("judged", "exams")}
    assert "claims" not in [section.id for section in sections.all_sections(without, [], [])]
