"""Functions of other libraries that compute what an op computes, where they are installed (`pip install '.[bench]'`).

torchtune is not in that extra: it is no longer maintained, and imports an older torchao (0.13) than the current one.
Where a library's convention is another one, its adapter says so and what it does about it. No library that could be
imported on its own computes these, or not as a function of tensors: `pairwise_ranking_loss` (reward trainers compare
two responses, not every pair of K), `ppo_advantages` (penalty, score and GAE are separate steps everywhere),
`clipped_value_loss` (torchtune adds it to the policy loss, TorchRL's is inside a loss module) and `sample_tokens`
(samplers draw their own random numbers). Left out as well: TorchRL's `ClipPPOLoss`, which runs a policy network on a
TensorDict; torchtune's `estimate_advantages`, which whitens what it returns; but for the targets of a GPU, Liger's
cross-entropy of logits, which overwrites them with their gradient; and OpenRLHF and verl, whose losses are imported
together with flash-attn and DeepSpeed, or Ray.
"""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instructrl.ops import ppo

Call = Callable[[], Any]
Peer = Callable[..., Call]
"""From the arguments of an op, all of them with their defaults, to a call that returns what the op returns. It lays out
constants before the call, which alone is timed. Raises ImportError where the library is not installed or has no code
for the device."""
IGNORED = -100


def padded_with_zeros(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with 0 where the mask is False, as a library's own caller has there: most multiply by the mask."""
    mask, made = arguments.get("mask"), dict(arguments)
    if mask is None or bool(mask.all()):
        return made
    for name, x in arguments.items():
        per_position = isinstance(x, Tensor) and x.is_floating_point() and x.shape[: mask.dim()] == mask.shape
        if per_position and name not in ("weight", "bias"):
            counted = mask.view(*mask.shape, *[1] * (x.dim() - mask.dim()))
            made[name] = torch.where(counted, x.detach(), 0.0).requires_grad_(x.requires_grad)
    return made


def then(adapt: Peer, last: Callable[[Any], Any], **settings: Any) -> Peer:
    """last: of what the library returns."""

    def make(**x: Any) -> Call:
        found = adapt(**x, **settings)
        return lambda: last(found())

    return make


def negated(adapt: Peer, **settings: Any) -> Peer:
    """Of a library that gives negative log-likelihoods."""
    return then(adapt, operator.neg, **settings)


def _ignored(tokens: Tensor, mask: Tensor | None) -> Tensor:
    return tokens if mask is None else torch.where(mask, tokens, IGNORED)


def _trl_logprobs(logits: Tensor, tokens: Tensor, **_: Any) -> Call:
    if logits.is_cuda:
        from trl.kernels import selective_log_softmax_and_entropy

        return lambda: selective_log_softmax_and_entropy(logits, tokens)[0]
    from trl.trainer.utils import selective_log_softmax

    return lambda: selective_log_softmax(logits, tokens)


def _trl_logprobs_and_entropy(logits: Tensor, tokens: Tensor, **_: Any) -> Call:
    from trl.trainer.utils import selective_log_softmax_and_entropy

    return lambda: selective_log_softmax_and_entropy(logits, tokens, temperature=1.0)


def _trl_head(hidden: Tensor, weight: Tensor, tokens: Tensor, outputs: tuple[str, ...] = (), **_: Any) -> Call:
    from trl.kernels import ChunkedLogProbFunction

    # As wide as the slices of the vocabulary in TRL's own fused head; no bias, temperature 1, no soft cap, no scale.
    settings = (1.0, 32768, None, 1.0, outputs)
    return lambda: ChunkedLogProbFunction.apply(hidden, weight, None, tokens, *settings)[: 1 + len(outputs)]


_trl_linear_logprobs = then(_trl_head, lambda found: found[0])
# The loss of TRL's fused head: minus the sum over the tokens, over their number.
_trl_linear_nll = then(_trl_head, lambda found: -found[0].mean())


def _liger_linear(hidden: Tensor, weight: Tensor, tokens: Tensor, entropy: bool = False, **_: Any) -> Call:
    """Liger gives the negative log-likelihood of each token; the sign is turned here."""
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction as ScaledCrossEntropy

    if hidden.is_cuda and torch.cuda.get_device_capability(hidden.device) == (9, 0) and hidden.dtype != torch.bfloat16:
        raise ImportError("Liger's kernel for compute capability 9.0 takes bfloat16 alone")

    def call() -> object:
        found = ScaledCrossEntropy.apply(hidden, weight, tokens, 1.0, IGNORED, 1, entropy)
        return (-found[0], found[1]) if entropy else -found

    return call


def _liger_nll(logits: Tensor, tokens: Tensor, **_: Any) -> Call:
    """Where logits need a gradient, it is made here and written over them."""
    from liger_kernel.ops import LigerCrossEntropyFunction as CrossEntropy

    settings = (None, IGNORED, 0.0, 0.0, "none", None, False, False, False)
    return lambda: CrossEntropy.apply(logits, tokens, *settings)[0]  # pyright: ignore


def _liger_fused(hidden: Tensor, weight: Tensor, tokens: Tensor, **_: Any) -> Call:
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction as CrossEntropy

    return lambda: CrossEntropy.apply(hidden, weight, tokens, None, None, IGNORED, 0.0, 0.0, "none")[0]  # pyright: ignore


def _liger_linear_nll(hidden: Tensor, weight: Tensor, tokens: Tensor, mask: Tensor | None = None, **_: Any) -> Call:
    if not hidden.is_cuda:
        raise ImportError("Liger's fused linear cross-entropy is a Triton kernel")
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    targets = _ignored(tokens, mask)
    return lambda: liger_fused_linear_cross_entropy(hidden, weight, targets)


def _liger_policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, **_: Any) -> Call:
    """The loss inside of Liger's GRPO, which has one advantage a sequence: here every token is a sequence.

    Without a reference model, and divided by the tokens that count ("bnpo"), it is PPO's.
    """
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction

    counted, old = mask.reshape(-1, 1).float(), old_logprobs.reshape(-1, 1)
    masks = {"attention_mask": counted, "full_attention_mask": counted}
    constants = {"old_per_token_logps": old, "advantages": advantages.reshape(-1), "beta": 0.0, "loss_type": "bnpo"}
    loss = partial(LigerFusedLinearGRPOFunction.ppo_loss_fn, **masks, **constants)
    return lambda: loss(per_token_logps=logprobs.reshape(-1, 1))[0]


