"""What the three models share: loading, dropout, and hidden states."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from instructrl import profiling
from instructrl.model_names import check_model_name
from instructrl.models.activations import with_fused_activations
from instructrl.models.conformance import border, check_weights, paths_of, paths_of_network
from instructrl.models.folders import check_language_model, check_reward_model, read_config, read_network
from instructrl.models.heap import give_back, give_back_large
from instructrl.models.parts import is_in_parts
from instructrl.models.paths import BATCHES, Paths
from instructrl.models.scalar_heads import scalar_class_of
from instructrl.models.spread import in_turn
from instructrl.types import Sequences

# The paper's (C.1).
RESIDUAL_DROPOUT = 0.2


def hide_loading_bars() -> None:
    """Turn transformers' own progress bars and warnings off, for programs that show theirs."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def load_causal_lm(path: str | Path, *, trust_remote_code: bool = False, in_parts: bool = False) -> PreTrainedModel:
    """A causal language model in float32, in evaluation mode.

    path: a transformers folder or name. Weights are read from safetensors only: nothing is unpickled. in_parts: each
    process of the job has its rows alone, see `models.parts`.
    Raises ValueError for a model that `conformance.paths_of` refuses, before its weights are read, where its weights do
    something else than its architecture, and as `read_config` and `read_network` do, OSError among them where there is
    no such model.
    """
    config = read_config(path, trust_remote_code=trust_remote_code)
    check_language_model(path, config)
    if not trust_remote_code:
        paths_of(config)
    model: Any = with_fused_activations(
        read_network(AutoModelForCausalLM, path, config, trust_remote_code=trust_remote_code, in_parts=in_parts).eval()
    )
    _check(model, lambda whole: whole.get_output_embeddings(), paths_of_network(model))
    return model


def load_scalar_model(path: str | Path, *, in_parts: bool = False) -> PreTrainedModel:
    """A network with a scalar head from a transformers folder, in float32 and evaluation mode, safetensors only."""
    check_model_name(path)
    if not (Path(path) / "config.json").is_file():
        raise ValueError(f"reward model {path}: found no config.json, accepted is a folder that `instructrl rm` wrote")
    config = read_config(path)
    check_reward_model(path, config)
    if getattr(config, "num_labels", None) != 1:
        raise ValueError(f"{path}: found a head of {config.num_labels} outputs, accepted is a reward model's of 1")
    paths = paths_of(config)
    model: Any = with_fused_activations(read_network(scalar_class_of(config), path, config, in_parts=in_parts).eval())
    _check(model, lambda whole: whole.score, paths)
    return model


def _check(model: PreTrainedModel, head: Callable[[Any], nn.Module], paths: Paths) -> None:
    """A short pass, which of a network in parts leaves nothing behind."""
    large = is_in_parts(model) and give_back_large(model)
    with in_turn(model) as whole:
        check_weights(whole, head(whole), paths)
    if large:
        give_back()


def set_residual_dropout(lm: PreTrainedModel, probability: float | None) -> None:
    """Set the dropout on the output of every attention and MLP block.

    probability: None is the paper's, where the architecture has such dropout (GPT-2 and GPT-NeoX have it, Llama and
    Qwen have not).
    Raises ValueError for a positive one where it has none.
    """
    found = _residual_dropouts(lm)
    for module in found:
        module.p = RESIDUAL_DROPOUT if probability is None else probability
    if probability and not found:
        raise ValueError(f"residual_dropout: found {probability}, {type(lm).__name__} has none: accepted is 0")


def train_without_noise(network: PreTrainedModel, mode: bool) -> None:
    """Training mode for residual dropout alone.

    Everything else that a network does in training mode only is noise (dropout of other kinds, dropped layers, jitter
    of routers), under whatever name: two passes of the same tokens would differ, and PPO's ratio with them.
    """
    network.eval()
    for module in _residual_dropouts(network):
        module.training = mode and module.p > 0


# The last parts of their names in GPT-2 and its relatives, and in GPT-NeoX.
_RESIDUAL = ("resid_dropout", "mlp.dropout", "post_attention_dropout", "post_mlp_dropout")


def _residual_dropouts(network: PreTrainedModel) -> list[nn.Dropout]:
    return [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.Dropout) and name.endswith(_RESIDUAL)
    ]


def hidden_states(model: PreTrainedModel, sequences: Sequences, paths: Paths) -> Tensor:
    """Last hidden states that do not depend on the padding: [B, P + T, D]; padded columns hold arbitrary values."""
    mask = sequences.mask
    profiling.count_tokens(mask)
    return BATCHES[paths.batch](model, sequences.tokens, mask)


def response_states(model: PreTrainedModel, sequences: Sequences, paths: Paths) -> Tensor:
    """The hidden states from which the response tokens are predicted: [B, T, D], columns P-1 .. P+T-2."""
    first = sequences.prompt.shape[1] - 1
    return hidden_states(model, sequences, paths)[:, first : first + sequences.response.shape[1]]


def context_of(model: PreTrainedModel) -> int | None:
    """Positions that a sequence may take; None where the model names no end."""
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)  # MPT's name


def room_of(model: PreTrainedModel) -> int | None:
    """Tokens of a sequence that a model takes as it was trained to; None where it names no end."""
    return min(filter(None, (context_of(model), border(model.config))), default=None)


def check_context(model: PreTrainedModel, needed: int, name: str = "limits") -> None:
    """Raise ValueError where the model has fewer positions than a sequence needs. name: of the setting that says so."""
    found = context_of(model)
    if found is not None and needed > found:
        raise ValueError(
            f"{name}: found {needed} tokens in a sequence, accepted are up to the {found} positions of the model"
        )
    longest = border(model.config)
    if longest is not None and needed > longest:
        raise ValueError(
            f"{name}: found {needed} tokens in a sequence, accepted are up to {longest}: in longer ones the rotary "
            "embeddings of this model are others, for all of their tokens"
        )
