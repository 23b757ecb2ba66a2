"""What the three models share: loading, dropout, and hidden states that do not depend on the padding."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.utils import logging

from instructrl import profiling, threads
from instructrl.model_names import check_model_name
from instructrl.models.folders import check_language_model, check_reward_model, read_config, read_network
from instructrl.models.scalar_heads import scalar_class, scalar_class_of
from instructrl.types import Sequences, SharedPrompts

# Every dropout probability that a transformers configuration is known to carry. Zero in all of them is the only state
# in which two forward passes of the same tokens agree, which the probability ratio of PPO needs.
_DROPOUT_FIELDS = (
    "attention_dropout",
    "attn_pdrop",
    "classifier_dropout",
    "dropout",
    "embd_pdrop",
    "hidden_dropout",
    "resid_pdrop",
    "summary_first_dropout",
)

# Final-logit transformations that `linear_token_logprobs` does not apply: such a model would be scored wrongly.
_UNSUPPORTED_LOGIT_FIELDS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def hide_loading_bars() -> None:
    """Turn transformers' own progress bars and warnings off, for programs that show theirs."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def load_causal_lm(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A causal language model in float32 with every dropout off.

    path: a transformers folder or name. Weights are read from safetensors only: nothing is unpickled.
    Raises ValueError for a model whose logits are capped or scaled after the output embedding, and as `read_config` and
    `read_network` do, OSError among them where there is no such model.
    """
    config = read_config(path, trust_remote_code=trust_remote_code)
    check_language_model(path, config)
    _without_dropout(config)
    model = read_network(AutoModelForCausalLM, path, config, trust_remote_code=trust_remote_code)
    check_output_embedding(model)
    _check_projection(model)
    return _with_fused_activations(model)


def check_output_embedding(lm: PreTrainedModel) -> None:
    """Raise ValueError where log-probabilities are not `log_softmax(hidden @ weight.T + bias)`."""
    for field in _UNSUPPORTED_LOGIT_FIELDS:
        value = getattr(lm.config, field, None)
        if value not in (None, 1.0):
            raise ValueError(f"model: found {field}={value}, accepted are models whose logits are a plain projection")
    if not isinstance(lm.get_output_embeddings(), nn.Linear):
        raise ValueError(f"model: found {type(lm).__name__} without a linear output embedding, accepted is a causal LM")


@torch.no_grad()
def _check_projection(lm: PreTrainedModel) -> None:
    """Compare the model's own logits with the projection that is used here, on a few tokens.

    No list of configuration fields can name every way in which an architecture changes its logits.
    Raises ValueError where they differ, and for models with a recurrent state, which the decoder does not carry.
    """
    if getattr(lm, "_is_stateful", False):
        raise ValueError(
            f"model: found {type(lm).__name__}, which has a recurrent state; accepted are attention models"
        )
    head = lm.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    tokens = torch.arange(1, 4)[None, :] % head.out_features
    own = lm.eval()(input_ids=tokens, use_cache=False).logits
    _check_finite(lm, own)
    other = lm(input_ids=torch.cat([tokens[:, :2], tokens[:, :1]], dim=1), use_cache=False).logits
    if not torch.allclose(own[:, :2], other[:, :2], rtol=1e-3, atol=1e-3):
        raise ValueError(f"model: found {type(lm).__name__}, whose tokens see later ones; accepted are causal models")
    made = head(lm.base_model(input_ids=tokens, use_cache=False).last_hidden_state)
    if not torch.allclose(own, made, rtol=1e-3, atol=1e-3):
        raise ValueError(f"model: found {type(lm).__name__}, accepted are models whose logits are a plain projection")


def _check_finite(model: PreTrainedModel, outputs: Tensor) -> None:
    """Raise ValueError where a network computes NaN or infinity from ordinary tokens."""
    if not bool(outputs.isfinite().all()):
        path = model.config.name_or_path
        raise ValueError(f"model {path}: found weights that give NaN or infinity, accepted are finite ones")


def scalar_model(lm: PreTrainedModel, generator: torch.Generator) -> PreTrainedModel:
    """The same network with the unembedding replaced by a projection to a scalar (paper, 3.5).

    The projection starts at standard deviation `1/sqrt(D+1)` as in the paper's predecessor.
    Raises ValueError where the architecture cannot have one.
    """
    config = copy.deepcopy(lm.config)
    config.num_labels = 1
    config.tie_word_embeddings = False
    text = config.get_text_config()
    text.pad_token_id = getattr(text, "pad_token_id", None)  # transformers' head asks for it, CodeGen has none
    model = scalar_class(lm)._from_config(config, dtype=torch.float32)
    model.base_model.load_state_dict(lm.base_model.state_dict())
    _with_fused_activations(model)
    width = model.score.in_features
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(1, width, generator=generator) / (width + 1) ** 0.5)
    return model


def load_scalar_model(path: str | Path) -> PreTrainedModel:
    """A network with a scalar head from a transformers folder, in float32, dropout off, safetensors only."""
    check_model_name(path)
    if not (Path(path) / "config.json").is_file():
        raise ValueError(f"reward model {path}: found no config.json, accepted is a folder that `instructrl rm` wrote")
    config = read_config(path)
    check_reward_model(path, config)
    if getattr(config, "num_labels", None) != 1:
        raise ValueError(f"{path}: found a head of {config.num_labels} outputs, accepted is a reward model's of 1")
    _without_dropout(config)
    model = read_network(scalar_class_of(config), path, config)
    with torch.no_grad():
        _check_finite(model, model.score(model.base_model(input_ids=torch.tensor([[1, 2, 3]])).last_hidden_state))
    return _with_fused_activations(model)


def _with_fused_activations(model: PreTrainedModel) -> PreTrainedModel:
    """GPT-2's "gelu_new" by PyTorch's own kernel: the same function in one pass in place of eight.

    The configuration, and so what is saved, keeps its name.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
    return model


