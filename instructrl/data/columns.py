"""From the columns of a row to a record, for every layout of columns that is accepted.

The tables below say which columns ask and which answer. What those of a row say is put together, taken once where two
of them say the same, and refused where they contradict each other: nothing that was asked is left out. A prompt is a
text where a row has texts alone, and a `Conversation` where it has messages, tools, or a system message.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from instructrl.data.messages import (
    ColumnError,
    asked_of,
    before_answer,
    joined,
    json_of,
    messages_of,
    shown,
    split_answer,
    text_of,
)
from instructrl.types import Comparison, Demonstration, Document, Message, Prompt

Row = Mapping[str, Any]
Ranked = tuple[str, tuple[str, ...], frozenset[tuple[int, int]]]
AnyT = TypeVar("AnyT")

SYSTEM = ("system", "system_prompt")
QUESTIONS = ("prompt", "instruction", "question")
# Texts that stand below a question, after a blank line; without one, the first of them is it.
PASSAGES = ("input", "context")
ANSWERS = ("completion", "output", "answer", "response")
# Questions and answers in turns.
TRANSCRIPTS = ("messages", "conversations")
# Parts of what was asked for which a prompt has no place: read, to be refused.
UNUSABLE = ("history", "images")
# What a model may call: a list of descriptions, or JSON of one.
TOOLS = "tools"

_ASKING = (*SYSTEM, *QUESTIONS, *PASSAGES, *TRANSCRIPTS, *UNUSABLE, TOOLS)
# Where messages may stand.
_SAYING = (*QUESTIONS, *PASSAGES, *TRANSCRIPTS, *ANSWERS, "completions", "chosen", "rejected")
GROUP_COLUMNS = ("user", "source", "category")
PROMPT_COLUMNS = (*_ASKING, *GROUP_COLUMNS)
DEMONSTRATION_COLUMNS = (*_ASKING, *ANSWERS, *GROUP_COLUMNS)
COMPARISON_COLUMNS = (
    *_ASKING,
    *("completions", "ranks", "preferences", "chosen", "rejected", "labeler"),
    *GROUP_COLUMNS,
)
DOCUMENT_COLUMNS = ("text", "source")

_QUESTION = f"{QUESTIONS[0]} (or {', '.join(QUESTIONS[1:])})"
_ANSWER = f"{ANSWERS[0]} (or {', '.join(ANSWERS[1:])})"
_PROMPTS = f"are {_QUESTION}, or {' or '.join(TRANSCRIPTS)}"
_DEMONSTRATIONS = f"are {_QUESTION} and {_ANSWER}, or {' or '.join(TRANSCRIPTS)}"
_COMPARISONS = f"are {_QUESTION} and completions with ranks or preferences, or chosen and rejected"

ASSISTANT_TURN = "\n\nAssistant:"
"""What begins an answer in the transcripts of the Anthropic HH data."""


def parse_prompt(row: Row) -> Prompt:
    """What was asked; an answer at the end of a transcript is left out."""
    column, asked = _conversation(row)
    if not column:
        raise _missing("prompt", row, _PROMPTS)
    return Prompt(text=_prompt(row, asked, column), **_groups(row))


def parse_demonstration(row: Row) -> Demonstration:
    """What was asked and the answer to it."""
    column, asked = _conversation(row)
    answers = {name: row[name] for name in _present(row, ANSWERS)}
    turns = {name: joined(asked, messages_of(row[name], name), name) for name in _present(row, TRANSCRIPTS)}
    if not turns and (not answers or (not column and isinstance(next(iter(answers.values())), str))):
        raise _missing("completion" if column else "prompt", row, _DEMONSTRATIONS)
    found = {name: _answered(asked, value, name) for name, value in answers.items()}
    # Turns that end with the user's have their answer in another column.
    found |= {n: split_answer(whole, n) for n, whole in turns.items() if not answers or whole[-1].role == "assistant"}
    pairs = {name: (_prompt(row, messages, name), text) for name, (messages, text) in found.items()}
    prompt, completion = _agreed(pairs)
    return Demonstration(prompt=prompt, completion=completion, **_groups(row))


def parse_comparison(row: Row) -> Comparison:
    """What was asked, K answers to it, and which of them are preferred to which."""
    _, asked = _conversation(row)
    found = {
        names[0]: parse(row, asked) for names, parse in _COMPARED.items() if all(_has(row, name) for name in names)
    }
    if not found:
        raise _missing("completions", row, _COMPARISONS)
    prompt, completions, preferred = _agreed(found)
    return Comparison(
        prompt=prompt,
        completions=completions,
        preferred=preferred,
        labeler=_label(row, "labeler"),
        user=_label(row, "user"),
        source=_label(row, "source"),
        category=_label(row, "category"),
    )


def parse_document(row: Row) -> Document:
    """`text`; it may be empty."""
    if not _has(row, "text"):
        raise _missing("text", row, "is text")
    return Document(text=text_of(row["text"], "text"), source=_label(row, "source"))


# ---- what was asked


def _prompt(row: Row, messages: list[Message], column: str) -> str:
    given = any(_holds_messages(row.get(name)) for name in _SAYING)
    tools = row.get(TOOLS)
    return asked_of(messages, column, given=given, tools=_tools(tools) if tools else "")


def _holds_messages(value: Any) -> bool:
    """Whether there are messages in a value: of `completions`, in one of them."""
    if isinstance(value, dict):
        return bool(value.get("role") or value.get("from") or _holds_messages(value.get("completion")))
    return isinstance(value, list) and any(map(_holds_messages, value))


def _tools(value: Any) -> str:
    accepted = "is a list of descriptions, or JSON of one"
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ColumnError(TOOLS, shown(value), accepted) from None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise ColumnError(TOOLS, shown(value), accepted)
    return json_of(value, TOOLS) if value else ""


def _question(row: Row) -> tuple[str, list[Message]]:
    """The column that asks, "" where there is none, and what it asks with the system's message before it."""
    for name in _present(row, UNUSABLE):
        if row[name]:
            raise ColumnError(name, shown(row[name]), "is no such column: what it says has no place in a prompt")
    passages = [name for name in _present(row, PASSAGES) if isinstance(row[name], str)]
    asking = [*_present(row, QUESTIONS), *(name for name in _present(row, PASSAGES) if name not in passages)]
    if not asking:
        asking, passages = passages[:1], passages[1:]
    asked = _agreed({name: _with_passages(row, name, passages) for name in asking}) if asking else []
    for name in _present(row, SYSTEM):
        if text := text_of(row[name], name):
            asked = joined([Message("system", text)], asked, name)
    return asking[0] if asking else "", asked


