"""Data of TRL's trainers as ids: rows of a `datasets.Dataset`, or of any sequence of dicts."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from instructrl.data.chat import ChatTemplate
from instructrl.data.encoding import Encoder, begin_of_text
from instructrl.data.messages import json_of, messages_of, split_answer
from instructrl.data.settings import Limits
from instructrl.data.tokenizers import encode_text
from instructrl.types import Comparison, Conversation

Ids = tuple[int, ...]


def token_id(tokenizer: PreTrainedTokenizerBase, role: Literal["eos", "pad"]) -> int | None:
    """The end of text or the padding of a tokenizer; None where it has none."""
    found = getattr(tokenizer, f"{role}_token_id")
    return found if isinstance(found, int) else None


def filler_of(tokenizer: PreTrainedTokenizerBase, first: int | None = None) -> int:
    """An id for what counts for nothing."""
    known = (first, token_id(tokenizer, "pad"), token_id(tokenizer, "eos"), 0)
    return next(token for token in known if token is not None)


class IdEncoder(Encoder):
    """Takes ids for texts: what was tokenised outside goes through as it is.

    filler: what fills places that count for nothing. ends: the tokens that end a response.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, limits: Limits, filler: int, ends: tuple[int, ...] = ()
    ) -> None:
        self.tokenizer, self.limits, self.chat, self.begin_of_text = tokenizer, limits, None, []
        self.end_of_text, self.ends = filler, ends

    def prompt(self, text: Any) -> list[int]:
        return list(text)

    def fits(self, text: Any) -> bool:
        return len(text) <= self.limits.max_prompt_tokens

    def response(self, text: Any, *, prompt: Any = (), finished: bool = True) -> list[int]:
        return list(text)


class Reader:
    """Ids of texts and of messages. None of a text's words controls anything, whatever it says."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def _start(self) -> list[int]:
        return begin_of_text(self.tokenizer)

    def text(self, text: str) -> list[int]:
        """As the tokenizer starts a text."""
        return [*self._start, *encode_text(self.tokenizer, text)]

    @cached_property
    def _chat(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer)

    def asked(self, row: Mapping[str, Any]) -> list[int]:
        """The `prompt` of a row, by the tokenizer's chat template, up to where an answer follows."""
        conversation = Conversation(messages_of(row["prompt"], "prompt"), _tools(row))
        return self._chat.prompt(conversation)

    def answered(self, row: Mapping[str, Any], answer: Any, column: str) -> list[int]:
        """Messages that end with an answer, behind those of the `prompt` where the row has one."""
        asked = [] if row.get("prompt") is None else messages_of(row["prompt"], "prompt")
        messages, said = split_answer([*asked, *messages_of(answer, column)], column)
        conversation = Conversation(messages, _tools(row))
        return self._chat.whole(conversation, said)


def _tools(row: Mapping[str, Any]) -> str:
    if given := row.get("chat_template_kwargs"):
        raise ValueError(
            f"chat_template_kwargs: found {given}, accepted is none: templates are given messages and tools"
        )
    tools = row.get("tools") or ""
    return tools if isinstance(tools, str) else json_of(tools, "tools")


def prompts_of(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    collator: Callable[[list[Any]], Mapping[str, Any]] | None = None,
    name: str = "train_dataset",
) -> list[Ids]:
    """The prompts of a data set: of its `input_ids`, without the padding before and behind, else of its `prompt`.

    collator: what makes `input_ids` of a row, where the data set has other columns. Raises ValueError for a row that
    has neither, and for an empty one.
    """
    found, reader = [], Reader(tokenizer)
    for number, row in enumerate(rows):
        try:
            ids = _prompt(row if collator is None else _collated(collator, row), reader)
        except ValueError as error:
            raise ValueError(f"{name}, row {number}: {error}") from None
        found.append(tuple(ids))
    return found


def _collated(collator: Callable[[list[Any]], Mapping[str, Any]], row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"input_ids": collator([dict(row)])["input_ids"][0]}


def _prompt(row: Mapping[str, Any], reader: Reader) -> list[int]:
    if (ids := row.get("input_ids")) is not None:
        found = _unpadded([int(token) for token in ids], token_id(reader.tokenizer, "pad"))
    elif (text := row.get("prompt")) is None:
        raise ValueError(f"found the columns {', '.join(row) or 'none'}, accepted are input_ids, or prompt")
    else:
        found = reader.text(text) if isinstance(text, str) else reader.asked(row)
    if not found:
        raise ValueError("found no token, accepted are prompts of at least one")
    return found


