"""Texts to tensors: prompts with responses, comparisons, and blocks of plain text."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from instructrl import progress
from instructrl.data.chat import ChatTemplate
from instructrl.data.chat_rendering import ChatTemplateError
from instructrl.data.settings import Limits, Turns
from instructrl.data.tokenizers import encode_text, end_of_text
from instructrl.types import (
    Comparison,
    Conversation,
    Demonstration,
    Document,
    Prompt,
    Sequences,
    SharedPrompts,
    num_tokens,
)


class Encoder:
    """Encodes texts with a tokenizer, within limits, and conversations with its chat template.

    chat: the template to use; with None, conversations are their plain texts. end_of_text: the token that is put at the
    end of every response, and that pads: the template's end of turn, or without a template the tokenizer's end of text.
    ends: all tokens that end a response, that one first.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, limits: Limits, chat: ChatTemplate | None = None) -> None:
        self.tokenizer = tokenizer
        self.limits = limits
        self.chat = chat
        own = end_of_text(tokenizer)
        self.end_of_text = own if chat is None else chat.end_of_turn
        self.ends = tuple(dict.fromkeys((self.end_of_text, own)))
        self.begin_of_text = begin_of_text(tokenizer)

    def prompt(self, text: str) -> list[int]:
        """Token ids of a prompt.

        A text starts as the tokenizer starts one. If it has no tokens, it becomes the end-of-text token, because a
        response has to be predicted from a state. A `Conversation` is rendered by the template, if there is one. Raises
        ValueError above the limit, and for messages that cannot be rendered.
        """
        ids = self._prompt_ids(text)
        if len(ids) > self.limits.max_prompt_tokens:
            raise ValueError(
                f"prompt {text[:60]!r}: found {len(ids)} tokens, accepted are up to {self.limits.max_prompt_tokens}"
            )
        return ids

    def fits(self, text: str) -> bool:
        """Whether `prompt` takes this text. Raises ValueError as it does, but for the limit."""
        return len(self._prompt_ids(text)) <= self.limits.max_prompt_tokens

    def check(self, prompt: str, answers: Sequence[str] = ()) -> None:
        """Raise ChatTemplateError if the template, or plain text without one, cannot render the messages."""
        if not isinstance(prompt, Conversation):
            return
        if self.chat is not None:
            self.chat.check(prompt, answers)
        elif lost := prompt.needs_template:
            raise ChatTemplateError(
                f"messages: found {lost} and no chat template in force, accepted is a tokenizer with one, or "
                "--chat-template FILE"
            )

    def _prompt_ids(self, text: str) -> list[int]:
        if isinstance(text, Conversation):
            if self.chat is not None:
                return self.chat.prompt(text)
            self.check(text)
        return [*self.begin_of_text, *encode_text(self.tokenizer, text)] or [self.end_of_text]

    def response(self, text: str, *, prompt: str = "", finished: bool = True) -> list[int]:
        """Token ids of a response with its end-of-text token, cut at the limit.

        prompt: what it answers; after a `Conversation` the template renders the response, see `ChatTemplate.response`.
        finished: False leaves the end-of-text token out, for a response that was already cut.
        """
        if self.chat is not None and isinstance(prompt, Conversation):
            ids = self.chat.response(prompt, self._prompt_ids(prompt), text, finished=finished)
        else:
            ids = encode_text(self.tokenizer, text) + ([self.end_of_text] if finished else [])
        return ids[: self.limits.max_response_tokens]

    def is_whole(self, text: str, *, prompt: str = "") -> bool:
        """Whether `response` takes all of this text, and its end."""
        return self.response(text, prompt=prompt)[-1:] == [self.end_of_text]

    def prompts(self, texts: Iterable[str]) -> tuple[Tensor, Tensor]:
        """Prompts, padded on the left. Returns [B, P] int64 and [B, P] bool."""
        return pad_left([self.prompt(text) for text in texts], self.end_of_text)

    def pairs(self, prompts: Sequence[str], responses: Sequence[str], finished: Sequence[bool] | None = None):
        """`Sequences` of prompts and their responses, one row for each pair."""
        flags = [True] * len(prompts) if finished is None else finished
        prompt, prompt_mask = self.prompts(prompts)
        response, response_mask = pad_right(
            [
                self.response(text, prompt=asked, finished=flag)
                for asked, text, flag in zip(prompts, responses, flags, strict=True)
            ],
            self.end_of_text,
        )
        return Sequences(prompt=prompt, prompt_mask=prompt_mask, response=response, response_mask=response_mask)

    def demonstrations(self, rows: Sequence[Demonstration], turns: Turns = "last") -> Sequences:
        """One row for each demonstration.

        turns: with "all", a conversation with earlier turns of the assistant begins to be a response at the first of
        them, and what is `learned` of it are these turns with their ends. The tokens are the same. Plain texts, and
        conversations without a template, have the last turn alone.
        """
        prompts, responses, learned = [], [], []
        for row in rows:
            ids, marked = self.prompt(row.prompt), []
            if turns == "all" and self.chat is not None and isinstance(row.prompt, Conversation):
                marked = self.chat.learned(row.prompt)
            border = marked.index(True) if True in marked else len(ids)
            answer = self.response(row.completion, prompt=row.prompt)
            prompts.append(ids[:border] or [self.end_of_text])
            responses.append([*ids[border:], *answer])
            learned.append([*marked[border:], *[True] * len(answer)])
        prompt, prompt_mask = pad_left(prompts, self.end_of_text)
        response, response_mask = pad_right(responses, self.end_of_text)
        every = all(map(all, learned))
        return Sequences(
            prompt=prompt,
            prompt_mask=prompt_mask,
            response=response,
            response_mask=response_mask,
            learned=None if every else pad_right(learned, 0)[0].bool(),
        )

    def without_equal_pairs(self, row: Comparison) -> Comparison:
        """Leaves out the preferences between responses with the same tokens once they are cut: they have the same
        score, so only its rounding could be learned."""
        flags = row.finished or [True] * len(row.completions)
        responses = [
            self.response(text, prompt=row.prompt, finished=flag)
            for text, flag in zip(row.completions, flags, strict=True)
        ]
        different = frozenset((i, j) for i, j in row.preferred if responses[i] != responses[j])
        return row if different == row.preferred else replace(row, preferred=different)

    def shared_prompts(self, rows: Sequence[Comparison]) -> SharedPrompts:
        """One row for each comparison, which has its prompt once. K is the largest number of completions."""
        responses = [
            [
                self.response(text, prompt=row.prompt, finished=finished)
                for text, finished in zip(row.completions, row.finished or (True,) * len(row.completions), strict=True)
            ]
            for row in rows
        ]
        return shared_prompts([self.prompt(row.prompt) for row in rows], responses, self.end_of_text)

    def decode(self, response: Tensor, response_mask: Tensor) -> list[str]:
        """Texts of responses [B, T], without the end-of-text token."""
        rows = [ids[keep].tolist() for ids, keep in zip(response, response_mask, strict=True)]
        return [self.text(ids) for ids in rows]

    def text(self, ids: list[int]) -> str:
        """Without the end-of-text token."""
        return str(self.tokenizer.decode([i for i in ids if i != self.end_of_text]))


