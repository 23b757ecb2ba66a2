"""What scaling.py measures: the axes, the shapes of few rows, and the ops whose largest shape it looks for."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.floor_rows import V, eager_logprobs, referenced
from instructrl.ops import advantages, likelihood, logprobs, ppo, ranking, sampling

Step = Callable[[], object]
WIDTH = 256
"""D of the linear ops whose largest shape is looked for, as in floors.py."""

# Inputs are made without anything of their size beside them: a peak from before the step would hide the step's own.


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def repeated(num_rows: int, *shape: int) -> Tensor:
    """The same numbers in each row: memory does not depend on them, and drawing would take longer than the ops."""
    return draw(*shape).expand(num_rows, *shape).contiguous()


def whole(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def tokens(num_classes: int, *shape: int) -> Tensor:
    return torch.randint(0, num_classes, shape, generator=torch.Generator().manual_seed(0))


def in_order(num_prompts: int, num_responses: int) -> Tensor:
    """Preferences: the later response is the better one."""
    order = torch.ones(num_responses, num_responses, dtype=torch.bool).tril(-1)
    return order.expand(num_prompts, num_responses, num_responses).contiguous()


def backward(output: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output.sum(), leaves)


def token_logprobs(*shape: int) -> Step:
    logits, ids = draw(*shape).requires_grad_(), tokens(shape[-1], *shape[:-1])
    return lambda: backward(logprobs.token_logprobs(logits, ids), logits)


def head(width: int, num_classes: int, *shape: int) -> tuple[Tensor, Tensor]:
    """Hidden states [..., D] and weight [V, D]."""
    return draw(*shape, width).requires_grad_(), draw(num_classes, width).mul_(0.1).requires_grad_()


def linear_nll(width: int, num_classes: int, *shape: int) -> Step:
    hidden, weight = head(width, num_classes, *shape)
    ids, mask = tokens(num_classes, *shape), whole(*shape)
    return lambda: backward(likelihood.linear_nll_loss(hidden, weight, ids, mask), hidden, weight)


def linear_ppo(width: int, num_classes: int, *shape: int) -> Step:
    hidden, weight = head(width, num_classes, *shape)
    ids, mask = tokens(num_classes, *shape), whole(*shape)
    x = [draw(*shape) for _ in range(5)]
    return lambda: backward(ppo.linear_ppo_loss(hidden, weight, ids, *x, mask).loss, hidden, weight)


def ppo_loss(*shape: int) -> Step:
    x = [draw(*shape) for _ in range(6)]
    new, values, mask = x[0].requires_grad_(), x[3].requires_grad_(), whole(*shape)
    return lambda: backward(ppo.ppo_loss(new, x[1], x[2], values, x[4], x[5], mask).loss, new, values)


def ppo_advantages(num_rows: int, length: int) -> Step:
    x, scores, mask = [draw(num_rows, length) for _ in range(3)], draw(num_rows), whole(num_rows, length)
    return lambda: advantages.ppo_advantages(*x, scores, mask, kl_coef=0.02)


def ranking_loss(num_prompts: int, num_responses: int) -> Step:
    scores, preferred = draw(num_prompts, num_responses).requires_grad_(), in_order(num_prompts, num_responses)
    return lambda: backward(ranking.pairwise_ranking_loss(scores, preferred).loss_sum, scores)


def sample(num_rows: int, num_classes: int) -> Step:
    logits, uniforms = draw(num_rows, num_classes), torch.rand(num_rows)
    return lambda: sampling.sample_tokens(logits, uniforms)


def touch_code() -> None:
    """Every op once on a few numbers, so that the pages of its code are there and count for no size."""
    steps = (token_logprobs(1, 2), linear_nll(1, 2, 1), linear_ppo(1, 2, 1), ppo_loss(1), ppo_advantages(1, 1))
    for step in (*steps, ranking_loss(1, 2), sample(1, 2)):
        step()


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """make: from a size to a step. expected: the slope of time that the arithmetic says. memory: that of outputs,
    gradients and scratch; what does not grow beside them (a workspace, the gradient of the other operand) makes it
    less.
    """

    op: str
    axis: str
    sizes: tuple[int, ...]
    make: Callable[[int], Step]
    expected: int = 1
    memory: int = 1


def powers(first: int, last: int) -> tuple[int, ...]:
    return tuple(2**i for i in range(first, last + 1))


AXES = (
    Axis(op="token_logprobs", axis="tokens (V = 8192)", sizes=powers(8, 14), make=lambda n: token_logprobs(n, 8192)),
    Axis(op="token_logprobs", axis="V (512 tokens)", sizes=powers(11, 17), make=lambda v: token_logprobs(512, v)),
    Axis(op="token_logprobs", axis="batch (T = 64, V = 8192)", sizes=powers(0, 7),
         make=lambda b: token_logprobs(b, 64, 8192)),
    Axis(op="linear_nll_loss", axis="tokens (D = 128, V = 8192)", sizes=powers(8, 14),
         make=lambda n: linear_nll(128, 8192, n)),
    Axis(op="linear_nll_loss", axis="V (512 tokens, D = 128)", sizes=powers(11, 16),
         make=lambda v: linear_nll(128, v, 512)),
    Axis(op="linear_nll_loss", axis="D (512 tokens, V = 8192)", sizes=powers(6, 11),
         make=lambda d: linear_nll(d, 8192, 512)),
    Axis(op="linear_nll_loss", axis="batch (T = 64, D = 128, V = 8192)", sizes=powers(0, 7),
         make=lambda b: linear_nll(128, 8192, b, 64)),
    Axis(op="linear_ppo_loss", axis="batch (T = 64, D = 128, V = 8192)", sizes=powers(0, 7),
         make=lambda b: linear_ppo(128, 8192, b, 64)),
    Axis(op="ppo_loss", axis="tokens", sizes=powers(15, 22), make=ppo_loss),
    Axis(op="ppo_loss", axis="batch (T = 256)", sizes=powers(0, 14), make=lambda b: ppo_loss(b, 256)),
    Axis(op="ppo_advantages", axis="T (16 rows)", sizes=powers(11, 17), make=lambda t: ppo_advantages(16, t)),
    Axis(op="ppo_advantages", axis="batch (T = 256)", sizes=powers(0, 14), make=lambda b: ppo_advantages(b, 256)),
    Axis(op="pairwise_ranking_loss", axis="prompts (K = 9)", sizes=powers(10, 17), make=lambda p: ranking_loss(p, 9)),
    Axis(op="pairwise_ranking_loss", axis="K (512 prompts)", sizes=powers(4, 9), expected=2, memory=2,
         make=lambda k: ranking_loss(512, k)),
    Axis(op="sample_tokens", axis="batch (V = 8192)", sizes=powers(0, 13), memory=0,
         make=lambda b: sample(b, 8192)),
    Axis(op="sample_tokens", axis="V (64 rows)", sizes=powers(12, 18), memory=0, make=lambda v: sample(64, v)),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Ours and eager PyTorch's step from a shape; they return the same.

    Eager advantages and ranking are the references: vectorised scans and masks, which beat loops.
    """

    op: str
    ours: Callable[..., Step]
    eager: Callable[..., Step]