def _unpadded(ids: list[int], padding: int | None) -> list[int]:
    kept = [place for place, token in enumerate(ids) if token != padding]
    return ids[kept[0] : kept[-1] + 1] if kept else []


class Ranked(NamedTuple):
    """A comparison whose prompt and completions are ids. margin: that a preferred score is to be ahead by. longest:
    tokens of its longest sequence."""

    comparison: Comparison
    margin: float
    longest: int


def rankings_of(
    rows: Iterable[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, end: int, name: str = "train_dataset"
) -> list[Ranked]:
    """Comparisons out of TRL's columns, and out of those with more completions than two.

    A row has `chosen` and `rejected`, which are texts or messages, with a `prompt` before both or as the beginning of
    each, and maybe a `margin`; or `chosen_ids` and `rejected_ids`; or a `prompt` with `completions` and their `ranks`,
    lower is better and equal is a tie. end: the token behind a text, which ids and chat templates have by themselves.
    Raises ValueError, with the row, for other columns and values.
    """
    found, reader = [], Reader(tokenizer)
    for number, row in enumerate(rows):
        try:
            found.append(_ranked(row, reader, end))
        except ValueError as error:
            raise ValueError(f"{name}, row {number}: {error}") from None
    return found


def _ranked(row: Mapping[str, Any], reader: Reader, end: int) -> Ranked:
    names = {key: row.get(key) for key in ("chosen_ids", "chosen_input_ids", "completions", "chosen")}
    column = next((key for key, value in names.items() if value is not None), None)
    if column is None:
        raise ValueError(
            f"found the columns {', '.join(row) or 'none'}, accepted are chosen and rejected, chosen_ids and "
            "rejected_ids, or completions and ranks"
        )
    ranks: Sequence[float] = [0, 1]
    if column == "completions":
        ranks = row.get("ranks") or ()
        if len(ranks) != len(row[column]):
            raise ValueError(f"ranks: found {len(ranks)} for {len(row[column])} completions, accepted is one for each")
        answers = row[column]
    else:
        other = column.replace("chosen", "rejected")
        if row.get(other) is None:
            raise ValueError(f"{other}: found none beside {column}, accepted are both")
        answers = [row[column], row[other]]
    if column.endswith("ids"):
        sequences = [[int(token) for token in ids] for ids in answers]
    else:
        sequences = [_sequence(row, answer, column, reader, end) for answer in answers]
    if not all(sequences):
        raise ValueError(f"{column}: found a sequence without tokens, accepted are at least one each")
    margin = float(row.get("margin") or 0.0)
    if not math.isfinite(margin):
        raise ValueError(f"margin: found {margin}, accepted are finite numbers")
    comparison = comparison_of_ids(sequences, Comparison.pairs_from_ranks(ranks))
    return Ranked(comparison, margin, max(map(len, sequences)))


def _sequence(row: Mapping[str, Any], answer: Any, column: str, reader: Reader, end: int) -> list[int]:
    """A prompt, if there is one, and an answer, read together as TRL reads them."""
    prompt = row.get("prompt")
    if prompt is not None and isinstance(prompt, str) != isinstance(answer, str):
        raise ValueError("prompt: found a text beside messages, or the reverse, accepted are both of one kind")
    if not isinstance(answer, str):
        return reader.answered(row, answer, column)
    name = str(reader.tokenizer.convert_ids_to_tokens(end))
    return [*reader.text((prompt or "") + answer.removesuffix(name)), end]


def comparison_of_ids(sequences: Sequence[Sequence[int]], preferred: Iterable[tuple[int, int]]) -> Comparison:
    """Whole sequences as what they have in common, read once, and how each goes on."""
    same = 0
    while same < min(map(len, sequences)) and len({ids[same] for ids in sequences}) == 1:
        same += 1
    fields: Any = {"prompt": tuple(sequences[0][:same]), "completions": tuple(tuple(ids[same:]) for ids in sequences)}
    return Comparison(**fields, preferred=frozenset(preferred))
