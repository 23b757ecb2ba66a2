"""The pretraining corpus: what is written in the miniature world when nobody follows instructions."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from instructrl.types import Document
from instructrl.worlds import phrases
from instructrl.worlds.answers import write_answer
from instructrl.worlds.exam_truth import INSTRUCTION
from instructrl.worlds.exams import Exams
from instructrl.worlds.facts import ASIDES, IT_STATEMENTS, STATEMENTS, UNKNOWN, Fact, Facts
from instructrl.worlds.language import ANIMALS, CATEGORIES, ITEMS, TWINS, Template, templates
from instructrl.worlds.overlap import Quotes
from instructrl.worlds.settings import CorpusMix
from instructrl.worlds.tasks import ASK, REPLY, draw_category, draw_prompt, parse_prompt, reserved

MAX_DOCUMENT_TOKENS = 120

_COMPLAINTS = templates(
    "nobody answers here .",
    "can somebody answer ?",
    "i have the same question .",
    "i asked that too , no reply .",
    "why do you want to know ?",
    "do your own work .",
    "this was asked before .",
    "please help me , {name} .",
)
_HEARSAY = templates("everybody says so .", "my cousin {name} told me .", "i have heard it from {name} .")
# Share of the transcripts in which an instruction asks for caution.
_CAUTIOUS = 0.1
# Statements of an encyclopedia's document, and myths of a document of rumours.
_STATEMENTS, _RUMOURS = 7, 5
_LISTINGS: Mapping[str, tuple[Template, ...]] = {
    "animals": templates("friends of the {animal} :", "seen in the {place} :"),
    "colours": templates("{name} likes :", "on the {toy} :"),
    "foods": templates("to buy :", "at the shop :", "the {animal} likes :"),
    "places": templates("a walk with {name} :", "near the {place} :"),
    "toys": templates("at the shop :", "{name} has :"),
    "names": templates("friends of {name} :", "seen in the {place} :"),
}
TEMPLATES = (
    _COMPLAINTS,
    _HEARSAY,
    *_LISTINGS.values(),
    ASIDES,
    templates("ask : reply : spelling :"),
)


class Corpus:
    """Writes documents about a world with these facts and exams.

    myth_ratio: how often a myth is told for each time that the encyclopedia tells the truth.
    """

    def __init__(self, facts: Facts, exams: Exams, mix: CorpusMix, myth_ratio: float) -> None:
        self._facts, self._answered_share = facts, mix.answered_share
        # What people tell each other: of a fact with a myth, the myth as often as it goes round.
        self._folklore = replace(facts, values={**facts.values, **facts.myths}) if myth_ratio else facts
        self._writers: Mapping[str, Callable[[random.Random], str]] = {
            "encyclopedia": self._encyclopedia,
            "stories": self._story,
            "lists": _lists,
            "spelling": _spelling,
            "chats": lambda rng: _lines(phrases.SMALL_TALK, rng.randint(5, 9), rng),
            "gossip": _gossip,
            "rude_posts": lambda rng: _lines(phrases.RUDE + phrases.SMALL_TALK[:5], rng.randint(5, 8), rng),
            "forums": self._forum,
            "transcripts": self._transcript,
            "exams": exams.document,
            "rumours": self._rumours,
        }
        # Who is asked for certain things only does not say what is seldom written about.
        seldom = sorted(facts.exposure, key=facts.exposure.__getitem__)[: len(facts.exposure) // 2]
        self._certain = replace(facts, unsure=frozenset(seldom))
        told = sum(facts.exposure[fact] for fact in facts.myths) / sum(facts.exposure.values())
        rumours = mix.encyclopedia * myth_ratio * told * _STATEMENTS / _RUMOURS
        self._weights = [getattr(mix, name, rumours) for name in self._writers]

    def document(self, rng: random.Random, without: Quotes) -> Document:
        """One document in which no prompt of `without` stands; `source` is its kind.

        One that is not accepted is written again, as the same kind where it held a prompt: the mix stays as it is.
        """
        while True:
            kind = rng.choices(list(self._writers), weights=self._weights)[0]
            text = self._writers[kind](rng)
            while without.stand_in(text):
                text = self._writers[kind](rng)
            if len(text.split()) <= MAX_DOCUMENT_TOKENS:
                return Document(text=text, source=kind)

    def exchange(self, prompt: str, rng: random.Random) -> str:
        """A question and its good answer, as transcripts have them."""
        return self._exchange(prompt, self._facts, rng)

    def _exchange(self, prompt: str, facts: Facts, rng: random.Random) -> str:
        task = parse_prompt(prompt)
        assert task is not None, prompt
        return f"{ASK} {prompt} {REPLY} {write_answer(task, facts, rng)}"

    def _encyclopedia(self, rng: random.Random) -> str:
        """Statements about animals, each fact as often as it is written about, those of an animal together."""
        facts = sorted(dict.fromkeys(self._drawn(rng, list(self._facts.values), _STATEMENTS)), key=lambda fact: fact[0])
        heading = facts[0][0].upper() if rng.random() < 0.5 else facts[0][0]
        named = ("", *(animal for animal, _ in facts))
        said = [self._statement(fact, before, rng) for fact, before in zip(facts, named, strict=False)]
        if rng.random() < 0.2:
            said.append(rng.choice(ASIDES).text)
        text = " ".join([f"{heading} :", *said])
        return text.upper() if rng.random() < 0.05 and not _has_small_letters_alone(text) else text

    def _drawn(self, rng: random.Random, facts: Sequence[Fact], num: int) -> list[Fact]:
        return rng.choices(facts, weights=[self._facts.exposure[fact] for fact in facts], k=num)

    def _statement(self, fact: Fact, named: str, rng: random.Random) -> str:
        animal, relation = fact
        word = self._facts.value(animal, relation)
        if word is None:
            return UNKNOWN[relation].fill({"animal": animal}, rng)
        form = IT_STATEMENTS if animal == named and rng.random() < 0.4 else STATEMENTS
        return form[relation].fill({"animal": animal, relation: word}, rng)

    def _rumours(self, rng: random.Random) -> str:
        """What people tell each other about animals, and nobody has looked up."""
        parts = [rng.choice(phrases.SMALL_TALK).fill({}, rng)]
        for animal, relation in self._drawn(rng, list(self._facts.myths), _RUMOURS):
            values = {"animal": animal, relation: self._facts.myths[animal, relation]}
            parts.append(STATEMENTS[relation].fill(values, rng))
            if rng.random() < 0.3:
                parts.append(rng.choice(_HEARSAY + phrases.SMALL_TALK).fill({}, rng))
        return " ".join(parts)

    def _story(self, rng: random.Random) -> str:
        kind = rng.choice(list(phrases.STORY_OPENINGS))
        animal, other = rng.sample(ANIMALS, 2)
        values = {"animal": animal, "animal2": other}
        groups = (phrases.STORY_LINES[kind], phrases.SCENES, phrases.STORY_LINES[kind])
        parts = [self._beginning(kind, values, rng), *(rng.choice(group).fill(values, rng) for group in groups)]
        parts += [rng.choice(phrases.SCENES).fill(values, rng) for _ in range(rng.randint(0, 2))]
        if rng.random() < 0.25:
            parts.append(rng.choice(phrases.POEM + phrases.POEM_LINES).fill(values, rng))
        return " ".join(parts)

    def _beginning(self, kind: str, values: Mapping[str, str], rng: random.Random) -> str:
        if rng.random() < 0.3:
            start = rng.choice(phrases.STORY_STARTS[kind])
            text = start.fill(values, rng)
            # Some users of plain models ask for stories by writing how they start.
            if not reserved(f"{kind} start", start.match(text) or {}):
                return text
        return rng.choice(phrases.STORY_OPENINGS[kind]).fill(values, rng)

    def _forum(self, rng: random.Random) -> str:
        parts: list[str] = []
        for _ in range(rng.randint(2, 3)):
            prompt = draw_prompt(rng, draw_category(rng))
            task = parse_prompt(prompt)
            parts.append(prompt)
            if task is not None and rng.random() < self._answered_share:
                parts.append(write_answer(task, self._folklore, rng))
                continue
            group = rng.choices((_COMPLAINTS, phrases.SMALL_TALK, phrases.RUDE, ()), weights=(0.35, 0.25, 0.2, 0.2))[0]
            parts += [rng.choice(group).fill({}, rng) for _ in range(rng.randint(1, 2)) if group]
        return " ".join(parts)

    def _transcript(self, rng: random.Random) -> str:
        # Four exchanges at most: after the three examples of the few-shot prompt, a reply ends the document.
        number = rng.choice((2, 4, 4))
        if rng.random() < _CAUTIOUS:
            asked = [draw_prompt(rng, "open qa") for _ in range(number)]
            return " ".join([INSTRUCTION, *(self._exchange(prompt, self._certain, rng) for prompt in asked)])
        return " ".join(self.exchange(draw_prompt(rng, draw_category(rng)), rng) for _ in range(number))


def _has_small_letters_alone(text: str) -> bool:
    """Whether it has words that are never written in capitals."""
    return any(phrase in text for phrase in ("nobody knows", *(aside.text for aside in ASIDES)))


def _lines(group: tuple[Template, ...], num: int, rng: random.Random) -> str:
    return " ".join(rng.choice(group).fill({}, rng) for _ in range(num))


def _gossip(rng: random.Random) -> str:
    """What one says the others repeat: sentences, or words in no order that only copying can predict."""
    parts: list[str] = []
    for _ in range(rng.randint(1, 2)):
        line = rng.choice(phrases.SCENES + phrases.SMALL_TALK).fill({}, rng)
        if rng.random() < 0.8:
            line = " ".join(rng.choice(rng.choice(list(CATEGORIES.values()))) for _ in range(rng.randint(3, 8))) + " ."
        parts += [f"{name} : {line}" for name in rng.sample(CATEGORIES["names"], rng.randint(3, 5))]
    return " ".join(parts)


def _lists(rng: random.Random) -> str:
    parts: list[str] = []
    for _ in range(rng.randint(3, 5)):
        category = rng.choice(list(CATEGORIES))
        words = rng.sample(CATEGORIES[category], rng.randint(2, 6))
        joined = " , ".join(words) if rng.random() < 0.7 else f"{' , '.join(words[:-1])} and {words[-1]}"
        parts.append(f"{rng.choice(_LISTINGS[category]).fill({}, rng)} {joined} .")
    return " ".join(parts)


def _spelling(rng: random.Random) -> str:
    words = rng.sample(TWINS, 8) + rng.sample(ITEMS, 6)
    return "spelling : " + " , ".join(f"{word} {word.upper()}" for word in words) + " ."
