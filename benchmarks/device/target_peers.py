"""Functions of other libraries for the rows of gpu_targets.py, where they are installed.

Each takes what the row's own function takes and returns the same; it raises ImportError where its library is not here.
Named by library; Liger's scaled cross entropy uses kernels for Hopper where their compiler is installed, else PyTorch.
"""

from typing import Any

import torch
from torch import Tensor


def trl_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    from trl.kernels import selective_log_softmax_and_entropy

    return selective_log_softmax_and_entropy(logits, tokens)[0]


def liger_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Where logits need a gradient, it is made here and written over them."""
    from liger_kernel.ops import LigerCrossEntropyFunction

    settings = (None, -100, 0.0, 0.0, "none", None, False, False, False)
    found: Any = LigerCrossEntropyFunction.apply(logits.flatten(0, -2), tokens.flatten(), *settings)
    return -found[0].view(tokens.shape)


def trl_linear(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction

    # 32768 columns at a time, as its trainers do.
    found: Any = ChunkedLogProbFunction.apply(hidden, weight, None, tokens, 1.0, 32768, None, 1.0, ())
    return found[0]


def liger_linear(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    found: Any = LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, tokens, None, None, -100, 0.0, 0.0, "none")
    return -found[0]


def liger_scaled_linear(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    found: Any = LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, tokens)
    return -(found if isinstance(found, Tensor) else found[0])


def cut_cross_entropy(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """With its default filter, which leaves small parts of the gradient out."""
    from cut_cross_entropy import linear_cross_entropy

    return -linear_cross_entropy(hidden, weight, tokens, reduction="none")


def liger_policy_loss(
    hidden: Tensor, weight: Tensor, tokens: Tensor, old_logprobs: Tensor, sequence_advantages: Tensor, mask: Tensor
) -> Tensor:
    """The clipped policy loss alone. hidden: [B, T, D]. sequence_advantages: [B], one for all tokens of a sequence."""
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOLoss

    # The mean over counted tokens is called "bnpo" there.
    loss = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, loss_type="bnpo", compiled=hidden.is_cuda)
    found: Any = loss(
        hidden, weight, tokens, mask.to(torch.int64), sequence_advantages, old_per_token_logps=old_logprobs
    )
    return found[0]
