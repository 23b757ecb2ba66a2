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

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instructrl.ops import ppo

Arguments = dict[str, Any]
Call = Callable[[], Any]
IGNORED = -100


def nothing_masked(mask: Tensor) -> bool:
    return bool(mask.all())


def right_padded(mask: Tensor) -> bool:
    """Every row of [B, T] counts from its start on, and nothing after the first position that does not count."""
    return mask.dim() == 2 and bool((mask[:, 1:] <= mask[:, :-1]).all())


def something_counts(mask: Tensor) -> bool:
    return bool(mask.any())


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """How a library computes an op.

    adapt: from a case's arguments to a call that returns what the op returns. It lays out constants before the call,
    which alone is timed. Raises ImportError where the library is not installed or has no code for the device. options:
    keyword arguments of the op that it understands; a case with any other is not given to it. mask: whether it can be
    given such a mask. writes_over: the gradient, over the inputs that it is of; nothing is laid out then.
    """

    adapt: Callable[..., Call]
    options: tuple[str, ...] = ()
    mask: Callable[[Tensor], bool] = nothing_masked
    writes_over: bool = False

    def takes(self, function: Callable[..., object], arguments: Arguments) -> bool:
        """function: the op, whose signature tells its options from what every case has."""
        parameters = inspect.signature(function).parameters.values()
        options = {x.name for x in parameters if x.kind is x.KEYWORD_ONLY} - {"mask", "max_workspace_bytes"}
        understood = (options & set(arguments)) <= set(self.options)
        return understood and ("mask" not in arguments or self.mask(arguments["mask"]))


def padded_with_zeros(arguments: Arguments) -> Arguments:
    """The arguments with 0 where the mask is False, as a library's own caller has there: most multiply by the mask."""
    mask, made = arguments.get("mask"), dict(arguments)
    if mask is None or nothing_masked(mask):
        return made
    for name, x in arguments.items():
        per_position = isinstance(x, Tensor) and x.is_floating_point() and x.shape[: mask.dim()] == mask.shape
        if per_position and name not in ("weight", "bias"):
            counted = mask.view(*mask.shape, *[1] * (x.dim() - mask.dim()))
            made[name] = torch.where(counted, x.detach(), 0.0).requires_grad_(x.requires_grad)
    return made


def then(adapt: Callable[..., Call], last: Callable[[Any], Any], **settings: Any) -> Callable[..., Call]:
    """last: of what the library returns."""

    def make(**x: Any) -> Call:
        found = adapt(**x, **settings)
        return lambda: last(found())

    return make


def negated(adapt: Callable[..., Call], **settings: Any) -> Callable[..., Call]:
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


def _trl_logprobs_and_entropy(logits: Tensor, tokens: Tensor, temperature: float = 1.0, **_: Any) -> Call:
    from trl.trainer.utils import selective_log_softmax_and_entropy

    return lambda: selective_log_softmax_and_entropy(logits, tokens, temperature=temperature)


def _trl_head(hidden: Tensor, weight: Tensor, tokens: Tensor, bias: Tensor | None = None, temperature: float = 1.0,
              outputs: tuple[str, ...] = (), **_: Any) -> Call:  # fmt: skip
    from trl.kernels import ChunkedLogProbFunction

    # As wide as the slices of the vocabulary in TRL's own fused head; no soft cap, no scale.
    settings = (temperature, 32768, None, 1.0, outputs)
    return lambda: ChunkedLogProbFunction.apply(hidden, weight, bias, tokens, *settings)[: 1 + len(outputs)]


_trl_linear_logprobs = then(_trl_head, lambda found: found[0])
# The loss of TRL's fused head: minus the sum over the tokens, over their number.
_trl_linear_nll = then(_trl_head, lambda found: -found[0].mean())


def _liger_linear(hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float = 1.0, entropy: bool = False,
                  **_: Any) -> Call:  # fmt: skip
    """Liger gives the negative log-likelihood of each token; the sign is turned here."""
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction as ScaledCrossEntropy

    if hidden.is_cuda and torch.cuda.get_device_capability(hidden.device) == (9, 0) and hidden.dtype != torch.bfloat16:
        raise ImportError("Liger's kernel for compute capability 9.0 takes bfloat16 alone")

    def call() -> object:
        found = ScaledCrossEntropy.apply(hidden, weight, tokens, temperature, IGNORED, 1, entropy)
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


def _liger_linear_nll(hidden: Tensor, weight: Tensor, tokens: Tensor, mask: Tensor | None = None,
                      bias: Tensor | None = None, **_: Any) -> Call:  # fmt: skip
    if not hidden.is_cuda:
        raise ImportError("Liger's fused linear cross-entropy is a Triton kernel")
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    targets = _ignored(tokens, mask)
    return lambda: liger_fused_linear_cross_entropy(hidden, weight, targets, bias)


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
                      mask: Tensor, bias: Tensor | None = None, temperature: float = 1.0,
                      **critic: Tensor) -> Call:  # fmt: skip
    """As `_liger_policy_loss`, from hidden states. Liger has no critic: the value loss is added in plain PyTorch."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    settings = {"beta": 0.0, "use_ref_model": False, "loss_type": "bnpo", "temperature": temperature}
    loss = LigerFusedLinearGRPOLoss(chunk_size=tokens.shape[0], **settings)
    ids, counted, old = tokens.unsqueeze(1), mask.unsqueeze(1).float(), old_logprobs.unsqueeze(1)

    def call() -> tuple[Tensor, Tensor, Tensor]:
        head = hidden.unsqueeze(1), weight, ids, counted, advantages
        policy, _ = loss(*head, bias=bias, old_per_token_logps=old)
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
                         bias: Tensor | None = None, reduction: str = "none", **_: Any) -> Call:  # fmt: skip
    """PyTorch's own, in chunks of tokens; without `options` it would be plain PyTorch once more."""
    if not hasattr(F, "linear_cross_entropy"):
        raise ImportError("this version of torch has no linear_cross_entropy")
    settings = {"linear_bias": bias, "reduction": reduction, "ignore_index": IGNORED}
    targets, options = _ignored(tokens, mask), torch.nn.LinearCrossEntropyOptions()
    return lambda: F.linear_cross_entropy(hidden, weight, targets, **settings, options=options)


