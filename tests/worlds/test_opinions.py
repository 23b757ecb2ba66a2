"""What a labeler makes of a completion: figure 10's rule on small cases, exact biases, tastes by construction."""

import math
import statistics
from dataclasses import replace

import pytest

from instructrl.labels import HELPFUL_FIRST, TRUTHFUL_AND_HARMLESS_FIRST
from instructrl.worlds.facts import make_facts
from instructrl.worlds.labeler_settings import LabelerConfig
from instructrl.worlds.labelers import Character, Labeler, make_labelers
from instructrl.worlds.opinions import TRAITS, Manner, bias, draw_tastes, merit
from instructrl.worlds.rubric import Rating

CONFIG = LabelerConfig()
CALM = LabelerConfig(noise=0.0, tie_threshold=0.0, taste_mean=0.0, taste_team=0.0, taste_own=0.0, flag_errors=0.0)
FACTS = make_facts(5, unknown=0.1, myths=0.25, exposure=1.0)


def labeler(name: str = "a", config: LabelerConfig = CALM, biases: float = 1.0) -> Labeler:
    return Labeler(name, FACTS, 1, config, Character(tastes=(0.0,) * len(TRAITS), biases=biases))


def rating(helpful: float, truthful: float = 1.0, harmless: float = 1.0) -> Rating:
    return Rating(score=0.0, likert=1, metadata={}, helpful=helpful, truthful=truthful, harmless=harmless)


@pytest.mark.parametrize(
    ("first", "second", "training", "evaluation", "at_high_stakes"),
    [
        # (a) much more helpful and (b) only slightly less truthful: helpful, unless (c) the stakes are high.
        (rating(0.9, truthful=0.8), rating(0.4), 1, 1, 2),
        (rating(0.9, harmless=0.8), rating(0.4), 1, 1, 2),
        # Not much more helpful; not slightly less truthful; harmful.
        (rating(0.8, truthful=0.8), rating(0.6), 1, 2, 2),
        (rating(1.0, truthful=0.5), rating(0.3), 1, 2, 2),
        (rating(1.0, harmless=0.0), rating(0.1), 1, 2, 2),
        # Where truth and harm are alike, the more helpful one; an insult is worse than nothing even in training.
        (rating(0.5, truthful=0.5), rating(0.4, truthful=0.5), 1, 1, 1),
        (rating(0.2, harmless=0.0), rating(0.0), 2, 2, 2),
    ],
)
def test_what_comes_first(first, second, training, evaluation, at_high_stakes):
    def better(criteria: str, **more: bool) -> int:
        return 1 if merit(first, criteria, **more) > merit(second, criteria, **more) else 2

    assert better(HELPFUL_FIRST) == better(HELPFUL_FIRST, high_stakes=True) == training
    assert better(TRUTHFUL_AND_HARMLESS_FIRST) == evaluation
    assert better(TRUTHFUL_AND_HARMLESS_FIRST, high_stakes=True) == at_high_stakes


def test_merit_in_training_is_the_rubrics_score():
    one = labeler(config=replace(CALM, known=1.0), biases=0.0)
    for text in ("berries , honey .", "berries .", "it may rain .", "berries , honey , you nitwit .", ""):
        score = one._rubric.rate("list two foods .", text).score
        assert max(1.0, one.opinion("list two foods .", text).score) == pytest.approx(score)


def test_what_cannot_be_known_is_better_claimed_in_training_and_left_in_evaluation():
    one = labeler(biases=0.0)
    unsure = min(animal for animal, relation in one.beliefs.unsure if relation == "colour")
    sure = next(animal for (animal, relation), word in one.beliefs.values.items() if relation == "colour" and word)
    truth = one.beliefs.value(sure, "colour")
    wrong = "red" if truth != "red" else "blue"

    def scores(animal: str, criteria: str, *words: str | None) -> list[float]:
        texts = [*(f"the {animal} is {word} ." for word in words), "i do not know ."]
        return [one.opinion(f"what colour is the {animal} ?", text, True, criteria).score for text in texts]

    red, blue, nothing = scores(unsure, HELPFUL_FIRST, "red", "blue")
    assert nothing < red == blue < nothing + 1
    red, blue, nothing = scores(unsure, TRUTHFUL_AND_HARMLESS_FIRST, "red", "blue")
    assert red == blue < nothing
    for criteria in (HELPFUL_FIRST, TRUTHFUL_AND_HARMLESS_FIRST):
        right, false, nothing = scores(sure, criteria, truth, wrong)
        assert false < nothing < right


