"""torch.func around an operation: `grad`, `vjp`, `jacrev` and `vmap` in any order, over whatever runs it.

Private ops and what writes its own backward know tensors, not the wrappers of function transforms. So a call under one
is a node of its own: it goes down to the tensors below all wrappers, runs there as it does without transforms, a batch
element by element, and keeps the graph that autograd made of it; the node's backward goes down in the same way and asks
that graph. What is made of PyTorch's own differentiable operations alone needs none of this (`dispatch.Op.composed`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.utils import _pytree

from instructrl.ops.autograd import savable


def below(x: Tensor) -> Tensor:
    """The tensor under all wrappers of function transforms: its values are those of whole batches."""
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x


def _wants_gradient(x: Tensor) -> bool:
    """Whether a transform, or autograd itself, differentiates by a tensor."""
    while not x.requires_grad:
        if not _functorch.is_functorch_wrapped_tensor(x):
            return False
        x = _functorch.get_unwrapped(x)
    return True


@dataclass(slots=True, eq=False)
class _Call:
    """A call, at one level of transforms.

    op: its name. run: from the tensors among its arguments to what it returns. wanted: by which of them it is
    differentiated. parts: the calls of the elements of a batch. inputs, outputs: of the graph, below all transforms.
    layout, others: what it returns, less the tensors. differentiable: which of these have a gradient.
    """

    op: str
    run: Callable[[Sequence[Tensor]], Any]
    wanted: tuple[bool, ...]
    parts: list["_Call"] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    layout: Any = None
    others: list[Any] = field(default_factory=list)
    differentiable: tuple[bool, ...] = ()

    def returned(self, outputs: Sequence[Tensor]) -> Any:
        """What the op returns, with these tensors in it."""
        rest = iter(outputs)
        leaves = [next(rest) if isinstance(x, Tensor) else x for x in self.others]
        return _pytree.tree_unflatten(leaves, self.layout)


def run(op: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """`function(*args)` under transforms. RuntimeError for forward-mode derivatives, and for second ones."""
    leaves, layout = _pytree.tree_flatten(args)
    places = [place for place, x in enumerate(leaves) if isinstance(x, Tensor)]
    tensors = [leaves[place] for place in places]
    wanted = tuple(torch.is_grad_enabled() and x.is_floating_point() and _wants_gradient(x) for x in tensors)
    for place in places:  # A call outlives its arguments.
        leaves[place] = None

    def run_below(given: Sequence[Tensor]) -> Any:
        filled = list(leaves)
        for place, x in zip(places, given, strict=True):
            filled[place] = x
        return function(*_pytree.tree_unflatten(filled, layout))

    call = _Call(op, run_below, wanted)
    return call.returned(_Forward.apply(call, *tensors))  # pyright: ignore


def _refuse(call: _Call, found: str) -> NoReturn:
    reference = "ops.use_backend('reference') has all, for token_logprobs and the ranking losses"
    raise RuntimeError(f"{call.op}: found {found}, accepted is a first reverse-mode derivative ({reference})")


def _of_element(x: Any, dim: int | None, element: int) -> Any:
    return x if dim is None else x.select(dim, element)


def _stacked(results: list[tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    columns = tuple(torch.stack(column) for column in zip(*results, strict=True))
    return columns, (0,) * len(columns)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        call.inputs = [x.detach().requires_grad_(want) for x, want in zip(tensors, call.wanted, strict=True)]
        with torch.set_grad_enabled(any(call.wanted)):
            call.others, call.layout = _pytree.tree_flatten(call.run(call.inputs))
        call.outputs = [x for x in call.others if isinstance(x, Tensor)]
        call.differentiable = tuple(x.requires_grad for x in call.outputs)
        return tuple(x.detach() for x in call.outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call = inputs[0]
        ctx.save_for_backward(*map(savable, inputs[1:]))
        ctx.set_materialize_grads(False)
        kinds = zip(output, ctx.call.differentiable, strict=True)
        ctx.mark_non_differentiable(*(x for x, differentiable in kinds if not differentiable))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        call, *tensors = args
        call.parts = [_Call(call.op, call.run, call.wanted) for _ in range(info.batch_size)]
        results = [
            _Forward.apply(part, *(_of_element(x, dim, b) for x, dim in zip(tensors, in_dims[1:], strict=True)))
            for b, part in enumerate(call.parts)
        ]
        first = call.parts[0]
        call.layout, call.others, call.differentiable = first.layout, first.others, first.differentiable
        return _stacked(results)  # pyright: ignore

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Any, ...]:  # pyright: ignore
        call, inputs = ctx.call, ctx.saved_tensors
        if all(grad is None for grad in grad_outputs):
            return (None,) * (1 + len(inputs))
        found = iter(_Backward.apply(call, len(inputs), *inputs, *grad_outputs))  # pyright: ignore
        return None, *(next(found) if want else None for want in call.wanted)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:  # pyright: ignore
        _refuse(ctx.call, "a forward-mode derivative")


class _Backward(torch.autograd.Function):
    """The gradients of a call. Its inputs are arguments, so that a derivative of the gradients is refused, not zero."""

    @staticmethod
    def forward(call: _Call, num_inputs: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        given = zip(call.outputs, tensors[num_inputs:], strict=True)
        outputs = [(y, grad) for y, grad in given if grad is not None and y.requires_grad]
        inputs = [x for x, want in zip(call.inputs, call.wanted, strict=True) if want]
        found = torch.autograd.grad(
            [y for y, _ in outputs], inputs, [grad for _, grad in outputs], retain_graph=True, allow_unused=True
        )
        return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call = inputs[0]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        call, num_inputs, *tensors = args
        # Where the inputs have no batch, gradients of one graph are asked for.
        batched = any(dim is not None for dim in in_dims[2 : 2 + num_inputs])
        parts = call.parts if batched else [call] * info.batch_size
        results = [
            _Backward.apply(
                part, num_inputs, *(_of_element(x, dim, b) for x, dim in zip(tensors, in_dims[2:], strict=True))
            )
            for b, part in enumerate(parts)
        ]
        return _stacked(results)  # pyright: ignore

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> NoReturn:  # pyright: ignore
        _refuse(ctx.call, "a derivative of a gradient")

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:  # pyright: ignore
        _refuse(ctx.call, "a forward-mode derivative")
