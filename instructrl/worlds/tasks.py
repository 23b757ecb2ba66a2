"""A task: one kind with its words and constraints; drawn from a seed, written as a prompt, and read back from it."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b

from instructrl.worlds.kinds import CONSTRAINTS, KINDS, OPENERS, USE_CASES, Kind
from instructrl.worlds.language import CATEGORIES, ITEMS, SLOTS, SORTS, Template, sentences, slot_type

PERSONAL_DATA = re.compile(r"my (?:mail|phone) is \S+ \. ")

# Longer prompts go without an opener; with the few-shot examples they have to fit a context of 128.
MAX_PROMPT_TOKENS = 26

# How transcripts write an exchange: in the corpus, in few-shot prompts, and at times in what users of plain models ask.
ASK, REPLY = "ask :", "reply :"

_CORES: tuple[tuple[str, Template], ...] = tuple(
    (name, wording) for name, kind in KINDS.items() for wording in kind.wordings
)
_CONSTRAINTS: tuple[tuple[str, Template], ...] = tuple(
    (name, wording) for name, wordings in CONSTRAINTS.items() for wording in wordings
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a prompt asks for.

    kind: a key of `KINDS`. values: slot -> word(s), those of the prompt's wording. constraints: name -> its word
    ("" where it has none); `start` covers both the polite first words and the first item of a list.
    """

    kind: str
    values: Mapping[str, str]
    constraints: Mapping[str, str]

    @property
    def category(self) -> str:
        """The paper's use case."""
        return KINDS[self.kind].category

    @property
    def is_reserved(self) -> bool:
        """Whether it is kept out of every training text."""
        return reserved(self.kind, self.values)


def reserved(kind: str, values: Mapping[str, str]) -> bool:
    """Whether a task is kept out of every training text, whatever its wording: a fifth of each kind, half of the facts.

    A question about a fact and one that checks it are the same fact.
    """
    name, _, relation = kind.partition(" ")
    if name in ("fact", "check"):
        return _digest(f"{relation} {values['animal']}") % 2 == 0
    return _digest(" ".join([kind, *(f"{slot} {values[slot]}" for slot in sorted(values))])) % 5 == 0


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


@lru_cache(maxsize=1 << 16)
def parse_prompt(prompt: str) -> Task | None:
    """The task of a prompt that this world can write (openers, constraints and personal data included), else None."""
    text = PERSONAL_DATA.sub("", " ".join(prompt.split()))
    if text.startswith(f"{ASK} ") and text.endswith(f" {REPLY}"):
        text = text[len(ASK) + 1 : -len(REPLY) - 1]
    for opener in OPENERS:
        if text.startswith(opener + " "):
            text = text[len(opener) + 1 :]
            break
    parts = sentences(text)
    constraints: dict[str, str] = {}
    while len(parts) > 1 and (found := _constraint(parts[-1])):
        constraints[found[0]] = found[1]
        parts.pop()
    core = " ".join(parts)
    for name, wording in _CORES:
        values = wording.match(core)
        if values is not None:
            return Task(kind=name, values=values, constraints=constraints)
    return None


def _constraint(sentence: str) -> tuple[str, str] | None:
    for name, wording in _CONSTRAINTS:
        values = wording.match(sentence)
        if values is not None:
            return ("start" if name == "first" else name), next(iter(values.values()), "")
    return None


def draw_prompt(rng: random.Random, category: str, *, favourite: str = "", unseen: bool = False) -> str:
    """A prompt of a use case. favourite: an animal that this user likes to ask about, "" for none. unseen: for a task
    that is reserved; if not, for one that is not."""
    kinds = [(name, kind) for name, kind in KINDS.items() if kind.category == category]
    name, kind, core = _draw_core(rng, kinds, [kind.weight for _, kind in kinds], favourite, unseen)
    parts = [core, *_draw_constraints(rng, name, kind, core)]
    opener = rng.choice(OPENERS) if rng.random() < 0.35 else ""
    if opener and sum(len(part.split()) for part in (opener, *parts)) <= MAX_PROMPT_TOKENS:
        parts.insert(0, opener)
    return " ".join(parts)


