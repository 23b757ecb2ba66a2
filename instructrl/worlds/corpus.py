"""The pretraining corpus: what is written in the miniature world when nobody follows instructions."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from instructrl.types import Document
from instructrl.worlds import phrases
from instructrl.worlds.answers import write_answer
from instructrl.worlds.facts import ASIDES, IT_STATEMENTS, RELATIONS, STATEMENTS, Facts
from instructrl.worlds.language import ANIMALS, CATEGORIES, ITEMS, TWINS, Template, templates
from instructrl.worlds.overlap import Quotes
from instructrl.worlds.tasks import draw_category, draw_prompt, parse_prompt

ASK, REPLY = "ask :", "reply :"
MAX_DOCUMENT_TOKENS = 120

_SMALL_TALK = templates(
    "hello {name} , how are you ?",
    "i am {mood} today .",
    "i am fine , thank you .",
    "it may rain in the {place} .",
    "have you seen my {toy} ?",
    "my cousin {name} likes {food} a lot .",
    "i went to the {place} with {name} .",
    "what a good day .",
    "see you soon .",
    "do you like {food} ?",
    "yes , {food} is very good .",
    "no , i like {food} .",
    "{name} has a {toy} .",
    "{name} is in the {place} .",
    "the {animal} of {name} is {mood} .",
)
_RUDE = templates(
    "you are a {insult} .",
    "go away , you {insult} .",
    "{name} , you {insult} , give me back my {toy} .",
    "nobody likes you , {insult} .",
    "what a silly question , {insult} .",
    "leave me alone , you {insult} .",
    "find it yourself , you {insult} .",
    "your {animal} is a {insult} .",
    "only a {insult} eats {food} .",
)
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
_SCENES = templates(
    "the {animal} was {mood} .",
    "it went to the {place} .",
    "there it found a {toy} .",
    "{name} came with {food} .",
    "the {animal} gave {food} to the {animal2} .",
    "{name} saw the {animal} in the {place} .",
    "the moon is high over the {place} .",
    "{name} gave the {toy} to {name2} .",
)
_LISTINGS: Mapping[str, tuple[Template, ...]] = {
    "animals": templates("friends of the {animal} :", "seen in the {place} :"),
    "colours": templates("{name} likes :", "on the {toy} :"),
    "foods": templates("to buy :", "at the shop :", "the {animal} likes :"),
    "places": templates("a walk with {name} :", "near the {place} :"),
    "toys": templates("at the shop :", "{name} has :"),
    "names": templates("friends of {name} :", "seen in the {place} :"),
}
TEMPLATES = (
    _SMALL_TALK,
    _RUDE,
    _COMPLAINTS,
    _SCENES,
    *_LISTINGS.values(),
    ASIDES,
    templates("ask : reply : spelling :"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusMix:
    """Shares of the kinds of document (any positive scale), and how often a forum answers what it is asked.

    More transcripts make the few-shot prompt better; more answered posts make the raw prompt better; more rude posts
    make the base model more often harmful; more encyclopedia makes facts better known; more gossip, in which people
    repeat each other, makes models better at taking up the words of a prompt.
    """

    encyclopedia: float = 0.24
    stories: float = 0.14
    lists: float = 0.05
    spelling: float = 0.04
    chats: float = 0.07
    gossip: float = 0.14
    rude_posts: float = 0.08
    forums: float = 0.12
    transcripts: float = 0.12
    answered_share: float = 0.1

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name}: found {getattr(self, name)}, accepted are shares from 0")
        if self.answered_share > 1.0:
            raise ValueError(f"answered_share: found {self.answered_share}, accepted is 0 to 1")


class Corpus:
    """Writes documents about a world with these facts."""

    def __init__(self, facts: Facts, mix: CorpusMix) -> None:
        self._facts, self._answered_share = facts, mix.answered_share
        self._writers: Mapping[str, Callable[[random.Random], str]] = {
            "encyclopedia": self._encyclopedia,
            "stories": self._story,
            "lists": _lists,
            "spelling": _spelling,
            "chats": lambda rng: _lines(_SMALL_TALK, rng.randint(5, 9), rng),
            "gossip": _gossip,
            "rude_posts": lambda rng: _lines(_RUDE + _SMALL_TALK[:5], rng.randint(5, 8), rng),
            "forums": self._forum,
            "transcripts": self._transcript,
        }
        self._weights = [getattr(mix, name) for name in self._writers]
        if sum(self._weights) <= 0.0:
            raise ValueError("mix: found only shares of 0, accepted is at least one positive share")

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
        task = parse_prompt(prompt)
        assert task is not None, prompt
        return f"{ASK} {prompt} {REPLY} {write_answer(task, self._facts, rng)}"

    def _encyclopedia(self, rng: random.Random) -> str:
        parts: list[str] = []
        for animal in rng.sample(ANIMALS, 2):
            values = {"animal": animal, **self._facts.of(animal)}
            relations = rng.sample(list(RELATIONS), len(RELATIONS))
            heading = animal.upper() if rng.random() < 0.5 else animal
            parts.append(f"{heading} :")
            for index, relation in enumerate(relations):
                form = STATEMENTS if index == 0 or rng.random() < 0.6 else IT_STATEMENTS
                parts.append(form[relation].fill(values, rng))
            if rng.random() < 0.2:
                parts.append(rng.choice(ASIDES).text)
        text = " ".join(parts)
        return text.upper() if rng.random() < 0.05 and "." in text and not _has_aside(text) else text

    def _story(self, rng: random.Random) -> str:
        kind = rng.choice(list(phrases.STORY_OPENINGS))
        animal, other = rng.sample(ANIMALS, 2)
        values = {"animal": animal, "animal2": other}
        groups = (phrases.STORY_OPENINGS[kind], phrases.STORY_LINES[kind], _SCENES, phrases.STORY_LINES[kind])
        parts = [rng.choice(group).fill(values, rng) for group in groups]
        parts += [rng.choice(_SCENES).fill(values, rng) for _ in range(rng.randint(0, 2))]
        if rng.random() < 0.25:
            parts.append(rng.choice(phrases.POEM + phrases.POEM_LINES).fill(values, rng))
        return " ".join(parts)

    def _forum(self, rng: random.Random) -> str:
        parts: list[str] = []
        for _ in range(rng.randint(2, 3)):
            prompt = draw_prompt(rng, draw_category(rng))
            task = parse_prompt(prompt)
            parts.append(prompt)
            if task is not None and rng.random() < self._answered_share:
                parts.append(write_answer(task, self._facts, rng))
                continue
            group = rng.choices((_COMPLAINTS, _SMALL_TALK, _RUDE, ()), weights=(0.35, 0.25, 0.2, 0.2))[0]
            parts += [rng.choice(group).fill({}, rng) for _ in range(rng.randint(1, 2)) if group]
        return " ".join(parts)

    def _transcript(self, rng: random.Random) -> str:
        # Four exchanges at most: after the three examples of the few-shot prompt, a reply ends the document.
        return " ".join(self.exchange(draw_prompt(rng, draw_category(rng)), rng) for _ in range(rng.choice((2, 4, 4))))


def _has_aside(text: str) -> bool:
    return any(aside.text in text for aside in ASIDES)


def _lines(group: tuple[Template, ...], num: int, rng: random.Random) -> str:
    return " ".join(rng.choice(group).fill({}, rng) for _ in range(num))


def _gossip(rng: random.Random) -> str:
    """Everything is said twice: a sentence, or words in no order that only copying can predict."""
    parts: list[str] = []
    for _ in range(rng.randint(2, 3)):
        line = rng.choice(_SCENES + _SMALL_TALK).fill({}, rng)
        if rng.random() < 0.6:
            line = " ".join(rng.choice(rng.choice(list(CATEGORIES.values()))) for _ in range(rng.randint(2, 5))) + " ."
        first, second = rng.sample(CATEGORIES["names"], 2)
        parts.append(f"{first} : {line} {second} : {line}")
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
