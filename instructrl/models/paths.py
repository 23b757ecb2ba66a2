"""The ways in which sequences can be run through a network, as rows of tables, and which of them a network takes.

Every way is meant to give the hidden states of the network's plain forward pass of single sequences. Whether it does
is for `instructrl.models.conformance` to find out; nothing here assumes anything of an architecture.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from instructrl import threads
from instructrl.models.adapters import named_products
from instructrl.ops.logit_settings import LogitSettings
from instructrl.types import SharedPrompts

# What a network raises for inputs that it does not know, by the ways in which they can be strange to it.
OF_A_NETWORK = (ValueError, TypeError, AttributeError, LookupError, RuntimeError, ImportError, AssertionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """The row of each table that a network takes.

    batch: of `BATCHES`. shared: of `SHARED`, or `SEPARATE`. steps: of `instructrl.models.decoding.STEPS`.
    longest: tokens of a sequence up to which a state depends on what stands before it alone; None where that is so
    for every length (rotary embeddings may change for the whole sequence where it gets longer than some border).
    no_scalar_head: "" where the architecture can have one; else its name and why not. scale, softcap: what is made of
    the projection of a state, as `LogitSettings` has it.
    """

    batch: str
    shared: str
    steps: str
    longest: int | None = None
    no_scalar_head: str = ""
    scale: float = 1.0
    softcap: float | None = None

    def logit_settings(self) -> LogitSettings:
        return LogitSettings(scale=self.scale, softcap=self.softcap)


def position_ids(mask: Tensor) -> Tensor:
    """Exclusive count of real tokens before each column. mask: [B, L] bool. Returns [B, L] int64."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def _padded(network: PreTrainedModel, tokens: Tensor, mask: Tensor) -> Tensor:
    return _states(network, input_ids=tokens, attention_mask=mask.long(), position_ids=position_ids(mask))


def _without_positions(network: PreTrainedModel, tokens: Tensor, mask: Tensor) -> Tensor:
    """For networks that make their positions of the mask, and take none."""
    return _states(network, input_ids=tokens, attention_mask=mask.long())


def _moved_left(network: PreTrainedModel, tokens: Tensor, mask: Tensor) -> Tensor:
    """For networks that count positions by columns: no padding before a token, and none behind is seen."""
    columns = (~mask).long().argsort(dim=1, stable=True)
    states = _states(network, input_ids=tokens.gather(1, columns), attention_mask=mask.gather(1, columns).long())
    return states.gather(1, columns.argsort(dim=1)[:, :, None].expand_as(states))


def _alone(network: PreTrainedModel, tokens: Tensor, mask: Tensor) -> Tensor:
    """One row after the other, without padding."""
    rows = []
    for row, counted in zip(tokens, mask, strict=True):
        states = _states(network, input_ids=row[counted][None])[0]
        rows.append(states.new_zeros(len(row), states.shape[-1]).masked_scatter(counted[:, None], states))
    return torch.stack(rows)


def _states(network: PreTrainedModel, input_ids: Tensor, **inputs: Any) -> Tensor:
    threads.choose(named_products(network.base_model), input_ids.numel())
    return network.base_model(input_ids=input_ids, **inputs, use_cache=False).last_hidden_state


# (network, tokens [B, L] int64, mask [B, L] bool) -> last hidden states [B, L, D], arbitrary at padded columns. Real
# tokens of a row stand side by side. The faster first.
BATCHES: Mapping[str, Callable[[PreTrainedModel, Tensor, Tensor], Tensor]] = {
    "padded": _padded,
    "padded, no positions": _without_positions,
    "padded on the right": _moved_left,
    "one by one": _alone,
}


def _visible(rows: SharedPrompts) -> Tensor:
    """A token sees its prompt and what stands before it in its own response: [B, L, L] bool."""
    segments = rows.segments
    behind = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()
    same = segments[:, :, None] == segments[:, None, :]
    return (same | (segments == 0)[:, None, :]) & behind


def _in_window(rows: SharedPrompts, window: int) -> Tensor:
    """By positions and not by columns: between a response and its prompt stand others."""
    return rows.positions[:, :, None] - rows.positions[:, None, :] < window


def _in_chunk(rows: SharedPrompts, size: int) -> Tensor:
    chunks = rows.positions // size
    return chunks[:, :, None] == chunks[:, None, :]


def _everything(rows: SharedPrompts, size: int | None) -> Tensor:
    return torch.ones((), dtype=torch.bool, device=rows.tokens.device)


# transformers' name of a kind of layer -> where the configuration has its size, and what such a layer sees.
_KINDS: Mapping[str, tuple[str, Callable[[SharedPrompts, Any], Tensor]]] = {
    "full_attention": ("", _everything),
    "sliding_attention": ("sliding_window", _in_window),
    "chunked_attention": ("attention_chunk_size", _in_chunk),
}


def _mask(network: PreTrainedModel, rows: SharedPrompts, kind: str) -> Tensor:
    """What a layer of this kind adds to its attention scores: [B, 1, L, L]."""
    field, seen = _KINDS[kind]
    size = getattr(network.config.get_text_config(), field, None) if field else None
    embeddings: Any = network.get_input_embeddings()
    dtype = embeddings.weight.dtype
    visible = _visible(rows) & seen(rows, size)
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        ~visible, torch.finfo(dtype).min
    )[:, None]


def _mask_by_kind(network: PreTrainedModel, rows: SharedPrompts) -> Any:
    kinds = dict.fromkeys(network.config.get_text_config().layer_types)
    return {kind: _mask(network, rows, kind) for kind in kinds}


# (network, rows) -> the `attention_mask` with which the network reads shared prompts.
SHARED: Mapping[str, Callable[[PreTrainedModel, SharedPrompts], Any]] = {
    "a mask for each kind of layer": _mask_by_kind,
    "a mask with the window": lambda network, rows: _mask(network, rows, "sliding_attention"),
    "one mask": lambda network, rows: _mask(network, rows, "full_attention"),
}
# Where no mask makes shared prompts right: one sequence a completion.
SEPARATE = "separate"


def shared_prompt_states(network: PreTrainedModel, rows: SharedPrompts, name: str) -> Tensor:
    """Last hidden states of prompts that are read once for all their responses: [B, L, D]. name: a row of `SHARED`.

    A token has the position that it has in a sequence of its own, so the states are those of separate sequences.
    """
    mask = SHARED[name](network, rows)
    return _states(network, input_ids=rows.tokens, attention_mask=mask, position_ids=rows.positions)
