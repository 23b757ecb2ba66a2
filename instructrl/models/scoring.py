"""The reward model and the value function: the same network with a scalar head, read at different positions."""

import math
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from instructrl import profiling, progress
from instructrl.model_names import is_adapter_folder
from instructrl.models.adapter_folders import BaseDtype, read_reward_model, write_adapter
from instructrl.models.adapters import has_adapter, whole
from instructrl.models.backbone import (
    hidden_states,
    load_scalar_model,
    response_states,
    set_residual_dropout,
    train_without_noise,
)
from instructrl.models.base import Base, Role, another
from instructrl.models.conformance import paths_of
from instructrl.models.folders import save_network, with_named_base
from instructrl.models.masters import in_float32
from instructrl.models.paths import SEPARATE, Paths, shared_prompt_states
from instructrl.models.policy import Policy
from instructrl.models.scalar_heads import scalar_model
from instructrl.models.vocabulary import learn_every_embedding, padding_id
from instructrl.types import Sequences, SharedPrompts

# Where the bias lives in a saved folder: `config.json` is the one file that every loader keeps.
_BIAS_FIELD = "instructrl_score_bias"


class _ScalarHead(Role):
    """base: that the network stands on, where it does; its head is always its own."""

    bias: Tensor
    _keep_in_fp32_modules_strict = ("score.weight",)  # transformers' name for it, looked at by `models.masters`

    def __init__(self, network: PreTrainedModel, paths: Paths, bias: float = 0.0, base: Base | None = None) -> None:
        super().__init__()
        self.base = base
        learn_every_embedding(network)
        set_residual_dropout(network, 0.0)
        self.network, self.paths = network, paths
        device = None if base is None else base.device
        self.register_buffer("bias", torch.tensor(float(bias), device=device))

    def train(self, mode: bool = True):
        """See `train_without_noise`."""
        self.training = mode
        train_without_noise(self.network, mode)
        return self

    def _project(self, hidden: Tensor) -> Tensor:
        head = self.network.score
        assert isinstance(head, nn.Linear)  # checked when the network was made
        with torch.autocast(hidden.device.type, enabled=False):  # a score in bfloat16 would have two decimals
            return head(hidden.to(head.weight.dtype)).squeeze(-1).float() + self.bias

    @classmethod
    def load(cls, path: str | Path, *, base_dtype: BaseDtype | None = None, in_parts: bool = False):
        """From a transformers sequence-classification folder with one output, or the folder of such an adapter.

        base_dtype: of an adapter's base; None is what it was trained with. in_parts: as `Policy.load` has it.
        """
        with progress.wait(f"loading {path}"):
            if is_adapter_folder(path):
                network, base, bias = read_reward_model(path, base_dtype)
                return cls(network, paths_of(network.config), bias, base)
            network = load_scalar_model(path, in_parts=in_parts)
        return cls.of(network, path)

    @classmethod
    def of(cls, network: PreTrainedModel, name: str | Path = ""):
        """Of a transformers network that is in memory: one with a linear `score` of one output on a language model's
        states. name: of it, for errors. Raises ValueError for others."""
        config = network.config
        head, name = getattr(network, "score", None), name or config.name_or_path or type(network).__name__
        if not isinstance(head, nn.Linear) or head.out_features != 1:
            raise ValueError(
                f"{name}: found {type(network).__name__} without a linear `score` of one output, accepted is a network "
                "for sequence classification with num_labels 1"
            )
        bias = getattr(config, _BIAS_FIELD, 0.0)
        if not isinstance(bias, int | float) or not math.isfinite(bias):
            raise ValueError(f"{name}/config.json: {_BIAS_FIELD}: found {bias!r}, accepted is a finite number")
        return cls(with_named_base(network), paths_of(config), bias)

    def save(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a folder that `AutoModelForSequenceClassification.from_pretrained` loads; of a model with an adapter
        the adapter and the head alone, for `PeftModel.from_pretrained`.

        Its score of a single sequence is ours without the bias. transformers reads it at the last token that is not the
        configuration's padding, so that one is named only where nothing but padding can be this token; without it,
        transformers refuses batches.
        """
        if self.base is not None and has_adapter(self.network):
            write_adapter(self.network, self.base, folder, tokenizer, bias=float(self.bias))
            return
        fields = {"pad_token_id": padding_id(tokenizer), _BIAS_FIELD: float(self.bias)}
        save_network(in_float32(whole(self).network), folder, tokenizer, fields)


def check_scalar_head(policy: Policy) -> None:
    """Raise ValueError where no reward model can start from a policy; asked before anything is written or trained."""
    if policy.paths.no_scalar_head:
        name = policy.lm.config.name_or_path or policy.lm.config.model_type
        raise ValueError(
            f"model {name}: found {policy.paths.no_scalar_head}; accepted are language models with a base of their own"
        )


class RewardModel(_ScalarHead):
    """A scalar for a prompt and a response, read at the last token of the response."""

    @classmethod
    def from_policy(cls, policy: Policy, generator: torch.Generator) -> "RewardModel":
        """Start from a language model with its unembedding removed (paper, 3.5).

        Raises ValueError where the architecture can have no scalar head.
        """
        check_scalar_head(policy)
        if policy.paths.shared == SEPARATE:
            name = policy.lm.config.name_or_path or type(policy.lm).__name__
            warnings.warn(
                f"model {name}: its attention cannot read a prompt once for all completions: each is read with it",
                stacklevel=2,
            )
        return cls(scalar_model(in_float32(policy.lm), generator, policy.base), policy.paths, base=policy.base)

    def forward(self, sequences: Sequences) -> Tensor:
        """Scores: [B] float32. A response without tokens is scored at the last prompt token."""
        hidden = hidden_states(self.network, sequences, self.paths)
        last = sequences.prompt.shape[1] - 1 + sequences.response_mask.sum(dim=1)
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return self._project(hidden[rows, last])

    def shared_prompt_scores(self, rows: SharedPrompts) -> Tensor:
        """Scores of all responses: [B, K] float32, as `forward` gives them one by one.

        Each prompt is read once, where the network can.
        """
        if self.paths.shared == SEPARATE:
            return RewardModel.forward(self, rows.separate()).view(rows.last.shape)
        profiling.count_tokens(rows.segments >= 0)
        hidden = shared_prompt_states(self.network, rows, self.paths.shared)
        numbers = torch.arange(rows.num_rows, device=hidden.device)[:, None]
        return self._project(hidden[numbers, rows.last])


class ValueFunction(_ScalarHead):
    """The expected return before each response token."""

    @classmethod
    def from_reward_model(cls, reward_model: RewardModel) -> "ValueFunction":
        """The paper's initialisation: every weight of the reward model, its bias included (C.4)."""
        start = another(in_float32(reward_model))
        made = cls(start.network, start.paths, float(start.bias), start.base)
        return made.to(start.bias.device)

    def forward(self, sequences: Sequences) -> Tensor:
        """Values: [B, T] float32, of the state from which each response token is predicted; 0 where masked."""
        values = self._project(response_states(self.network, sequences, self.paths))
        return values.masked_fill(~sequences.response_mask, 0.0)
