"""The class of a network with a scalar head, for every architecture that has a language model.

transformers has a class for sequence classification for about half of its language models, and not each of those reads
the last states by a linear `score`. Where it has none that does, one is made here of transformers' own generic head and
the language model's own base.
"""

import copy
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification

from instructrl.models.activations import with_fused_activations
from instructrl.models.base import Base, named_weights
from instructrl.models.folders import read_config, with_named_base
from instructrl.models.parts import is_in_parts
from instructrl.models.shrinking import shrunken

# (configuration, base) -> class; a process has a few.
_CLASSES: dict[tuple[type, type], type[PreTrainedModel]] = {}


def scalar_class(lm: PreTrainedModel) -> type[PreTrainedModel]:
    """The class with the base of a language model and a linear `score` on its last states.

    transformers' `AutoModelForSequenceClassification` knows the class from then on, where it had none for the
    architecture. Raises ValueError where the language model has no base that such a head can stand on.
    """
    config = lm.config
    key = (type(config), type(lm.base_model))
    if key not in _CLASSES:
        own: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), ())
        kinds = tuple(own) if isinstance(own, (list, tuple)) else (own,)
        found = next((kind for kind in kinds if _fits(kind, lm)), None)
        if found is None:
            found = _made(lm)
            if not kinds:  # beside a class of its own transformers would not find a second one
                AutoModelForSequenceClassification.register(type(config), found, exist_ok=True)
        _CLASSES[key] = found
    return _CLASSES[key]


def scalar_class_of(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The same from a configuration alone. Raises ValueError as `scalar_class` does."""
    small = AutoModelForCausalLM.from_config(shrunken(config), trust_remote_code=False)
    small.config.name_or_path = config.name_or_path
    return scalar_class(with_named_base(small))


def register_scalar_class(path: str | Path) -> None:
    """Make transformers' `AutoModelForSequenceClassification` know the class that a folder's reward model has."""
    scalar_class_of(read_config(path))


@torch.no_grad()
def _fits(kind: type[PreTrainedModel], lm: PreTrainedModel) -> bool:
    """Whether a class reads the states of the language model's base by a linear `score`, seen on shrunken networks."""
    small = shrunken(lm.config)
    small.num_labels = 1
    network = kind._from_config(small, dtype=torch.float32).eval()  # experts know no float64
    base, head = network.base_model, getattr(network, "score", None)
    if type(base) is not type(lm.base_model) or not isinstance(head, nn.Linear):
        return False
    if base.state_dict().keys() != with_named_base(type(lm)._from_config(small)).base_model.state_dict().keys():
        return False
    return base(input_ids=torch.tensor([[1, 2, 3]])).last_hidden_state.shape[-1] == head.in_features


def _made(lm: PreTrainedModel) -> type[PreTrainedModel]:
    """transformers' generic head on the language model's base."""
    base, name = type(lm.base_model), type(lm).__name__
    family = next((kind for kind in base.__bases__ if issubclass(kind, PreTrainedModel)), None)
    if lm.base_model is not lm and family is not None:

        class Scalar(GenericForSequenceClassification, family):
            base_model_prefix = lm.base_model_prefix
            config_class = type(lm.config)
            _tied_weights_keys: ClassVar[Any] = None

            def __init__(self, config: PretrainedConfig) -> None:
                # transformers' own would look the base up by the configuration, which has none for parts of models.
                family.__init__(self, config)
                self.num_labels = config.num_labels
                setattr(self, self.base_model_prefix, base(config))
                self.score = nn.Linear(config.get_text_config().hidden_size, config.num_labels or 1, bias=False)
                self.post_init()

        # transformers reads the source of a class's module to know what can be set on it, such as how experts are run.
        Scalar.__module__ = base.__module__
        Scalar.__name__ = Scalar.__qualname__ = f"{base.__name__.removesuffix('Model')}ForSequenceClassification"
        if _fits(Scalar, lm):
            return Scalar
    raise ValueError(
        f"model {lm.config.name_or_path or lm.config.model_type}: found {name}, which cannot have a scalar head; "
        "accepted are language models with a base of their own"
    )


def scalar_model(lm: PreTrainedModel, generator: torch.Generator, base: Base | None = None) -> PreTrainedModel:
    """The same network with the unembedding replaced by a projection to a scalar (paper, 3.5).

    The projection starts at standard deviation `1/sqrt(D+1)` as in the paper's predecessor. base: that the language
    model stands on; then the new network does, too, with a copy of the adapter that there is.
    Raises ValueError where the architecture cannot have one.
    """
    config = copy.deepcopy(lm.config)
    config.num_labels = 1
    config.tie_word_embeddings = False
    text = config.get_text_config()
    text.pad_token_id = getattr(text, "pad_token_id", None)  # transformers' head asks for it, CodeGen has none
    kind = scalar_class(lm)
    if base is not None:
        model: Any = _around(kind, config, base.copy(lm.base_model))
        vars(model)["peft_config"] = copy.deepcopy(getattr(lm, "peft_config", {}))
    elif is_in_parts(lm):
        model = _around(kind, config, copy.deepcopy(lm.base_model))
    else:
        model = kind._from_config(config, dtype=torch.float32).eval()
        model.base_model.load_state_dict(lm.base_model.state_dict())
    with_fused_activations(model)
    width = model.score.in_features
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(1, width, generator=generator) / (width + 1) ** 0.5)
    return model


def _around(kind: type[PreTrainedModel], config: PretrainedConfig, below: nn.Module) -> Any:
    """A network of a class that has this part below its head, whose weights it does not make anew."""
    with torch.device("meta"):
        model: Any = kind._from_config(config, dtype=torch.float32).eval()
    setattr(model, model.base_model_prefix, below)
    device, bias = next(x.device for _, x in named_weights(below)), model.score.bias is not None
    model.score = nn.Linear(model.score.in_features, model.score.out_features, bias=bias, device=device)
    left = [name for name, x in named_weights(model) if x.is_meta]
    assert not left, left  # a class with more than a base and a head is none that `scalar_class` gives
    return model
