"""Sampling responses from a policy."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from instructrl.data.encoding import Encoder, pad_left
from instructrl.models.decoding import Decoder
from instructrl.models.policy import Policy
from instructrl.ops.sampling import sample_tokens
from instructrl.rollout.randomness import keyed_uniforms
from instructrl.types import Rollout, Sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How responses are drawn.

    seed: with the episode and the position, the key of every random number.
    temperature: divides the logits.
    max_response_tokens: where a response is cut.
    batch_size: prompts decoded together.
    """

    seed: int
    temperature: float = 1.0
    max_response_tokens: int = 1024
    batch_size: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Sampled texts. finished: the response ended by itself, not at the length limit."""

    texts: list[str]
    finished: list[bool]


@torch.no_grad()
def generate(
    policy: Policy, prompt: Tensor, prompt_mask: Tensor, episodes: Tensor, end_of_text: int, sampling: Sampling
) -> Rollout:
    """One response to each prompt, decoded together.

    prompt: [B, P] int64 left-padded, prompt_mask: [B, P] bool. episodes: [B] int64, the key of each row's randomness.
    end_of_text: the token that finishes a response and is part of it. Finished rows leave the batch.
    """
    num_rows, limit = prompt.shape[0], sampling.max_response_tokens
    response = torch.full((num_rows, limit), end_of_text, dtype=torch.int64, device=prompt.device)
    response_mask = torch.zeros(num_rows, limit, dtype=torch.bool, device=prompt.device)
    finished = torch.zeros(num_rows, dtype=torch.bool, device=prompt.device)
    uniforms = keyed_uniforms(sampling.seed, episodes, limit)
    rows = torch.arange(num_rows, device=prompt.device)
    decoder = Decoder(policy, prompt, prompt_mask)
    for position in range(limit):
        tokens = sample_tokens(decoder.logits(), uniforms[rows, position], temperature=sampling.temperature)
        response[rows, position] = tokens
        response_mask[rows, position] = True
        ended = tokens == end_of_text
        finished[rows[ended]] = True
        if ended.any():
            left = decoder.drop(ended)
            rows, tokens = rows[left], tokens[left]
        if len(rows) == 0 or position + 1 == limit:
            break
        decoder.append(tokens)
    longest = int(response_mask.sum(dim=1).max())
    sequences = Sequences(
        prompt=prompt,
        prompt_mask=prompt_mask,
        response=response[:, :longest],
        response_mask=response_mask[:, :longest],
    )
    return Rollout(sequences=sequences, finished=finished)


def sample_rollout(
    policy: Policy, encoder: Encoder, prompts: Sequence[str], sampling: Sampling, *, first_episode: int = 0
) -> Rollout:
    """One response to each prompt, in the order of the prompts.

    Row i is episode `first_episode + i`. Prompts of similar length are decoded together, `batch_size` at a time;
    neither the grouping nor the batch size changes a sample beyond the rounding of the logits.
    """
    encoded = [encoder.prompt(prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    parts = []
    device = next(policy.parameters()).device
    for start in range(0, len(order), sampling.batch_size):
        places = order[start : start + sampling.batch_size]
        prompt, prompt_mask = pad_left([encoded[i] for i in places], encoder.end_of_text)
        episodes = torch.tensor(places, dtype=torch.int64, device=device) + first_episode
        parts.append(
            generate(policy, prompt.to(device), prompt_mask.to(device), episodes, encoder.end_of_text, sampling)
        )
    back = torch.tensor(order, device=device).argsort()
    return _concatenate(parts, encoder.end_of_text).select(back)


def sample_texts(
    policy: Policy, encoder: Encoder, prompts: Sequence[str], sampling: Sampling, *, first_episode: int = 0
) -> Samples:
    """`sample_rollout` as texts."""
    rollout = sample_rollout(policy, encoder, prompts, sampling, first_episode=first_episode)
    texts = encoder.decode(rollout.sequences.response, rollout.sequences.response_mask)
    return Samples(texts=texts, finished=rollout.finished.tolist())


def _concatenate(parts: Sequence[Rollout], padding: int) -> Rollout:
    width = max(part.sequences.prompt.shape[1] for part in parts)
    length = max(part.sequences.response.shape[1] for part in parts)

    def stack(tensors: list[Tensor], width: int, left: bool, value: int) -> Tensor:
        return torch.cat(
            [F.pad(t, (width - t.shape[1], 0) if left else (0, width - t.shape[1]), value=value) for t in tensors]
        )

    rows = [part.sequences for part in parts]
    sequences = Sequences(
        prompt=stack([r.prompt for r in rows], width, True, padding),
        prompt_mask=stack([r.prompt_mask for r in rows], width, True, False),
        response=stack([r.response for r in rows], length, False, padding),
        response_mask=stack([r.response_mask for r in rows], length, False, False),
    )
    return Rollout(sequences=sequences, finished=torch.cat([part.finished for part in parts]))
