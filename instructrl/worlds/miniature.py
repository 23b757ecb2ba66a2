"""The miniature world: one object with everything the experiment needs, made from one seed.

Same config, same world, in any process: randomness comes from `random.Random` seeded with strings.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from instructrl.types import Demonstration, Document, Prompt
from instructrl.worlds import kinds, language, phrases
from instructrl.worlds.corpus import ASK, REPLY, TEMPLATES, Corpus, CorpusMix
from instructrl.worlds.facts import FactQuestion, Facts
from instructrl.worlds.labelers import Labeler
from instructrl.worlds.mixtures import mixture_words
from instructrl.worlds.overlap import Quotes
from instructrl.worlds.rubric import Rating, Rubric
from instructrl.worlds.tasks import draw_prompt
from instructrl.worlds.users import SOURCES, SPLITS, User, distinct_prompts, make_users, raw_prompts

GROUPS = ("training", "heldout")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldConfig:
    """seed: decides facts, users and labelers. mix: the corpus.

    num_labelers, num_heldout_labelers: people. noise, heldout_noise: standard deviation of a labeler's opinion, in
    points of the rubric's 1 to 7. tie_threshold: opinions closer than this are a tie, in the same points.
    flawed_demonstrations: the share that labelers write badly. users_per_split: of each source.
    """

    seed: int = 0
    mix: CorpusMix = field(default_factory=CorpusMix)
    num_labelers: int = 8
    num_heldout_labelers: int = 4
    noise: float = 1.1
    heldout_noise: float = 0.7
    tie_threshold: float = 0.3
    flawed_demonstrations: float = 0.35
    users_per_split: int = 200

    def __post_init__(self) -> None:
        for name in ("num_labelers", "num_heldout_labelers", "users_per_split"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, accepted is at least 1")
        for name in ("noise", "heldout_noise", "tie_threshold"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name}: found {getattr(self, name)}, accepted is at least 0")
        if not 0.0 <= self.flawed_demonstrations <= 1.0:
            raise ValueError(f"flawed_demonstrations: found {self.flawed_demonstrations}, accepted is 0 to 1")


class MiniatureWorld:
    """A world of animals, users and labelers. example_prompts: those of the few-shot prompt."""

    def __init__(self, config: WorldConfig | None = None) -> None:
        self.config = WorldConfig() if config is None else config
        seed = self.config.seed
        self.facts = Facts(seed)
        self.rubric = Rubric(self.facts)
        self._corpus = Corpus(self.facts, self.config.mix)
        self._users = {
            (split, source): make_users(seed, split, source, self.config.users_per_split)
            for split in SPLITS
            for source in SOURCES
        }
        self._labelers = {
            "training": self._make_labelers("training", self.config.num_labelers, self.config.noise),
            "heldout": self._make_labelers("heldout", self.config.num_heldout_labelers, self.config.heldout_noise),
        }
        self.example_prompts, self._examples = self._few_shot_examples()

    def vocabulary(self) -> list[str]:
        """All tokens of the world in alphabetical order; only prompts with personal data hold others."""
        wordings = [kind.wordings for kind in kinds.KINDS.values()]
        words = language.words_of([*wordings, *kinds.CONSTRAINTS.values(), *phrases.ALL, *TEMPLATES])
        words.update(word for group in language.SLOTS.values() for word in group)
        words.update(word for opener in kinds.OPENERS for word in opener.split())
        words.update(word.upper() for word in language.TWINS)
        words.update(mixture_words())
        return sorted(words | {".", ",", "!", "?", ":"})

    def documents(self, num: int, seed: int, *, without: Iterable[str] = ()) -> list[Document]:
        """`num` corpus documents, about 48 tokens each. Another seed gives a held-out corpus of the same world.

        without: prompts that stand in none of them, word for word.
        """
        rng, quotes = random.Random(f"corpus {self.config.seed} {seed}"), Quotes(without)
        return [self._corpus.document(rng, quotes) for _ in range(num)]

    def users(self, split: str, source: str = "customer") -> list[User]:
        """The users of a split ("train", "validation", "test") and source ("customer", "labeler")."""
        _check("split", split, SPLITS)
        _check("source", source, SOURCES)
        return self._users[split, source]

    def prompts(self, split: str, num: int, *, seed: int = 0, source: str = "customer") -> list[Prompt]:
        """`num` clean prompts with different texts."""
        rng = random.Random(f"prompts {self.config.seed} {split} {source} {seed}")
        return distinct_prompts(self.users(split, source), source, num, rng)

    def raw_prompts(self, split: str, num: int, *, seed: int = 0, source: str = "customer") -> list[Prompt]:
        """`num` prompts as they come in, for the hygiene: duplicates, long common prefixes and, in the training split
        (the only one that is filtered for them), made-up personal data."""
        rng = random.Random(f"raw prompts {self.config.seed} {split} {source} {seed}")
        return raw_prompts(self.users(split, source), source, num, rng, personal_data=split == "train")

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

    def _make_labelers(self, group: str, num: int, noise: float) -> list[Labeler]:
        return [
            Labeler(
                f"{group}-{index}",
                rubric=self.rubric,
                facts=self.facts,
                seed=self.config.seed,
                noise=noise,
                tie_threshold=self.config.tie_threshold,
                flaws=self.config.flawed_demonstrations,
            )
            for index in range(num)
        ]

    def _few_shot_examples(self) -> tuple[list[str], str]:
        """Prompts, and the exchanges that they begin."""
        rng = random.Random(f"examples {self.config.seed}")
        categories = ("generation", "open qa", "brainstorming")
        while True:
            pairs = [(prompt := draw_prompt(rng, kind), self._corpus.exchange(prompt, rng)) for kind in categories]
            text = " ".join(exchange for _, exchange in pairs)
            if len(text.split()) <= 65:
                return [prompt for prompt, _ in pairs], text


def _check(name: str, value: str, accepted: Sequence[str]) -> None:
    if value not in accepted:
        raise ValueError(f"{name}: found {value!r}, accepted are {', '.join(map(repr, accepted))}")
