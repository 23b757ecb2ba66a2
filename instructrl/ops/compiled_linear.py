"""The `linear_*` operations of a compiled backend as private ops, with autograd around them.

The ops are written in Python over the matrix products of the library and the backend's row kernels
(`linear_chunks`). torch.compile sees one node, with the loop over chunks inside.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from instructrl.ops import checks, linear_chunks, private_ops
from instructrl.ops.autograd import first_order, loss_with_gradients, savable
from instructrl.ops.class_rows import RowKernels
from instructrl.ops.compiled.calls import named
from instructrl.ops.ppo_reference import PPOLoss, metric_names
from instructrl.ops.ppo_settings import PPOSettings, flat, is_plain_ppo
from instructrl.ops.ppo_terms import GENERAL_METRICS, PPO_METRICS

SCHEMAS = {
    # tokens: [...], or [..., K]: K given ids a row.
    # kept: the workspace with the logits of the last chunk, where the backward asked for it; else [0, 0].
    "linear_token_logprobs": "(Tensor hidden, Tensor weight, Tensor? bias, Tensor tokens, Tensor? mask,"
    " float temperature, float tanh_slope, SymInt workspace, bool with_entropy, bool keep)"
    " -> (Tensor logprobs, Tensor entropy, Tensor normalizers, Tensor kept)",
    # kept: of the forward, overwritten. wanted: the gradients of hidden, weight and bias; [0] for those that are not.
    # float32 for those of float16.
    "linear_token_logprobs_backward": "(Tensor hidden, Tensor weight, Tensor? bias, Tensor tokens, Tensor? mask,"
    " Tensor normalizers, Tensor? entropy, Tensor(a!)? kept, Tensor? grad_logprobs, Tensor? grad_entropy,"
    " float temperature, float tanh_slope, SymInt workspace, bool[] wanted)"
    " -> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)",
    # losses: the loss and 1 / denominator. Gradients are those of the sum, before the denominator. nothing: [0], where
    # other losses have metrics.
    "linear_nll_loss": "(Tensor hidden, Tensor weight, Tensor? bias, Tensor tokens, Tensor mask, Tensor? weights,"
    " Tensor? num_tokens, float temperature, float tanh_slope, SymInt workspace, bool[] wanted)"
    " -> (Tensor losses, Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias, Tensor nothing)",
    # losses: the loss, its two parts, and 1 / denominator. Gradients are those of the sum, before the denominator.
    # settings: the numbers of `ppo_settings.Flat`. plain: whether the kernel of the published loss will do.
    "linear_ppo_loss": "(Tensor hidden, Tensor weight, Tensor? bias, Tensor tokens, Tensor? old_logprobs,"
    " Tensor advantages, Tensor? values, Tensor? old_values, Tensor? returns, Tensor mask, Tensor? ref_logprobs,"
    " Tensor? log_ratios, Tensor? weights, Tensor? num_tokens, float[] settings, bool plain, float temperature,"
    " float tanh_slope, SymInt workspace, bool[] wanted)"
    " -> (Tensor losses, Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias, Tensor grad_values,"
    " Tensor metrics)",
}


def _fake_forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    mask: Tensor | None,
    temperature: float,
    tanh_slope: float,
    workspace: int,
    with_entropy: bool,
    keep: bool,
) -> tuple[Tensor, ...]:
    dtype = checks.accumulation_dtype(hidden, weight)
    kept, rows = (0, 0), hidden.shape[:-1]
    if keep:
        kept = linear_chunks.workspace_shape(math.prod(rows), weight.shape[0], dtype, workspace)
    shapes = (tokens.shape, rows if with_entropy else (0,), (math.prod(rows), 2), kept)
    return tuple(hidden.new_empty(shape, dtype=dtype) for shape in shapes)


def _fake_gradients(inputs: tuple[Tensor, Tensor, Tensor | None], wanted: list[bool]) -> list[Tensor]:
    hidden = inputs[0]
    return [
        hidden.new_empty(x.shape, dtype=linear_chunks.stored_dtype(x))
        if want and x is not None
        else hidden.new_empty(0)
        for x, want in zip(inputs, wanted, strict=True)
    ]


def fake_backward(hidden: Tensor, weight: Tensor, bias: Tensor | None, *others: Any) -> tuple[Tensor, ...]:
    return tuple(_fake_gradients((hidden, weight, bias), others[-1]))


def _fake_nll_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, *others: Any) -> tuple[Tensor, ...]:
    losses = hidden.new_empty(2, dtype=checks.accumulation_dtype(hidden, weight))
    return losses, *_fake_gradients((hidden, weight, bias), others[-1]), hidden.new_empty(0)


def _fake_ppo_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, *others: Any) -> tuple[Tensor, ...]:
    dtype = checks.accumulation_dtype(hidden, weight, *(x for x in others[1:6] if x is not None))
    values, plain = others[3], others[12]
    return (
        hidden.new_empty(4, dtype=dtype),
        *_fake_gradients((hidden, weight, bias), others[-1]),
        hidden.new_empty((0,) if values is None else values.shape, dtype=dtype),
        hidden.new_empty(len(PPO_METRICS) + (not plain), dtype=torch.float32),
    )


def row_kernels(prefix: str) -> RowKernels:
    names = ("token_logprobs", "token_logprobs_backward_", "ppo_loss", "general_ppo_loss")
    return RowKernels(*(private_ops.get(prefix, name) for name in names))


def define(prefix: str) -> None:
    """Register the linear private ops of a backend whose row kernels are registered."""
    row = row_kernels(prefix)
    implementations = {
        "linear_token_logprobs": partial(linear_chunks.forward, row),
        "linear_token_logprobs_backward": partial(linear_chunks.backward, row),
        "linear_nll_loss": partial(linear_chunks.nll_loss, row),
        "linear_ppo_loss": partial(linear_chunks.ppo_loss, row),
    }
    private_ops.define(prefix, SCHEMAS, implementations, ("CPU", "CUDA"))
    fakes = {
        "linear_token_logprobs": _fake_forward,
        "linear_token_logprobs_backward": fake_backward,
        "linear_nll_loss": _fake_nll_loss,
        "linear_ppo_loss": _fake_ppo_loss,
    }
    private_ops.define_fakes(prefix, fakes)


class _LinearLogprobs(torch.autograd.Function):
    """ops: forward and backward.

    The logits of the last chunk wait for the backward in their workspace, which saves computing them again. The first
    backward writes over them; a second one of the same graph does without. A compiled graph does too, as it may not
    write to what its forward left.
    """

    @staticmethod
    def forward(
        ctx: Any,
        ops: tuple[Callable[..., Any], Callable[..., Any]],
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        mask: Tensor | None,
        temperature: float,
        tanh_slope: float,
        workspace: int,
        with_entropy: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:
        inputs = (savable(hidden), savable(weight), savable(bias), savable(tokens), savable(mask))
        keep = not torch.compiler.is_compiling()
        numbers = (temperature, tanh_slope, workspace)
        logprobs, entropy, normalizers, kept = ops[0](*inputs, *numbers, with_entropy, keep)
        ctx.op, ctx.numbers = ops[1], numbers
        ctx.save_for_backward(*inputs, normalizers, entropy if with_entropy else None)
        ctx.kept = kept if keep else None
        ctx.set_materialize_grads(False)
        return (logprobs, entropy) if with_entropy else logprobs

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None = None) -> tuple[Any, ...]:  # pyright: ignore
        wanted = list(ctx.needs_input_grad[1:4])
        kept, ctx.kept = ctx.kept, None
        others = (grad_logprobs, grad_entropy, *ctx.numbers, wanted)
        gradients = ctx.op(*ctx.saved_tensors, kept, *others)
        found = zip(gradients, ctx.saved_tensors, wanted, strict=False)
        return None, *(g.to(x.dtype) if want else None for g, x, want in found), *(None,) * 6


def _linear_token_logprobs(prefix: str, with_entropy: bool) -> Callable[..., Any]:
    ops = tuple(private_ops.get(prefix, f"linear_token_logprobs{suffix}") for suffix in ("", "_backward"))

    def linear_token_logprobs(*args: Any) -> Any:
        *tensors, temperature, settings, workspace = args
        inputs = (*tensors, *settings.folded(temperature), workspace, with_entropy)
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors[:3]):
            return _LinearLogprobs.apply(ops, *inputs)
        with torch.no_grad():
            results = ops[0](*inputs, False)
        return results[:2] if with_entropy else results[0]

    return linear_token_logprobs


def _linear_nll_loss(prefix: str) -> Callable[..., Tensor]:
    op = private_ops.get(prefix, "linear_nll_loss")

    def linear_nll_loss(*args: Any) -> Tensor:
        *tensors, num_tokens, settings, workspace = args
        count = private_ops.as_count(num_tokens, tensors[0].device)
        wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in tensors[:3]]
        inputs = (*tensors, count, *settings.folded(1.0), workspace, wanted)
        if any(wanted):
            return loss_with_gradients(op, (0, 1, 2), *inputs)[0]
        with torch.no_grad():
            return op(*inputs)[0][0]

    return linear_nll_loss


_DIFFERENTIABLE = (0, 1, 2, 6)
"""The places of hidden, weight, bias and values among the arguments of `linear_ppo_loss`."""


def _linear_ppo_loss(prefix: str) -> Callable[..., PPOLoss]:
    op = private_ops.get(prefix, "linear_ppo_loss")

    def linear_ppo_loss(*args: Any) -> PPOLoss:
        *tensors, num_tokens, settings, temperature, logit_settings, workspace = args
        assert isinstance(settings, PPOSettings)
        policy = settings.policy
        plain = is_plain_ppo(tensors[4], tensors[6], tensors[10], tensors[12], settings)
        numbers = flat(policy, settings.value, settings.vf_coef, settings.kl, settings.kl.coef)
        count = private_ops.as_count(num_tokens, tensors[0].device)
        differentiable = [tensors[place] for place in _DIFFERENTIABLE]
        wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in differentiable]
        inputs = (*tensors, count, numbers, plain, *logit_settings.folded(temperature), workspace, wanted[:3])
        if any(wanted):
            loss, losses, metrics = loss_with_gradients(op, _DIFFERENTIABLE, *inputs)
        else:
            with torch.no_grad():
                losses, *_, metrics = op(*inputs)
            loss = losses[0]
        _, policy_loss, value_loss, _ = losses.unbind()
        found = named(metrics, PPO_METRICS if plain else GENERAL_METRICS)
        names = metric_names(PPO_METRICS, policy)
        return PPOLoss(loss, policy_loss, value_loss, {name: found[name] for name in names})

    return linear_ppo_loss


IMPLEMENTATIONS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "logprobs.linear_token_logprobs": lambda prefix: _linear_token_logprobs(prefix, False),
    "logprobs.linear_token_logprobs_and_entropy": lambda prefix: _linear_token_logprobs(prefix, True),
    # The same op: it sees K ids a row by their dimensions.
    "candidates.linear_candidate_logprobs": lambda prefix: _linear_token_logprobs(prefix, False),
    "likelihood.linear_nll_loss": _linear_nll_loss,
    "ppo.linear_ppo_loss": _linear_ppo_loss,
}
