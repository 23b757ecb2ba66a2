"""Liger's losses of preferences from hidden states: DPO, ORPO, CPO and SimPO, by Liger's own formulas of pairs."""

import importlib
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from instructrl.integrations.liger.heads import head_logprobs, random_head
from instructrl.integrations.selfcheck import Draw, Example


def _of_sequences(tokens: Tensor, mask: Tensor, average: bool) -> Tensor:
    return tokens.sum(-1) / mask.sum(-1) if average else tokens.sum(-1)


def _mean_of_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Without the logits: the sum of a row of them is a product with the sum of the head's rows."""
    total = hidden.sum((0, 1), dtype=torch.float32) @ weight.sum(0, dtype=torch.float32)
    rows = hidden.shape[0] * hidden.shape[1]
    if bias is not None:
        total = total + rows * bias.sum(dtype=torch.float32)
    return total / (rows * weight.shape[0])


def _added(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts[0].dim() else torch.stack(parts).sum()


def _pairs(formula: Any, sums: Tensor, ref: Tensor | None, target: Tensor, chunks: int, options: dict[str, Any]) -> Any:
    """The loss and what else Liger's formula returns, a chunk of pairs at a time as there: some return its mean."""
    number, outputs = target.shape[0] // 2, []
    for part in torch.arange(number, device=target.device).chunk(chunks):
        given = dict(options)
        if ref is not None:
            given["ref_chosen_logps"], given["ref_rejected_logps"] = ref[part], ref[number + part]
        found = formula(sums[part], sums[number + part], target, **given)
        outputs.append(found if isinstance(found, tuple) else (found,))
    return [_added(list(each)) for each in zip(*outputs, strict=True)]


def forward_of(own: Any) -> Any:
    def forward(
        cls: Any,
        ctx: Any,
        _input: Tensor,
        weight: Tensor,
        target: Tensor,
        bias: Tensor | None = None,
        chunk_size: int = 1,
        ignore_index: int = -100,
        alpha: float = 1.0,
        beta: float = 0.1,
        compute_nll_loss: bool = True,
        nll_target: Tensor | None = None,
        compiled: bool = True,
        use_ref_model: bool = False,
        ref_input: Tensor | None = None,
        ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
        average_log_prob: bool = True,
        **loss_kwargs: Any,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        half, mask, ref_sums = target.shape[0] // 2, target != ignore_index, None
        if use_ref_model:
            head: Any = (ref_input, ref_weight, target, ref_bias)
            with torch.no_grad():
                ref_sums = _of_sequences(head_logprobs(*head, mask=mask), mask, average_log_prob)
        leaves: Any = [
            None if x is None else x.detach().requires_grad_(x.requires_grad) for x in (_input, weight, bias)
        ]
        labels = (target if nll_target is None else nll_target)[:half]
        counted, nll = labels != ignore_index, torch.zeros((), device=target.device)
        with torch.enable_grad():
            tokens = head_logprobs(leaves[0], leaves[1], target, leaves[2], mask=mask)
            sums = _of_sequences(tokens, mask, average_log_prob)
            if compute_nll_loss and nll_target is None:
                nll = -tokens[:half].sum()
            elif compute_nll_loss:
                nll = -head_logprobs(leaves[0][:half], leaves[1], labels, leaves[2], mask=counted).sum()
            nll = nll / counted.sum()
            chunks, options = max(1, _input.shape[0] // (2 * chunk_size)), {"beta": beta, **loss_kwargs}
            loss, *others = _pairs(cls.preference_loss_fn, sums, ref_sums, target, chunks, options)
            loss = alpha * nll + loss
            wanted = [x for x in leaves if x is not None and x.requires_grad]
            gradients = iter(torch.autograd.grad(loss, wanted) if wanted else ())
        ctx.save_for_backward(*(next(gradients) if x is not None and x.requires_grad else None for x in leaves))
        means = [_mean_of_logits(hidden, weight, bias) for hidden in (_input[:half], _input[half:])]
        return loss.detach(), tuple(x.detach() for x in (sums[:half], sums[half:], *means, nll, *others))

    return staticmethod(forward)


def saved(function: Any, method: str, *args: Any, **kwargs: Any) -> Any:
    """What a forward returns, and the gradients that it has made for the backward, where autograd calls it."""
    module, name = method.split(":")
    kept: list[Tensor | None] = []
    ctx = SimpleNamespace(save_for_backward=lambda *tensors: kept.extend(tensors))
    owner = getattr(importlib.import_module(f"liger_kernel.chunked_loss.{module}"), name)
    with torch.no_grad():
        return function(owner, ctx, *args, compiled=False, **kwargs), kept


def calls(draw: Draw) -> list[Example]:
    rows = 2 * draw.sizes.batch

    def example(method: str, bias: bool = False, **others: Any) -> Example:
        hidden, weight, target, added = random_head(draw, rows, bias)
        target = target.masked_fill_(~draw.lengths(*target.shape), -100)
        return Example((method, hidden, weight, target, added), others)

    dpo = "dpo_loss:LigerFusedLinearDPOFunction"
    reference = random_head(draw, rows)
    ref: dict[str, Any] = {"ref_input": reference[0].detach(), "ref_weight": reference[1].detach()}
    return [
        example(dpo, use_ref_model=True, average_log_prob=False, compute_nll_loss=False, **ref),
        example(
            dpo, True, average_log_prob=True, loss_type="apo_zero", alpha=0.3, nll_target=reference[2], chunk_size=2
        ),
        example("orpo_loss:LigerFusedLinearORPOFunction", chunk_size=3),
        example("cpo_loss:LigerFusedLinearCPOFunction", label_smoothing=0.1, average_log_prob=False),
        example("simpo_loss:LigerFusedLinearSimPOFunction", gamma=0.5),
    ]
