"""Log-probabilities of given tokens and the entropy, from logits and from hidden states."""

from typing import Any

import torch
from torch import Tensor

from instructrl.ops import checks, dispatch, linear
from instructrl.ops.autograd import first_order
from instructrl.ops.linear import HeadGradients, LinearHead
from instructrl.ops.logit_settings import PLAIN, LogitSettings
from instructrl.ops.softmax_rows import (
    by_logits,
    hide_invalid,
    readable_tokens,
    rows_backward,
    rows_forward,
    shaped_logits,
)

# Rows of the in-place backward are taken in chunks of this size, so that it needs no second [N, V].
_INPLACE_WORKSPACE_BYTES = 64 * 2**20


class _InplaceBackward(torch.autograd.Function):
    """Log-probabilities whose backward overwrites the logits with their gradient.

    The write bumps the version of the logits, so whoever saved them for a backward of their own gets autograd's
    error, a second backward of this function included.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        tokens: Tensor,
        mask: Tensor | None,
        allowed: Tensor | None,
        temperature: float,
        settings: LogitSettings,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.temperature, ctx.settings, ctx.with_entropy = temperature, settings, with_entropy
        ctx.save_for_backward(logits, tokens, mask, allowed)
        ctx.set_materialize_grads(False)
        return _forward(logits, tokens, mask, allowed, temperature, settings, with_entropy)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore
        logits, tokens, mask, allowed = ctx.saved_tensors
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
            part = rows[chunk].to(dtype)
            if keep is not None:
                part = torch.where(keep[chunk].unsqueeze(-1), part, 0.0)
            shape = (ctx.temperature, ctx.settings, allowed)
            shaped = shaped_logits(part, *shape)
            grad_entropy = grads[1][chunk] if ctx.with_entropy else None
            gradient = rows_backward(shaped, tokens[chunk], grads[0][chunk], grad_entropy)
            rows[chunk] = by_logits(gradient, shaped, *shape).to(rows.dtype)
        if rows.data_ptr() != logits.data_ptr():
            logits.copy_(rows.view(logits.shape))
        return (logits, *(None,) * 6)


def _forward(
    logits: Tensor,
    tokens: Tensor,
    mask: Tensor | None,
    allowed: Tensor | None,
    temperature: float,
    settings: LogitSettings,
    with_entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    tokens, in_range = readable_tokens(tokens, mask, logits.shape[-1])
    logits = logits.to(checks.accumulation_dtype(logits))
    if mask is not None:
        logits = torch.where(mask.unsqueeze(-1), logits, 0.0)
    logprob, entropy = rows_forward(shaped_logits(logits, temperature, settings, allowed), tokens, with_entropy)
    hidden_entropy = None if entropy is None else hide_invalid(entropy, mask, in_range)
    return hide_invalid(logprob, mask, in_range), hidden_entropy


def _reference_rows(*args: Any) -> tuple[Tensor, Tensor | None]:
    """args: of the reference, then whether the entropy is wanted."""
    *inputs, inplace_backward, with_entropy = args
    function = _InplaceBackward.apply if inplace_backward else _forward
    return function(*inputs, with_entropy)  # pyright: ignore


def _reference_token_logprobs(
    logits: Tensor,
    tokens: Tensor,
    mask: Tensor | None,
    allowed: Tensor | None,
    temperature: float,
    settings: LogitSettings,
    inplace_backward: bool,
) -> Tensor:
    return _reference_rows(logits, tokens, mask, allowed, temperature, settings, inplace_backward, False)[0]


def _reference_token_logprobs_and_entropy(
    logits: Tensor,
    tokens: Tensor,
    mask: Tensor | None,
    allowed: Tensor | None,
    temperature: float,
    settings: LogitSettings,
    inplace_backward: bool,
) -> tuple[Tensor, Tensor]:
    results = _reference_rows(logits, tokens, mask, allowed, temperature, settings, inplace_backward, True)
    assert results[1] is not None
    return results[0], results[1]


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
        settings: LogitSettings,
        workspace: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.shape, ctx.workspace = (temperature, settings), workspace
        dtype = checks.accumulation_dtype(hidden, weight)
        head = LinearHead(weight.to(dtype), None if bias is None else bias.to(dtype), temperature, settings)
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
        head = LinearHead(weight.to(dtype), None if bias is None else bias.to(dtype), *ctx.shape)
        grad_logprob, grad_entropy = grad_outputs
        assert grad_logprob is not None
        with linear.full_precision(hidden.device):
            total = HeadGradients(head, hidden.to(dtype), ctx.needs_input_grad[:3])
            for rows in linear.chunks(hidden.shape[0], weight.shape[0], dtype, ctx.workspace):
                chunk = hidden[rows].to(dtype)
                by_logprob = grad_logprob[rows] / head.temperature
                by_entropy = None if grad_entropy is None else grad_entropy[rows] / head.temperature
                logits = head.logits(chunk) if kept is None else kept
                total.add(rows, chunk, rows_backward(logits, tokens[rows], by_logprob, by_entropy), logits)
        grad_hidden = None if total.hidden is None else total.hidden.to(hidden.dtype)
        grad_weight = None if total.weight is None else total.weight.to(weight.dtype)
        grad_bias = None if total.bias is None or bias is None else total.bias.to(bias.dtype)
        return (grad_hidden, grad_weight, grad_bias, *(None,) * 5)


def reference_linear(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    mask: Tensor | None,
    temperature: float,
    settings: LogitSettings,
    workspace: int,
    with_entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    """tokens: [...], or [..., K]: K given ids a row. The entropy is for one token a row only."""
    shape, num_classes, each = tokens.shape, weight.shape[0], tokens.shape[hidden.dim() - 1 :]
    hidden, tokens = hidden.reshape(-1, hidden.shape[-1]), tokens.reshape(-1, *each)
    num_rows = hidden.shape[0]
    counted = None
    if mask is not None:
        mask = mask.reshape(-1)
        if hidden.device.type == "cpu" and not torch.compiler.is_compiling():
            # Padding is about half of a batch of instructions; on the CPU skipping it costs no synchronisation.
            counted = mask.nonzero().squeeze(1)
            hidden, tokens, mask = hidden.index_select(0, counted), tokens.index_select(0, counted), None
        else:
            hidden = torch.where(mask.unsqueeze(-1), hidden, 0.0)
            mask = mask.unsqueeze(-1) if each else mask
    tokens, in_range = readable_tokens(tokens, mask, num_classes)
    with linear.full_precision(hidden.device):
        results = _LinearLogprobs.apply(hidden, weight, bias, tokens, temperature, settings, workspace, with_entropy)
    outputs = []
    for result in results:  # pyright: ignore
        if result is not None:
            result = hide_invalid(result, mask, in_range)
            if counted is not None:
                result = result.new_zeros((num_rows, *result.shape[1:])).index_copy(0, counted, result)
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
    settings: LogitSettings,
    workspace: int,
) -> Tensor:
    return reference_linear(hidden, weight, bias, tokens, mask, temperature, settings, workspace, False)[0]


def _reference_linear_token_logprobs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    mask: Tensor | None,
    temperature: float,
    settings: LogitSettings,
    workspace: int,
) -> tuple[Tensor, Tensor]:
    logprob, entropy = reference_linear(hidden, weight, bias, tokens, mask, temperature, settings, workspace, True)
    assert entropy is not None
    return logprob, entropy


TOKEN_LOGPROBS = dispatch.declare("logprobs.token_logprobs", _reference_token_logprobs, composed=True)
TOKEN_LOGPROBS_AND_ENTROPY = dispatch.declare(
    "logprobs.token_logprobs_and_entropy", _reference_token_logprobs_and_entropy, composed=True
)
LINEAR_TOKEN_LOGPROBS = dispatch.declare("logprobs.linear_token_logprobs", _reference_linear_token_logprobs)
LINEAR_TOKEN_LOGPROBS_AND_ENTROPY = dispatch.declare(
    "logprobs.linear_token_logprobs_and_entropy", _reference_linear_token_logprobs_and_entropy
)


def check_logits(logits: Tensor, allowed: Tensor | None, settings: LogitSettings) -> Tensor | None:
    """`[..., V]` logits, the `[V]` ids of them that are allowed, which it returns, and settings."""
    checks.floating("logits", logits)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits: found shape {tuple(logits.shape)}, accepted is [..., V] with V of at least 1")
    checks.settings("logit_settings", settings, LogitSettings)
    return checks.allowed_ids(allowed, logits)


def _checked(
    logits: Tensor,
    tokens: Tensor,
    temperature: float,
    mask: Tensor | None,
    allowed: Tensor | None,
    inplace_backward: bool,
    settings: LogitSettings,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Logits, tokens, mask and allowed as the references take them."""
    allowed = check_logits(logits, allowed, settings)
    checks.flag("inplace_backward", inplace_backward)
    if inplace_backward:
        if dispatch.transformed():
            raise ValueError("inplace_backward: found True under a function transform, accepted is False there")
        checks.not_overlapping("logits", logits)
    return logits, *linear.check_tokens("logits", logits, tokens, temperature, mask, logits.shape[-1]), allowed


