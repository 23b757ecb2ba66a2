"""Log-probabilities of given tokens and the entropy, from logits and from hidden states."""

from typing import Any

import torch
from torch import Tensor

from instructrl.ops import checks, dispatch, linear
from instructrl.ops.autograd import first_order
from instructrl.ops.linear import HeadGradients, LinearHead

# Rows of the in-place backward are taken in chunks of this size, so that it needs no second [N, V].
_INPLACE_WORKSPACE_BYTES = 64 * 2**20


def readable_tokens(tokens: Tensor, mask: Tensor | None, num_classes: int) -> tuple[Tensor, Tensor]:
    """Tokens that can be used as an index (0 where masked or out of range), and where they are in range."""
    if mask is not None:
        tokens = torch.where(mask, tokens, 0)
    in_range = (tokens >= 0) & (tokens < num_classes)
    return torch.where(in_range, tokens, 0), in_range


def hide_invalid(x: Tensor, mask: Tensor | None, in_range: Tensor) -> Tensor:
    """NaN where the token id is out of range, 0 where masked."""
    x = torch.where(in_range, x, float("nan"))
    return x if mask is None else torch.where(mask, x, 0.0)


def rows_forward(logits: Tensor, tokens: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
    """logits: [..., V] in the accumulation dtype, tokens: [...] in range -> log-probability, entropy: [...]."""
    log_softmax = torch.log_softmax(logits, dim=-1)
    logprob = log_softmax.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    if not with_entropy:
        return logprob, None
    probability = log_softmax.exp()
    # 0 * -inf is 0 here: a token of probability 0 adds nothing, and no NaN comes back through it.
    return logprob, -(probability * torch.where(probability > 0, log_softmax, 0.0)).sum(-1)


def rows_backward(logits: Tensor, tokens: Tensor, grad_logprob: Tensor, grad_entropy: Tensor | None) -> Tensor:
    """Gradient of [n, V] logits; `grad_*`: [n].

    `d logprob / d z[k] = [k is token] - p[k]`, `d entropy / d z[k] = -p[k] * (log p[k] + entropy)`.
    """
    if grad_entropy is None:
        gradient = torch.softmax(logits, dim=-1).mul_(-grad_logprob.unsqueeze(-1))
    else:
        log_softmax = torch.log_softmax(logits, dim=-1)
        probability = log_softmax.exp()
        log_softmax.masked_fill_(probability == 0, 0.0)
        entropy = -(probability * log_softmax).sum(-1, keepdim=True)
        log_softmax.add_(entropy).mul_(grad_entropy.unsqueeze(-1)).add_(grad_logprob.unsqueeze(-1))
        gradient = probability.mul_(log_softmax).neg_()
    return gradient.scatter_add_(-1, tokens.unsqueeze(-1), grad_logprob.unsqueeze(-1))


class _InplaceBackward(torch.autograd.Function):
    """Log-probabilities whose backward overwrites the logits with their gradient.

    The write bumps the version of the logits, so whoever saved them for a backward of their own gets autograd's
    error, a second backward of this function included.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tokens: Tensor, mask: Tensor | None, temperature: float, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        ctx.temperature, ctx.with_entropy = temperature, with_entropy
        ctx.save_for_backward(logits, tokens, mask)
        ctx.set_materialize_grads(False)
        return _forward(logits, tokens, mask, temperature, with_entropy)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore
        logits, tokens, mask = ctx.saved_tensors
        num_classes = logits.shape[-1]
        dtype = checks.accumulation_dtype(logits)
        grads = []
        for grad in grad_outputs:
            grad = torch.zeros_like(tokens, dtype=dtype) if grad is None else grad / ctx.temperature
            grads.append((grad if mask is None else torch.where(mask, grad, 0.0)).flatten())
        tokens = readable_tokens(tokens, mask, num_classes)[0].flatten()
        # A view of contiguous logits. Of others it may be a copy, which is written back at the end.
        rows = logits.reshape(-1, num_classes)
        keep = None if mask is None else mask.flatten()
        for chunk in linear.chunks(rows.shape[0], num_classes, dtype, _INPLACE_WORKSPACE_BYTES):
            scaled = rows[chunk].to(dtype) / ctx.temperature
            if keep is not None:
                scaled = torch.where(keep[chunk].unsqueeze(-1), scaled, 0.0)
            grad_entropy = grads[1][chunk] if ctx.with_entropy else None
            rows[chunk] = rows_backward(scaled, tokens[chunk], grads[0][chunk], grad_entropy).to(rows.dtype)
        if rows.data_ptr() != logits.data_ptr():
            logits.copy_(rows.view(logits.shape))
        return logits, None, None, None, None


def _forward(
    logits: Tensor, tokens: Tensor, mask: Tensor | None, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    tokens, in_range = readable_tokens(tokens, mask, logits.shape[-1])
    scaled = logits.to(checks.accumulation_dtype(logits))
    if mask is not None:
        scaled = torch.where(mask.unsqueeze(-1), scaled, 0.0)
    if temperature != 1.0:
        scaled = scaled / temperature
    logprob, entropy = rows_forward(scaled, tokens, with_entropy)
    hidden_entropy = None if entropy is None else hide_invalid(entropy, mask, in_range)
    return hide_invalid(logprob, mask, in_range), hidden_entropy


def _reference_token_logprobs(
    logits: Tensor, tokens: Tensor, mask: Tensor | None, temperature: float, inplace_backward: bool
) -> Tensor:
    if inplace_backward:
        return _InplaceBackward.apply(logits, tokens, mask, temperature, False)[0]  # pyright: ignore
    return _forward(logits, tokens, mask, temperature, False)[0]


def _reference_token_logprobs_and_entropy(
    logits: Tensor, tokens: Tensor, mask: Tensor | None, temperature: float, inplace_backward: bool
) -> tuple[Tensor, Tensor]:
    if inplace_backward:
        return _InplaceBackward.apply(logits, tokens, mask, temperature, True)  # pyright: ignore
    logprob, entropy = _forward(logits, tokens, mask, temperature, True)
    assert entropy is not None
    return logprob, entropy


class _LinearLogprobs(torch.autograd.Function):
    """Chunks forward; logits again and gradients by matrix products, chunk by chunk, backward.

    Logits that fit the workspace in one chunk wait for the backward there and are not made again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        temperature: float,
        workspace: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.temperature, ctx.workspace = temperature, workspace
        dtype = checks.accumulation_dtype(hidden, weight)
        head = LinearHead(weight.to(dtype), None if bias is None else bias.to(dtype), temperature)
        logprobs = torch.empty(tokens.shape, dtype=dtype, device=tokens.device)
        entropies = torch.empty_like(logprobs) if with_entropy else None
        kept = None
        for rows in linear.chunks(hidden.shape[0], weight.shape[0], dtype, workspace):
            logits = head.logits(hidden[rows].to(dtype))
            logprob, entropy = rows_forward(logits, tokens[rows], with_entropy)
            logprobs[rows] = logprob
            if entropies is not None and entropy is not None:
                entropies[rows] = entropy
            if rows.stop - rows.start == hidden.shape[0]:
                kept = logits
        ctx.save_for_backward(hidden, weight, bias, tokens, kept)
        return logprobs, entropies

    @staticmethod
    @first_order
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore
        hidden, weight, bias, tokens, kept = ctx.saved_tensors
        dtype = checks.accumulation_dtype(hidden, weight)
        head = LinearHead(weight.to(dtype), None if bias is None else bias.to(dtype), ctx.temperature)
        grad_logprob, grad_entropy = grad_outputs
        assert grad_logprob is not None
        with linear.full_precision(hidden.device):
            total = HeadGradients(head, hidden.to(dtype), ctx.needs_input_grad[:3])
            for rows in linear.chunks(hidden.shape[0], weight.shape[0], dtype, ctx.workspace):
                chunk = hidden[rows].to(dtype)
                by_logprob = grad_logprob[rows] / ctx.temperature
                by_entropy = None if grad_entropy is None else grad_entropy[rows] / ctx.temperature
                logits = head.logits(chunk) if kept is None else kept
                total.add(rows, chunk, rows_backward(logits, tokens[rows], by_logprob, by_entropy))
        grad_hidden = None if total.hidden is None else total.hidden.to(hidden.dtype)
        grad_weight = None if total.weight is None else total.weight.to(weight.dtype)
        grad_bias = None if total.bias is None or bias is None else total.bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _reference_linear(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    mask: Tensor | None,
    temperature: float,
    workspace: int,
    with_entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    shape, num_classes = tokens.shape, weight.shape[0]
    hidden, tokens = hidden.reshape(-1, hidden.shape[-1]), tokens.reshape(-1)
    counted = None
    if mask is not None:
        mask = mask.reshape(-1)
        if hidden.device.type == "cpu" and not torch.compiler.is_compiling():
            # Padding is about half of a batch of instructions; on the CPU skipping it costs no synchronisation.
            counted = mask.nonzero().squeeze(1)
            hidden, tokens, mask = hidden.index_select(0, counted), tokens.index_select(0, counted), None
        else:
            hidden = torch.where(mask.unsqueeze(-1), hidden, 0.0)
    tokens, in_range = readable_tokens(tokens, mask, num_classes)
    with linear.full_precision(hidden.device):
        results = _LinearLogprobs.apply(hidden, weight, bias, tokens, temperature, workspace, with_entropy)
    outputs = []
    for result in results:  # pyright: ignore
        if result is not None:
            result = hide_invalid(result, mask, in_range)
            if counted is not None:
                result = result.new_zeros(shape.numel()).index_copy(0, counted, result)
            result = result.view(shape)
        outputs.append(result)
    return outputs[0], outputs[1]


def _reference_linear_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    mask: Tensor | None,
    temperature: float,
    workspace: int,
) -> Tensor:
    return _reference_linear(hidden, weight, bias, tokens, mask, temperature, workspace, False)[0]


def _reference_linear_token_logprobs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    mask: Tensor | None,
    temperature: float,
    workspace: int,
) -> tuple[Tensor, Tensor]:
    logprob, entropy = _reference_linear(hidden, weight, bias, tokens, mask, temperature, workspace, True)
    assert entropy is not None
    return logprob, entropy


