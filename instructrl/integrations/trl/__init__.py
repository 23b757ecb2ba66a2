"""TRL: its log-probabilities and its fused head, which SFT, DPO, KTO, GRPO and RLOO are made of.

    from instructrl.integrations import trl
    trl.install()       # before or after the trainers are imported

A module of yours that has imported one of these functions by its name keeps what it imported.

Beside the adapter, and without TRL: `PPOTrainer` and `PPOConfig` as TRL had them up to 1.12, `RewardTrainer` and
`RewardConfig` as it has them, on the trainers of this package.
"""

import importlib
from typing import TYPE_CHECKING, Any

from torch import Tensor

from instructrl.integrations.adapter import Adapter, Replacement
from instructrl.integrations.logits import as_computed, entropy_of
from instructrl.integrations.selfcheck import Draw, Example
from instructrl.ops import candidates, logprobs, statistics
from instructrl.ops.logit_settings import LogitSettings

if TYPE_CHECKING:
    from instructrl.integrations.trl.arguments import PPOConfig as PPOConfig
    from instructrl.integrations.trl.arguments import RewardConfig as RewardConfig
    from instructrl.integrations.trl.ppo import PPOTrainer as PPOTrainer
    from instructrl.integrations.trl.reward import RewardTrainer as RewardTrainer


class _Head:
    """In place of an autograd function, of which TRL calls `apply`."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def apply(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1"),
    ) -> tuple[Tensor | None, ...]:
        if hasattr(weight, "ds_id"):
            # DeepSpeed's ZeRO-3 has emptied the weight again before the backward, for which the host's own gathers it.
            how = (temperature, chunk_size, final_logit_softcapping, logit_scale, outputs)
            return self._own.apply(hidden, weight, bias, targets, *how)
        states, rows, added = as_computed(hidden, weight, bias)
        head = (states, rows, targets)
        settings = LogitSettings(scale=logit_scale, softcap=final_logit_softcapping)
        shape: dict[str, Any] = {"temperature": temperature, "logit_settings": settings, "bias": added}
        if not {"log_sum_sq_probs", "mean_logits", "is_top1"} & set(outputs):
            if "entropy" not in outputs:
                return (logprobs.linear_token_logprobs(*head, **shape), None, None, None, None)
            return (*logprobs.linear_token_logprobs_and_entropy(*head, **shape), None, None, None)
        found = statistics.linear_token_statistics(*head, **shape)
        return (
            found.logprobs,
            found.entropy if "entropy" in outputs else None,
            found.sum_of_squares.log() if "log_sum_sq_probs" in outputs else None,
            found.mean_logit / temperature if "mean_logits" in outputs else None,
            found.is_largest if "is_top1" in outputs else None,
        )


def _rounded(found: Tensor, logits: Tensor) -> Tensor:
    """As the host returns what is one number a row: its kernel for accelerators has float32 of logits of any dtype."""
    return found if logits.device.type in ("cuda", "xpu") else found.to(logits.dtype)


def _selective_log_softmax(
    logits: Tensor, index: Tensor, temperature: float = 1.0, row_mask: Tensor | None = None
) -> Tensor:
    if index.dim() == logits.dim() - 1:
        mask = None if row_mask is None else row_mask != 0
        return _rounded(logprobs.token_logprobs(logits, index, temperature=temperature, mask=mask), logits)
    found = candidates.candidate_logprobs(logits, index, temperature=temperature).to(logits.dtype)
    return found if row_mask is None else found.masked_fill(row_mask == 0, 0.0)


def _entropy_from_logits(logits: Tensor, chunk_size: int = 128) -> Tensor:
    return _rounded(entropy_of(logits), logits)


def _selective_log_softmax_and_entropy(
    logits: Tensor,
    index: Tensor,
    entropy_requires_grad: bool = True,
    temperature: float = 1.0,
    row_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    mask = None if row_mask is None else row_mask != 0
    found, entropy = logprobs.token_logprobs_and_entropy(logits, index, temperature=temperature, mask=mask)
    entropy = entropy if entropy_requires_grad else entropy.detach()
    return _rounded(found, logits), _rounded(entropy, logits)


def _heads(draw: Draw) -> list[Example]:
    sizes = draw.sizes
    rows = sizes.batch * sizes.tokens

    def example(*others: Any, bias: bool = False) -> Example:
        hidden = draw.normal(rows, sizes.hidden, grad=True)
        weight = draw.normal(sizes.vocabulary, sizes.hidden, scale=sizes.hidden**-0.5, grad=True)
        added = draw.normal(sizes.vocabulary, grad=True) if bias else None
        return Example((hidden, weight, added, draw.ids(rows), *others))

    everything = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    return [
        example(1.0, 32768, None, 1.0, ("log_probs",)),
        example(0.7, 32768, 2.0, 0.5, ("log_probs", "entropy"), bias=True),
        example(1.3, 20, None, 1.0, everything),
    ]


def _rows(draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, an id each, a mask."""
    sizes = draw.sizes
    shape = (sizes.batch, sizes.tokens)
    return draw.normal(*shape, sizes.vocabulary, scale=2.0, grad=True), draw.ids(*shape), draw.lengths(*shape)


