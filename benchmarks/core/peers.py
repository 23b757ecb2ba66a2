"""Functions of other libraries that compute what an op computes, where they are installed (`pip install '.[bench]'`).

torchtune is not in that extra: it is no longer maintained, and imports an older torchao (0.13) than the current one.
Where a library's convention is another one, its adapter says so and what it does about it. No library that could be
imported on its own computes these, or not as a function of tensors:

- `pairwise_ranking_loss`: reward trainers (TRL, OpenRLHF, NeMo-RL) compare two responses, not every pair of K.
- `ppo_advantages`: penalty, score and GAE are separate steps everywhere; the GAE alone is in the table.
- `clipped_value_loss`: torchtune adds it to the policy loss, which is in the table; TorchRL's is inside a loss module.
- `sample_tokens`: samplers draw their own random numbers.

Left out as well: TorchRL's `ClipPPOLoss`, which runs a policy network on a TensorDict; torchtune's
`estimate_advantages`, which whitens what it returns; but for the targets of a GPU, Liger's cross-entropy of logits,
which overwrites them with their gradient; and OpenRLHF and verl, whose losses are imported together with flash-attn and
DeepSpeed, or Ray.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instructrl.ops import ppo

Arguments = dict[str, Any]
Call = Callable[[], object]

IGNORED = -100
_CRITIC = ("values", "old_values", "returns")


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
        which alone is timed. Raises ImportError where the library is not installed or has no code for the device.
    options: keyword arguments of the op that it understands; a case with any other is not given to it.
    mask: whether it can be given such a mask.
    writes_over: the gradient, over the inputs that it is of.
    """

    adapt: Callable[[Arguments], Call]
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
    mask = arguments.get("mask")
    if mask is None or nothing_masked(mask):
        return arguments
    made = dict(arguments)
    for name, x in arguments.items():
        per_position = isinstance(x, Tensor) and x.is_floating_point() and x.shape[: mask.dim()] == mask.shape
        if per_position and name not in ("weight", "bias"):
            counted = mask.view(*mask.shape, *[1] * (x.dim() - mask.dim()))
            made[name] = torch.where(counted, x.detach(), 0.0).requires_grad_(x.requires_grad)
    return made


def _ignored_where_masked(arguments: Arguments) -> Tensor:
    tokens = arguments["tokens"]
    return torch.where(arguments["mask"], tokens, IGNORED) if "mask" in arguments else tokens


def _trl_logprobs(arguments: Arguments) -> Call:
    if arguments["logits"].is_cuda:
        from trl.kernels import selective_log_softmax_and_entropy

        return lambda: selective_log_softmax_and_entropy(arguments["logits"], arguments["tokens"])[0]
    from trl.trainer.utils import selective_log_softmax

    return lambda: selective_log_softmax(arguments["logits"], arguments["tokens"])


def _trl_logprobs_and_entropy(arguments: Arguments) -> Call:
    from trl.trainer.utils import selective_log_softmax_and_entropy

    temperature = arguments.get("temperature", 1.0)
    return lambda: selective_log_softmax_and_entropy(arguments["logits"], arguments["tokens"], temperature=temperature)


def _trl_head(arguments: Arguments, outputs: tuple[str, ...] = ()) -> Callable[[], tuple[Tensor, ...]]:
    from trl.kernels import ChunkedLogProbFunction

    # As wide as the slices of the vocabulary in TRL's own fused head; no soft cap, no scale.
    settings = (arguments.get("temperature", 1.0), 32768, None, 1.0, outputs)
    head = arguments["hidden"], arguments["weight"], arguments.get("bias"), arguments["tokens"]
    return lambda: ChunkedLogProbFunction.apply(*head, *settings)[: 1 + len(outputs)]


def _trl_linear_logprobs(arguments: Arguments) -> Call:
    logprobs = _trl_head(arguments)
    return lambda: logprobs()[0]


def _trl_linear_nll(arguments: Arguments) -> Call:
    """The loss of TRL's fused head: minus the sum over the tokens, over their number."""
    logprobs, num_tokens = _trl_head(arguments), arguments["tokens"].numel()
    return lambda: -logprobs()[0].sum() / num_tokens