TOKEN_LOGPROBS = dispatch.declare("logprobs.token_logprobs", _reference_token_logprobs)
TOKEN_LOGPROBS_AND_ENTROPY = dispatch.declare(
    "logprobs.token_logprobs_and_entropy", _reference_token_logprobs_and_entropy
)
LINEAR_TOKEN_LOGPROBS = dispatch.declare("logprobs.linear_token_logprobs", _reference_linear_token_logprobs)
LINEAR_TOKEN_LOGPROBS_AND_ENTROPY = dispatch.declare(
    "logprobs.linear_token_logprobs_and_entropy", _reference_linear_token_logprobs_and_entropy
)


def _check_logits(
    logits: Tensor, tokens: Tensor, temperature: float, mask: Tensor | None, inplace_backward: bool
) -> tuple[Tensor, Tensor | None]:
    checks.floating("logits", logits)
    checks.flag("inplace_backward", inplace_backward)
    if inplace_backward:
        checks.not_overlapping("logits", logits)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits: found shape {tuple(logits.shape)}, accepted is [..., V] with V of at least 1")
    return linear.check_tokens("logits", logits, tokens, temperature, mask, logits.shape[-1])


def token_logprobs(
    logits: Tensor,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    inplace_backward: bool = False,
) -> Tensor:
    """Log-probability of each token: `logits[token] / T - logsumexp(logits / T)`, in nats.

    logits: [..., V] floating. tokens: [...] int64 or int32, from 0 to V - 1 where they count.
    temperature: T, a finite number above 0.
    mask: [...] bool, or 0 and 1 of any dtype; True where a position counts, elsewhere neither logits nor token are
        read and the result is 0. None: tokens of -100 do not count, all others do.
    inplace_backward: the backward writes the gradient over the logits, which saves their memory once more. Any other
        backward that needs the logits, a second one of this result included, then raises RuntimeError. No two logits
        may share memory, as those of an expanded tensor do.
    Returns: [...] float32 (float64 for float64 logits); `.to(logits.dtype)` gives the input's, rounded once.
    Raises: ValueError for other shapes, dtypes, devices or values. On accelerators the values of tokens are checked
        only under `validate()`; an id out of range is never dereferenced and gives NaN.
    """
    tokens, mask = _check_logits(logits, tokens, temperature, mask, inplace_backward)
    return dispatch.run(TOKEN_LOGPROBS, logits, tokens, mask, temperature, inplace_backward)


