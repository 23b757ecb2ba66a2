"""Next-token logits of a batch that shrinks as its rows finish."""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from instructrl.models.backbone import position_ids
from instructrl.models.policy import Policy


class Decoder:
    """The key-value cache of a batch of left-padded prompts. Use without gradients.

    prompt: [B, P] int64. prompt_mask: [B, P] bool.
    """

    def __init__(self, policy: Policy, prompt: Tensor, prompt_mask: Tensor) -> None:
        self._network = policy.lm.base_model
        self._weight, self._bias = policy.output_embedding()
        self._cache = DynamicCache(config=policy.lm.config)
        self._mask = prompt_mask.long()
        self._next_position = self._mask.sum(dim=1, keepdim=True)
        self._last_hidden = self._forward(prompt, position_ids(prompt_mask))

    def logits(self) -> Tensor:
        """[B, V] for the next token of each row that is left."""
        return F.linear(self._last_hidden, self._weight, self._bias)

    def append(self, tokens: Tensor) -> None:
        """Extend every row by one token. tokens: [B] int64."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        self._last_hidden = self._forward(tokens[:, None], self._next_position)
        self._next_position = self._next_position + 1

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these. rows: [R] int64."""
        self._cache.batch_select_indices(rows)
        self._mask = self._mask[rows]
        self._next_position = self._next_position[rows]
        self._last_hidden = self._last_hidden[rows]

    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        output = self._network(
            input_ids=tokens,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]