def set_residual_dropout(lm: PreTrainedModel, probability: float) -> None:
    """Set the dropout on the output of every attention and MLP block; all other dropout stays off.

    Raises ValueError for a positive probability where the architecture has no such dropout (Llama, Qwen).
    """
    found = 0
    for name, module in lm.named_modules():
        if isinstance(module, nn.Dropout):
            residual = name.endswith(("resid_dropout", "mlp.dropout"))
            module.p = probability if residual else 0.0
            found += residual
    if probability > 0 and not found:
        raise ValueError(f"residual_dropout: found {probability}, {type(lm).__name__} has none: accepted is 0")


def hidden_states(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """Last hidden states with positions counted over real tokens only, so that padding changes nothing.

    Returns [B, P + T, D]; padded columns hold arbitrary values.
    """
    mask = sequences.mask
    profiling.count_tokens(mask)
    threads.choose(model.base_model, mask.numel())
    return model.base_model(
        input_ids=sequences.tokens, attention_mask=mask.long(), position_ids=position_ids(mask), use_cache=False
    ).last_hidden_state


def shared_prompt_states(model: PreTrainedModel, rows: SharedPrompts) -> Tensor:
    """Last hidden states of prompts that are read once for all their responses: [B, L, D].

    A token sees its prompt and what stands before it in its own response, at the positions that it has in a sequence
    of its own, so the states are those of separate sequences.
    """
    segments = rows.segments
    profiling.count_tokens(segments >= 0)
    threads.choose(model.base_model, segments.numel())
    behind = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()
    same = segments[:, :, None] == segments[:, None, :]
    visible = (same | (segments == 0)[:, None, :]) & behind
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(visible.shape, dtype=dtype, device=segments.device)
    mask.masked_fill_(~visible, torch.finfo(dtype).min)
    return model.base_model(
        input_ids=rows.tokens, attention_mask=mask[:, None], position_ids=rows.positions, use_cache=False
    ).last_hidden_state


def response_states(model: PreTrainedModel, sequences: Sequences) -> Tensor:
    """The hidden states from which the response tokens are predicted: [B, T, D], columns P-1 .. P+T-2."""
    first = sequences.prompt.shape[1] - 1
    return hidden_states(model, sequences)[:, first : first + sequences.response.shape[1]]


def position_ids(mask: Tensor) -> Tensor:
    """Exclusive count of real tokens before each column. mask: [B, L] bool. Returns [B, L] int64."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def check_context(model: PreTrainedModel, needed: int, name: str = "limits") -> None:
    """Raise ValueError where the model has fewer positions than a sequence needs. name: of the setting that says so."""
    found = getattr(model.config, "max_position_embeddings", None)
    if found is not None and needed > found:
        raise ValueError(
            f"{name}: found {needed} tokens in a sequence, accepted are up to the {found} positions of the model"
        )


def _without_dropout(config) -> None:
    for field in _DROPOUT_FIELDS:
        if isinstance(getattr(config, field, None), float):
            setattr(config, field, 0.0)
