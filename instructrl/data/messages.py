"""Chat messages: from the ways in which people write them to one, and several lists of them to one conversation."""

import json
from dataclasses import replace
from typing import Any

from instructrl.types import Conversation, Message

ROLES = ("system", "user", "assistant", "tool")
_ROLE_OF = {**{role: role for role in ROLES}, "human": "user", "gpt": "assistant"}
_KEYS = (("role", "content"), ("from", "value"))
# Of a message, what would be lost: accepted is that there is none of it.
_LOST = ("function_call", "reasoning_content", "reasoning", "thinking")
# Of a message of this role, what stands beside its content.
_BESIDE = {"assistant": ("tool_calls",), "tool": ("name", "tool_call_id")}


class ColumnError(ValueError):
    """A column that does not fit. `str()` reads `column: found X, accepted Y`."""

    def __init__(self, column: str, found: str, accepted: str) -> None:
        super().__init__(f"{column}: found {found}, accepted {accepted}")


def messages_of(value: Any, column: str) -> list[Message]:
    """A list of messages, or a single one, as pairs. Raises ColumnError for anything else."""
    values = [value] if isinstance(value, dict) else value
    if not isinstance(values, list) or not values:
        raise ColumnError(column, shown(value), "is a list of at least one message")
    return [_message(each, f"{column}[{number}]") for number, each in enumerate(values)]


def _message(value: Any, name: str) -> Message:
    if not isinstance(value, dict):
        raise ColumnError(f"{name}.role", shown(value), f"are {', '.join(ROLES)}")
    role, content = next((keys for keys in _KEYS if value.get(keys[0]) is not None), _KEYS[0])
    if not isinstance(value.get(role), str) or value[role] not in _ROLE_OF:
        accepted = ROLES if role == "role" else ("system", "human", "gpt", "tool")
        raise ColumnError(f"{name}.{role}", shown(value.get(role)), f"are {', '.join(accepted)}")
    for key in _LOST:
        if value.get(key):
            raise ColumnError(f"{name}.{key}", shown(value[key]), "are messages with text and tool_calls")
    kind = _ROLE_OF[value[role]]
    beside = {key: value[key] for key in _BESIDE.get(kind, ()) if value.get(key)}
    given = "" if value.get(content) is None and "tool_calls" in beside else value.get(content)
    return Message(kind, _content(given, f"{name}.{content}"), json_of(beside, name) if beside else "")


def json_of(value: Any, name: str) -> str:
    """Nested values as one text. Raises ColumnError where JSON has no place for them."""
    try:
        return text_of(json.dumps(_filled(value), ensure_ascii=False, allow_nan=False), name)
    except (TypeError, ValueError) as error:
        if isinstance(error, ColumnError):
            raise
        raise ColumnError(name, f"{error}", "are values of JSON") from None


def _filled(value: Any) -> Any:
    """Without the keys that hold nothing: columnar files have every key in every row."""
    if isinstance(value, dict):
        return {key: _filled(inner) for key, inner in value.items() if inner is not None}
    return [_filled(inner) for inner in value] if isinstance(value, list) else value


def _content(value: Any, name: str) -> str:
    """A text, or the texts of its parts in a row."""
    if not isinstance(value, list):
        return text_of(value, name)
    for number, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text":
            found = shown(part.get("type") if isinstance(part, dict) else part)
            raise ColumnError(f"{name}[{number}].type", found, "is text")
    return "".join(text_of(part.get("text"), f"{name}[{number}].text") for number, part in enumerate(value))


def joined(asked: list[Message], following: list[Message], column: str) -> list[Message]:
    """What was asked and what follows as one conversation, in which nothing stands twice and nothing is missing.

    following: goes on where `asked` ends, or repeats it, or its last messages, before it goes on; a system message may
    stand in either. column: of `following`. Raises ColumnError where the two contradict each other.
    """
    system, before = _parted(asked)
    other_system, after = _parted(following)
    if system and other_system and _trimmed(system) != _trimmed(other_system):
        raise ColumnError(column, "another system message than beside it", "is the same one, or one of the two")
    overlaps = range(min(len(before), len(after)), 0, -1)
    repeated = next((n for n in overlaps if _trimmed(before[-n:]) == _trimmed(after[:n])), 0)
    if not repeated and before and after and before[-1].role == after[0].role:
        found = f"a first message of {after[0].role} that is not the last one asked: {shown(after[0].content)}"
        raise ColumnError(column, found, "are messages that go on from the prompt, or repeat it")
    return [*(system or other_system), *before, *after[repeated:]]


def _parted(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """The system messages at the start, and the others."""
    count = next((n for n, message in enumerate(messages) if message.role != "system"), len(messages))
    return messages[:count], messages[count:]


def _trimmed(messages: list[Message]) -> list[Message]:
    """For comparing: white space around a text is no other text."""
    return [replace(message, content=message.content.strip()) for message in messages]


def split_answer(messages: list[Message], column: str) -> tuple[list[Message], str]:
    """All messages but the last, and the content of that one. Raises ColumnError where it is not the assistant's."""
    last = messages[-1]
    if last.role != "assistant":
        raise ColumnError(column, f"a last message of {last.role}", "is a last message of assistant")
    if last.others:
        raise ColumnError(column, f"a last message with {last.others[:60]}", "is a last message of text alone")
    return messages[:-1], last.content


def before_answer(messages: list[Message]) -> list[Message]:
    """Without an answer at the end."""
    return messages[:-1] if messages and messages[-1].role == "assistant" else messages


def asked_of(messages: list[Message], column: str, *, given: bool, tools: str = "") -> str:
    """A prompt: a `Conversation`, or the text of its only message.

    given: whether there were messages; without them, a lone one was a text. Raises ColumnError where neither a user nor
    a tool speaks last.
    """
    last = messages[-1] if messages else Message("", "")
    if last.role not in ("user", "tool") or (last.role == "user" and not last.content):
        raise ColumnError(column, "no text of a user before the answer", "is a message of user there")
    return Conversation(messages, tools) if given or tools or len(messages) > 1 else last.content


def text_of(value: Any, column: str) -> str:
    """A text that can be encoded. Raises ColumnError for anything else."""
    if not isinstance(value, str):
        raise ColumnError(column, shown(value), "is a text")
    if "\0" in value:
        raise ColumnError(column, f"a NUL at character {value.index(chr(0)) + 1}", "is a text without NUL")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ColumnError(column, f"half a surrogate pair at character {error.start + 1}", "is Unicode text") from None
    return value


def shown(value: Any) -> str:
    """A value in a message about it."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '...'}"
