"""Table 14 as data: rows of the paper as they are printed there, and what suites are to find in it."""

import pytest

from instructrl.evaluation.suites.paper import MODELS, NOTES, NUM_ITEMS, PAPER, SIZES, UNITS
from instructrl.evaluation.suites.table import SUITES

# As printed: GPT, SFT, PPO and PPO-ptx, each of 1.3B, 6B and 175B.
PRINTED = {
    ("winogender", "basic", 0, "entropy"): ".750 .721 .735 .583 .535 .503 .698 .587 .618 .760 .719 .737",
    ("winogender", "biased", 0, "entropy"): ".760 .773 .783 .561 .516 .540 .706 .567 .564 .676 .543 .690",
    ("crows_pairs", "respectful", 0, "entropy"): ".419 .413 .362 .302 .260 .204 .281 .258 .270 .310 .273 .243",
    ("realtoxicity", "respectful", 0, "toxicity"): ".211 .232 .233 .196 .196 .199 .198 .176 .205 .179 .204 .196",
    ("truthfulqa", "QA", 0, "true"): ".312 .220 .284 .324 .436 .515 .546 .586 .755 .297 .476 .712",
    ("truthfulqa", "QA + instruct", 0, "true"): ".335 .348 .438 .517 .659 .852 .807 .760 .944 .322 .494 .610",
    (
        "truthfulqa",
        "QA + instruct",
        0,
        "true and informative",
    ): ".218 .267 .242 .288 .319 .206 .789 .704 .588 .242 .399 .315",
    ("hellaswag", "", 0, "accuracy"): ".549 .673 .781 .528 .672 .753 .507 .646 .743 .552 .690 .807",
    ("hellaswag", "", 15, "accuracy"): ".550 .677 .791 .516 .657 .741 .530 .671 .759 .559 .694 .820",
    ("wsc", "", 15, "accuracy"): ".587 .654 .798 .615 .625 .779 .625 .596 .654 .644 .673 .788",
    ("rte", "", 0, "accuracy"): ".527 .617 .563 .487 .516 .570 .480 .708 .704 .538 .657 .668",
    ("sst", "", 15, "accuracy"): ".842 .930 .944 .909 .933 .936 .794 .880 .944 .838 .923 .938",
    ("quac", "", 2, "F1"): "36.02 41.78 45.38 35.95 43.13 48.77 31.81 40.63 36.00 39.40 42.42 46.99",
    ("squad_v2", "", 0, "F1"): "51.97 58.66 64.30 36.88 46.53 57.67 45.37 47.42 43.68 45.46 47.23 59.85",
    ("drop", "", 4, "F1"): "25.43 30.08 35.27 23.84 30.99 35.85 21.61 27.11 27.78 23.89 29.39 33.34",
    ("wmt15_fr_en", "", 0, "BLEU"): "30.65 34.99 38.92 25.56 33.25 36.90 19.85 25.22 24.16 25.77 30.41 34.28",
    ("cnn_dm", "", 0, "ROUGE-L"): ".182 .197 .196 .198 .235 .225 .218 .231 .227 .214 .231 .220",
}
SHOTS = {"hellaswag": 15, "wsc": 15, "rte": 15, "sst": 15, "quac": 2, "squad_v2": 4, "drop": 4, "wmt15_fr_en": 15}


@pytest.mark.parametrize(("suite", "prompt", "shots", "metric"), PRINTED)
def test_rows_are_those_of_the_paper(suite, prompt, shots, metric):
    found = PAPER[suite, prompt, shots][metric]
    values = [found[model][size] for model in MODELS for size in SIZES]
    assert values == [float(text) for text in PRINTED[suite, prompt, shots, metric].split()]


def test_how_many_rows_there_are():
    """3 wordings of three sets, and of TruthfulQA with two metrics; 8 sets with and without examples; 2 summaries."""
    assert sum(map(len, PAPER.values())) == 3 * 3 + 3 * 2 + 8 * 2 + 2
    assert {key for key in PAPER if key[2]} == {(suite, "", shots) for suite, shots in SHOTS.items()}
    assert {suite for suite, *_ in PAPER} == set(NUM_ITEMS)
    assert {metric for metrics in PAPER.values() for metric in metrics} == set(UNITS)
    assert set(NOTES) <= set(NUM_ITEMS)


def test_values_lie_where_their_units_say():
    for metrics in PAPER.values():
        for metric, models in metrics.items():
            values = [value for sizes in models.values() for value in sizes.values()]
            assert len(values) == 12
            low, high = {"bits": (0, 1), "share": (0, 1), "points": (10, 100)}[UNITS[metric]]
            assert all(low < value < high for value in values)


def test_two_rows_are_the_same_in_the_paper():
    assert PAPER["cnn_dm", "", 0] == PAPER["tldr", "", 0]


def test_names_are_those_of_the_suites():
    assert {"drop", "quac", "squad_v2", "hellaswag", "rte", "sst", "wsc", "wmt15_fr_en", "cnn_dm", "tldr"} <= set(
        SUITES
    )
    assert set(NUM_ITEMS) - {"realtoxicity"} <= set(SUITES)
