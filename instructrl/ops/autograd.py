"""What the operations that write their own backward have in common."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A `torch.autograd.Function.backward` whose result has no derivative: RuntimeError where one is asked for.

    Without any incoming gradient there is none.

    `torch.autograd.function.once_differentiable` raises only when the incoming gradient requires one itself, and a
    gradient penalty on a loss would be zero without a word.
    """

    @functools.wraps(backward)
    def refusing(ctx: Any, *grad_outputs: Any) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                f"{backward.__qualname__}: found create_graph=True, accepted is a first backward: this gradient has"
                " no derivative (that of ops.use_backend('reference') has, for token_logprobs and the ranking loss)"
            )
        if all(grad is None for grad in grad_outputs):
            return (None,) * len(ctx.needs_input_grad)
        return backward(ctx, *grad_outputs)

    return refusing


def savable(x: Tensor | None) -> Tensor | None:
    """A constant as autograd may keep it: what was made under `torch.inference_mode()`, as rollouts are, is copied."""
    if x is None or torch.compiler.is_compiling() or not x.is_inference():
        return x
    return x.clone()


class LossWithGradients(torch.autograd.Function):
    """A loss whose op returns losses, the gradients of the sum, and metrics; the last of the losses is the scale that
    turns the sum's gradients into the loss's. differentiable: places in `args` of what the gradients belong to.
    """

    @staticmethod
    def forward(ctx: Any, op: Callable[..., Any], differentiable: tuple[int, ...], *args: Any) -> tuple[Tensor, ...]:
        losses, *gradients, metrics = op(*args)
        ctx.differentiable, ctx.num_args = differentiable, len(args)
        ctx.dtypes = [None if args[place] is None else args[place].dtype for place in differentiable]
        # What is returned may be changed in place: the loss has memory of its own, and what is saved too.
        ctx.save_for_backward(losses[-1].clone(), *gradients)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(losses, metrics)
        return losses[0].clone(), losses, metrics

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        scale, *gradients = ctx.saved_tensors
        scale = scale * grad_loss
        found: list[Tensor | None] = [None] * (2 + ctx.num_args)
        for place, gradient, dtype in zip(ctx.differentiable, gradients, ctx.dtypes, strict=True):
            if ctx.needs_input_grad[2 + place]:
                found[2 + place] = (gradient * scale).to(dtype)
        return tuple(found)


def loss_with_gradients(op: Callable[..., Any], differentiable: tuple[int, ...], *args: Any) -> tuple[Tensor, ...]:
    """`LossWithGradients`, where a tensor may be there twice: values as the old ones, as in a first step."""
    if torch.compiler.is_compiling():
        # It traces no autograd.Function that is given a tensor twice.
        constants = (isinstance(x, Tensor) and place not in differentiable for place, x in enumerate(args))
        args = tuple(x.detach() if constant else x for x, constant in zip(args, constants, strict=True))
    return LossWithGradients.apply(op, differentiable, *args)  # pyright: ignore[reportReturnType]


class _AttachDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, losses: Tensor, derivative: Tensor) -> Tensor:
        ctx.dtype = x.dtype
        ctx.save_for_backward(derivative)
        return losses.clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        return (grad_outputs[0] * ctx.saved_tensors[0]).to(ctx.dtype), None, None


def attach_derivative(x: Tensor, losses: Tensor, derivative: Tensor) -> Tensor:
    """Losses of elements, `[...]` as x, whose derivative by their own element was computed with them."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return losses
    return _AttachDerivative.apply(x, losses, derivative)  # pyright: ignore[reportReturnType]