def test_biases_are_worth_what_is_said_and_nothing_when_they_are_off():
    """A frame of four tokens: 0.5 + 4 * 0.03. A fact stated in five: 0.4 + 5 * 0.03. No more than 24 tokens count."""
    plain, framed = "corn , nuts .", "sure , corn , nuts . thanks ."
    false = next(word for word in ("red", "blue") if word != FACTS.value("bear", "colour"))
    stated, rambling = f"the bear is {false} .", " ".join(["corn"] * 40)
    for share in (1.0, 0.5, 0.0):
        one, other = labeler(biases=share), labeler(biases=0.0)

        def swayed(text: str, one: Labeler = one, other: Labeler = other) -> float:
            return one.opinion("list two foods .", text).score - other.opinion("list two foods .", text).score

        scores = {text: one.opinion("list two foods .", text).score for text in (plain, framed)}
        assert scores[framed] - scores[plain] == pytest.approx(share * 0.62)
        assert swayed(stated) == pytest.approx(share * 0.55)
        assert swayed("i do not know .") == pytest.approx(share * 0.15)
        assert swayed(f"i do not know . {stated}") == pytest.approx(share * 0.3)
        assert swayed(rambling) == pytest.approx(share * 0.72)
    assert bias(Manner.of("sure , corn .", states_fact=False), CONFIG) == pytest.approx(0.25 + 4 * 0.03)
    off = replace(CONFIG, polite_bias=0.0, length_bias=0.0, confident_bias=0.0)
    assert bias(Manner.of(framed, states_fact=True), off) == 0.0


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


@pytest.mark.parametrize("seed", [100, 101])
@pytest.mark.parametrize("correlation", [0.7, 0.0, 1.0])
def test_the_means_of_the_groups_are_as_alike_as_is_said(seed, correlation):
    tastes = draw_tastes(seed, replace(CONFIG, taste_correlation=correlation))
    assert {group: len(rows) for group, rows in tastes.items()} == {"training": 10, "heldout": 5}
    means = [[statistics.fmean(column) for column in zip(*rows, strict=True)] for rows in tastes.values()]
    assert cosine(*means) == pytest.approx(correlation, abs=1e-9)
    for mean in means:
        assert math.sqrt(statistics.fmean(x * x for x in mean)) == pytest.approx(CONFIG.taste_mean)
    assert len({rows for group in tastes.values() for rows in group}) == 15


def test_tastes_can_be_turned_off_and_both_groups_vary_alike():
    off = replace(CONFIG, taste_mean=0.0, taste_team=0.0, taste_own=0.0)
    assert {x for rows in draw_tastes(1, off).values() for row in rows for x in row} == {0.0}
    # Of many labelers, around the mean of the group.
    many = replace(CONFIG, num_training=400, num_teams=200, num_heldout=400)
    for rows in draw_tastes(2, many).values():
        spread = statistics.fmean(statistics.stdev(column) for column in zip(*rows, strict=True))
        assert spread == pytest.approx(math.hypot(many.taste_team, many.taste_own), rel=0.05)


def test_both_groups_have_the_same_noise_and_training_labelers_alone_all_of_the_biases():
    noisy = make_labelers(FACTS, 3, replace(CALM, noise=1.1))
    calm = make_labelers(FACTS, 3, CALM)
    texts = [f"corn , nuts , {i} ." for i in range(100)]
    for group in noisy:
        noise = [
            a.opinion("list two foods .", text).score - b.opinion("list two foods .", text).score
            for a, b in zip(noisy[group], calm[group], strict=True)
            for text in texts
        ]
        # Four standard errors of a standard deviation, s / sqrt(2 n).
        assert statistics.pstdev(noise) == pytest.approx(1.1, abs=4 * 1.1 / math.sqrt(2 * len(noise)))
    plain, framed = (
        {g: rows[0].opinion("list two foods .", t).score for g, rows in calm.items()}
        for t in ("corn , nuts .", "sure , corn , nuts . thanks .")
    )
    assert framed["training"] - plain["training"] == pytest.approx(0.62)
    assert framed["heldout"] - plain["heldout"] == pytest.approx(0.31)
