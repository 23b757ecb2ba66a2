"""Mixtures as FLAN's and T0's: right short answers, nothing twice, no user's wording, options in one of them alone."""

from collections import Counter

import pytest

from instructrl.worlds import mixtures
from instructrl.worlds.kinds import KINDS
from instructrl.worlds.language import SORTS
from instructrl.worlds.miniature import MiniatureWorld
from instructrl.worlds.mixtures import STYLES, MixtureConfig, instruction_mixture
from instructrl.worlds.overlap import Quotes
from instructrl.worlds.tasks import parse_prompt

WORLD = MiniatureWorld()
CONFIG = MixtureConfig(examples=1_500, cap_per_task=300, seed=7)
ROWS = {style: instruction_mixture(style, CONFIG, WORLD.facts) for style in STYLES}


def slots(text: str) -> set[str]:
    return set(mixtures._SLOT.findall(text))


@pytest.mark.parametrize("style", STYLES)
def test_every_datapoint_is_there_once(style):
    prompts = [row.prompt for row in ROWS[style]]
    assert len(prompts) == len(set(prompts)) == 1_500


@pytest.mark.parametrize("style", STYLES)
def test_no_wording_of_a_user_is_in_it(style):
    """None can be read as a user's prompt, and none quotes one."""
    texts = [row.prompt for row in ROWS[style]]
    assert not any(parse_prompt(text) for text in texts)
    asked = [prompt.text for split in ("train", "test") for prompt in WORLD.prompts(split, 2_000)]
    assert not Quotes(asked).found_in(texts)


def test_words_of_the_mixtures_are_words_of_the_world():
    known = set(WORLD.vocabulary())
    assert {
        word for rows in ROWS.values() for row in rows for word in f"{row.prompt} {row.completion}".split()
    } <= known


@pytest.mark.parametrize("style", STYLES)
def test_a_task_gives_no_more_than_the_cap(style, monkeypatch):
    """Seven tasks of 300 each would be 2,100; sorting has fewer, whatever the cap: some words in some templates."""
    monkeypatch.setattr(mixtures, "_TASKS", {name: mixtures._TASKS[name] for name in ("tone", "summary")})
    rows = instruction_mixture(style, MixtureConfig(examples=80, cap_per_task=40, seed=7), WORLD.facts)
    assert Counter(row.category for row in rows) == {"classification": 40, "summarization": 40}
    with pytest.raises(ValueError, match="examples: found 81, accepted are up to 80, which the tasks give with a cap"):
        instruction_mixture(style, MixtureConfig(examples=81, cap_per_task=40, seed=7), WORLD.facts)


def test_a_task_that_is_used_up_ends():
    """A colour, a food, an animal or a toy in three free templates, and never more."""
    most = 3 * sum(map(len, SORTS.values()))
    rows = [row for row in instruction_mixture("T0-like", CONFIG, WORLD.facts) if "sort" in row.prompt]
    sorting = [row for row in rows if row.completion.removesuffix(" .") in SORTS]
    assert 0 < len(sorting) <= most


def test_options_are_listed_in_one_style_alone():
    listing = {style: sum(" options : " in row.prompt for row in ROWS[style]) for style in STYLES}
    assert listing["T0-like"] == 0
    with_options = [row for row in ROWS["FLAN-like"] if row.category not in ("extract", "summarization")]
    assert listing["FLAN-like"] == len(with_options) > 0
    for row in with_options:
        options = row.prompt.partition(" options : ")[2].split(" . ")[0].removesuffix(" .").split(" , ")
        said = row.completion.removesuffix(" .").removeprefix("in the ").removeprefix("a ")
        assert said in options
        assert len(options) > 1


def test_answers_are_right():
    """Read from the prompts by rules written apart: words are counted, the odd one is not of the sort, a name owns."""
    counted = odd = owned = 0
    for row in ROWS["T0-like"]:
        words = row.prompt.split()
        if row.prompt.endswith("how many words did i write ?"):
            counted += 1
            assert row.completion == f"{('', 'one', 'two', 'three', 'four')[words.index('.')]} ."
        if row.prompt.startswith("all but one are of the sort "):
            odd += 1
            items = row.prompt.partition(" : ")[2].removesuffix(" .").split(" , ")
            assert [f"{item} ." for item in items if item not in SORTS[words[7]]] == [row.completion]
        if row.prompt.endswith("who could give it to me ?") and "plays" in words:
            owned += 1
            toy = words[words.index(".") - 1]
            assert row.completion == f"{words[words.index(toy, words.index('.')) - 4]} ."
    assert counted > 20
    assert odd > 20
    assert owned > 5


def test_answers_are_short():
    longest = Counter(len(row.completion.split()) for rows in ROWS.values() for row in rows)
    assert max(longest) == 9  # the fox found a kite in the barn .
    assert longest.most_common(1)[0][0] == 2


def test_texts_say_all_that_a_task_is_made_of():
    """For each wording of the kinds there is a text with the same slots, but for the sort, which the question has."""
    for category, kinds in mixtures._TASKS.values():
        for kind, row in kinds.items():
            assert KINDS[kind].category == category
            said = [slots(text) for text in row.texts]
            for wording in KINDS[kind].wordings:
                assert set(wording.slots) - {"sort"} in said
            for text in (*row.questions, *row.free, *row.options):
                assert slots(text) - {"text"} <= set().union(*(wording.slots for wording in KINDS[kind].wordings))


def test_seeds_and_styles_give_others():
    again = instruction_mixture("FLAN-like", CONFIG, WORLD.facts)
    assert again == ROWS["FLAN-like"]
    other = instruction_mixture("FLAN-like", MixtureConfig(examples=1_500, cap_per_task=300, seed=8), WORLD.facts)
    assert other != again
    assert not {row.prompt for row in again} & {row.prompt for row in ROWS["T0-like"]}
    with pytest.raises(ValueError, match="style: found 'GPT', accepted are 'FLAN-like', 'T0-like'"):
        instruction_mixture("GPT", CONFIG, WORLD.facts)
    with pytest.raises(ValueError, match="cap_per_task: found 0"):
        MixtureConfig(examples=1, cap_per_task=0, seed=0)
