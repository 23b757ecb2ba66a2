"""`instructrl generate`: what a person sees of a model, on any folder with a policy."""

import io
import json

import pytest
import torch
from tiny import lively_policy, tiny_encoder

from instructrl import cli
from instructrl.commands import generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    encoder = tiny_encoder()
    path = tmp_path_factory.mktemp("generate") / "model"
    lively_policy(encoder).save(path, encoder.tokenizer)
    return path


@pytest.fixture
def call(folder, capsys):
    def run(*words: str) -> str:
        assert cli.main(["generate", "--model", str(folder), *words]) == 0
        return capsys.readouterr().out

    return run


class Keyboard(io.StringIO):
    """Standard input; typed: a person sits there."""

    def __init__(self, text: str, *, typed: bool) -> None:
        super().__init__(text)
        self.isatty = lambda: typed


def test_prompts_come_as_options_from_a_file_or_line_by_line(call, tmp_path, monkeypatch):
    asked = ["w1 w2", "w3"]
    first = call("--prompts", *asked, "--seed", "4")
    assert len(first.splitlines()) == 2
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in asked))
    assert call("--data", str(path), "--seed", "4") == first
    monkeypatch.setattr("sys.stdin", Keyboard("w1 w2\n\nw3", typed=False))
    assert call("--seed", "4") == first
    assert call("--prompts", *asked, "--seed", "5") != first


def test_several_samples_differ_and_a_low_temperature_takes_the_likeliest(call):
    found = call("--prompts", "w1", "--samples", "6", "--max-response-tokens", "6").splitlines()
    assert len(found) == 6
    assert len(set(found)) > 1
    cold = call("--prompts", "w1", "--samples", "3", "--temperature", "1e-4", "--max-response-tokens", "6").splitlines()
    assert len(set(cold)) == 1


def test_it_is_the_models_own_distribution(call, folder):
    """The likeliest continuation, token by token, by transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("w5 w6", return_tensors="pt").input_ids
    with torch.no_grad():
        answer = model.generate(ids, do_sample=False, max_new_tokens=5)[0, ids.shape[1] :]
    expected = tokenizer.decode(answer, skip_special_tokens=True)
    assert call("--prompts", "w5 w6", "--temperature", "1e-4", "--max-response-tokens", "5").strip() == expected


def test_what_is_typed_too_long_ends_nothing(call, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Keyboard("w1 " * 40 + "\nw2\n", typed=True))
    assert len(call("--max-response-tokens", "4").splitlines()) == 1
    assert cli.main(["generate", "--model", "x", "--prompts", "a", "--data", "b"]) == 2
    assert "accepted is one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("response", "shown"),
    [
        ("\x1b]0;title\x07\x1b[2J", "␛]0;title␇␛[2J"),
        ("\x9b31m and \x90", "\ufffd31m and \ufffd"),
        ("a\rb\x08\x00", "a␍b␈␀"),
        ("\u202egpj.exe", "\ufffdgpj.exe"),
        ("two\nlines\tand 日本", "two\nlines\tand 日本"),
    ],
)
def test_what_a_model_says_does_nothing_to_a_terminal(capsys, response, shown):
    generate.show(response)
    assert capsys.readouterr().out == f"{shown}\n"


def test_a_terminal_without_unicode_gets_escapes(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    generate.show("日\x1b")
    assert raw.getvalue() == b"\\u65e5\\u241b\n"