def _value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, **_: Any) -> Tensor:
    clipped = torch.maximum(torch.minimum(values, old_values + 0.2), old_values - 0.2)
    squared = torch.maximum((values - returns).square(), (clipped - returns).square())
    return 0.5 * (squared * mask).sum() / mask.sum()


def _liger_linear_ppo(hidden: Tensor, weight: Tensor, tokens: Tensor, old_logprobs: Tensor, advantages: Tensor,
                      mask: Tensor, **critic: Tensor) -> Call:  # fmt: skip
    """As `_liger_policy_loss`, from hidden states. Liger has no critic: the value loss is added in plain PyTorch."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, loss_type="bnpo", chunk_size=tokens.shape[0])
    ids, counted, old = tokens.unsqueeze(1), mask.unsqueeze(1).float(), old_logprobs.unsqueeze(1)

    def call() -> tuple[Tensor, Tensor, Tensor]:
        head = hidden.unsqueeze(1), weight, ids, counted, advantages
        policy, _ = loss(*head, old_per_token_logps=old)
        value = _value_loss(mask=mask, **critic)
        return policy + 0.1 * value, policy.detach(), value.detach()

    return call


def _trl_linear_ppo(hidden: Tensor, weight: Tensor, tokens: Tensor, **others: Tensor) -> Call:
    """Its log-probabilities, and the rest as the reference has it: its own loss is inside of a trainer."""
    head = _trl_head(hidden.flatten(0, 1), weight, tokens.flatten(0, 1))
    return lambda: ppo.ppo_loss(head()[0].view(tokens.shape), **others).loss


def _liger_sequences_ppo(hidden: Tensor, weight: Tensor, tokens: Tensor, old_logprobs: Tensor, advantages: Tensor,
                         mask: Tensor, **critic: Tensor) -> Call:  # fmt: skip
    """From hidden states of [B, T, D], with one advantage for all tokens of a sequence, as it is meant to be called."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, loss_type="bnpo", compiled=hidden.is_cuda)
    constants = tokens, mask.to(torch.int64), advantages[:, 0].contiguous()
    whole = partial(loss, old_per_token_logps=old_logprobs)
    return lambda: whole(hidden, weight, *constants)[0] + 0.1 * _value_loss(mask=mask, **critic)


def _cut_cross_entropy(hidden: Tensor, weight: Tensor, tokens: Tensor, mask: Tensor | None = None,
                       reduction: str = "none", filtered: bool = False, **_: Any) -> Call:  # fmt: skip
    """filtered: as by default, which leaves small parts of the gradient out; the op does not."""
    from cut_cross_entropy import linear_cross_entropy

    # Its kernel takes 16-bit numbers on a GPU.
    impl = "cce" if hidden.is_cuda and hidden.element_size() == 2 else "torch_compile"
    settings = {} if filtered else {"impl": impl, "filter_eps": None}
    targets = _ignored(tokens, mask)
    return lambda: linear_cross_entropy(hidden, weight, targets, reduction=reduction, **settings)


