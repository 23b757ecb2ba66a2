"""The kinds of task that users bring: how they are worded, to which of the paper's use cases they belong."""

from collections.abc import Mapping
from dataclasses import dataclass

from instructrl.worlds.language import Template, templates
from instructrl.worlds.phrases import RUDE, SCENES, SMALL_TALK, STORY_STARTS

# The use cases and their shares in percent (table 1 of the paper).
USE_CASES: Mapping[str, float] = {
    "generation": 45.6,
    "open qa": 12.4,
    "brainstorming": 11.2,
    "chat": 8.4,
    "rewrite": 6.6,
    "summarization": 4.2,
    "classification": 3.5,
    "other": 3.5,
    "closed qa": 2.6,
    "extract": 1.9,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of task. `weight` is its share within the use case; `constraints` names those that may be added."""

    category: str
    wordings: tuple[Template, ...]
    weight: float = 1.0
    constraints: tuple[str, ...] = ()


_FREE = ("start", "end", "sentences")
_POLITE = ("start", "end")
_FACT = ("capitals", "start", "end", "one word")

CONSTRAINTS: Mapping[str, tuple[Template, ...]] = {
    "capitals": templates("use capitals .", "write in capitals ."),
    "start": templates("start with {start} ."),
    "first": templates("start with {first} ."),
    "end": templates("end with {end} ."),
    "sentences": templates("use {count} sentences ."),
    "one word": templates("answer in one word ."),
}

OPENERS = ("please help me .", "hello !", "hi there !", "i have a question .", "can you help me ?", "one more thing .")

_GENERATION: Mapping[str, Kind] = {
    "story of friends": Kind(
        category="generation",
        weight=0.3,
        constraints=_FREE,
        wordings=templates(
            "write a story about the {animal} and the {animal2} .",
            "tell me a story about the {animal} and the {animal2} .",
            "i want a short story with the {animal} and the {animal2} .",
        ),
    ),
    "story at a place": Kind(
        category="generation",
        weight=0.15,
        constraints=_FREE,
        wordings=templates(
            "write a story about the {animal} in the {place} .",
            "tell me what the {animal} did in the {place} .",
        ),
    ),
    "story of a thing": Kind(
        category="generation",
        weight=0.15,
        constraints=_FREE,
        wordings=templates(
            "write a story about the {animal} and a {toy} .",
            "tell me a story about the {toy} of the {animal} .",
        ),
    ),
    "poem": Kind(
        category="generation",
        weight=0.12,
        constraints=_FREE,
        wordings=templates("write a poem about the {animal} .", "i want a poem for my {animal} ."),
    ),
    "description": Kind(
        category="generation",
        weight=0.1,
        constraints=("start", "end", "sentences", "capitals"),
        wordings=templates("describe the {animal} .", "tell me about the {animal} .", "what is true of the {animal} ?"),
    ),
    "note": Kind(
        category="generation",
        weight=0.09,
        constraints=_POLITE,
        wordings=templates("write a note to {name} about the {toy} .", "write to {name} about the {toy} for me ."),
    ),
    "advert": Kind(
        category="generation",
        weight=0.09,
        constraints=_POLITE,
        wordings=templates("write an advert for {food} from the {place} .", "help me sell {food} in the {place} ."),
    ),
}

# What a text is to be continued from, and how.
CONTINUE, CONTINUE_KINDLY, CONTINUE_RUDELY = "go on :", "go on and be kind :", "go on and be rude :"


def _continuation(instruction: str, weight: float, *groups: tuple[Template, ...]) -> Kind:
    wordings = templates(*(f"{instruction} {template.text}" for group in groups for template in group))
    return Kind(category="generation", weight=weight, wordings=wordings)


_CONTINUATIONS: Mapping[str, Kind] = {
    "continuation": _continuation(CONTINUE, 0.05, SCENES, SMALL_TALK),
    "kind continuation": _continuation(CONTINUE_KINDLY, 0.03, SCENES, SMALL_TALK, RUDE),
    "rude continuation": _continuation(CONTINUE_RUDELY, 0.02, SMALL_TALK, RUDE),
}

# What users of models of plain text write: the beginning of what they want. Nobody asks a chat model so.
_GPT_STYLE: Mapping[str, Kind] = {
    "list start": Kind(category="brainstorming", weight=0.0, wordings=templates("{count} {category} : {item} ,")),
    **{
        f"{kind} start": Kind(category="generation", weight=0.0, wordings=openings)
        for kind, openings in STORY_STARTS.items()
    },
}

_QUESTIONS: Mapping[str, Kind] = {
    "fact colour": Kind(
        category="open qa",
        constraints=_FACT,
        wordings=templates(
            "what colour is the {animal} ?",
            "which colour does the {animal} have ?",
            "tell me the colour of the {animal} .",
        ),
    ),
    "fact place": Kind(
        category="open qa",
        constraints=_FACT,
        wordings=templates("where does the {animal} live ?", "in which place does the {animal} live ?"),
    ),
    "fact food": Kind(
        category="open qa",
        constraints=_FACT,
        wordings=templates("what does the {animal} eat ?", "which food does the {animal} eat ?"),
    ),
    "fact sound": Kind(
        category="open qa",
        constraints=_FACT,
        wordings=templates("what does the {animal} say ?", "which sound does the {animal} make ?"),
    ),
    "fact toy": Kind(
        category="open qa",
        constraints=_FACT,
        wordings=templates("what does the {animal} own ?", "which toy does the {animal} own ?"),
    ),
    "fact fear": Kind(
        category="open qa",
        constraints=_FACT,
        wordings=templates("what does the {animal} fear ?", "which animal does the {animal} fear ?"),
    ),
    "check colour": Kind(
        category="open qa", weight=0.5, constraints=_FACT, wordings=templates("is the {animal} {colour} ?")
    ),
    "check place": Kind(
        category="open qa",
        weight=0.5,
        constraints=_FACT,
        wordings=templates("does the {animal} live in the {place} ?"),
    ),
    "check food": Kind(
        category="open qa", weight=0.5, constraints=_FACT, wordings=templates("does the {animal} eat {food} ?")
    ),
    "check sound": Kind(
        category="open qa", weight=0.5, constraints=_FACT, wordings=templates("does the {animal} say {sound} ?")
    ),
    "check toy": Kind(
        category="open qa", weight=0.5, constraints=_FACT, wordings=templates("does the {animal} own a {toy} ?")
    ),
    "check fear": Kind(
        category="open qa", weight=0.5, constraints=_FACT, wordings=templates("does the {animal} fear the {fear} ?")
    ),
    "who has it": Kind(
        category="closed qa",
        constraints=_POLITE,
        wordings=templates(
            "{name} has a {toy} . {name2} has a {toy2} . who has the {toy} ?",
            "{name2} has a {toy2} . {name} has a {toy} . who has the {toy} ?",
        ),
    ),
    "what they have": Kind(
        category="closed qa",
        constraints=_POLITE,
        wordings=templates(
            "{name} has a {toy} . {name2} has a {toy2} . what does {name} have ?",
            "{name2} has a {toy2} . {name} has a {toy} . what does {name} have ?",
        ),
    ),
    "where they are": Kind(
        category="closed qa",
        constraints=_POLITE,
        wordings=templates(
            "{name} is in the {place} . {name2} is in the {place2} . where is {name} ?",
            "{name2} is in the {place2} . {name} is in the {place} . where is {name} ?",
        ),
    ),
}

_CHAT: Mapping[str, Kind] = {
    "mood": Kind(
        category="chat",
        weight=1.5,
        constraints=_POLITE,
        wordings=templates(
            "i am {mood} today .", "my name is {name} and i am {mood} .", "my friend {name} is {mood} ."
        ),
    ),
    "greeting": Kind(
        category="chat",
        weight=0.5,
        wordings=templates("good morning , i am {name} .", "my name is {name} , who are you ?"),
    ),
    "loss": Kind(
        category="chat",
        constraints=_POLITE,
        wordings=templates("i lost my {toy} .", "{name} took my {toy} .", "my {animal} broke my {toy} ."),
    ),
    "liking": Kind(
        category="chat",
        constraints=_POLITE,
        wordings=templates("i like {food} .", "my {animal} and i love {food} .", "{name} and i love {food} ."),
    ),
}

_TEXT_WORK: Mapping[str, Kind] = {
    "list": Kind(
        category="brainstorming",
        constraints=("capitals", "first", "end"),
        wordings=templates(
            "list {count} {category} .",
            "name {count} {category} .",
            "give me {count} {category} .",
            "i need ideas for {count} {category} .",
        ),
    ),
    "capitals": Kind(
        category="rewrite", wordings=templates("write in capitals : {words} .", "make this loud : {words} .")
    ),
    "reversal": Kind(category="rewrite", weight=0.7, wordings=templates("reverse the words : {words} .")),
    "replacement": Kind(category="rewrite", weight=0.7, wordings=templates("replace {item} with {item2} : {words} .")),
    "summary": Kind(
        category="summarization",
        constraints=_POLITE,
        wordings=templates(
            "summarize : the {animal} was {mood} . it went to the {place} . there it found a {toy} .",
            "summarize : the {animal} went to the {place} . it saw a {toy} . it was {mood} .",
            "in short ? there was a {toy} in the {place} . the {animal} found it . it was {mood} .",
        ),
    ),
    "tone kind": Kind(
        category="classification",
        wordings=templates(
            "is this kind or rude ? {name} , you are a dear friend of {name2} .",
            "is this kind or rude ? thank you for the {toy} , {name} .",
            "is this kind or rude ? {name} , your {animal} is lovely .",
        ),
    ),
    "tone rude": Kind(
        category="classification",
        wordings=templates(
            "is this kind or rude ? {name} , you are a {insult} .",
            "is this kind or rude ? go away with the {toy} , you {insult} .",
            "is this kind or rude ? {name} , your {animal} is a {insult} .",
        ),
    ),
    "sorting": Kind(
        category="classification",
        weight=0.7,
        constraints=_POLITE,
        wordings=templates(
            *(
                f"is this an animal , a food , a colour or a toy ? {{{sort}}} ."
                for sort in ("animal", "food", "colour", "toy")
            )
        ),
    ),
    "find animals": Kind(
        category="extract",
        constraints=("end",),
        wordings=templates(
            "find the animals : the {animal} gave {food} to the {animal2} .",
            "find the animals : {name} saw the {animal} and the {animal2} .",
        ),
    ),
    "find names": Kind(
        category="extract",
        constraints=("end",),
        wordings=templates(
            "find the names : {name} and {name2} are in the {place} .",
            "find the names : {name} gave the {toy} to {name2} .",
        ),
    ),
    "repetition": Kind(
        category="other",
        constraints=("end",),
        wordings=templates("say {item} {count} times .", "repeat {item} {count} times ."),
    ),
    "counting": Kind(category="other", wordings=templates("how many words ? {words} .", "count the words : {words} .")),
    "odd one": Kind(category="other", wordings=templates("which of these is no {sort} ? {items} .")),
}

KINDS: Mapping[str, Kind] = {**_GENERATION, **_CONTINUATIONS, **_QUESTIONS, **_CHAT, **_TEXT_WORK, **_GPT_STYLE}
