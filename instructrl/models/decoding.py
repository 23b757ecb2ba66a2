"""Next-token projections of a batch that shrinks as its rows finish."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from instructrl import threads
from instructrl.models.adapters import named_products
from instructrl.models.paths import BATCHES, position_ids

if TYPE_CHECKING:  # a policy asks for its paths, of which STEPS is one
    from instructrl.models.policy import Policy

# Tokens for which a cache makes room at once, and elements to which a row of logits is padded: what lies aligned is
# multiplied faster.
_ROOM, _ROW_ALIGNMENT = 64, 64
# Tokens that prompts have to have in common for these to be read by themselves: it is a pass more.
_SHORTEST_PREFIX = 32


class Decoder:
    """Next-token projections of a batch of left-padded prompts. Use without gradients.

    prompt: [B, P] int64. prompt_mask: [B, P] bool.
    """

    def __init__(self, policy: Policy, prompt: Tensor, prompt_mask: Tensor) -> None:
        self._weight, self._bias = policy.output_embedding()
        num_classes = self._weight.shape[0]
        self._logits = self._weight.new_empty(len(prompt), -(-num_classes // _ROW_ALIGNMENT) * _ROW_ALIGNMENT)
        self._states = STEPS[policy.paths.steps](policy.lm, policy.paths.batch, prompt, prompt_mask)
        self._last_hidden = self._states.start()

    def projection(self) -> Tensor:
        """[B, V] for the next token of each row that is left, of which `Policy.logit_settings` says what logits are;
        the next call writes over it."""
        logits = self._logits[: len(self._last_hidden), : self._weight.shape[0]]
        torch.mm(self._last_hidden.to(self._weight.dtype), self._weight.t(), out=logits)
        return logits if self._bias is None else logits.add_(self._bias)

    def append(self, tokens: Tensor) -> None:
        """Extend every row by one token. tokens: [B] int64."""
        self._last_hidden = self._states.append(tokens)

    def drop(self, rows: Tensor) -> Tensor:
        """Drop rows: [B] bool. Returns the old places of those that are left, [R] int64, in their new order.

        The last rows take the places of the dropped ones, so that no other row of a cache is copied.
        """
        num_left = len(rows) - int(rows.sum())
        order = torch.arange(num_left, device=rows.device)
        order[rows[:num_left]] = num_left + (~rows[num_left:]).nonzero().squeeze(1)
        self._states.keep(order)
        self._last_hidden = self._last_hidden[order]
        return order


class States(Protocol):
    """The hidden state of the last token of each row, while rows grow."""

    def start(self) -> Tensor:
        """Of the prompts: [B, D]."""
        ...

    def append(self, tokens: Tensor) -> Tensor:
        """Of one token more in each row. tokens: [B] int64. Returns [B, D]."""
        ...

    def keep(self, order: Tensor) -> None:
        """Leave these rows, in this order: [R] int64."""
        ...


class _CachedStates:
    """From the keys and values of what was read before."""

    takes_positions = True

    def __init__(self, network: PreTrainedModel, batch: str, prompt: Tensor, prompt_mask: Tensor) -> None:
        self._network, self._prompt, self._prompt_mask = network.base_model, prompt, prompt_mask
        self._cache = DynamicCache(config=network.config)
        self._cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in self._cache.layers]
        self._mask = prompt_mask.long()
        self._next_position = self._mask.sum(dim=1, keepdim=True)

    def start(self) -> Tensor:
        return self._forward(self._prompt, position_ids(self._prompt_mask))

    def append(self, tokens: Tensor) -> Tensor:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        hidden = self._forward(tokens[:, None], self._next_position)
        self._next_position = self._next_position + 1
        return hidden

    def keep(self, order: Tensor) -> None:
        layers: list[Any] = self._cache.layers
        for layer in layers:
            # The states of convolutions have no other way to leave.
            (layer.reorder_cache if hasattr(layer, "conv_states") else layer.batch_select_indices)(order)
        self._mask = self._mask[order]
        self._next_position = self._next_position[order]

    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        given = {"position_ids": positions} if self.takes_positions else {}
        threads.choose(named_products(self._network), tokens.numel())
        output = self._network(
            input_ids=tokens, attention_mask=self._mask, past_key_values=self._cache, use_cache=True, **given
        )
        return output.last_hidden_state[:, -1]


class _CachedAfterPrefix(_CachedStates):
    """Where all prompts begin with the same tokens, these are read once: examples before questions, or what a chat
    template puts before everything. Padding then stands between them and the rest of a prompt."""

    shortest = _SHORTEST_PREFIX

    def start(self) -> Tensor:
        length = self._length_of_prefix()
        if length < self.shortest or len(self._prompt) == 1:
            return super().start()
        lengths, width = self._mask.sum(dim=1), self._mask.shape[1]
        rest = int(lengths.max()) - length
        first = width - lengths[:1] + torch.arange(length, device=lengths.device)
        every, behind = self._mask, torch.arange(rest, device=lengths.device) >= rest - (lengths - length)[:, None]
        self._mask = every[:1, :1].new_ones(1, length)
        self._forward(self._prompt[:1, first], torch.arange(length, device=lengths.device)[None])
        self._cache.batch_repeat_interleave(len(self._prompt))
        self._mask = torch.cat([every.new_ones(len(every), length), behind.long()], dim=1)
        return self._forward(self._prompt[:, width - rest :], position_ids(self._mask.bool())[:, length:])

    def _length_of_prefix(self) -> int:
        """Tokens with which all prompts begin; each has one more at least, whose state is asked for."""
        lengths = self._mask.sum(dim=1)
        columns = self._mask.shape[1] - lengths[:, None] + torch.arange(int(lengths.min()) - 1, device=lengths.device)
        tokens = self._prompt.gather(1, columns)
        return int((tokens == tokens[:1]).all(dim=0).long().cumprod(0).sum())


class CachedAfterAnyPrefix(_CachedAfterPrefix):
    """However few they are: for the examination of a network."""

    shortest = 1


class _CachedStatesWithoutPositions(_CachedStates):
    """For networks that make positions of the mask, and take none."""

    takes_positions = False


class _CachedByLength:
    """Prompts of the same length share a cache, without padding: for networks that cannot do with it."""

    def __init__(self, network: PreTrainedModel, batch: str, prompt: Tensor, prompt_mask: Tensor) -> None:
        lengths = prompt_mask.sum(dim=1)
        self._groups: list[tuple[Tensor, States]] = []
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            places = rows[:, None], torch.arange(prompt.shape[1] - length, prompt.shape[1], device=prompt.device)
            states = _CachedStatesWithoutPositions(network, batch, prompt[places], prompt_mask[places])
            self._groups.append((rows, states))

    def start(self) -> Tensor:
        return self._together([states.start() for _, states in self._groups])

    def append(self, tokens: Tensor) -> Tensor:
        return self._together([states.append(tokens[rows]) for rows, states in self._groups])

    def keep(self, order: Tensor) -> None:
        kept = []
        for rows, states in self._groups:
            found = (rows[:, None] == order[None, :]).nonzero()  # of a group's row and of its new place, those left
            if len(found):
                states.keep(found[:, 0])
                kept.append((found[:, 1], states))
        self._groups = kept

    def _together(self, parts: list[Tensor]) -> Tensor:
        rows = torch.cat([rows for rows, _ in self._groups])
        return torch.cat(parts)[rows.argsort()]


class _RecomputedStates:
    """Every token read anew at each step: for networks whose cache loses something."""

    def __init__(self, network: PreTrainedModel, batch: str, prompt: Tensor, prompt_mask: Tensor) -> None:
        self._states, self._tokens, self._mask = partial(BATCHES[batch], network), prompt, prompt_mask

    def start(self) -> Tensor:
        return self._states(self._tokens, self._mask)[:, -1]

    def append(self, tokens: Tensor) -> Tensor:
        self._tokens = torch.cat([self._tokens, tokens[:, None]], dim=1)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        return self.start()

    def keep(self, order: Tensor) -> None:
        self._tokens, self._mask = self._tokens[order], self._mask[order]


# (network, row of `BATCHES`, prompt [B, P] int64 padded on the left, its mask [B, P] bool) -> states. The faster first.
STEPS: Mapping[str, Callable[[PreTrainedModel, str, Tensor, Tensor], States]] = {
    "cached, prefix once": _CachedAfterPrefix,
    "cached": _CachedStates,
    "cached, no positions": _CachedStatesWithoutPositions,
    "cached by length": _CachedByLength,
    "read anew": _RecomputedStates,
}


class _RoomyLayer(DynamicLayer):
    """Keys and values of a layer with room behind them: a token is written, what stands before it is not copied.

    `keys` and `values`, [B, heads, tokens, width], are views of larger tensors.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        new = (key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._length, self._stores = 0, tuple(x[:, :, :0] for x in new)
        start, self._length = self._length, self._length + key_states.shape[2]
        if self._length > self._stores[0].shape[2]:
            self._stores = tuple(
                _with_room(x[: len(key_states), :, :start], self._length + _ROOM) for x in self._stores
            )
        for store, states in zip(self._stores, new, strict=True):
            store[: len(states), :, start : self._length] = states
        return self._views(len(key_states))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._stores = tuple(
            _with_room(x[:, :, : self._length].repeat_interleave(repeats, dim=0), self._length + _ROOM)
            for x in self._stores
        )
        self._views(len(self._stores[0]))

    def batch_select_indices(self, indices: Tensor) -> None:
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
        for store in self._stores:
            store[moved, :, : self._length] = store[indices[moved], :, : self._length]
        self._views(len(indices))

    def _views(self, num_rows: int) -> tuple[Tensor, Tensor]:
        keys, values = (store[:num_rows, :, : self._length] for store in self._stores)
        self.keys, self.values = keys, values
        return keys, values


def _with_room(x: Tensor, length: int) -> Tensor:
    """x: [B, heads, tokens, width] at the start of a tensor of so many tokens."""
    store = x.new_empty(*x.shape[:2], length, x.shape[3])
    store[:, :, : x.shape[2]] = x
    return store
