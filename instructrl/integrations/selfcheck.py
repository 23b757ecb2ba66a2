"""Whether two functions give the same numbers and gradients on random arguments."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

ROUNDINGS = 64
"""Numbers are the same within so many roundings of the largest among them: they are sums of hundreds of terms, made in
another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of random arguments."""

    batch: int = 4
    tokens: int = 9
    hidden: int = 16
    vocabulary: int = 53


class Example(NamedTuple):
    """The arguments of a call. Tensors that require gradients are compared by these too."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = {}  # noqa: RUF012 - nobody writes to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Random tensors from a generator of its own, so that the host's random numbers stay what they are."""

    sizes: Sizes
    generator: torch.Generator
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def normal(self, *shape: int, scale: float = 1.0, grad: bool = False) -> Tensor:
        found = torch.randn(shape, generator=self.generator, device="cpu").mul_(scale).to(self.device, self.dtype)
        return found.requires_grad_(grad)

    def ids(self, *shape: int, below: int | None = None) -> Tensor:
        found = torch.randint(below or self.sizes.vocabulary, shape, generator=self.generator, device="cpu")
        return found.to(self.device)

    def lengths(self, batch: int, tokens: int) -> Tensor:
        """A mask [batch, tokens] of beginnings, each of at least one token, the first of all."""
        length = torch.randint(1, tokens + 1, (batch, 1), generator=self.generator, device="cpu")
        length[0] = tokens
        return (torch.arange(tokens, device="cpu") < length).to(self.device)


Examples = Callable[[Draw], list[Example]]


def drawn(examples: Examples, sizes: Sizes, device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Example]:
    """The same for the same sizes."""
    generator = torch.Generator().manual_seed(0)
    return examples(Draw(sizes=sizes, generator=generator, device=device, dtype=dtype))


def difference(own: Any, ours: Any, examples: Examples, call: Callable[..., Any], device: str) -> str:
    """In a line, "" where there is none."""
    for number, (theirs, found) in enumerate(outcomes(own, ours, examples, call, device)):
        if [x.shape for x in theirs] != [x.shape for x in found]:
            return f"example {number}: shapes {[tuple(x.shape) for x in found]}, not {[tuple(x.shape) for x in theirs]}"
        for place, (expected, actual) in enumerate(zip(theirs, found, strict=True)):
            if expected.dtype != actual.dtype:
                return f"example {number}, result {place}: dtype {actual.dtype}, not {expected.dtype}"
            error, bound = gap(expected, actual)
            if not error <= bound:
                return f"example {number}, result {place}: differs by {error:.2g}, accepted is {bound:.2g}"
    return ""


def gap(expected: Tensor, actual: Tensor) -> tuple[float, float]:
    """The largest difference, and what is accepted. Missing and infinite numbers have to be in the same places."""
    if not expected.dtype.is_floating_point:
        return float((expected != actual).sum()), 0.0
    finite = expected.isfinite()
    others = [x[~finite].nan_to_num(7.0) for x in (expected, actual)]
    if not torch.equal(finite, actual.isfinite()) or not torch.equal(*others):
        return float("inf"), 0.0
    expected, actual = expected[finite].double(), actual[finite].double()
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    error = float((expected - actual).abs().max()) if expected.numel() else 0.0
    return error, ROUNDINGS * torch.finfo(torch.float32).eps * max(largest, 1e-3)


def outcomes(
    own: Any, ours: Any, examples: Examples, call: Callable[..., Any], device: str
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    # Whatever the caller has around it.
    plain = torch.autocast(torch.device(device).type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), plain, torch.device(device):
        # Drawn for each, because some functions write to their arguments.
        for theirs, found in zip(*(drawn(examples, Sizes(), device) for _ in range(2)), strict=True):
            yield outcome(own, theirs, call), outcome(ours, found, call)


def outcome(function: Any, example: Example, call: Callable[..., Any]) -> list[Tensor]:
    """What a call returns, numbers as tensors, then the gradients of a weighted sum of it."""
    leaves, _ = _pytree.tree_flatten((example.args, example.kwargs))
    leaves = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
    returned, _ = _pytree.tree_flatten(call(function, *example.args, **example.kwargs))
    found: list[Tensor] = [torch.as_tensor(x) for x in returned if isinstance(x, (Tensor, int, float))]
    differentiable = [x for x in found if x.requires_grad]
    if not differentiable or not leaves:
        return [x.detach() for x in found]
    weights = [_weights(x) for x in differentiable]
    gradients = torch.autograd.grad(differentiable, leaves, weights, allow_unused=True)
    pairs = zip(leaves, gradients, strict=True)
    return [x.detach() for x in found] + [torch.zeros_like(leaf) if x is None else x for leaf, x in pairs]


def _weights(x: Tensor) -> Tensor:
    """Another one for each number, so that gradients of swapped results differ."""
    return torch.cos(torch.arange(x.numel(), device=x.device, dtype=torch.float32)).view(x.shape).to(x.dtype)
