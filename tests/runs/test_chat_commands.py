"""Every command on data that are messages: all read the same rendering, and what they save goes on with it."""

import json
from datetime import date

import pytest
import torch
import yaml
from chats import GEMMA, STYLES, conversation, tokenizer_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from instructrl import cli
from instructrl.data.chat import ChatTemplate
from instructrl.data.encoding import Encoder
from instructrl.data.settings import Limits
from instructrl.data.tokenizers import load_tokenizer
from instructrl.models.policy import Policy, gpt2_policy
from instructrl.rollout.scoring import mean_loss
from instructrl.runs import standalone
from instructrl.trainers.settings import AdamConfig, SFTConfig
from instructrl.trainers.sft import SFTTrainer, demonstration_loss
from instructrl.types import Conversation, Demonstration

LIMITS = "--limits.max-prompt-tokens 60 --limits.max-response-tokens 8"
STEPS = {
    "sft": f"--model model --data sft.jsonl {LIMITS} --sft.epochs 1 --sft.batch-size 2 --sft.residual-dropout 0",
    "rm": f"--model sft/models/sft_epoch_01 --data rm.jsonl {LIMITS} --validation none --demonstrations sft.jsonl",
    "ppo": f"--model sft/models/sft_epoch_01 --reward-model rm/models/reward_model --data prompts.jsonl {LIMITS} "
    "--ppo.num-episodes 4 --ppo.rollout-batch 4 --ppo.minibatch 2 --ppo.num-epochs 1 --ppo.warmup-iterations 0",
    "eval": f"--baseline sft/models/sft_epoch_01 --models ppo/models/ppo --reward-model rm/models/reward_model "
    f"--data prompts.jsonl {LIMITS}",
}


def tiny(tokenizer) -> Policy:
    torch.manual_seed(0)
    return gpt2_policy(
        vocabulary=len(tokenizer), context=96, layers=1, width=16, heads=2, end_of_text=tokenizer.eos_token_id
    )


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = tokenizer_of("gemma", "byte level")
    tiny(tokenizer).save("model", tokenizer)
    rows = {
        "sft": [{"messages": [user("q"), assistant("a"), user(f"r {n}"), assistant("sky")]} for n in range(4)],
        "rm": [
            {"chosen": [user(f"q {n}"), assistant("a")], "rejected": [user(f"q {n}"), assistant("b")]} for n in "xy"
        ],
        "prompts": [{"prompt": [{"role": "system", "content": "S"}, user(f"q {n}")]} for n in range(4)],
    }
    for name, values in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))
    return tmp_path


def run(name, *options):
    assert cli.main([name, *STEPS[name].split(), "--out", name, *options]) == 0


def test_the_steps_on_messages(world, monkeypatch, capsys):
    asked, real = [], Encoder.prompt

    def prompt(self, text):
        ids = real(self, text)
        asked.append((type(text), self.tokenizer.decode(ids)))
        return ids

    monkeypatch.setattr(Encoder, "prompt", prompt)
    for name in STEPS:
        asked.clear()
        run(name)
        assert {kind for kind, _ in asked} == {Conversation}
        assert all(text.startswith("<bos><start_of_turn>user\n") for _, text in asked)
        assert all(text.endswith("<end_of_turn>\n<start_of_turn>model\n") for _, text in asked)
        if name in ("ppo", "eval"):
            assert all("user\nS\n\nq " in text for _, text in asked)
    tokenizer = AutoTokenizer.from_pretrained("ppo/models/ppo")
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    for folder in ("sft/models/sft_epoch_01", "ppo/models/ppo", "rm/models/reward_model"):
        assert load_tokenizer(folder).chat_template == GEMMA
    found = AutoModelForCausalLM.from_pretrained("ppo/models/ppo").generation_config.eos_token_id
    assert found == [end, tokenizer.eos_token_id]
    assert Policy.load("ppo/models/ppo", tokenizer).ends(end) == found
    config = yaml.safe_load((world / "ppo" / "config.yaml").read_text())
    assert (config["chat_template"], config["chat_date"]) == ("auto", "2025-01-01")
    asked.clear()
    capsys.readouterr()
    assert cli.main(["generate", "--model", "ppo/models/ppo", "--prompts", "q", "--max-response-tokens", "2"]) == 0
    assert asked[0][1] == "<bos><start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\n"
    asked.clear()
    none = ["--chat-template", "none"]
    assert cli.main(["generate", "--model", "model", "--prompts", "q", "--max-response-tokens", "2", *none]) == 0
    assert asked[0] == (str, "q")


def test_a_template_of_a_file_is_saved_and_goes_on_as_it_was(world, capsys):
    template = world / "chat.jinja"
    template.write_text(GEMMA.replace("{{ bos_token }}", "{{ bos_token }}{{ strftime_now('%d.%m.%y') }}"))
    options = ["--chat-template", "chat.jinja", "--chat-date", "2031-05-07"]
    run("sft", *options)
    tokenizer = load_tokenizer("sft/models/sft_epoch_01")
    assert tokenizer.chat_template == template.read_text()
    found = standalone.load_encoder("sft/models/sft_epoch_01", Limits(), _Chosen())
    assert found.chat.today == date(2025, 1, 1)
    assert tokenizer.decode(found.prompt(conversation("u:q"))).startswith("<bos>01.01.25<start_of_turn>user")
    template.write_text(GEMMA)
    assert cli.main(["sft", *STEPS["sft"].split(), "--out", "sft", *options]) == 2
    assert "found the step sft of a run with other content of the chat template" in capsys.readouterr().err


class _Chosen:
    chat_template, chat_date = "auto", "2025-01-01"


@pytest.mark.parametrize("style", STYLES)
def test_sft_counts_the_turns_of_the_assistant_alone(style):
    tokenizer = tokenizer_of(style, "byte level")
    encoder = Encoder(tokenizer, Limits(max_prompt_tokens=80, max_response_tokens=16), ChatTemplate(tokenizer))
    rows = [
        Demonstration(prompt=conversation("u:Why?", "a:Blue sky.", "u:And?"), completion="Red."),
        Demonstration(prompt=conversation("u:Why?"), completion="It is."),
    ]
    policy = tiny(tokenizer)
    expected = {}
    for turns in ("all", "last"):
        total, count = 0.0, 0
        for row in rows:
            ids = encoder.prompt(row.prompt) + encoder.response(row.completion, prompt=row.prompt)
            learned = encoder.chat.learned(row.prompt) if turns == "all" else [False] * len(encoder.prompt(row.prompt))
            learned += [True] * (len(ids) - len(learned))
            with torch.no_grad():
                logprobs = policy.lm(torch.tensor([ids])).logits[0].log_softmax(-1)
            for place in range(1, len(ids)):
                if learned[place]:
                    total, count = total - float(logprobs[place - 1, ids[place]]), count + 1
        expected[turns] = total / count
        assert demonstration_loss(policy, rows, encoder, turns) == pytest.approx(expected[turns], rel=1e-5)
        assert mean_loss(policy, [encoder.demonstrations(rows, turns)]) == pytest.approx(expected[turns], rel=1e-5)
        config = SFTConfig(adam=AdamConfig(lr=1e-3), batch_size=2, epochs=1, residual_dropout=0.0, turns=turns)
        metrics, num_tokens = SFTTrainer(tiny(tokenizer), rows, encoder, config)._train_step()
        assert metrics["loss"] == pytest.approx(expected[turns], rel=1e-5)
        assert num_tokens == count
    assert expected["all"] != expected["last"]
