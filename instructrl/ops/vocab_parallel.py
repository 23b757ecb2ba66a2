"""Log-probabilities and entropies of logits whose vocabulary is split over the processes of a group.

Each process has the logits, or the rows of the head, of a range of ids, and all have the same tokens. A process makes
four numbers a row of its range (the largest, the sum of exponentials, the entropy of the range, the token's logit);
they are gathered once and merged in the order of the ranks, so every process gets the same bits. The loss that
follows is computed by all of them alike: their gradients by the results must be the same.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from instructrl.ops import checks, linear, vocab_shards
from instructrl.ops.autograd import first_order, savable
from instructrl.ops.logit_settings import PLAIN, LogitSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class VocabShards:
    """Which ids each process of a group has: rank r those from `bounds[r]` to `bounds[r + 1] - 1`.

    bounds: one more than there are processes, from 0 up to the size of the vocabulary; ranges may be empty.
    group: a process group of `torch.distributed`, or None for the default one.
    Raises: ValueError for other bounds, TypeError for other types.
    """

    bounds: tuple[int, ...]
    group: Any = None

    def __post_init__(self) -> None:
        whole = isinstance(self.bounds, tuple) and all(type(bound) is int for bound in self.bounds)
        if not whole:
            raise TypeError(f"bounds: found {self.bounds!r}, accepted is a tuple of whole numbers")
        rises = all(a <= b for a, b in zip(self.bounds, self.bounds[1:], strict=False))
        if len(self.bounds) < 2 or self.bounds[0] != 0 or not rises or self.bounds[-1] < 1:
            accepted = "accepted are bounds that rise from 0 to the size of the vocabulary"
            raise ValueError(f"bounds: found {tuple(self.bounds)}, {accepted}")

    @classmethod
    def even(cls, num_classes: int, group: Any = None) -> "VocabShards":
        """Ranges of `ceil(num_classes / processes)` ids, the last ones shorter, as a padded weight is cut."""
        size = _group_size(group)
        length = -(-num_classes // size)
        return cls(bounds=tuple(min(rank * length, num_classes) for rank in range(size + 1)), group=group)

    def local(self) -> tuple[int, int]:
        """The bounds of this process; raises where the group has another size."""
        size = _group_size(self.group)
        if size != len(self.bounds) - 1:
            found = f"{len(self.bounds) - 1} ranges with a process group of {size}"
            raise ValueError(f"bounds: found {found}, accepted is one range for each process")
        rank = dist.get_rank(self.group)
        return self.bounds[rank], self.bounds[rank + 1]


def _group_size(group: Any) -> int:
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError("vocab_parallel: found no process group, accepted is one by torch.distributed")
    size = dist.get_world_size(group)
    if size < 1:
        raise ValueError("group: found a process group without this process, accepted is one that has it")
    return size


class _Call(NamedTuple):
    """What a call is besides its tensors."""

    shards: VocabShards
    temperature: float
    tanh_slope: float
    workspace: int
    with_entropy: bool


def _merged(parts: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, call: _Call) -> tuple[Tensor, Tensor, Tensor]:
    """From each process's numbers: log-probability, entropy, normalizers of the whole vocabulary.

    With the total probability q of a range, `entropy = sum q (entropy of the range - log q)`.
    """
    chosen, entropy, normalizers = parts
    numbers = torch.stack([*normalizers.unbind(-1), entropy if call.with_entropy else torch.zeros_like(chosen), chosen])
    gathered = [torch.empty_like(numbers) for _ in range(_group_size(call.shards.group))]
    dist.all_gather(gathered, numbers, group=call.shards.group)
    largest, log_sums, entropies, logits = torch.stack(gathered).to(torch.float64).unbind(1)
    top = largest.amax(0)
    log_totals = (largest - top) / call.temperature + log_sums
    log_total = torch.logsumexp(log_totals, 0)
    shares = (log_totals - log_total).exp()
    # A range without a possible id has no entropy of its own.
    uncertain = torch.where(shares > 0, shares * (entropies - log_totals), 0.0).sum(0) + log_total
    results = [(logits.sum(0) - top) / call.temperature - log_total, uncertain]
    if mask is not None:
        results = [torch.where(mask, x, 0.0) for x in results]
    dtype = chosen.dtype
    return results[0].to(dtype), results[1].to(dtype), torch.stack([top, log_total], -1).to(dtype)


def _nothing(rows: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """What a range of no ids adds."""
    zeros = like.new_zeros(rows, dtype=dtype)
    return zeros, zeros, torch.stack([zeros + torch.finfo(dtype).min, zeros - math.inf], -1)


class _Sharded(torch.autograd.Function):
    """From logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, mask: Tensor | None, call: _Call) -> tuple[Tensor, Tensor]:
        if logits.shape[-1] == 0:
            parts = _nothing(tuple(tokens.shape), logits, checks.accumulation_dtype(logits))
        else:
            shape = {"temperature": call.temperature, "tanh_slope": call.tanh_slope}
            parts = vocab_shards.shard_rows(logits, tokens, mask=mask, **shape, with_entropy=call.with_entropy)
        logprobs, entropy, normalizers = _merged(parts, mask, call)
        ctx.call = call
        ctx.save_for_backward(logits, savable(tokens), savable(mask), normalizers, entropy)
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Any, ...]:  # pyright: ignore
        logits, tokens, mask, normalizers, entropy = ctx.saved_tensors
        if logits.shape[-1] == 0:
            return torch.zeros_like(logits), None, None, None
        upstream = _upstream(entropy, grad_logprobs, grad_entropy, ctx.call)
        return vocab_shards.shard_gradient(logits, tokens, normalizers, mask=mask, **upstream), None, None, None


