"""How likely a policy finds given answers: each prompt is read once for all of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instructrl import distributed, progress
from instructrl.data.encoding import Encoder, shared_prompts
from instructrl.data.tokenizers import encode_text
from instructrl.models.passes import converted_once
from instructrl.models.policy import Policy
from instructrl.models.spread import unsharded
from instructrl.types import Conversation

# Of the attention's mask [rows, tokens, tokens], which is what grows fastest: float32 elements in one pass.
_MASK_ELEMENTS = 1 << 24
_MAX_ROWS = 32
# Characters before an option with which it is encoded: more than a word has.
_BEFORE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihoods:
    """Of the answers to one prompt. totals: log-probabilities in nats, the sum over an answer's tokens. num_tokens: of
    each answer."""

    totals: tuple[float, ...]
    num_tokens: tuple[int, ...]

    @property
    def means(self) -> tuple[float, ...]:
        """Log-probability per token of each answer; 0 of one without tokens."""
        return tuple(total / max(count, 1) for total, count in zip(self.totals, self.num_tokens, strict=True))


@torch.no_grad()
@converted_once()
def option_logprobs(
    policy: Policy, encoder: Encoder, prompts: Sequence[str], options: Sequence[Sequence[str]]
) -> list[Likelihoods]:
    """The log-probability of each option behind its prompt, in the order of both, without an end of text.

    options: at least one a prompt. Options of the same tokens are read once, and so are exactly as likely. Each process
    of a job reads its part of the prompts, and has all of them. Raises ValueError as `Encoder.prompt` does.
    """
    asked = [_Asked(encoder, prompt, texts) for prompt, texts in zip(prompts, options, strict=True)]
    order = sorted(range(len(asked)), key=lambda i: asked[i].num_tokens)
    own = distributed.own_rows(order)
    width = max((len(row.different) for row in asked), default=0)
    found = []
    with unsharded(policy) as network, progress.wait("likelihoods", len(own)) as advance:
        for places in _batches(own or order[:1], asked):
            found.append(_totals(network, encoder, [asked[i] for i in places], width))
            advance(len(places))
    if not asked:
        return []
    totals = distributed.gather(torch.cat(found)[: len(own)], len(order)).cpu()
    made: list[Likelihoods | None] = [None] * len(asked)
    for place, row in zip(order, totals.tolist(), strict=True):
        made[place] = asked[place].likelihoods(row)
    return [row for row in made if row is not None]


def option_tokens(encoder: Encoder, prompt: str, option: str) -> list[int]:
    """Ids of an option behind its prompt, without an end of text.

    In plain text they are those that both together have behind the ids of the prompt: a tokenizer that begins each text
    with a space of its own has none within one. Where both begin with other ids, because a token goes from one into the
    other, they are those of the option by itself.
    """
    if isinstance(prompt, Conversation):
        return encoder.response(option, prompt=prompt, finished=False)
    before = prompt[-_BEFORE:]
    start, whole = (encode_text(encoder.tokenizer, text) for text in (before, before + option))
    if whole[: len(start)] != start:
        return encoder.response(option, finished=False)
    return whole[len(start) :][: encoder.limits.max_response_tokens]


class _Asked:
    """A prompt and its options as ids, those of the same ids once."""

    def __init__(self, encoder: Encoder, prompt: str, options: Sequence[str]) -> None:
        self.prompt = encoder.prompt(prompt)
        ids = [tuple(option_tokens(encoder, prompt, text)) for text in options]
        self.different = list(dict.fromkeys(ids))
        self._places = [self.different.index(row) for row in ids]
        self.num_tokens = len(self.prompt) + sum(map(len, self.different))

    def likelihoods(self, totals: Sequence[float]) -> Likelihoods:
        return Likelihoods(
            totals=tuple(totals[place] for place in self._places),
            num_tokens=tuple(len(self.different[place]) for place in self._places),
        )


def _batches(places: Sequence[int], asked: Sequence[_Asked]) -> list[list[int]]:
    """places: in the order of their length."""
    batches: list[list[int]] = []
    for place in places:
        room = max(_MASK_ELEMENTS // asked[place].num_tokens ** 2, 1)
        if not batches or len(batches[-1]) >= min(room, _MAX_ROWS):
            batches.append([])
        batches[-1].append(place)
    return batches


def _totals(network: Policy, encoder: Encoder, rows: Sequence[_Asked], width: int) -> Tensor:
    """[B, width], zeros where a prompt has fewer options."""
    given = shared_prompts([row.prompt for row in rows], [row.different for row in rows], encoder.end_of_text)
    found = network.shared_prompt_logprobs(given.to(network.device))
    return torch.nn.functional.pad(found, (0, width - found.shape[1]))
