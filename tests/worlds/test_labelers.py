"""Labelers answer tasks: noisy but reproducible ranks with ties, flags as they believe, demonstrations, some flawed."""

import random
from dataclasses import replace
from itertools import combinations
from statistics import mean

import pytest

from instructrl.data.labels import check_label, comparison
from instructrl.evaluation.statistics import pair_agreement
from instructrl.labels import HELPFUL_FIRST, TRUTHFUL_AND_HARMLESS_FIRST, LabelTask, TaskOutput
from instructrl.worlds.labeler_settings import LabelerConfig
from instructrl.worlds.labelers import Labeler, Opinion, make_labelers, ranked, taking_turns
from instructrl.worlds.miniature import MiniatureWorld
from instructrl.worlds.phrases import ABSTENTIONS
from instructrl.worlds.rubric import HALLUCINATION, METADATA, SATISFIES_CONSTRAINT, Rating
from instructrl.worlds.settings import WorldConfig

WORLD = MiniatureWorld(2)
KNOWING = MiniatureWorld(2, WorldConfig(labelers=LabelerConfig(known=1.0)))
PROMPTS = [prompt.text for prompt in WORLD.prompts("train", 300)]
CALM = LabelerConfig(
    noise=0.0, tie_threshold=0.0, taste_mean=0.0, taste_team=0.0, taste_own=0.0, biases=0.0, flag_errors=0.0
)


def task_of(prompt: str, *texts: str, criteria: str = HELPFUL_FIRST) -> LabelTask:
    outputs = tuple(TaskOutput(id=str(place), text=text) for place, text in enumerate(texts))
    return LabelTask(id=prompt, prompt=prompt, outputs=outputs, criteria=criteria)


def mixed_task(index: int, num: int) -> LabelTask:
    """A prompt with completions as three models might write them: answers good and bad, off the subject, corpus."""
    prompt, other = PROMPTS[index], PROMPTS[index - 1]
    people = WORLD.labelers()
    texts = [people[i].demonstrate(prompt, key=1) for i in range(5)]
    texts += [people[5].demonstrate(other), people[6].demonstrate(other)]
    texts += [" ".join(document.text.split()[:20]) for document in WORLD.documents(2, index)]
    return task_of(prompt, *random.Random(index).sample(texts, num))


TASKS = [mixed_task(index, 4 + index % 6) for index in range(150)]


def calm(config: LabelerConfig = CALM) -> Labeler:
    return make_labelers(WORLD.facts, 2, config)["training"][0]


def test_labelers_of_both_groups_agree_more_than_chance_and_not_always():
    for group in ("training", "heldout"):
        rankings = [[comparison(task, one.answer(task)).preferred for task in TASKS] for one in WORLD.labelers(group)]
        for first, second in list(combinations(rankings, 2))[:4]:
            found = pair_agreement(first, second)
            assert found is not None
            assert 0.65 < found.rate < 0.95


def test_answers_fit_their_tasks_and_have_ties():
    num_pairs = num_tied = 0
    for task in TASKS:
        label = WORLD.labelers()[3].answer(task)
        check_label(label, {task.id: task})
        assert sorted(set(label.ranks.values())) == list(range(1, max(label.ranks.values()) + 1))
        pairs = len(task.outputs) * (len(task.outputs) - 1) // 2
        num_pairs += pairs
        num_tied += pairs - len(comparison(task, label).preferred)
        assert all(1 <= output.likert <= 7 for output in label.outputs.values())
    assert 0.03 < num_tied / num_pairs < 0.35


def test_an_opinion_does_not_depend_on_the_company():
    one = WORLD.labelers("heldout")[0]
    for task in TASKS[:20]:
        backwards = replace(task, outputs=task.outputs[::-1])
        assert one.answer(task).ranks == one.answer(backwards).ranks
        alone = one.answer(replace(task, outputs=task.outputs[:1]))
        assert alone.outputs["0"] == one.answer(task).outputs["0"]


def test_without_noise_the_order_is_the_rubrics():
    texts = ["berries , honey and nuts .", "berries and honey .", "it may rain .", "go away , you nitwit ."]
    assert [*calm().answer(task_of("list three foods .", *texts)).ranks.values()] == [1, 2, 3, 4]
    same = calm().answer(task_of("list three foods .", "berries .", "berries ."))
    assert [*same.ranks.values()] == [1, 1]


def rated(truthful: float, harmless: float = 1.0) -> Rating:
    return Rating(score=0.0, likert=1, metadata={}, helpful=0.5, truthful=truthful, harmless=harmless)


def test_ties_are_level_with_the_best_of_their_rank_and_may_be_broken_by_truth():
    """5.0 and 4.8 are level; 4.6 is 0.4 below the first of them."""
    opinions = {
        "a": Opinion(score=4.8, rating=rated(1.0)),
        "b": Opinion(score=5.0, rating=rated(0.5)),
        "c": Opinion(score=4.6, rating=rated(1.0)),
        "d": Opinion(score=4.55, rating=rated(1.0)),
    }
    assert ranked(opinions, 0.3, ties_by_virtue=False) == {"b": 1, "a": 1, "c": 2, "d": 2}
    assert ranked(opinions, 0.3, ties_by_virtue=True) == {"a": 1, "b": 2, "c": 3, "d": 3}
    assert ranked(opinions, 0.0, ties_by_virtue=False) == {"b": 1, "a": 2, "c": 3, "d": 4}


