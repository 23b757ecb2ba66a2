"""The vLLM engine with vLLM itself, beside the decoding loop here: `make vllm-test` makes an environment with it."""

import copy
import importlib
import importlib.util
import inspect
import json
import random
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import stand_in_vllm
import torch
from ops.op_accuracy import assert_no_less_accurate
from sharp_policies import ENCODER, config, sampled, sharp_policy, sharpen
from tiny import tiny_encoder, tiny_reward_model, words

from instructrl.models.adapters import whole
from instructrl.models.policy import Policy
from instructrl.models.roles import learner, load_policy
from instructrl.models.settings import AdapterConfig
from instructrl.rollout.generate import Sampling, sample_rollout
from instructrl.rollout.settings import Truncation, VLLMConfig
from instructrl.rollout.vllm_engine import VLLMEngine

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make vllm-test has an environment with it"
)

END = ENCODER.end_of_text
PROMPTS = [words(random.Random(i)) for i in range(24)]
GREEDY = Sampling(seed=0, temperature=0, max_response_tokens=6)
SAMPLING = Sampling(seed=11, temperature=1.5, max_response_tokens=6)
SMALL = VLLMConfig(kv_cache_gib=0.06, enforce_eager=True)
CHANGES = 3
UNNAMED = 9

# Kind and whether the output head is the embedding, with what is other than for the rest.
KINDS = [
    ("gpt2", True, {}),
    ("gpt2", False, {}),
    ("llama", True, {}),
    ("llama", False, {}),
    ("qwen2", True, {}),
    ("qwen3", False, {}),
    ("mistral", False, {}),
    ("phi3", False, {}),
    ("opt", True, {"ffn_dim": 96}),
    ("gemma3_text", True, {}),
    # vLLM has no module for its output head. The soft cap of its attention has errors of 3e-3 on a CPU.
    ("gemma2", True, {"attn_logit_softcapping": None}),
]


@torch.no_grad()
def logprobs(lm, ids: list[list[int]]) -> torch.Tensor:
    """Of all tokens but the first of each row."""
    found = []
    for row in ids:
        tokens = torch.tensor([row])
        found.append(lm(tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0])
    return torch.cat(found)


def logprobs_of_vllm(engine: VLLMEngine, ids: list[list[int]]) -> torch.Tensor:
    """The same, with the weights that the engine has."""
    parameters = engine._vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    outputs = engine._llm.generate([{"prompt_token_ids": row} for row in ids], parameters, use_tqdm=False)
    found = [
        said[token].logprob
        for row, output in zip(ids, outputs, strict=True)
        for said, token in zip(output.prompt_logprobs[1:], row[1:], strict=True)
    ]
    return torch.tensor(found)


@torch.no_grad()
def least_gap(lm, rows: list[list[int]]) -> float:
    """Between the likeliest and the second token, over all places of the rows."""
    two = [lm(torch.tensor([row])).logits[0].topk(2).values for row in rows]
    return min(float((best[:, 0] - best[:, 1]).min()) for best in two)


