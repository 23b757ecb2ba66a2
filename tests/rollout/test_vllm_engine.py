"""The vLLM engine over a stand-in for the package: what it is given, what comes back, and a PPO iteration with it."""

import random
import sys
from dataclasses import replace

import pytest
import stand_in_vllm
import torch
from stand_in_vllm import flat
from tiny import lively_policy, tiny_encoder, tiny_reward_model, words

from instructrl import cli
from instructrl.data.settings import Limits
from instructrl.models.adapters import whole
from instructrl.models.policy import Policy
from instructrl.models.roles import learner, load_policy
from instructrl.models.settings import AdapterConfig
from instructrl.rollout.engines import open_engine
from instructrl.rollout.generate import Sampling, sample_rollout
from instructrl.rollout.randomness import keyed_seed
from instructrl.rollout.settings import Truncation
from instructrl.rollout.vllm_engine import VLLMEngine
from instructrl.trainers.ppo import PPOTrainer
from instructrl.trainers.settings import AdamConfig, PPOConfig

ENCODER = tiny_encoder()
END = ENCODER.end_of_text
PROMPTS = [words(random.Random(i)) for i in range(24)]
SAMPLING = Sampling(seed=11, temperature=1.5, max_response_tokens=6)
OTHER_END = 3


def test_prompts_and_parameters_are_passed(vllm, folder):
    VLLMEngine(folder, ENCODER.limits)(lively_policy(ENCODER), ENCODER, PROMPTS, SAMPLING, first_episode=40)
    ((call,), (llm,)) = vllm.made[0].calls, vllm.made
    assert [prompt["prompt_token_ids"] for prompt in call.prompts] == [ENCODER.prompt(text) for text in PROMPTS]
    assert [params.seed for params in call.params] == [keyed_seed(11, 40 + i) for i in range(len(PROMPTS))]
    expected = stand_in_vllm.SamplingParams(
        temperature=1.5, max_tokens=6, stop_token_ids=[END], ignore_eos=True, detokenize=False
    )
    assert all(replace(params, seed=None) == expected for params in call.params)
    assert llm.arguments == {
        "model": str(folder),
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "max_model_len": ENCODER.limits.total,
        "generation_config": "vllm",
        "enforce_eager": False,
        "kv_cache_memory_bytes": 4 * 2**30,
        "tensor_parallel_size": 1,
        "enable_chunked_prefill": False,
    }


def test_rows_are_what_was_sampled(vllm, folder):
    """Prompts padded on the left, responses on the right, the end-of-text token counted, in the prompts' order."""
    rollout = VLLMEngine(folder, ENCODER.limits)(lively_policy(ENCODER), ENCODER, PROMPTS, SAMPLING)
    rows = rollout.sequences
    (call,) = vllm.made[0].calls
    assert rows.response.shape == rows.response_mask.shape == (len(PROMPTS), 6)
    assert rollout.finished.dtype == torch.bool
    for i, output in enumerate(call.outputs):
        prompt, sampled = ENCODER.prompt(PROMPTS[i]), output.outputs[0].token_ids
        padding = rows.prompt.shape[1] - len(prompt)
        assert rows.prompt[i].tolist() == [END] * padding + prompt
        assert rows.prompt_mask[i].tolist() == [False] * padding + [True] * len(prompt)
        assert rows.response[i].tolist() == sampled + [END] * (6 - len(sampled))
        assert rows.response_mask[i].tolist() == [True] * len(sampled) + [False] * (6 - len(sampled))
        assert bool(rollout.finished[i]) == (output.outputs[0].finish_reason == "stop") == (sampled[-1] == END)
    assert 0 < int(rollout.finished.sum()) < len(PROMPTS)


def test_unnamed_embeddings_are_barred(vllm, tmp_path):
    policy = lively_policy(ENCODER, unnamed=9)
    policy.save(tmp_path / "model", ENCODER.tokenizer)
    rows = VLLMEngine(tmp_path / "model", ENCODER.limits)(policy, ENCODER, PROMPTS, SAMPLING).sequences
    assert int(rows.response.max()) < policy.num_ids
    policy.num_ids += 9
    rows = VLLMEngine(tmp_path / "model", ENCODER.limits)(policy, ENCODER, PROMPTS, SAMPLING).sequences
    assert int(rows.response.max()) >= len(ENCODER.tokenizer)


