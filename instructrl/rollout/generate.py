"""Sampling responses from a policy."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from instructrl import distributed, progress
from instructrl.data.encoding import Encoder, pad_left
from instructrl.models.adapters import merged
from instructrl.models.decoding import Decoder
from instructrl.models.passes import converted_once
from instructrl.models.policy import Policy
from instructrl.models.spread import unsharded
from instructrl.ops.logit_settings import LogitSettings
from instructrl.ops.sampling import sample_tokens
from instructrl.rollout.randomness import keyed_uniforms
from instructrl.rollout.settings import Truncation
from instructrl.rollout.truncation import allowed_tokens, cut_at, stopped
from instructrl.types import Rollout, Sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How responses are drawn.

    seed: with the episode and the position, the key of every random number.
    temperature: divides the logits; 0 takes the likeliest token, the lowest id of several.
    truncation: which tokens are drawn from, and where texts stop.
    max_response_tokens: where a response is cut.
    batch_size: prompts decoded together.
    """

    seed: int
    temperature: float = 1.0
    truncation: Truncation = Truncation()
    max_response_tokens: int = 1024
    batch_size: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Sampled texts. finished: the response ended by itself, not at the length limit."""

    texts: list[str]
    finished: list[bool]


@torch.no_grad()
@converted_once()
def generate(
    policy: Policy, prompt: Tensor, prompt_mask: Tensor, episodes: Tensor, encoder: Encoder, sampling: Sampling
) -> Rollout:
    """One response to each prompt, decoded together.

    prompt: [B, P] int64 left-padded, prompt_mask: [B, P] bool. episodes: [B] int64, the key of each row's randomness.
    encoder: whose `ends`, with the policy's others, finish a response and is part of it, and which reads
    the responses where stop strings may end them. Finished rows leave the batch.
    """
    num_rows, limit, stop = prompt.shape[0], sampling.max_response_tokens, sampling.truncation.stop
    end_of_text = encoder.end_of_text
    response = torch.full((num_rows, limit), end_of_text, dtype=torch.int64, device=prompt.device)
    response_mask = torch.zeros(num_rows, limit, dtype=torch.bool, device=prompt.device)
    finished = torch.zeros(num_rows, dtype=torch.bool, device=prompt.device)
    uniforms = keyed_uniforms(sampling.seed, episodes, limit)
    rows = torch.arange(num_rows, device=prompt.device)
    ends = torch.tensor(policy.ends(*encoder.ends), device=prompt.device)
    decoder = Decoder(policy, prompt, prompt_mask)
    for position in range(limit):
        tokens = _drawn(decoder.projection(), uniforms[rows, position], policy.logit_settings, sampling)
        response[rows, position] = tokens
        response_mask[rows, position] = True
        ended = (tokens[:, None] == ends).any(dim=1)
        if stop:
            said = stopped(encoder, response[rows, : position + 1].tolist(), stop)
            ended |= torch.tensor(said, device=prompt.device)
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


def _drawn(projection: Tensor, uniforms: Tensor, settings: LogitSettings, sampling: Sampling) -> Tensor:
    if sampling.temperature == 0:
        return projection.argmax(-1)
    shape = {"temperature": sampling.temperature, "logit_settings": settings}
    if not sampling.truncation.truncates:
        return sample_tokens(projection, uniforms, **shape)
    allowed = allowed_tokens(projection, sampling.temperature, settings, sampling.truncation)
    return sample_tokens(projection, uniforms, allowed=allowed, **shape)


def sample_rollout(
    policy: Policy, encoder: Encoder, prompts: Sequence[str], sampling: Sampling, *, first_episode: int = 0
) -> Rollout:
    """One response to each prompt, in the order of the prompts.

    Row i is episode `first_episode + i`. Prompts of similar length are decoded together, `batch_size` at a time;
    neither the grouping nor the batch size changes a sample beyond the rounding of the logits. Each process of a job
    samples its part of the rows, and has all of them.
    """
    encoded = [encoder.prompt(prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    own = distributed.own_rows(order)
    parts = []
    with unsharded(policy) as whole, merged(whole) as network, progress.wait("sampling", len(own)) as advance:
        device = network.device
        for start in range(0, len(own) or 1, sampling.batch_size):
            places = own[start : start + sampling.batch_size] or order[:1]  # nobody's row, for the shape of nothing
            prompt, prompt_mask = pad_left([encoded[i] for i in places], encoder.end_of_text)
            episodes = torch.tensor(places, dtype=torch.int64, device=device) + first_episode
            parts.append(generate(network, prompt.to(device), prompt_mask.to(device), episodes, encoder, sampling))
            advance(len(places))
    back = torch.tensor(order, device=device).argsort()
    response, response_mask, finished = (
        distributed.gather(part[: len(own)], len(order)) for part in _concatenated(parts)
    )
    prompt, prompt_mask = pad_left([encoded[i] for i in order], encoder.end_of_text)
    sequences = Sequences(
        prompt=prompt.to(device),
        prompt_mask=prompt_mask.to(device),
        response=response.masked_fill(~response_mask, encoder.end_of_text),
        response_mask=response_mask,
    )
    return Rollout(sequences=sequences, finished=finished).select(back)


def sample_texts(
    policy: Policy, encoder: Encoder, prompts: Sequence[str], sampling: Sampling, *, first_episode: int = 0
) -> Samples:
    """`sample_rollout` as texts."""
    rollout = sample_rollout(policy, encoder, prompts, sampling, first_episode=first_episode)
    texts = response_texts(rollout, encoder)
    if stop := sampling.truncation.stop:
        # The token that ended a response may have said more than a stop string, or have been no end of text.
        whole = rollout.sequences.response_mask & ~_is_end(rollout.sequences.response, policy, encoder)
        texts = [cut_at(text, stop) for text in encoder.decode(rollout.sequences.response, whole)]
    return Samples(texts=texts, finished=rollout.finished.tolist())


def _is_end(tokens: Tensor, policy: Policy, encoder: Encoder) -> Tensor:
    ends = torch.tensor(policy.ends(*encoder.ends), device=tokens.device)
    return (tokens[..., None] == ends).any(-1)


def response_texts(rollout: Rollout, encoder: Encoder) -> list[str]:
    """What was said, without the token that ended it."""
    return encoder.decode(rollout.sequences.response, rollout.sequences.response_mask & ~rollout.last_tokens)


def _concatenated(parts: Sequence[Rollout]) -> tuple[Tensor, Tensor, Tensor]:
    """Responses with zeros behind them, their mask, and which finished."""
    rows = [part.sequences for part in parts]
    length = max(row.response.shape[1] for row in rows)

    def stack(tensors: list[Tensor]) -> Tensor:
        return torch.cat([F.pad(x, (0, length - x.shape[1])) for x in tensors])

    return (
        stack([row.response for row in rows]),
        stack([row.response_mask for row in rows]),
        torch.cat([part.finished for part in parts]),
    )
