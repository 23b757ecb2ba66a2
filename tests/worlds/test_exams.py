"""Exams: what documents may hold, what is asked, and that its answers are right."""

import random
import re
from dataclasses import replace

import pytest

from instructrl.worlds.exam_questions import FOREIGN, NUMBERS, THINGS, ExamQuestion, lexicon
from instructrl.worlds.exam_settings import ExamConfig, ExamMix
from instructrl.worlds.exams import MAX_ANSWER_TOKENS, Exams
from instructrl.worlds.language import ANIMALS, PLACES, TOYS
from instructrl.worlds.miniature import MiniatureWorld
from instructrl.worlds.tasks import parse_prompt

EXAMS = Exams(100)
ITEMS = {name: EXAMS.items(name, 0) for name in EXAMS.names}
DOCUMENTS = [EXAMS.document(rng) for rng in [random.Random(7)] for _ in range(2000)]


def solved(text: str) -> list[str]:
    """The questions of a document with their answers."""
    return [f"{part} |" for part in text.removesuffix(" |").split(" | ")]


def parts(pattern: str, text: str) -> tuple[str, ...]:
    match = re.fullmatch(pattern, text)
    assert match, text
    return match.groups()


def only(**shares: float) -> ExamConfig:
    names = EXAMS.names
    return ExamConfig(mix=ExamMix(**{name: shares.get(name, 0.0) for name in names}))


def test_there_are_six_exams_of_two_hundred_different_items():
    assert EXAMS.names == ("reading", "counting", "translation", "reviews", "endings", "pronouns")
    for items in ITEMS.values():
        assert len({item.context for item in items}) == 200


def test_no_document_holds_an_item_and_items_would_be_found():
    assert EXAMS.num_leaked(DOCUMENTS) == 0
    held = EXAMS.item_texts()
    assert len(held) == 1200
    assert EXAMS.num_leaked([f"{solved(DOCUMENTS[0])[0]} {held[0]} {held[700]}"]) == 2


def test_documents_and_examples_hold_the_unreserved_and_items_the_reserved(monkeypatch):
    """By the core, whatever stands around it; a fifth is reserved."""
    asked: list[tuple[bool, ExamQuestion]] = []
    decide = Exams.is_reserved

    def listening(self: Exams, name: str, question: ExamQuestion) -> bool:
        answer = decide(self, name, question)
        asked.append((answer, question))
        return answer

    monkeypatch.setattr(Exams, "is_reserved", listening)
    exams, rng = Exams(101), random.Random(3)
    cores = {is_reserved: {q.core for found, q in asked if found == is_reserved} for is_reserved in (True, False)}
    assert not cores[True] & cores[False]
    items = {item.question for name in exams.names for item in exams.items(name, 0)}
    assert items <= {question.block for found, question in asked if found}
    asked.clear()
    documents = [exams.document(rng) for _ in range(600)]
    written = {block for text in documents for block in solved(text)}
    assert not written & {f"{q.block} {q.answer} |" for found, q in asked if found}
    assert 0.17 < sum(found for found, _ in asked) / len(asked) < 0.23
    shown = {part for name in exams.names for part in solved(exams.items(name, 3)[0].context)[:-1]}
    assert len(shown) == 18
    assert not shown & set(exams.item_texts())


def test_every_token_is_declared_and_only_the_newline_ends_a_question():
    words = Exams.vocabulary()
    texts = [*DOCUMENTS, *EXAMS.item_texts()]
    texts += [text for name in EXAMS.names for item in EXAMS.items(name, 3) for text in (item.context, *item.options)]
    assert {token for text in texts for token in text.split()} - words == set()
    assert not any("{" in word or not word for word in words)
    assert all("|" not in item.question.split() for items in ITEMS.values() for item in items)


def test_prompts_and_answers_fit():
    assert max(len(text.split()) for text in DOCUMENTS) <= 104
    for name in EXAMS.names:
        assert max(len(item.context.split()) for item in EXAMS.items(name, 3)) <= 104
        answers = [text for item in ITEMS[name] for text in (*item.references, *item.options)]
        assert max(len(text.split()) for text in answers) <= MAX_ANSWER_TOKENS


def test_examples_are_those_of_documents_and_the_same_for_all_items():
    for name in EXAMS.names:
        alone, behind = EXAMS.items(name, 0), EXAMS.items(name, 3)
        (before,) = {item.context.removesuffix(item.question) for item in behind}
        assert before.count("| ") == 3
        assert [item.question for item in alone] == [item.context for item in alone]
        assert [replace(item, context="") for item in alone] == [replace(item, context="") for item in behind]
        examples = solved(before.strip())
        assert len({text.split(" : ")[-1] for text in examples}) > 1  # not one answer again and again
    with pytest.raises(ValueError, match="shots: found 4, accepted are 0 to 3"):
        EXAMS.items("reading", 4)


def test_exams_say_nothing_of_facts_and_ask_nothing_that_users_ask():
    world = MiniatureWorld()
    assert [text for text in DOCUMENTS if world.facts.judge(text) != (0, 0)] == []
    assert [item.question for items in ITEMS.values() for item in items if parse_prompt(item.question)] == []


