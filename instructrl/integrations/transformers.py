"""transformers: the loss of its language models, for its table of losses and for its `Trainer`.

Trainer(..., compute_loss_func=causal_lm_loss)

from instructrl.integrations import transformers
transformers.install()       # for every model that is asked for its loss
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from instructrl.integrations.adapter import Adapter, Replacement
from instructrl.integrations.selfcheck import Draw, Example
from instructrl.ops import logprobs

IGNORED = -100


def causal_lm_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Minus the sum of the log-probabilities of the labels by `num_items_in_batch`, None for their count.

    outputs: of a model, with `logits` [B, T, V]. labels: [B, T], the tokens themselves; -100 does not count.
    """
    return _nll(outputs["logits"], _shifted(labels, IGNORED), num_items_in_batch, IGNORED)


def _shifted(labels: Tensor, ignored: int) -> Tensor:
    """The label of the token that follows, at each."""
    return nn.functional.pad(labels[..., 1:], (0, 1), value=ignored)


def _nll(logits: Tensor, labels: Tensor, number: Tensor | int | None, ignored: int) -> Tensor:
    labels = labels.to(logits.device).view(logits.shape[:-1])
    mask = labels != ignored
    total = -logprobs.token_logprobs(logits, labels, mask=mask).sum()
    if number is None:
        number = mask.sum().clamp(min=1)
    return total / (number.to(total.device) if isinstance(number, Tensor) else number)


def _fits(logits: Tensor, labels: Tensor | None, vocab_size: int) -> bool:
    """transformers reads logits as rows of any vocabulary that divides them."""
    return labels is not None and logits.shape[-1] == vocab_size and labels.numel() * vocab_size == logits.numel()


def _causal(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def causal(
        logits: Tensor,
        labels: Tensor | None,
        vocab_size: int,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = IGNORED,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if shift_labels is None and labels is not None:
            shift_labels = _shifted(labels, ignore_index)
        if shift_labels is None or not _fits(logits, shift_labels, vocab_size):
            return own(logits, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels, **kwargs)
        return _nll(logits, shift_labels, num_items_in_batch, ignore_index)

    return causal


def _masked(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def masked(
        logits: Tensor,
        labels: Tensor,
        vocab_size: int,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = IGNORED,
        **kwargs: Any,
    ) -> Tensor:
        if not _fits(logits, labels, vocab_size):
            return own(logits, labels, vocab_size, num_items_in_batch, ignore_index, **kwargs)
        return _nll(logits, labels, num_items_in_batch, ignore_index)

    return masked


def _in_table(name: str) -> Callable[[Any], Callable[[], None]]:
    """Under every name that the table of losses has it by, from which a model looks it up at each call."""

    def put(ours: Any) -> Callable[[], None]:
        from transformers.loss import loss_utils

        own, table = getattr(loss_utils, name), loss_utils.LOSS_MAPPING
        names = [key for key, loss in table.items() if loss is own]
        table.update(dict.fromkeys(names, ours))
        return lambda: table.update(dict.fromkeys(names, own))

    return put


def _rows(draw: Draw) -> tuple[Tensor, Tensor, int]:
    sizes = draw.sizes
    shape = (sizes.batch, sizes.tokens)
    labels = draw.ids(*shape).masked_fill_(~draw.lengths(*shape), IGNORED)
    return draw.normal(*shape, sizes.vocabulary, scale=2.0, grad=True), labels, sizes.vocabulary


def _causal_calls(draw: Draw) -> list[Example]:
    logits, labels, vocabulary = _rows(draw)
    given = {"labels": None, "shift_labels": labels, "vocab_size": vocabulary, "num_items_in_batch": 7}
    other = {"num_items_in_batch": torch.tensor(11, device=draw.device), "ignore_index": 3}
    return [Example(_rows(draw)), Example((logits,), given), Example(_rows(draw), {"num_items_in_batch": 20}),
            Example((logits.detach().clone().requires_grad_(), labels.clamp(min=3), vocabulary), other)]  # fmt: skip


def _masked_calls(draw: Draw) -> list[Example]:
    return [Example(_rows(draw)), Example(_rows(draw), {"num_items_in_batch": torch.tensor(9, device=draw.device)})]


ADAPTER = Adapter(
    host="transformers",
    distribution="transformers",
    package="transformers",
    tried=("5.23.0",),
    replacements=(
        Replacement(
            name="transformers.loss.loss_utils:ForCausalLMLoss",
            signature="(logits, labels, vocab_size, num_items_in_batch=None, ignore_index=-100, shift_labels=None, "
            "**kwargs)",
            sources=("c7f950f4eb7e",),
            stand_in=_causal,
            examples=_causal_calls,
            put=_in_table("ForCausalLMLoss"),
        ),
        Replacement(
            name="transformers.loss.loss_utils:ForMaskedLMLoss",
            signature="(logits, labels, vocab_size, num_items_in_batch=None, ignore_index=-100, **kwargs)",
            sources=("196a8e764776",),
            stand_in=_masked,
            examples=_masked_calls,
            put=_in_table("ForMaskedLMLoss"),
        ),
    ),
)
install, uninstall = ADAPTER.install, ADAPTER.uninstall