def compare(engine: VLLMEngine, policy: Policy, lm=None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Greedy rows are equal. Returns the log-probabilities of prompts and responses: of vLLM, in float32, in float64.

    lm: the policy's network where it is not that of the policy itself.
    """
    ours, theirs = (sampled(function(policy, ENCODER, PROMPTS, GREEDY)) for function in (sample_rollout, engine))
    assert theirs == ours
    ids = [ENCODER.prompt(prompt) + row for prompt, row in zip(PROMPTS, ours, strict=True)]
    lm = lm or policy.lm
    exact = copy.deepcopy(lm).double()
    found = logprobs_of_vllm(engine, ids), logprobs(lm, ids), logprobs(exact, ids)
    assert least_gap(exact, ids) > 2 * float((found[0] - found[2]).abs().max())
    return found


def tell(capsys, name: str, found: torch.Tensor, yardstick: torch.Tensor, truth: torch.Tensor) -> None:
    """The figures of docs/engines.md."""
    errors = [(x.double() - truth).abs() for x in (found, yardstick)]
    (mean, most), (mean_here, most_here) = ((float(x.mean()), float(x.max())) for x in errors)
    with capsys.disabled():
        print(
            f"\n{name}: vLLM {mean:.1e} in the mean, {most:.1e} at most; here {mean_here:.1e}, {most_here:.1e}", end=""
        )


@pytest.mark.parametrize(("kind", "tied", "others"), KINDS, ids=[f"{kind}-{tied}" for kind, tied, _ in KINDS])
def test_the_likeliest_tokens_and_their_logprobs_after_each_change(kind, tied, others, tmp_path, capsys):
    policy = sharp_policy(config(kind, tied, **others), tmp_path / "model")
    engine = VLLMEngine(tmp_path / "model", ENCODER.limits, SMALL)
    found = []
    for change in range(CHANGES):
        found.append(compare(engine, policy))
        sharpen(policy, 3 + change)
    actual, yardstick, truth = map(torch.cat, zip(*found, strict=True))
    tell(capsys, f"{kind}, {'tied' if tied else 'untied'}", actual, yardstick, truth)
    assert_no_less_accurate(actual, yardstick, truth, name=kind)


def test_an_adapter(tmp_path, capsys):
    sharp_policy(config("llama", True), tmp_path / "model")
    adapter = AdapterConfig(rank=2)
    policy = learner(load_policy(tmp_path / "model", ENCODER.tokenizer, adapter), adapter)
    engine = VLLMEngine(tmp_path / "model", ENCODER.limits, SMALL)
    found = []
    for change in range(CHANGES):
        sharpen(policy, change)  # its parameters are the adapter's
        found.append(compare(engine, policy, whole(policy).lm))
    assert not torch.equal(found[0][2], found[1][2])
    actual, yardstick, truth = map(torch.cat, zip(*found, strict=True))
    tell(capsys, "llama, tied, with an adapter", actual, yardstick, truth)
    assert_no_less_accurate(actual, yardstick, truth)


def test_bfloat16(tmp_path, capsys):
    """Weights in float32 go to an engine in bfloat16: the yardstick is the network in bfloat16."""
    policy = sharp_policy(config("llama", True), tmp_path / "model")
    engine = VLLMEngine(tmp_path / "model", ENCODER.limits, SMALL, precision="bfloat16")
    engine(policy, ENCODER, PROMPTS[:2], GREEDY)
    ids = [ENCODER.prompt(prompt) for prompt in PROMPTS]
    halved = copy.deepcopy(policy.lm).bfloat16()
    found = logprobs_of_vllm(engine, ids), logprobs(halved, ids).float(), logprobs(copy.deepcopy(halved).double(), ids)
    tell(capsys, "llama, tied, in bfloat16", *found)
    assert_no_less_accurate(*found)


def test_prompts_of_more_tokens_than_a_step_reads(tmp_path):
    """Seeded, which the CPU's generator survives where no prompt is cut; the same again, whatever else is sampled."""
    encoder = tiny_encoder(max_prompt_tokens=230, max_response_tokens=8)
    rng = random.Random(3)
    prompts = [words(rng, 200, 220) for _ in range(24)]
    policy = sharp_policy(config("gpt2", True, context=256), tmp_path / "model")
    engine = VLLMEngine(tmp_path / "model", encoder.limits, SMALL)
    first = engine(policy, encoder, prompts, SAMPLING, first_episode=7)
    assert int(first.sequences.prompt_mask.sum()) > 4096
    assert sampled(engine(policy, encoder, prompts, SAMPLING, first_episode=7)) == sampled(first)
    assert sampled(engine(policy, encoder, prompts[5:9], SAMPLING, first_episode=12)) == sampled(first)[5:9]
    assert sampled(engine(policy, encoder, prompts, SAMPLING, first_episode=8)) != sampled(first)
    greedy = sampled(engine(policy, encoder, prompts, GREEDY))
    assert greedy == sampled(sample_rollout(policy, encoder, prompts, GREEDY))


@pytest.mark.parametrize("truncation", [Truncation(), Truncation(top_k=5), Truncation(top_p=0.9)], ids=str)
def test_tokens_are_as_frequent_as_they_are_likely(tmp_path, truncation):
    """Within five standard deviations each, the ids that no token has apart."""
    settings = config("gpt2", True)
    settings.vocab_size += UNNAMED
    policy = sharp_policy(settings, tmp_path / "model")
    with torch.no_grad():
        policy.lm.transformer.wte.weight.mul_(0.3)
    engine = VLLMEngine(tmp_path / "model", ENCODER.limits, SMALL)
    count, sampling = 3000, Sampling(seed=5, temperature=1.5, max_response_tokens=1, truncation=truncation)
    tokens = engine(policy, ENCODER, PROMPTS[:1] * count, sampling).sequences.response[:, 0]
    with torch.no_grad():
        logits = policy.lm(torch.tensor([ENCODER.prompt(PROMPTS[0])])).logits[0, -1, : policy.num_ids]
    likely = (logits / sampling.temperature).softmax(-1).double()
    order = likely.argsort(descending=True)
    before = likely[order].cumsum(0) - likely[order]
    kept = order[(before < truncation.top_p) & (torch.arange(len(order)) < (truncation.top_k or len(order)))]
    likely = torch.zeros_like(likely).index_put((kept,), likely[kept])
    likely /= likely.sum()
    frequent = torch.bincount(tokens, minlength=len(likely)).double() / count
    assert len(frequent) == policy.num_ids
    assert bool(((frequent - likely).abs() <= 5 * (likely * (1 - likely) / count).sqrt()).all())


def test_what_ends_a_response(tmp_path):
    """The policy's ends do; those that the engine's folder names do not."""
    other = 3
    policy = sharp_policy(config("gpt2", True), tmp_path / "model")
    with torch.no_grad():
        policy.lm.transformer.wte.weight.mul_(0.2)
    policy.lm.generation_config.update(eos_token_id=[END, other])
    policy.save(tmp_path / "model", ENCODER.tokenizer)
    engine = VLLMEngine(tmp_path / "model", ENCODER.limits, SMALL)
    prompts = PROMPTS * 8
    rollout = engine(Policy.load(tmp_path / "model", ENCODER.tokenizer), ENCODER, prompts, SAMPLING)
    rows = sampled(rollout)
    assert {row[-1] for row, done in zip(rows, rollout.finished.tolist(), strict=True) if done} == {END, other}
    assert all(done == (row[-1] in (END, other)) for row, done in zip(rows, rollout.finished.tolist(), strict=True))
    assert not any(token in (END, other) for row in rows for token in row[:-1])
    policy.lm.generation_config.update(eos_token_id=END)
    assert any(other in row[:-1] for row in sampled(engine(policy, ENCODER, prompts, SAMPLING)))


def test_memory_and_the_process_around(tmp_path):
    def state() -> list:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]

    policy = sharp_policy(config("gpt2", True), tmp_path / "model")
    before, set_threads = state(), torch.set_num_threads
    engine = VLLMEngine(tmp_path / "model", ENCODER.limits, SMALL)
    assert engine._llm.llm_engine.vllm_config.cache_config.kv_cache_memory_bytes == int(0.06 * 2**30)
    engine(policy, ENCODER, PROMPTS, SAMPLING)
    assert (state(), torch.set_num_threads) == (before, set_threads)
    for size in (0.00001, 100000.0):
        with pytest.raises(
            ValueError, match=rf"^engine: found .*, with vllm.kv_cache_gib {size}: .*(No available|less than)"
        ):
            VLLMEngine(tmp_path / "model", ENCODER.limits, VLLMConfig(kv_cache_gib=size, enforce_eager=True))