def token_logprobs(
    logits: Tensor,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    allowed: Tensor | None = None,
    inplace_backward: bool = False,
    logit_settings: LogitSettings = PLAIN,
) -> Tensor:
    """Log-probability of each token: `z[token] / T - logsumexp(z / T)`, in nats, with the logits for z.

    logits: [..., V] floating. tokens: [...] int64 or int32, from 0 to V - 1 where they count.
    temperature: T, a finite number above 0.
    mask: [...] bool, or 0 and 1 of any dtype; True where a position counts; masked logits and tokens are ignored, even
        NaN, and the result there is 0. None: tokens of -100 are masked.
    allowed: [V] bool, or None for all: other ids have probability 0 and gradient 0, as with logits of -inf, and the
        log-probability -inf as a token. In the linear ops, a bias of -inf does the same.
    inplace_backward: the backward pass writes the gradient over the logits, which saves as much memory as they take.
        Any other backward pass that needs the logits, also a second one of this result, then raises RuntimeError.
        Logits may not share memory, as those of an expanded tensor do.
    logit_settings: scale and soft cap, which make z of the logits.
    Returns: [...] float32 (float64 for float64 logits); `.to(logits.dtype)` rounds once to the dtype of the input.
    Raises: ValueError for other shapes, dtypes, devices or values. On accelerators the values of tokens are checked
        only under `validate()`; otherwise an id out of range gives NaN, and no memory out of range is read.
    """
    inputs = _checked(logits, tokens, temperature, mask, allowed, inplace_backward, logit_settings)
    return dispatch.run(TOKEN_LOGPROBS, *inputs, temperature, logit_settings, inplace_backward)


