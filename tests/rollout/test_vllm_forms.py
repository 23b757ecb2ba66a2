"""The vLLM engine over the stand-in: tied weights, memory, platforms, jobs, versions, and the process around it."""

import random
import sys

import numpy as np
import pytest
import stand_in_vllm
import torch
from stand_in_vllm import flat, install
from tiny import lively_policy, tiny_encoder, words

from instructrl import distributed
from instructrl.rollout import vllm_rollout
from instructrl.rollout.generate import Sampling
from instructrl.rollout.settings import VLLMConfig
from instructrl.rollout.vllm_engine import VLLMEngine

ENCODER = tiny_encoder()
PROMPTS = [words(random.Random(i)) for i in range(24)]
SAMPLING = Sampling(seed=11, temperature=1.5, max_response_tokens=6)


def test_where_vllm_has_no_module_for_the_head_its_name_is_not_said(vllm, folder, monkeypatch):
    """The other case, a copy of the head, is in the weights that all other tests compare."""
    monkeypatch.setattr(stand_in_vllm.LLM, "has_head", False)
    policy, engine = lively_policy(ENCODER), VLLMEngine(folder, ENCODER.limits)
    engine(policy, ENCODER, PROMPTS, SAMPLING)
    assert torch.equal(vllm.made[0].calls[0].weights, flat(policy))


def test_networks_of_transformers_inside_of_vllm_are_refused(vllm, folder, monkeypatch):
    kind = type(
        "TransformersForCausalLM", (torch.nn.Module,), {"__module__": "vllm.model_executor.models.transformers"}
    )
    monkeypatch.setattr(vllm.LLM, "apply_model", lambda self, function: [function(kind())])
    with pytest.raises(ValueError, match=r"^engine: found TransformersForCausalLM, .* accepted is builtin$"):
        VLLMEngine(folder, ENCODER.limits)


def test_more_prompts_than_a_step_reads(vllm, folder, monkeypatch):
    monkeypatch.setattr(stand_in_vllm.LLM, "step_tokens", 20)
    engine = VLLMEngine(folder, ENCODER.limits)
    rows = engine(lively_policy(ENCODER), ENCODER, PROMPTS, SAMPLING).sequences
    assert rows.prompt_mask.sum() > 20
    with pytest.raises(RuntimeError, match="offset"):
        VLLMEngine(folder, ENCODER.limits, enable_chunked_prefill=True)(
            lively_policy(ENCODER), ENCODER, PROMPTS, SAMPLING
        )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_memory_is_that_of_the_setting(monkeypatch, folder, device):
    """Most of it is taken by somebody else."""
    monkeypatch.setattr(stand_in_vllm.LLM, "free_memory", 2**30)
    module = install(monkeypatch, device)
    VLLMEngine(folder, ENCODER.limits, VLLMConfig(kv_cache_gib=0.25))
    assert module.made[0].arguments["kv_cache_memory_bytes"] == 2**28
    for size in (2.0, 1e-6):
        with pytest.raises(
            ValueError, match=rf"^engine: found what vLLM does not take, with vllm.kv_cache_gib {size}: "
        ):
            VLLMEngine(folder, ENCODER.limits, VLLMConfig(kv_cache_gib=size))


def test_weights_go_over_in_the_precision_of_the_engine(vllm, folder):
    policy = lively_policy(ENCODER)
    VLLMEngine(folder, ENCODER.limits, precision="bfloat16")(policy, ENCODER, PROMPTS[:2], SAMPLING)
    assert torch.equal(vllm.made[0].calls[0].weights, flat(policy).bfloat16())
    assert next(policy.parameters()).dtype == torch.float32


def test_the_process_is_as_it_was(vllm, folder):
    def state() -> list:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]

    before, set_threads = state(), torch.set_num_threads
    engine = VLLMEngine(folder, ENCODER.limits)
    assert (state(), torch.set_num_threads) == (before, set_threads)
    engine(lively := lively_policy(ENCODER), ENCODER, PROMPTS[:2], SAMPLING)
    before = state()
    engine(lively, ENCODER, PROMPTS[:2], SAMPLING)
    assert state() == before


def test_on_a_gpu_it_sleeps_between_the_calls(monkeypatch, folder):
    module = install(monkeypatch, "cuda")
    engine, policy = VLLMEngine(folder, ENCODER.limits), lively_policy(ENCODER)
    (llm,) = module.made
    once = ["wake_up ['weights']", "reload_weights", "wake_up ['kv_cache']", "generate", "sleep 2"]
    for number in range(2):
        engine(policy, ENCODER, PROMPTS[:2], SAMPLING)
        assert torch.equal(llm.calls[number].weights, flat(policy))
    assert llm.log == ["generate", "sleep 2", *once, *once]
    assert llm.worker.asleep
    assert "enable_chunked_prefill" not in llm.arguments


@pytest.mark.parametrize(("size", "together"), [(3, 1), (4, 2), (2, 2)])
def test_the_processes_of_a_job_divide_the_rows(vllm, folder, monkeypatch, size, together):
    """Each gives its own to the others, and those that work as one have sampled the same."""
    policy, config = lively_policy(ENCODER), VLLMConfig(tensor_parallel=together)
    alone = VLLMEngine(folder, ENCODER.limits)(policy, ENCODER, PROMPTS[:7], SAMPLING, first_episode=3)
    assert vllm.made[0].llm_engine.engine_core._finalizer.alive
    given: list = []
    monkeypatch.setattr(distributed, "size_of_job", lambda: size)
    monkeypatch.setattr(distributed, "gather", lambda part, count: given[-1].append(part) or torch.ones(7, 6) > 0)
    monkeypatch.setattr(vllm_rollout, "Rollout", lambda **_: None)
    monkeypatch.setattr(vllm_rollout, "Sequences", lambda **_: None)
    for rank in range(size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        given.append([])
        VLLMEngine(folder, ENCODER.limits, config)(policy, ENCODER, PROMPTS[:7], SAMPLING, first_episode=3)
    for rank, (tokens, mask) in enumerate(given):
        rows = alone.sequences.select(torch.arange(7)[rank::size])
        width = tokens.shape[1]
        assert torch.equal(tokens[mask], rows.response[rows.response_mask])
        assert torch.equal(mask, rows.response_mask[:, :width])
    for rank, llm in enumerate(vllm.made[1:]):
        assert llm.arguments["distributed_executor_backend"] == "external_launcher"
        assert llm.arguments["tensor_parallel_size"] == together
        assert not llm.llm_engine.engine_core._finalizer.alive
        partner = vllm.made[1 + rank // together * together]
        assert [p.seed for p in llm.calls[0].params] == [p.seed for p in partner.calls[0].params]


def test_processes_that_do_not_divide_the_job_are_refused(vllm, folder, monkeypatch):
    monkeypatch.setattr(distributed, "size_of_job", lambda: 4)
    with pytest.raises(ValueError, match=r"^vllm.tensor_parallel: found 3 in a job of 4 processes, accepted are the"):
        VLLMEngine(folder, ENCODER.limits, VLLMConfig(tensor_parallel=3))


def test_versions(monkeypatch, folder):
    install(monkeypatch, version="0.27.1")
    with pytest.raises(RuntimeError, match=r"^engine: found vLLM 0.27.1, accepted are versions from 0.28$"):
        VLLMEngine(folder, ENCODER.limits)
    install(monkeypatch, version="0.41.0rc1")
    with pytest.warns(UserWarning, match=r"^engine: found vLLM 0.41.0rc1, this was written with 0.28 to 0.33$"):
        VLLMEngine(folder, ENCODER.limits)
    assert sys.modules["vllm"].made