def test_a_share_of_zero_leaves_an_exam_out():
    documents = [Exams(3, only(counting=1.0)).document(random.Random(n)) for n in range(20)]
    assert all("how many" in text and "foreign" not in text for text in documents)
    with pytest.raises(ValueError, match="only shares of 0"):
        only()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"items": 0}, "items: found 0"),
        ({"shots": (0, 4)}, "shots: found"),
        ({"shots": ()}, "shots: found"),
        ({"max_questions": 2}, "max_questions: found 3 to 2"),
        ({"max_number": 6}, "max_number: found 6"),
        ({"reserved": 0.0}, "reserved: found 0.0"),
        ({"lookups": 1.5}, "lookups: found 1.5"),
    ],
)
def test_settings_say_what_they_accept(changes, message):
    with pytest.raises(ValueError, match=message):
        ExamConfig(**changes)


# ---- that answers are right, by other ways to them


def test_answers_about_a_passage_go_on_as_it_does_unless_it_has_none():
    seen = set()
    for item in ITEMS["reading"]:
        pattern = r"passage : (.*) \. question : what (\w+) (\w+) \? answer : (\w+)"
        passage, said, asked, begun = parts(pattern, item.question)
        (answer,) = item.references
        about = [line.removeprefix(f"{asked} ") for line in passage.split(" . ") if asked in line.split()]
        assert begun == asked
        assert about == ([answer] if item.group == "answerable" else [])
        assert answer == "not in passage" if not about else answer.startswith(said)
        seen.add(item.group)
    assert seen == {"answerable", "unanswerable"}


def test_numbers_are_counted():
    for item in ITEMS["counting"]:
        stock, question = parts(r"stock : (.*) question : how many (.*) \? answer :", item.question)
        said = [NUMBERS.index(word) + 1 for word in stock.split() if word in NUMBERS]
        things = [word for word in stock.split() if word in THINGS]
        asked, number = item.references[0].split()
        if item.group == "lookup":
            expected = said[things.index(question)]
        else:
            expected = sum(said) if item.group == "sum" else said[0] - said[1]
        assert number == NUMBERS[expected - 1]
        assert asked in question.split()
    assert {item.group for item in ITEMS["counting"]} == {"lookup", "sum", "difference", "comparison"}


def test_translations_have_each_word_and_the_adjective_behind_its_noun():
    words = lexicon(100)
    assert len(set(words.values())) == len(words) == len(FOREIGN)
    assert not set(FOREIGN) & set(words)
    back = {theirs: ours for ours, theirs in words.items()}
    assert lexicon(101) != words
    assert set(lexicon(101)) == set(words)
    swapped = 0
    for item in ITEMS["translation"]:
        ours = item.references[0].replace("the ", "").split()
        theirs = [back[word] for word in item.question.removeprefix("foreign : ").removesuffix(" ours :").split()]
        assert sorted(ours) == sorted(theirs)
        assert 2 <= len(ours) <= 4
        swapped += ours != theirs
    assert 80 < swapped < 200  # sentences without an adjective stay in order


def test_reviews_endings_and_pronouns_have_one_right_option():
    for name, number in (("reviews", 2), ("endings", 4), ("pronouns", 3)):
        for item in ITEMS[name]:
            assert [item.options[place] for place in item.right] == [*item.references]
            assert len(set(item.options)) == len(item.options) == number
    good = {"good", "great", "fresh", "sweet", "lovely", "fine", "nice", "perfect"}
    for item in ITEMS["reviews"]:
        last = item.question.split(" but ")[-1]
        is_good = bool(good & {*last.split()})
        assert item.references == ("positive" if is_good != (" not " in last) else "negative",)
    sorts = {"animal": ANIMALS, "toy": TOYS, "place": PLACES}
    reasons: dict[str, set[str]] = {sort: set() for sort in sorts}
    for item in ITEMS["pronouns"]:
        pattern = r"text : the (\w+) left the (\w+) at the (\w+) because it was (\w+) . it means :"
        *nouns, reason = parts(pattern, item.question)
        assert item.options == tuple(f"the {noun}" for noun in nouns)
        assert item.references[0].removeprefix("the ") in sorts[item.group]
        reasons[item.group].add(reason)
    every = [reason for found in reasons.values() for reason in found]
    assert len(set(every)) == len(every)  # each reason is that of one sort


def test_the_ending_of_a_story_is_that_of_the_need_of_its_animal():
    needs: dict[str, set[str]] = {}
    for item in ITEMS["endings"]:
        story, asked = parts(r"story : (.*) \. ending : the (\w+)", item.question)
        told: dict[str, str] = dict(re.findall(r"the (\w+) was (\w+)", story))
        needs.setdefault(told[asked], set()).add(item.references[0])
        assert len(told) == (1 if item.group == "one animal" else 2)
    assert len(needs) == 6
    assert {len(found) for found in needs.values()} == {1}
