"""The rows of gpu_targets.py that are losses or start from hidden states."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.device import target_peers as peers
from benchmarks.device.target_rows import (
    Inputs,
    Prepared,
    Provider,
    Row,
    Setting,
    Target,
    ours,
    plain_logprobs,
    prefix_mask,
    reference_truth,
    with_gradients,
)
from instructrl.ops import logprobs, ppo
from instructrl.ops.ppo_settings import PPOSettings

PER_TOKEN = ("logprobs", "old_logprobs", "advantages", "values", "old_values", "returns", "mask")
VF_COEF = 0.1
SETTINGS = PPOSettings(vf_coef=VF_COEF)


def per_token(shape: tuple[int, int], setting: Setting, generator: torch.Generator) -> Inputs:
    """What PPO's losses take beside new log-probabilities, away from the kinks, where rounding picks the branch."""
    draw: dict[str, Any] = {"generator": generator, "device": setting.device}

    def shifts() -> Tensor:
        steps = torch.tensor([0.0, 0.5, -0.5, 0.1], device=setting.device)
        return steps[torch.randint(0, 4, shape, **draw)] + 0.01 * torch.rand(shape, **draw)

    old_values = torch.randn(shape, **draw)
    sides = torch.tensor([2.0, -2.0], device=setting.device)[torch.randint(0, 2, shape, **draw)]
    return {
        "shifts": shifts(),
        "advantages": torch.randn(shape, **draw),
        "values": (old_values + shifts()).requires_grad_(),
        "old_values": old_values,
        "returns": old_values + sides + 0.1 * torch.randn(shape, **draw),
        "mask": prefix_mask(shape, setting.device, generator),
    }


def ppo_row(tokens: str, shape: tuple[int, int], part: str, targets: tuple[Target, ...]) -> Row:
    """part: "forward", which makes the gradients, or "forward + backward", which scales and returns them."""

    def prepare(setting: Setting) -> Prepared:
        def make(generator: torch.Generator) -> Inputs:
            found = per_token((3, 37) if setting.dry else shape, setting, generator)
            new = torch.randn(found["shifts"].shape, generator=generator, device=setting.device) - 2.0
            return found | {"logprobs": new.requires_grad_(), "old_logprobs": new.detach() - found.pop("shifts")}

        def step(function: Callable[..., Any]) -> Callable[[Inputs], list[Tensor]]:
            def loss(x: Inputs) -> Tensor:
                return function(**{name: x[name] for name in PER_TOKEN}, settings=SETTINGS).loss

            return with_gradients(loss, "logprobs", "values") if part != "forward" else lambda x: [loss(x).detach()]

        run = step(ppo.ppo_loss)
        providers = {
            **ours(run),
            "eager": Provider(run=run),
            "compile": Provider(run=step(setting.compiled(ppo.ppo_loss))),
        }
        sets = setting.sets(make)
        counted, total = int(sets[0]["mask"].sum()), sets[0]["mask"].numel()
        # Six tensors and the mask are read, two gradients written; the backward reads and writes those again.
        moved = 24 * counted + 9 * total + (0 if part == "forward" else 16 * total)
        truth = reference_truth(sets[0], run)
        return Prepared(sets=sets, providers=providers, truth=truth, gate="float64", num_bytes=moved)

    small = shape[0] * shape[1] <= 2**20
    return Row(name=f"ppo_loss {part}, {tokens} tokens", prepare=prepare, targets=targets, graph=small)


def head_inputs(setting: Setting, generator: torch.Generator) -> Inputs:
    """4 sequences of 1024 tokens, D 4096, V 128256, in bfloat16."""
    shape, width, classes = ((2, 6), 16, 67) if setting.dry else ((4, 1024), 4096, 128256)
    draw: dict[str, Any] = {"generator": generator, "device": setting.device}
    hidden = torch.randn((*shape, width), dtype=torch.bfloat16, **draw)
    weight = torch.randn((classes, width), dtype=torch.bfloat16, **draw).mul_(3.0 / width**0.5)
    return {"hidden": hidden, "weight": weight, "tokens": torch.randint(0, classes, shape, **draw)}