def _liger_linear(arguments: Arguments, with_entropy: bool) -> Call:
    """Liger gives the negative log-likelihood of each token; the sign is turned here."""
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction as ScaledCrossEntropy

    hidden, weight, tokens = (arguments[name] for name in ("hidden", "weight", "tokens"))
    if hidden.is_cuda and torch.cuda.get_device_capability(hidden.device) == (9, 0) and hidden.dtype != torch.bfloat16:
        raise ImportError("Liger's kernel for compute capability 9.0 takes bfloat16 alone")
    settings = (arguments.get("temperature", 1.0), IGNORED, 1, with_entropy)

    def call() -> object:
        found = ScaledCrossEntropy.apply(hidden, weight, tokens, *settings)
        return (-found[0], found[1]) if with_entropy else -found

    return call


def _liger_logprobs(arguments: Arguments) -> Call:
    """Where logits need a gradient, it is made here and written over them."""
    from liger_kernel.ops import LigerCrossEntropyFunction as CrossEntropy

    settings = (None, IGNORED, 0.0, 0.0, "none", None, False, False, False)
    return lambda: -CrossEntropy.apply(arguments["logits"], arguments["tokens"], *settings)[0]  # pyright: ignore


def _liger_fused(arguments: Arguments) -> Call:
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction as CrossEntropy

    head = tuple(arguments[name] for name in ("hidden", "weight", "tokens"))
    return lambda: -CrossEntropy.apply(*head, None, None, IGNORED, 0.0, 0.0, "none")[0]  # pyright: ignore


def _liger_linear_nll(arguments: Arguments) -> Call:
    if not arguments["hidden"].is_cuda:
        raise ImportError("Liger's fused linear cross-entropy is a Triton kernel")
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    head = arguments["hidden"], arguments["weight"], _ignored_where_masked(arguments), arguments.get("bias")
    return lambda: liger_fused_linear_cross_entropy(*head)


def _liger_policy_loss(arguments: Arguments) -> Call:
    """The loss inside of Liger's GRPO, which has one advantage a sequence: here every token is a sequence.

    Without a reference model, and divided by the tokens that count ("bnpo"), it is PPO's.
    """
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction

    mask = arguments["mask"].reshape(-1, 1).float()
    constants = {
        "attention_mask": mask,
        "full_attention_mask": mask,
        "old_per_token_logps": arguments["old_logprobs"].reshape(-1, 1),
        "advantages": arguments["advantages"].reshape(-1),
        "beta": 0.0,
        "loss_type": "bnpo",
    }

    def call() -> Tensor:
        logprobs = arguments["logprobs"].reshape(-1, 1)
        return LigerFusedLinearGRPOFunction.ppo_loss_fn(per_token_logps=logprobs, **constants)[0]

    return call


def _value_loss(arguments: Arguments) -> Tensor:
    values, old, returns, mask = (arguments[name] for name in (*_CRITIC, "mask"))
    clipped = torch.maximum(torch.minimum(values, old + 0.2), old - 0.2)
    squared = torch.maximum((values - returns).square(), (clipped - returns).square())
    return 0.5 * (squared * mask).sum() / mask.sum()


