"""Which checkpoints are kept, and what the reward model chooses: a checkpoint, a prefix."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import demonstrations, tiny_encoder, tiny_policy, tiny_reward_model

from instructrl.rollout.generate import Samples
from instructrl.runs import selection, steps
from instructrl.runs.journal import Journal
from instructrl.runs.recipe import Recipe
from instructrl.runs.selection import Prefix, fitting, select_checkpoint, select_prefix
from instructrl.runs.steps import Workspace, finetune
from instructrl.trainers.log import RunLog
from instructrl.trainers.settings import AdamConfig, CheckpointConfig, SFTConfig

ENCODER = tiny_encoder()
CONFIG = SFTConfig(adam=AdamConfig(lr=1e-3), batch_size=8, epochs=1, residual_dropout=0.0, keep_every_examples=10)
PROMPTS = ["w1", "w2 w3", "w4"]


def workspace(folder: Path) -> Workspace:
    log = RunLog(folder, continued=True)
    journal = Journal(folder, log, CheckpointConfig(every_seconds=0))
    return Workspace(
        folder=folder,
        log=log,
        encoder=ENCODER,
        recipe=Recipe(limits=ENCODER.limits),
        seed=1,
        config={},
        journal=journal,
    )


def kept_by(work: Workspace, config: SFTConfig = CONFIG, phase: str = "mixture") -> list[steps.KeptModel]:
    return finetune(work, tiny_policy(ENCODER), demonstrations(30), None, phase=phase, config=config)[1]


def scores_by_prompt(monkeypatch, table: dict[str, float]) -> list[list[str]]:
    """A response is what was asked, and its score that of its first word. Returns what was asked in each pass."""
    asked = []

    def sample(policy, encoder, prompts, sampling):
        asked.append(list(prompts))
        return Samples(texts=list(prompts), finished=[True] * len(prompts))

    monkeypatch.setattr(selection, "sample_texts", sample)
    monkeypatch.setattr(
        selection, "score_texts", lambda m, e, prompts, texts, done: torch.tensor([table[t.split()[0]] for t in texts])
    )
    return asked


def test_models_are_kept_by_the_number_of_examples(tmp_path):
    """30 rows in batches of 8 are learned 8, 16, 24, 30: 10 and 20 are passed in the second and third step."""
    kept = kept_by(workspace(tmp_path))
    assert [(row.name, row.examples, row.epoch, row.lr) for row in kept] == [
        ("mixture_examples_0000016", 16, 1, 1e-3),
        ("mixture_examples_0000024", 24, 1, 1e-3),
        ("mixture_examples_0000030", 30, 1, 1e-3),
    ]
    assert {path.name for path in (tmp_path / "models").iterdir()} == {row.name for row in kept}


@pytest.mark.parametrize(
    ("every", "epochs", "examples"),
    [
        (1, 1, [8, 16, 24, 30]),  # more often than there are steps: after each
        (8, 1, [8, 16, 24, 30]),
        (15, 2, [16, 30, 46, 60]),  # of 60; the second epoch begins a batch anew at 30
        (30, 2, [30, 60]),  # as by epoch
        (1000, 2, [60]),  # the end is kept whatever the amount
        (None, 2, [30, 60]),
    ],
)
def test_amounts_that_do_not_divide(tmp_path, every, epochs, examples):
    config = replace(CONFIG, keep_every_examples=every, epochs=epochs)
    assert [row.examples for row in kept_by(workspace(tmp_path), config)] == examples


def test_a_run_that_ends_between_two_kept_models_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    expected = kept_by(workspace(tmp_path / "whole"))
    save = Workspace.save
    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "save", lambda work, model, name: save(work, model, name) / _stop_at("24", name))
        with pytest.raises(KeyboardInterrupt):
            kept_by(workspace(tmp_path / "stopped"))
    assert kept_by(workspace(tmp_path / "stopped")) == expected
    for name in ("metrics.jsonl", *(f"models/{row.name}/model.safetensors" for row in expected)):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def _stop_at(end: str, name: str) -> str:
    if name.endswith(end):
        raise KeyboardInterrupt
    return ""


def test_the_checkpoint_with_the_highest_mean_score_is_selected(tmp_path, monkeypatch):
    work = workspace(tmp_path)
    kept = kept_by(work)
    means = iter([-1.0, 0.5, 0.25])

    def scores(*_):
        mean = next(means)
        return torch.tensor([mean - 1, mean, mean + 1])

    monkeypatch.setattr(selection, "score_texts", scores)
    reward_model = tiny_reward_model(tiny_policy(ENCODER))
    policy, rows = select_checkpoint(work, kept, reward_model, PROMPTS, "FLAN-like")
    assert [row["selected"] for row in rows] == [False, True, False]
    assert [(row["examples"], row["score"]) for row in rows] == [(16, -1.0), (24, 0.5), (30, 0.25)]
    # The three scores have the standard deviation 1, so the interval is 1.96 / sqrt(3) to each side.
    for row in rows:
        assert row["high"] - row["score"] == pytest.approx(1.95996 / 3**0.5, rel=1e-4)
        assert row["score"] - row["low"] == pytest.approx(1.95996 / 3**0.5, rel=1e-4)
    chosen = (tmp_path / "models" / "mixture_examples_0000024" / "model.safetensors").read_bytes()
    assert (tmp_path / "models" / "FLAN-like" / "model.safetensors").read_bytes() == chosen
    expected = dict(work.load("mixture_examples_0000024").lm.named_parameters())
    assert all(torch.equal(value, expected[name]) for name, value in policy.lm.named_parameters())
    # Done once: another call reads what was found (the scores are used up).
    assert select_checkpoint(workspace(tmp_path), kept, reward_model, PROMPTS, "FLAN-like")[1] == rows


PREFIXES = [
    Prefix(name="first", text="w7 {prompt}"),
    Prefix(name="second", text="w8 {prompt} w0"),
    Prefix(name="third", text="w9 {prompt}"),
]


def test_the_prefix_with_the_highest_mean_score_is_selected(tmp_path, monkeypatch):
    asked = scores_by_prompt(monkeypatch, {"w7": 0.1, "w8": 0.7, "w9": 0.3})
    gpt = tiny_policy(ENCODER)
    prefix, rows = select_prefix(workspace(tmp_path), gpt, PREFIXES, tiny_reward_model(gpt), PROMPTS)
    assert prefix == PREFIXES[1]
    assert prefix.form("w5") == "w8 w5 w0"
    assert asked == [[prefix.form(prompt) for prompt in PROMPTS] for prefix in PREFIXES]
    assert [row["selected"] for row in rows] == [False, True, False]
    assert [(row["prefix"], row["text"]) for row in rows] == [(prefix.name, prefix.text) for prefix in PREFIXES]
    again, found = select_prefix(workspace(tmp_path), gpt, PREFIXES, tiny_reward_model(gpt), PROMPTS)
    assert (again, found, len(asked)) == (prefix, rows, 3)  # no fourth pass
    with pytest.raises(ValueError, match="other content of the prefixes"):
        select_prefix(workspace(tmp_path), gpt, PREFIXES[:2], tiny_reward_model(gpt), PROMPTS)


def test_of_equal_scores_the_first_is_selected(tmp_path, monkeypatch):
    scores_by_prompt(monkeypatch, {"w7": 0.1, "w8": 0.7, "w9": 0.7})
    gpt = tiny_policy(ENCODER)
    assert select_prefix(workspace(tmp_path), gpt, PREFIXES, tiny_reward_model(gpt), PROMPTS)[0] == PREFIXES[1]


def test_prefixes_that_do_not_fit_with_the_longest_prompt_are_left_out_and_told(tmp_path, capsys):
    """The limit is 12 tokens, the longest prompt has 2."""
    ten, eleven = (Prefix(name=str(n), text=" ".join(["w1"] * n) + " {prompt}") for n in (10, 11))
    work = workspace(tmp_path)
    assert fitting(work, [eleven, ten], PROMPTS) == [ten]
    assert "prefix 11: left out, since with the longest prompt it has over 12 tokens" in capsys.readouterr().err
    with pytest.raises(ValueError, match="prefixes: found 1, each of over 12 tokens with the longest prompt"):
        fitting(work, [eleven], PROMPTS)
