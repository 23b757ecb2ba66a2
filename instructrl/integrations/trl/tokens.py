"""Data of TRL's trainers as ids: rows of a `datasets.Dataset`, or of any sequence of dicts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from instructrl.data.encoding import Encoder, begin_of_text
from instructrl.data.settings import Limits
from instructrl.data.tokenizers import encode_text
from instructrl.types import Comparison

Ids = tuple[int, ...]


class IdEncoder(Encoder):
    """Takes ids for texts: what was tokenised outside goes through as it is.

    end_of_text: the token that ends a response, and fills what counts for nothing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, limits: Limits, end_of_text: int) -> None:
        self.tokenizer, self.limits, self.end_of_text, self.begin_of_text = tokenizer, limits, end_of_text, []

    def prompt(self, text: Any) -> list[int]:
        return list(text)

    def fits(self, text: Any) -> bool:
        return len(text) <= self.limits.max_prompt_tokens

    def response(self, text: Any, *, finished: bool = True) -> list[int]:
        return list(text)


def ids_of_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """As the tokenizer starts a text; none of its words controls anything, whatever it says."""
    return [*begin_of_text(tokenizer), *encode_text(tokenizer, text)]


def ids_of_messages(tokenizer: PreTrainedTokenizerBase, messages: Any, *, asks: bool) -> list[int]:
    """By the tokenizer's chat template. asks: an answer is to follow. Raises ValueError where there is no template."""
    if not tokenizer.chat_template:
        raise ValueError("prompt: found messages and a tokenizer without a chat template, accepted are texts or ids")
    found: Any = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=asks, return_dict=True)
    return list(found["input_ids"])


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
    found = []
    for number, row in enumerate(rows):
        given = row if collator is None else collator([dict(row)])
        if "input_ids" in given:
            ids = given["input_ids"] if collator is None else given["input_ids"][0]
            ids = _unpadded([int(i) for i in ids], tokenizer.pad_token_id)
        elif isinstance(text := given.get("prompt"), str):
            ids = ids_of_text(tokenizer, text)
        elif text is not None:
            ids = ids_of_messages(tokenizer, text, asks=True)
        else:
            columns = ", ".join(given) or "none"
            raise ValueError(f"{name}, row {number}: found the columns {columns}, accepted are input_ids, or prompt")
        if not ids:
            raise ValueError(f"{name}, row {number}: found no token, accepted are prompts of at least one")
        found.append(tuple(ids))
    return found


def _unpadded(ids: list[int], padding: int | None) -> list[int]:
    kept = [place for place, token in enumerate(ids) if token != padding]
    return ids[kept[0] : kept[-1] + 1] if kept else []


def comparison_of_ids(sequences: Sequence[Sequence[int]], preferred: Iterable[tuple[int, int]]) -> Comparison:
    """Whole sequences as what they have in common, read once, and how each goes on."""
    same = 0
    while same < min(map(len, sequences)) and len({ids[same] for ids in sequences}) == 1:
        same += 1
    fields: Any = {"prompt": tuple(sequences[0][:same]), "completions": tuple(tuple(ids[same:]) for ids in sequences)}
    return Comparison(**fields, preferred=frozenset(preferred))