def token_logprobs_and_entropy(
    logits: Tensor,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    inplace_backward: bool = False,
) -> tuple[Tensor, Tensor]:
    """`token_logprobs`, and the entropy of `softmax(logits / T)` in nats, both with gradients.

    A logit of -inf adds nothing to the entropy. Arguments and errors are those of `token_logprobs`.
    """
    tokens, mask = _check_logits(logits, tokens, temperature, mask, inplace_backward)
    return dispatch.run(TOKEN_LOGPROBS_AND_ENTROPY, logits, tokens, mask, temperature, inplace_backward)


def linear_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    max_workspace_bytes: int | None = None,
) -> Tensor:
    """`token_logprobs(hidden @ weight.T + bias, tokens)` without holding the logits.

    hidden: [..., D] floating. weight: [V, D] floating, the language-model head. bias: [V] or None.
    tokens, temperature, mask: as in `token_logprobs`; hidden states are not read where the mask is False.
    max_workspace_bytes: for the logits of a chunk of tokens; None: 96 MiB on the CPU, 1 GiB elsewhere. With gradients
    a compiled backend holds it until the backward.
    Returns: [...] float32 (float64 for float64 inputs), with gradients for hidden, weight and bias.
    Raises: ValueError for other shapes, dtypes, devices or values.
    """
    linear.check_head(hidden, weight, bias)
    tokens, mask = linear.check_tokens("hidden", hidden, tokens, temperature, mask, weight.shape[0])
    workspace = linear.workspace_bytes(max_workspace_bytes, weight)
    return dispatch.run(LINEAR_TOKEN_LOGPROBS, hidden, weight, bias, tokens, mask, temperature, workspace)


def linear_token_logprobs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    max_workspace_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`linear_token_logprobs`, and the entropy as in `token_logprobs_and_entropy`, both with gradients."""
    linear.check_head(hidden, weight, bias)
    tokens, mask = linear.check_tokens("hidden", hidden, tokens, temperature, mask, weight.shape[0])
    workspace = linear.workspace_bytes(max_workspace_bytes, weight)
    return dispatch.run(LINEAR_TOKEN_LOGPROBS_AND_ENTROPY, hidden, weight, bias, tokens, mask, temperature, workspace)
