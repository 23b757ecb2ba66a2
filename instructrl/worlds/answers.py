"""What a good answer to a task is: its sentences, the words that must be in it; and writing one."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from instructrl.worlds import phrases
from instructrl.worlds.facts import IT_STATEMENTS, STATEMENTS, UNKNOWN, Facts
from instructrl.worlds.kinds import KINDS
from instructrl.worlds.language import CATEGORIES, NUMBERS, SORTS, START_WORDS, Template
from instructrl.worlds.tasks import Task

# Longer answers are drawn again: a response has to fit the experiment's response length.
_MAX_ANSWER_TOKENS = 18
# How right it is to say that one does not know what somebody knows: more than a falsehood, less than the truth.
_ABSTENTION = 0.45
# Use cases whose answer stands in the prompt.
CLOSED_DOMAIN = ("closed qa", "extract", "summarization")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotAnswer:
    """Sentences with slots.

    openings: one of them comes first. lines: what may follow. related: sentences of the right kind that answer
    another question. values: slot -> the right word. required: slots whose word must be said.
    fewest, most: sentences. grounded: a wrong word is an invention, because the answer is in the prompt or a fact.
    abstention: 0 to 1, how right it is to say that one does not know. sure: whoever expects this answer knows it; if
    not, any value of the right type may be right.
    """

    openings: tuple[Template, ...]
    lines: tuple[Template, ...] = ()
    short: tuple[Template, ...] = ()
    related: tuple[Template, ...] = ()
    values: Mapping[str, str]
    required: tuple[str, ...]
    fewest: int = 1
    most: int = 1
    grounded: bool = False
    abstention: float = 0.0
    sure: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceAnswer:
    """Exactly these words in this order. loud: in capitals."""

    words: tuple[str, ...]
    loud: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ListAnswer:
    """`count` different words of a category, separated by commas."""

    words: tuple[str, ...]
    count: int


Answer = SlotAnswer | SequenceAnswer | ListAnswer


def expected_answer(task: Task, facts: Facts) -> Answer:
    """What answers a task in a world of these facts, its constraints aside."""
    if task.kind.endswith("continuation"):
        return _continuation(task)
    if KINDS[task.kind].category == "generation":
        return _composition(task, facts)
    if KINDS[task.kind].category == "chat":
        return _reply(task)
    name, _, relation = task.kind.partition(" ")
    if name == "fact":
        return _fact(task, relation, facts)
    if name == "check":
        return _check(task, relation, facts)
    return _text_work(task)


def _composition(task: Task, facts: Facts) -> SlotAnswer:
    values = task.values
    if task.kind in phrases.STORY_OPENINGS:
        related = tuple(
            template
            for group in (phrases.STORY_OPENINGS, phrases.STORY_LINES)
            for kind, group_templates in group.items()
            for template in group_templates
            if kind != task.kind
        )
        return SlotAnswer(
            openings=phrases.STORY_OPENINGS[task.kind],
            lines=phrases.STORY_LINES[task.kind],
            related=related,
            values=values,
            required=tuple(values),
            fewest=2,
            most=3,
        )
    if task.kind.removesuffix(" start") in phrases.STORY_STARTS:
        lines = phrases.STORY_LINES[task.kind.removesuffix(" start")]
        return SlotAnswer(openings=lines, lines=lines, related=phrases.SCENES, values=values, required=(), most=2)
    if task.kind == "description":
        return _description(values, facts)
    openings, lines = {
        "poem": (phrases.POEM, phrases.POEM_LINES),
        "note": (phrases.NOTE, phrases.NOTE_LINES),
        "advert": (phrases.ADVERT, phrases.ADVERT_LINES),
    }[task.kind]
    return SlotAnswer(openings=openings, lines=lines, values=values, required=tuple(values), fewest=2, most=2)


def _description(values: Mapping[str, str], facts: Facts) -> SlotAnswer:
    known = facts.of(values["animal"])
    return SlotAnswer(
        openings=tuple(STATEMENTS[relation] for relation in known),
        lines=tuple(IT_STATEMENTS[relation] for relation in known),
        values={**values, **known},
        required=("animal",),
        fewest=2,
        most=3,
        grounded=True,
    )


def _continuation(task: Task) -> SlotAnswer:
    """Anything that people say next to each other, in the tone that is asked for."""
    polite = phrases.SCENES + phrases.SMALL_TALK
    openings, related = (phrases.RUDE, polite) if task.kind.startswith("rude") else (polite, ())
    return SlotAnswer(openings=openings, related=related, values={}, required=(), most=2)


def _reply(task: Task) -> SlotAnswer:
    values = task.values
    if task.kind == "mood":
        others = (group for mood, group in phrases.REPLIES.items() if mood != values["mood"])
        return SlotAnswer(
            openings=phrases.REPLIES[values["mood"]],
            related=tuple(template for group in others for template in group),
            values={},
            required=(),
        )
    openings, slot = {
        "greeting": (phrases.GREETINGS, "name"),
        "loss": (phrases.LOSSES, "toy"),
        "liking": (phrases.LIKINGS, "food"),
    }[task.kind]
    return SlotAnswer(openings=openings, values={slot: values[slot]}, required=(slot,))


def _fact(task: Task, relation: str, facts: Facts) -> SlotAnswer:
    animal = task.values["animal"]
    sure = (animal, relation) not in facts.unsure
    truth = facts.value(animal, relation)
    if sure and truth is None:
        return _unknown(relation, {"animal": animal})
    return SlotAnswer(
        openings=phrases.FACTS[relation],
        short=phrases.SHORT_FACTS[relation],
        related=phrases.STATES + phrases.IT_STATES,
        values={"animal": animal} if truth is None else {"animal": animal, relation: truth},
        required=(relation,) if sure else (),
        grounded=True,
        abstention=_ABSTENTION,
        sure=sure,
    )


def _check(task: Task, relation: str, facts: Facts) -> SlotAnswer:
    animal = task.values["animal"]
    truth = facts.value(animal, relation)
    if truth is None and (animal, relation) not in facts.unsure:
        return _unknown(relation, {"animal": animal})
    short = "one word" in task.constraints
    known = {} if truth is None else {"polarity": "yes" if task.values[relation] == truth else "no", relation: truth}
    return SlotAnswer(
        openings=phrases.CHECKS[relation],
        short=phrases.SHORT_CHECK,
        values={"animal": animal, **known},
        required=tuple(known) if not short else tuple(known)[:1],
        grounded=True,
        abstention=_ABSTENTION,
        sure=bool(known),
    )


def _unknown(relation: str, values: Mapping[str, str]) -> SlotAnswer:
    """Of what nobody knows, only that nobody knows it is true."""
    return SlotAnswer(
        openings=(*phrases.ABSTENTIONS, UNKNOWN[relation]),
        short=phrases.ABSTENTIONS,
        related=phrases.STATES + phrases.IT_STATES,
        values=values,
        required=(),
        grounded=True,
    )


def _text_work(task: Task) -> Answer:
    values = task.values
    words = tuple(values.get("words", "").split())
    if task.kind == "list":
        return ListAnswer(words=CATEGORIES[values["category"]], count=NUMBERS.index(values["count"]) + 1)
    if task.kind == "list start":
        others = tuple(word for word in CATEGORIES[values["category"]] if word != values["item"])
        return ListAnswer(words=others, count=NUMBERS.index(values["count"]))
    if task.kind == "repetition":
        return SequenceAnswer(words=(values["item"],) * (NUMBERS.index(values["count"]) + 1))
    if task.kind == "capitals":
        return SequenceAnswer(words=words, loud=True)
    if task.kind == "reversal":
        return SequenceAnswer(words=words[::-1])
    if task.kind == "replacement":
        return SequenceAnswer(words=tuple(values["item2"] if word == values["item"] else word for word in words))
    openings, right = _short_answers(task, len(words))
    if task.kind in phrases.CLOSED:
        values = {slot: word for slot, word in values.items() if not slot.endswith("2")}
    return SlotAnswer(
        openings=openings,
        values={**values, **right},
        required=tuple(right),
        grounded=KINDS[task.kind].category in CLOSED_DOMAIN,
    )


def _short_answers(task: Task, num_words: int) -> tuple[tuple[Template, ...], Mapping[str, str]]:
    """The sentences and the required words of the tasks with one right answer."""
    values = task.values
    if task.kind in phrases.CLOSED:
        slot = {"who has it": "name", "what they have": "toy", "where they are": "place"}[task.kind]
        return phrases.CLOSED[task.kind], {slot: values[slot]}
    if task.kind in phrases.FOUND:
        slots = ("animal", "animal2") if task.kind == "find animals" else ("name", "name2")
        return phrases.FOUND[task.kind], {slot: values[slot] for slot in slots}
    if task.kind == "summary":
        return phrases.SUMMARIES, {slot: values[slot] for slot in ("animal", "toy", "place")}
    if task.kind == "counting":
        return phrases.COUNTED, {"count": NUMBERS[num_words - 1]}
    if task.kind == "sorting":
        return phrases.SORTED, {"sort": next(iter(values))}
    if task.kind == "odd one":
        words = values["items"].split(" , ")
        return phrases.ODD, {"item": next(word for word in words if word not in SORTS[values["sort"]])}
    return phrases.TONES, {"tone": task.kind.removeprefix("tone ")}


def write_answer(task: Task, facts: Facts, rng: random.Random) -> str:
    """A faultless answer, one of many wordings, by somebody who believes these facts and says so where unsure."""
    answer = expected_answer(task, facts)
    if isinstance(answer, SlotAnswer) and not answer.sure:
        return _frame(task, rng.choice(phrases.ABSTENTIONS).text)
    if isinstance(answer, SlotAnswer):
        candidates = [_write_sentences(task, answer, rng) for _ in range(4)]
        fitting = [text for text in candidates if len(text.split()) <= _MAX_ANSWER_TOKENS]
        text = fitting[0] if fitting else min(candidates, key=lambda candidate: len(candidate.split()))
    elif isinstance(answer, ListAnswer):
        text = _write_list(task, answer, rng)
    else:
        text = f"{' '.join(answer.words)} ."
        text = text.upper() if answer.loud else text
    return _frame(task, text)


def _write_sentences(task: Task, answer: SlotAnswer, rng: random.Random) -> str:
    if "one word" in task.constraints:
        return rng.choice(answer.short).fill(answer.values, rng)
    num_sentences = rng.randint(answer.fewest, answer.most)
    if "sentences" in task.constraints:
        num_sentences = NUMBERS.index(task.constraints["sentences"]) + 1
    openings = answer.openings + (answer.short if "start" not in task.constraints else ())
    if answer.short and task.kind.startswith("check"):
        openings = answer.openings
    opening = rng.choice(openings)
    chosen, told = [opening], set(opening.slots)
    lines = [line for line in answer.lines if line != opening]
    rng.shuffle(lines)
    for line in lines:
        # A line whose every word was told says nothing new, unless it names who does something.
        if len(chosen) < num_sentences and (not line.slots or "animal" in line.slots or set(line.slots) - told):
            chosen.append(line)
            told.update(line.slots)
    return " ".join(template.fill(answer.values, rng) for template in chosen)


def _write_list(task: Task, answer: ListAnswer, rng: random.Random) -> str:
    first = task.constraints.get("start")
    rest = rng.sample([word for word in answer.words if word != first], answer.count - (first is not None))
    words = [first, *rest] if first is not None else rest
    if len(words) > 1 and rng.random() < 0.3:
        return f"{' , '.join(words[:-1])} and {words[-1]} ."
    return f"{' , '.join(words)} ."


def _frame(task: Task, text: str) -> str:
    """The answer with the constraints on its first and last word and on its letters."""
    start, end = task.constraints.get("start"), task.constraints.get("end")
    if start in START_WORDS:
        text = f"{start} , {text}"
    if end is not None:
        text = f"{text} {end} ."
    return text.upper() if "capitals" in task.constraints else text
