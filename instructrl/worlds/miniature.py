"""The miniature world: one object with everything the experiment needs, made from one seed.

Same seed and config, same world, in any process: randomness comes from `random.Random` seeded with strings.
"""

import random
from collections.abc import Iterable, Sequence

from instructrl.types import Demonstration, Document, Prompt
from instructrl.worlds import kinds, language, phrases
from instructrl.worlds.corpus import TEMPLATES, Corpus
from instructrl.worlds.exams import Exams
from instructrl.worlds.facts import FactQuestion, make_facts
from instructrl.worlds.labelers import Labeler, make_labelers
from instructrl.worlds.mixtures import mixture_words
from instructrl.worlds.overlap import Quotes
from instructrl.worlds.rubric import Rating, Rubric
from instructrl.worlds.settings import WorldConfig
from instructrl.worlds.tasks import ASK, REPLY, draw_prompt
from instructrl.worlds.users import SOURCES, SPLITS, User, distinct_prompts, make_users, raw_prompts

_DEFAULT = WorldConfig()
GROUPS = ("training", "heldout")


class MiniatureWorld:
    """A world of animals, users and labelers."""

    def __init__(self, seed: int = 0, config: WorldConfig = _DEFAULT) -> None:
        self.seed, self.config = seed, config
        self.facts = make_facts(seed, unknown=config.unknown, myths=config.myths, exposure=config.exposure)
        self.rubric = Rubric(self.facts)
        self.exams = Exams(seed, config.exams)
        self._corpus = Corpus(self.facts, self.exams, config.mix, config.myth_ratio)
        self._users = {
            (split, source): make_users(seed, split, source, self.config.users_per_split)
            for split in SPLITS
            for source in SOURCES
        }
        self._labelers = make_labelers(self.facts, seed, config.labelers)
        self._examples = self._few_shot_examples()

    def vocabulary(self) -> list[str]:
        """All tokens of the world in alphabetical order; only prompts with personal data hold others."""
        wordings = [kind.wordings for kind in kinds.KINDS.values()]
        words = language.words_of([*wordings, *kinds.CONSTRAINTS.values(), *phrases.ALL, *TEMPLATES])
        words.update(word for group in language.SLOTS.values() for word in group)
        words.update(word for opener in kinds.OPENERS for word in opener.split())
        words.update(word.upper() for word in language.TWINS)
        words.update(mixture_words())
        words.update(self.exams.vocabulary())
        return sorted(words | {".", ",", "!", "?", ":"})

    def documents(self, num: int, seed: int, *, without: Iterable[str] = ()) -> list[Document]:
        """`num` corpus documents, about 48 tokens each. Another seed gives a held-out corpus of the same world.

        without: prompts that stand in none of them, word for word.
        """
        rng, quotes = random.Random(f"corpus {self.seed} {seed}"), Quotes(without)
        return [self._corpus.document(rng, quotes) for _ in range(num)]

    def users(self, split: str, source: str = "customer") -> list[User]:
        """The users of a split ("train", "validation", "test") and source ("customer", "labeler", "gpt")."""
        _check("split", split, SPLITS)
        _check("source", source, SOURCES)
        return self._users[split, source]

    def prompts(self, split: str, num: int, *, seed: int = 0, source: str = "customer") -> list[Prompt]:
        """`num` clean prompts with different texts."""
        rng = random.Random(f"prompts {self.seed} {split} {source} {seed}")
        return distinct_prompts(self.users(split, source), source, num, rng, self._unseen(split))

    def raw_prompts(self, split: str, num: int, *, seed: int = 0, source: str = "customer") -> list[Prompt]:
        """`num` prompts as they come in, for the hygiene: duplicates, long common prefixes and, in the training split
        (the only one that is filtered for them), made-up personal data."""
        rng = random.Random(f"raw prompts {self.seed} {split} {source} {seed}")
        is_train, unseen = split == "train", self._unseen(split)
        return raw_prompts(self.users(split, source), source, num, rng, unseen=unseen, personal_data=is_train)

    def _unseen(self, split: str) -> float:
        """The share of prompts for tasks that no training text holds."""
        return 0.0 if split == "train" else self.config.unseen

    def rate(self, prompt: str, completion: str, finished: bool = True) -> Rating:
        """The gold rubric's rating; see `Rubric.rate`."""
        return self.rubric.rate(prompt, completion, finished)

    def labelers(self, group: str = "training") -> list[Labeler]:
        """The labelers of a group: "training", or "heldout" who label nothing that is trained on."""
        _check("group", group, GROUPS)
        return self._labelers[group]

    def demonstrations(self, prompts: Sequence[Prompt], *, seed: int = 0) -> list[Demonstration]:
        """One demonstration per prompt, the training labelers taking turns."""
        labelers = self._labelers["training"]
        return [
            Demonstration(
                prompt=prompt.text,
                completion=labelers[index % len(labelers)].demonstrate(prompt.text, key=seed),
                user=prompt.user,
                source=prompt.source,
                category=prompt.category,
            )
            for index, prompt in enumerate(prompts)
        ]

    def few_shot_prompt(self, prompt: str) -> str:
        """The prompt behind three examples, in the form of the corpus' transcripts (about 60 tokens longer).

        Transcripts end after at most four replies, so a model of the corpus ends after this one.
        """
        return f"{self._examples} {ASK} {prompt} {REPLY}"

    def fact_questions(self) -> list[FactQuestion]:
        """One question per fact, in the form of the corpus' statements: `the fox is` -> `red`."""
        return self.facts.questions()

    def _few_shot_examples(self) -> str:
        """Three exchanges, short enough to stand before any prompt."""
        rng = random.Random(f"examples {self.seed}")
        categories = ("generation", "open qa", "brainstorming")
        while True:
            text = " ".join(self._corpus.exchange(draw_prompt(rng, kind), rng) for kind in categories)
            if len(text.split()) <= 65:
                return text


def _check(name: str, value: str, accepted: Sequence[str]) -> None:
    if value not in accepted:
        raise ValueError(f"{name}: found {value!r}, accepted are {', '.join(map(repr, accepted))}")