def plain_linear(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    return plain_logprobs(F.linear(hidden, weight), tokens)


def linear_logprobs(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    return logprobs.linear_token_logprobs(hidden, weight, tokens)


def linear_row(part: str, targets: tuple[Target, ...]) -> Row:
    def prepare(setting: Setting) -> Prepared:
        x = head_inputs(setting, setting.generator(0))
        for name in ("hidden", "weight"):
            x[name] = x[name].requires_grad_(part != "forward")
        x["upstream"] = torch.randn(x["tokens"].shape, generator=setting.generator(1), device=setting.device)

        def step(function: Callable[..., Tensor], flat: bool = False) -> Callable[[Inputs], list[Tensor]]:
            def run(x: Inputs) -> list[Tensor]:
                hidden = x["hidden"].flatten(0, 1) if flat else x["hidden"]
                tokens = x["tokens"].flatten() if flat else x["tokens"]
                output = function(hidden, x["weight"], tokens).view(x["tokens"].shape)
                if part == "forward":
                    return [output]
                leaves = [x["hidden"], x["weight"]]
                return [output.detach(), *torch.autograd.grad(output, leaves, x["upstream"].to(output.dtype))]

            return run

        run = step(linear_logprobs)
        others = {"trl": peers.trl_linear, "liger": peers.liger_linear, "liger scaled": peers.liger_scaled_linear,
                  "cut-cross-entropy": peers.cut_cross_entropy}  # fmt: skip
        providers = {**ours(run), "reference": Provider(run=run), "eager": Provider(run=step(plain_linear)),
                     "compile": Provider(run=step(setting.compiled(plain_linear))),
                     **{name: Provider(run=step(f, flat=True)) for name, f in others.items()}}  # fmt: skip
        truth = _picked(reference_truth(x, run))
        flops = (2 if part == "forward" else 6) * x["hidden"].numel() * x["weight"].shape[0]
        gate = "float64, of the gradient of the weight every eighth row"
        return Prepared(sets=[x], providers=providers, truth=truth, gate=gate, pick=_picked, num_flops=flops)

    name = f"linear_token_logprobs {part}, 4096 tokens, D 4096, V 128256 bfloat16"
    return Row(name=name, prepare=prepare, targets=targets, yardstick="product", limit_s=70)


def _picked(results: list[Tensor]) -> list[Tensor]:
    """The gradient of the weight is the third: every eighth row of it."""
    return [x[::8].contiguous() if place == 2 else x for place, x in enumerate(results)]


def linear_ppo_row(targets: tuple[Target, ...]) -> Row:
    """Advantages are the same for all tokens of a sequence, as those who know no others want it."""

    def prepare(setting: Setting) -> Prepared:
        x = head_inputs(setting, setting.generator(0))
        found = per_token(tuple(x["tokens"].shape), setting, setting.generator(1))  # pyright: ignore
        with torch.no_grad():
            # By the definition, so that no probability ratio is near a kink for anyone.
            rows = [
                plain_linear(h.float(), x["weight"].float(), t) for h, t in zip(x["hidden"], x["tokens"], strict=True)
            ]
        x |= found | {"old_logprobs": torch.stack(rows) - found["shifts"]}
        x["sequence_advantages"] = torch.randn(len(x["tokens"]), generator=setting.generator(2), device=setting.device)
        x["advantages"] = x["sequence_advantages"].unsqueeze(1).expand(x["tokens"].shape).contiguous()
        x |= {name: x[name].requires_grad_() for name in ("hidden", "weight")}
        run = with_gradients(_our_linear_loss, "hidden", "weight", "values")
        compiled = setting.compiled(_plain_linear_loss)
        losses = {
            "eager": _plain_linear_loss,
            "compile": compiled,
            "trl": _trl_linear_loss,
            "liger": _liger_linear_loss,
        }
        providers = {**ours(run), "reference": Provider(run=run)} | {
            name: Provider(run=with_gradients(loss, "hidden", "weight", "values")) for name, loss in losses.items()
        }
        truth = _picked(reference_truth(x, run))
        gate = "float64, of the gradient of the weight every eighth row"
        flops = 6 * x["hidden"].numel() * x["weight"].shape[0]
        return Prepared(sets=[x], providers=providers, truth=truth, gate=gate, pick=_picked, num_flops=flops)

    name = "linear_ppo_loss forward + backward, 4096 tokens, D 4096, V 128256 bfloat16"
    return Row(name=name, prepare=prepare, targets=targets, yardstick="product", limit_s=70)


def _our_linear_loss(x: Inputs) -> Tensor:
    return ppo.linear_ppo_loss(
        x["hidden"], x["weight"], x["tokens"], *(x[name] for name in PER_TOKEN[1:]), settings=SETTINGS
    ).loss


def _loss_of(new: Tensor, x: Inputs) -> Tensor:
    return ppo.ppo_loss(new, *(x[name] for name in PER_TOKEN[1:]), settings=SETTINGS).loss


def _plain_linear_loss(x: Inputs) -> Tensor:
    return _loss_of(plain_linear(x["hidden"], x["weight"], x["tokens"]), x)


def _trl_linear_loss(x: Inputs) -> Tensor:
    new = peers.trl_linear(x["hidden"].flatten(0, 1), x["weight"], x["tokens"].flatten())
    return _loss_of(new.view(x["tokens"].shape), x)


def _liger_linear_loss(x: Inputs) -> Tensor:
    """Its policy loss and the value loss that it has none of."""
    policy = peers.liger_policy_loss(
        x["hidden"], x["weight"], x["tokens"], x["old_logprobs"], x["sequence_advantages"], x["mask"]
    )
    return policy + VF_COEF * ppo.clipped_value_loss(x["values"], x["old_values"], x["returns"], x["mask"]).loss
