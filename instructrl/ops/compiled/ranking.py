"""Implementations of `instructrl.ops.ranking` by private ops."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from instructrl.ops import private_ops
from instructrl.ops.autograd import first_order
from instructrl.ops.compiled.calls import PrivateOp, wants_gradient
from instructrl.ops.ranking import PlackettLuceLoss, RankingLoss, TiedRankingLoss
from instructrl.ops.ranking_settings import ComparisonTerms


class _RankingLoss(torch.autograd.Function):
    """Of ops that return the loss of each prompt, counts, and the gradient by the scores, their first argument. What
    the loss sums over is the first count, and the third where there is one.
    """

    @staticmethod
    def forward(ctx: Any, op: PrivateOp, scores: Tensor, *others: Any) -> tuple[Tensor, ...]:
        loss_sum, *counts, gradient = op(scores, *others)
        ctx.dtype, ctx.num_others = scores.dtype, len(others)
        ctx.save_for_backward(gradient, counts[0], *counts[2:])
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*counts)
        return loss_sum, *counts

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_loss_sum: Tensor, *_: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        gradient, num_pairs, *num_ties = ctx.saved_tensors
        # A mean over no pairs is 0 / 0, and so is its gradient.
        for count in num_ties:
            num_pairs = num_pairs + count
        scale = grad_loss_sum.masked_fill(num_pairs == 0, 0.0)
        return None, (gradient * scale.unsqueeze(1)).to(ctx.dtype), *[None] * ctx.num_others


def _run(op: PrivateOp, scores: Tensor, *others: Any) -> tuple[Tensor, ...]:
    if wants_gradient(scores):
        return _RankingLoss.apply(op, scores, *others)  # pyright: ignore
    return op(scores, *others)[:-1]


def _pairwise_ranking_loss(prefix: str) -> Callable[..., RankingLoss]:
    plain = private_ops.get(prefix, "pairwise_ranking_loss")
    general = private_ops.get(prefix, "paired_comparison_loss")

    def pairwise_ranking_loss(
        scores: Tensor, preferred: Tensor, margins: Tensor | None, weights: Tensor | None, label_smoothing: float
    ) -> RankingLoss:
        if margins is None and weights is None and label_smoothing == 0.0:
            return RankingLoss(*_run(plain, scores, preferred))
        terms = ComparisonTerms(label_smoothing=label_smoothing)
        return RankingLoss(*_run(general, scores, preferred, None, margins, weights, *terms)[:3])

    return pairwise_ranking_loss


def _tied_ranking_loss(prefix: str) -> Callable[..., TiedRankingLoss]:
    op = private_ops.get(prefix, "paired_comparison_loss")

    def tied_ranking_loss(scores: Tensor, *others: Any) -> TiedRankingLoss:
        *tensors, terms = others
        return TiedRankingLoss(*_run(op, scores, *tensors, *terms))

    return tied_ranking_loss


def _plackett_luce_loss(prefix: str) -> Callable[..., PlackettLuceLoss]:
    op = private_ops.get(prefix, "plackett_luce_loss")

    def plackett_luce_loss(scores: Tensor, ranks: Tensor) -> PlackettLuceLoss:
        return PlackettLuceLoss(*_run(op, scores, ranks))

    return plackett_luce_loss


IMPLEMENTATIONS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "ranking.pairwise_ranking_loss": _pairwise_ranking_loss,
    "ranking.tied_ranking_loss": _tied_ranking_loss,
    "ranking.plackett_luce_loss": _plackett_luce_loss,
}
