"""From the columns of a row to a record, for every layout of columns that is accepted.

A text is a string, or a list of chat messages (`role`, `content`) that is rendered to plain text in one way:
a lone user message is its content; otherwise each message is its role on a line (`System:`, `User:`, `Assistant:`),
the content below it and a blank line, and `Assistant:` on a line ends a prompt.
"""

import math
from collections.abc import Mapping
from typing import Any

from instructrl.types import Comparison, Demonstration, Document, Prompt

Row = Mapping[str, Any]

GROUP_COLUMNS = ("user", "source", "category")
PROMPT_COLUMNS = ("prompt", "messages", *GROUP_COLUMNS)
DEMONSTRATION_COLUMNS = ("prompt", "completion", "messages", *GROUP_COLUMNS)
COMPARISON_COLUMNS = (
    *("prompt", "context", "completions", "ranks", "preferences", "chosen", "rejected", "labeler"),
    *GROUP_COLUMNS,
)
DOCUMENT_COLUMNS = ("text", "source")

ROLES = ("system", "user", "assistant")
ASSISTANT_TURN = "\n\nAssistant:"
"""What begins an answer in the transcripts of the Anthropic HH data."""


class ColumnError(ValueError):
    """A column that does not fit. `str()` reads `column: found X, accepted Y`."""

    def __init__(self, column: str, found: str, accepted: str) -> None:
        super().__init__(f"{column}: found {found}, accepted {accepted}")


def parse_prompt(row: Row) -> Prompt:
    """`prompt`, or `messages` (an answer at their end is left out)."""
    if _has(row, "prompt"):
        return Prompt(text=_prompt(row, "prompt"), **_groups(row))
    if _has(row, "messages"):
        messages = _messages(row["messages"], "messages")
        return Prompt(
            text=_rendered(messages[:-1] if messages[-1][0] == "assistant" else messages, "messages"), **_groups(row)
        )
    raise _missing("prompt", row, "are prompt or messages")


def parse_demonstration(row: Row) -> Demonstration:
    """`prompt` and `completion`, or `messages` that end with the assistant's."""
    if _has(row, "prompt"):
        if not _has(row, "completion"):
            raise _missing("completion", row, "are prompt and completion, or messages")
        return Demonstration(
            prompt=_prompt(row, "prompt"), completion=_answer(row["completion"], "completion"), **_groups(row)
        )
    if _has(row, "messages"):
        prompt, completion = _transcript(row["messages"], "messages")
        return Demonstration(prompt=prompt, completion=completion, **_groups(row))
    raise _missing("prompt", row, "are prompt and completion, or messages")


def parse_comparison(row: Row) -> Comparison:
    """K `completions` of a `prompt` (or `context`) with `ranks` or `preferences`, or `chosen` and `rejected`."""
    if _has(row, "completions"):
        name = "context" if _has(row, "context") and not _has(row, "prompt") else "prompt"
        if not _has(row, name):
            raise _missing("prompt", row, "are prompt (or context) and completions")
        prompt = _prompt(row, name)
        completions, preferred = _ranked(row)
    elif _has(row, "chosen") and _has(row, "rejected"):
        prompt, *answers = _pair(row)
        completions, preferred = tuple(answers), frozenset({(0, 1)})
    else:
        raise _missing(
            "completions", row, "are prompt and completions with ranks or preferences, or chosen and rejected"
        )
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
    return Document(text=_text(row["text"], "text"), source=_label(row, "source"))


def _ranked(row: Row) -> tuple[tuple[str, ...], frozenset[tuple[int, int]]]:
    values = row["completions"]
    if not isinstance(values, list):
        raise ColumnError("completions", _shown(values), "is a list of at least 2 completions")
    if len(values) < 2:
        raise ColumnError("completions", f"{len(values)}", "are at least 2 (K = 1 cannot be compared)")
    if all(isinstance(value, dict) and "completion" in value for value in values):
        texts = [_answer(value["completion"], f"completions[{i}].completion") for i, value in enumerate(values)]
        ranks: Any = [value.get("rank") for value in values]
        return tuple(texts), Comparison.pairs_from_ranks(_ranks(ranks, len(texts), "completions[].rank"))
    completions = tuple(_answer(value, f"completions[{i}]") for i, value in enumerate(values))
    if _has(row, "ranks") == _has(row, "preferences"):
        found = "both" if _has(row, "ranks") else _names(row)
        raise ColumnError("ranks", found, "is one of ranks and preferences")
    if _has(row, "ranks"):
        return completions, Comparison.pairs_from_ranks(_ranks(row["ranks"], len(completions), "ranks"))
    return completions, _preferences(row["preferences"], len(completions))