def test_networks_of_transformers_inside_of_vllm_are_refused(tmp_path):
    sharp_policy(config("starcoder2", True), tmp_path / "model")
    with pytest.raises(ValueError, match=r"^engine: found Transformers\w+, .* accepted is builtin$"):
        VLLMEngine(tmp_path / "model", ENCODER.limits, SMALL)


def test_sizes_that_its_kernels_do_not_take_are_found_when_it_opens(tmp_path):
    sharp_policy(config("gpt2", True, n_head=4), tmp_path / "model")
    with pytest.raises(RuntimeError, match="head_dim=16"):
        VLLMEngine(tmp_path / "model", ENCODER.limits, SMALL)


def command(folder: Path, *options: str) -> list[str]:
    """PPO over three iterations."""
    policy = sharp_policy(config("llama", True), folder / "model")
    tiny_reward_model(policy).save(folder / "reward", ENCODER.tokenizer)
    rows = "".join(f'{{"prompt": "{text}"}}\n' for text in PROMPTS)
    (folder / "prompts.jsonl").write_text(rows, encoding="utf-8")
    given = {"model": "model", "reward-model": "reward", "data": "prompts.jsonl", "out": "out"}
    sizes = {"num-episodes": 48, "rollout-batch": 16, "minibatch": 8, "max-response-tokens": 6}
    given |= {f"ppo.{name}": str(size) for name, size in sizes.items()}
    given |= {"limits.max-prompt-tokens": "12", "limits.max-response-tokens": "6"}
    given |= {"engine": "vllm", "vllm.kv-cache-gib": "0.06", "vllm.enforce-eager": "True"}
    options = (*(word for name, value in given.items() for word in (f"--{name}", value)), *options)
    return ["-m", "instructrl.cli", "ppo", *options]