def on_reference(make: Callable[..., Step]) -> Callable[..., Step]:
    return lambda *shape: referenced(make(*shape))


def eager_token_logprobs(num_tokens: int, num_classes: int) -> Step:
    logits, ids = draw(num_tokens, num_classes).requires_grad_(), tokens(num_classes, num_tokens)
    return lambda: backward(eager_logprobs(logits, ids), logits)


@dataclass(frozen=True, slots=True, kw_only=True)
class FewRows:
    """Shapes are (rows, length). The last one has many rows and as many elements as the largest of few."""

    pair: Pair
    length: str
    shapes: tuple[tuple[int, int], ...]


FEW_ROWS = (
    FewRows(
        pair=Pair(op="ppo_advantages", ours=ppo_advantages, eager=on_reference(ppo_advantages)), length="T",
        shapes=(*((b, t) for t in (2**11, 2**14, 2**17) for b in (1, 2, 4, 16)), (2**11, 2**10)),
    ),
    FewRows(
        pair=Pair(op="token_logprobs", ours=token_logprobs, eager=eager_token_logprobs), length="V",
        shapes=(*((b, v) for v in (2**17, 2**20, 2**22) for b in (1, 2, 4)), (2**11, 2**13)),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """An op whose largest shape is looked for. unit: what a size counts. first: a size that surely fits."""

    pair: Pair
    unit: str
    first: int


def repeated_logprobs(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[int], Step]:
    def make(num_tokens: int) -> Step:
        logits, ids = repeated(num_tokens, V).requires_grad_(), tokens(V, num_tokens)
        return lambda: backward(function(logits, ids), logits)

    return make


def repeated_linear(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[int], Step]:
    def make(num_tokens: int) -> Step:
        hidden, weight = head(WIDTH, V, num_tokens)
        ids = tokens(V, num_tokens)
        return lambda: backward(function(hidden, weight, ids), hidden, weight)

    return make


def repeated_linear_ppo(eager: bool) -> Callable[[int], Step]:
    def make(num_tokens: int) -> Step:
        hidden, weight = head(WIDTH, V, num_tokens)
        ids, mask = tokens(V, num_tokens), whole(num_tokens)
        x = [draw(num_tokens) for _ in range(5)]

        def theirs() -> tuple[Tensor, ...]:
            new = eager_logprobs(F.linear(hidden, weight), ids)
            return backward(ppo.ppo_loss(new, x[0], x[1], x[2], x[3], x[4], mask).loss, hidden, weight)

        def ours() -> tuple[Tensor, ...]:
            return backward(ppo.linear_ppo_loss(hidden, weight, ids, *x, mask).loss, hidden, weight)

        return referenced(theirs) if eager else ours

    return make


def repeated_advantages(num_rows: int) -> Step:
    x, scores, mask = [repeated(num_rows, 1024) for _ in range(3)], draw(num_rows), whole(num_rows, 1024)
    return lambda: advantages.ppo_advantages(*x, scores, mask, kl_coef=0.02)


def repeated_ranking(num_prompts: int) -> Step:
    scores, preferred = repeated(num_prompts, 9).requires_grad_(), in_order(num_prompts, 9)
    return lambda: backward(ranking.pairwise_ranking_loss(scores, preferred).loss_sum, scores)


LARGEST = (
    Largest(unit=f"tokens, V = {V}", first=64, pair=Pair(
        op="token_logprobs",
        ours=repeated_logprobs(logprobs.token_logprobs), eager=repeated_logprobs(eager_logprobs),
    )),
    Largest(unit=f"tokens, V = {V}, D = {WIDTH}", first=64, pair=Pair(
        op="linear_token_logprobs",
        ours=repeated_linear(logprobs.linear_token_logprobs),
        eager=repeated_linear(lambda hidden, weight, ids: eager_logprobs(F.linear(hidden, weight), ids)),
    )),
    Largest(unit=f"tokens, V = {V}, D = {WIDTH}", first=64, pair=Pair(
        op="linear_ppo_loss", ours=repeated_linear_ppo(False), eager=repeated_linear_ppo(True),
    )),
    Largest(unit="rows of 1024 tokens", first=1024, pair=Pair(
        op="ppo_advantages", ours=repeated_advantages, eager=on_reference(repeated_advantages),
    )),
    Largest(unit="prompts, K = 9", first=2**15, pair=Pair(
        op="pairwise_ranking_loss", ours=repeated_ranking, eager=on_reference(repeated_ranking),
    )),
)  # fmt: skip
