"""Frozen records that cross layers: texts as people wrote them, and the tensors made from them.

Shapes use `B` sequences, `P` prompt positions, `T` response positions. A mask is True where an element counts.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Message:
    """What one side said. role: system, user, assistant or tool. others: a JSON object of other fields that templates
    know (`tool_calls`, `name`, `tool_call_id`), "" for none."""

    role: str
    content: str
    others: str = ""

    def as_mapping(self) -> dict[str, Any]:
        """As data files and chat templates have it."""
        return {"role": self.role, "content": self.content, **(json.loads(self.others) if self.others else {})}


class Conversation(str):
    """A prompt that was given as messages: a string, their plain rendering, that also knows the messages.

    The rendering of a single user message is its content. Otherwise each message is its role on a line (`System:`,
    `User:`, `Assistant:`, `Tool:`), its content below and a blank line, and the prompt ends with `Assistant:` on a
    line. With a chat template, `Encoder` reads the messages and not this text. tools: JSON of the tools that the model
    may call, "" for none.
    """

    __slots__ = ("messages", "tools")
    messages: tuple[Message, ...]
    tools: str

    def __new__(cls, messages: Iterable[Message], tools: str = "") -> "Conversation":
        found = tuple(messages)
        self = super().__new__(cls, _plain_text(found, tools))
        self.messages, self.tools = found, tools
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.messages, self.tools

    def __deepcopy__(self, memo: Any) -> "Conversation":
        return self

    @property
    def needs_template(self) -> str:
        """What of it plain text has no place for; "" for nothing."""
        if self.tools:
            return "tools"
        return next(("tool turns" for m in self.messages if m.role == "tool" or m.others), "")


def _plain_text(messages: Sequence[Message], tools: str) -> str:
    if len(messages) == 1 and messages[0].role == "user" and not tools:
        return messages[0].content
    parts = [f"Tools:\n{tools}\n\n"] if tools else []
    for message in messages:
        said = "\n".join(part for part in (message.content, message.others) if part)
        parts.append(f"{message.role.capitalize()}:\n{said}\n\n")
    return "".join(parts) + "Assistant:\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a user asked, a text or a `Conversation`. `user` groups prompts for the cap and the split; "" is an unknown
    user."""

    text: str
    user: str = ""
    source: str = ""
    category: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A prompt with the completion that a labeler wrote for it."""

    prompt: str
    completion: str
    user: str = ""
    source: str = ""
    category: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """K completions of one prompt and the pairs in which a labeler preferred one.

    `preferred` holds pairs `(winner, loser)` of indices into `completions`. Tied pairs are left out. `pairs_from_ranks`
    makes the pairs of a ranking, which is the special case without cycles. `finished` says which completions ended by
    themselves and were not cut at a length limit; empty: all did.
    """

    prompt: str
    completions: tuple[str, ...]
    preferred: frozenset[tuple[int, int]]
    user: str = ""
    source: str = ""
    category: str = ""
    labeler: str = ""
    finished: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        num_completions = len(self.completions)
        if self.finished and len(self.finished) != num_completions:
            raise ValueError(f"finished: found {len(self.finished)}, accepted is one a completion, {num_completions}")
        if num_completions < 2:
            raise ValueError(f"completions: found {num_completions}, a comparison takes at least 2")
        for winner, loser in self.preferred:
            if not (0 <= winner < num_completions and 0 <= loser < num_completions) or winner == loser:
                raise ValueError(
                    f"preferred: found the pair ({winner}, {loser}), accepted are two different indices "
                    f"from 0 to {num_completions - 1}"
                )

    @staticmethod
    def pairs_from_ranks(ranks: Sequence[float]) -> frozenset[tuple[int, int]]:
        """The pairs of a ranking with ties: `(i, j)` if `ranks[i] < ranks[j]` (lower is better)."""
        return frozenset((i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Plain text for pretraining and for the pretraining mix."""

    text: str
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamItem:
    """What a model is asked in an exam of a generated world, as text whose tokens stand between blanks.

    exam: its name. prompt: of the wording, "" where there is one. context: all of the text before the answer. options:
    among which the likeliest is the answer; empty where it is written. right: indices of those that are right.
    references: the right answer, if there is one. question: what is asked, without what stands around it. group: what
    it is reported by as well.
    """

    exam: str
    context: str
    prompt: str = ""
    options: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    references: tuple[str, ...] = ()
    question: str = ""
    group: str = ""