def token_logprobs_and_entropy(
    logits: Tensor,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    allowed: Tensor | None = None,
    inplace_backward: bool = False,
    logit_settings: LogitSettings = PLAIN,
) -> tuple[Tensor, Tensor]:
    """`token_logprobs`, and the entropy of `softmax(z / T)` in nats, both with gradients.

    A logit of -inf adds nothing to the entropy. Arguments and errors are those of `token_logprobs`.
    """
    inputs = _checked(logits, tokens, temperature, mask, allowed, inplace_backward, logit_settings)
    return dispatch.run(TOKEN_LOGPROBS_AND_ENTROPY, *inputs, temperature, logit_settings, inplace_backward)


def linear_token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    max_workspace_bytes: int | None = None,
    logit_settings: LogitSettings = PLAIN,
) -> Tensor:
    """`token_logprobs(hidden @ weight.T + bias, tokens)` without the logits in memory.

    hidden: [..., D] floating. weight: [V, D] floating, the language-model head. bias: [V] or None;
        -inf excludes a token, as in `token_logprobs` with `allowed`.
    tokens, temperature, mask, logit_settings: as in `token_logprobs`; masked hidden states are ignored, even NaN.
    max_workspace_bytes: for the logits of a chunk of tokens; None: 96 MiB on the CPU, 1 GiB elsewhere. With gradients,
    a compiled backend holds it until the backward pass.
    Returns: [...] float32 (float64 for float64 inputs), with gradients for hidden, weight and bias.
    Raises: ValueError for other shapes, dtypes, devices or values.
    """
    linear.check_head(hidden, weight, bias)
    tokens, mask = linear.check_tokens("hidden", hidden, tokens, temperature, mask, weight.shape[0])
    checks.settings("logit_settings", logit_settings, LogitSettings)
    workspace = linear.workspace_bytes(max_workspace_bytes, weight)
    shape = (temperature, logit_settings)
    return dispatch.run(LINEAR_TOKEN_LOGPROBS, hidden, weight, bias, tokens, mask, *shape, workspace)


def linear_token_logprobs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    max_workspace_bytes: int | None = None,
    logit_settings: LogitSettings = PLAIN,
) -> tuple[Tensor, Tensor]:
    """`linear_token_logprobs`, and the entropy as in `token_logprobs_and_entropy`, both with gradients."""
    linear.check_head(hidden, weight, bias)
    tokens, mask = linear.check_tokens("hidden", hidden, tokens, temperature, mask, weight.shape[0])
    checks.settings("logit_settings", logit_settings, LogitSettings)
    workspace = linear.workspace_bytes(max_workspace_bytes, weight)
    shape = (temperature, logit_settings)
    return dispatch.run(LINEAR_TOKEN_LOGPROBS_AND_ENTROPY, hidden, weight, bias, tokens, mask, *shape, workspace)
