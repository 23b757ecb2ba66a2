"""Maximum likelihood, shared by pretraining, SFT and the pretraining mix of PPO-ptx."""

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

from instructrl import distributed
from instructrl.models.heap import give_back
from instructrl.models.policy import Policy
from instructrl.models.spread import synchronised
from instructrl.ops.likelihood import linear_nll_loss
from instructrl.types import Experience, Sequences, num_tokens

RowsT = TypeVar("RowsT", Sequences, Experience)


def accumulate_likelihood_gradient(
    policy: Policy, terms: Sequence[tuple[float, Sequences]], microbatch: int
) -> tuple[list[float], int]:
    """Add the gradient of `sum(coefficient * NLL per token of its own rows)` to the policy's gradient buffers.

    terms: coefficient and rows of each; a mean is over the tokens of that term alone, so a coefficient says what its
    term weighs, however long the rows are. With `ptx_coef` as the coefficient this is the last term of the paper's
    equation 2.

    microbatch: rows in one forward pass; the result does not depend on it. In a job, each process is given all terms
    and takes its rows of them. Returns the NLL per token of each term, without its coefficient, and all tokens counted.
    """
    counts = [num_tokens([rows]) for _, rows in terms]
    sums = [0.0] * len(terms)
    device = policy.device
    parts = [
        (index, coefficient, select_microbatch(rows, chosen))
        for index, (coefficient, rows) in enumerate(terms)
        for chosen in distributed.microbatches(rows.rows_by_length(), microbatch)
    ]
    for index, coefficient, part in synchronised(parts, [policy]):
        part = part.to(device)
        hidden, weight, bias = policy.head_inputs(part)
        loss_part = linear_nll_loss(
            hidden,
            weight,
            part.response,
            part.counted,
            bias=bias,
            num_tokens=counts[index],
            logit_settings=policy.logit_settings,
        )
        term = coefficient * loss_part
        term.backward()
        give_back()
        sums[index] += float(term.detach())
    sums = distributed.total(sums)
    return [found / coefficient for found, (coefficient, _) in zip(sums, terms, strict=True)], sum(counts)


def select_microbatch(rows: RowsT, chosen: Tensor) -> RowsT:
    """Some rows, trimmed. Of none, the first without a token that counts: every process passes through the networks
    as often as the others, who would wait for it."""
    found = rows.select(chosen) if len(chosen) else rows.select(chosen.new_zeros(1)).uncounted()
    return found.trim()