def _liger_linear_ppo(arguments: Arguments) -> Call:
    """As `_liger_policy_loss`, from hidden states. Liger has no critic: the value loss is added in plain PyTorch."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    num_tokens = arguments["tokens"].shape[0]
    loss = LigerFusedLinearGRPOLoss(
        beta=0.0,
        use_ref_model=False,
        chunk_size=num_tokens,
        loss_type="bnpo",
        temperature=arguments.get("temperature", 1.0),
    )
    columns = [arguments["tokens"].unsqueeze(1), arguments["mask"].unsqueeze(1).float()]
    old = arguments["old_logprobs"].unsqueeze(1)

    def call() -> tuple[Tensor, Tensor, Tensor]:
        hidden = arguments["hidden"].unsqueeze(1)
        policy, _ = loss(
            hidden,
            arguments["weight"],
            *columns,
            arguments["advantages"],
            bias=arguments.get("bias"),
            old_per_token_logps=old,
        )
        value = _value_loss(arguments)
        return policy + 0.1 * value, policy.detach(), value.detach()

    return call


def _trl_linear_ppo(arguments: Arguments) -> Call:
    """Its log-probabilities, and the rest as the reference has it: its own loss is inside of a trainer."""
    head = {name: arguments[name].flatten(0, 1) for name in ("hidden", "tokens")} | {"weight": arguments["weight"]}
    logprobs, shape = _trl_head(head), arguments["tokens"].shape
    others = {name: arguments[name] for name in ("old_logprobs", "advantages", *_CRITIC, "mask")}
    return lambda: ppo.ppo_loss(logprobs()[0].view(shape), **others).loss


def _liger_sequences_ppo(arguments: Arguments) -> Call:
    """From hidden states of [B, T, D], with one advantage for all tokens of a sequence, as it is meant to be called."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(
        beta=0.0, use_ref_model=False, loss_type="bnpo", compiled=arguments["hidden"].is_cuda
    )
    head = tuple(arguments[name] for name in ("hidden", "weight", "tokens"))
    # All tokens of a sequence have the same.
    constants = arguments["mask"].to(torch.int64), arguments["advantages"][:, 0].contiguous()
    old = arguments["old_logprobs"]
    return lambda: loss(*head, *constants, old_per_token_logps=old)[0] + 0.1 * _value_loss(arguments)


def _cut_cross_entropy(arguments: Arguments, reduction: str, filtered: bool = False) -> Callable[[], Tensor]:
    """filtered: as by default, which leaves small parts of the gradient out."""
    from cut_cross_entropy import linear_cross_entropy

    hidden, weight, tokens = arguments["hidden"], arguments["weight"], _ignored_where_masked(arguments)
    if filtered:
        return lambda: linear_cross_entropy(hidden, weight, tokens, reduction=reduction)
    # Its kernel takes 16-bit numbers on a GPU; by default it leaves small gradients out, which the op does not.
    impl = "cce" if hidden.is_cuda and hidden.element_size() == 2 else "torch_compile"
    settings = {"impl": impl, "filter_eps": None, "reduction": reduction}
    return lambda: linear_cross_entropy(hidden, weight, tokens, **settings)


def _torch_cross_entropy(arguments: Arguments, reduction: str) -> Callable[[], Tensor]:
    """PyTorch's own, in chunks of tokens; without `options` it would be plain PyTorch once more."""
    if not hasattr(F, "linear_cross_entropy"):
        raise ImportError("this version of torch has no linear_cross_entropy")
    head = arguments["hidden"], arguments["weight"], _ignored_where_masked(arguments)
    settings = {"linear_bias": arguments.get("bias"), "reduction": reduction, "ignore_index": IGNORED}
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda: F.linear_cross_entropy(*head, **settings, options=options)


def _negated(nll: Callable[..., Callable[[], Tensor]], arguments: Arguments) -> Call:
    found = nll(arguments, "none")
    return lambda: -found()


def _torchrl_advantages(name: str, arguments: Arguments) -> Call:
    """TorchRL is told the value after each position, and where a trajectory is done: at the last token that counts."""
    from torchrl.objectives.value import functional

    function = getattr(functional, name)
    rewards, values, mask = (arguments[name].unsqueeze(-1) for name in ("rewards", "values", "mask"))
    after = torch.zeros_like(mask[:, :1])
    done = mask & ~torch.cat([mask[:, 1:], after], dim=1)
    next_values = torch.cat([values[:, 1:], after.to(values.dtype)], dim=1)
    decay = arguments.get("gamma", 1.0), arguments.get("lam", 0.95)

    def call() -> tuple[Tensor, ...]:
        return tuple(x.squeeze(-1) for x in function(*decay, values, next_values, rewards, done))

    return call


def _torchtune_whiten(arguments: Arguments) -> Call:
    """Its `shift_mean` puts the mean back, and it leaves values where the mask is False."""
    from torchtune.rlhf import whiten

    x, mask = arguments["x"], arguments["mask"]
    return lambda: whiten(x, mask, shift_mean=False).masked_fill_(~mask, 0.0)


