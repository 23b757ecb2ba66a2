"""Chat templates: conversations to ids, as a model has learned to read them.

The ids are those of transformers' `apply_chat_template(tokenize=True)` wherever nothing that people wrote spells a
control token. What they wrote never becomes one.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from instructrl.data.chat_rendering import ChatTemplateError, check_variables, looked_for, render
from instructrl.data.columns import common_prefix_chars
from instructrl.data.control_tokens import ControlTokens, Disguise, Rendered
from instructrl.data.settings import DATE
from instructrl.data.tokenizers import end_of_text
from instructrl.types import Conversation, Message

_PROBE = Conversation([Message("user", "a")])
# Under which name a tokenizer with several templates has the one for conversations with tools.
_WITH_TOOLS, _OTHERWISE = "tool_use", "default"


class ChatTemplate:
    """A tokenizer's way to write conversations.

    text: of the template; None takes the tokenizer's. today: the date that a template is told, as 2025-01-31.
    end_of_turn: the token that ends what a model says, which is the first control token behind an answer; the
    tokenizer's end of text where a template has none there, and then it is put there. given: whether the text is not
    the tokenizer's. Raises ChatTemplateError for a template that cannot be used, and for a tokenizer without one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str | None = None, today: str = DATE) -> None:
        self.control = ControlTokens(tokenizer)
        self.tokenizer, self.today = tokenizer, read_date(today)
        self._special_tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        own = tokenizer.chat_template if text is None else text
        self.given = text is not None
        self._texts = own if isinstance(own, dict) else {_OTHERWISE: own}
        if not isinstance(self._texts.get(_OTHERWISE), str):
            found = f"{', '.join(self._texts)} and no default" if isinstance(own, dict) else "none"
            raise ChatTemplateError(f"chat template: found {found} in the tokenizer, accepted is one, or a file")
        for found in self._texts.values():
            check_variables(found, [*self._special_tokens, *tokenizer.SPECIAL_TOKENS_ATTRIBUTES])
        self._openings = self._find_openings()
        if not self._read(_PROBE.messages, None, (0,)).marks:
            raise ChatTemplateError(
                "chat template: found one that leaves out what a user says, accepted is one for contents that are texts"
            )
        closing = self._answered(_PROBE, "b")
        behind = None if closing is None else next((c for c in closing[0].controls if c.start >= closing[1]), None)
        self.closes = behind is not None
        self.end_of_turn = end_of_text(tokenizer) if behind is None else behind.token

    def _find_openings(self) -> list[str]:
        """The generation prompt, and its beginnings up to each control token but the first, the longest first: a
        template may leave the rest of it (`<think>`, say) out of earlier turns, and white space at its end."""
        said = [message.as_mapping() for message in _PROBE.messages]
        asked, prompted = (
            render(self.text, said, None, self._special_tokens, self.today, add_generation_prompt=wanted)
            for wanted in (False, True)
        )
        start = common_prefix_chars(asked, prompted)
        tokens = list(self.control.pattern.finditer(prompted))
        start = next((token.start() for token in tokens if token.start() < start < token.end()), start)
        within = [token.start() for token in tokens if token.start() >= start]
        parts = [prompted[start:end] for end in (len(prompted), *within[:0:-1])]
        shorter = (part[:end] for part in parts for end in range(len(part), len(part.rstrip()) - 1, -1))
        return list(dict.fromkeys(part for part in shorter if part.strip()))

    @property
    def text(self) -> str:
        """Of the template for conversations without tools."""
        return self._texts[_OTHERWISE]

    def prompt(self, conversation: Conversation) -> list[int]:
        """Ids of a conversation up to where the model speaks. Raises ChatTemplateError where the template does."""
        return self.control.encode(self._asked(conversation)).ids

    def response(self, conversation: Conversation, prompt: Sequence[int], answer: str, *, finished: bool) -> list[int]:
        """Ids of an answer behind a prompt, with the end of turn where it is finished.

        They are those that the whole conversation has behind the ids of its prompt. Where it begins with other ids, as
        where a template changes what stood before, or where a word would go from one into the other, they are those of
        the answer by itself. Raises ChatTemplateError where the template does.
        """
        found = self._answered(conversation, answer)
        if found is not None:
            whole, end = found
            close = next((c.end for c in whole.controls if c.start >= end), None) if self.closes and finished else None
            ids = self.control.encode(whole.until(close or end)).ids
            if ids[: len(prompt)] == list(prompt) and (close is not None or not self.closes or not finished):
                added = [self.end_of_turn] if finished and not self.closes else []
                return [*ids[len(prompt) :], *added]
        return [*self.control.plain(answer), *([self.end_of_turn] if finished else [])]

    def learned(self, conversation: Conversation) -> list[bool]:
        """Of each id of `prompt`, whether it is what the model said in an earlier turn, its end included.

        A turn is what stands behind the generation prompt, or as much of it as there is, and where there is nothing of
        it, behind the last control token before the answer. A token that begins before the turn is of it. It is found
        by marks around the texts and not by rendering beginnings, which templates write otherwise. Of a turn without
        any text nothing is learned, nor of a conversation that a template writes
        otherwise because of the marks.
        """
        plain = self._asked(conversation)
        places = self.control.encode(plain).places
        turns = self._turns(conversation, plain) if any(m.role == "assistant" for m in conversation.messages) else []
        return [any(place < end and max(behind, place + 1) > start for start, end in turns) for place, behind in places]

    def _turns(self, conversation: Conversation, plain: Rendered) -> list[tuple[int, int]]:
        """Where the assistant's turns begin and end in the rendered prompt."""
        messages = conversation.messages
        found = self._read(messages, _tools(conversation), range(len(messages)))
        if found.text != plain.text:  # a template that looks at a text in a way that marks change
            return []
        said = [
            (message.role, found.marks[2 * number], found.marks[2 * number + 1])
            for number, message in enumerate(messages)
            if {2 * number, 2 * number + 1} <= found.marks.keys()
        ]
        before = [0, *(end for _, _, end in said)]
        behind = [*(begin for _, begin, _ in said[1:]), len(plain.text)]
        return [
            (self._start(plain, low, begin), self._end(plain, end, high))
            for (role, begin, end), low, high in zip(said, before, behind, strict=False)
            if role == "assistant"
        ]

    def _start(self, plain: Rendered, low: int, begin: int) -> int:
        for opening in self._openings:
            if (place := plain.text.rfind(opening, low, begin)) >= 0:
                return place + len(opening)
        return max((c.end for c in plain.controls if low <= c.start and c.end <= begin), default=begin)

    def _end(self, plain: Rendered, end: int, high: int) -> int:
        closing = (c.end for c in plain.controls if c.start >= end and c.end <= high and c.token == self.end_of_turn)
        return next(closing, end)

    def whole(self, conversation: Conversation, answer: str) -> list[int]:
        """Ids of a conversation that ends with an answer, with all that the template has behind it. Raises
        ChatTemplateError where the template does."""
        messages = [*conversation.messages, Message("assistant", answer)]
        return self.control.encode(self._read(messages, _tools(conversation), answered=True)).ids

    def check(self, conversation: Conversation, answers: Sequence[str] = ()) -> None:
        """Raise ChatTemplateError where the template does, for a prompt and for answers to it."""
        self._asked(conversation)
        for answer in answers:
            self._whole(conversation, answer, marked=False)

    def _asked(self, conversation: Conversation) -> Rendered:
        return self._read(conversation.messages, _tools(conversation))

    def _answered(self, conversation: Conversation, answer: str) -> tuple[Rendered, int] | None:
        """The conversation with an answer, and where in it the answer ends; None where it does not say the answer."""
        found = self._whole(conversation, answer, marked=True)
        end = found.marks.get(2 * len(conversation.messages) + 1)
        return None if end is None else (found, end)

    def _whole(self, conversation: Conversation, answer: str, *, marked: bool) -> Rendered:
        messages, tools = [*conversation.messages, Message("assistant", answer)], _tools(conversation)
        last = (len(messages) - 1,) if marked else ()
        return self._read(messages, tools, last, answered=True)

    def _read(
        self, messages: Sequence[Message], tools: Any, marked: Iterable[int] = (), *, answered: bool = False
    ) -> Rendered:
        """Messages as they are read. marked: those that have marks, 2 i and 2 i + 1 around message i.

        A text may become a control token between two pieces of the template's, as the name of a key does in `<>`. So
        texts that could are hidden, but for those that the template looks for. Raises ChatTemplateError where a
        template has other control tokens then, and writes something else, so that nobody knows which are its own.
        """
        text = self._texts.get(_WITH_TOOLS, self.text) if tools else self.text
        texts, kept = _strings([message.as_mapping() for message in messages], tools), looked_for(text)

        def read(wary: bool) -> Rendered:
            disguise = Disguise(self.control, texts, 2 * len(messages), kept=kept, wary=wary)
            said = [
                {
                    **_disguised(message.as_mapping(), disguise),
                    **{"role": message.role, "content": disguise.put_on(message.content)},
                }
                for message in messages
            ]
            for number in marked:
                _mark(said[number], disguise, 2 * number, always=answered)
            called = _disguised(tools, disguise)
            given = self._special_tokens, self.today
            return disguise.taken_off(render(text, said, called, *given, add_generation_prompt=not answered))

        found = read(wary=False)
        if not any(self.control.within(text) for text in texts if text not in kept):
            return found
        other = read(wary=True)
        if other.text != found.text and [c.token for c in other.controls] != [c.token for c in found.controls]:
            raise ChatTemplateError(
                "chat template: found messages with a text that may be a part of a control token, accepted are those "
                "that it does not look at"
            )
        return other if other.text == found.text else found


