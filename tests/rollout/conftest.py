"""A model's folder, and the stand-in for vllm."""

from pathlib import Path

import pytest
import stand_in_vllm
from tiny import lively_policy, tiny_encoder

OTHER_END = 3


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model whose folder names a second token as an end, as chat models' do."""
    encoder = tiny_encoder()
    policy = lively_policy(encoder, seed=5)
    policy.save(tmp_path / "model", encoder.tokenizer)
    policy.lm.generation_config.update(eos_token_id=[encoder.end_of_text, OTHER_END], top_k=2, do_sample=True)
    policy.lm.generation_config.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def vllm(monkeypatch):
    return stand_in_vllm.install(monkeypatch)
