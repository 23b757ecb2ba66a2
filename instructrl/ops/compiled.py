"""From the private ops of a compiled backend to implementations of the public ones: autograd around them, attachment.

Backends register private ops (`private_ops.SCHEMAS`) and call `attach`. What is here is the same for all of them.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from instructrl import kernels
from instructrl.ops import checks, compiled_linear, private_ops
from instructrl.ops.advantages import Advantages
from instructrl.ops.autograd import LossWithGradients, first_order, savable
from instructrl.ops.ppo import PolicyLoss, PPOLoss, ValueLoss
from instructrl.ops.ppo_terms import POLICY_METRICS, PPO_METRICS, VALUE_METRICS, Settings
from instructrl.ops.ranking import RankingLoss

_PrivateOp = Callable[..., Any]


def _of_one_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as they are where their dtypes agree, else in the accumulation dtype."""
    first = tensors[0].dtype
    for tensor in tensors:
        if tensor.dtype != first:
            dtype = checks.accumulation_dtype(*tensors)
            return tuple(x.to(dtype) for x in tensors)
    return tensors


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class _RankingLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: _PrivateOp, scores: Tensor, preferred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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
        if _wants_gradient(scores):
            return RankingLoss(*_RankingLoss.apply(op, scores, preferred))  # pyright: ignore
        return RankingLoss(*op(scores, preferred)[:3])

    return pairwise_ranking_loss


def _has_rows(logits: Tensor) -> bool:
    """Whether two strides say where each row of [..., V] starts, which is what the op that writes over them needs."""
    return logits.stride(-1) == 1 and (logits.dim() <= 3 or logits.is_contiguous())


class _TokenLogprobs(torch.autograd.Function):
    """ops: forward, backward, backward over the logits, which is taken when `inplace`."""

    @staticmethod
    def forward(
        ctx: Any,
        ops: tuple[_PrivateOp, _PrivateOp, _PrivateOp],
        logits: Tensor,
        tokens: Tensor,
        mask: Tensor | None,
        temperature: float,
        with_entropy: bool,
        inplace: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:
        logprobs, entropy, normalizers = ops[0](logits, tokens, mask, temperature, with_entropy)
        ctx.ops, ctx.temperature, ctx.inplace = ops, temperature, inplace
        saved = (savable(tokens), savable(mask), normalizers, entropy if with_entropy else None)
        ctx.save_for_backward(logits, *saved)
        ctx.set_materialize_grads(False)
        return (logprobs, entropy) if with_entropy else logprobs

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None = None) -> tuple[Any, ...]:  # pyright: ignore
        logits, *others = ctx.saved_tensors
        gradient = logits
        if not ctx.inplace:
            gradient = ctx.ops[1](logits, *others, grad_logprobs, grad_entropy, ctx.temperature)
        elif _has_rows(logits):
            ctx.ops[2](logits, *others, grad_logprobs, grad_entropy, ctx.temperature)
            # Whoever saved the logits for a backward of their own gets autograd's error, a second backward of this
            # function included. An op from C++ does not count its writes by itself.
            torch.autograd.graph.increment_version(logits)
        else:
            logits.copy_(ctx.ops[1](logits, *others, grad_logprobs, grad_entropy, ctx.temperature))
        return None, gradient, None, None, None, None, None


def _token_logprobs(prefix: str, with_entropy: bool) -> Callable[..., Any]:
    names = ("token_logprobs", "token_logprobs_backward", "token_logprobs_backward_")
    forward, *backwards = (private_ops.get(prefix, name) for name in names)
    ops = (forward, *backwards)

    def token_logprobs(
        logits: Tensor, tokens: Tensor, mask: Tensor | None, temperature: float, inplace_backward: bool
    ) -> Any:
        if _wants_gradient(logits):
            return _TokenLogprobs.apply(ops, logits, tokens, mask, temperature, with_entropy, inplace_backward)
        results = forward(logits, tokens, mask, temperature, with_entropy)
        return results[:2] if with_entropy else results[0]

    return token_logprobs


def _run_loss(op: _PrivateOp, differentiable: tuple[int, ...], *args: Any) -> tuple[Any, ...]:
    """Losses without the scale, then the metrics."""
    if _wants_gradient(*(args[place] for place in differentiable)):
        loss, losses, metrics = LossWithGradients.apply(op, differentiable, *args)  # pyright: ignore
        return loss, *losses.unbind()[1:-1], metrics
    with torch.no_grad():
        losses, *_, metrics = op(*args)
    return *losses.unbind()[:-1], metrics


