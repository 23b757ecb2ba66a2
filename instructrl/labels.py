"""Judgements as records: what labelers are asked, who wrote what they see, and what they make of it.

They are the same whether a person, a simulated labeler or a model fills them in; `data/labels.py` reads and writes
them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

# What labelers put first when they rank: the paper's change between training and evaluation data (section 3.4).
HELPFUL_FIRST = "helpful first"
TRUTHFUL_AND_HARMLESS_FIRST = "truthful and harmless first"
CRITERIA = (HELPFUL_FIRST, TRUTHFUL_AND_HARMLESS_FIRST)
KINDS = ("ranking", "demonstration", "evaluation", "toxicity", "truthfulqa", "screening")
SKIPS = ("", "unclear", "expertise", "other")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOutput:
    """A response to be judged. id: tells it from others of its task, and nothing of who wrote it."""

    id: str
    text: str
    finished: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTask:
    """What one labeler is asked: to judge the outputs, in this order, or to write one. It names no model.

    kind: one of `KINDS`. criteria: one of `CRITERIA`.
    """

    id: str
    prompt: str
    outputs: tuple[TaskOutput, ...] = ()
    kind: str = KINDS[0]
    criteria: str = HELPFUL_FIRST
    user: str = ""
    source: str = ""
    category: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskKey:
    """Which model wrote which output of the task of this id; kept apart from it. seed: of the outputs' order."""

    id: str
    models: Mapping[str, str]
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLabel:
    """likert: 1 (worst) to 7. flags: the yes/no questions of table 3; None where one does not apply to the prompt."""

    likert: int
    flags: Mapping[str, bool | None] = field(default_factory=dict)
    notes: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What a labeler made of a task: a person, somebody simulated, or a model.

    seconds: None where nobody took time. skipped: why nothing else is filled in, one of `SKIPS`; "" for an answer.
    prompt_flags: questions of table 7. outputs, ranks: by output id; rank 1 is best, equal ranks are a tie.
    """

    task: str
    labeler: str
    seconds: float | None = None
    skipped: str = ""
    prompt_flags: Mapping[str, bool] = field(default_factory=dict)
    demonstration: str | None = None
    outputs: Mapping[str, OutputLabel] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
