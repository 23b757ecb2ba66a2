"""A shrunken network is tiny, of the same class, and has every kind of layer and every limit of the large one."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from instructrl.models.shrinking import LIMIT, POSITIONS, VOCABULARY, shrunken

# A type, settings that it is asked for with, and what has to be left of them.
KINDS = [
    ("gpt2", {}, {"n_layer": 2, "n_head": 4, "n_embd": 64, "activation_function": "gelu_new", "resid_pdrop": 0.1}),
    ("llama", {"num_attention_heads": 32, "num_key_value_heads": 8}, {"num_key_value_heads": 2}),
    ("llama", {"num_attention_heads": 32}, {"num_key_value_heads": 4}),
    ("falcon", {"alibi": True}, {"num_kv_heads": 4, "multi_query": True, "alibi": True}),
    ("mistral", {"sliding_window": 4096}, {"sliding_window": LIMIT}),
    ("mistral", {"sliding_window": None}, {"sliding_window": None}),
    ("mistral", {"sliding_window": 4}, {"sliding_window": 4}),
    ("gemma2", {}, {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256}),
    ("gemma3_text", {}, {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": LIMIT}),
    ("qwen2", {"use_sliding_window": True}, {"layer_types": ["full_attention", "sliding_attention"]}),
    ("gpt_neo", {}, {"attention_layers": ["global", "local"], "window_size": LIMIT}),
    ("llama4_text", {}, {"no_rope_layers": [1, 0], "attention_chunk_size": LIMIT, "moe_layers": [0, 1]}),
    ("deepseek_v3", {}, {"first_k_dense_replace": 1, "n_routed_experts": 4, "topk_group": 1}),
    ("qwen2_moe", {"mlp_only_layers": [3], "decoder_sparse_step": 1}, {"mlp_only_layers": [1]}),
    ("gemma3n_text", {}, {"num_kv_shared_layers": 2, "altup_num_inputs": 4}),
    ("mixtral", {"router_jitter_noise": 0.1}, {"num_local_experts": 4, "router_jitter_noise": 0.1}),
    ("opt", {"layerdrop": 0.5}, {"layerdrop": 0.5, "ffn_dim": 32}),
    ("granite", {"logits_scaling": 8.0}, {"logits_scaling": 8.0}),
    ("gptj", {}, {"rotary_dim": 4}),
    ("recurrent_gemma", {}, {"block_types": ["recurrent", "attention"]}),
]


@pytest.mark.parametrize(("kind", "settings", "left"), KINDS, ids=[f"{kind}-{i}" for i, (kind, *_) in enumerate(KINDS)])
def test_what_decides_its_behaviour_is_left(kind, settings, left):
    config = AutoConfig.for_model(kind, **settings)
    before = json.dumps(config.to_dict(), default=str)
    small = shrunken(config)
    assert json.dumps(config.to_dict(), default=str) == before
    assert {name: getattr(small, name) for name in left} == left
    assert (small.vocab_size, type(small)) == (VOCABULARY, type(config))
    network = AutoModelForCausalLM.from_config(small, dtype=torch.float64)
    assert sum(p.numel() for p in network.parameters()) < 500_000


@pytest.mark.parametrize("kind", sorted({kind for kind, *_ in KINDS}))
def test_what_is_small_stays_as_it_is(kind):
    small = shrunken(AutoConfig.for_model(kind))
    assert shrunken(small).to_dict() == small.to_dict()


def of_rope(rope: dict, **settings) -> PretrainedConfig:
    settings = {"hidden_size": 512, "num_attention_heads": 8, **settings}
    return AutoConfig.for_model("llama", rope_scaling=rope, **settings)


def test_rope_that_depends_on_the_length_changes_within_the_tokens_that_are_read():
    small = shrunken(of_rope({"rope_type": "dynamic", "factor": 4.0}, max_position_embeddings=4096))
    assert small.max_position_embeddings == LIMIT
    long = {"rope_type": "longrope", "original_max_position_embeddings": 4096, "factor": 8.0}
    factors = {"short_factor": [1.0] * 32, "long_factor": [1.0 + i for i in range(32)]}
    small = shrunken(of_rope({**long, **factors}, max_position_embeddings=131072))
    rope = small.to_dict().get("rope_parameters") or small.to_dict()["rope_scaling"]
    assert (rope["original_max_position_embeddings"], small.max_position_embeddings) == (LIMIT, POSITIONS)
    assert len(rope["long_factor"]) == len(rope["short_factor"]) == 8
    assert (rope["long_factor"][0], rope["long_factor"][-1]) == (1.0, 32.0)


def test_plain_rope_has_room_for_what_is_read():
    small = shrunken(of_rope({"rope_type": "linear", "factor": 4.0}, max_position_embeddings=4096))
    assert small.max_position_embeddings == POSITIONS


def test_special_ids_stay_different_and_inside():
    config = AutoConfig.for_model("llama", bos_token_id=1, eos_token_id=[128001, 128009], pad_token_id=128004)
    small = shrunken(config)
    assert small.bos_token_id == 1
    ids = [*small.eos_token_id, small.pad_token_id]
    assert len(set(ids)) == 3
    assert all(1 < i < VOCABULARY for i in ids)
    same = shrunken(AutoConfig.for_model("llama", eos_token_id=128001, pad_token_id=128001))
    assert same.eos_token_id == same.pad_token_id < VOCABULARY


def test_a_part_is_cut_as_it_would_be_alone():
    config = AutoConfig.for_model("gemma3")
    part, alone = shrunken(config).text_config.to_dict(), shrunken(config.text_config).to_dict()
    assert {name: value for name, value in part.items() if alone.get(name) != value} == {}
