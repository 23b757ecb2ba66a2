"""PPO by the names of TRL up to 0.11, held to what its own trainer computed of the same batch."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks.end_to_end.host_runs import trl_ppo
from instructrl.integrations.trl_legacy import (
    AutoModelForCausalLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    create_reference_model,
)
from instructrl.integrations.trl_legacy.scores import RunningScores

RECORDS = json.loads((Path(__file__).parent / "trl_records.json").read_text(encoding="utf-8"))
ROUNDING = 64 * torch.finfo(torch.float32).eps


def model(kind="gpt2", role="policy"):
    found = AutoModelForCausalLMWithValueHead.from_pretrained(trl_ppo.network(kind, role))
    trl_ppo.filled(found.v_head, "head")
    return found


def batch(whitened=False):
    rows = (trl_ppo.QUERIES, trl_ppo.RESPONSES[whitened], trl_ppo.SCORES)
    return [[torch.tensor(x) for x in each] for each in rows]


def trainer(kind="gpt2", *, optimizer=None, **given):
    config = PPOConfig(**{**trl_ppo.STEP_COMMON, "mini_batch_size": 4, **given})
    own = model(kind)
    made = None if optimizer is None else optimizer(own)
    return PPOTrainer(config, own, model(kind, "reference"), trl_ppo.tokenizer(), optimizer=made)


def weights(module):
    return torch.cat([x.detach().flatten() for x in module.parameters()])


@pytest.mark.parametrize("case", trl_ppo.STEP_CASES)
def test_steps_are_trls(case, monkeypatch):
    kind, given = trl_ppo.STEP_CASES[case]
    expected, steps = RECORDS["step"][case], []
    ours = trainer(kind, optimizer=lambda own: torch.optim.Adam(own.parameters(), lr=0.02, eps=0.1), **given)
    ours.learner.update.optimizer.register_step_pre_hook(
        lambda *_: steps.append(trl_ppo.projected(trl_ppo.of_both(ours.model)))
    )
    monkeypatch.setattr(torch, "randperm", lambda count, generator=None: torch.arange(count))
    masks = trl_ppo.masks_of(trl_ppo.RESPONSES[False]) if case == "masked" else None
    stats = [ours.step(*batch("whiten_rewards" in given), response_masks=masks) for _ in range(2)]
    assert len(steps) == len(expected["steps"])
    for found, wanted in zip(steps, expected["steps"], strict=True):
        assert found == pytest.approx(wanted, rel=0, abs=ROUNDING * wanted[0])
    for found, wanted in zip(stats, expected["stats"], strict=True):
        assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=ROUNDING, abs=ROUNDING)


def test_what_is_saved_goes_on_to_the_same_bits(tmp_path):
    given = {"mini_batch_size": 2, "use_score_scaling": True, "use_score_norm": True}
    whole, begun, resumed = (trainer(**given) for _ in range(3))
    for _ in range(3):
        whole.step(*batch())
    for _ in range(2):
        begun.step(*batch())
        begun.save_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"load_checkpoint: found none in .*/elsewhere, accepted is what"):
        resumed.load_checkpoint(tmp_path / "elsewhere")
    assert resumed.load_checkpoint(tmp_path) == 2
    last = resumed.step(*batch())
    assert torch.equal(weights(whole.model), weights(resumed.model))
    assert whole.learner.digest() == resumed.learner.digest()
    assert last["objective/kl_coef"] != 0.2


def test_a_model_is_saved_with_its_head_and_loaded_again(tmp_path):
    ours = trainer()
    ours.step(*batch())
    ours.save_pretrained(tmp_path)
    again = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
    assert torch.equal(weights(ours.model.v_head), weights(again.v_head))
    assert torch.equal(weights(ours.model), weights(again))
    ids = torch.tensor([[1, 2, 3]])
    logits, loss, values = again(ids, labels=ids)
    assert logits.shape == (1, 3, trl_ppo.PAD + 1)
    assert values.shape == (1, 3)
    assert loss > 0


def test_responses_are_generated_with_and_without_their_queries():
    ours, queries = trainer(), batch()[0]
    given = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": trl_ppo.PAD, "eos_token_id": trl_ppo.END}
    alone = [ours.generate(query, return_prompt=False, **given)[0] for query in queries]
    for size in (1, 3):
        found = ours.generate(queries, batch_size=size, return_prompt=False, **given)
        for row, wanted in zip(found, alone, strict=True):
            assert torch.equal(row, wanted[: len(row)])
    both, reference = ours.generate(queries, generate_ref_response=True, **given)
    for query, row, other in zip(queries, both, reference, strict=True):
        assert torch.equal(row[: len(query)], query)
        assert torch.equal(other[: len(query)], query)
    lengths = iter([1, 2, 3, 4])
    found = ours.generate(queries, length_sampler=lambda: next(lengths), batch_size=1, return_prompt=False, **given)
    assert all(len(row) <= most for row, most in zip(found, (1, 2, 3, 4), strict=True))


def test_masked_tokens_of_a_response_teach_nothing():
    masks = [torch.ones(len(row)) for row in trl_ppo.RESPONSES[False]]
    masks[1][:2] = 0
    plain, masked, ones = trainer(), trainer(), trainer()
    plain.step(*batch())
    masked.step(*batch(), response_masks=masks)
    ones.step(*batch(), response_masks=[torch.ones(len(row)) for row in trl_ppo.RESPONSES[False]])
    assert torch.equal(weights(plain.model), weights(ones.model))
    assert not torch.equal(weights(plain.model), weights(masked.model))


def test_a_policy_that_has_moved_far_ends_the_epochs_of_a_step():
    calls = []
    ours = trainer(early_stopping=True, target_kl=1e-9, ppo_epochs=4, learning_rate=0.05)
    ours.learner.update.optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    found = ours.step(*batch())
    assert len(calls) < 4
    assert found["ppo/policy/policykl"] > 0


def test_a_minibatch_with_a_large_ratio_teaches_nothing():
    ours = trainer(ratio_threshold=1e-3)
    before = weights(ours.model)
    found = ours.step(*batch())
    assert torch.equal(before, weights(ours.model))
    assert found["ppo/loss/total"] == 0


def test_the_optimizer_is_adam_as_trl_has_it():
    of = trainer(learning_rate=0.3, max_grad_norm=0.5).learner.update
    assert {name: of.optimizer.defaults[name] for name in ("lr", "betas", "eps", "weight_decay")} == {
        "lr": 0.3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
    }


def test_scores_are_measured_by_all_before_them():
    scores = RunningScores()
    parts = [torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.5, 3.0])]
    scores.scaled(parts[0], centred=True)
    found = scores.scaled(parts[1], centred=True)
    everything = torch.cat(parts)
    torch.testing.assert_close(found, (parts[1] - everything.mean()) / everything.std())


def test_a_data_set_is_visited_in_an_order_of_the_seed():
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    rows = datasets.Dataset.from_dict({"query": [f"w{i}" for i in range(9)], "review": ["x"] * 9})
    config = PPOConfig(batch_size=4, mini_batch_size=4)
    loaders = [PPOTrainer(config, model(), None, trl_ppo.tokenizer(), rows).dataloader for _ in range(2)]
    found = [[each["query"] for each in loader] for loader in loaders]
    assert found[0] == found[1]
    assert [len(each) for each in found[0]] == [4, 4]
    assert all(set(each) == {"query"} for each in loaders[0])


def test_a_reference_is_a_copy_that_stays():
    ours = PPOTrainer(PPOConfig(**trl_ppo.STEP_COMMON, mini_batch_size=4), model(), None, trl_ppo.tokenizer())
    before = weights(ours.ref_model)
    assert torch.equal(before, weights(ours.model))
    ours.step(*batch())
    assert torch.equal(before, weights(ours.ref_model))
    assert not torch.equal(before, weights(ours.model))
    with pytest.raises(ValueError, match="num_shared_layers: found 2, accepted is None"):
        create_reference_model(ours.model, num_shared_layers=2)


def test_what_a_step_told_is_a_line_of_a_log(tmp_path):
    ours = trainer(project_kwargs={"logging_dir": str(tmp_path)})
    rewards = batch()[2]
    ours.log_stats(ours.step(*batch()), {"query": [], "response": []}, rewards)
    (row,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    assert row["env/reward_mean"] == pytest.approx(0.5)
    assert "objective/kl" in row


CONFIGS = {
    "log_with": ("wandb", "log_with: found 'wandb', accepted is None, with what `step` returns"),
    "kl_penalty": ("full", "kl_penalty: found 'full', accepted are kl, abs, mse"),
    "batch_size": (5, "batch_size: found 5, accepted are multiples of mini_batch_size times"),
    "world_size": (2, "world_size: found 2, accepted is None: it follows from the rest"),
    "accelerator_kwargs": ({"cpu": True}, r"accelerator_kwargs: found \{'cpu': True\}, accepted is \{\}"),
    "use_score_norm": (True, "use_score_norm: found True without use_score_scaling"),
    "score_clip": (-1.0, "score_clip: found -1.0, accepted are positive numbers"),
}
STEPS = {
    "queries": (lambda q, r, s: (q[:3], r, s), "queries: found 3 rows, accepted is a list of config.batch_size, 4"),
    "responses": (lambda q, r, s: (q, r[:1], s), "responses: found 1 rows, accepted is a list of"),
    "scores": (lambda q, r, s: (q, r, [*s[:3], torch.tensor(float("nan"))]), "scores: found nan for response 3"),
    "two": (lambda q, r, s: (q, r, [*s[:3], torch.ones(2)]), "scores: found .* for response 3, accepted are finite"),
    "empty": (lambda q, r, s: (q, [r[0][:0], *r[1:]], s), "responses: found shape .0,. in row 0, accepted are tensors"),
    "masks": (
        lambda q, r, s: (q, r, s, [x[:1] for x in r]),
        "response_masks: found 1 in row 0, accepted is one a token",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_argument_that_would_be_ignored_is_refused_in_a_line(name):
    value, message = CONFIGS[name]
    with pytest.raises(ValueError, match=message):
        trainer(**{name: value})


@pytest.mark.parametrize("name", STEPS)
def test_a_batch_that_teaches_nothing_is_refused_before_anything_changes(name):
    change, message = STEPS[name]
    ours = trainer()
    before = weights(ours.model)
    with pytest.raises(ValueError, match=message) as caught:
        ours.step(*change(*batch()))
    assert "\n" not in str(caught.value)
    assert torch.equal(before, weights(ours.model))


def test_every_argument_of_trl_goes_through_as_it_is():
    given = RECORDS["arguments"]["0.11"]["PPOConfig"]
    known = {each.name for each in dataclasses.fields(PPOConfig)}
    assert set(given) <= known
    made = PPOConfig(**{name: value for name, value in given.items() if value is not None})
    assert all(getattr(made, name) == value for name, value in given.items() if value is not None)
    ours = {each.name: each.default for each in dataclasses.fields(PPOConfig)}
    assert {name for name, value in given.items() if value is not None and ours[name] != value} == {"exp_name"}


def test_other_models_and_optimizers_are_refused():
    words = trl_ppo.tokenizer()
    with pytest.raises(TypeError, match="model: found GPT2LMHeadModel, accepted is an AutoModelFor"):
        PPOTrainer(PPOConfig(), trl_ppo.network("gpt2", "policy"), None, words)
    with pytest.raises(ValueError, match="optimizer: found one of other weights"):
        trainer(optimizer=lambda own: torch.optim.Adam(own.v_head.parameters()))
    with pytest.raises(
        TypeError, match="from_pretrained: found load_in_8bit, peft_config, accepted are summary_dropout"
    ):
        AutoModelForCausalLMWithValueHead.from_pretrained("folder", peft_config=1, load_in_8bit=True)
    with pytest.raises(TypeError, match="pretrained_model: found Linear, accepted is a transformers language model"):
        AutoModelForCausalLMWithValueHead(torch.nn.Linear(2, 2))
