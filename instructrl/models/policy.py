"""The policy: a causal language model seen as a distribution over responses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from instructrl import profiling, progress
from instructrl.model_names import is_adapter_folder
from instructrl.models.adapter_folders import read_policy, write_adapter
from instructrl.models.adapters import has_adapter, whole
from instructrl.models.backbone import load_causal_lm, response_states, set_residual_dropout, train_without_noise
from instructrl.models.base import Base, Role
from instructrl.models.conformance import paths_of_network
from instructrl.models.folders import save_network
from instructrl.models.masters import in_float32
from instructrl.models.paths import SEPARATE, shared_prompt_states
from instructrl.models.vocabulary import check_vocabulary, learn_every_embedding, num_ids, tell_of_holes
from instructrl.ops import logprobs
from instructrl.ops.logit_settings import LogitSettings
from instructrl.ops.precision import widest
from instructrl.types import Sequences, SharedPrompts


class Policy(Role):
    """Log-probabilities of responses, without ever holding logits.

    num_ids: of the tokens that there are, 0 to num_ids - 1; the distribution is over them. None: as many as the network
    has embeddings, which often are more. `forward` is the log-probability pass, so that a distributed wrapper around
    the module sees it. paths: how its network is run, and what its logits are. base: that the network stands on, where
    it does. Raises ValueError for a network that `conformance` refuses.
    """

    def __init__(self, lm: PreTrainedModel, num_ids: int | None = None, base: Base | None = None) -> None:
        super().__init__()
        self.base = base
        self.paths = paths_of_network(lm)
        learn_every_embedding(lm)
        set_residual_dropout(lm, 0.0)
        self.lm = lm
        self.num_ids = self._num_rows() if num_ids is None else num_ids

    @property
    def logit_settings(self) -> LogitSettings:
        """What logits are of the projection that `head_inputs` and `output_embedding` are for."""
        return self.paths.logit_settings()

    def train(self, mode: bool = True) -> "Policy":
        """See `train_without_noise`."""
        self.training = mode
        train_without_noise(self.lm, mode)
        return self

    @classmethod
    def load(
        cls,
        path: str | Path,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        base_dtype: Literal["float32", "bfloat16"] | None = None,
        in_parts: bool = False,
    ) -> "Policy":
        """From a transformers folder or name, see `load_causal_lm`; or from the folder of an adapter, on its base.

        tokenizer: that it is to be used with, which says what ids there are; None takes the network by itself.
        base_dtype: of an adapter's base; None is what it was trained with. in_parts: each process of the job reads its
        rows alone, see `models.parts`; not of an adapter. Raises ValueError where an id of the tokenizer has no
        embedding, and for an adapter of another base.
        """
        with progress.wait(f"loading {path}"):
            if is_adapter_folder(path):
                lm, base = read_policy(path, base_dtype)
            else:
                lm, base = load_causal_lm(path, in_parts=in_parts), None
        if tokenizer is None:
            return cls(lm, base=base)
        check_vocabulary(lm, path, tokenizer)
        tell_of_holes(tokenizer)
        return cls(lm, num_ids(tokenizer), base)

    def save(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int] = ()) -> None:
        """Write a transformers folder that `AutoModelForCausalLM.from_pretrained` loads; of a policy with an adapter
        the adapter alone, for `PeftModel.from_pretrained`.

        ends: tokens that end a response, as `Encoder.ends` has them; without them, the tokenizer's end of text."""
        end_of_text = tokenizer.eos_token_id
        assert isinstance(end_of_text, int)  # `load_tokenizer` and `Encoder` refuse others
        found = self.ends(*(ends or (end_of_text,)))
        if self.base is not None and has_adapter(self.lm):
            write_adapter(self.lm, self.base, folder, tokenizer, ends=found)
        else:
            save_network(in_float32(whole(self).lm), folder, tokenizer, {}, ends=found)

    def ends(self, *own: int) -> list[int]:
        """The tokens that end a response: the given ones, and where the model's `generation_config` lists several,
        those too. One that it names alone gives way to the given ones."""
        found = getattr(self.lm.generation_config, "eos_token_id", None)
        listed = found if isinstance(found, list) and len(found) > 1 else []
        return list(dict.fromkeys([*own, *(token for token in listed if 0 <= token < self.num_ids)]))

    def forward(self, sequences: Sequences, temperature: float = 1.0) -> Tensor:
        """Log-probability of every response token: [B, T] float32 in nats, 0 where it is not counted."""
        hidden, weight, bias = self.head_inputs(sequences)
        return logprobs.linear_token_logprobs(
            hidden,
            weight,
            sequences.response,
            bias=bias,
            temperature=temperature,
            mask=sequences.counted,
            logit_settings=self.logit_settings,
        )

    def shared_prompt_logprobs(self, rows: SharedPrompts) -> Tensor:
        """Log-probability of each whole response, the sum over its tokens: [B, K] in nats, 0 where there is none; in
        float64, where the device has it.

        Each prompt is read once, where the network can.
        """
        dtype = widest(rows.tokens.device)
        if self.paths.shared == SEPARATE:
            return Policy.forward(self, rows.separate()).sum(dim=1, dtype=dtype).view(rows.last.shape)
        profiling.count_tokens(rows.segments >= 0)
        hidden = _as_multiplied(shared_prompt_states(self.lm, rows, self.paths.shared))
        answered = rows.segments > 0
        columns = rows.predecessors[:, :, None].expand(-1, -1, hidden.shape[2])
        weight, bias = self.output_embedding()
        found = logprobs.linear_token_logprobs(
            hidden.gather(1, columns),
            weight,
            rows.tokens,
            bias=bias,
            mask=answered,
            logit_settings=self.logit_settings,
        )
        sums = torch.zeros(rows.num_rows, rows.last.shape[1] + 1, dtype=dtype, device=found.device)
        return sums.scatter_add(1, rows.segments.clamp(min=0), found.to(dtype))[:, 1:]

    def head_inputs(self, sequences: Sequences) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the `linear_*` operations take: states [B, T, D] of the response tokens, weight [V, D], bias [V].

        V: ids that there are.
        """
        return _as_multiplied(response_states(self.lm, sequences, self.paths)), *self.output_embedding()

    def output_embedding(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, D] and bias [V] of the projection to logits, in the dtype of autocast where that is on.

        The rows of ids that there are, as views: gradients go to the whole weight.
        """
        head = self._head()
        return self._used(head.weight), None if head.bias is None else self._used(head.bias)

    @property
    def has_unused_rows(self) -> bool:
        """Whether the network has embeddings that no id has."""
        return self.num_ids < self._num_rows()

    def _num_rows(self) -> int:
        return len(self._head().weight)

    def _head(self) -> nn.Linear:
        head = self.lm.get_output_embeddings()
        assert isinstance(head, nn.Linear)  # checked when the policy was made
        return head

    def _used(self, rows: Tensor) -> Tensor:
        # A slice of everything would cost the backward pass a copy of the gradient.
        return _as_multiplied(rows[: self.num_ids] if self.has_unused_rows else rows)


def _as_multiplied(x: Tensor) -> Tensor:
    """What autocast does to the factors of a product, for products that it does not see."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def gpt2_policy(*, vocabulary: int, context: int, layers: int, width: int, heads: int, end_of_text: int) -> Policy:
    """A small untrained GPT-2 without dropout, initialised from torch's global generator."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        summary_first_dropout=0.0,
        activation_function="gelu_pytorch_tanh",  # the same function as GPT-2's "gelu_new", in one pass
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )
    return Policy(GPT2LMHeadModel(config))


def neox_policy(*, vocabulary: int, context: int, layers: int, width: int, heads: int, end_of_text: int) -> Policy:
    """A small untrained GPT-NeoX without dropout and with tied embeddings, initialised from torch's global generator.

    It is a GPT with rotary positions, with which a small network learns in fewer steps what it has to know of order.
    """
    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        max_position_embeddings=context,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act="gelu_pytorch_tanh",
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
        use_parallel_residual=False,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )
    return Policy(GPTNeoXForCausalLM(config))
