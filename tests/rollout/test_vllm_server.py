"""Sampling with a vLLM server: a stand-in for it, and vLLM itself where it is installed (`make vllm-test`)."""

import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sharp_policies import ENCODER, config, sampled, sharp_policy, sharpen
from stand_in_server import served
from tiny import words

from instructrl import cli
from instructrl.models.policy import Policy
from instructrl.rollout.generate import Sampling, sample_rollout
from instructrl.rollout.vllm_server import VLLMServer

PROMPTS = [words(random.Random(i)) for i in range(24)]
GREEDY = Sampling(seed=0, temperature=0, max_response_tokens=6)
CONTEXT = 64
INSTALLED = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make vllm-test has an environment with it"
)


@contextmanager
def served_by_vllm(model: str, context: int):
    """As docs/engines.md has it, on a CPU."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    options = (
        f"--model {model} --host 127.0.0.1 --port {port} --max-model-len {context} --dtype float32 --enforce-eager"
    )
    options += " --kv-cache-memory-bytes 67108864 --skip-tokenizer-init --generation-config vllm --enable-scale-out"
    options += " --no-enable-chunked-prefill"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options.split()]
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        url = f"http://127.0.0.1:{port}"
        try:
            while server.poll() is None and not answers(url):
                time.sleep(0.5)
            yield url
        finally:
            server.terminate()


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(f"{url}/version", timeout=5).status == 200
    except urllib.error.URLError:
        return False


@pytest.fixture(scope="module", params=[served, pytest.param(served_by_vllm, marks=INSTALLED)])
def server(request, tmp_path_factory):
    """The folder of a model, and the address of a server that was started with it."""
    folder = tmp_path_factory.mktemp("served") / "model"
    sharp_policy(config("gpt2", True), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "set_num_threads", torch.set_num_threads)  # the stand-in puts another in its place
        with request.param(str(folder), CONTEXT) as url:
            yield folder, url


def test_rows_after_each_change_of_the_weights(server, tmp_path):
    folder, url = server
    policy, engine = Policy.load(folder), VLLMServer(url, ENCODER.limits, tmp_path / "weights")
    for change in range(3):
        sharpen(policy, change)
        rollouts = [function(policy, ENCODER, PROMPTS, GREEDY) for function in (engine, sample_rollout)]
        assert sampled(rollouts[0]) == sampled(rollouts[1])
        assert rollouts[0].finished.tolist() == rollouts[1].finished.tolist()


def test_a_key_gives_a_sample(server, tmp_path):
    """Row i is episode `first_episode + i`, whatever else is asked for at the time."""
    folder, url = server
    policy, engine = Policy.load(folder), VLLMServer(url, ENCODER.limits, tmp_path / "weights")
    sampling = replace(GREEDY, seed=11, temperature=1.5)
    whole = sampled(engine(policy, ENCODER, PROMPTS, sampling, first_episode=7))
    assert sampled(engine(policy, ENCODER, PROMPTS, sampling, first_episode=7)) == whole
    assert sampled(engine(policy, ENCODER, PROMPTS[5:9], sampling, first_episode=12)) == whole[5:9]
    assert sampled(engine(policy, ENCODER, PROMPTS, sampling, first_episode=8)) != whole


def test_longer_sequences_than_the_server_takes_are_refused(server, tmp_path):
    longer = replace(ENCODER.limits, max_prompt_tokens=60)
    with pytest.raises(ValueError, match=r"^limits: found 68 tokens, the vLLM server was started for up to 64$"):
        VLLMServer(server[1], longer, tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_another_server_is_refused(folder, tmp_path):
    policy = Policy.load(folder)
    with (
        served(str(folder), CONTEXT, version="0.9.2") as url,
        pytest.raises(RuntimeError, match=r"^engine: found vLLM 0.9.2, accepted are versions from 0.28$"),
    ):
        VLLMServer(url, ENCODER.limits, tmp_path / "weights")
    with pytest.raises(RuntimeError, match=rf"^vllm.server: found no answer from {url}/version: "):
        VLLMServer(url, ENCODER.limits, tmp_path / "weights")
    with served(str(folder), CONTEXT, scale_out=False) as url:
        engine = VLLMServer(url, ENCODER.limits, tmp_path / "weights")
        with pytest.raises(RuntimeError, match=rf"^vllm.server: found 403 from {url}/.*: .*--enable-scale-out"):
            engine(policy, ENCODER, PROMPTS, GREEDY)


def test_the_command_takes_a_server(folder, arguments, tmp_path):
    options = ["--engine", "vllm", "--vllm.weights-folder", str(tmp_path / "weights"), "--vllm.server"]
    with served(str(folder), CONTEXT) as url:
        assert cli.main([*arguments, *options, url]) == 0
    assert (tmp_path / "out/models/ppo/config.json").exists()
    (row,) = [json.loads(line) for line in Path(tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert row["kl"] == 0