class _TensorRecord:
    """Row selection and device moves for records whose fields are tensors with one row a sequence."""

    __slots__ = ()

    def _map(self, function):
        values = {}
        for field in fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                values[field.name] = function(value)
            elif isinstance(value, _TensorRecord):
                values[field.name] = value._map(function)
            else:
                values[field.name] = value
        return type(self)(**values)

    def select(self, rows: Tensor):
        """The record of these rows. rows: [R] int64 indices."""
        return self._map(lambda value: value[rows])

    def to(self, device: torch.device | str):
        """The record on another device."""
        return self._map(lambda value: value.to(device))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences(_TensorRecord):
    """Prompts and responses side by side: prompts are padded on the left, responses on the right.

    prompt: [B, P] int64, padded on the left; every row has at least one real token.
    prompt_mask: [B, P] bool, True at real tokens.
    response: [B, T] int64, padded on the right.
    response_mask: [B, T] bool, True at real tokens, the end-of-text token included.
    learned: [B, T] bool, the real tokens that are counted in a likelihood; None for all.

    Language modelling is the case of a one-token prompt. Response position `t` is predicted from the hidden state
    at column `P - 1 + t`, so the positions that matter to a loss are the same columns in every row.
    """

    prompt: Tensor
    prompt_mask: Tensor
    response: Tensor
    response_mask: Tensor
    learned: Tensor | None = None

    @classmethod
    def smallest(cls) -> "Sequences":
        """A row of one token and one more: for a network to be tried on."""
        token, counted = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
        return cls(prompt=token, prompt_mask=counted, response=token, response_mask=counted)

    @property
    def tokens(self) -> Tensor:
        """[B, P + T] int64."""
        return torch.cat([self.prompt, self.response], dim=1)

    @property
    def mask(self) -> Tensor:
        """[B, P + T] bool."""
        return torch.cat([self.prompt_mask, self.response_mask], dim=1)

    @property
    def counted(self) -> Tensor:
        """[B, T] bool, True at the tokens that are counted in a likelihood."""
        return self.response_mask if self.learned is None else self.learned

    @property
    def num_rows(self) -> int:
        return self.prompt.shape[0]

    def rows_by_length(self) -> Tensor:
        """Row numbers, [B] int64, the shortest sequences first: parts of them have little padding."""
        return self.mask.sum(dim=1).argsort(stable=True)

    def uncounted(self) -> "Sequences":
        """The same prompts, with no token of the responses counting."""
        return replace(self, response_mask=torch.zeros_like(self.response_mask), learned=None)

    def trim(self) -> "Sequences":
        """Without the columns in which no row has a token, but for one of each side."""
        prompt, response = (int(mask.sum(dim=1).amax().clamp(min=1)) for mask in (self.prompt_mask, self.response_mask))
        return Sequences(
            prompt=self.prompt[:, -prompt:],
            prompt_mask=self.prompt_mask[:, -prompt:],
            response=self.response[:, :response],
            response_mask=self.response_mask[:, :response],
            learned=None if self.learned is None else self.learned[:, :response],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrompts(_TensorRecord):
    """Prompts, each once, followed by their responses in the same row: `prompt response_1 .. response_K padding`.

    tokens: [B, L] int64. segments: [B, L] int64; 0 in the prompt, 1 .. K in the responses, -1 in the padding.
    positions: [B, L] int64; the position of a token in its prompt with its response. last: [B, K] int64; the column of
    a response's last token; if the response is empty, or the prompt has fewer than K, of the prompt's last token.
    """

    tokens: Tensor
    segments: Tensor
    positions: Tensor
    last: Tensor

    @classmethod
    def smallest(cls) -> "SharedPrompts":
        """As `Sequences.smallest`."""
        places = torch.arange(2)[None, :]
        return cls(tokens=torch.zeros_like(places), segments=places, positions=places, last=places[:, 1:])

    @property
    def num_rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def predecessors(self) -> Tensor:
        """[B, L] int64: the column of the token from which each token of a response is predicted, the one before it or
        the prompt's last; of no meaning in the prompt's first column and in the padding."""
        before = torch.arange(self.segments.shape[1], device=self.segments.device).sub(1).clamp(min=0)
        first = self.segments != torch.nn.functional.pad(self.segments[:, :-1], (1, 0))
        ends = (self.segments == 0).sum(dim=1, keepdim=True) - 1
        return torch.where(first & (self.segments > 0), ends, before)

    def separate(self) -> Sequences:
        """One row for each response, [B * K], those of a prompt one after the other; empty responses if it has fewer
        than K."""
        num_responses = self.last.shape[1]
        in_prompt = self.segments == 0
        last_columns = in_prompt.long().argsort(dim=1, stable=True)[:, -_longest(in_prompt) :]
        responses = [self.segments == k + 1 for k in range(num_responses)]
        length = max(map(_longest, responses))
        first_columns = [(~mask).long().argsort(dim=1, stable=True)[:, :length] for mask in responses]

        def side_by_side(parts: list[Tensor]) -> Tensor:
            return torch.stack(parts, dim=1).flatten(0, 1)

        return Sequences(
            prompt=self.tokens.gather(1, last_columns).repeat_interleave(num_responses, dim=0),
            prompt_mask=in_prompt.gather(1, last_columns).repeat_interleave(num_responses, dim=0),
            response=side_by_side([self.tokens.gather(1, columns) for columns in first_columns]),
            response_mask=side_by_side(
                [mask.gather(1, columns) for mask, columns in zip(responses, first_columns, strict=True)]
            ),
        )


def _longest(mask: Tensor) -> int:
    return int(mask.sum(dim=1).amax().clamp(min=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout(_TensorRecord):
    """Responses that a policy sampled.

    sequences: the prompts and the sampled responses.
    finished: [B] bool; the response ended with an end token (False: it was cut at the length limit).
    """

    sequences: Sequences
    finished: Tensor

    def closed(self, end_of_text: int) -> Sequences:
        """The sequences as texts are encoded: what finished ends with this token, whichever one the policy sampled."""
        rows = self.sequences
        return replace(rows, response=rows.response.masked_fill(self.last_tokens, end_of_text))

    @property
    def last_tokens(self) -> Tensor:
        """[B, T] bool, True at the token that ended a finished response."""
        mask = self.sequences.response_mask
        last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
        return last & self.finished[:, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience(_TensorRecord):
    """What PPO learns from: a rollout, with everything that stays fixed during its minibatches.

    sequences: B rows. scores: [B] float32, the reward model's. logprobs, ref_logprobs, values, advantages (whitened),
    returns: [B, T] float32, 0 where the response mask is False.
    """

    sequences: Sequences
    scores: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def uncounted(self) -> "Experience":
        """As `Sequences.uncounted`."""
        return replace(self, sequences=self.sequences.uncounted())

    def trim(self) -> "Experience":
        """As `Sequences.trim`."""
        sequences = self.sequences.trim()
        length = sequences.response.shape[1]
        names = ("logprobs", "ref_logprobs", "values", "advantages", "returns")
        return replace(self, sequences=sequences, **{name: getattr(self, name)[:, :length] for name in names})


def num_tokens(batches: Iterable[Sequences]) -> int:
    """Number of counted response tokens in several batches: the denominator of a mean over tokens."""
    return sum(int(batch.counted.sum()) for batch in batches)
