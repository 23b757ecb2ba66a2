"""Which tokens of a distribution are sampled from at all, and where a text stops: for reading, not for learning.

PPO samples from the whole distribution, because its ratios are those of the policy that sampled.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from instructrl.data.encoding import Encoder
from instructrl.ops.logit_settings import LogitSettings
from instructrl.ops.precision import widest
from instructrl.ops.softmax_rows import shaped_logits
from instructrl.rollout.settings import Truncation

# What a token says at least: a character of UTF-8 has up to four bytes, and byte-level tokens may be one of them.
_TOKENS_PER_CHARACTER = 4


def allowed_tokens(logits: Tensor, temperature: float, settings: LogitSettings, truncation: Truncation) -> Tensor:
    """[B, V] bool, at least one True a row: of `softmax(z / temperature)` the `top_k` likeliest, of these as few as
    have `top_p` of their probability, and of these those at least `min_p` times as likely as the likeliest.

    That order is transformers'. Tokens as likely as the last of the `top_k` stay, and so do those as likely as the
    last that is needed for `top_p` only as far as they are needed, the lower ids first. `top_p`: Holtzman et al.,
    arXiv 1904.09751; `min_p`: Nguyen et al., arXiv 2407.01082.
    """
    shaped = shaped_logits(logits.float(), temperature, settings, None)
    if truncation.top_k:
        least = shaped.topk(min(truncation.top_k, shaped.shape[1])).values[:, -1:]
        shaped = shaped.masked_fill(shaped < least, -math.inf)
    probabilities = shaped.softmax(-1)
    allowed = probabilities > 0
    if truncation.top_p < 1:
        falling, order = probabilities.sort(dim=-1, descending=True, stable=True)
        needed = falling.cumsum(-1, dtype=widest(falling.device)) - falling < truncation.top_p
        allowed &= torch.zeros_like(allowed).scatter(1, order, needed)
    if truncation.min_p:
        allowed &= probabilities >= truncation.min_p * probabilities.amax(-1, keepdim=True)
    return allowed


def stopped(encoder: Encoder, rows: Sequence[list[int]], stop: Sequence[str]) -> list[bool]:
    """Whether the text of a row of tokens says one of the stop strings near its end."""
    longest = _TOKENS_PER_CHARACTER * (max(map(len, stop)) + 1)
    texts = [encoder.text(row[-longest:]) for row in rows]
    return [any(words in text for words in stop) for text in texts]


def cut_at(text: str, stop: Sequence[str]) -> str:
    """A text up to the first stop string in it."""
    return text[: min((place for words in stop if (place := text.find(words)) >= 0), default=len(text))]
