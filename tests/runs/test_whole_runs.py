"""All steps together on next to nothing: what a run leaves behind, and that it leaves the same bytes twice."""

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import NUM_WORDS, comparisons, demonstrations, tiny_encoder, tiny_policy, words
from tiny_runs import MINIATURE, small

from instructrl import cli, kernels, ops
from instructrl.commands import options
from instructrl.data.readers import write_jsonl
from instructrl.data.settings import Limits
from instructrl.evaluation.report import write_report
from instructrl.models import conformance, scalar_heads
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.runs.files import read_files, run_files
from instructrl.runs.folder import open_folder, settled_config
from instructrl.runs.recipe import Recipe
from instructrl.runs.settings import FilesConfig, MiniatureConfig
from instructrl.trainers.log import RunLog
from instructrl.trainers.settings import AdamConfig, PPOConfig, RewardModelConfig, SFTConfig
from instructrl.types import Document, Prompt

WORDS = {"male": "jumps", "female": "sleeps"}
NAMES = ["GPT", "GPT (prompted)", "SFT", "PPO", "PPO-ptx"]
MINIATURE_NAMES = [*NAMES, "FLAN-like", "T0-like"]


@pytest.fixture(scope="module")
def twice(tmp_path_factory) -> list[Path]:
    """The same tiny miniature in this process and in another one, whose sets of strings have another order."""
    folder = tmp_path_factory.mktemp("runs")
    config = open_folder(folder / "tiny", MINIATURE) / "config.yaml"
    outs = [folder / "here", folder / "elsewhere"]
    arguments = ["run", "miniature", "--config", str(config), "--out"]
    assert cli.main([*arguments, str(outs[0])]) == 0
    subprocess.run(
        [sys.executable, "-m", "instructrl.cli", *arguments, str(outs[1])],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return outs


@pytest.mark.parametrize("name", ["results.json", "metrics.jsonl", "config.yaml"])
def test_the_same_run_leaves_the_same_bytes(twice, name):
    here, elsewhere = ((folder / name).read_bytes() for folder in twice)
    assert len(here) > 100
    assert here == elsewhere


def test_the_same_run_leaves_the_same_weights(twice):
    here, elsewhere = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.safetensors")} for folder in twice
    )
    assert {str(path.parent.name) for path in here} >= {"gpt", "sft", "reward_model", "ppo", "ppo_ptx"}
    assert here == elsewhere


