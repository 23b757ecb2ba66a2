"""The baselines beside SFT: the prefixes that are tried, where one is left out, and the models tuned on mixtures."""

from dataclasses import replace

import pytest
import torch
from tiny_runs import MINIATURE

from instructrl.data.encoding import Encoder
from instructrl.data.tokenizers import word_tokenizer
from instructrl.models.scoring import RewardModel
from instructrl.runs import selection
from instructrl.runs.baseline_settings import BaselineConfig
from instructrl.runs.baselines import Baselines, candidate_prefixes
from instructrl.runs.named import RUNS
from instructrl.runs.selection import Prefix
from instructrl.runs.steps import Workspace, new_policy
from instructrl.trainers.log import RunLog
from instructrl.types import Demonstration, Prompt
from instructrl.worlds.miniature import MiniatureWorld

WORLD = MiniatureWorld()
CONFIG = BaselineConfig(examples=50, cap_per_task=10, batch_size=8, num_kept=3)
DEMONSTRATIONS = [
    Demonstration(prompt="i am sad today .", completion="do not cry .", category="chat"),  # 9 tokens and 4
    Demonstration(prompt="i like fish .", completion="me too .", category="chat"),  # 7 and 4: the shortest
    Demonstration(prompt="list two toys .", completion="kite , drum .", category="brainstorming"),  # 8 and 4
    Demonstration(prompt="describe the fox . " * 4, completion="it is red .", category="generation"),  # 20 and 4
]


def workspace(folder) -> Workspace:
    encoder = Encoder(word_tokenizer(WORLD.vocabulary()), MINIATURE.recipe.limits)
    return Workspace.of_run(MINIATURE, encoder, folder, RunLog(folder))


def test_the_prefixes_that_are_tried():
    found = {prefix.name: prefix.text for prefix in candidate_prefixes(WORLD, DEMONSTRATIONS, 0)}
    shortest = "ask : i like fish . reply : me too ."
    second = "ask : list two toys . reply : kite , drum ."
    third = "ask : i am sad today . reply : do not cry ."
    long = f"ask : {DEMONSTRATIONS[3].prompt} reply : it is red ."
    assert found["3 shortest demonstrations"] == f"{shortest} {second} {third} ask : {{prompt}} reply :"
    assert found["6 shortest demonstrations"] == f"{shortest} {second} {third} {long} ask : {{prompt}} reply :"
    assert found["an instruction"] == "please give a good answer . ask : {prompt} reply :"
    assert found["as completions were sampled"].format(prompt="hello !") == WORLD.few_shot_prompt("hello !")
    # Of use cases with a demonstration of up to 22 tokens there are two: one of each.
    drawn = found["3 random demonstrations"]
    assert second in drawn
    assert (shortest in drawn) + (third in drawn) == 1
    assert long not in drawn
    assert len(found) == 5
    known = set(WORLD.vocabulary()) | {"{prompt}"}
    assert set(" ".join(found.values()).split()) <= known


def test_prompts_for_a_model_of_plain_text_are_asked_without_the_prefix(tmp_path, monkeypatch):
    """And need not fit behind it: the limit is 104 tokens."""
    work = workspace(tmp_path)
    gpt = new_policy(work, MINIATURE.model)
    reward_model = RewardModel.from_policy(gpt, torch.Generator().manual_seed(0)).eval()
    prefix = Prefix(name="long", text=" ".join(["fox"] * 90) + " {prompt}")
    baselines = Baselines(config=CONFIG, prefixes=[prefix], mixtures={})
    plain = Prompt(text=" ".join(["owl"] * 50), source="gpt")
    test = [Prompt(text="owl", source="customer"), plain]
    prompted, tuned, rows = baselines.make(work, gpt, reward_model, ["bear"], test)
    assert prompted.name == "GPT (prompted)"
    assert [prompted.form(prompt.text) for prompt in test] == [prefix.form("owl"), plain.text]
    assert tuned == []
    assert [row["selected"] for row in rows["prefixes"]] == [True]
    too_long = [Prompt(text=plain.text, source="customer")]
    with pytest.raises(ValueError, match="found 1, each of over 104 tokens"):
        baselines.make(work, gpt, reward_model, ["bear"], too_long)


def test_of_two_learning_rates_and_the_models_kept_of_each_the_best_is_the_baseline(tmp_path, monkeypatch):
    """50 examples, a third of which is 17: in batches of 8 they are passed at 24 and 40, and the end is at 50."""
    work = workspace(tmp_path)
    gpt = new_policy(work, MINIATURE.model)
    baselines = Baselines.draw(CONFIG, WORLD, DEMONSTRATIONS, seed=5)
    assert {name: len(rows) for name, rows in baselines.mixtures.items()} == {"FLAN-like": 50, "T0-like": 50}
    table = iter([0.0, 0.2, 0.1, 0.3, 0.9, 0.8])
    monkeypatch.setattr(selection, "score_texts", lambda *_: torch.tensor([next(table)] * 2))
    reward_model = RewardModel.from_policy(gpt, torch.Generator().manual_seed(0)).eval()
    policy, rows = baselines.tune(work, gpt, reward_model, ["bear", "owl"], "T0-like")
    assert [(row["lr"], row["examples"]) for row in rows] == [
        (lr, examples) for lr in (CONFIG.lower_lr, CONFIG.higher_lr) for examples in (24, 40, 50)
    ]
    assert [row["selected"] for row in rows] == [False, False, False, False, True, False]
    assert rows[4]["name"] == "t0_like_2_examples_0000040"
    expected = dict(work.load(rows[4]["name"]).lm.named_parameters())
    assert all(torch.equal(value, expected[name]) for name, value in policy.lm.named_parameters())
    assert not all(torch.equal(value, expected[name]) for name, value in gpt.lm.named_parameters())


def test_no_examples_make_no_tuned_models():
    drawn = Baselines.draw(replace(CONFIG, examples=0), WORLD, DEMONSTRATIONS, seed=5)
    assert drawn.mixtures == {}
    named = RUNS["miniature"]
    plans = [
        {row.step: row.work for row in named.plan(replace(MINIATURE, baselines=config))}
        for config in (CONFIG, replace(CONFIG, examples=0))
    ]
    assert set(plans[0]) - set(plans[1]) == {"FLAN-like", "T0-like"}
    # 50 in batches of 8 are 7 steps at each of the two rates.
    assert "7 optimiser steps each" in plans[0]["T0-like"]
    assert [rows["evaluation"] for rows in plans] == ["7 models against SFT", "5 models against SFT"]


def test_prefixes_of_a_file(tmp_path):
    path = tmp_path / "prefixes.yaml"
    path.write_text("- 'ask : {prompt} reply :'\n- |\n  hello !\n  {prompt}\n", encoding="utf-8")
    drawn = Baselines.draw(replace(CONFIG, examples=0, prefixes=str(path)), WORLD, DEMONSTRATIONS, seed=5)
    assert [prefix.form("good day .") for prefix in drawn.prefixes] == [
        "ask : good day . reply :",
        "hello !\ngood day .",
    ]
