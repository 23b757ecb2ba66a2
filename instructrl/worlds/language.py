"""The miniature world's language: word lists, sentence templates with slots, and how text is cut into sentences.

Tokens are separated by single spaces and punctuation is a token of its own, so a tokenizer is a split.
"""

import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ANIMALS = _words(
    "fox owl bear frog goat duck wolf mole crow hare seal deer hen cat dog pig cow mouse swan bee "
    "lion tiger camel otter badger horse donkey sheep rat toad newt crab whale shark eagle hawk snake goose moth ant"
)
COLOURS = _words("red blue green brown white black grey yellow")
PLACES = _words(
    "forest barn river cave pond hill garden meadow valley lake field village market desert swamp island tower bridge "
    "orchard harbour"
)
FOODS = _words(
    "berries honey fish corn nuts grass apples seeds cheese bread plums pears carrots beans rice mushrooms cherries "
    "leaves roots cabbage onions cake soup eggs"
)
SOUNDS = _words("yip hoot growl croak quack howl squeak buzz")
TOYS = _words(
    "kite drum book lamp boat hat bell cup ball doll coat rope ring flute basket clock key mirror spoon wheel"
)
NAMES = _words("mia tom ana ben zoe sam lea max ida leo eva jon amy kai uma ray liv ned ivy gus")
MOODS = _words("happy sad tired hungry cold bored")
INSULTS = _words("nitwit blockhead numskull dunce pest lout")
NUMBERS = ("one", "two", "three", "four", "five")
COUNTS = NUMBERS[1:]
ITEMS = ANIMALS + COLOURS + PLACES + FOODS + TOYS
START_WORDS = ("sure", "okay", "well")
END_WORDS = ("thanks", "cheers", "goodbye")

CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "animals": ANIMALS,
    "colours": COLOURS,
    "foods": FOODS,
    "places": PLACES,
    "toys": TOYS,
    "names": NAMES,
}
SORTS: Mapping[str, tuple[str, ...]] = {"animal": ANIMALS, "food": FOODS, "colour": COLOURS, "toy": TOYS}

SLOTS: Mapping[str, tuple[str, ...]] = {
    "animal": ANIMALS,
    "colour": COLOURS,
    "place": PLACES,
    "food": FOODS,
    "sound": SOUNDS,
    "toy": TOYS,
    "fear": ANIMALS,
    "name": NAMES,
    "mood": MOODS,
    "insult": INSULTS,
    "count": COUNTS,
    "number": NUMBERS,
    "item": ITEMS,
    "category": tuple(CATEGORIES),
    "sort": tuple(SORTS),
    "tone": ("kind", "rude"),
    "polarity": ("yes", "no"),
    "start": START_WORDS,
    "end": END_WORDS,
    "first": START_WORDS + ITEMS + NAMES,
}
_ITEM = f"(?:{'|'.join(ITEMS)})"
_PATTERNS = {
    **{name: "|".join(words) for name, words in SLOTS.items()},
    "words": f"{_ITEM}(?: {_ITEM})+",
    "items": f"{_ITEM}(?: , {_ITEM})+",
}

# Upper-case twins: the content words, and the few words that sentences in capitals need.
TWINS = (
    *ITEMS, *SOUNDS, *NAMES, *NUMBERS, "the", "is", "lives", "in", "eats", "says", "owns", "a", "fears", "it", "yes",
    "no", "and", "i", "do", "not", "know", "that", "nobody", "knows", "of", "colour", "where", "what",
)  # fmt: skip

_SLOT = re.compile(r"\{(\w+)\}")


def slot_type(name: str) -> str:
    """The type of a slot: its name without the digits that tell two slots of a type apart."""
    return name.rstrip("0123456789")


@dataclass(frozen=True, slots=True)
class Template:
    """A sentence with slots, such as `the {animal} met the {animal2} .`; it fills, and it recognises what it filled."""

    text: str
    slots: tuple[str, ...] = field(init=False)
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names: list[str] = []
        pattern: list[str] = []
        position = 0
        for match in _SLOT.finditer(self.text):
            pattern.append(re.escape(self.text[position : match.start()]))
            name = match.group(1)
            if name in names:
                pattern.append(f"(?P={name})")
            else:
                names.append(name)
                pattern.append(f"(?P<{name}>{_PATTERNS[slot_type(name)]})")
            position = match.end()
        pattern.append(re.escape(self.text[position:]))
        object.__setattr__(self, "slots", tuple(names))
        object.__setattr__(self, "_pattern", re.compile("".join(pattern)))

    def fill(self, values: Mapping[str, str], rng: random.Random) -> str:
        """The sentence with these values; slots without one get a random word that `values` does not use."""
        chosen = {name: values[name] for name in self.slots if name in values}
        for name in self.slots:
            if name not in chosen:
                taken = {*values.values(), *chosen.values()}
                chosen[name] = rng.choice([word for word in SLOTS[slot_type(name)] if word not in taken])
        return _SLOT.sub(lambda match: chosen[match.group(1)], self.text)

    def match(self, text: str) -> dict[str, str] | None:
        """The slots' words where the whole text has this form, else None."""
        match = self._pattern.fullmatch(text)
        return match.groupdict() if match else None

    @property
    def literals(self) -> list[str]:
        """The words outside the slots."""
        return _SLOT.sub(" ", self.text).split()


def templates(*texts: str) -> tuple[Template, ...]:
    """A template of each text."""
    return tuple(Template(text) for text in texts)


def words_of(groups: Iterable[Iterable[Template]]) -> set[str]:
    """All words that groups of templates can write outside of their slots."""
    return {word for template in chain.from_iterable(groups) for word in template.literals}


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with its final `.`, `!` or `?`; the last may have none."""
    found: list[str] = []
    current: list[str] = []
    for token in text.split():
        current.append(token)
        if token in (".", "!", "?"):
            found.append(" ".join(current))
            current = []
    if current:
        found.append(" ".join(current))
    return found


def is_word(token: str) -> bool:
    """Whether a token is a word and no punctuation."""
    return token not in (".", ",", "!", "?", ":")
