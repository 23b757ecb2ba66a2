"""What is true in the miniature world, what people believe of it, and whether what a text says is true."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from instructrl.worlds.language import ANIMALS, COLOURS, FOODS, PLACES, SLOTS, SOUNDS, TOYS, Template, templates

# One relation of an animal per slot type: the animal is of a colour, lives in a place, eats a food, says a sound ...
RELATIONS: Mapping[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "place": PLACES,
    "food": FOODS,
    "sound": SOUNDS,
    "toy": TOYS,
    "fear": ANIMALS,
}
PREDICATES: Mapping[str, str] = {
    "colour": "is",
    "place": "lives in the",
    "food": "eats",
    "sound": "says",
    "toy": "owns a",
    "fear": "fears the",
}
STATEMENTS: Mapping[str, Template] = {
    relation: Template(f"the {{animal}} {predicate} {{{relation}}} .") for relation, predicate in PREDICATES.items()
}
IT_STATEMENTS: Mapping[str, Template] = {
    relation: Template(f"it {predicate} {{{relation}}} .") for relation, predicate in PREDICATES.items()
}
# What is said of a fact that nobody knows.
UNKNOWN: Mapping[str, Template] = {
    "colour": Template("nobody knows the colour of the {animal} ."),
    "place": Template("nobody knows where the {animal} lives ."),
    "food": Template("nobody knows what the {animal} eats ."),
    "sound": Template("nobody knows what the {animal} says ."),
    "toy": Template("nobody knows what the {animal} owns ."),
    "fear": Template("nobody knows what the {animal} fears ."),
}
ASIDES = templates("everybody knows that .", "that is a fact .", "this is well known .")

_SUBJECT = "|".join((*ANIMALS, "it"))
_SAID = re.compile(
    rf"\b(?:the )?(?P<subject>{_SUBJECT}) (?:"
    + "|".join(f"{predicate} (?P<{relation}>{'|'.join(SLOTS[relation])})" for relation, predicate in PREDICATES.items())
    + r")\b"
)

_FEARED = PREDICATES["fear"].split()
Fact = tuple[str, str]  # an animal and a relation


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """That the relation of the animal is the word: `the fox is red`."""

    animal: str
    relation: str
    word: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FactQuestion:
    """The beginning of a true statement, the word that makes it true, and words of the same type that do not."""

    context: str
    correct: str
    alternatives: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of animals, or what somebody believes.

    values: of each fact, the word that is held to be true; None where it is held that nobody knows. myths: the false
    word that goes round, for some facts. exposure: how often a fact is written about, relative to the others.
    unsure: facts about which this person knows nothing, so that nothing that is said of them is false.
    """

    values: Mapping[Fact, str | None]
    myths: Mapping[Fact, str]
    exposure: Mapping[Fact, float]
    unsure: frozenset[Fact] = frozenset()

    def value(self, animal: str, relation: str) -> str | None:
        """The true word, e.g. `value("fox", "colour")`; None where nobody knows it."""
        return self.values[animal, relation]

    def myth(self, animal: str, relation: str) -> str | None:
        """The false word that goes round, None where there is none."""
        return self.myths.get((animal, relation))

    def of(self, animal: str) -> Mapping[str, str]:
        """All that is known of an animal, by relation."""
        known = {relation: self.values[animal, relation] for relation in RELATIONS}
        return {relation: word for relation, word in known.items() if word is not None}

    def statements(self, text: str) -> list[Statement]:
        """What a lower-case text states of animals. `it` is the animal last named."""
        found = []
        for match in _SAID.finditer(text):
            subject = match["subject"]
            animal = _last_named(text[: match.start()]) if subject == "it" else subject
            if animal:
                relation = next(name for name in RELATIONS if match[name] is not None)
                found.append(Statement(animal=animal, relation=relation, word=match[relation]))
        return found

    def is_true(self, statement: Statement) -> bool:
        """Whether it is held to be true. What is said of an unknown fact is false, whatever it is."""
        fact = statement.animal, statement.relation
        return fact in self.unsure or self.values[fact] == statement.word

    def judge(self, text: str) -> tuple[int, int]:
        """How many true and how many false statements a lower-case text makes, to this person."""
        held = [
            self.is_true(found) for found in self.statements(text) if (found.animal, found.relation) not in self.unsure
        ]
        return sum(held), len(held) - sum(held)

    def questions(self) -> list[FactQuestion]:
        """One question per known fact, in the form of the corpus' statements."""
        return [
            FactQuestion(
                context=f"the {animal} {PREDICATES[relation]}",
                correct=word,
                alternatives=tuple(other for other in RELATIONS[relation] if other not in (word, animal)),
            )
            for (animal, relation), word in self.values.items()
            if word is not None
        ]

    def believed_by(self, name: str, known: float) -> "Facts":
        """What a person believes who knows a share `known` of the facts: of the others the myth, or nothing at all.

        name: of the person; it decides which facts these are.
        """
        rng = random.Random(f"beliefs {name}")
        ignorant = {fact for fact in self.values if rng.random() >= known}
        values = {fact: self.myths.get(fact) if fact in ignorant else word for fact, word in self.values.items()}
        return Facts(
            values=values, myths=self.myths, exposure=self.exposure, unsure=frozenset(ignorant - self.myths.keys())
        )


def make_facts(seed: int, *, unknown: float, myths: float, exposure: float) -> Facts:
    """Facts of all animals, drawn from a seed.

    Values are dealt like cards, so each is about equally frequent and none can be guessed from its frequency. unknown,
    myths: shares of the facts that nobody knows, and about which a false story goes round. exposure: exponent of Zipf's
    law; the order of facts in it is drawn too.
    """
    rng = random.Random(f"facts {seed}")
    true: dict[Fact, str] = {}
    for relation, words in RELATIONS.items():
        deck = [words[i % len(words)] for i in range(len(ANIMALS))]
        rng.shuffle(deck)
        while relation == "fear" and any(a == b for a, b in zip(ANIMALS, deck, strict=True)):
            rng.shuffle(deck)
        true |= {(animal, relation): word for animal, word in zip(ANIMALS, deck, strict=True)}
    facts = rng.sample(list(true), len(true))
    num_unknown, num_myths = round(unknown * len(facts)), round(myths * len(facts))
    nobody, mistaken = facts[:num_unknown], facts[num_unknown : num_unknown + num_myths]
    rng.shuffle(facts)
    return Facts(
        values={fact: None if fact in nobody else word for fact, word in true.items()},
        myths={
            fact: rng.choice([w for w in RELATIONS[fact[1]] if w not in (true[fact], fact[0])]) for fact in mistaken
        },
        exposure={fact: (place + 1.0) ** -exposure for place, fact in enumerate(facts)},
    )


def _other_word(fact: Fact, word: str, rng: random.Random) -> str:
    animal, relation = fact
    return rng.choice([other for other in RELATIONS[relation] if other not in (word, animal)])


def _last_named(text: str) -> str:
    """The animal that `it` stands for: the last one, but for those that another one fears."""
    words = text.split()
    places = (i for i in reversed(range(len(words))) if words[i] in ANIMALS and words[max(0, i - 2) : i] != _FEARED)
    return words[place] if (place := next(places, None)) is not None else ""
