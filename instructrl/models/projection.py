"""What a network makes of the projection of its states: its logits."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from instructrl.models.agreement import ACCEPTED, UnsuitableError, agree
from instructrl.ops.logit_settings import LogitSettings
from instructrl.ops.softmax_rows import shaped_logits


def logits_of_projection(network: PreTrainedModel, tokens: Tensor, states: Tensor) -> LogitSettings:
    """What logits are of `hidden @ weight.T + bias`, for any size of it: found by looking, whatever a field is called.

    tokens: [L] ids. states: [L, D], the network's own of them.
    Raises ValueError where they are something else than `LogitSettings` says.
    """
    head = network.get_output_embeddings()
    name = type(network).__name__
    if not isinstance(head, nn.Linear):
        raise UnsuitableError(f"{name} without a linear output embedding; {ACCEPTED}")
    largest = float(head(states).abs().max())
    seen = []

    def of_size(size: float) -> tuple[Tensor, Tensor]:
        """The projection with its largest number of about this size, and the network's logits of it."""

        def enlarge(module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
            seen.append(inputs[0][0])
            return (size / largest * inputs[0],)

        hook = head.register_forward_pre_hook(enlarge)
        own = network(input_ids=tokens[None], use_cache=False).logits[0]
        hook.remove()
        return head(size / largest * seen[-1]), own

    error = 1e-8 if states.dtype == torch.float64 else 1e-6
    projected, own = of_size(1e-6)
    scale = _ratio(own, projected, error)
    projected, own = of_size(1e9)  # a cap shows where logits are beyond it
    capped = not agree(own, scale * projected)
    before = _ratio(seen[0], states, error)
    try:
        found = LogitSettings(scale=scale, softcap=_rounded(float(own.abs().max()), error) if capped else None)
        # States may be scaled on their way to the head, which without a bias is the same.
        whole = LogitSettings(scale=scale * before, softcap=found.softcap)
    except ValueError:
        raise UnsuitableError(f"{name}, whose logits are no projection of its states; {ACCEPTED}") from None
    sizes = [of_size(size) for size in (1.0, 30.0, 1000.0)]
    same = all(agree(own, shaped_logits(projected, 1.0, found, None)) for projected, own in sizes)
    if not same or not agree(seen[0], before * states) or (before != 1.0 and head.bias is not None):
        raise UnsuitableError(f"{name}, whose logits are no projection of its states; {ACCEPTED}")
    return whole


def _ratio(x: Tensor, y: Tensor, error: float) -> float:
    x, y = x.double(), y.double()
    return _rounded(float((x * y).sum() / y.square().sum()), error)


def _rounded(x: float, error: float) -> float:
    """The shortest number within a relative error: what was measured is a configuration's but for rounding."""
    return next((found for n in range(1, 17) if abs((found := float(f"{x:.{n}g}")) - x) <= error * abs(x)), x)