def _upstream(
    entropy: Tensor, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, call: _Call
) -> dict[str, Any]:
    return {
        "entropy": None if grad_entropy is None else entropy,
        "grad_logprobs": grad_logprobs,
        "grad_entropy": grad_entropy,
        "temperature": call.temperature,
        "tanh_slope": call.tanh_slope,
    }


class _LinearSharded(torch.autograd.Function):
    """From hidden states, whose gradient is summed over the processes."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        mask: Tensor | None,
        call: _Call,
    ) -> tuple[Tensor, Tensor]:
        if weight.shape[0] == 0:
            parts = _nothing(tuple(tokens.shape), hidden, checks.accumulation_dtype(hidden, weight))
        else:
            shape = {"temperature": call.temperature, "tanh_slope": call.tanh_slope, "workspace": call.workspace}
            others = {"bias": bias, "mask": mask, **shape, "with_entropy": call.with_entropy}
            parts = vocab_shards.linear_shard_rows(hidden, weight, tokens, **others)
        logprobs, entropy, normalizers = _merged(parts, mask, call)
        ctx.call = call
        inputs = (savable(hidden), savable(weight), savable(bias), savable(tokens), savable(mask))
        ctx.save_for_backward(*inputs, normalizers, entropy)
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Any, ...]:  # pyright: ignore
        hidden, weight, bias, tokens, mask, normalizers, entropy = ctx.saved_tensors
        wanted = tuple(ctx.needs_input_grad[:3])
        dtype = checks.accumulation_dtype(hidden, weight)
        if weight.shape[0] == 0:
            gradients = [hidden if x is None else torch.zeros_like(x, dtype=dtype) for x in (hidden, weight, bias)]
        else:
            upstream = _upstream(entropy, grad_logprobs, grad_entropy, ctx.call)
            others = {"bias": bias, "mask": mask, **upstream, "workspace": ctx.call.workspace, "wanted": wanted}
            gradients = list(vocab_shards.linear_shard_gradients(hidden, weight, tokens, normalizers, **others))
        if wanted[0]:
            # Half precision would round after each addition.
            gradients[0] = gradients[0].to(dtype)
            dist.all_reduce(gradients[0], group=ctx.call.shards.group)
        found = zip(gradients, (hidden, weight, bias), wanted, strict=True)
        return *(g.to(x.dtype) if want else None for g, x, want in found), None, None, None


def _local_tokens(
    name: str, model: Tensor, tokens: Tensor, temperature: float, mask: Tensor | None, shards: VocabShards
) -> tuple[Tensor, Tensor | None]:
    """Tokens counted from this process's first id, those of others out of its range; and the mask."""
    checks.settings("shards", shards, VocabShards)
    first, _ = shards.local()
    tokens, mask = linear.check_tokens(name, model, tokens, temperature, mask, shards.bounds[-1])
    return tokens - first, mask


