"""Maximum likelihood, shared by pretraining, SFT and the pretraining mix of PPO-ptx."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from torch import Tensor

from instructrl import distributed
from instructrl.models.policy import Policy
from instructrl.models.spread import synchronised
from instructrl.ops.likelihood import linear_nll_loss
from instructrl.types import Experience, Sequences, num_tokens

RowsT = TypeVar("RowsT", Sequences, Experience)


def accumulate_likelihood_gradient(
    policy: Policy, parts: Sequence[Sequences], microbatch: int, coefficient: float = 1.0
) -> tuple[float, int]:
    """Add the gradient of `coefficient * NLL per token` over all parts to the policy's gradient buffers.

    With `ptx_coef` as the coefficient this is the last term of the paper's equation 2.

    microbatch: rows in one forward pass; the result does not depend on it. In a job, each process is given all parts
    and takes its rows of them. Returns the NLL per token without the coefficient, and the tokens counted.
    """
    count = num_tokens(parts)
    loss = 0.0
    device = next(policy.parameters()).device
    for part in synchronised(list(_split(parts, microbatch)), [policy]):
        part = part.to(device)
        hidden, weight, bias = policy.head_inputs(part)
        loss_part = linear_nll_loss(hidden, weight, part.response, part.response_mask, bias=bias, num_tokens=count)
        term = coefficient * loss_part
        term.backward()
        loss += float(term.detach())
    (loss,) = distributed.total([loss])
    return loss / coefficient, count


def select_microbatch(rows: RowsT, chosen: Tensor) -> RowsT:
    """Some rows, trimmed. Of none, the first without a token that counts: every process passes through the networks
    as often as the others, who would wait for it."""
    found = rows.select(chosen) if len(chosen) else rows.select(chosen.new_zeros(1)).uncounted()
    return found.trim()


def _split(parts: Iterable[Sequences], size: int) -> Iterable[Sequences]:
    for part in parts:
        for rows in distributed.microbatches(part.rows_by_length(), size):
            yield select_microbatch(part, rows)
