"""Maximum likelihood, shared by pretraining, SFT and the pretraining mix of PPO-ptx."""

from collections.abc import Iterable, Sequence

from instructrl.models.policy import Policy
from instructrl.ops.likelihood import linear_nll_loss
from instructrl.types import Sequences, num_tokens


def accumulate_likelihood_gradient(
    policy: Policy, parts: Sequence[Sequences], microbatch: int, coefficient: float = 1.0
) -> tuple[float, int]:
    """Add the gradient of `coefficient * NLL per token` over all parts to the policy's gradient buffers.

    With `ptx_coef` as the coefficient this is the last term of the paper's equation 2.

    microbatch: rows in one forward pass; the result does not depend on it. Returns the NLL per token without the
    coefficient, and the tokens counted.
    """
    count = num_tokens(parts)
    loss = 0.0
    device = next(policy.parameters()).device
    for part in _split(parts, microbatch):
        part = part.to(device)
        hidden, weight, bias = policy.head_inputs(part)
        loss_part = linear_nll_loss(hidden, weight, part.response, part.response_mask, bias=bias, num_tokens=count)
        term = coefficient * loss_part
        term.backward()
        loss += float(term.detach())
    return loss / coefficient, count


def _split(parts: Iterable[Sequences], size: int) -> Iterable[Sequences]:
    for part in parts:
        for rows in part.rows_by_length(size):
            yield part.select(rows).trim()
