"""What floors.py measures: each op, those it is compared with, and the least ratio that is asked for."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from instructrl import ops
from instructrl.ops import advantages, linear, logprobs, ppo, ranking, sampling

Step = Callable[[], list[Tensor]]
V = 50257


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    make: providers by name, "ours" among them; each step returns what is compared. floors: the least ratio that is
    asked for, by provider. compared: whether the results of all providers must agree. limit: seconds no version can
    beat, from the rates measured in this run. bare: a step that does only what no version can leave out, timed beside
    the providers. memory: the provider that ours is compared with.
    """

    name: str
    make: Callable[[], dict[str, Step]]
    floors: dict[str, float]
    compared: bool = True
    limit: Callable[["Rates"], tuple[float, str]] | None = None
    bare: Callable[[], Step] | None = None
    memory: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Of this machine, in this run."""

    read_bytes_per_s: float
    # Of memory that the process has not had before: page faults are most of it.
    fresh_bytes_per_s: float
    flops_per_s: float


BARE = "bare"
"""Its name among the times of a row."""


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def native(step: Step) -> Step:
    """The step on the native backend, whatever the environment says."""

    def run() -> list[Tensor]:
        with ops.use_backend("native"):
            return step()

    return run


def referenced(function: Callable[..., object]) -> Callable[..., object]:
    def run(*args: object, **kwargs: object) -> object:
        with ops.use_backend("reference"):
            return function(*args, **kwargs)

    return run


def with_backward(function: Callable[..., Tensor], *leaves: Tensor) -> Step:
    """Forward and backward of the sum of what the function returns."""

    def step() -> list[Tensor]:
        output = function(*leaves)
        return [output.detach(), *torch.autograd.grad(output.sum(), leaves)]

    return step


def ranking_row(num_prompts: int, eager: float, compiled: float) -> Row:
    def make() -> dict[str, Step]:
        scores = torch.randn(num_prompts, 9, generator=generator()).requires_grad_()
        preferred = ranking.preferred_from_ranks(torch.randint(0, 9, (num_prompts, 9), generator=generator()))

        def loss(x: Tensor) -> Tensor:
            return ranking.pairwise_ranking_loss(x, preferred).loss_sum

        plain = ranking.PAIRWISE_RANKING_LOSS.reference
        compiled = torch.compile(lambda x: plain(x, preferred).loss_sum)
        return {
            "ours": native(with_backward(loss, scores)),
            "eager": with_backward(lambda x: plain(x, preferred).loss_sum, scores),
            "compile": with_backward(compiled, scores),
        }

    return Row(
        name=f"pairwise ranking {num_prompts}x9, fwd+bwd", make=make, floors={"eager": eager, "compile": compiled}
    )


def advantages_row() -> Row:
    def make() -> dict[str, Step]:
        g = generator()
        logprob, ref, values = (torch.randn(512, 1024, generator=g) for _ in range(3))
        scores = torch.randn(512, generator=g)
        mask = torch.arange(1024) < torch.randint(512, 1025, (512, 1), generator=g)
        weights = torch.tril(
            torch.full((1024, 1024), 0.95).pow((torch.arange(1024).unsqueeze(1) - torch.arange(1024)).clamp(0))
        )

        def deltas() -> tuple[Tensor, Tensor, Tensor]:
            length = mask.sum(1, keepdim=True)
            rewards = torch.where(mask, -0.02 * (logprob - ref), 0.0).scatter_add_(1, length - 1, scores.unsqueeze(1))
            counted = torch.where(mask, values, 0.0)
            following = torch.cat([counted[:, 1:], counted.new_zeros(512, 1)], dim=1)
            return rewards + following - counted, counted, rewards

        def loop() -> list[Tensor]:
            delta, counted, rewards = deltas()
            found, running = torch.empty_like(delta), delta.new_zeros(512)
            for t in range(1023, -1, -1):
                running = delta[:, t] + 0.95 * running
                found[:, t] = running
            found = torch.where(mask, found, 0.0)
            return [found, torch.where(mask, found + counted, 0.0), rewards]

        def product() -> list[Tensor]:
            delta, counted, rewards = deltas()
            found = torch.where(mask, delta @ weights, 0.0)
            return [found, torch.where(mask, found + counted, 0.0), rewards]

        plain = advantages.PPO_ADVANTAGES.reference
        return {
            "ours": native(
                lambda: list(advantages.ppo_advantages(logprob, ref, values, scores, mask, kl_coef=0.02)[:3])
            ),
            "time loop": loop,
            "matrix product": product,
            "doubling scan": lambda: list(plain(logprob, ref, values, scores, mask, 0.02, 1.0, 0.95, None)[:3]),
        }

    floors = {"time loop": 20.0, "matrix product": 5.0, "doubling scan": 5.0}
    # Three tensors and a mask in, three tensors out.
    limit = bytes_limit(512 * 1024 * 25)
    return Row(name="ppo_advantages 512x1024", make=make, floors=floors, limit=limit)


def bytes_limit(num_bytes: int, num_fresh: int = 0) -> Callable[[Rates], tuple[float, str]]:
    """num_fresh: of the bytes that go to a result as large as the inputs, which is made anew at each call."""
    text = f"{num_bytes / 1e6:.0f} MB at read bandwidth" + (f", {num_fresh / 1e6:.0f} MB fresh" if num_fresh else "")
    return lambda found: (num_bytes / found.read_bytes_per_s + num_fresh / found.fresh_bytes_per_s, text)


def ppo_row() -> Row:
    def make() -> dict[str, Step]:
        g = generator()
        new, old, advantage, value, old_value, target = (torch.randn(512, 1024, generator=g) for _ in range(6))
        new = (old + 0.3 * new).requires_grad_()
        value.requires_grad_()
        mask = torch.rand(512, 1024, generator=g) < 0.8

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return ppo.ppo_loss(x, old, advantage, y, old_value, target, mask).loss

        eager = referenced(loss)
        compiled = torch.compile(loss)
        return {
            "ours": native(with_backward(loss, new, value)),
            "eager": with_backward(eager, new, value),  # pyright: ignore
            "compile": with_backward(referenced(compiled), new, value),  # pyright: ignore
        }

    limit = bytes_limit(512 * 1024 * (25 + 8 + 16))
    return Row(name="ppo_loss 512x1024, fwd+bwd", make=make, floors={"eager": 12.0, "compile": 2.0}, limit=limit)


def eager_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def logprobs_inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(1024, V, generator=generator()), torch.randint(0, V, (1024,), generator=generator())


def logprobs_forward_row() -> Row:
    def make() -> dict[str, Step]:
        logits, tokens = logprobs_inputs()
        compiled = torch.compile(eager_logprobs)
        return {
            "ours": native(lambda: [logprobs.token_logprobs(logits, tokens)]),
            "eager": lambda: [eager_logprobs(logits, tokens)],
            "compile": lambda: [compiled(logits, tokens)],
        }

    return Row(
        name=f"token_logprobs 1024x{V} float32, fwd",
        make=make,
        floors={"eager": 10.0, "compile": 2.0},
        limit=bytes_limit(1024 * V * 4),
        memory="eager",
    )


def logprobs_row(inplace: bool, eager: float, compiled: float) -> Row:
    def make() -> dict[str, Step]:
        logits, tokens = logprobs_inputs()
        logits.requires_grad_()
        # In place means over what a model just made; the copy that stands for it is made outside of the timing.
        fresh = logits.detach().clone().requires_grad_()
        upstream = torch.ones(1024)

        def ours() -> list[Tensor]:
            output = logprobs.token_logprobs(fresh if inplace else logits, tokens, inplace_backward=inplace)
            (gradient,) = torch.autograd.grad(output, fresh if inplace else logits, upstream)
            return [output.detach(), gradient]

        def theirs(function: Callable[..., Tensor]) -> Step:
            def step() -> list[Tensor]:
                output = function(logits, tokens)
                return [output.detach(), *torch.autograd.grad(output, logits, upstream)]

            return step

        return {
            "ours": native(ours),
            "eager": theirs(eager_logprobs),
            "compile": theirs(torch.compile(eager_logprobs)),
        }

    name = f"token_logprobs 1024x{V}, fwd+bwd{', inplace_backward' if inplace else ''}"
    size = 1024 * V * 4
    limit = bytes_limit(3 * size) if inplace else bytes_limit(2 * size, size)
    # A second in-place run starts from the first one's gradient, so only the first results are compared.
    return Row(name=name, make=make, floors={"eager": eager, "compile": compiled}, limit=limit)


def linear_inputs() -> tuple[Tensor, Tensor, Tensor]:
    g = generator()
    hidden = torch.randn(2048, 256, generator=g).requires_grad_()
    weight = (0.1 * torch.randn(V, 256, generator=g)).requires_grad_()
    return hidden, weight, torch.randint(0, V, (2048,), generator=g)


def matrix_products(cpu_workspace: int, forward_too: bool) -> Callable[[], Step]:
    """The library's matrix products of a linear op, in chunks as its workspace allows, into memory that is there.

    forward_too: the logits once more, but for the last chunk: per-token gradients are not known in the forward.
    """

    def make() -> Step:
        hidden, weight, _ = (x.detach() for x in linear_inputs())
        padded = -(-V // 64) * 64
        parts = hidden.tensor_split(-(-hidden.shape[0] // (cpu_workspace // (4 * padded))))
        space = torch.zeros(len(parts[0]), padded)
        by_hidden, by_weight = torch.zeros_like(hidden).split([len(x) for x in parts]), torch.zeros_like(weight)

        def step() -> list[Tensor]:
            for part in parts[:-1] if forward_too else ():
                torch.mm(part, weight.t(), out=space[: len(part), :V])
            for part, gradient in zip(parts, by_hidden, strict=True):
                logits = space[: len(part), :V]
                torch.mm(part, weight.t(), out=logits)
                torch.mm(logits, weight, out=gradient)
                by_weight.addmm_(logits.t(), part, beta=0.0 if part is parts[0] else 1.0)
            return []

        return step

    return make


def linear_row() -> Row:
    def make() -> dict[str, Step]:
        hidden, weight, tokens = linear_inputs()

        def eager(x: Tensor, w: Tensor) -> Tensor:
            return eager_logprobs(F.linear(x, w), tokens)

        return {
            "ours": native(with_backward(lambda x, w: logprobs.linear_token_logprobs(x, w, tokens), hidden, weight)),
            "eager": with_backward(eager, hidden, weight),
            "compile": with_backward(torch.compile(eager), hidden, weight),
        }

    return Row(
        name=f"linear_token_logprobs 2048x256 -> {V}, fwd+bwd",
        make=make,
        floors={"eager": 1.3, "compile": 1.0},
        bare=matrix_products(linear.CPU_WORKSPACE_BYTES, forward_too=True),
        memory="eager",
    )


def linear_ppo_row() -> Row:
    def make() -> dict[str, Step]:
        hidden, weight, tokens = linear_inputs()
        g = generator()
        advantage, value, old_value, target = (torch.randn(2048, generator=g) for _ in range(4))
        mask = torch.ones(2048, dtype=torch.bool)
        # In little memory, so that what is measured later is not what it took to get here.
        old = logprobs.linear_token_logprobs(hidden.detach(), weight.detach(), tokens, max_workspace_bytes=2**24)
        old += 0.1 * torch.randn(2048, generator=g)

        def ours(x: Tensor, w: Tensor) -> Tensor:
            return ppo.linear_ppo_loss(x, w, tokens, old, advantage, value, old_value, target, mask).loss

        def eager(x: Tensor, w: Tensor) -> Tensor:
            new = eager_logprobs(F.linear(x, w), tokens)
            return ppo.ppo_loss(new, old, advantage, value, old_value, target, mask).loss

        return {
            "ours": native(with_backward(ours, hidden, weight)),
            "eager": with_backward(referenced(eager), hidden, weight),  # pyright: ignore
            "compile": with_backward(referenced(torch.compile(eager)), hidden, weight),  # pyright: ignore
        }

    return Row(
        name=f"linear_ppo_loss 2048x256 -> {V}, fwd+bwd",
        make=make,
        floors={"eager": 1.6, "compile": 1.2},
        bare=matrix_products(linear.CPU_LOSS_WORKSPACE_BYTES, forward_too=False),
        memory="eager",
    )


def sampling_row() -> Row:
    def make() -> dict[str, Step]:
        logits = 3.0 * torch.randn(64, V, generator=generator())
        uniforms = torch.rand(64, generator=generator())
        return {
            "ours": native(lambda: [sampling.sample_tokens(logits, uniforms)]),
            "eager": lambda: [torch.multinomial(torch.softmax(logits, dim=-1), 1).squeeze(1)],
        }

    name = f"sample_tokens 64x{V}"
    return Row(name=name, make=make, floors={"eager": 20.0}, compared=False, limit=bytes_limit(64 * V * 4))


ROWS = (
    ranking_row(64, 1.7, 2.5),
    ranking_row(4096, 5.0, 5.0),
    advantages_row(),
    ppo_row(),
    logprobs_forward_row(),
    logprobs_row(False, 2.5, 2.0),
    logprobs_row(True, 8.0, 5.0),
    linear_row(),
    linear_ppo_row(),
    sampling_row(),
)
