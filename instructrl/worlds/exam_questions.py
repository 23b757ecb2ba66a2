"""The questions of exams: kinds of task that public test sets have, in formats that no user writes.

Each is an analogue of a set of the paper's appendix D: reading of SQuADv2, counting of DROP, translation of WMT,
reviews of SST, endings of HellaSwag, pronouns of WSC. None of them states a fact of the world, true or false.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from instructrl.worlds.exam_settings import ExamConfig
from instructrl.worlds.language import ANIMALS, COLOURS, FOODS, MOODS, NAMES, PLACES, TOYS

NEWLINE = "|"  # ends a question in documents, and so an answer
NOT_IN_PASSAGE = "not in passage"
VERDICTS = ("positive", "negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamQuestion:
    """block: all of it, up to its answer. answer: that stands behind it. core: what makes it this question whatever
    stands around it, by which it is kept out of documents. options: among which the answer is chosen; empty where it is
    written. group: what it is reported by as well."""

    block: str
    answer: str
    core: str
    options: tuple[str, ...] = ()
    group: str = ""


# ---- reading: what a passage says of somebody, then pairs of a question and its answer

_SLOTS: Mapping[str, tuple[str, ...]] = {
    "name": NAMES,
    "toy": TOYS,
    "animal": ANIMALS,
    "place": PLACES,
    "food": FOODS,
}
# What is said of somebody, behind the name, and how it is asked for.
_SAYINGS: Sequence[tuple[str, str]] = (
    ("has a {toy}", "what has {name} ?"),
    ("saw the {animal}", "what saw {name} ?"),
    ("left the {place}", "what left {name} ?"),
    ("likes {food}", "what likes {name} ?"),
)


def reading(rng: random.Random, config: ExamConfig) -> ExamQuestion:
    """Two sentences and a question about one of them, or about somebody whom neither names."""
    first = rng.choice(_SAYINGS)
    second = first if rng.random() < 0.5 else rng.choice(_SAYINGS)
    people = _three_people(rng)
    told = zip((first, second), people[:2], strict=True)
    said = [f"{values['name']} {saying[0].format(**values)} ." for saying, values in told]
    unanswerable = rng.random() < config.unanswerable
    asked = people[2 if unanswerable else 0]
    answer = NOT_IN_PASSAGE if unanswerable else first[0].format(**asked)
    rng.shuffle(said)
    # An answer is a sentence that is begun: a small model learns to go on with one long before it learns to find it.
    return ExamQuestion(
        block=f"passage : {' '.join(said)} question : {first[1].format(**asked)} answer : {asked['name']}",
        answer=answer,
        core=f"{asked['name']} {first[0].format(**asked)}",
        group="unanswerable" if unanswerable else "answerable",
    )


def _three_people(rng: random.Random) -> list[dict[str, str]]:
    """Who differ in all that may be said of them."""
    drawn = {slot: rng.sample(words, 3) for slot, words in _SLOTS.items()}
    return [{slot: words[place] for slot, words in drawn.items()} for place in range(3)]


# ---- counting

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
THINGS = ("kites", "drums", "books", "lamps", "boats", "hats", "bells", "cups")
_STOCK = "{thing} {a} , {thing2} {b} ."
_COUNTS: Mapping[str, tuple[str, str]] = {
    "lookup": (_STOCK, "how many {asked} ?"),
    "sum": (_STOCK, "how many things ?"),
    "difference": ("{thing} {a} . sold : {thing} {b} .", "how many {thing} are left ?"),
    "comparison": (_STOCK, "how many {thing} more ?"),
}


def counting(rng: random.Random, config: ExamConfig) -> ExamQuestion:
    """A number of a list, or a sum or difference of two of them."""
    kinds = [*_COUNTS]
    others = (1 - config.lookups) / (len(kinds) - 1)
    kind = rng.choices(kinds, weights=[config.lookups, *(others for _ in kinds[1:])])[0]
    thing, thing2 = rng.sample(THINGS, 2)
    a, b = rng.randint(1, config.max_number), rng.randint(1, config.max_number)
    if kind in ("difference", "comparison"):
        a, b = sorted(rng.sample(range(1, config.max_number + 1), 2), reverse=True)
    asks_first = rng.random() < 0.5
    answer = {"lookup": a if asks_first else b, "sum": a + b, "difference": a - b, "comparison": a - b}[kind]
    asked = {"lookup": thing if asks_first else thing2, "sum": "things", "difference": "left", "comparison": "more"}[
        kind
    ]
    values = {"thing": thing, "thing2": thing2, "asked": asked}
    passage, question = (text.format(a=NUMBERS[a - 1], b=NUMBERS[b - 1], **values) for text in _COUNTS[kind])
    return ExamQuestion(
        block=f"stock : {passage} question : {question} answer :",
        answer=f"{asked} {NUMBERS[answer - 1]}",
        core=f"{passage} {question}",
        group=kind,
    )


# ---- translation

VERBS = ("sees", "likes", "finds", "follows", "wants", "greets", "hears", "helps")
_NOUNS = (*ANIMALS[:20], *FOODS[:10], *TOYS[:8], *PLACES[:8])
_ADJECTIVES = (*COLOURS, *MOODS)
_TRANSLATED = (*_NOUNS, *_ADJECTIVES, *VERBS, "and", "not")
# As many words as are translated, none of them ours.
FOREIGN = tuple(
    a + b
    for a, b in product(
        ("ba", "de", "fi", "go", "ku", "la", "mo", "ne", "pi"),
        ("lor", "mek", "nis", "pur", "tav", "zin", "dro", "gam", "sul"),
    )
)[: len(_TRANSLATED)]
# N: a noun, A: an adjective, V: a verb
_SENTENCES = ("A N", "N V N", "N and N", "N not V N", "A N V N", "N V A N", "A N and N")


def lexicon(seed: int) -> Mapping[str, str]:
    """Our words -> theirs, dealt by the seed of the world."""
    return dict(zip(_TRANSLATED, random.Random(f"lexicon {seed}").sample(FOREIGN, len(FOREIGN)), strict=True))


def translation(rng: random.Random, words: Mapping[str, str]) -> ExamQuestion:
    """Into our language, from one without articles, whose adjectives stand behind their nouns. words: `lexicon`."""
    pattern = rng.choice(_SENTENCES).split()
    nouns, adjective, verb = rng.sample(_NOUNS, 2), rng.choice(_ADJECTIVES), rng.choice(VERBS)
    ours: list[str] = []
    theirs: list[str] = []
    for place, part in enumerate(pattern):
        if part == "N":
            described = place > 0 and pattern[place - 1] == "A"
            noun = nouns.pop()
            ours += ["the", adjective, noun] if described else ["the", noun]
            theirs += [words[noun], words[adjective]] if described else [words[noun]]
        elif part != "A":
            word = verb if part == "V" else part
            ours.append(word)
            theirs.append(words[word])
    answer = " ".join(ours)
    return ExamQuestion(
        block=f"foreign : {' '.join(theirs)} ours :", answer=answer, core=answer, group=f"{len(theirs)} words"
    )


# ---- reviews

# The first are the most frequent.
_GOOD = ("good", "great", "fresh", "sweet", "lovely", "fine", "nice", "perfect")
_BAD = ("bad", "awful", "stale", "sour", "dull", "bitter", "nasty", "horrid")
_FREQUENCIES = [1 / place for place in range(1, len(_GOOD) + 1)]
_REVIEWS: Mapping[str, str] = {
    "plain": "the {what} of {name} was {word} .",
    "negated": "the {what} of {name} was not {word} .",
    "turn": "the {what} was {other} but the {what2} was {word} .",
}


def reviews(rng: random.Random, config: ExamConfig) -> ExamQuestion:
    """Whether a review is positive: `not` turns it round, and what comes behind `but` decides."""
    kind = rng.choices([*_REVIEWS], weights=[1 - config.mixed_reviews, *[config.mixed_reviews / 2] * 2])[0]
    is_good = rng.random() < 0.5
    says_good = is_good != (kind == "negated")
    word, other = (rng.choices(_GOOD if good else _BAD, weights=_FREQUENCIES)[0] for good in (says_good, not says_good))
    what, what2 = rng.sample(FOODS, 2)
    text = _REVIEWS[kind].format(name=rng.choice(NAMES), what=what, what2=what2, word=word, other=other)
    verdict = VERDICTS[0 if is_good else 1]
    return ExamQuestion(block=f"review : {text} verdict :", answer=verdict, core=text, options=VERDICTS, group=kind)


# ---- endings

_NEEDS: Mapping[str, str] = {
    "hungry": "ate some bread",
    "tired": "went to bed",
    "cold": "sat by the fire",
    "bored": "read a book",
    "lost": "asked for the way",
    "sick": "called a doctor",
}


def endings(rng: random.Random, config: ExamConfig) -> ExamQuestion:
    """Which of four endings a story of two animals has; one of the wrong ones would be that of the other animal."""
    animals = rng.sample(ANIMALS, 2)
    needs = rng.sample([*_NEEDS], 4)
    asked = rng.randrange(2)
    options = [_NEEDS[need] for need in needs]
    answer = options[asked]
    rng.shuffle(options)
    told = [f"the {animal} was {need}" for animal, need in zip(animals, needs, strict=False)]
    is_plain = rng.random() < config.plain_stories
    story = told[asked] if is_plain else " and ".join(told)
    return ExamQuestion(
        block=f"story : {story} . ending : the {animals[asked]}",
        answer=answer,
        core=f"{story} {animals[asked]}",
        options=tuple(options),
        group="one animal" if is_plain else "two animals",
    )


# ---- pronouns: of an animal, a toy and a place, who is what

_LEFT = "the {animal} left the {toy} at the {place} because it was {reason} ."
# The first are the most frequent, and the last are hardly met.
_REASONS: Mapping[str, tuple[str, ...]] = {
    "animal": ("hungry", "tired", "clever", "lonely", "proud", "afraid", "angry", "shy", "thirsty", "greedy"),
    "toy": ("broken", "heavy", "torn", "cheap", "rusty", "cracked", "useless", "loose", "painted", "wooden"),
    "place": ("dark", "noisy", "empty", "crowded", "windy", "misty", "steep", "muddy", "dusty", "remote"),
}


def pronouns(rng: random.Random, config: ExamConfig) -> ExamQuestion:
    """What `it` means."""
    meant = rng.choice([*_REASONS])
    values = {sort: rng.choice(_SLOTS[sort]) for sort in _REASONS}
    places = range(1, len(_REASONS[meant]) + 1)
    reason = rng.choices(_REASONS[meant], weights=[1 / place**2 for place in places])[0]
    text = _LEFT.format(reason=reason, **values)
    return ExamQuestion(
        block=f"text : {text} it means :",
        answer=f"the {values[meant]}",
        core=text,
        options=tuple(f"the {word}" for word in values.values()),
        group=meant,
    )


def words_of_exams() -> set[str]:
    """All tokens that exams can write."""
    texts = [text for pair in _SAYINGS for text in pair]
    texts += [text for pair in _COUNTS.values() for text in pair]
    texts += [*_REVIEWS.values(), *_NEEDS.values(), _LEFT]
    texts += [
        NOT_IN_PASSAGE,
        NEWLINE,
        "passage : stock : more left question : answer : foreign : ours : review : verdict :",
    ]
    texts += ["story : the was and . ending : text : it means :", *map(" ".join, _REASONS.values())]
    found = {word for text in texts for word in text.split() if not word.startswith("{")}
    lists = (*_SLOTS.values(), NUMBERS, THINGS, _TRANSLATED, FOREIGN, VERDICTS, _GOOD, _BAD, tuple(_NEEDS))
    return found.union(*lists)
