"""Mixtures of tasks as public instruction data sets have them: easily scored, in fixed templates, with short answers.

The paper's baselines FLAN and T0 are GPT-3 fine-tuned on such (5, C.5). Of what users ask for, classification,
questions about a text, extraction and the like are a small part; most of it is in no such mixture.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from instructrl.settings import require_positive
from instructrl.types import Demonstration
from instructrl.worlds.answers import SlotAnswer, expected_answer
from instructrl.worlds.facts import Facts
from instructrl.worlds.language import SORTS
from instructrl.worlds.tasks import Task, draw_prompt, parse_prompt

_SLOT = re.compile(r"\{(\w+)\}")
# A task is taken to be used up when so many draws in a row give nothing new.
_PATIENCE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureConfig:
    """How much of a mixture is drawn."""

    # different examples, all tasks together
    examples: int
    # at most so many of one task, as in FLAN
    cap_per_task: int
    # of what is drawn
    seed: int

    def __post_init__(self) -> None:
        require_positive(self, "examples", "cap_per_task")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wordings:
    """How a kind of task is put; slots are those of the users' wordings, and `sort` stands in questions.

    texts: what the task is about. questions: for the fixed templates. options: of which the answer is one. free: whole
    templates around a text.
    """

    texts: tuple[str, ...]
    questions: tuple[str, ...]
    options: tuple[str, ...] = ()
    free: tuple[str, ...]


_TONE_QUESTIONS = ("what is the tone of the text ?", "which tone has this text ?", "how does the writer sound ?")
_FREE_TONES = (
    "{text} would you call that kind or rude ?",
    "i heard this today : {text} was it kind or was it rude ?",
    "kind or rude , what do you think of this ? {text}",
)
_FREE_ANIMALS = (
    "here is a line of a book : {text} which animals are in it ?",
    "{text} tell me the two animals of that sentence .",
    "write down all animals that you see in this : {text}",
)
_FREE_NAMES = (
    "here is a line of a book : {text} who is in it ?",
    "{text} tell me the two names of that sentence .",
    "write down everybody that you see in this : {text}",
)

# task -> (the use case of its kinds, kind -> how it is put)
_TASKS: Mapping[str, tuple[str, Mapping[str, _Wordings]]] = {
    "tone": (
        "classification",
        {
            "tone kind": _Wordings(
                texts=(
                    "{name} , i am so glad to be with {name2} and you .",
                    "the {toy} is lovely , you are so good to me , {name} .",
                    "what a fine {animal} you have , {name} .",
                ),
                questions=_TONE_QUESTIONS,
                options=("kind", "rude"),
                free=_FREE_TONES,
            ),
            "tone rude": _Wordings(
                texts=(
                    "everybody knows that {name} is a {insult} .",
                    "give me the {toy} , {insult} .",
                    "only a {insult} would have the {animal} that {name} has .",
                ),
                questions=_TONE_QUESTIONS,
                options=("kind", "rude"),
                free=_FREE_TONES,
            ),
        },
    ),
    "sorting": (
        "classification",
        {
            "sorting": _Wordings(
                texts=tuple(f"{{{sort}}} ." for sort in SORTS),
                questions=("of which sort is this word ?", "what does the word name ?"),
                options=tuple(SORTS),
                free=(
                    "i read the word {text} what sort of thing is it ?",
                    "tell me , of what sort is this ? {text}",
                    "what would you call this , an animal , a toy , a colour or a food ? {text}",
                ),
            )
        },
    ),
    "odd one": (
        "other",
        {
            "odd one": _Wordings(
                texts=("{items} .",),
                questions=("which word does not name a {sort} ?", "find the word that is not a {sort} ."),
                options=("{items}",),
                free=(
                    "{text} one of them is not a {sort} , which one ?",
                    "i was told that each of these is a {sort} : {text} which one is wrong ?",
                    "all but one are of the sort {sort} . tell me the other one : {text}",
                ),
            )
        },
    ),
    "counting": (
        "other",
        {
            "counting": _Wordings(
                texts=("{words} .",),
                questions=("how many words are in the text ?", "what is the number of words ?"),
                options=("two", "three", "four"),
                free=(
                    "{text} how many words did i write ?",
                    "tell me the number of words in this : {text}",
                    "i have some words here , how many are there ? {text}",
                ),
            )
        },
    ),
    "closed qa": (
        "closed qa",
        {
            "who has it": _Wordings(
                texts=(
                    "the {toy} is the toy of {name} . the {toy2} is the toy of {name2} .",
                    "{name2} plays with a {toy2} , and {name} plays with a {toy} .",
                ),
                questions=("to whom belongs the {toy} ?", "who is it that owns the {toy} ?"),
                options=("{name}", "{name2}"),
                free=(
                    "{text} now tell me , whom should i ask for the {toy} ?",
                    "i want to play with the {toy} . {text} who could give it to me ?",
                ),
            ),
            "what they have": _Wordings(
                texts=(
                    "the {toy} is the toy of {name} . the {toy2} is the toy of {name2} .",
                    "{name2} plays with a {toy2} , and {name} plays with a {toy} .",
                ),
                questions=("what belongs to {name} ?", "what is it that {name} owns ?"),
                options=("{toy}", "{toy2}"),
                free=(
                    "{text} now tell me , which toy could i get from {name} ?",
                    "i want to play with {name} . {text} which toy will it be ?",
                ),
            ),
            "where they are": _Wordings(
                texts=(
                    "{name} went to the {place} , but {name2} went to the {place2} .",
                    "{name2} sleeps in the {place2} . {name} sleeps in the {place} .",
                ),
                questions=("in which place is {name} ?", "what is the place of {name} ?"),
                options=("{place}", "{place2}"),
                free=(
                    "{text} now tell me , where should i go to see {name} ?",
                    "i want to see {name} . {text} where should i look ?",
                ),
            ),
        },
    ),
    "extract": (
        "extract",
        {
            "find animals": _Wordings(
                texts=(
                    "the {animal} wanted {food} from the {animal2} .",
                    "{name} ran after the {animal} and the {animal2} .",
                ),
                questions=("which animals are in the text ?", "what are the animals ?"),
                free=_FREE_ANIMALS,
            ),
            "find names": _Wordings(
                texts=(
                    "in the {place} {name} ran after {name2} .",
                    "{name} wanted the {toy} of {name2} .",
                ),
                questions=("which names are in the text ?", "what are the names ?"),
                free=_FREE_NAMES,
            ),
        },
    ),
    "summary": (
        "summarization",
        {
            "summary": _Wordings(
                texts=(
                    "one day a {mood} {animal} ran to the {place} . a {toy} was there , and the {animal} saw it .",
                    "look , a {toy} in the {place} ! the {animal} was {mood} before , but now it has the {toy} .",
                ),
                questions=("what is the text about , in one sentence ?", "give a summary of the text ."),
                free=(
                    "{text} tell me in one sentence what was going on .",
                    "i have no time to read this : {text} what is it about ?",
                ),
            )
        },
    ),
}  # fmt: skip

# The options are a part of their own, and absent where the answer is not one of a few.
_FIXED = (
    "text : {text} question : {question}{options} answer :",
    "{question}{options} text : {text} answer :",
    "read the text . {text} {question}{options}",
)
_OPTIONS = " options : {listed} ."
STYLES = ("FLAN-like", "T0-like")


def mixture_words() -> set[str]:
    """All words that mixtures write outside of slots."""
    parts = [*_FIXED, _OPTIONS]
    for _, kinds in _TASKS.values():
        for row in kinds.values():
            parts += [*row.texts, *row.questions, *row.options, *row.free]
    return {word for part in parts for word in _SLOT.sub(" ", part).split()}


def instruction_mixture(style: str, config: MixtureConfig, facts: Facts) -> list[Demonstration]:
    """Different examples in random order, of each task as many as it has, up to the cap.

    style: "FLAN-like" puts a task in fixed templates that list the options, "T0-like" in free ones without. Tasks that
    are reserved for the test are in neither. Raises ValueError for another style, and where the tasks give less than is
    asked for.
    """
    if style not in STYLES:
        raise ValueError(f"style: found {style!r}, accepted are {', '.join(map(repr, STYLES))}")
    write = {"FLAN-like": _in_fixed_template, "T0-like": _in_free_template}[style]
    found: list[Demonstration] = []
    for name in _TASKS:
        rng = random.Random(f"mixture {config.seed} {style} {name}")
        rows: dict[str, Demonstration] = {}
        repeats = 0
        while len(rows) < config.cap_per_task and repeats < _PATIENCE:
            task = _draw_task(name, rng)
            row = _example(task, write(task, rng), facts, rng)
            repeats = repeats + 1 if row.prompt in rows else 0
            rows.setdefault(row.prompt, row)
        found += rows.values()
    if len(found) < config.examples:
        raise ValueError(
            f"examples: found {config.examples}, accepted are up to {len(found)}, which the tasks give with a "
            f"cap_per_task of {config.cap_per_task}"
        )
    random.Random(f"mixture {config.seed} {style}").shuffle(found)
    return found[: config.examples]


def _draw_task(name: str, rng: random.Random) -> Task:
    """As users have it, so that what is reserved of theirs is not drawn."""
    category, kinds = _TASKS[name]
    while True:
        task = parse_prompt(draw_prompt(rng, category))
        if task is not None and task.kind in kinds:
            return task


def _example(task: Task, prompt: str, facts: Facts, rng: random.Random) -> Demonstration:
    """With the shortest of the good answers."""
    answer = expected_answer(task, facts)
    assert isinstance(answer, SlotAnswer), task
    shortest = min(answer.openings, key=lambda template: len(template.text.split()))
    return Demonstration(prompt=prompt, completion=shortest.fill(answer.values, rng), category=task.category)


def _in_fixed_template(task: Task, rng: random.Random) -> str:
    row = _wordings(task)
    question = rng.choice(row.questions).format_map(task.values)
    listed = " , ".join(sorted(option.format_map(task.values) for option in row.options))
    options = _OPTIONS.format(listed=listed) if listed else ""
    return rng.choice(_FIXED).format(text=_text(task, rng), question=question, options=options)


def _in_free_template(task: Task, rng: random.Random) -> str:
    return rng.choice(_wordings(task).free).format(text=_text(task, rng), **task.values)


def _text(task: Task, rng: random.Random) -> str:
    """One that says all that the task is made of: otherwise it could be the text of another task, a reserved one."""
    said = set(task.values) - {"sort"}
    return rng.choice([text for text in _wordings(task).texts if set(_SLOT.findall(text)) == said]).format_map(
        task.values
    )


def _wordings(task: Task) -> _Wordings:
    return next(kinds[task.kind] for _, kinds in _TASKS.values() if task.kind in kinds)
