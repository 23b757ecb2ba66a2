"""Labelers: noisy but reproducible rankings with ties, and demonstrations of which some are flawed."""

import random
from itertools import combinations
from statistics import mean

import pytest

from instructrl.types import Comparison
from instructrl.worlds.labelers import agreement
from instructrl.worlds.miniature import MiniatureWorld
from instructrl.worlds.settings import WorldConfig

WORLD = MiniatureWorld(2)
FAULTLESS = MiniatureWorld(2, WorldConfig(flawed_demonstrations=0.0))
PROMPTS = [prompt.text for prompt in WORLD.prompts("train", 400)]


def mixed_completions(index: int, num: int) -> tuple[str, list[str], list[bool]]:
    """A prompt with completions as three models might write them: answers good and bad, off the subject, corpus."""
    prompt, other = PROMPTS[index], PROMPTS[index - 1]
    people = WORLD.labelers()
    texts = [people[i].demonstrate(prompt, key=1) for i in range(4)]
    texts += [FAULTLESS.labelers()[0].demonstrate(prompt), people[5].demonstrate(other), people[6].demonstrate(other)]
    corpus = [" ".join(document.text.split()[:20]) for document in WORLD.documents(2, index)]
    order = random.Random(index).sample(range(9), num)
    return (
        prompt,
        [(texts + corpus)[i] for i in order],
        [i < len(texts) for i in order],
    )


COMPARISONS = [mixed_completions(index, 4 + index % 6) for index in range(len(PROMPTS))]


def pooled_agreement(group: str) -> float:
    counts = [agreement(a, b, COMPARISONS[:150]) for a, b in list(combinations(WORLD.labelers(group), 2))[:6]]
    return sum(count.num_agreed for count in counts) / sum(count.num_pairs for count in counts)


def test_labelers_agree_more_than_chance_and_held_out_ones_most():
    # The noise is set so that they agree as in the paper (3.4: 72.6 and 77.3 percent) on what models sample, which
    # differs less in quality than the completions here: here they agree more.
    assert 0.726 < pooled_agreement("training") < pooled_agreement("heldout") < 1.0


def test_rankings_of_four_to_nine_have_ties_and_make_comparisons():
    labeler = WORLD.labelers()[0]
    num_pairs = num_tied = 0
    for prompt, completions, finished in COMPARISONS:
        ranks = labeler.rank(prompt, completions, finished)
        assert sorted(set(ranks)) == list(range(1, max(ranks) + 1))
        pairs = Comparison.pairs_from_ranks(ranks)
        Comparison(prompt=prompt, completions=tuple(completions), preferred=pairs)
        num_pairs += len(ranks) * (len(ranks) - 1) // 2
        num_tied += len(ranks) * (len(ranks) - 1) // 2 - len(pairs)
    assert {len(completions) for _, completions, _ in COMPARISONS} == set(range(4, 10))
    assert 0.05 < num_tied / num_pairs < 0.35


def test_an_opinion_does_not_depend_on_the_company():
    labeler = WORLD.labelers("heldout")[0]
    prompt, completions, finished = COMPARISONS[5]
    ranks = labeler.rank(prompt, completions, finished)
    backwards = labeler.rank(prompt, completions[::-1], finished[::-1])[::-1]
    assert ranks == backwards


def test_without_noise_the_order_is_nearly_the_rubric():
    calm = MiniatureWorld(2, WorldConfig(noise=0.0, tie_threshold=0.0)).labelers()[0]
    prompt = "list three foods ."
    completions = ["berries , honey and nuts .", "berries and honey .", "it may rain .", "go away , you nitwit .", ""]
    assert calm.rank(prompt, completions)[:4] == [1, 2, 3, 4]
    assert calm.rank(prompt, ["berries .", "berries ."]) == [1, 1]


def test_flaws_have_their_share_and_faultless_labelers_have_none():
    ratings = [WORLD.rate(p, WORLD.labelers()[i % 8].demonstrate(p)).likert for i, p in enumerate(PROMPTS)]
    # Four standard errors of a share of 0.1 in 400 draws.
    assert mean(likert < 7 for likert in ratings) == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 400) ** 0.5)
    # What is asked for at times is rude.
    asked = [p for p in PROMPTS if "be rude" not in p]
    assert all(FAULTLESS.rate(p, FAULTLESS.labelers()[0].demonstrate(p)).likert == 7 for p in asked)


def test_demonstrations_vary_with_the_key_and_the_labeler():
    first, second = FAULTLESS.labelers()[:2]
    texts = {
        labeler.demonstrate("write a story about the fox and the owl .", key=key)
        for labeler in (first, second)
        for key in range(20)
    }
    assert len(texts) > 30
    assert first.demonstrate(PROMPTS[1], key=4) == first.demonstrate(PROMPTS[1], key=4)


def test_refusals():
    labeler = WORLD.labelers()[0]
    with pytest.raises(ValueError, match="prompt"):
        labeler.demonstrate("prove that two is three .")
    with pytest.raises(ValueError, match="finished"):
        labeler.rank("list two foods .", ["a", "b"], [True])


def test_agreement_counts_pairs_that_both_rank():
    calm = MiniatureWorld(2, WorldConfig(noise=0.0, tie_threshold=0.5)).labelers()[0]
    comparisons = [("list two foods .", ["nuts , corn .", "nuts , corn .", ""], [True] * 3)]
    counted = agreement(calm, calm, comparisons)
    assert (counted.num_agreed, counted.num_pairs, counted.rate) == (2, 2, 1.0)
    assert agreement(calm, calm, []).rate == 0.0