def _torchtune_ppo(arguments: Arguments) -> Call:
    from torchtune.rlhf.loss import PPOLoss

    loss, mask = PPOLoss(epsilon=0.2, value_clip_range=0.2, value_coeff=0.1), arguments["mask"]
    names = ("old_logprobs", "logprobs", "advantages", "old_values", "values", "returns")
    return lambda: loss(*(arguments[name] for name in names), mask, mask)[:3]


_HEAD = ("temperature", "bias")
_DECAY = ("gamma", "lam")

PEERS: dict[str, dict[str, Peer]] = {
    "logprobs.token_logprobs": {"trl": Peer(adapt=_trl_logprobs)},
    "logprobs.token_logprobs_and_entropy": {"trl": Peer(adapt=_trl_logprobs_and_entropy, options=("temperature",))},
    "logprobs.linear_token_logprobs": {
        "trl": Peer(adapt=_trl_linear_logprobs, options=_HEAD),
        "liger": Peer(adapt=partial(_liger_linear, with_entropy=False), options=("temperature",)),
        "cut-cross-entropy": Peer(adapt=partial(_negated, _cut_cross_entropy), mask=something_counts),
        "torch chunked": Peer(adapt=partial(_negated, _torch_cross_entropy), options=("bias",), mask=something_counts),
    },
    "logprobs.linear_token_logprobs_and_entropy": {
        "trl": Peer(adapt=partial(_trl_head, outputs=("entropy",)), options=_HEAD),
        "liger": Peer(adapt=partial(_liger_linear, with_entropy=True), options=("temperature",)),
    },
    "likelihood.linear_nll_loss": {
        "trl": Peer(adapt=_trl_linear_nll, options=("bias",)),
        "liger": Peer(adapt=_liger_linear_nll, options=("bias",), mask=something_counts),
        "cut-cross-entropy": Peer(adapt=partial(_cut_cross_entropy, reduction="mean"), mask=something_counts),
        "torch chunked": Peer(
            adapt=partial(_torch_cross_entropy, reduction="mean"), options=("bias",), mask=something_counts
        ),
    },
    "advantages.generalized_advantages": {
        "torchrl loop": Peer(
            adapt=partial(_torchrl_advantages, "generalized_advantage_estimate"), options=_DECAY, mask=right_padded
        ),
        "torchrl vectorised": Peer(
            adapt=partial(_torchrl_advantages, "vec_generalized_advantage_estimate"), options=_DECAY, mask=right_padded
        ),
    },
    "advantages.masked_whiten": {"torchtune": Peer(adapt=_torchtune_whiten, mask=something_counts)},
    "ppo.clipped_policy_loss": {"liger": Peer(adapt=_liger_policy_loss, mask=something_counts)},
    "ppo.ppo_loss": {"torchtune": Peer(adapt=_torchtune_ppo, mask=something_counts)},
    "ppo.linear_ppo_loss": {"liger": Peer(adapt=_liger_linear_ppo, options=_HEAD, mask=something_counts)},
}
"""By op: a name for the table -> the peer."""

DEVICE_PEERS: dict[str, dict[str, Peer]] = {
    "logprobs.token_logprobs": {
        **PEERS["logprobs.token_logprobs"],
        "liger": Peer(adapt=_liger_logprobs, writes_over=True),
    },
    "logprobs.linear_token_logprobs": {
        "trl": Peer(adapt=_trl_linear_logprobs),
        "liger": Peer(adapt=_liger_fused),
        "liger scaled": Peer(adapt=partial(_liger_linear, with_entropy=False)),
        "cut-cross-entropy": Peer(adapt=partial(_negated, partial(_cut_cross_entropy, filtered=True))),
    },
    "ppo.linear_ppo_loss": {
        "trl": Peer(adapt=_trl_linear_ppo, mask=something_counts),
        "liger": Peer(adapt=_liger_sequences_ppo, mask=something_counts),
    },
}
"""Those of the targets, at the sizes of an accelerator and as each library is called there. Liger's scaled cross
entropy uses kernels for Hopper where their compiler is installed, else PyTorch."""
