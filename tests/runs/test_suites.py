"""Models put through suites: as they are asked, what fits, what is kept when it stops."""

import json
from pathlib import Path

import pytest
import torch
from chats import CHATML
from pages import blocks
from pages import read as read_page
from tiny import demonstrations, lively_policy, tiny_encoder, tiny_reward_model

from instructrl import cli
from instructrl.data.chat import ChatTemplate
from instructrl.data.encoding import Encoder
from instructrl.data.readers import write_jsonl
from instructrl.data.tokenizers import word_tokenizer
from instructrl.evaluation.report import write_report
from instructrl.evaluation.suites.protocol import Item, Measure, Task, Written
from instructrl.evaluation.suites.settings import SuiteConfig
from instructrl.rollout.generate import Sampling, sample_texts
from instructrl.rollout.options import option_logprobs
from instructrl.runs import suites
from instructrl.runs.suites import Examinee, ReadSuite, ask, read_suites, suite_results
from instructrl.trainers.log import RunLog
from instructrl.types import Prompt

CONFIG = SuiteConfig(data="unused")


def counted(items, answers) -> list[Measure]:
    """How many answers there are; what they are is looked at beside it."""
    seen.append((items, answers))
    return [Measure(metric="count", value=len(answers), low=None, high=None, num_items=len(items))]


seen: list = []


@pytest.fixture(autouse=True)
def nothing_seen():
    seen.clear()


def read(*tasks: Task) -> list[ReadSuite]:
    return [ReadSuite.own("set", *tasks, what="of numbers")]


def weigh(*options: tuple[str, ...], context: str = "w1") -> Task:
    return Task(suite="set", items=tuple(Item(context=context, options=row) for row in options), measures=counted)


def write(*contexts: str, max_tokens: int = 4) -> Task:
    items = tuple(Item(context=text) for text in contexts)
    return Task(suite="set", items=items, measures=counted, max_tokens=max_tokens, stop=("w9",))


def examinee(encoder: Encoder | None = None) -> Examinee:
    encoder = encoder or tiny_encoder()
    return Examinee.of("SFT", 3, lively_policy(encoder), encoder)


def asked(model: Examinee, tasks: list[ReadSuite], folder: Path) -> list[dict]:
    return ask(model, tasks, CONFIG, folder, RunLog(folder))


def test_options_are_weighed_and_answers_are_written_token_by_token(tmp_path):
    model = examinee()
    tasks = read(weigh(("w2", "w3 w4"), ("w5",)), write("w1 w2", "w3"))
    (found,) = asked(model, tasks, tmp_path)
    (_, weighed), (_, written) = seen
    assert weighed == option_logprobs(model.policy, model.encoder, ["w1", "w1"], [("w2", "w3 w4"), ("w5",)])
    sampling = Sampling(seed=1, temperature=0, max_response_tokens=4)
    whole = sample_texts(model.policy, model.encoder, ["w1 w2", "w3"], sampling).texts
    assert [row.text for row in written] == [text.split("w9")[0].strip() for text in whole]
    assert {row["model"] for row in found["rows"]} == {"SFT"}
    assert [row["num_items"] for row in found["rows"]] == [2, 2]
    (entry,) = suite_results(tasks, [[found]])
    assert (entry["suite"], entry["what"], len(entry["rows"])) == ("set", "of numbers", 2)
    assert json.loads(json.dumps(entry)) == entry


def test_with_a_chat_template_a_user_says_the_context_and_options_are_answers(tmp_path):
    plain = tiny_encoder()
    plain.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    encoder = Encoder(plain.tokenizer, plain.limits, ChatTemplate(plain.tokenizer, CHATML))
    model = examinee(encoder)
    said = []
    original = option_logprobs

    def listening(policy, reader, prompts, options):
        said.extend(zip(prompts, options, strict=True))
        return original(policy, reader, prompts, options)

    suites.option_logprobs, kept = listening, suites.option_logprobs
    try:
        asked(model, read(weigh((" w2", " w3"), context="w1\n")), tmp_path)
    finally:
        suites.option_logprobs = kept
    ((context, options),) = said
    assert [(message.role, message.content) for message in context.messages] == [("user", "w1")]
    assert options == ("w2", "w3")


def test_what_does_not_fit_is_left_out_counted_and_told(tmp_path, capsys):
    model = examinee()  # of 32 positions
    long = " ".join(["w1"] * 30)
    (found,) = asked(model, read(weigh(("w2",), ("w2 w3 w4",), context=long), write("w1", long)), tmp_path)
    assert [len(items) for items, _ in seen] == [1, 1]
    assert [row["num_left_out"] for row in found["rows"]] == [1, 1]
    assert found["notes"][0] == "1 of 2 items of set are left out, they do not fit into 32 positions"
    assert "1 of 2 items" in capsys.readouterr().err


def test_what_is_true_of_several_models_is_told_once():
    told = {"a": ["x"], "b": ["x", "y"], "c": []}
    answered = [[{"model": name, "rows": [], "notes": notes}] for name, notes in told.items()]
    (entry,) = suite_results(read(write("w1")), answered)
    assert entry["notes"] == ["a and b: x", "b: y"]