def _selections(draw: Draw) -> list[Example]:
    plain, masked, many = _rows(draw), _rows(draw), _rows(draw)
    ids = draw.ids(*many[1].shape, 3)
    return [Example(plain[:2]), Example((*masked[:2], 0.7, masked[2])), Example((many[0], ids))]


def _logits(draw: Draw) -> list[Example]:
    return [Example(_rows(draw)[:1])]


def _pairs(draw: Draw) -> list[Example]:
    logits, index, mask = _rows(draw)
    return [Example(_rows(draw)[:2]), Example((logits, index, False, 0.7, mask))]


ADAPTER = Adapter(
    host="trl",
    distribution="trl",
    package="trl",
    tried=("1.16.0",),
    replacements=(
        Replacement(
            name="trl.kernels.chunked_logprob:ChunkedLogProbFunction",
            signature="(ctx, hidden, weight, bias, targets, temperature, chunk_size, final_logit_softcapping=None, "
            "logit_scale=1.0, outputs=('entropy', 'log_sum_sq_probs', 'mean_logits', 'is_top1'))",
            sources=("3661e8975a9f",),
            stand_in=_Head,
            examples=_heads,
            call=lambda function, *args: function.apply(*args),
            described="forward",
        ),
        Replacement(
            name="trl.trainer.utils:selective_log_softmax",
            signature="(logits, index, temperature=1.0, row_mask=None)",
            sources=("e55428ff89ca",),
            stand_in=lambda own: _selective_log_softmax,
            examples=_selections,
        ),
        Replacement(
            name="trl.trainer.utils:entropy_from_logits",
            signature="(logits, chunk_size=128)",
            sources=("040e498bee45",),
            stand_in=lambda own: _entropy_from_logits,
            examples=_logits,
        ),
        Replacement(
            name="trl.trainer.utils:selective_log_softmax_and_entropy",
            signature="(logits, index, entropy_requires_grad=True, temperature=1.0, row_mask=None)",
            sources=("69b4d4c0971d",),
            stand_in=lambda own: _selective_log_softmax_and_entropy,
            examples=_pairs,
        ),
    ),
)
install, uninstall = ADAPTER.install, ADAPTER.uninstall

# The trainers that TRL had, or has for pairs alone: imported when they are asked for, which needs no TRL.
_TRAINERS = {"PPOConfig": "arguments", "RewardConfig": "arguments", "PPOTrainer": "ppo", "RewardTrainer": "reward"}


def __getattr__(name: str) -> Any:
    if name not in _TRAINERS:
        raise AttributeError(f"module 'instructrl.integrations.trl' has no attribute {name!r}")
    return getattr(importlib.import_module(f"instructrl.integrations.trl.{_TRAINERS[name]}"), name)
