"""PPO by TRL's names, held to what TRL's own trainer computed of the same rollout."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, LlamaForCausalLM

from benchmarks.end_to_end.host_runs import trl_ppo
from instructrl.integrations.trl import PPOConfig, PPOTrainer, RewardConfig
from instructrl.integrations.trl.arguments import NO_EFFECT, _honoured
from instructrl.types import Rollout

RECORDS = json.loads((Path(__file__).parent / "trl_records.json").read_text(encoding="utf-8"))
ROUNDING = 64 * torch.finfo(torch.float32).eps
ROWS = [{"input_ids": ids} for ids in trl_ppo.PROMPTS]


def networks(kind):
    roles = {"model": "policy", "ref_model": "reference", "reward_model": "reward", "value_model": "value"}
    return {name: trl_ppo.network(kind, role) for name, role in roles.items()}


def trainer(folder, kind="gpt2", rows=ROWS, networks_=None, **given):
    config = PPOConfig(output_dir=str(folder), **{"bf16": False, "use_cpu": True, **trl_ppo.COMMON, **given})
    return PPOTrainer(config, trl_ppo.tokenizer(), train_dataset=rows, **(networks_ or networks(kind)))


def sampled(responses):
    """An engine that says what was sampled."""

    def engine(policy, encoder, prompts, sampling, *, first_episode=0):
        rows = [responses[trl_ppo.PROMPTS.index(list(ids))] for ids in prompts]
        longest = max(map(len, rows))
        sequences = encoder.pairs(prompts, rows)
        assert sequences.response.shape == (len(rows), longest)
        return Rollout(sequences=sequences, finished=torch.tensor([row[-1] in encoder.ends for row in rows]))

    return engine


@pytest.mark.parametrize("case", trl_ppo.PPO_CASES)
def test_an_iteration_is_trls(case, tmp_path):
    kind, given = trl_ppo.PPO_CASES[case]
    expected, ours, steps = RECORDS["ppo"][case], trainer(tmp_path, kind, **given), []
    ours.engine = sampled(trl_ppo.SAMPLED["stop_token" in given])
    of_policy, of_values = ours.policy_update, ours.value_update
    of_policy.optimizer.register_step_pre_hook(
        lambda *_: steps.append({"policy": trl_ppo.projected(trl_ppo.gradients(ours.policy.lm))})
    )
    of_values.optimizer.register_step_pre_hook(
        lambda *_: steps[-1].update(value=trl_ppo.projected(trl_ppo.gradients(ours.value_function.network)))
    )
    metrics, _ = ours.train_step()
    found = [metrics[name] for name in ("kl", "score", "reward", "policy_loss", "value_loss")]
    names = ("objective/kl", "objective/scores", "objective/rlhf_reward", "loss/policy_avg", "loss/value_avg")
    assert found == pytest.approx([expected[name] for name in names], rel=ROUNDING, abs=ROUNDING)
    assert len(steps) == len(expected["steps"]) == 2
    for step, wanted in zip(steps, expected["steps"], strict=True):
        for name, numbers in wanted.items():
            norm = numbers[0]
            assert step[name] == pytest.approx(numbers, rel=0, abs=ROUNDING * norm), name


def weights(module):
    return torch.cat([x.detach().flatten() for x in module.parameters()])


def test_a_run_that_was_broken_off_comes_to_the_same_bits(tmp_path, monkeypatch):
    given = {"total_episodes": 24, "save_steps": 1, "num_mini_batches": 2, "num_ppo_epochs": 1, "stop_token": "eos"}
    whole, begun, resumed, again = (trainer(tmp_path / name, **given) for name in ("whole", *["parts"] * 3))
    whole.train()
    save = begun.save

    def broken_off(checkpoints, log, shown=None):
        save(checkpoints, log, shown)
        if begun.step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(begun, "save", broken_off)
    with pytest.raises(KeyboardInterrupt):
        begun.train()
    resumed.train(resume_from_checkpoint=True)
    for name in ("policy", "value_function"):
        assert torch.equal(weights(getattr(whole, name)), weights(getattr(resumed, name)))
    rows = [(tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8") for name in ("whole", "parts")]
    assert rows[0] == rows[1]
    assert len(rows[0].splitlines()) == 3
    again.train(str(tmp_path / "parts/checkpoints/step-00000002"))
    assert whole.digest() == again.digest()


def test_without_a_checkpoint_there_is_nothing_to_go_on_with(tmp_path):
    with pytest.raises(ValueError, match="resume_from_checkpoint: found none in"):
        trainer(tmp_path / "none").train(resume_from_checkpoint=True)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match=r"step-00000009: manifest.json is missing, accepted is a checkpoint's folder"):
        trainer(tmp_path).train(str(tmp_path / "checkpoints/step-00000009"))
    ours = trainer(tmp_path, save_strategy="no")
    (tmp_path / "checkpoints/step-00000001").mkdir(parents=True)
    ours.train()
    assert not (tmp_path / "checkpoints").exists()


def test_both_networks_are_saved_as_folders_that_transformers_loads(tmp_path):
    ours = trainer(tmp_path)
    ours.train_step()
    ours.save_model(tmp_path / "saved")
    policy = GPT2LMHeadModel.from_pretrained(tmp_path / "saved")
    value = GPT2ForSequenceClassification.from_pretrained(tmp_path / "saved/value_model")
    assert torch.equal(weights(policy), weights(ours.policy.lm))
    assert policy.generation_config.eos_token_id == trl_ppo.END  # though nothing ended a response in training
    assert torch.equal(weights(value), weights(ours.value_function.network))


def test_any_function_is_the_reward_and_is_told_texts(tmp_path):
    seen = []

    def reward(prompts, responses):
        seen.extend(zip(prompts, responses, strict=True))
        return [len(text.split()) for text in responses]

    given = {"model": trl_ppo.network("gpt2", "policy"), "ref_model": None, "reward_model": reward}
    ours = trainer(tmp_path, networks_=given, stop_token="eos", missing_eos_penalty=2.0)
    metrics, _ = ours.train_step()
    assert {prompt for prompt, _ in seen} == {" ".join(f"w{i}" for i in ids) for ids in trl_ppo.PROMPTS}
    unfinished = 1 - metrics["finished"]
    lengths = [len(text.split()) for _, text in seen]
    assert all("<eos>" not in text for _, text in seen)
    assert metrics["score"] == pytest.approx(sum(lengths) / 8 - 2 * unfinished)


def test_networks_that_are_given_are_those_that_are_used(tmp_path):
    given = networks("gpt2")
    before = {name: weights(network) for name, network in given.items()}
    ours = trainer(tmp_path, networks_=given, num_ppo_epochs=1)
    ours.train_step()
    changed = {name: not torch.equal(before[name], weights(network)) for name, network in given.items()}
    assert changed == {"model": True, "ref_model": False, "reward_model": False, "value_model": True}
    same = trl_ppo.network("gpt2", "reward")
    shared = trainer(tmp_path, networks_={**networks("gpt2"), "reward_model": same, "value_model": same})
    shared.train_step()
    assert torch.equal(before["reward_model"], weights(same))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_an_adapter_learns_in_place_of_the_policys_weights(kind, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    given = {**networks(kind), "ref_model": None}
    before = {name: network and network.state_dict() for name, network in given.items()}
    before = {name: {key: x.clone() for key, x in (of or {}).items()} for name, of in before.items()}
    lora = peft.LoraConfig(r=2, lora_alpha=6, lora_dropout=0.1, task_type="CAUSAL_LM")
    ours = trainer(tmp_path, networks_={**given, "peft_config": lora}, total_episodes=16, save_steps=1)
    rates = ours.train_step()[0]
    assert rates["kl"] == 0  # the reference is the policy's base
    ours.train_step()
    ours.save_model(tmp_path / "saved")
    plain = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}[kind](given["model"].config).eval()
    plain.load_state_dict(before["model"])
    ids = torch.tensor([[3, 4, 5]])
    start = plain(input_ids=ids).logits
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "saved").eval()
    assert loaded.peft_config["default"].r == 2
    assert loaded.peft_config["default"].lora_alpha == 6
    assert not torch.allclose(loaded(input_ids=ids).logits, start)
    with loaded.disable_adapter():
        assert torch.equal(loaded(input_ids=ids).logits, start)
    assert (tmp_path / "saved/value_model/model.safetensors").exists()
    value = ours.value_function.network.state_dict()
    assert any(not torch.equal(value[key], x) for key, x in before["value_model"].items())
    assert all(torch.equal(ours.reward_model.network.state_dict()[key], x) for key, x in before["reward_model"].items())


@pytest.mark.parametrize("name", ["model", "ref_model", "reward_model", "value_model"])
def test_a_model_of_peft_is_refused(name, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    given = networks("llama")
    given[name] = peft.get_peft_model(given[name], peft.LoraConfig(r=2))
    with pytest.raises(TypeError, match=f"^{name}: found PeftModel, accepted is a transformers network: of peft's"):
        trainer(tmp_path, networks_=given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"use_dora": True}, "peft_config: use_dora: found True, accepted is False"),
        ({"target_modules": ["nowhere"]}, "adapter.targets: found nowhere, accepted are linear layers"),
        ({"target_modules": ".*_proj"}, "peft_config: target_modules: found '.*_proj', accepted are names"),
        ({"modules_to_save": ["lm_head"]}, r"peft_config: modules_to_save: found \['lm_head'\], accepted is None"),
    ],
)
def test_another_adapter_is_refused(given, message, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, networks_={**networks("gpt2"), "peft_config": peft.LoraConfig(**given)})
    with pytest.raises(TypeError, match="peft_config: found IA3Config, accepted is peft's LoraConfig"):
        trainer(tmp_path, networks_={**networks("gpt2"), "peft_config": peft.IA3Config()})


def test_samples_are_written_while_it_trains(tmp_path):
    given = {"total_episodes": 32, "num_sample_generations": 2, "save_strategy": "no", "per_device_eval_batch_size": 3}
    config = PPOConfig(output_dir=str(tmp_path), bf16=False, **{**trl_ppo.COMMON, **given})
    ours = PPOTrainer(config, trl_ppo.tokenizer(), train_dataset=ROWS, eval_dataset=ROWS, **networks("gpt2"))
    ours.train()
    names = sorted(path.name for path in tmp_path.glob("completions-*"))
    assert names == ["completions-00000000.jsonl", "completions-00000002.jsonl"]
    rows = [json.loads(line) for line in (tmp_path / names[0]).read_text(encoding="utf-8").splitlines()]
    assert [set(row) for row in rows] == [{"query", "model response", "score"}] * 3
    assert not (tmp_path / "checkpoints").exists()
    assert len(ours.generate_completions()) == len(ROWS)


ROW = {"input_ids": [trl_ppo.PAD, 3, 4, trl_ppo.PAD]}


@pytest.mark.parametrize("kind", ["ids", "text", "datasets"])
def test_prompts_are_rows_of_ids_or_texts(kind, tmp_path):
    rows = [{"prompt": "w3 w4"}] if kind == "text" else [ROW]
    if kind == "datasets":
        rows = pytest.importorskip("datasets", reason="datasets is not installed").Dataset.from_list(rows)
    assert trainer(tmp_path, rows=rows, total_episodes=8).prompts == [(3, 4)]


def test_a_collator_makes_the_ids_of_a_row(tmp_path):
    config = PPOConfig(output_dir=str(tmp_path), bf16=False, **trl_ppo.COMMON)

    def collate(rows):
        return {"input_ids": torch.tensor([[trl_ppo.PAD, *row["question"]] for row in rows])}

    ours = PPOTrainer(
        config, trl_ppo.tokenizer(), train_dataset=[{"question": [5, 6]}], data_collator=collate, **networks("gpt2")
    )
    assert ours.prompts == [(5, 6)]


def test_the_names_of_earlier_versions(tmp_path):
    config = PPOConfig(output_dir=str(tmp_path), bf16=False, **trl_ppo.COMMON)
    given = networks("gpt2")
    policy, reference = given.pop("model"), given.pop("ref_model")
    ours = PPOTrainer(
        config=config, tokenizer=trl_ppo.tokenizer(), policy=policy, ref_policy=reference, train_dataset=ROWS, **given
    )
    assert ours.policy.lm is policy
    assert ours.reference.lm is reference


def test_the_rate_falls_as_transformers_has_it(tmp_path):
    ours = trainer(tmp_path, total_episodes=32, warmup_steps=1)
    rates = [ours.train_step()[0]["lr"] for _ in range(4)]
    assert rates == pytest.approx([0.0, 0.05, 0.05 * 2 / 3, 0.05 / 3])


def test_processes_that_have_not_met_do_not_train_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE: found 2 processes that have not met, accepted is a script"):
        trainer(tmp_path)


# Each honoured argument, another value than its own, and where it arrives.
ARRIVES = {
    "per_device_train_batch_size": (16, lambda ours: ours.config.microbatch, 16),
    "gradient_accumulation_steps": (2, lambda ours: ours.config.rollout_batch, 16),
    "num_mini_batches": (4, lambda ours: ours.config.minibatch, 2),
    "total_episodes": (33, lambda ours: ours.config.num_episodes, 40),
    "num_ppo_epochs": (3, lambda ours: ours.config.num_epochs, 3),
    "local_rollout_forward_batch_size": (5, lambda ours: ours._estimation().batch_size, 5),
    "response_length": (7, lambda ours: ours.config.max_response_tokens, 7),
    "stop_token_id": (9, lambda ours: ours.policy.ends(*ours.encoder.ends), [9]),
    "temperature": (0.5, lambda ours: ours.config.temperature, 0.5 + 1e-7),
    "kl_coef": (0.3, lambda ours: ours.kl_coef, 0.3),
    "cliprange": (0.3, lambda ours: ours.config.cliprange, 0.3),
    "cliprange_value": (0.3, lambda ours: ours.config.cliprange_value, 0.3),
    "vf_coef": (0.3, lambda ours: ours.config.vf_coef, 0.3),
    "gamma": (0.3, lambda ours: ours.config.discount, 0.3),
    "lam": (0.3, lambda ours: ours.config.lam, 0.3),
    "learning_rate": (0.3, lambda ours: ours.value_update.lr, 0.3),
    "adam_beta1": (0.3, lambda ours: ours.policy_update.optimizer.defaults["betas"][0], 0.3),
    "adam_beta2": (0.3, lambda ours: ours.value_update.optimizer.defaults["betas"][1], 0.3),
    "adam_epsilon": (0.3, lambda ours: ours.policy_update.optimizer.defaults["eps"], 0.3),
    "max_grad_norm": (0.3, lambda ours: ours.policy_update._max_grad_norm, 0.3),
    "lr_scheduler_type": ("constant", lambda ours: [ours.train_step()[0]["lr"] for _ in range(2)], [0.05, 0.05]),
    "warmup_ratio": (0.5, lambda ours: [ours.train_step()[0]["lr"] for _ in range(2)], [0.0, 0.05]),
    "seed": (5, lambda ours: ours.seed, 5),
    "bf16": (True, lambda ours: ours._passes.precision, "bfloat16"),
    "gradient_checkpointing": (False, lambda ours: ours._passes.checkpoint_activations, False),
}
# Seen in what other tests here compare or find.
ELSEWHERE = {
    *("output_dir", "save_strategy", "save_steps", "save_total_limit", "use_cpu", "resume_from_checkpoint"),
    *("kl_estimator", "whiten_rewards", "missing_eos_penalty", "stop_token", "num_sample_generations"),
    *("per_device_eval_batch_size", "num_train_epochs", "lr_scheduler_kwargs", "warmup_steps"),
}


@pytest.mark.parametrize("name", ARRIVES)
def test_an_argument_arrives(name, tmp_path):
    value, found, expected = ARRIVES[name]
    ours = trainer(tmp_path, **{"total_episodes": 16, **({"num_ppo_epochs": 1} if "w" in name else {}), name: value})
    assert found(ours) == pytest.approx(expected)


def test_every_honoured_argument_is_tried():
    assert {*ARRIVES, *ELSEWHERE} == _honoured(PPOConfig)


def test_passes_over_the_data_and_how_many_checkpoints_stay(tmp_path):
    given = {"total_episodes": None, "num_train_epochs": 3, "num_ppo_epochs": 1}
    ours = trainer(tmp_path, **given, save_steps=0.4, save_total_limit=1)
    assert ours.num_steps == 3
    assert ours.args.save_every(ours.num_steps) == 2
    ours.train()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    assert ours.args.resume_from_checkpoint is None
    again = trainer(tmp_path, **given, resume_from_checkpoint="True")
    again.train()
    assert again.digest() == ours.digest()


REFUSED = {
    "fp16": (True, "fp16: found True, accepted is False, with bf16"),
    "max_steps": (5, "max_steps: found 5, accepted is -1, with total_episodes"),
    "weight_decay": (0.1, "weight_decay: found 0.1, accepted is 0.0"),
    "report_to": (["wandb"], r"report_to: found \['wandb'\], accepted is 'none'"),
    "optim": ("sgd", "optim: found 'sgd', accepted is 'adamw_torch'"),
    "label_smoothing_factor": (
        0.1,
        "label_smoothing_factor: found 0.1, accepted is 0.0: this trainer has no such thing",
    ),
    "save_strategy": ("epoch", "save_strategy: found 'epoch', accepted are 'steps'"),
    "kl_estimator": ("k2", "kl_estimator: found 'k2', accepted are 'k1' and 'k3'"),
    "num_mini_batches": (3, "num_mini_batches: found 3, accepted are divisors of a batch of 8"),
    "stop_token": ("word", "stop_token: found 'word', accepted are 'eos' and None"),
    "missing_eos_penalty": (-1.0, "missing_eos_penalty: found -1.0, accepted are positive numbers"),
    "response_length": (40, "response_length: found 44 tokens in a sequence, accepted are up to the 32 positions"),
    "world_size": (2, "world_size: found 2, accepted is None"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_argument_that_would_be_ignored_is_refused_in_a_line(name, tmp_path):
    value, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        trainer(tmp_path / "out", **{name: value})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "ours"), [("PPOConfig", PPOConfig), ("RewardConfig", RewardConfig)])
def test_every_argument_of_trl_is_known_and_goes_through_as_it_is(kind, ours):
    """What 1.12 has, and transformers of the time of 0.11, with what they are where nothing is said."""
    known = {each.name: each.default for each in dataclasses.fields(ours)}
    given = {**RECORDS["arguments"]["0.11"]["TrainingArguments"], **RECORDS["arguments"]["1.12"][kind]}
    given = {name: value for name, value in given.items() if name not in ("_n_gpu", "include_for_metrics")}
    given = {name: getattr(value, "value", value) for name, value in given.items()}
    assert set(given) <= set(known)
    made = ours(**{name: value for name, value in given.items() if value is not None})
    differing = {name for name, value in given.items() if getattr(made, name) != value and value is not None}
    assert not differing
    ours(**{name: None for name, value in given.items() if value is None and known[name] is None})
    own = {name for name in known if known[name] != given.get(name, known[name])} - NO_EFFECT
    assert own == {"output_dir", "warmup_ratio"} | ({"max_grad_norm"} if kind == "PPOConfig" else set())