def _with_passages(row: Row, column: str, passages: Iterable[str]) -> list[Message]:
    texts = [text for name in passages if (text := text_of(row[name], name))]
    if isinstance(row[column], list | dict):
        if texts:
            raise ColumnError(next(iter(passages)), f"a text beside the messages of {column}", "are messages with it")
        return messages_of(row[column], column)
    text = "\n\n".join(part for part in (text_of(row[column], column), *texts) if part)
    if not text:
        raise ColumnError(column, "an empty text", "is a text of at least one character")
    return [Message("user", text)]


def _conversation(row: Row) -> tuple[str, list[Message]]:
    """As `_question`, with the turns of a transcript but for an answer at their end."""
    column, asked = _question(row)
    found = {
        name: before_answer(joined(asked, messages_of(row[name], name), name)) for name in _present(row, TRANSCRIPTS)
    }
    return (next(iter(found)), _agreed(found)) if found else (column, asked)


# ---- what was answered


def _answered(asked: list[Message], value: Any, column: str) -> tuple[list[Message], str]:
    """All that stands before an answer, and the answer. value: a text, or messages of which the answer is the last."""
    if not isinstance(value, list | dict):
        return asked, text_of(value, column)
    return split_answer(joined(asked, messages_of(value, column), column), column)


def _answers(row: Row, asked: list[Message], values: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The prompt and its answers. values: column to text or messages. Raises ColumnError where the prompts differ."""
    found = {column: _answered(asked, value, column) for column, value in values.items()}
    first = next(iter(found))
    for column, (messages, _) in found.items():
        if messages != found[first][0]:
            raise ColumnError(column, f"other messages before the last than in {first}", "are the same ones")
    return _prompt(row, found[first][0], first), tuple(answer for _, answer in found.values())


def _ranked(row: Row, asked: list[Message]) -> Ranked:
    values = row["completions"]
    if not isinstance(values, list):
        raise ColumnError("completions", shown(values), "is a list of at least 2 completions")
    if len(values) < 2:
        raise ColumnError("completions", f"{len(values)}", "are at least 2 (K = 1 cannot be compared)")
    inside = all(isinstance(value, dict) and "completion" in value for value in values)
    texts = {
        f"completions[{i}]{'.completion' if inside else ''}": value["completion"] if inside else value
        for i, value in enumerate(values)
    }
    if not asked and any(isinstance(value, str) for value in texts.values()):
        raise _missing("prompt", row, f"are {_QUESTION} and completions")
    prompt, completions = _answers(row, asked, texts)
    if inside:
        ranks: Any = [value.get("rank") for value in values]
        return prompt, completions, Comparison.pairs_from_ranks(_ranks(ranks, len(texts), "completions[].rank"))
    if _has(row, "ranks") == _has(row, "preferences"):
        found = "both" if _has(row, "ranks") else _names(row)
        raise ColumnError("ranks", found, "is one of ranks and preferences")
    if _has(row, "ranks"):
        return prompt, completions, Comparison.pairs_from_ranks(_ranks(row["ranks"], len(completions), "ranks"))
    return prompt, completions, _preferences(row["preferences"], len(completions))


def _ranks(values: Any, num_completions: int, column: str) -> list[float]:
    accepted = f"are {num_completions} finite numbers, one a completion, lower is better"
    if not isinstance(values, list):
        raise ColumnError(column, shown(values), accepted)
    if len(values) != num_completions:
        raise ColumnError(column, f"{len(values)} ranks", accepted)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
            raise ColumnError(column, shown(value), accepted)
    return values


def _preferences(values: Any, num_completions: int) -> frozenset[tuple[int, int]]:
    accepted = f"are pairs [winner, loser] of two different numbers from 0 to {num_completions - 1}"
    if not isinstance(values, list):
        raise ColumnError("preferences", shown(values), accepted)
    for pair in values:
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
            raise ColumnError("preferences", shown(pair), accepted)
        for index in pair:
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < num_completions:
                raise ColumnError("preferences", shown(pair), accepted)
    return frozenset((winner, loser) for winner, loser in values)


def _pair(row: Row, asked: list[Message]) -> Ranked:
    values = {name: row[name] for name in ("chosen", "rejected")}
    texts = [text_of(value, name) for name, value in values.items() if not isinstance(value, list | dict)]
    if len(texts) == 2 and not asked:
        prompt, *answers = split_transcripts(*texts)
        return prompt, tuple(answers), frozenset({(0, 1)})
    start = asked[0].content if len(asked) == 1 else ""
    if len(texts) == 2 and start.rstrip().endswith("Assistant:") and all(text.startswith(start) for text in texts):
        # A prompt beside transcripts that begin with it; another text that an answer repeats belongs to the answer.
        values = {name: text[len(start) :] for name, text in zip(values, texts, strict=True)}
    prompt, answers = _answers(row, asked, values)
    return prompt, answers, frozenset({(0, 1)})


# The columns of a comparison -> how they are read, what was asked given.
_COMPARED = {("completions",): _ranked, ("chosen", "rejected"): _pair}


def split_transcripts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt and two completions from two whole transcripts: the prompt ends with the last turn they share.

    chosen, rejected: transcripts in which `ASSISTANT_TURN` begins each answer. Returns prompt, completion of the
    chosen, completion of the rejected; prompt + completion is the transcript, character for character. Where the
    transcripts part before their last answers, the completions hold the turns that follow. Raises ColumnError where
    they share no turn of the assistant.
    """
    shared = common_prefix_chars(chosen, rejected)
    start = chosen.rfind(ASSISTANT_TURN, 0, shared)
    if start < 0:
        accepted = f"are transcripts that share the text up to a {ASSISTANT_TURN!r}, or a prompt column"
        raise ColumnError("chosen", f"{shared} characters in common with rejected", accepted)
    border = start + len(ASSISTANT_TURN)
    return chosen[:border], chosen[border:], rejected[border:]


def common_prefix_chars(first: str, second: str) -> int:
    """Number of characters that two texts share from the start, in O(n) compares of slices."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _groups(row: Row) -> dict[str, str]:
    return {column: _label(row, column) for column in GROUP_COLUMNS}


def _label(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    # Identifiers are often numbers.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text_of(value, column)


def _agreed(found: Mapping[str, AnyT]) -> AnyT:
    """What all columns say. Raises ColumnError where two say different things."""
    first = next(iter(found))
    for column, value in found.items():
        if value != found[first]:
            raise ColumnError(column, f"something else than in {first}", "is the same in both, or one of the columns")
    return found[first]


def _present(row: Row, columns: Iterable[str]) -> list[str]:
    return [column for column in columns if _has(row, column)]


def _has(row: Row, column: str) -> bool:
    return row.get(column) is not None


def _missing(column: str, row: Row, accepted: str) -> ColumnError:
    return ColumnError(column, _names(row), accepted)


def _names(row: Row) -> str:
    names = ", ".join(map(str, row)) or "(none)"
    return f"the columns {' '.join((names if len(names) <= 200 else f'{names[:200]}...').split())}"
