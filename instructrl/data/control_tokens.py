"""Which tokens of a tokenizer control something, and how a text gets no other ones than those that are meant.

A text is rendered with what people wrote in disguise: each control token's name in it, and each beginning or end of one
that could be completed by what stands beside it, is replaced by a placeholder of two private-use characters. The names
that are left are the template's. Then the placeholders are put back, and the text is encoded as it is; where that gives
other control tokens than the template's, it is encoded by a copy of the tokenizer in which control tokens have names
that no person wrote.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from instructrl.data.chat_rendering import ChatTemplateError
from instructrl.data.tokenizers import CONTROL_NAME

# Second characters of placeholders: planes 15 and 16, but for the last characters, of which one is the first.
_NUMBERS, _FIRSTS = 0xF0000, range(0x10FFFD, 0x10FF00, -1)
# Added tokens that are words or white space are a part of the vocabulary, not of the control.
_NAME = re.compile(r"[^\w\s▁]")


@dataclass(frozen=True, slots=True)
class Control:
    """A control token of the template in a text: its place in characters, and its id."""

    start: int
    end: int
    token: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text as it is read, the template's control tokens in it, and where the marks stood, by their numbers."""

    text: str
    controls: tuple[Control, ...]
    marks: dict[int, int]

    def until(self, end: int) -> "Rendered":
        """Its beginning. end: no place inside of a control token."""
        return Rendered(self.text[:end], tuple(c for c in self.controls if c.end <= end), self.marks)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids of a text, and the place of each in it, in characters."""

    ids: list[int]
    places: list[tuple[int, int]]


class ControlTokens:
    """Those of a tokenizer: its special tokens, and all others that were added to its vocabulary and are not words.

    Raises ChatTemplateError for a tokenizer that is not one of the `tokenizers` library.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise ChatTemplateError(
                f"tokenizer: found a {type(tokenizer).__name__}, accepted with a chat template is one of the "
                "tokenizers library (a tokenizer.json)"
            )
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self.ids = {
            str(entry): number for number, entry in added if str(entry) and (entry.special or _NAME.search(str(entry)))
        }
        longest_first = sorted(self.ids, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # The unknown token stands for what has none, in what people write, too.
        self._unknown = str(tokenizer.unk_token or "") if tokenizer.unk_token_id != tokenizer.eos_token_id else ""
        self._known = {number for name, number in self.ids.items() if name != self._unknown}
        # What the model's own vocabulary matches in a text by such a name is left out, as `encode_text` does it.
        self._lost = {self.ids[name] for name in self.ids if name != self._unknown and CONTROL_NAME.fullmatch(name)}
        self.beginnings = {name[:end] for name in self.ids for end in range(1, len(name))}
        self.ends = {name[start:] for name in self.ids for start in range(1, len(name))}
        self.longest = max(map(len, self.ids), default=0)
        self._names = "\n".join(self.ids)

    def within(self, text: str) -> bool:
        """Whether a text, but for white space around it, is a part of a control token's name."""
        core = text.strip()
        return bool(core) and core in self._names

    def plain(self, text: str) -> list[int]:
        """The ids of a text, of which none controls anything."""
        return self.encode(Rendered(text, (), {})).ids

    def encode(self, rendered: Rendered) -> Encoded:
        """As the tokenizer encodes the text, but that its control tokens are the template's and no others."""
        found = self.tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        meant = [control.token for control in rendered.controls]
        spelled = self._unknown and rendered.text.count(self._unknown) != meant.count(self.ids.get(self._unknown, -1))
        if not spelled and [i for i in found["input_ids"] if i in self._known] == [
            i for i in meant if i in self._known
        ]:
            return Encoded(found["input_ids"], found["offset_mapping"])
        return self._encode_by_other_names(rendered)

    def _encode_by_other_names(self, rendered: Rendered) -> Encoded:
        first = unused_character([rendered.text])
        backend, numbers = _renamed(self.tokenizer, first, frozenset(self.ids.values()))
        text, borders, behind = "", [], 0
        for control in rendered.controls:
            text += rendered.text[behind : control.start]
            borders.append((len(text), control))
            text += _name(first, control.token)
            behind = control.end
        text += rendered.text[behind:]
        found = backend.encode(text, add_special_tokens=False)
        ids, places = [], []
        for number, place in zip(found.ids, found.offsets, strict=True):
            if number in numbers or number not in self._lost:
                ids.append(numbers.get(number, number))
                places.append(_moved(place, borders, first))
        return Encoded(ids, places)


def _moved(place: tuple[int, int], borders: Sequence[tuple[int, Control]], first: str) -> tuple[int, int]:
    """A place in the text by other names, in the text as it is."""
    start, end = place
    shift = 0
    for border, control in borders:
        length = len(_name(first, control.token))
        if end <= border:
            break
        if start < border + length:  # the token itself, with the white space that it takes along
            return control.start, control.end
        shift = control.end - (border + length)
    return start + shift, end + shift


def _name(first: str, token: int) -> str:
    return f"{first}{token}{first}"


@lru_cache(maxsize=2)
def _renamed(
    tokenizer: PreTrainedTokenizerBase, first: str, controls: frozenset[int]
) -> tuple[Tokenizer, dict[int, int]]:
    """A copy in which control tokens have other names, and its ids of added tokens with the tokenizer's own: those that
    are in the vocabulary of the model by their old names have other ones."""
    own = tokenizer.backend_tokenizer
    assert isinstance(own, Tokenizer)  # `is_fast`
    content = json.loads(own.to_str())
    content |= {"post_processor": None, "truncation": None, "padding": None}
    for entry in content["added_tokens"]:
        if entry["id"] in controls:
            entry |= {"content": _name(first, entry["id"]), "normalized": False, "single_word": False}
    backend = Tokenizer.from_str(json.dumps(content))
    return backend, {backend.token_to_id(entry["content"]) or 0: entry["id"] for entry in content["added_tokens"]}


def unused_character(texts: Iterable[str]) -> str:
    """A private-use character that is in none of the texts. Raises ChatTemplateError where they have all of them."""
    texts = list(texts)
    for number in _FIRSTS:
        if not any(chr(number) in text for text in texts):
            return chr(number)
    raise ChatTemplateError("messages: found all private-use characters, accepted are texts that have few of them")


class Disguise:
    """What people wrote, without what a tokenizer could take for a control token, and back.

    texts: all that will be disguised. num_marks: numbers from 0 for the caller's own placeholders. kept: names that
    stay as they are, as keys. wary: any other text is in disguise, too, that is a part of a control token's name.
    """

    def __init__(
        self,
        control: ControlTokens,
        texts: Iterable[str],
        num_marks: int = 0,
        *,
        kept: frozenset[str] = frozenset(),
        wary: bool = False,
    ) -> None:
        self._control, self._num_marks, self._kept, self._wary = control, num_marks, kept, wary
        self._first = unused_character(texts)
        self._originals: dict[str, int] = {}
        self._escaped = json.dumps(self._first)[1:-1]
        self._placed = re.compile(f"{self._first}(.)", re.DOTALL)

    def mark(self, number: int) -> str:
        """A placeholder of the caller's."""
        return self._first + chr(_NUMBERS + number)

    def put_on(self, text: str) -> str:
        """A text in disguise."""
        control = self._control
        start, core, end = _parted(control.pattern.sub(lambda match: self._placeholder(match[0]), text))
        if self._wary and text not in self._kept and control.within(core):
            return start + self._placeholder(core) + end
        for length in range(min(control.longest - 1, len(core)), 0, -1):
            if core[-length:] in control.beginnings:
                core = core[:-length] + self._placeholder(core[-length:])
                break
        for length in range(min(control.longest - 1, len(core)), 0, -1):
            if core[:length] in control.ends:
                core = self._placeholder(core[:length]) + core[length:]
                break
        return start + core + end

    def key(self, text: str) -> str:
        """A name of a key in disguise."""
        return text if text in self._kept else self.put_on(text)

    def marked(self, text: str, start: int, end: int) -> str:
        """A text with marks around it, inside of the white space at its borders, which templates may remove."""
        before, core, behind = _parted(text)
        return f"{before}{self.mark(start)}{core}{self.mark(end)}{behind}"

    def taken_off(self, text: str) -> Rendered:
        """A rendered text as it is read."""
        if self._escaped in text:  # a template's JSON in ASCII
            text = re.sub(
                re.escape(self._escaped) + r"(\\u[0-9a-f]{4}\\u[0-9a-f]{4})",
                lambda match: self._first + json.loads(f'"{match[1]}"'),
                text,
            )
        originals = {number: original for original, number in self._originals.items()}
        pieces: list[str] = []
        controls: list[Control] = []
        marks: dict[int, int] = {}
        length = 0
        for piece, number in self._pieces(text):
            if number is not None and number < self._num_marks:
                marks[number] = length
                continue
            if number is not None:
                piece = originals[number]
            else:
                controls += [
                    Control(length + match.start(), length + match.end(), self._control.ids[match[0]])
                    for match in self._control.pattern.finditer(piece)
                ]
            pieces.append(piece)
            length += len(piece)
        return Rendered("".join(pieces), tuple(controls), marks)

    def _pieces(self, text: str) -> Iterable[tuple[str, int | None]]:
        behind = 0
        for match in self._placed.finditer(text):
            yield text[behind : match.start()], None
            yield "", ord(match[1]) - _NUMBERS
            behind = match.end()
        yield text[behind:], None

    def _placeholder(self, original: str) -> str:
        return self.mark(self._originals.setdefault(original, self._num_marks + len(self._originals)))


def _parted(text: str) -> tuple[str, str, str]:
    """White space, what stands in it, white space."""
    core = text.strip()
    start = len(text) - len(text.lstrip())
    return text[:start], core, text[start + len(core) :]
