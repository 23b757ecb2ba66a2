"""Implementations of `instructrl.ops.ranking` by private ops."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instructrl.ops import private_ops
from instructrl.ops.autograd import first_order
from instructrl.ops.compiled.calls import PrivateOp, wants_gradient
from instructrl.ops.ranking import RankingLoss


class _RankingLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: PrivateOp, scores: Tensor, preferred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss_sum, num_pairs, num_correct, gradient = op(scores, preferred)
        ctx.dtype = scores.dtype
        ctx.save_for_backward(gradient, num_pairs)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(num_pairs, num_correct)
        return loss_sum, num_pairs, num_correct

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_loss_sum: Tensor, *_: Tensor) -> tuple[None, Tensor, None]:  # pyright: ignore
        gradient, num_pairs = ctx.saved_tensors
        # A mean over no pairs is 0 / 0, and so is its gradient.
        scale = grad_loss_sum.masked_fill(num_pairs == 0, 0.0)
        return None, (gradient * scale.unsqueeze(1)).to(ctx.dtype), None


def _pairwise_ranking_loss(prefix: str) -> Callable[..., RankingLoss]:
    op = private_ops.get(prefix, "pairwise_ranking_loss")

    def pairwise_ranking_loss(scores: Tensor, preferred: Tensor) -> RankingLoss:
        if wants_gradient(scores):
            return RankingLoss(*_RankingLoss.apply(op, scores, preferred))  # pyright: ignore
        return RankingLoss(*op(scores, preferred)[:3])

    return pairwise_ranking_loss


IMPLEMENTATIONS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "ranking.pairwise_ranking_loss": _pairwise_ranking_loss,
}
