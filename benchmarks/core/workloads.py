"""The ops as benchmarks call them: inputs of a shape, what is differentiated, and the formula without us.

Inputs of clipped losses stay away from the kinks, where rounding picks the branch.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instructrl.ops import ppo, ranking

Inputs = dict[str, Any]
Run = Callable[[Inputs], list[Tensor]]
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward + backward"
UPSTREAM = "upstream"
"""The name of the gradient that goes in, among the inputs, where it is not 1."""
CRITIC = ("values", "old_values", "returns")


def whole(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.ones(shape, dtype=torch.bool, device=generator.device)


def prefixes(least: float) -> Callable[[tuple[int, ...], torch.Generator], Tensor]:
    """Masks of [B, T]: of each row the first part counts, from this share of it to all."""

    def make(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        draw: dict[str, Any] = {"generator": generator, "device": generator.device}
        lengths = torch.randint(int(least * shape[1]), shape[1] + 1, (shape[0], 1), **draw)
        return torch.arange(shape[1], device=generator.device) < lengths

    return make


def scattered(share: float) -> Callable[[tuple[int, ...], torch.Generator], Tensor]:
    """Masks of which this share counts."""
    return lambda shape, generator: torch.rand(shape, generator=generator, device=generator.device) < share


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Random inputs. dtype: of logits, hidden states and weights; all others have the default dtype. counts: the mask
    of a shape. repeated: the same numbers in each row, where drawing them would take longer than the op."""

    generator: torch.Generator
    dtype: torch.dtype | None = None
    counts: Callable[[tuple[int, ...], torch.Generator], Tensor] = whole
    repeated: bool = False

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        one = shape[1:] if self.repeated and len(shape) > 1 else shape
        made = torch.randn(one, generator=self.generator, device=self.generator.device, dtype=dtype)
        return made.expand(shape).contiguous()

    def ids(self, num_classes: int, *shape: int) -> Tensor:
        return torch.randint(num_classes, shape, generator=self.generator, device=self.generator.device)

    def mask(self, *shape: int) -> Tensor:
        return self.counts(shape, self.generator)

    def shifts(self, *shape: int) -> Tensor:
        """Steps that a clipped loss clips and steps that it does not, none of them near a kink."""
        steps = torch.tensor([0.0, 0.5, -0.5, 0.1], device=self.generator.device)
        return steps[self.ids(4, *shape)] + 0.01 * self.normal(*shape).sigmoid()


def _ranking(draw: Draw, prompts: int, responses: int) -> Inputs:
    ranks = draw.ids(responses, 1 if draw.repeated else prompts, responses)
    preferred = ranking.preferred_from_ranks(ranks).expand(prompts, responses, responses).contiguous()
    return {"scores": draw.normal(prompts, responses), "preferred": preferred}


def _logits(draw: Draw, *shape: int) -> Inputs:
    return {"logits": draw.normal(*shape, dtype=draw.dtype).mul_(3.0), "tokens": draw.ids(shape[-1], *shape[:-1])}


def _head(draw: Draw, width: int, num_classes: int, *shape: int) -> Inputs:
    weight = draw.normal(num_classes, width, dtype=draw.dtype).mul_(3.0 / width**0.5)
    hidden = draw.normal(*shape, width, dtype=draw.dtype)
    return {"hidden": hidden, "weight": weight, "tokens": draw.ids(num_classes, *shape)}


def _per_token(draw: Draw, *shape: int) -> Inputs:
    """What PPO's losses take beside log-probabilities."""
    old_values = draw.normal(*shape)
    sides = torch.where(draw.ids(2, *shape) == 1, 2.0, -2.0)
    return {
        "advantages": draw.normal(*shape),
        "values": old_values + draw.shifts(*shape),
        "old_values": old_values,
        "returns": old_values + sides + 0.1 * draw.normal(*shape),
        "mask": draw.mask(*shape),
    }


def _ppo(draw: Draw, *shape: int) -> Inputs:
    new = draw.normal(*shape) - 2.0
    return {"logprobs": new, "old_logprobs": new - draw.shifts(*shape)} | _per_token(draw, *shape)


def _linear_ppo(draw: Draw, width: int, num_classes: int, *shape: int) -> Inputs:
    """Advantages are the same for all tokens of a sequence, as those who know no others want it."""
    found = _head(draw, width, num_classes, *shape) | _per_token(draw, *shape)
    if draw.repeated:
        return found | {"old_logprobs": draw.normal(*shape)}
    # By the definition, so that no probability ratio is near a kink for anyone; in little memory, so that what is
    # measured later is not what it took to get here.
    weight = found["weight"].float()
    parts = zip(found["hidden"].flatten(0, -2).split(64), found["tokens"].flatten().split(64), strict=True)
    new = torch.cat([plain_linear(hidden.float(), weight, tokens) for hidden, tokens in parts]).view(shape)
    same = draw.normal(shape[0]).view(-1, *[1] * (len(shape) - 1))
    return found | {"old_logprobs": new - draw.shifts(*shape), "advantages": same.expand(shape).contiguous()}


def _advantages(*names: str) -> Callable[..., Inputs]:
    def make(draw: Draw, num_rows: int, length: int) -> Inputs:
        found = {name: draw.normal(num_rows, length) for name in names}
        settings = {"scores": draw.normal(num_rows), "kl_coef": 0.02} if "logprobs" in names else {}
        return found | settings | {"mask": draw.mask(num_rows, length)}

    return make