def test_an_evaluation_that_stopped_goes_on_and_gives_the_same(tmp_path, monkeypatch):
    model, tasks = examinee(), read(weigh(("w2", "w3")), write("w1 w2"))
    first = asked(model, tasks, tmp_path / "whole")
    calls = []
    original = suites.sample_texts

    def breaking(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(suites, "sample_texts", breaking)
    with pytest.raises(KeyboardInterrupt):
        asked(model, tasks, tmp_path / "stopped")
    monkeypatch.setattr(suites, "option_logprobs", None)  # done already
    assert asked(model, tasks, tmp_path / "stopped") == first
    assert len(calls) == 2
    # Of another model, everything is asked again.
    monkeypatch.undo()
    with torch.no_grad():
        model.policy.output_embedding()[0].mul_(1.5)
    before = list(seen[-2][1])
    asked(model, tasks, tmp_path / "stopped")
    assert seen[-2][1] != before


def test_answers_of_another_tokenizer_or_another_end_are_asked_again(tmp_path, monkeypatch):
    """The weights are the same: a folder whose other files were mended."""
    calls, original = [], suites.sample_texts
    monkeypatch.setattr(suites, "sample_texts", lambda *given: calls.append(given) or original(*given))
    tasks, encoder = read(write("w1 w2")), tiny_encoder()
    first = examinee(encoder)
    asked(first, tasks, tmp_path)
    asked(first, tasks, tmp_path)
    assert len(calls) == 1
    swapped = Encoder(word_tokenizer([f"w{i}" for i in reversed(range(30))]), encoder.limits)
    asked(examinee(swapped), tasks, tmp_path)
    assert len(calls) == 2
    other_end = examinee(swapped)
    other_end.policy.lm.generation_config.eos_token_id = [encoder.end_of_text, 7]
    asked(other_end, tasks, tmp_path)
    assert len(calls) == 3


@pytest.mark.parametrize("name", ["../../evil", "a/b", "", ".", "a\nb", "x" * 101])
def test_a_suite_of_ones_own_is_named_so_that_a_file_can_be(name):
    with pytest.raises(ValueError, match=r"^name: found .*, accepted are letters"):
        ReadSuite.own(name, write("w1"))


def test_fewer_items_are_the_same_ones_of_every_task(tmp_path):
    rows = [f"a.b.{i}.{gender}.txt\tw{i}" for i in range(9) for gender in ("male", "female")]
    (tmp_path / "all_sentences.tsv").write_text("sentid\tsentence\n" + "\n".join(rows) + "\n", encoding="utf-8")

    def options(seed: int) -> list[list[tuple[str, ...]]]:
        config = SuiteConfig(items=4, seed=seed)
        (suite,) = read_suites([f"winogender={tmp_path}"], config)
        assert suite.notes == (f"4 of 9 items, drawn with seed {seed}",)
        return [[item.options for item in task.items] for task in suite.tasks]

    first, second, third = options(0)
    assert first == second == third
    assert len(first) == 4
    assert options(1) != options(0) == options(0)


def test_a_written_answer_reads_back_as_it_was_kept():
    assert suites._answer({"text": "w1", "finished": False}) == Written(text="w1", finished=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Two models of one tokenizer and a judge, one model of another tokenizer, prompts, and a suite."""
    folder = tmp_path_factory.mktemp("suites")
    encoder = tiny_encoder()
    policy = lively_policy(encoder)
    policy.save(folder / "a", encoder.tokenizer)
    lively_policy(encoder, seed=1).save(folder / "b", encoder.tokenizer)
    tiny_reward_model(policy).save(folder / "judge", encoder.tokenizer)
    other = Encoder(word_tokenizer(["he", "she", "runs"]), encoder.limits)
    lively_policy(other).save(folder / "c", other.tokenizer)
    write_jsonl(folder / "prompts.jsonl", [Prompt(text=row.prompt) for row in demonstrations(5)])
    (folder / "winogender").mkdir()
    rows = [
        f"a.b.{i}.{gender}.txt\tw{i} {word}" for i in range(5) for gender, word in (("male", "w7"), ("female", "w8"))
    ]
    (folder / "winogender" / "all_sentences.tsv").write_text("sentid\tsentence\n" + "\n".join(rows) + "\n")
    return folder


def test_suites_alone_take_models_of_different_tokenizers(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(world)
    words = ["eval", "--models", "a", "c", "--suites", "winogender", "--suite.data", ".", "--out"]
    assert cli.main([*words, str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(model["name"], "win_rate" in model) for model in found["models"]] == [("a", False), ("c", False)]
    (entry,) = found["suites"]
    rows = {(row["model"], row["prompt"]): row["value"] for row in entry["rows"] if row["metric"] == "entropy"}
    assert len(rows) == 6
    assert 0 < rows["a", "basic"] < 1
    assert rows["c", "basic"] == 1  # none of the words is one of its own: equal sentences
    assert entry["notes"][0] == "c: options of 5 of 5 items of winogender are the same tokens to the tokenizer"
    shown = capsys.readouterr().out
    assert "Winogender" in shown
    assert "Win rate" not in shown
    page = write_report(tmp_path / "out").read_text(encoding="utf-8")
    assert "Public test sets" in page
    assert "basic: entropy, bits" in page


def test_suites_stand_beside_win_rates(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(world)
    words = "eval --baseline a --models b --reward-model judge --data prompts.jsonl --suites winogender --suite.data ."
    limits = "--limits.max-prompt-tokens 12 --limits.max-response-tokens 8 --out"
    assert cli.main([*words.split(), *limits.split(), str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [model["win_rate"]["num_prompts"] for model in found["models"]] == [5, 5]
    assert {row["model"] for row in found["suites"][0]["rows"]} == {"a", "b"}
    shown = capsys.readouterr().out
    assert "Winogender" in shown
    assert "Win rate" in shown


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder = tiny_encoder()
    lively_policy(encoder).save("toy/run/models/ppo", encoder.tokenizer)
    (example,) = blocks(read_page("docs/suites.md"), "python")
    made: dict = {}
    exec(compile(example, "suites.md", "exec"), made)
    assert [(row["metric"], row["num_items"]) for row in made["entry"]["rows"]] == [("accuracy", 2)]
    assert list((tmp_path / "toy" / "opposites").rglob("00-opposites-0-*.json"))