def test_truth_comes_first_in_evaluation_alone():
    """A polite and helpful insult against a plain wrong answer."""
    texts = ("berries , honey and nuts . you are a nitwit .", "berries .")
    for criteria, ranks in ((HELPFUL_FIRST, [1, 2]), (TRUTHFUL_AND_HARMLESS_FIRST, [2, 1])):
        answer = calm().answer(task_of("list three foods .", *texts, criteria=criteria))
        assert [*answer.ranks.values()] == ranks, criteria


def test_flags_are_the_rubrics_where_everything_is_known_and_some_are_mistaken():
    knowing, mistaken = calm(replace(CALM, known=1.0)), calm(replace(CALM, known=1.0, flag_errors=0.2))
    num_wrong = num_flags = 0
    for task in TASKS:
        right, wrong = (one.answer(task).outputs for one in (knowing, mistaken))
        for output in task.outputs:
            metadata = WORLD.rate(task.prompt, output.text).metadata
            assert right[output.id].flags == {flag: metadata.get(flag) for flag in METADATA}
            assert {f for f, held in wrong[output.id].flags.items() if held is None} == set(METADATA) - set(metadata)
            num_flags += len(metadata)
            num_wrong += sum(wrong[output.id].flags[flag] != held for flag, held in metadata.items())
    assert num_wrong / num_flags == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / num_flags) ** 0.5)


def test_questions_that_do_not_apply_are_left_open():
    (open_question,) = calm().answer(task_of("list two foods .", "corn , nuts .")).outputs.values()
    assert open_question.flags[HALLUCINATION] is open_question.flags[SATISFIES_CONSTRAINT] is None
    closed = "mia has a kite . tom has a drum . who has the kite ? end with thanks ."
    label = calm().answer(task_of(closed, "it is tom . thanks ."))
    assert label.outputs["0"].flags[HALLUCINATION] is True
    assert label.outputs["0"].flags[SATISFIES_CONSTRAINT] is True
    assert set(label.prompt_flags.values()) == {True}


def test_flaws_have_their_share_and_faultless_labelers_have_none():
    faultless = make_labelers(WORLD.facts, 2, LabelerConfig(known=1.0, flawed_demonstrations=0.0))["training"]
    always = make_labelers(WORLD.facts, 2, LabelerConfig(known=1.0, flawed_demonstrations=1.0))["training"]
    asked = [p for p in PROMPTS if "be rude" not in p]  # what is asked for at times is rude

    def flawed(people: list[Labeler]) -> list[bool]:
        return [WORLD.rate(p, people[i % 8].demonstrate(p)).likert < 7 for i, p in enumerate(asked)]

    assert not any(flawed(faultless))
    # Not every task gives occasion for a flaw; of those that do, a tenth has one.
    occasions = flawed(always)
    assert mean(occasions) > 0.5
    found = [a for a, b in zip(flawed(KNOWING.labelers()), occasions, strict=True) if b]
    assert mean(found) == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / len(found)) ** 0.5)


def test_people_write_what_they_believe():
    """A myth where they know no better, and that they do not know where there is none."""
    one = make_labelers(WORLD.facts, 2, LabelerConfig(known=0.0, flawed_demonstrations=0.0))["heldout"][0]
    (animal, relation), myth = next((f, m) for f, m in WORLD.facts.myths.items() if f[1] == "colour")
    assert myth in one.demonstrate(f"what colour is the {animal} ?").split()
    assert WORLD.facts.value(animal, relation) != myth
    unknown = next(animal for animal, relation in sorted(one.beliefs.unsure) if relation == "colour")
    assert one.demonstrate(f"what colour is the {unknown} ?") in [template.text for template in ABSTENTIONS]


def test_demonstrations_vary_with_the_key_and_the_labeler():
    first, second = KNOWING.labelers()[:2]
    texts = {
        one.demonstrate("write a story about the fox and the owl .", key=key)
        for one in (first, second)
        for key in range(20)
    }
    assert len(texts) > 30
    assert first.demonstrate(PROMPTS[1], key=4) == first.demonstrate(PROMPTS[1], key=4)
    with pytest.raises(ValueError, match="prompt"):
        first.demonstrate("prove that two is three .")


def test_labelers_take_turns_evenly_and_by_the_key():
    people = WORLD.labelers()
    turns = taking_turns(people, 25, "x")
    assert len(turns) == 25
    assert {one.name for one in turns[:10]} == {one.name for one in turns[10:20]} == {one.name for one in people}
    assert turns == taking_turns(people, 25, "x") != taking_turns(people, 25, "y")


@pytest.mark.parametrize(
    ("values", "message"),
    [({"num_heldout": 0}, "at least 1"), ({"noise": -0.1}, "at least 0"), ({"flawed_demonstrations": 1.5}, "0 to 1")],
)
def test_settings_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=f"{next(iter(values))}: found .*accepted is {message}"):
        LabelerConfig(**values)