def _torchrl_advantages(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95,
                        name: str = "", **_: Any) -> Call:  # fmt: skip
    """TorchRL is told the value after each position, and where a trajectory is done: at the last token that counts."""
    from torchrl.objectives.value import functional

    function, after = getattr(functional, name), torch.zeros_like(mask[:, :1])
    done = mask & ~torch.cat([mask[:, 1:], after], dim=1)
    next_values = torch.cat([values[:, 1:], after.to(values.dtype)], dim=1)
    columns = [x.unsqueeze(-1) for x in (values, next_values, rewards, done)]
    return lambda: tuple(x.squeeze(-1) for x in function(gamma, lam, *columns))


def _torchtune_whiten(x: Tensor, mask: Tensor, **_: Any) -> Call:
    """Its `shift_mean` puts the mean back, and it leaves values where the mask is False."""
    from torchtune.rlhf import whiten

    return lambda: whiten(x, mask, shift_mean=False).masked_fill_(~mask, 0.0)


def _torchtune_ppo(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, values: Tensor, old_values: Tensor,
                   returns: Tensor, mask: Tensor) -> Call:  # fmt: skip
    from torchtune.rlhf.loss import PPOLoss

    loss = PPOLoss(epsilon=0.2, value_clip_range=0.2, value_coeff=0.1)
    return lambda: loss(old_logprobs, logprobs, advantages, old_values, values, returns, mask, mask)[:3]


def _peer(adapt: Callable[..., Call], *options: str, mask: Callable[[Tensor], bool] = something_counts) -> Peer:
    return Peer(adapt=adapt, options=options, mask=mask)


def _unmasked(adapt: Callable[..., Call], *options: str) -> Peer:
    return _peer(adapt, *options, mask=nothing_masked)


def _gae(name: str) -> Peer:
    return _peer(partial(_torchrl_advantages, name=name), "gamma", "lam", mask=right_padded)


PEERS: dict[str, dict[str, Peer]] = {
    "logprobs.token_logprobs": {"trl": _unmasked(_trl_logprobs)},
    "logprobs.token_logprobs_and_entropy": {"trl": _unmasked(_trl_logprobs_and_entropy, "temperature")},
    "logprobs.linear_token_logprobs": {
        "trl": _unmasked(_trl_linear_logprobs, "temperature", "bias"),
        "liger": _unmasked(_liger_linear, "temperature"),
        "cut-cross-entropy": _peer(negated(_cut_cross_entropy)),
        "torch chunked": _peer(negated(_torch_cross_entropy), "bias"),
    },
    "logprobs.linear_token_logprobs_and_entropy": {
        "trl": _unmasked(partial(_trl_head, outputs=("entropy",)), "temperature", "bias"),
        "liger": _unmasked(partial(_liger_linear, entropy=True), "temperature"),
    },
    "likelihood.linear_nll_loss": {
        "trl": _unmasked(_trl_linear_nll, "bias"),
        "liger": _peer(_liger_linear_nll, "bias"),
        "cut-cross-entropy": _peer(partial(_cut_cross_entropy, reduction="mean")),
        "torch chunked": _peer(partial(_torch_cross_entropy, reduction="mean"), "bias"),
    },
    "advantages.generalized_advantages": {
        "torchrl loop": _gae("generalized_advantage_estimate"),
        "torchrl vectorised": _gae("vec_generalized_advantage_estimate"),
    },
    "advantages.masked_whiten": {"torchtune": _peer(_torchtune_whiten)},
    "ppo.clipped_policy_loss": {"liger": _peer(_liger_policy_loss)},
    "ppo.ppo_loss": {"torchtune": _peer(_torchtune_ppo)},
    "ppo.linear_ppo_loss": {"liger": _peer(_liger_linear_ppo, "temperature", "bias")},
}
"""By op: a name for the table -> the peer."""

DEVICE_PEERS: dict[str, dict[str, Peer]] = {
    "logprobs.token_logprobs": {
        "trl": _unmasked(_trl_logprobs),
        "liger": Peer(adapt=negated(_liger_nll), writes_over=True),
    },
    "logprobs.linear_token_logprobs": {
        "trl": _unmasked(_trl_linear_logprobs),
        "liger": _unmasked(negated(_liger_fused)),
        "liger scaled": _unmasked(_liger_linear),
        "cut-cross-entropy": _unmasked(negated(_cut_cross_entropy, filtered=True)),
    },
    "ppo.linear_ppo_loss": {"trl": _peer(_trl_linear_ppo), "liger": _peer(_liger_sequences_ppo)},
}
"""Those of the targets, at the sizes of an accelerator and as each library is called there. Liger's scaled cross
entropy uses kernels for Hopper where their compiler is installed, else PyTorch."""
