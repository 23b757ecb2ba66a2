"""A model's folder, a command of PPO on it, and the stand-in for vllm."""

import random
from pathlib import Path

import pytest
import stand_in_vllm
from tiny import lively_policy, tiny_encoder, tiny_reward_model, words

from instructrl.models.policy import Policy

OTHER_END = 3
ENCODER = tiny_encoder()
PROMPTS = [words(random.Random(i)) for i in range(24)]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model whose folder names a second token as an end, as chat models' do."""
    policy = lively_policy(ENCODER, seed=5)
    policy.save(tmp_path / "model", ENCODER.tokenizer)
    policy.lm.generation_config.update(eos_token_id=[ENCODER.end_of_text, OTHER_END], top_k=2, do_sample=True)
    policy.lm.generation_config.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def vllm(monkeypatch):
    return stand_in_vllm.install(monkeypatch)


@pytest.fixture
def arguments(folder, tmp_path) -> list[str]:
    tiny_reward_model(Policy.load(folder)).save(tmp_path / "rm", ENCODER.tokenizer)
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "{text}"}}\n' for text in PROMPTS))
    paths = {"model": folder, "reward-model": tmp_path / "rm", "data": tmp_path / "prompts.jsonl"}
    sizes = {"num-episodes": 8, "rollout-batch": 8, "minibatch": 8}
    limits = {"max-prompt-tokens": 12, "max-response-tokens": 8}
    given = [*paths.items(), ("out", tmp_path / "out"), *((f"ppo.{k}", v) for k, v in sizes.items())]
    given += [(f"limits.{k}", v) for k, v in limits.items()]
    return ["ppo", *(str(part) for name, value in given for part in (f"--{name}", value))]
