"""Maximum likelihood, shared by pretraining, SFT and the pretraining mix of PPO-ptx."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from instructrl.models.policy import Policy
from instructrl.objectives.language_modeling import pretraining_term
from instructrl.types import Sequences, num_tokens


def accumulate_likelihood_gradient(
    policy: Policy, parts: Sequence[Sequences], microbatch: int, coefficient: float = 1.0
) -> tuple[float, int]:
    """Add the gradient of `coefficient * NLL per token` over all parts to the policy's gradient buffers.

    microbatch: rows in one forward pass; the result does not depend on it. Returns the NLL per token without the
    coefficient, and the tokens counted.
    """
    count = num_tokens(parts)
    loss = 0.0
    device = next(policy.parameters()).device
    for part in _split(parts, microbatch):
        part = part.to(device)
        term = pretraining_term(policy(part), part.response_mask, count, coefficient)
        term.backward()
        loss += float(term.detach())
    return loss / coefficient, count


def _split(parts: Iterable[Sequences], size: int) -> Iterable[Sequences]:
    for part in parts:
        rows: Tensor = torch.arange(part.num_rows, device=part.prompt.device)
        for chunk in rows.split(size):
            yield part.select(chunk)
