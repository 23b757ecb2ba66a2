"""Networks of which each process of a job reads its rows alone are those that transformers reads."""

import json
from pathlib import Path

import parts_worker
import pytest
import torch
from launch import torchrun
from tiny import tiny_encoder
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    Qwen3Config,
)

ENCODER = tiny_encoder()
END = ENCODER.end_of_text
# Widths that divide evenly by no number of processes.
WIDTHS = dict(hidden_size=36, intermediate_size=51, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3)
IDS = dict(vocab_size=len(ENCODER.tokenizer) + 2, bos_token_id=END, eos_token_id=END, pad_token_id=None)
SIZES = dict(**WIDTHS, **IDS, max_position_embeddings=64)
KINDS = {
    "gpt2": GPT2Config(n_embd=36, n_layer=2, n_head=3, n_positions=64, **IDS),
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama, tied, in several files": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama, in bfloat16": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**SIZES, head_dim=12, tie_word_embeddings=True),
    "gemma2": Gemma2Config(**SIZES, head_dim=12),
    "gpt_neox": GPTNeoXConfig(
        **{**SIZES, "hidden_size": 48, "num_attention_heads": 4}, use_parallel_residual=True, tie_word_embeddings=False
    ),
    "opt": OPTConfig(
        **{**IDS, "pad_token_id": 1},
        hidden_size=36,
        ffn_dim=51,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=64,
        word_embed_proj_dim=36,
    ),
    "mixtral": MixtralConfig(**{**SIZES, "intermediate_size": 52}, num_local_experts=4, tie_word_embeddings=False),
}
# The experts of most mixtures lie otherwise in files than in memory.
WHOLE = {"mixtral"}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict[str, bool]]:
    place = tmp_path_factory.mktemp("parts")
    for name, config in KINDS.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        model.generation_config.eos_token_id = [END, 3]
        if "bfloat16" in name:
            model = model.bfloat16()
        model.save_pretrained(place / name, max_shard_size="20KB" if "several" in name else "1GB")
    assert len(list((place / "llama, tied, in several files").glob("*.safetensors"))) > 2
    done = torchrun(2, parts_worker.__file__, str(place))
    assert done.returncode == 0, done.stderr
    return json.loads(Path(place / "found.json").read_text())


def test_each_kind_is_read_as_transformers_reads_it(found):
    assert found.keys() == KINDS.keys()
    assert {name for name, facts in found.items() if not facts["read in parts"]} == WHOLE