def _named(metrics: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    return dict(zip(names, metrics.unbind(), strict=True))


def _clipped_policy_loss(prefix: str) -> Callable[..., PolicyLoss]:
    op = private_ops.get(prefix, "clipped_policy_loss")

    def clipped_policy_loss(
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        mask: Tensor,
        num_tokens: int | Tensor | None,
        cliprange: float,
    ) -> PolicyLoss:
        inputs = _of_one_dtype(logprobs, old_logprobs, advantages)
        loss, metrics = _run_loss(op, (0,), *inputs, mask, private_ops.as_count(num_tokens, mask.device), cliprange)
        return PolicyLoss(loss, _named(metrics, POLICY_METRICS))

    return clipped_policy_loss


def _clipped_value_loss(prefix: str) -> Callable[..., ValueLoss]:
    op = private_ops.get(prefix, "clipped_value_loss")

    def clipped_value_loss(
        values: Tensor,
        old_values: Tensor,
        returns: Tensor,
        mask: Tensor,
        num_tokens: int | Tensor | None,
        cliprange_value: float,
    ) -> ValueLoss:
        inputs = _of_one_dtype(values, old_values, returns)
        loss, metrics = _run_loss(
            op, (0,), *inputs, mask, private_ops.as_count(num_tokens, mask.device), cliprange_value
        )
        return ValueLoss(loss, _named(metrics, VALUE_METRICS))

    return clipped_value_loss


def _ppo_loss(prefix: str) -> Callable[..., PPOLoss]:
    op = private_ops.get(prefix, "ppo_loss")

    def ppo_loss(
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        values: Tensor,
        old_values: Tensor,
        returns: Tensor,
        mask: Tensor,
        ref_logprobs: Tensor | None,
        num_tokens: int | Tensor | None,
        settings: Settings,
    ) -> PPOLoss:
        inputs = _of_one_dtype(logprobs, old_logprobs, advantages, values, old_values, returns)
        if ref_logprobs is not None and ref_logprobs.dtype != inputs[0].dtype:
            # The reference is read in the dtype of the loss, which is not its to choose.
            dtype = checks.accumulation_dtype(*inputs)
            inputs, ref_logprobs = tuple(x.to(dtype) for x in inputs), ref_logprobs.to(dtype)
        count = private_ops.as_count(num_tokens, mask.device)
        results = _run_loss(op, (0, 3), *inputs, mask, ref_logprobs, count, *settings)
        loss, policy_loss, value_loss, metrics = results
        return PPOLoss(loss, policy_loss, value_loss, _named(metrics, PPO_METRICS))

    return ppo_loss


def _generalized_advantages(prefix: str) -> Callable[..., tuple[Tensor, Tensor]]:
    op = private_ops.get(prefix, "generalized_advantages")

    @torch.no_grad()
    def generalized_advantages(rewards: Tensor, values: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        return op(*_of_one_dtype(rewards, values), *others)

    return generalized_advantages


def _ppo_advantages(prefix: str) -> Callable[..., Advantages]:
    op = private_ops.get(prefix, "ppo_advantages")

    @torch.no_grad()
    def ppo_advantages(
        logprobs: Tensor, ref_logprobs: Tensor, values: Tensor, scores: Tensor, *others: Any
    ) -> Advantages:
        dtype = checks.accumulation_dtype(logprobs, ref_logprobs, values, scores)
        inputs = _of_one_dtype(logprobs, ref_logprobs, values)
        if dtype == torch.float64 and inputs[0].dtype != torch.float64:
            inputs = tuple(x.to(dtype) for x in inputs)
        return Advantages(*op(*inputs, scores.to(dtype), *others))

    return ppo_advantages


def _masked_whiten(prefix: str) -> Callable[..., Tensor]:
    return torch.no_grad()(private_ops.get(prefix, "masked_whiten"))


def _sample_tokens(prefix: str) -> Callable[..., Tensor]:
    return torch.no_grad()(private_ops.get(prefix, "sample_tokens"))


_IMPLEMENTATIONS: dict[str, Callable[[str], Callable[..., Any]]] = {
    "ranking.pairwise_ranking_loss": _pairwise_ranking_loss,
    "logprobs.token_logprobs": lambda prefix: _token_logprobs(prefix, False),
    "logprobs.token_logprobs_and_entropy": lambda prefix: _token_logprobs(prefix, True),
    "advantages.generalized_advantages": _generalized_advantages,
    "advantages.ppo_advantages": _ppo_advantages,
    "advantages.masked_whiten": _masked_whiten,
    "ppo.clipped_policy_loss": _clipped_policy_loss,
    "ppo.clipped_value_loss": _clipped_value_loss,
    "ppo.ppo_loss": _ppo_loss,
    "sampling.sample_tokens": _sample_tokens,
    **compiled_linear.IMPLEMENTATIONS,
}

# Their other tensors, stats and uniform numbers, may be float64 on every device.
_AUXILIARY_AFTER_FIRST = ("advantages.masked_whiten", "sampling.sample_tokens")


def attach(
    backend: str,
    *,
    prefix: str,
    dtypes: Mapping[str, Collection[torch.dtype]],
    devices: tuple[str, ...],
    about: str = "",
    no_code: Callable[[int], str | None] = lambda index: None,
) -> None:
    """Attach a backend whose private ops are registered.

    prefix: of its private ops. dtypes: those it computes with, by device type. devices: the device types where it is
    chosen unasked. about: as in `kernels.attach`. no_code: why it cannot run on the GPU of an index, or None.
    """
    private_ops.define_fakes(prefix, private_ops.FAKES)
    compiled_linear.define(prefix)

    def implementation(op: str) -> kernels.Implementation:
        data = slice(1) if op in _AUXILIARY_AFTER_FIRST else slice(None)
        return kernels.Implementation(
            function=_IMPLEMENTATIONS[op](prefix), unsupported=lambda *args: _unsupported(dtypes, no_code, args[data])
        )

    found = {op: implementation(op) for op in _IMPLEMENTATIONS}
    kernels.attach(backend, devices=devices, implementations=found, about=about)


def _unsupported(
    dtypes: Mapping[str, Collection[torch.dtype]], no_code: Callable[[int], str | None], args: tuple[Any, ...]
) -> str | None:
    device_type = args[0].device.type
    accepted = dtypes.get(device_type)
    if accepted is None:
        return f"found device {device_type}, accepted are {', '.join(dtypes)}"
    if len(accepted) == len(checks.FLOATING):
        return None
    for x in args:
        # A 0-dim tensor is a denominator, which may be float64 everywhere.
        if isinstance(x, Tensor) and x.dtype in checks.FLOATING and x.dim() > 0 and x.dtype not in accepted:
            return f"found dtype {x.dtype} on {device_type}, accepted are {', '.join(map(str, accepted))}"
    return no_code(args[0].get_device()) if device_type == "cuda" else None
