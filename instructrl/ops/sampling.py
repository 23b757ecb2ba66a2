"""Sampling of the next token from given uniform numbers."""

import torch
from torch import Tensor

from instructrl.ops import checks, dispatch
from instructrl.ops.logit_settings import PLAIN, LogitSettings
from instructrl.ops.precision import widest
from instructrl.ops.softmax_rows import shaped_logits


def _reference(
    logits: Tensor, uniforms: Tensor, allowed: Tensor | None, temperature: float, settings: LogitSettings
) -> Tensor:
    shaped = shaped_logits(logits.to(checks.accumulation_dtype(logits)), temperature, settings, allowed)
    probabilities = torch.softmax(shaped, dim=-1)
    cumulative = probabilities.cumsum(-1, dtype=widest(logits.device))
    total = cumulative[:, -1:]
    # A number below 1 times the total rounds to less than the total, so it is found before the end of the row. The
    # bound is for rows of NaN, which are nobody's sample but must not become an index outside of the vocabulary.
    chosen = torch.searchsorted(cumulative, uniforms.to(cumulative.dtype).unsqueeze(1) * total, right=True)
    chosen = chosen.clamp(max=logits.shape[1] - 1)
    # A parallel cumulative sum need not be monotone, so it can step up where the probability is 0.
    positive = probabilities.gather(1, chosen) > 0
    return torch.where(positive, chosen, probabilities.argmax(-1, keepdim=True)).squeeze(1)


SAMPLE_TOKENS = dispatch.declare("sampling.sample_tokens", _reference)


def sample_tokens(
    logits: Tensor,
    uniforms: Tensor,
    *,
    temperature: float = 1.0,
    allowed: Tensor | None = None,
    logit_settings: LogitSettings = PLAIN,
) -> Tensor:
    """The first token whose cumulative probability under `softmax(z / temperature)` exceeds the uniform number, with
    the logits for z.

    The caller supplies the random numbers, for example keyed by episode and position, so that rows may leave the batch
    without changing a sample. A token of probability 0 is never returned.

    logits: [B, V] floating; -inf excludes a token; at least one in each row is finite.
    uniforms: [B] float32 or float64 in [0, 1).
    temperature: a finite number above 0.
    allowed: [V] or [B, V] bool, or None for all: other tokens are never returned. At least one in each row is allowed.
    logit_settings: scale and soft cap, which make z of the logits.
    Returns: [B] int64.
    Raises: ValueError for other shapes, dtypes, devices or values.
    """
    checks.floating("logits", logits)
    checks.dims("logits", logits, 2, "[B, V]")
    checks.temperature(temperature)
    if logits.shape[1] == 0:
        raise ValueError("logits: found a vocabulary of 0 tokens, accepted is at least 1")
    checks.is_tensor("uniforms", uniforms)
    if uniforms.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"uniforms: found dtype {uniforms.dtype}, accepted are float32, float64")
    checks.like("uniforms", uniforms, "logits", (logits.shape[0],), logits.device)
    checks.values_within("uniforms", uniforms, 0.0, 1.0, "a number outside", "numbers in [0, 1)")
    allowed = checks.allowed_ids(allowed, logits, in_each_row=True)
    checks.settings("logit_settings", logit_settings, LogitSettings)
    return dispatch.run(SAMPLE_TOKENS, logits, uniforms, allowed, temperature, logit_settings)