def _mark(said: dict[str, Any], disguise: Disguise, first: int, *, always: bool) -> None:
    """Put two marks around what a message says, or around the name of what it calls. An empty text may be one that a
    template looks for, and has marks only where there have to be some."""
    names = [call["function"] for call in said.get("tool_calls", ()) if isinstance(call.get("function"), dict)]
    if said["content"].strip() or always:
        said["content"] = disguise.marked(said["content"], first, first + 1)
    elif names and isinstance(names[-1].get("name"), str):
        names[-1]["name"] = disguise.marked(names[-1]["name"], first, first + 1)


def _tools(conversation: Conversation) -> Any:
    return json.loads(conversation.tools) if conversation.tools else None


def _strings(*values: Any) -> list[str]:
    """All texts in nested values, names of keys among them."""
    found: list[str] = []
    _changed(values, found.append, found.append)
    return found


def _disguised(value: Any, disguise: Disguise) -> Any:
    return _changed(value, disguise.put_on, disguise.key)


def _changed(value: Any, text: Callable[[str], Any], key: Callable[[str], Any]) -> Any:
    """A nested value with each text and each key changed."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return {key(name): _changed(inner, text, key) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(inner, text, key) for inner in value]
    return value


def read_date(text: str) -> date:
    """A day as 2025-01-31. Raises ValueError for anything else."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"chat_date: found {text!r}, accepted is a day such as {DATE}") from None


def template_of(tokenizer: PreTrainedTokenizerBase, choice: str, today: str = DATE) -> ChatTemplate | None:
    """The template that is in force. choice: "none"; "auto", the tokenizer's if it has one; or a file, whose template
    is the tokenizer's from then on. Raises ValueError where it cannot be used."""
    if choice == "none":
        return None
    if choice == "auto":
        return ChatTemplate(tokenizer, today=today) if tokenizer.chat_template else None
    try:
        text = Path(choice).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"chat_template: found no text in {choice}, accepted is a file in UTF-8") from error
    except OSError as error:
        raise ValueError(f"chat_template: found no such file {choice}, accepted are auto, none, or a file") from error
    found = ChatTemplate(tokenizer, text, today)
    tokenizer.chat_template = text
    return found
