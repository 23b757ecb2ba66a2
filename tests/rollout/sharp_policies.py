"""Policies of several kinds whose likeliest token is that by far, of sizes that vLLM's kernels take."""

from pathlib import Path

import torch
from tiny import tiny_encoder
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from instructrl.models.policy import Policy
from instructrl.types import Rollout

ENCODER = tiny_encoder()


def config(kind: str, tied: bool, context: int = 64, **others) -> PretrainedConfig:
    sizes = {"gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": context}}.get(
        kind,
        {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "max_position_embeddings": context,
        },
    )
    ids = {
        "vocab_size": len(ENCODER.tokenizer),
        "bos_token_id": None,
        "eos_token_id": ENCODER.end_of_text,
        "pad_token_id": None,
    }
    return AutoConfig.for_model(kind, tie_word_embeddings=tied, **{**ids, **sizes, **others})


@torch.no_grad()
def sharpen(policy: Policy, seed: int) -> None:
    """Weights so large that the likeliest token is that by far."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        if parameter.dim() == 2:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def sharp_policy(settings: PretrainedConfig, folder: Path) -> Policy:
    """Saved into the folder, then changed."""
    torch.manual_seed(0)
    policy = Policy(AutoModelForCausalLM.from_config(settings), len(ENCODER.tokenizer)).eval()
    sharpen(policy, 1)
    policy.save(folder, ENCODER.tokenizer)
    sharpen(policy, 2)
    return policy


def sampled(rollout: Rollout) -> list[list[int]]:
    rows = rollout.sequences
    return [tokens[mask].tolist() for tokens, mask in zip(rows.response, rows.response_mask, strict=True)]
