"""Every family of causal language models that transformers has, as a tiny random network.

Each is what its own default configuration describes, cut by `shrunken`. `SETTINGS` are for families whose default
describes nothing that runs; `NOT_MADE` says why a family is left out.
"""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from instructrl.models.folders import with_named_base
from instructrl.models.shrinking import shrunken

# Fields without which a default configuration gives an error, or has no layer with attention.
SETTINGS = {
    "bamba": {"attn_layer_indices": [1, 5]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 8, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 64, "num_experts_per_tok": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
}

# Families that no default configuration makes a language model of text, by what is in the way.
_ANOTHER_PART = "is a part of another model: its default configuration does not stand alone"
_NO_TEXT = "is no model of text alone"
NOT_MADE = {
    "blt": "makes its own patches of bytes and has no number of layers",
    "dots3_note": "its sizes depend on each other in ways that a cut does not keep",
    "dots3_note_text": "its sizes depend on each other in ways that a cut does not keep",
    "gemma3n": "needs the library timm for its images",
    "gemma4_assistant": _ANOTHER_PART,
    "gemma4_unified_assistant": _ANOTHER_PART,
    "hrm_text": "its default configuration fails in transformers' cache",
    "musicgen": _NO_TEXT,
    "musicgen_melody": _NO_TEXT,
    "qwen4_exp": "its default configuration leaves out the sizes of its attention",
    "qwen4_exp_text": "its default configuration leaves out the sizes of its attention",
    "xlstm": "its sizes depend on each other in ways that a cut does not keep",
    "zamba": "a cut leaves one of its shared blocks, which transformers cannot tie",
}

FAMILIES = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(NOT_MADE))


def config_of(family: str) -> PretrainedConfig:
    """The family's own size, as its users have it."""
    return AutoConfig.for_model(family, **SETTINGS.get(family, {}))


def make_lm(family: str, dtype: torch.dtype = torch.float32, *, seed: int = 0) -> PreTrainedModel:
    """A tiny network of the family in evaluation mode, with weights so large that every token matters."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        lm = AutoModelForCausalLM.from_config(
            shrunken(config_of(family)), dtype=dtype, trust_remote_code=False, experts_implementation="eager"
        )
        with torch.no_grad():
            for weight in lm.parameters():
                noise = torch.randn(weight.shape)
                weight.copy_(0.3 * noise if weight.dim() > 1 else weight + 0.1 * noise)
    return with_named_base(lm.eval())