def _check_range(name: str, found: int, shards: VocabShards) -> None:
    first, end = shards.local()
    if found != end - first:
        accepted = f"accepted is {end - first}, the range of rank {dist.get_rank(shards.group)}"
        raise ValueError(f"{name}: found {found} ids, {accepted}")


def token_logprobs_and_entropy(
    logits: Tensor,
    tokens: Tensor,
    *,
    shards: VocabShards,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    logit_settings: LogitSettings = PLAIN,
) -> tuple[Tensor, Tensor]:
    """`logprobs.token_logprobs_and_entropy` of logits of which each process has a range.

    logits: [..., V_r] floating, the range of this process. tokens: [...], ids of the whole vocabulary.
    temperature, mask, logit_settings: as there; tokens and mask are the same in all processes of the group.
    Returns: both [...], the same bits in all processes, with gradients for this process's logits.
    Raises: ValueError for another range, other shapes, dtypes, devices or values; RuntimeError without a group.
    """
    return _from_logits(logits, tokens, shards, temperature, mask, logit_settings, True)


def token_logprobs(
    logits: Tensor,
    tokens: Tensor,
    *,
    shards: VocabShards,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    logit_settings: LogitSettings = PLAIN,
) -> Tensor:
    """`token_logprobs_and_entropy` without the entropy."""
    return _from_logits(logits, tokens, shards, temperature, mask, logit_settings, False)[0]


def _from_logits(
    logits: Tensor,
    tokens: Tensor,
    shards: VocabShards,
    temperature: float,
    mask: Tensor | None,
    settings: LogitSettings,
    with_entropy: bool,
) -> tuple[Tensor, Tensor]:
    checks.floating("logits", logits)
    checks.settings("logit_settings", settings, LogitSettings)
    if logits.dim() == 0:
        raise ValueError("logits: found shape (), accepted is [..., V]")
    tokens, mask = _local_tokens("logits", logits, tokens, temperature, mask, shards)
    _check_range("logits", logits.shape[-1], shards)
    call = _Call(shards, *settings.folded(temperature), 0, with_entropy)
    return _Sharded.apply(logits, tokens, mask, call)  # pyright: ignore[reportReturnType]


def linear_token_logprobs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    shards: VocabShards,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    max_workspace_bytes: int | None = None,
    logit_settings: LogitSettings = PLAIN,
) -> tuple[Tensor, Tensor]:
    """`logprobs.linear_token_logprobs_and_entropy` of a head of which each process has a range of rows.

    hidden: [..., D] floating, the same in all processes; so is its gradient, which is summed over them.
    weight: [V_r, D], bias: [V_r] or None: the range of this process. The rest: as above and as there. The backward
    makes the logits again.
    """
    shape = (shards, temperature, mask, max_workspace_bytes, logit_settings)
    return _from_hidden(hidden, weight, bias, tokens, *shape, True)


def linear_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    shards: VocabShards,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    max_workspace_bytes: int | None = None,
    logit_settings: LogitSettings = PLAIN,
) -> Tensor:
    """`linear_token_logprobs_and_entropy` without the entropy."""
    shape = (shards, temperature, mask, max_workspace_bytes, logit_settings)
    return _from_hidden(hidden, weight, bias, tokens, *shape, False)[0]


def _from_hidden(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    shards: VocabShards,
    temperature: float,
    mask: Tensor | None,
    max_workspace_bytes: int | None,
    settings: LogitSettings,
    with_entropy: bool,
) -> tuple[Tensor, Tensor]:
    checks.settings("logit_settings", settings, LogitSettings)
    checks.dims("weight", weight, 2, "[V, D]")
    tokens, mask = _local_tokens("hidden", hidden, tokens, temperature, mask, shards)
    _check_range("weight", weight.shape[0], shards)
    if weight.shape[0] > 0:
        linear.check_head(hidden, weight, bias)
    workspace = linear.workspace_bytes(max_workspace_bytes, weight)
    call = _Call(shards, *settings.folded(temperature), workspace, with_entropy)
    return _LinearSharded.apply(hidden, weight, bias, tokens, mask, call)  # pyright: ignore[reportReturnType]
