"""Next-token logits of a batch that shrinks as its rows finish."""

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from instructrl import threads
from instructrl.models.backbone import position_ids
from instructrl.models.policy import Policy

# Tokens for which a cache makes room at once, and elements to which a row of logits is padded: what lies aligned is
# multiplied faster.
_ROOM, _ROW_ALIGNMENT = 64, 64


class Decoder:
    """The key-value cache of a batch of left-padded prompts. Use without gradients.

    prompt: [B, P] int64. prompt_mask: [B, P] bool.
    """

    def __init__(self, policy: Policy, prompt: Tensor, prompt_mask: Tensor) -> None:
        self._network = policy.lm.base_model
        self._weight, self._bias = policy.output_embedding()
        self._cache = DynamicCache(config=policy.lm.config)
        self._cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in self._cache.layers]
        num_classes = self._weight.shape[0]
        self._logits = self._weight.new_empty(len(prompt), -(-num_classes // _ROW_ALIGNMENT) * _ROW_ALIGNMENT)
        self._mask = prompt_mask.long()
        self._next_position = self._mask.sum(dim=1, keepdim=True)
        self._last_hidden = self._forward(prompt, position_ids(prompt_mask))

    def logits(self) -> Tensor:
        """[B, V] for the next token of each row that is left; the next call writes over them."""
        logits = self._logits[: len(self._last_hidden), : self._weight.shape[0]]
        torch.mm(self._last_hidden.to(self._weight.dtype), self._weight.t(), out=logits)
        return logits if self._bias is None else logits.add_(self._bias)

    def append(self, tokens: Tensor) -> None:
        """Extend every row by one token. tokens: [B] int64."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self._last_hidden = self._forward(tokens[:, None], self._next_position)
        self._next_position = self._next_position + 1

    def drop(self, rows: Tensor) -> Tensor:
        """Drop rows: [B] bool. Returns the old places of those that are left, [R] int64, in their new order.

        The last rows take the places of the dropped ones, so that no other row of the cache is copied.
        """
        num_left = len(rows) - int(rows.sum())
        order = torch.arange(num_left, device=rows.device)
        order[rows[:num_left]] = num_left + (~rows[num_left:]).nonzero().squeeze(1)
        self._cache.batch_select_indices(order)
        self._mask = self._mask[order]
        self._next_position = self._next_position[order]
        self._last_hidden = self._last_hidden[order]
        return order

    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        threads.choose(self._network, tokens.numel())
        output = self._network(
            input_ids=tokens,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]


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
