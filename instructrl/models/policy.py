"""The policy: a causal language model seen as a distribution over responses."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from instructrl.models.backbone import check_output_embedding, load_causal_lm, response_states
from instructrl.ops import logprobs
from instructrl.types import Sequences


class Policy(nn.Module):
    """Log-probabilities of responses, without ever holding logits.

    `forward` is the log-probability pass, so that a distributed wrapper around the module sees it.
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__()
        check_output_embedding(lm)
        self.lm = lm

    @classmethod
    def load(cls, path: str | Path) -> "Policy":
        """From a transformers folder or name; see `load_causal_lm`."""
        return cls(load_causal_lm(path))

    def save(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a transformers folder that `AutoModelForCausalLM.from_pretrained` loads."""
        self.lm.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def forward(self, sequences: Sequences, temperature: float = 1.0) -> Tensor:
        """Log-probability of every response token: [B, T] float32 in nats, 0 where masked."""
        hidden, weight, bias = self.head_inputs(sequences)
        return logprobs.linear_token_logprobs(
            hidden,
            weight,
            sequences.response,
            bias=bias,
            temperature=temperature,
            mask=sequences.response_mask,
        )

    def head_inputs(self, sequences: Sequences) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the `linear_*` operations take: states [B, T, D] of the response tokens, weight [V, D], bias [V]."""
        return _as_multiplied(response_states(self.lm, sequences)), *self.output_embedding()

    def output_embedding(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, D] and bias [V] of the projection to logits, in the dtype of autocast where that is on."""
        head = self.lm.get_output_embeddings()
        assert isinstance(head, nn.Linear)  # checked when the policy was made
        return _as_multiplied(head.weight), None if head.bias is None else _as_multiplied(head.bias)


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