def test_the_policys_ends_end_a_response(vllm, folder):
    rollout = VLLMEngine(folder, ENCODER.limits)(Policy.load(folder, ENCODER.tokenizer), ENCODER, PROMPTS, SAMPLING)
    rows = rollout.sequences
    last = rows.response[rollout.last_tokens].tolist()
    assert len(last) == int(rollout.finished.sum())
    assert set(last) == {END, OTHER_END}
    assert not ((rows.response[:, :-1] == OTHER_END) & rows.response_mask[:, 1:]).any()


def test_what_the_engines_folder_names_ends_none(vllm, folder):
    """The policy is another model: the folder gave the architecture."""
    rows = VLLMEngine(folder, ENCODER.limits)(lively_policy(ENCODER), ENCODER, PROMPTS, SAMPLING).sequences
    inside = (rows.response[:, :-1] == OTHER_END) & rows.response_mask[:, 1:]
    assert inside.any()
    assert vllm.made[0].folder_ends == [END, OTHER_END]


def test_every_rollout_takes_the_weights_and_resets_the_cache(vllm, folder):
    policy, engine = lively_policy(ENCODER), VLLMEngine(folder, ENCODER.limits)
    expected = []
    for step in range(2):
        with torch.no_grad():
            policy.lm.transformer.wte.weight.add_(0.01 * step)
        expected.append(flat(policy).clone())
        engine(policy, ENCODER, PROMPTS[:2], SAMPLING)
    llm = vllm.made[0]
    assert not torch.equal(expected[0], expected[1])
    assert [torch.equal(call.weights, at) for call, at in zip(llm.calls, expected, strict=True)] == [True, True]
    assert (llm.worker.num_reloads, llm.num_resets) == (2, 2)
    llm.can_reset = False
    with pytest.raises(RuntimeError, match="prefix cache in use"):
        engine(policy, ENCODER, PROMPTS[:2], SAMPLING)


def test_a_key_gives_a_sample(vllm, folder):
    """Row i is episode `first_episode + i`, whatever else is in the call."""
    policy, engine = lively_policy(ENCODER), VLLMEngine(folder, ENCODER.limits)
    whole = engine(policy, ENCODER, PROMPTS, SAMPLING, first_episode=7).sequences
    part = engine(policy, ENCODER, PROMPTS[5:9], SAMPLING, first_episode=12).sequences
    for k in range(4):
        alone = part.response[k][part.response_mask[k]]
        assert torch.equal(alone, whole.response[5 + k][whole.response_mask[5 + k]])
    other = engine(policy, ENCODER, PROMPTS, replace(SAMPLING, seed=12), first_episode=7).sequences
    assert other.tokens.shape != whole.tokens.shape or not torch.equal(other.tokens, whole.tokens)


def test_what_vllm_would_change_is_refused(vllm, folder):
    policy, engine = lively_policy(ENCODER), VLLMEngine(folder, ENCODER.limits)
    for temperature in (0.001, 2.5):
        with pytest.raises(
            ValueError, match=rf"temperature: found {temperature}, accepted by vLLM is 0 and 0.01 to 2.0"
        ):
            engine(policy, ENCODER, PROMPTS, replace(SAMPLING, temperature=temperature))
    with pytest.raises(ValueError, match=r"stop: found .*, accepted by this engine are token ids alone"):
        engine(policy, ENCODER, PROMPTS, replace(SAMPLING, truncation=Truncation(stop=("w1",))))
    with pytest.raises(ValueError, match="limits: found 21 tokens, the engine was opened for up to 20"):
        engine(policy, ENCODER, PROMPTS, replace(SAMPLING, max_response_tokens=9))