def test_a_finished_run_is_put_through_public_test_sets(twice, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(twice[0], folder)
    sentences = [f"a.b.{i}.{gender}.txt\tthe cat {word}" for i in range(3) for gender, word in WORDS.items()]
    (tmp_path / "all_sentences.tsv").write_text("sentid\tsentence\n" + "\n".join(sentences) + "\n", encoding="utf-8")
    arguments = ["--config", str(folder / "config.yaml"), "--out", str(folder), "--suites", f"winogender={tmp_path}"]
    assert cli.main(["run", "miniature", *arguments]) == 0
    before, after = (json.loads((place / "results.json").read_text()) for place in (twice[0], folder))
    (entry,) = after.pop("suites")
    assert [*dict.fromkeys(row["model"] for row in entry["rows"])] == [
        name for name in MINIATURE_NAMES if "prompted" not in name
    ]
    assert {row["num_items"] for row in entry["rows"]} == {3}
    del before["config"], after["config"]
    assert after == before
    assert "Winogender" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_run_writes_what_the_report_reads(twice):
    folder = twice[0]
    results = json.loads((folder / "results.json").read_text())
    assert [row["name"] for row in results["models"]] == MINIATURE_NAMES
    baseline = results["models"][2]
    assert baseline["win_rate"]["rate"] == 0.5
    assert all(0 <= row["finished"] <= 1 and row["win_rate"]["num_prompts"] == 12 for row in results["models"])
    assert abs(results["reward_model"]["mean_demonstration_score"]) < 1e-5
    assert {row["model"] for row in results["over_optimisation"]} == {"PPO", "PPO-ptx"}
    assert all(row["gold_error"] > 0 and row["score_error"] > 0 for row in results["over_optimisation"])
    phases = {json.loads(line)["phase"] for line in (folder / "metrics.jsonl").read_text().splitlines()}
    tuned = {f"{name}_like_{number}" for name in ("flan", "t0") for number in (1, 2)}
    assert phases == {"pretraining", "sft", "ppo_start", "reward_model", "ppo", "ppo_ptx", *tuned}
    assert [row["count"] for row in results["data"]["overlap"][:2]] == [0, 0]
    assert results["head_to_head"]["model"] == "PPO-ptx"
    page = (folder / "report.html").read_text()
    assert all(name in page for name in MINIATURE_NAMES)


def test_the_baseline_is_the_epoch_that_scores_highest(twice):
    """Its weights are those that were kept for that epoch (paper, 3.5: selected by score, not by loss)."""
    rows = json.loads((twice[0] / "results.json").read_text())["sft_selection"]
    assert len({row["score"] for row in rows}) == len(rows) == 2
    best = max(rows, key=lambda row: row["score"])
    assert [row["selected"] for row in rows] == [row is best for row in rows]
    models = twice[0] / "models"
    chosen, *others = (
        (models / name / "model.safetensors").read_bytes()
        for name in ("sft", *(f"sft_epoch_{row['epoch']:02}" for row in rows))
    )
    assert [other == chosen for other in others] == [row["selected"] for row in rows]


def test_the_configuration_of_a_run_starts_it_again(twice, capsys):
    """The resolved config.yaml, given back, resolves to itself."""
    arguments = ["run", "miniature", "--config", str(twice[0] / "config.yaml"), "--dry-run"]
    assert cli.main(arguments) == 0
    assert "seed 3" in capsys.readouterr().out
    again = options.parse(
        MiniatureConfig(), ["--config", str(twice[0] / "config.yaml")], program="instructrl", description=""
    )
    assert again == settled_config(MINIATURE, twice[0], fresh=True)


RECIPE = Recipe(
    limits=Limits(max_prompt_tokens=14, max_response_tokens=10),
    block_tokens=16,
    sft=SFTConfig(adam=AdamConfig(lr=1e-3), batch_size=8, epochs=2),
    ppo_start=SFTConfig(adam=AdamConfig(lr=1e-3), batch_size=8, epochs=1, pretraining_fraction=0.125),
    reward_model=RewardModelConfig(adam=AdamConfig(lr=1e-3), batch_size=8),
    ppo=small(PPOConfig(max_response_tokens=8)),
    ppo_ptx=small(PPOConfig(max_response_tokens=8, ptx_coef=27.8, ptx_examples_per_episode=0.5)),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> FilesConfig:
    """What a user brings: a folder of prepared data, plain text, a pretrained model."""
    folder = tmp_path_factory.mktemp("files")
    rng = random.Random(0)
    prompts = {name: [Prompt(text=words(rng), user=f"u{i % 4}") for i in range(10)] for name in ("train", "test")}
    for split, seed in (("train", 0), ("valid", 1)):
        write_jsonl(folder / f"demonstrations.{split}.jsonl", demonstrations(12, seed))
        write_jsonl(folder / f"comparisons.{split}.jsonl", comparisons(10, seed))
    for split, rows in prompts.items():
        write_jsonl(folder / f"prompts.{split}.jsonl", rows)
    text = [Document(text=" ".join(f"w{rng.randrange(NUM_WORDS)}" for _ in range(24))) for _ in range(40)]
    write_jsonl(folder / "corpus.jsonl", text)
    encoder = tiny_encoder()
    tiny_policy(encoder).save(folder / "model", encoder.tokenizer)
    return FilesConfig(
        seed=1,
        data=str(folder),
        corpus=str(folder / "corpus.jsonl"),
        model=str(folder / "model"),
        test_prompts=7,
        recipe=RECIPE,
    )


def test_all_steps_on_files(files, tmp_path):
    results = run_files(read_files(files), tmp_path, RunLog(tmp_path))
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert [row["name"] for row in results["models"]] == NAMES
    assert {row["win_rate"]["num_prompts"] for row in results["models"]} == {7}
    tax = results["alignment_tax"]
    assert tax["losses"]["GPT"] == tax["losses"]["GPT (prompted)"]
    assert len(set(tax["losses"].values())) == 5  # GPT, the start of PPO, SFT, PPO, PPO-ptx
    # The cost is counted from the pretrained model, as in the paper, and not from where PPO started.
    assert list(tax["tax"]) == ["PPO start", "SFT", "PPO", "PPO-ptx"]
    for name, found in tax["tax"].items():
        assert abs(found["mean"] - (tax["losses"][name] - tax["losses"]["GPT"])) < 1e-9
    assert results["reward_model"]["num_comparisons"] == 10
    assert results["reward_model"]["accuracy_heldout_comparisons"] is not None
    page = write_report(tmp_path).read_text()
    assert all(name in page for name in NAMES)
    models = tmp_path / "models"
    assert isinstance(Policy.load(models / "ppo_ptx"), Policy)
    assert float(RewardModel.load(models / "reward_model").bias) == results["reward_model"]["bias"]
    assert not [path for path in models.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]


def test_the_steps_one_by_one(files, tmp_path, capsys):
    """sft, rm, ppo and eval, each on what the one before has written."""
    data = Path(files.data or "")

    def call(*arguments: str) -> str:
        limits = ("--limits.max-prompt-tokens", "14", "--limits.max-response-tokens", "10")
        assert cli.main([*arguments, *limits, "--seed", "1"]) == 0
        return capsys.readouterr().out

    def step(name: str, rows: str, *more: str) -> str:
        return call(name, "--data", str(data / rows), "--out", str(tmp_path / name), *more)

    held_out = str(data / "demonstrations.valid.jsonl")
    sft = ("--model", str(files.model), "--validation", held_out, "--sft.epochs", "2", "--sft.batch-size", "8")
    out = step("sft", "demonstrations.train.jsonl", *sft)
    assert out.count("validation loss") == 2
    policy = str(tmp_path / "sft" / "models" / "sft_epoch_02")
    reward = ("--model", policy, "--demonstrations", held_out, "--validation", str(data / "comparisons.valid.jsonl"))
    assert "pairs" in step("rm", "comparisons.train.jsonl", *reward)
    judge = ("--reward-model", str(tmp_path / "rm" / "models" / "reward_model"))
    sizes = ("--ppo.num-episodes", "16", "--ppo.rollout-batch", "8", "--ppo.minibatch", "4")
    mix = ("--ppo.ptx-coef", "1", "--corpus", str(files.corpus), "--block-tokens", "16")
    short = ("--ppo.max-response-tokens", "8")
    trained = step("ppo", "prompts.train.jsonl", "--model", policy, *judge, *sizes, *short, *mix).split()[-1]
    assert trained == str(tmp_path / "ppo" / "models" / "ppo_ptx")
    step("eval", "prompts.test.jsonl", "--baseline", policy, "--models", trained, *judge)
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    rows = results["models"]
    assert [(row["name"], row["path"]) for row in rows] == [("sft_epoch_02", policy), ("ppo_ptx", trained)]
    assert "ppo_ptx was trained against, and flatters it" in results["run"]["judge_note"]
    for folder in ("sft", "rm", "ppo", "eval"):
        assert cli.main(["report", str(tmp_path / folder)]) == 0
        page = (tmp_path / folder / "report.html").read_text()
        assert "<svg" in page
        assert "held-out" not in page
    assert "10 prompts, and the reward model" in page
    assert "flatters it" in page
    assert rows[0]["win_rate"]["rate"] == 0.5
    assert rows[0]["win_rate"]["num_prompts"] == 10


@pytest.mark.parametrize("missing", ["data", "corpus", "model"])
def test_a_missing_path_is_named(files, tmp_path, missing):
    with pytest.raises(ValueError, match=rf"^{missing}: found nothing, this run needs --data, --corpus and --model"):
        read_files(replace(files, **{missing: None}))


def test_a_model_without_a_scalar_head_is_refused_before_it_is_trained(files, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(conformance, "_KEPT", {})
    monkeypatch.setattr(scalar_heads, "_CLASSES", {})
    monkeypatch.setattr(scalar_heads, "_fits", lambda kind, lm: False)
    message = f"model {files.model}: found GPT2LMHeadModel, which cannot have a scalar head; accepted are"
    with pytest.raises(ValueError, match=f"^{message}"):
        read_files(files)
    out, comparisons_file = tmp_path / "out", f"{files.data}/comparisons.train.jsonl"
    sizes = ("--limits.max-prompt-tokens", "12", "--limits.max-response-tokens", "8")
    assert cli.main(["rm", "--model", files.model, "--data", comparisons_file, "--out", str(out), *sizes]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def curve(folder: Path) -> dict[tuple[str, int, str], float]:
    """Every number of every row of the metrics."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        (row["phase"], index, name): value
        for index, row in enumerate(rows)
        for name, value in row.items()
        if isinstance(value, float)
    }


def rounded(reference, generator: torch.Generator):
    """A reference whose hidden states are rounded once more, at random."""

    def function(hidden, *args):
        noise = torch.randint(-1, 2, hidden.shape, generator=generator) * torch.finfo(torch.float32).eps
        return reference(hidden * (1 + noise), *args)

    return function


@pytest.mark.skipif(kernels.why_missing("native") is not None, reason="native is not built")
def test_native_and_reference_give_the_same_learning_curve(twice, tmp_path):
    """As close as two references that round differently: every number moves no more than ten times as far."""
    arguments = ["run", "miniature", "--config", str(twice[0] / "config.yaml"), "--out"]
    with ops.use_backend("reference"):
        assert cli.main([*arguments, str(tmp_path / "reference")]) == 0
    generator = torch.Generator().manual_seed(0)
    noisy = {
        op: kernels.Implementation(
            function=rounded(found.reference, generator) if ".linear_" in op else found.reference,
            unsupported=lambda *args: None,
        )
        for op, found in ops.dispatch.OPS.items()
    }
    kernels.attach("rounded", devices=(), implementations=noisy)
    try:
        with ops.use_backend("rounded"):
            assert cli.main([*arguments, str(tmp_path / "rounded")]) == 0
    finally:
        kernels.detach("rounded")
    native, reference, other = (curve(folder) for folder in (twice[0], tmp_path / "reference", tmp_path / "rounded"))
    assert native.keys() == reference.keys() == other.keys()
    assert native != reference, "the trainers do not use the native backend"
    for phase in {phase for phase, _, _ in reference}:
        for metric in {metric for found, _, metric in reference if found == phase}:
            keys = [key for key in reference if (key[0], key[2]) == (phase, metric)]
            scale = max(abs(reference[key]) for key in keys)
            moved = max(abs(other[key] - reference[key]) for key in keys) + torch.finfo(torch.float32).eps * scale
            assert max(abs(native[key] - reference[key]) for key in keys) <= 10 * moved, (phase, metric)
