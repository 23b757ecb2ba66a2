"""A language model with a value head on its last states, as TRL had it, saved and loaded in its layout."""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from instructrl.models.backbone import load_causal_lm

_HEAD = "v_head."
_ARGUMENTS = {"v_head_init_strategy", "v_head_initializer_range", "summary_dropout_prob"}


class _ValueHead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.summary = nn.Linear(width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):  # a value in bfloat16 would have two decimals
            return self.summary(hidden.to(self.summary.weight.dtype))


class AutoModelForCausalLMWithValueHead(nn.Module):
    """A causal language model, `pretrained_model`, and a linear head `v_head.summary` on the states under its own.

    v_head_init_strategy: "normal" draws the head's weights with the deviation `v_head_initializer_range`; None leaves
    them as PyTorch draws those of a linear layer. summary_dropout_prob: of TRL's head; there is no dropout here, and
    none in TRL where it trains. Raises TypeError for other arguments.
    """

    def __init__(
        self,
        pretrained_model: PreTrainedModel,
        *,
        v_head_init_strategy: str | None = None,
        v_head_initializer_range: float = 0.2,
        summary_dropout_prob: float | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(pretrained_model, PreTrainedModel):
            found = type(pretrained_model).__name__
            raise TypeError(f"pretrained_model: found {found}, accepted is a transformers language model")
        if v_head_init_strategy not in (None, "normal"):
            raise ValueError(f"v_head_init_strategy: found {v_head_init_strategy!r}, accepted are None and 'normal'")
        self.pretrained_model, self.config = pretrained_model, pretrained_model.config
        self.is_peft_model = False
        head = pretrained_model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            found = type(pretrained_model).__name__
            raise ValueError(f"pretrained_model: found {found} without a linear head, accepted is a language model")
        self.v_head = _ValueHead(head.in_features)
        if v_head_init_strategy == "normal":
            nn.init.normal_(self.v_head.summary.weight, std=v_head_initializer_range)
            nn.init.zeros_(self.v_head.summary.bias)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path | PreTrainedModel, **given: Any
    ) -> "AutoModelForCausalLMWithValueHead":
        """Of a transformers model in memory, or of a folder or name, with its head where it has one. Weights are read
        in float32 and from safetensors alone."""
        if other := set(given) - _ARGUMENTS:
            accepted = ", ".join(sorted(_ARGUMENTS))
            raise TypeError(f"from_pretrained: found {', '.join(sorted(other))}, accepted are {accepted}")
        if isinstance(pretrained_model_name_or_path, PreTrainedModel):
            return cls(pretrained_model_name_or_path, **given)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=f".*such as {_HEAD}")  # it has its place, in the head
            network = load_causal_lm(pretrained_model_name_or_path)
        model, head = cls(network, **given), _head_of(Path(pretrained_model_name_or_path))
        if head:
            model.v_head.load_state_dict(head)
        return model

    def forward(
        self,
        input_ids: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, Any, Tensor]:
        """Logits [B, L, V] float32, the loss where labels are given, and values [B, L]."""
        found = self.pretrained_model(
            input_ids=input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            **{**others, "output_hidden_states": True},
        )
        return found.logits.float(), found.loss, self.v_head(found.hidden_states[-1]).squeeze(-1)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own."""
        return self.pretrained_model.generate(*args, **kwargs)  # pyright: ignore[reportCallIssue]

    def save_pretrained(self, folder: str | Path) -> None:
        """A transformers folder of the language model with the head among its weights, as TRL reads it."""
        head = {f"{_HEAD}{name}": value for name, value in self.v_head.state_dict().items()}
        weights = {**self.pretrained_model.state_dict(), **head}
        self.pretrained_model.save_pretrained(folder, state_dict=weights)


def _head_of(folder: Path) -> dict[str, Tensor]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(_HEAD)]  # noqa: SIM118
            found |= {name.removeprefix(_HEAD): file.get_tensor(name) for name in names}
    return found


def create_reference_model(
    model: AutoModelForCausalLMWithValueHead, num_shared_layers: int | None = None
) -> AutoModelForCausalLMWithValueHead:
    """A copy that does not learn. Raises ValueError for shared layers, which TRL then does not train."""
    if num_shared_layers is not None:
        raise ValueError(f"num_shared_layers: found {num_shared_layers}, accepted is None: every layer is trained")
    return copy.deepcopy(model).requires_grad_(False).eval()