def _torch_cross_entropy(hidden: Tensor, weight: Tensor, tokens: Tensor, mask: Tensor | None = None,
                         reduction: str = "none", **_: Any) -> Call:  # fmt: skip
    """PyTorch's own, in chunks of tokens; without `options` it would be plain PyTorch once more."""
    if not hasattr(F, "linear_cross_entropy"):
        raise ImportError("this version of torch has no linear_cross_entropy")
    settings = {"reduction": reduction, "ignore_index": IGNORED, "options": torch.nn.LinearCrossEntropyOptions()}
    targets = _ignored(tokens, mask)
    return lambda: F.linear_cross_entropy(hidden, weight, targets, **settings)


def _torchrl_advantages(name: str, rewards: Tensor, values: Tensor, mask: Tensor, **_: Any) -> Call:
    """TorchRL is told the value after each position, and where a trajectory is done: at the last token that counts."""
    from torchrl.objectives.value import functional

    function, after = getattr(functional, name), torch.zeros_like(mask[:, :1])
    done = mask & ~torch.cat([mask[:, 1:], after], dim=1)
    next_values = torch.cat([values[:, 1:], after.to(values.dtype)], dim=1)
    columns = [x.unsqueeze(-1) for x in (values, next_values, rewards, done)]
    return lambda: tuple(x.squeeze(-1) for x in function(1.0, 0.95, *columns))


def _torchtune_whiten(x: Tensor, mask: Tensor, **_: Any) -> Call:
    """Its `shift_mean` puts the mean back, and it leaves values where the mask is False."""
    from torchtune.rlhf import whiten

    return lambda: whiten(x, mask, shift_mean=False).masked_fill_(~mask, 0.0)


def _torchtune_ppo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, values: Tensor, old_values: Tensor,
                   returns: Tensor, mask: Tensor) -> Call:  # fmt: skip
    from torchtune.rlhf.loss import PPOLoss

    loss = PPOLoss(epsilon=0.2, value_clip_range=0.2, value_coeff=0.1)
    return lambda: loss(old_logprobs, logprobs, advantages, old_values, values, returns, mask, mask)[:3]


PEERS: dict[str, dict[str, Peer]] = {
    "logprobs.token_logprobs": {"trl": _trl_logprobs},
    "logprobs.token_logprobs_and_entropy": {"trl": _trl_logprobs_and_entropy},
    "logprobs.linear_token_logprobs": {
        "trl": _trl_linear_logprobs,
        "liger": _liger_linear,
        "cut-cross-entropy": negated(_cut_cross_entropy),
        "torch chunked": negated(_torch_cross_entropy),
    },
    "logprobs.linear_token_logprobs_and_entropy": {
        "trl": partial(_trl_head, outputs=("entropy",)),
        "liger": partial(_liger_linear, entropy=True),
    },
    "likelihood.linear_nll_loss": {
        "trl": _trl_linear_nll,
        "liger": _liger_linear_nll,
        "cut-cross-entropy": partial(_cut_cross_entropy, reduction="mean"),
        "torch chunked": partial(_torch_cross_entropy, reduction="mean"),
    },
    "advantages.generalized_advantages": {
        "torchrl loop": partial(_torchrl_advantages, "generalized_advantage_estimate"),
        "torchrl vectorised": partial(_torchrl_advantages, "vec_generalized_advantage_estimate"),
    },
    "advantages.masked_whiten": {"torchtune": _torchtune_whiten},
    "ppo.clipped_policy_loss": {"liger": _liger_policy_loss},
    "ppo.ppo_loss": {"torchtune": _torchtune_ppo},
    "ppo.linear_ppo_loss": {"liger": _liger_linear_ppo},
}
"""By op: a name for the table -> the peer."""

DEVICE_PEERS: dict[str, dict[str, Peer]] = {
    "logprobs.token_logprobs": {"trl": _trl_logprobs, "liger": negated(_liger_nll)},
    "logprobs.linear_token_logprobs": {
        "trl": _trl_linear_logprobs,
        "liger": negated(_liger_fused),
        "liger scaled": _liger_linear,
        "cut-cross-entropy": negated(_cut_cross_entropy, filtered=True),
    },
    "ppo.linear_ppo_loss": {"trl": _trl_linear_ppo, "liger": _liger_sequences_ppo},
}
"""Those of the targets, at the sizes of an accelerator and as each library is called there. Liger's scaled cross
entropy uses kernels for Hopper where their compiler is installed, else PyTorch."""
WRITE_OVER = (DEVICE_PEERS["logprobs.token_logprobs"]["liger"],)
"""The gradient, over the inputs that it is of."""
