"""The reward model by TRL's names, held to what TRL's own trainer computed of the same pairs."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaForSequenceClassification

from benchmarks.end_to_end.host_runs import trl_ppo
from instructrl.integrations.trl import RewardConfig, RewardTrainer
from instructrl.integrations.trl.tokens import prompts_of, rankings_of
from instructrl.rollout.scoring import comparison_scores

RECORDS = json.loads((Path(__file__).parent / "trl_records.json").read_text(encoding="utf-8"))
ROUNDING = 64 * torch.finfo(torch.float32).eps
PAIRS = [dict(zip(trl_ppo.PAIRS, values, strict=True)) for values in zip(*trl_ppo.PAIRS.values(), strict=True)]


def trainer(folder, rows=PAIRS, kind="llama", **given):
    config = RewardConfig(
        output_dir=str(folder), bf16=False, use_cpu=True,
        **{"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.05, "adam_epsilon": 0.1, **given},
    )  # fmt: skip
    return RewardTrainer(
        trl_ppo.network(kind, "reward"), config, train_dataset=rows, processing_class=trl_ppo.tokenizer()
    )


@pytest.mark.parametrize("case", trl_ppo.REWARD_CASES)
def test_steps_are_trls(case, tmp_path):
    expected, steps = RECORDS["reward"][case], []
    ours = trainer(tmp_path, **trl_ppo.REWARD_CASES[case])
    ours.update.optimizer.register_step_pre_hook(
        lambda *_: steps.append(trl_ppo.projected(trl_ppo.gradients(ours.reward_model.network)))
    )
    losses = [ours.train_step()[0]["loss"] for _ in range(2)]
    assert losses == pytest.approx(expected["losses"], rel=ROUNDING)
    for found, wanted in zip(steps, expected["steps"], strict=True):
        assert found == pytest.approx(wanted, rel=0, abs=ROUNDING * wanted[0])


def weights(module):
    return torch.cat([x.detach().flatten() for x in module.parameters()])


def scored(ours, row):
    """Scores of a row's completions, each read alone by transformers' own class."""
    words = ours.processing_class
    texts = [row["prompt"] + text for text in row["completions"]]
    ids = [torch.tensor([[*words(text)["input_ids"], trl_ppo.END]]) for text in texts]
    return torch.stack([ours.reward_model.network(input_ids=x).logits[0, 0] for x in ids])


RANKED = [
    {"prompt": "w3 w4", "completions": [" w1", " w2 w5", " w6 w7 w8"], "ranks": [1, 0, 1]},
    {"prompt": "w5", "completions": [" w1", " w2", " w3", " w4"], "ranks": [2, 2, 1, 0.5]},
    {"prompt": "w9", "completions": [" w1", " w2"], "ranks": [0, 0]},
]


@pytest.mark.parametrize("center", [None, 0.3])
def test_rankings_with_ties_weigh_each_prompt_the_same(center, tmp_path):
    ours = trainer(tmp_path, RANKED, center_rewards_coefficient=center, max_grad_norm=None)
    loss = 0.0
    for row in RANKED[:2]:
        scores = scored(ours, row)
        ranks = row["ranks"]
        pairs = [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]
        gaps = torch.stack([-F.logsigmoid(scores[i] - scores[j]) for i, j in pairs])
        sums = torch.stack([(scores[i] + scores[j]) ** 2 for i, j in pairs])
        loss = loss + (gaps + (center or 0.0) * sums).mean() / 2
    loss.backward()
    expected = trl_ppo.projected(trl_ppo.gradients(ours.reward_model.network))
    ours.reward_model.zero_grad()
    found = []
    ours.update.optimizer.register_step_pre_hook(
        lambda *_: found.extend(trl_ppo.projected(trl_ppo.gradients(ours.reward_model.network)))
    )
    metrics, _ = ours.train_step()
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=ROUNDING)
    assert found == pytest.approx(expected, rel=0, abs=ROUNDING * expected[0])


def test_a_run_that_was_broken_off_comes_to_the_same_bits(tmp_path):
    given = {"max_steps": 3, "per_device_train_batch_size": 2, "save_steps": 1}
    whole, begun, resumed = (trainer(tmp_path / name, **given) for name in ("whole", "parts", "parts"))
    whole.train()
    begun.train()
    resumed.train(str(tmp_path / "parts/checkpoints/step-00000001"))
    assert whole.digest() == resumed.digest()
    rows = [(tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8") for name in ("whole", "parts")]
    assert rows[0] == rows[1]
    resumed.save_model(tmp_path / "saved")
    loaded = LlamaForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(weights(loaded), weights(whole.reward_model.network))


def test_ids_and_messages_are_read_as_trl_reads_them():
    words = trl_ppo.tokenizer()
    words.chat_template = (
        "{% for m in messages %}{{ m.role == 'user' and 'w1 ' or 'w2 ' }}{{ m.content }} {{ '<eos> w0 ' }}{% endfor %}"
        "{{ add_generation_prompt and 'w2 ' or '' }}"
    )
    asked = [{"role": "user", "content": "w5 w6"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("w7", "w8 w9")]
    whole = [words.apply_chat_template([*asked, *answer], tokenize=True)["input_ids"] for answer in answers]
    rows = {
        "messages": {"prompt": asked, "chosen": answers[0], "rejected": answers[1]},
        "in one": {"chosen": [*asked, *answers[0]], "rejected": [*asked, *answers[1]]},
        "ids": {"chosen_ids": whole[0], "rejected_ids": whole[1]},
        "texts": {"prompt": "w1 w5 w6", "chosen": " w2 w7 <eos>", "rejected": " w2 w8 w9"},
    }
    found = {name: rankings_of([row], words, trl_ppo.END)[0] for name, row in rows.items()}
    end = trl_ppo.END
    for name in ("messages", "in one", "ids"):
        assert found[name].comparison.prompt == (1, 5, 6, end, 0, 2), name
        assert found[name].comparison.completions == ((7, end, 0), (8, 9, end, 0)), name
        assert found[name].longest == 10
    assert found["texts"].comparison.completions == ((7, end), (8, 9, end))
    assert prompts_of([{"prompt": asked}], words) == [(1, 5, 6, end, 0, 2)]


def test_sequences_without_a_common_beginning_are_read_alone(tmp_path):
    rows = [{"chosen": "w1 w2 w3", "rejected": "w4 w5"}, {"chosen": "w1 w2", "rejected": "w1 w2 w3"}]
    ours = trainer(tmp_path, rows)
    scores = comparison_scores(ours.reward_model, ours.encoder, ours.comparisons)
    for row, found in zip(rows, scores, strict=True):
        ids = [[*ours.processing_class(row[name])["input_ids"], trl_ppo.END] for name in ("chosen", "rejected")]
        alone = [ours.reward_model.network(input_ids=torch.tensor([x])).logits.item() for x in ids]
        assert found == pytest.approx(alone, rel=1e-5)


def test_an_evaluation_has_loss_accuracy_and_margin(tmp_path):
    config = RewardConfig(output_dir=str(tmp_path), bf16=False, max_steps=1)
    network = trl_ppo.network("gpt2", "reward")
    ours = RewardTrainer(network, config, None, PAIRS, PAIRS, trl_ppo.tokenizer())
    scores = torch.tensor(comparison_scores(ours.reward_model, ours.encoder, ours.comparisons))
    gaps = scores[:, 0] - scores[:, 1]
    expected = {
        "eval_loss": float(-F.logsigmoid(gaps - torch.tensor(trl_ppo.PAIRS["margin"])).mean()),
        "eval_accuracy": float((gaps > 0).float().mean()),
        "eval_margin": float(gaps.mean()),
    }
    assert ours.evaluate() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="eval_dataset: found None"):
        trainer(tmp_path).evaluate()


def test_what_is_too_long_is_left_out_and_told(tmp_path):
    with pytest.warns(UserWarning, match="max_length: 1 of 4 comparisons have a longer sequence than 5"):
        ours = trainer(tmp_path, max_length=5)
    assert len(ours.comparisons) == 3


SAID = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
ROWS = {
    "columns": ({"text": "w1"}, "train_dataset, row 0: found the columns text, accepted are chosen and rejected"),
    "rejected": ({"chosen": "w1"}, "rejected: found none beside chosen, accepted are both"),
    "ranks": (
        {"completions": ["w1", "w2"], "ranks": [1]},
        "ranks: found 1 for 2 completions, accepted is one",
    ),
    "one": ({"completions": ["w1"], "ranks": [1]}, "completions: found 1, a comparison takes at least 2"),
    "empty": ({"chosen_ids": [], "rejected_ids": [1]}, "chosen_ids: found a sequence without tokens"),
    "margin": ({"chosen": "w1", "rejected": "w2", "margin": float("inf")}, "margin: found inf, accepted are finite"),
    "kinds": (
        {"prompt": "w1", "chosen": [{}], "rejected": [{}]},
        "prompt: found a text beside messages, or the",
    ),
    "template": ({"chosen": SAID, "rejected": SAID}, "chat template: found none in the tokenizer, accepted is one"),
    "arguments": ({"chosen": SAID, "rejected": SAID, "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs: found"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_does_not_fit_is_refused_with_its_number(name, tmp_path):
    row, message = ROWS[name]
    with pytest.raises(ValueError, match=message) as caught:
        trainer(tmp_path / "out", [row])
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("train_dataset, row 0: ")
    assert not (tmp_path / "out").exists()


def test_an_adapter_and_the_head_learn_in_place_of_the_weights(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = RewardConfig(output_dir=str(tmp_path), bf16=False, max_steps=2, learning_rate=0.05, save_strategy="no")
    network = trl_ppo.network("llama", "reward")
    lora = peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=["score"], task_type="SEQ_CLS")
    ours = RewardTrainer(network, config, None, RANKED, None, trl_ppo.tokenizer(), peft_config=lora)
    ours.train()
    ours.save_model(tmp_path / "saved")
    plain = trl_ppo.network("llama", "reward")
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "saved").eval()
    ids = torch.tensor([[3, 4, 5]])
    found = ours.reward_model.network(input_ids=ids).logits
    torch.testing.assert_close(loaded(input_ids=ids).logits, found)
    assert not torch.allclose(trl_ppo.network("llama", "reward")(input_ids=ids).logits, found)


def test_other_networks_and_arguments_are_refused(tmp_path):
    config = RewardConfig(output_dir=str(tmp_path))
    with pytest.raises(ValueError, match="model: found GPT2LMHeadModel without a linear `score` of one output"):
        RewardTrainer(trl_ppo.network("gpt2", "policy"), config, None, PAIRS, None, trl_ppo.tokenizer())
    with pytest.raises(ValueError, match="compute_metrics: found one, accepted is none: this trainer has no such"):
        RewardTrainer(trl_ppo.network("gpt2", "reward"), config, None, PAIRS, None, trl_ppo.tokenizer(), print)
    with pytest.raises(ValueError, match="disable_dropout: found False, accepted is True"):
        RewardConfig(disable_dropout=False)
