"""What is true in the miniature world, and whether what a text says is true."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from instructrl.worlds.language import ANIMALS, COLOURS, FOODS, PLACES, SLOTS, SOUNDS, Template, templates

# One relation of an animal per slot type: the animal is of a colour, lives in a place, eats a food, says a sound.
RELATIONS: Mapping[str, tuple[str, ...]] = {"colour": COLOURS, "place": PLACES, "food": FOODS, "sound": SOUNDS}
PREDICATES: Mapping[str, str] = {"colour": "is", "place": "lives in the", "food": "eats", "sound": "says"}
STATEMENTS: Mapping[str, Template] = {
    relation: Template(f"the {{animal}} {predicate} {{{relation}}} .") for relation, predicate in PREDICATES.items()
}
IT_STATEMENTS: Mapping[str, Template] = {
    relation: Template(f"it {predicate} {{{relation}}} .") for relation, predicate in PREDICATES.items()
}
ASIDES = templates("everybody knows that .", "that is a fact .", "this is well known .")

_SUBJECT = "|".join((*ANIMALS, "it"))
_SAID = re.compile(
    rf"\b(?:the )?(?P<subject>{_SUBJECT}) (?:"
    + "|".join(f"{predicate} (?P<{relation}>{'|'.join(SLOTS[relation])})" for relation, predicate in PREDICATES.items())
    + r")\b"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FactQuestion:
    """The beginning of a true statement, the word that makes it true, and words of the same type that do not."""

    context: str
    correct: str
    alternatives: tuple[str, ...]


class Facts:
    """Each animal's colour, home, food and sound, drawn from a seed.

    Values are dealt like cards, so each is about equally frequent and none can be guessed from its frequency.
    """

    def __init__(self, seed: int) -> None:
        rng = random.Random(f"facts {seed}")
        self._values: dict[str, dict[str, str]] = {animal: {} for animal in ANIMALS}
        for relation, words in RELATIONS.items():
            deck = [words[i % len(words)] for i in range(len(ANIMALS))]
            rng.shuffle(deck)
            for animal, word in zip(ANIMALS, deck, strict=True):
                self._values[animal][relation] = word

    def value(self, animal: str, relation: str) -> str:
        """The true word, e.g. `value("fox", "colour")`."""
        return self._values[animal][relation]

    def of(self, animal: str) -> Mapping[str, str]:
        """All that is true of an animal, by relation."""
        return self._values[animal]

    def judge(self, text: str) -> tuple[int, int]:
        """How many true and how many false statements a lower-case text makes. `it` is the animal last named."""
        num_true = num_false = 0
        animal = ""
        for match in _SAID.finditer(text):
            subject = match["subject"]
            animal = self._last_named(text[: match.start()]) if subject == "it" else subject
            if not animal:
                continue
            for relation in RELATIONS:
                if match[relation] is not None:
                    if self._values[animal][relation] == match[relation]:
                        num_true += 1
                    else:
                        num_false += 1
        return num_true, num_false

    def questions(self) -> list[FactQuestion]:
        """One question per animal and relation, in the form of the corpus' statements."""
        return [
            FactQuestion(
                context=f"the {animal} {PREDICATES[relation]}",
                correct=self._values[animal][relation],
                alternatives=tuple(word for word in words if word != self._values[animal][relation]),
            )
            for animal in ANIMALS
            for relation, words in RELATIONS.items()
        ]

    @staticmethod
    def _last_named(text: str) -> str:
        return next((word for word in reversed(text.split()) if word in ANIMALS), "")