def test_an_aborted_response_is_an_error(vllm, folder, monkeypatch):
    aborted = stand_in_vllm.CompletionOutput(0, "", [], "abort")
    monkeypatch.setattr(stand_in_vllm.LLM, "_sample", lambda *_: aborted)
    engine = VLLMEngine(folder, ENCODER.limits)
    with pytest.raises(RuntimeError, match="ended by 'abort'"):
        engine(lively_policy(ENCODER), ENCODER, PROMPTS, SAMPLING)


def test_engines_by_name(vllm, folder):
    assert open_engine("builtin", folder, ENCODER.limits) is sample_rollout
    assert vllm.made == []
    assert isinstance(open_engine("vllm", folder, ENCODER.limits, precision="bfloat16"), VLLMEngine)
    assert vllm.made[0].arguments["dtype"] == "bfloat16"


def test_a_missing_package_is_named(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(RuntimeError, match=r"^engine: found 'vllm', which is not installed; .*instructrl\[vllm\]$"):
        open_engine("vllm", folder, ENCODER.limits)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_ppo_with_the_engine(vllm, folder, precision):
    """Both iterations sample from the weights of their moment, and log-probabilities are the trainer's own: the first
    ratio is 1 and there is no KL to the reference."""
    policy = Policy.load(folder)
    config = PPOConfig(
        num_episodes=32,
        rollout_batch=16,
        minibatch=16,
        policy_adam=AdamConfig(lr=1e-3),
        warmup_iterations=0,
        max_response_tokens=6,
        missing_eos_score=None,
    )
    engine = VLLMEngine(folder, ENCODER.limits)
    trainer = PPOTrainer(policy, tiny_reward_model(policy), PROMPTS, ENCODER, config, seed=2, engine=engine)
    before, metrics = [], []
    for step in range(2):
        trainer.step = step
        before.append(flat(policy).clone())
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            metrics.append(trainer.train_step()[0])
    calls = vllm.made[0].calls
    assert [torch.equal(call.weights, at) for call, at in zip(calls, before, strict=True)] == [True, True]
    assert not torch.equal(before[0], before[1])
    assert not {p.seed for p in calls[0].params} & {p.seed for p in calls[1].params}
    if precision == "float32":
        assert metrics[0]["kl"] == 0
        assert abs(metrics[0]["ratio_max"] - 1) <= 1e-5
        assert metrics[1]["kl"] != 0


def test_the_command_takes_the_engine(vllm, arguments, tmp_path):
    assert cli.main([*arguments, "--engine", "vllm"]) == 0
    assert len(vllm.made[0].calls) == 1
    assert "engine: vllm" in (tmp_path / "out/config.yaml").read_text()
    assert (tmp_path / "out/models/ppo/config.json").exists()
    assert vllm.made[0].arguments["max_model_len"] == Limits(max_prompt_tokens=12, max_response_tokens=8).total


def test_the_command_refuses_before_it_removes(monkeypatch, arguments, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    (tmp_path / "out").mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / "out" / name).write_text("")
    assert cli.main([*arguments, "--engine", "vllm", "--fresh"]) != 0
    assert "engine: found 'vllm', which is not installed" in capsys.readouterr().err
    stand_in_vllm.install(monkeypatch, version="0.9.2")
    assert cli.main([*arguments, "--engine", "vllm", "--fresh"]) == 2
    assert "engine: found vLLM 0.9.2, accepted are versions from 0.28" in capsys.readouterr().err
    assert (tmp_path / "out/metrics.jsonl").exists()
    assert cli.main([*arguments, "--engine", "other"]) != 0
    assert "--engine: found 'other', accepted is builtin or vllm" in capsys.readouterr().err


def test_an_adapter_goes_over_in_the_weights_of_its_base(vllm, folder):
    adapter = AdapterConfig(rank=2)
    policy = learner(load_policy(folder, ENCODER.tokenizer, adapter), adapter)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    VLLMEngine(folder, ENCODER.limits)(policy, ENCODER, PROMPTS[:2], SAMPLING)
    (call,) = vllm.made[0].calls
    assert torch.equal(call.weights, flat(whole(policy)))