LEARNED = "⟦", "⟧"
"""Around what is learned, in a text for people."""


def as_read(row: Prompt | Demonstration | Comparison, encoder: Encoder, turns: Turns) -> tuple[str, int, int]:
    """A record as a model reads it, for people: the text of its tokens, control tokens among them, what is learned of
    it between `LEARNED`, and how many tokens there are and are learned. Of a comparison, the first completion."""
    if isinstance(row, Prompt):
        ids = encoder.prompt(row.text)
        return str(encoder.tokenizer.decode(ids)), len(ids), 0
    if isinstance(row, Comparison):
        found = encoder.pairs([row.prompt], row.completions[:1])
        num_learned = 0
    else:
        found = encoder.demonstrations([row], turns)
        num_learned = num_tokens([found])
    ids, learned = found.tokens[0].tolist(), [False] * found.prompt.shape[1] + found.counted[0].tolist()
    pieces = []
    for inside, part in groupby(range(len(ids)), key=lambda place: learned[place] and num_learned > 0):
        text = str(encoder.tokenizer.decode([ids[place] for place in part]))
        pieces.append(f"{LEARNED[0]}{text}{LEARNED[1]}" if inside else text)
    return "".join(pieces), len(ids), num_learned


def begin_of_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that a tokenizer puts before a text by itself: none for GPT-2's, one for those of Llama and Gemma.

    Found by comparing a text with and without them. What a tokenizer appends is not meant: whether a response ends is
    known here alone. Raises ValueError where the tokens of the text are not among them, or no text has tokens.
    """
    special = set(tokenizer.all_special_ids)
    text, plain = "a", encode_text(tokenizer, "a")
    if not special.isdisjoint(plain) or not plain:  # a vocabulary without the letter: one of its words then
        encoded = ((word, encode_text(tokenizer, word)) for word in sorted(tokenizer.get_vocab()))
        text, plain = next(((word, ids) for word, ids in encoded if ids and special.isdisjoint(ids)), ("", []))
        if not plain:
            raise ValueError(
                f"tokenizer: found none of its {len(tokenizer.get_vocab())} entries in a text, accepted is one that "
                "encodes the words of its vocabulary: another class may have been made of its files"
            )
    whole: list[int] = tokenizer.encode(text, add_special_tokens=True, split_special_tokens=True, verbose=False)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    raise ValueError(
        f"tokenizer: found {whole} for the text of {plain}, accepted is one that adds tokens before or behind a text"
    )


def pack_documents(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, length: int) -> Tensor:
    """One stream of documents, each as the tokenizer starts one and an end-of-text token between them, cut into blocks.

    If the tokenizer starts a text with nothing, as GPT-2's, the end of text is before each document, otherwise after
    it.

    Returns [N, length] int64; the remainder that does not fill a block is dropped.
    Raises ValueError where the text does not fill one block.
    """
    end = end_of_text(tokenizer)
    start = begin_of_text(tokenizer) or [end]
    between = [] if end in start else [end]
    stream: list[int] = []
    for document in progress.through("plain text to tokens", documents):
        stream += [*start, *encode_text(tokenizer, document.text), *between]
    num_blocks = len(stream) // length
    if num_blocks == 0:
        raise ValueError(f"corpus: found {len(stream)} tokens, accepted is at least one block of {length}")
    return torch.tensor(stream[: num_blocks * length], dtype=torch.int64).view(num_blocks, length)


def blocks_as_sequences(blocks: Tensor) -> Sequences:
    """Language modelling as a response to the first token. blocks: [B, L] int64."""
    every = torch.ones_like(blocks, dtype=torch.bool)
    return Sequences(prompt=blocks[:, :1], prompt_mask=every[:, :1], response=blocks[:, 1:], response_mask=every[:, 1:])


def pad_left(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """[B, longest] int64 and its mask, real tokens at the right."""
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), padding, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :] = torch.tensor(row, dtype=torch.int64)
        mask[i, width - len(row) :] = True
    return tokens, mask


def pad_right(rows: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    """[B, longest] int64 and its mask, real tokens at the left."""
    tokens, mask = pad_left([row[::-1] for row in rows], padding)
    return tokens.flip(1), mask.flip(1)


def shared_prompts(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]], padding: int
) -> SharedPrompts:
    """One row for each prompt, with its responses; all of them as ids."""
    tokens, segments, positions = [], [], []
    last = torch.zeros(len(prompts), max(map(len, responses)), dtype=torch.int64)
    for number, (prompt, answers) in enumerate(zip(prompts, responses, strict=True)):
        start = len(prompt)
        ids, segment, position = list(prompt), [0] * start, list(range(start))
        last[number] = start - 1
        for k, response in enumerate(answers):
            ids += response
            segment += [k + 1] * len(response)
            position += range(start, start + len(response))
            if response:
                last[number, k] = len(ids) - 1
        tokens.append(ids)
        segments.append(segment)
        positions.append(position)
    return SharedPrompts(
        tokens=pad_right(tokens, padding)[0],
        segments=pad_right(segments, -1)[0],
        positions=pad_right(positions, 0)[0],
        last=last,
    )


def preferred_pairs(rows: Sequence[Comparison]) -> Tensor:
    """[P, K, K] bool, True where completion i was preferred to j. K is the largest number of completions."""
    width = max(len(row.completions) for row in rows)
    preferred = torch.zeros(len(rows), width, width, dtype=torch.bool)
    for p, row in enumerate(rows):
        for winner, loser in row.preferred:
            preferred[p, winner, loser] = True
    return preferred
