"""What gpu_targets.py measures: inputs, those who compute, the truth they are held against, and the targets."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.device import target_peers as peers
from instructrl import ops
from instructrl.ops import advantages, logprobs, ranking

Inputs = dict[str, Any]
BACKENDS = ("native", "triton")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """measure: a key of `gpu_targets.figures`. bound: in its unit. at_least: else at most."""

    text: str
    measure: str
    bound: float
    at_least: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """run: from one set of inputs to the tensors that are compared. backend: forced around it. once: it writes over
    what it reads, so only its first results are right."""

    run: Callable[[Inputs], list[Tensor]]
    backend: str = "reference"
    once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A row made ready. sets: of inputs, in turn, so that they do not stay in the cache. truth: float64, of the first
    set, as `pick` takes it from a provider's results. gate: what that is, in words. num_bytes, num_flops: the least
    that a step must move and multiply."""

    sets: list[Inputs]
    providers: dict[str, Provider]
    truth: list[Tensor]
    gate: str
    pick: Callable[[list[Tensor]], list[Tensor]] = list
    num_bytes: int = 0
    num_flops: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """device: where. dry: tiny shapes and no compiler. cache_bytes: of the last cache."""

    device: torch.device
    dry: bool
    cache_bytes: int

    def generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)

    def sets(self, make: Callable[[torch.Generator], Inputs]) -> list[Inputs]:
        """As many as are four times the cache together, at most 8 and at least 2; 1 where one is as much."""
        first = make(self.generator(0))
        size = sum(x.nbytes for x in first.values() if isinstance(x, Tensor))
        number = min(8, -(-4 * self.cache_bytes // size))
        return [first, *(make(self.generator(seed)) for seed in range(1, number))]

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, backend="eager" if self.dry else "inductor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """yardstick: "copy" or "product": what is timed beside the providers in each round, "" for nothing. graph: device
    time by replaying a graph. limit_s: after which the row is cut off."""

    name: str
    prepare: Callable[[Setting], Prepared]
    targets: tuple[Target, ...] = ()
    yardstick: str = "copy"
    graph: bool = False
    limit_s: int = 50


def ours(run: Callable[[Inputs], list[Tensor]]) -> dict[str, Provider]:
    return {backend: Provider(run=run, backend=backend) for backend in BACKENDS}


def with_gradients(function: Callable[[Inputs], Tensor], *names: str) -> Callable[[Inputs], list[Tensor]]:
    """Forward and backward of the sum of a function's result."""

    def run(x: Inputs) -> list[Tensor]:
        output = function(x)
        return [output.detach(), *torch.autograd.grad(output.sum(), [x[name] for name in names])]

    return run


def doubled(x: Inputs) -> Inputs:
    """The same numbers in float64, as leaves that need gradients where they did."""
    found = dict(x)
    for name, value in x.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            found[name] = value.detach().double().requires_grad_(value.requires_grad)
    return found


def reference_truth(x: Inputs, run: Callable[[Inputs], list[Tensor]]) -> list[Tensor]:
    with ops.use_backend("reference"):
        return [y.detach() for y in run(doubled(x))]


def prefix_mask(shape: tuple[int, int], device: torch.device, generator: torch.Generator) -> Tensor:
    """Rows of which the first seven eighths to all positions count."""
    lengths = torch.randint(shape[1] - shape[1] // 8, shape[1] + 1, (shape[0], 1), generator=generator, device=device)
    return torch.arange(shape[1], device=device) < lengths


def plain_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """As it is written without us, in float32."""
    found = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    return found.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def logits_row(classes: int, part: str, targets: tuple[Target, ...]) -> Row:
    """8192 rows of bfloat16 logits. part: "forward", "backward" or "forward + backward"."""

    def prepare(setting: Setting) -> Prepared:
        shape = (2, 8, 67 if classes % 8 else 64) if setting.dry else (8, 1024, classes)

        def make(generator: torch.Generator) -> Inputs:
            draw = {"generator": generator, "device": setting.device}
            logits = torch.randn(shape, dtype=torch.bfloat16, **draw).mul_(3.0)
            found = {"logits": logits, "tokens": torch.randint(0, shape[2], shape[:2], **draw)}
            return found | {"upstream": torch.randn(shape[:2], **draw)}

        sets = setting.sets(make)
        for x in sets:
            x["logits"].requires_grad_(part != "forward")
        functions = {**dict.fromkeys(BACKENDS, logprobs.token_logprobs), "eager": plain_logprobs,
                     "compile": setting.compiled(plain_logprobs), "trl": peers.trl_logprobs}  # fmt: skip
        providers = {
            name: Provider(run=_logits_step(f, part), backend=name if name in BACKENDS else "reference")
            for name, f in functions.items()
        }
        if part != "backward":
            # Its backward has nothing left to do: the gradient is made in the forward, over the logits.
            run = _logits_step(peers.liger_logprobs, part)
            providers["liger"] = Provider(run=run if part == "forward" else _over_a_copy(run), once=part != "forward")
        tokens, size = sets[0]["tokens"].numel(), sets[0]["logits"].nbytes
        small = {"forward": 12, "backward": 20, "forward + backward": 16}[part] * tokens
        passes = {"forward": 1, "backward": 2, "forward + backward": 2}[part]
        return Prepared(
            sets=sets, providers=providers, truth=_logits_truth(sets[0], part),
            pick=_every_eighth, gate="float64, every eighth row", num_bytes=passes * size + small,
        )  # fmt: skip

    return Row(name=f"token_logprobs {part}, 8192 x {classes} bfloat16", prepare=prepare, targets=targets)


def _every_eighth(results: list[Tensor]) -> list[Tensor]:
    return [x[:, ::8] for x in results]


def _logits_step(function: Callable[[Tensor, Tensor], Tensor], part: str) -> Callable[[Inputs], list[Tensor]]:
    """By part; a backward goes through a graph that its first call makes and keeps, one for each set of inputs."""
    graphs: dict[int, Tensor] = {}

    def run(x: Inputs) -> list[Tensor]:
        if part == "forward":
            return [function(x["logits"], x["tokens"])]
        if part == "forward + backward":
            output = function(x["logits"], x["tokens"])
            return [output.detach(), *torch.autograd.grad(output, x["logits"], x["upstream"].to(output.dtype))]
        if id(x) not in graphs:
            graphs[id(x)] = function(x["logits"], x["tokens"])
        output = graphs[id(x)]
        return [*torch.autograd.grad(output, x["logits"], x["upstream"].to(output.dtype), retain_graph=True)]

    return run


def _over_a_copy(run: Callable[[Inputs], list[Tensor]]) -> Callable[[Inputs], list[Tensor]]:
    """On logits of its own, made once: later calls read what the one before wrote."""
    copies: dict[int, Tensor] = {}

    def over(x: Inputs) -> list[Tensor]:
        if id(x) not in copies:
            copies[id(x)] = x["logits"].detach().clone()
        return run(x | {"logits": copies[id(x)].detach().requires_grad_()})

    return over


def _logits_truth(x: Inputs, part: str) -> list[Tensor]:
    logits, tokens, upstream = (y.detach()[:, ::8] for y in (x["logits"], x["tokens"], x["upstream"]))
    log_p = torch.log_softmax(logits, dim=-1, dtype=torch.float64)
    index = tokens.unsqueeze(-1)
    found = [log_p.gather(-1, index).squeeze(-1)] if part != "backward" else []
    if part != "forward":
        gradient = log_p.exp_().neg_().scatter_add_(-1, index, torch.ones_like(index, dtype=torch.float64))
        found.append(gradient.mul_(upstream.unsqueeze(-1)))
    return found


def ranking_row(part: str, targets: tuple[Target, ...]) -> Row:
    def prepare(setting: Setting) -> Prepared:
        shape = (5, 9) if setting.dry else (1024, 9)

        def make(generator: torch.Generator) -> Inputs:
            ranks = torch.randint(0, 9, shape, generator=generator, device=setting.device)
            scores = torch.randn(shape, generator=generator, device=setting.device).requires_grad_()
            return {"scores": scores, "preferred": ranking.preferred_from_ranks(ranks)}

        def loss(x: Inputs) -> Tensor:
            return ranking.pairwise_ranking_loss(x["scores"], x["preferred"]).loss_sum

        def compiled_loss(x: Inputs) -> Tensor:
            return compiled(x["scores"], x["preferred"]).loss_sum

        compiled = setting.compiled(ranking.pairwise_ranking_loss)

        def step(function: Callable[[Inputs], Tensor]) -> Callable[[Inputs], list[Tensor]]:
            return with_gradients(function, "scores") if part != "forward" else lambda x: [function(x).detach()]

        providers = {
            **ours(step(loss)),
            "eager": Provider(run=step(loss)),
            "compile": Provider(run=step(compiled_loss)),
        }
        sets = setting.sets(make)
        size = sets[0]["scores"].nbytes * (1 if part == "forward" else 2) + sets[0]["preferred"].nbytes
        truth = reference_truth(sets[0], step(loss))
        return Prepared(sets=sets, providers=providers, truth=truth, gate="float64", num_bytes=size)

    return Row(name=f"ranking {part}, 1024 x 9", prepare=prepare, targets=targets, graph=True, limit_s=40)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageShape:
    """fused: with the KL penalty and the score in front."""

    rows: int
    length: int
    fused: bool = False
    targets: tuple[Target, ...] = field(default=())


def advantages_row(shape: AdvantageShape) -> Row:
    def prepare(setting: Setting) -> Prepared:
        size = (3, 37) if setting.dry else (shape.rows, shape.length)

        def make(generator: torch.Generator) -> Inputs:
            draw = {"generator": generator, "device": setting.device}
            names = ("logprobs", "ref_logprobs", "values") if shape.fused else ("rewards", "values")
            found = {name: torch.randn(size, **draw) for name in names}
            scores = {"scores": torch.randn(size[0], **draw)} if shape.fused else {}
            return found | scores | {"mask": prefix_mask(size, setting.device, generator)}

        function = advantages.ppo_advantages if shape.fused else advantages.generalized_advantages
        settings = {"kl_coef": 0.02} if shape.fused else {}

        def step(function: Callable[..., Any]) -> Callable[[Inputs], list[Tensor]]:
            return lambda x: list(function(**x, **settings))

        providers = {**ours(step(function)), "eager": Provider(run=step(function)),
                     "compile": Provider(run=step(setting.compiled(function)))}  # fmt: skip
        sets = setting.sets(make)
        counted, total = int(sets[0]["mask"].sum()), sets[0]["mask"].numel()
        moved = 12 * counted + 13 * total if shape.fused else 8 * counted + 9 * total
        truth = reference_truth(sets[0], step(function))
        return Prepared(sets=sets, providers=providers, truth=truth, gate="float64", num_bytes=moved)

    name = f"{'ppo' if shape.fused else 'generalized'}_advantages {shape.rows} x {shape.length}"
    return Row(name=name, prepare=prepare, targets=shape.targets, graph=True, limit_s=40)
