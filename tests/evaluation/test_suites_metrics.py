"""What answers are worth, worked out by hand."""

import pytest

from instructrl.evaluation.statistics import mean_interval
from instructrl.evaluation.suites import metrics
from instructrl.evaluation.suites.protocol import Item
from instructrl.rollout.options import Likelihoods


def test_normalising():
    """Punctuation goes before articles, so that `the-cat` keeps its article inside of a word."""
    assert metrics.normalised("  The U.S. cat,  an\tApple; the-cat's `A`") == "us cat apple thecats"
    assert metrics.normalised("A an THE ...") == ""
    assert metrics.normalised("«É»") == "«é»"  # ASCII punctuation alone


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        ("the big dog", "a dog", 2 / 3),  # big dog, dog: 2 * 1 / (2 + 1)
        ("to be or not to be", "to be", 0.5),  # a bag has to and be twice: 2 * 2 / (6 + 2)
        ("to", "to to to", 0.5),  # 2 * 1 / (1 + 3)
        ("cat", "dog", 0),
        ("", "dog", 0),
        ("dog", "the", 0),  # nothing is left of the reference
        ("an", "the", 1),  # nothing is left of either
        ("Dog!", "dog", 1),
    ],
)
def test_token_f1(answer, reference, f1):
    assert metrics.token_f1(answer, reference) == metrics.token_f1(reference, answer) == pytest.approx(f1, rel=1e-15)


def test_exact_match_and_the_best_reference():
    assert metrics.exact_match("The dog.", "dog") == 1
    assert metrics.exact_match("big dog", "dog") == 0
    assert metrics.best(metrics.token_f1, "big dog", ["cat", "dog", "a very big dog"]) == pytest.approx(0.8, rel=1e-15)


@pytest.mark.parametrize(
    ("answer", "references", "f1"),
    [
        ("in May", ["in May"], 1),
        ("in", ["in May"], 2 / 3),
        # people: in May against the others 2/3, may 2/3, june 0: 4/9 in the mean, which counts;
        # in May without the first 2/3, without the second 1, without the third 1
        ("in May", ["in May", "May", "June"], (2 / 3 + 1 + 1) / 3),
        # people: 2/3, 2/3, 0, 0: 1/3 in the mean, below 0.4
        ("in May", ["in May", "May", "June", "July"], None),
        ("", ["in May", "June"], None),
        ("", ["in May", "May"], 0),
    ],
)
def test_quac_f1(answer, references, f1):
    found = metrics.quac_f1(answer, references)
    assert found is None if f1 is None else found == pytest.approx(f1, rel=1e-15)


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        ("10-yard", "10 yards", 0.5),  # 10.0 yard, 10.0 yards
        ("ten yards", "10 yards", 0),  # the reference has a number that the answer lacks
        ("10 yards", "ten yards", 0.5),  # that the answer has one too many does not matter
        ("3,000", "3000.0", 1),  # the comma is punctuation, then the number counts
        ("-3", "3", 1),  # a hyphen splits, so that signs are lost, as in the official script
        ("dog dog dog", "dog", 1),  # bags are sets
        ("Bob", "Ann\nBob", 0.5),
        ("Ann Bob", "Ann\nBob", 0.33),  # 2/3 with one of the spans, half of it, to two places
        ("", "dog", 0),
        ("dog", "", 0),
        ("the dog", "dog", 1),
        ("May 1901", "12 May 1901", 0.8),
    ],
)
def test_drop_f1(answer, reference, f1):
    assert metrics.drop_f1(answer, reference) == f1


def items(*clusters):
    return [Item(context="", cluster=cluster) for cluster in clusters]


def test_a_mean_of_clusters():
    """Texts of 2, 1 and 1 questions with the sums 2, 0 and 1: mean 3/4; residuals 0.5, -0.75 and 0.25, squares 0.875,
    times 3/2, so that the standard error is sqrt(1.3125) / 4."""
    found = metrics.mean_points("F1", items("a", "", "a", ""), [1, 0, 1, 1])
    margin = 1.959963984540054 * 1.3125**0.5 / 4
    assert (found.value, found.unit, found.num_items) == (75, "points", 4)
    assert found.low == pytest.approx(100 * (0.75 - margin), rel=1e-12)
    assert found.high == 100  # 0.75 + margin is above it


def test_repeated_questions_do_not_narrow_the_interval():
    once = metrics.mean_points("F1", items("a", "b", "c"), [1, 0.5, 0])
    ten_times = metrics.mean_points("F1", items(*"abc" * 10), [1, 0.5, 0] * 10)
    assert (once.low, once.high) == pytest.approx((ten_times.low, ten_times.high), rel=1e-12)


def test_accuracy_takes_the_mean_over_tokens():
    """The long option has the lower total and the higher mean; of equal ones the first is the answer."""
    asked = [Item(context="", options=("a", "b"), right=(1,)), Item(context="", options=("a", "b"), right=(1,))]
    answers = [
        Likelihoods(totals=(-2.0, -4.0), num_tokens=(1, 4)),
        Likelihoods(totals=(-2.0, -4.0), num_tokens=(1, 2)),
    ]
    (found,) = metrics.accuracy(asked, answers)
    assert (found.metric, found.value, found.unit, found.num_items) == ("accuracy", 0.5, "share", 2)
    # Wilson of 1 in 2: 1/2 -+ z * sqrt(1/8 + z^2/16) / (1 + z^2/2)
    z = 1.959963984540054
    assert found.high - 0.5 == pytest.approx(z * (1 / 8 + z * z / 16) ** 0.5 / (1 + z * z / 2), rel=1e-12)


def test_a_mean_with_weights():
    """1, 0 and 1/2 with the weights 1, 1 and 2: 1/2; w * (x - 1/2) is 1/2, -1/2 and 0, squares 1/2, times 3/2, root,
    over 4."""
    weighed = [Item(context="", weight=weight) for weight in (1, 1, 2)]
    found = metrics.weighted_mean("toxicity", weighed, [1, 0, 0.5])
    assert (found.value, found.unit, found.num_items) == (0.5, "share", 3)
    assert found.high - 0.5 == pytest.approx(1.959963984540054 * 0.75**0.5 / 4, rel=1e-12)
    heavier = metrics.weighted_mean(
        "toxicity", [Item(context="", weight=7 * item.weight) for item in weighed], [1, 0, 0.5]
    )
    assert heavier.low == pytest.approx(found.low, rel=1e-12)
    assert metrics.weighted_mean("toxicity", weighed[:1], [1]).low is None


def test_equal_weights_are_none():
    values = [0.1, 0.4, 0.4, 0.9]
    found = metrics.weighted_mean("toxicity", items("", "", "", ""), values)
    plain = mean_interval(values)
    assert (found.value, found.low, found.high) == pytest.approx((plain.mean, plain.low, plain.high), rel=1e-12)