def _sampling(draw: Draw, num_rows: int, num_classes: int) -> Inputs:
    uniforms = torch.rand(num_rows, generator=draw.generator, device=draw.generator.device)
    return {"logits": draw.normal(num_rows, num_classes, dtype=draw.dtype).mul_(3.0), "uniforms": uniforms}


def plain_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """As it is written without us, at least in float32."""
    found = torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return found.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def linear(of_logits: Callable[..., Any]) -> Callable[..., Any]:
    """From hidden states and weights."""
    return lambda hidden, weight, *others, **x: of_logits(F.linear(hidden, weight), *others, **x)


plain_linear = linear(plain_logprobs)


def plain_linear_ppo(hidden: Tensor, weight: Tensor, tokens: Tensor, **others: Tensor) -> Tensor:
    return ppo.ppo_loss(plain_linear(hidden, weight, tokens), **others).loss


def plain_ranking(scores: Tensor, preferred: Tensor) -> Tensor:
    """The reference without the checks around it, which small inputs would feel."""
    return ranking.PAIRWISE_RANKING_LOSS.reference(scores, preferred, None, None, 0.0).loss_sum


def public(op: str) -> Callable[..., Any]:
    family, function = op.split(".")
    return getattr(importlib.import_module(f"instructrl.ops.{family}"), function)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """An op. make: from a `Draw` and a shape to its arguments. call: what is compared and differentiated. leaves: by
    what. plain: the formula as it is written without us, where the reference is not that. compiled: what torch.compile
    is given, where that is not the formula."""

    op: str
    make: Callable[..., Inputs]
    call: Callable[..., Any]
    leaves: tuple[str, ...] = ()
    plain: Callable[..., Any] | None = None
    compiled: Callable[..., Any] | None = None

    def inputs(self, draw: Draw, *shape: int, gradients: bool = True) -> Inputs:
        """gradients: whether leaves need them; then some ops make them in the forward."""
        made = self.make(draw, *shape)
        for name in self.leaves if gradients else ():
            made[name].requires_grad_()
        return made

    def run(self, part: str = BOTH) -> Run:
        return running(self.call, self.leaves, part)

    def plain_run(self, part: str = BOTH) -> Run:
        return running(self.plain or self.call, self.leaves, part)


def workload(
    op: str, make: Callable[..., Inputs], *leaves: str, field: str = "", plain: Callable[..., Any] | None = None
) -> Workload:
    """A public op. field: of what it returns."""
    function = public(op)
    call = (lambda **x: getattr(function(**x), field)) if field else function
    return Workload(op=op, make=make, call=call, leaves=leaves, plain=plain)


RANKING = workload("ranking.pairwise_ranking_loss", _ranking, "scores", field="loss_sum", plain=plain_ranking)
TOKEN_LOGPROBS = workload("logprobs.token_logprobs", _logits, "logits", plain=plain_logprobs)
LINEAR_LOGPROBS = workload("logprobs.linear_token_logprobs", _head, "hidden", "weight", plain=plain_linear)
LINEAR_NLL = workload(
    "likelihood.linear_nll_loss", lambda draw, *x: _head(draw, *x) | {"mask": draw.mask(*x[2:])}, "hidden", "weight"
)
POLICY = workload(
    "ppo.clipped_policy_loss", lambda *x: {name: one for name, one in _ppo(*x).items() if name not in CRITIC},
    "logprobs", field="loss",
)  # fmt: skip
PPO = workload("ppo.ppo_loss", _ppo, "logprobs", "values", field="loss")
LINEAR_PPO = workload(
    "ppo.linear_ppo_loss", _linear_ppo, "hidden", "weight", "values", field="loss", plain=plain_linear_ppo
)
PPO_ADVANTAGES = workload("advantages.ppo_advantages", _advantages("logprobs", "ref_logprobs", "values"))
GAE = workload("advantages.generalized_advantages", _advantages("rewards", "values"))
WHITEN = workload(
    "advantages.masked_whiten", lambda draw, *shape: {"x": draw.normal(*shape), "mask": draw.mask(*shape)}
)
SAMPLING = workload("sampling.sample_tokens", _sampling)


def tensors(output: object) -> list[Tensor]:
    found = output if isinstance(output, (tuple, list)) else [output]
    return [x for x in found if isinstance(x, Tensor)]


def running(call: Callable[..., Any], leaves: tuple[str, ...], part: str = BOTH) -> Run:
    """Results, and gradients of the sum of those that have one, or of the first by "upstream". A backward alone goes
    through a graph that its first call makes and keeps, one for each set of inputs."""
    graphs: dict[int, list[Tensor]] = {}

    def forward(x: Inputs) -> list[Tensor]:
        return tensors(call(**{name: value for name, value in x.items() if name != UPSTREAM}))

    def backward(x: Inputs, outputs: list[Tensor]) -> tuple[Tensor, ...]:
        wanted, keep = [x[name] for name in leaves], part == BACKWARD
        if UPSTREAM in x:
            return torch.autograd.grad(outputs[0], wanted, x[UPSTREAM].to(outputs[0].dtype), retain_graph=keep)
        differentiable = [y.sum() for y in outputs if y.requires_grad]
        return torch.autograd.grad(sum(differentiable[1:], differentiable[0]), wanted) if differentiable else ()

    def run(x: Inputs) -> list[Tensor]:
        if part == BACKWARD:
            if id(x) not in graphs:
                graphs[id(x)] = forward(x)
            return [*backward(x, graphs[id(x)])]
        outputs = forward(x)
        found = outputs if part == FORWARD else [*outputs, *backward(x, outputs)]
        return [y.detach() for y in found]

    return run