def _ranks(values: Any, num_completions: int, column: str) -> list[float]:
    accepted = f"are {num_completions} finite numbers, one a completion, lower is better"
    if not isinstance(values, list):
        raise ColumnError(column, _shown(values), accepted)
    if len(values) != num_completions:
        raise ColumnError(column, f"{len(values)} ranks", accepted)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
            raise ColumnError(column, _shown(value), accepted)
    return values


def _preferences(values: Any, num_completions: int) -> frozenset[tuple[int, int]]:
    accepted = f"are pairs [winner, loser] of two different numbers from 0 to {num_completions - 1}"
    if not isinstance(values, list):
        raise ColumnError("preferences", _shown(values), accepted)
    for pair in values:
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
            raise ColumnError("preferences", _shown(pair), accepted)
        for index in pair:
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < num_completions:
                raise ColumnError("preferences", _shown(pair), accepted)
    return frozenset((winner, loser) for winner, loser in values)


def _pair(row: Row) -> tuple[str, str, str]:
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, list) and isinstance(rejected, list) and (len(chosen) > 1 or len(rejected) > 1):
        prompt, chosen_answer = _transcript(chosen, "chosen")
        other, rejected_answer = _transcript(rejected, "rejected")
        if prompt != other:
            raise ColumnError("rejected", "other messages before the last than in chosen", "are the same ones")
        return prompt, chosen_answer, rejected_answer
    chosen, rejected = _answer(chosen, "chosen"), _answer(rejected, "rejected")
    if _has(row, "prompt"):
        return _prompt(row, "prompt"), chosen, rejected
    return split_transcripts(chosen, rejected)


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


def _transcript(value: Any, column: str) -> tuple[str, str]:
    messages = _messages(value, column)
    if messages[-1][0] != "assistant":
        raise ColumnError(column, f"a last message of {messages[-1][0]}", "is a last message of assistant")
    return _rendered(messages[:-1], column), messages[-1][1]


def _prompt(row: Row, column: str) -> str:
    value = row[column]
    text = _rendered(_messages(value, column), column) if isinstance(value, list) else _text(value, column)
    if not text:
        raise ColumnError(column, "an empty text", "is a text of at least one character")
    return text


def _answer(value: Any, column: str) -> str:
    if not isinstance(value, list):
        return _text(value, column)
    messages = _messages(value, column)
    if len(messages) != 1 or messages[0][0] != "assistant":
        raise ColumnError(column, _shown(value), "is a text or one message of assistant")
    return messages[0][1]


def _messages(value: Any, column: str) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not value:
        raise ColumnError(column, _shown(value), "is a list of at least one message")
    messages = []
    for number, message in enumerate(value):
        name = f"{column}[{number}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            found = _shown(message.get("role") if isinstance(message, dict) else message)
            raise ColumnError(f"{name}.role", found, f"are {', '.join(ROLES)}")
        messages.append((message["role"], _text(message.get("content"), f"{name}.content")))
    return messages


def _rendered(messages: list[tuple[str, str]], column: str) -> str:
    if not messages or messages[-1][0] != "user" or not messages[-1][1]:
        raise ColumnError(column, "no text of a user before the answer", "is a message of user there")
    if len(messages) == 1:
        return messages[0][1]
    return "".join(f"{role.capitalize()}:\n{content}\n\n" for role, content in messages) + "Assistant:\n"


def _groups(row: Row) -> dict[str, str]:
    return {column: _label(row, column) for column in GROUP_COLUMNS}


def _label(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    # Identifiers are often numbers.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value, column)


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise ColumnError(column, _shown(value), "is a text")
    if "\0" in value:
        raise ColumnError(column, f"a NUL at character {value.index(chr(0)) + 1}", "is a text without NUL")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ColumnError(column, f"half a surrogate pair at character {error.start + 1}", "is Unicode text") from None
    return value


def _has(row: Row, column: str) -> bool:
    return row.get(column) is not None


def _missing(column: str, row: Row, accepted: str) -> ColumnError:
    return ColumnError(column, _names(row), accepted)


def _names(row: Row) -> str:
    names = ", ".join(map(str, row)) or "(none)"
    return f"the columns {' '.join((names if len(names) <= 200 else f'{names[:200]}...').split())}"


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '...'}"
