"""Chat messages: from the ways in which people write them to one, several lists to one conversation, and that to text.

A conversation is rendered to plain text in one way: a lone user message is its content; otherwise each message is its
role on a line (`System:`, `User:`, `Assistant:`), the content below it and a blank line, and `Assistant:` on a line
ends a prompt.
"""

from typing import Any

Message = tuple[str, str]
"""(one of ROLES, content)."""

ROLES = ("system", "user", "assistant")
_ROLE_OF = {**{role: role for role in ROLES}, "human": "user", "gpt": "assistant"}
_KEYS = (("role", "content"), ("from", "value"))
# Of a message, what would be lost: accepted is that there is none of it.
_LOST = ("tool_calls", "function_call")


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
        accepted = ROLES if role == "role" else ("system", "human", "gpt")
        raise ColumnError(f"{name}.{role}", shown(value.get(role)), f"are {', '.join(accepted)}")
    for key in _LOST:
        if value.get(key):
            raise ColumnError(f"{name}.{key}", shown(value[key]), "are messages of text alone")
    return _ROLE_OF[value[role]], _content(value.get(content), f"{name}.{content}")


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
    if not repeated and before and after and before[-1][0] == after[0][0]:
        found = f"a first message of {after[0][0]} that is not the last one asked: {shown(after[0][1])}"
        raise ColumnError(column, found, "are messages that go on from the prompt, or repeat it")
    return [*(system or other_system), *before, *after[repeated:]]


def _parted(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """The system messages at the start, and the others."""
    count = next((n for n, (role, _) in enumerate(messages) if role != "system"), len(messages))
    return messages[:count], messages[count:]


def _trimmed(messages: list[Message]) -> list[Message]:
    """For comparing: white space around a text is no other text."""
    return [(role, content.strip()) for role, content in messages]


def split_answer(messages: list[Message], column: str) -> tuple[list[Message], str]:
    """All messages but the last, and the content of that one. Raises ColumnError where it is not the assistant's."""
    if messages[-1][0] != "assistant":
        raise ColumnError(column, f"a last message of {messages[-1][0]}", "is a last message of assistant")
    return messages[:-1], messages[-1][1]


def before_answer(messages: list[Message]) -> list[Message]:
    """Without an answer at the end."""
    return messages[:-1] if messages and messages[-1][0] == "assistant" else messages


def rendered(messages: list[Message], column: str) -> str:
    """The text of a prompt. Raises ColumnError where no message of a user ends it."""
    if not messages or messages[-1][0] != "user" or not messages[-1][1]:
        raise ColumnError(column, "no text of a user before the answer", "is a message of user there")
    if len(messages) == 1:
        return messages[0][1]
    return "".join(f"{role.capitalize()}:\n{content}\n\n" for role, content in messages) + "Assistant:\n"


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