def told(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_of_the_command(tmp_path):
    """Its output is one line; the first ratios are those of the weights that have sampled."""
    words_of_it = [sys.executable, *command(tmp_path)]
    done = subprocess.run(words_of_it, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out/models/ppo\n"
    assert (tmp_path / "out/models/ppo/model.safetensors").exists()
    rows = told(tmp_path)
    assert len(rows) == 3
    assert rows[0]["kl"] == 0
    assert rows[2]["kl"] != 0
    assert all(row["ratio_max"] < 2 for row in rows)


@pytest.mark.parametrize("together", [1, 2])
def test_two_processes(tmp_path, together):
    """Each with an engine of its own, and both with the halves of one."""
    sharp_policy(config("llama", True, num_key_value_heads=2), tmp_path / "model")
    job = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program = [str(Path(__file__).parent / "vllm_job.py"), str(tmp_path / "model"), str(together)]
    done = subprocess.run([*job, *program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    rollouts = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rollouts) == 2
    for theirs, ours, (finished, finished_here) in rollouts:
        assert theirs == ours
        assert finished == finished_here
    assert rollouts[0][0] != rollouts[1][0]


SAME = [
    (stand_in_vllm.LLM.__init__, "vllm", "LLM.__init__"),
    *(
        (getattr(stand_in_vllm.LLM, name), "vllm", f"LLM.{name}")
        for name in ("generate", "collective_rpc", "apply_model", "sleep", "wake_up", "reset_prefix_cache")
    ),
    (stand_in_vllm.SamplingParams, "vllm", "SamplingParams"),
    (stand_in_vllm.CompletionOutput, "vllm.outputs", "CompletionOutput"),
    (stand_in_vllm.RequestOutput, "vllm.outputs", "RequestOutput"),
    *(
        (getattr(stand_in_vllm.Worker, name), "vllm.v1.worker.gpu_worker", f"Worker.{name}")
        for name in ("sleep", "wake_up")
    ),
    (
        stand_in_vllm.Worker.reload_weights,
        "vllm.v1.worker.gpu_model_runner",
        "GPUModelRunner.reload_weights",
    ),
    *(
        (getattr(stand_in_vllm.Platform, name), "vllm.platforms.interface", f"Platform.{name}")
        for name in ("is_cpu", "is_sleep_mode_available")
    ),
]


@pytest.mark.parametrize(("ours", "module", "name"), SAME, ids=[name for _, _, name in SAME])
def test_the_stand_in_has_the_signatures_of_the_package(ours, module, name):
    """Each parameter that it has, of the same kind; with the same default where it has one."""
    target = importlib.import_module(module)
    for part in name.split("."):
        target = getattr(target, part)
    theirs = inspect.signature(target).parameters
    for parameter in inspect.signature(ours).parameters.values():
        found = theirs[parameter.name]
        assert found.kind == parameter.kind or found.kind == inspect.Parameter.KEYWORD_ONLY
        assert found.default == parameter.default or parameter.default in (inspect.Parameter.empty, [], None)


def test_the_stand_in_has_no_other_arguments_than_the_package():
    arguments = importlib.import_module("vllm.engine.arg_utils").EngineArgs
    assert {field.name for field in fields(arguments)} >= stand_in_vllm.ENGINE_ARGUMENTS