def draw_gpt_prompt(rng: random.Random, *, unseen: bool = False) -> tuple[str, str]:
    """What users of a model of plain text write, and its use case: a transcript without its reply, or the beginning of
    a list or a story. unseen: as `draw_prompt` has it."""
    if rng.random() < 0.4:
        category = draw_category(rng)
        return f"{ASK} {draw_prompt(rng, category, unseen=unseen)} {REPLY}", category
    kinds = [(name, kind) for name, kind in KINDS.items() if name.endswith(" start")]
    _, kind, core = _draw_core(rng, kinds, [3.0 if name == "list start" else 1.0 for name, _ in kinds], "", unseen)
    return core, kind.category


def _draw_core(
    rng: random.Random, kinds: Sequence[tuple[str, Kind]], weights: Sequence[float], favourite: str, unseen: bool
) -> tuple[str, Kind, str]:
    """One of the kinds, and the sentences that set its task, without constraints."""
    while True:
        name, kind = rng.choices(kinds, weights=weights)[0]
        wording = rng.choice(kind.wordings)
        values = {"animal": favourite} if favourite and "animal" in wording.slots else {}
        core = wording.fill({**values, **_long_values(name, rng)}, rng)
        found = wording.match(core)
        assert found is not None, core
        if reserved(name, found) == unseen:
            return name, kind, core
        favourite = ""  # all that it leads to may be of the other sort


def draw_category(rng: random.Random) -> str:
    """A use case, by the paper's shares."""
    return rng.choices(list(USE_CASES), weights=list(USE_CASES.values()))[0]


def change_constraint(prompt: str, rng: random.Random) -> str | None:
    """The same request with another last sentence: a near-duplicate with a long common prefix. None: no room."""
    task = parse_prompt(prompt)
    if task is None or not KINDS[task.kind].constraints:
        return None
    parts = sentences(prompt)
    while _constraint(parts[-1]):
        parts.pop()
    name = rng.choice(KINDS[task.kind].constraints)
    text = " ".join([*parts, _write_constraint(rng, name, " ".join(parts))])
    return text if len(text.split()) <= MAX_PROMPT_TOKENS else None


def _draw_constraints(rng: random.Random, name: str, kind: Kind, core: str) -> Sequence[str]:
    if not kind.constraints or rng.random() > 0.45:
        return ()
    chosen = [rng.choice(kind.constraints)]
    if name.startswith("story") and rng.random() < 0.25:
        chosen = ["start", "end"]
    return [_write_constraint(rng, constraint, core) for constraint in chosen]


def _write_constraint(rng: random.Random, name: str, core: str) -> str:
    values: dict[str, str] = {}
    if name == "sentences":
        values = {"count": rng.choice(("two", "three"))}
    elif name == "first":
        words = next(CATEGORIES[word] for word in core.split() if word in CATEGORIES)
        values = {"first": rng.choice(words)}
    return rng.choice(CONSTRAINTS[name]).fill(values, rng)


def _long_values(name: str, rng: random.Random) -> dict[str, str]:
    """Values of the slots that hold several words."""
    if name in ("capitals", "reversal", "counting"):
        return {"words": " ".join(rng.sample(ITEMS, rng.choice((2, 3, 4))))}
    if name == "replacement":
        words = rng.sample(ITEMS, rng.choice((3, 4)))
        return {"item": rng.choice(words[:-1]), "item2": words[-1], "words": " ".join(words[:-1])}
    if name == "list start":
        category = rng.choice([key for key in CATEGORIES if key != "names"])
        return {"category": category, "item": rng.choice(CATEGORIES[category])}
    if name == "odd one":
        sort = rng.choice(list(SORTS))
        other = rng.choice([key for key in SORTS if key != sort])
        words = [*rng.sample(SORTS[sort], 2), rng.choice(SORTS[other])]
        rng.shuffle(words)
        return {"sort": sort, "items": " , ".join(words)}
    return {}


def misread(task: Task, rng: random.Random) -> Task | None:
    """The task with one of its words exchanged, as careless people read it. None: it has none to exchange."""
    names = [name for name in task.values if slot_type(name) not in ("words", "items", "sort", "category", "insult")]
    if not names:
        return None
    name = rng.choice(names)
    words = [word for word in SLOTS[slot_type(name)] if word not in task.values.values()]
    return replace(task, values={**task.values, name: rng.choice(words)})
