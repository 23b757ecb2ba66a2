"""The run on a chat model, on next to nothing: data apart, all figures there, and what offends unseen."""

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import NUM_WORDS, words

from benchmarks.end_to_end import chat_summary
from instructrl import cli
from instructrl.data.encoding import Encoder
from instructrl.data.settings import Limits
from instructrl.data.tokenizers import word_tokenizer
from instructrl.evaluation.report import write_report
from instructrl.models.policy import Policy, gpt2_policy
from instructrl.runs.chat import read_chat, run_chat
from instructrl.runs.chat_data import in_messages, opening
from instructrl.runs.chat_settings import ChatRecipe, ChatRunConfig
from instructrl.trainers.log import RunLog
from instructrl.trainers.settings import AdamConfig, PPOConfig, RewardModelConfig, SFTConfig
from instructrl.types import Prompt

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} {{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
# Stands in every row of the set that is never shown.
UNSHOWN = "w29 w28 w27 w29 w28"
SMALL = AdamConfig(lr=1e-3)
CONFIG = ChatRunConfig(
    seed=1,
    comparisons=12,
    judge_comparisons=10,
    held_out_comparisons=30,
    ppo_prompts=16,
    test_prompts=20,
    max_ppo_prompt_tokens=16,
    blocks=3,
    recipe=ChatRecipe(
        block_tokens=16,
        limits=Limits(max_prompt_tokens=24, max_response_tokens=12),
        sft=SFTConfig(adam=SMALL, batch_size=8, epochs=1),
        reward_model=RewardModelConfig(adam=SMALL, batch_size=4),
        ppo=PPOConfig(
            num_episodes=16,
            rollout_batch=8,
            minibatch=4,
            policy_adam=SMALL,
            warmup_iterations=0,
            ema_decay=0.5,
            max_response_tokens=8,
        ),
    ),
)


def published(folder: Path) -> None:
    """The five sets as they are published, with a few words in place of their texts."""
    rng = random.Random(0)

    def write(name: str, content: str) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")

    rows = [
        {
            "question": words(rng, 3, 6),
            "passages": [["t"]],
            "gold": words(rng),
            "preference": rng.choices((0, 1, 2), k=6),
        }
        | {f"prediction {number}": words(rng) for number in range(1, 5)}
        for _ in range(60)
    ]
    write("finegrained_qa_feedback_k4/dev_feedback.json", json.dumps(rows))
    openings = [f"{words(rng, 3, 5)} {UNSHOWN}" for _ in range(25)]
    dialogues = [
        f"\n\nHuman: {openings[i % 25]}" + i % 2 * f"\n\nAssistant: {words(rng)}\n\nHuman: {words(rng)}"
        for i in range(60)
    ]
    pairs = [{key: f"{text}\n\nAssistant: {words(rng)}" for key in ("chosen", "rejected")} for text in dialogues]
    (folder / "hh_rlhf_harmless_test").mkdir()
    packed = gzip.compress("\n".join(map(json.dumps, pairs)).encode())
    (folder / "hh_rlhf_harmless_test" / "test.jsonl.gz").write_bytes(packed)
    tasks = [
        {"instruction": words(rng, 4, 6), "is_classification": False, "motivation_app": f"app {i % 3}"}
        | {"instances": [{"input": "", "output": words(rng)}]}
        for i in range(30)
    ]
    for name, part in (("seed_tasks", tasks[:15]), ("user_oriented_instructions", tasks[15:])):
        write(f"self_instruct/{name}.jsonl", "\n".join(map(json.dumps, part)))
    rows = [
        {"instruction": task["instruction"], "input": "", "motivation_app": "m"}
        | {"response1": words(rng), "response2": words(rng), "annotator1": 1, "annotator2": 1, "annotator3": 2}
        for task in tasks[15:]
    ]
    write("pandalm_testset/testset-v1.json", json.dumps(rows))
    write("english_novels_pre1900/novel.txt", "\n\n".join(words(rng, 20, 30) for _ in range(12)))


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ChatRunConfig:
    folder = tmp_path_factory.mktemp("chat")
    (folder / "data").mkdir()
    published(folder / "data")
    tokenizer = word_tokenizer([*(f"w{i}" for i in range(NUM_WORDS)), "user", "assistant"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = TEMPLATE
    policy = gpt2_policy(
        vocabulary=len(tokenizer),
        context=40,
        layers=1,
        width=16,
        heads=2,
        end_of_text=Encoder(tokenizer, Limits()).end_of_text,
    )
    policy.save(folder / "model", tokenizer)
    return replace(CONFIG, model=str(folder / "model"), data=str(folder / "data"))


def test_all_steps(config, tmp_path):
    given = read_chat(config)
    results = run_chat(given, tmp_path, RunLog(tmp_path))
    assert [row["name"] for row in results["models"]] == ["Before", "SFT", "PPO"]
    assert results["head_to_head"]["model"] == "PPO"
    measured = {(row["model"], row["data"]) for row in results["reward_model"]["held_out"]}
    assert measured == {(m, d) for m in ("reward model", "judge") for d in ("hh", "qa-feedback", "pandalm")}
    assert all(row["length_correlation"] for row in results["reward_model"]["held_out"])
    assert results["reward_model"]["annotators"]["rate"] == 1 / 3
    assert [row["gold"] is not None for row in results["over_optimisation"]] == [True, True]
    assert set(results["models"][0]["win_rate_by_category"]) == {"chat", "closed qa", "instruction"}
    page = write_report(tmp_path).read_text()
    assert "Agreement with people, set by set" in page
    assert "Length of the responses" in page
    # Prompts of the set were answered, and nobody is shown one.
    assert any(UNSHOWN in prompt.text for prompt in given.material.test)
    assert any(UNSHOWN in prompt for prompt in given.material.ppo_prompts)
    assert len(results["samples"]) > 4
    written = [path for path in tmp_path.rglob("*") if path.suffix in (".json", ".jsonl", ".html", ".yaml", ".md")]
    assert not [path for path in written if UNSHOWN in path.read_text(errors="replace") or "w29" in path.name]
    figures = chat_summary.summary(tmp_path)
    assert {"sft", "reward_model", "judge", "reward quality", "ppo", "evaluation"} <= set(figures["seconds"])
    assert "| reward model | pandalm |" in chat_summary.markdown(figures)
    assert not [row for row in results["samples"] if row["prompt"] in json.dumps(figures)]
    assert isinstance(Policy.load(tmp_path / "models" / "ppo"), Policy)


def test_the_command_says_what_it_is_going_to_do(config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    given = ["run", "chat", "--model", str(config.model), "--data", config.data, "--judge-comparisons", "45"]
    assert cli.main([*given, "--dry-run"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "45 prompts with 2 or 4 completions" in told
    assert "ppo_ptx" not in told


@pytest.mark.parametrize("evaluate", ["test", "validation"])
def test_no_question_is_in_two_parts(config, evaluate):
    material = read_chat(replace(config, evaluate=evaluate)).material
    trained = [*material.demonstrations, *material.comparisons, *(Prompt(text=text) for text in material.ppo_prompts)]
    held_out = [*material.validation, *material.test, *(row for rows in material.held_out.values() for row in rows)]
    parts = [{opening(in_messages(row)) for row in rows} for rows in (trained, material.judge_comparisons, held_out)]
    assert all(parts)
    assert not (parts[0] | parts[1]) & parts[2]
    assert not parts[0] & parts[1]
    assert ("pandalm" in material.held_out) == (evaluate == "test")
