"""Judges of TruthfulQA's answers: trained from rows, measured on others, kept, loaded and taken up again."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from instructrl import cli
from instructrl.data.tokenizers import end_of_text, word_tokenizer
from instructrl.evaluation.suites.protocol import Item, Written
from instructrl.evaluation.suites.settings import SuiteConfig
from instructrl.evaluation.suites.truthfulqa_judge import (
    JudgedAnswer,
    VerdictJudge,
    is_held_out,
    judge_quality,
    read_judged_answers,
    spread_over_questions,
)
from instructrl.models.policy import Policy, gpt2_policy
from instructrl.models.vocabulary import num_ids
from instructrl.rollout.scoring import score_texts
from instructrl.runs import suite_judges
from instructrl.runs.suite_judges import SuiteJudges, judging, load_judges, train_judges
from instructrl.trainers.log import RunLog
from instructrl.trainers.reward_model import RewardModelTrainer
from instructrl.trainers.settings import CheckpointConfig

WORDS = [f"w{i}" for i in range(20)]
QUESTIONS = [f"{a} {b}" for a in WORDS[:8] for b in WORDS[8:16]]
ASKED = {"finetune_truth.jsonl": "True", "finetune_info.jsonl": "Helpful"}
TELLING = "tell"
LOG = RunLog(None)


def base(folder: Path, verdicts=("yes", "no"), *, llama: bool = False, context: int = 32) -> str:
    """An untrained model whose tokenizer has a token for each word."""
    tokenizer = word_tokenizer([*WORDS, "w1.", "w2.", TELLING, "Q:", "A:", "True:", "Helpful:", *verdicts])
    size, end = num_ids(tokenizer), end_of_text(tokenizer)
    torch.manual_seed(0)
    if llama:
        config = LlamaConfig(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=context,
            bos_token_id=None,
            eos_token_id=end,
        )
        policy = Policy(LlamaForCausalLM(config), size)
    else:
        policy = gpt2_policy(vocabulary=size, context=context, layers=1, width=32, heads=2, end_of_text=end)
    policy.save(folder / "base", tokenizer, (end,))
    return str(folder / "base")


def rows(asked: str, per_question: int = 6) -> list[dict[str, str]]:
    """What has a certain word is true and does not help."""
    rng, found = random.Random(asked), []
    for question in QUESTIONS:
        for _ in range(per_question):
            words = [rng.choice(WORDS), rng.choice(WORDS), *rng.choice([[TELLING], []])]
            answer = " ".join(rng.sample(words, len(words)))
            verdict = " yes" if (TELLING in words) == (asked == "True") else " no"
            found.append({"prompt": f"Q: {question}\nA: {answer}\n{asked}:", "completion": verdict})
    return found


def files(folder: Path, per_question: int = 6) -> dict[str, Path]:
    for name, asked in ASKED.items():
        lines = [json.dumps(row) + "\n" for row in rows(asked, per_question)]
        (folder / name).write_text("".join(lines), encoding="utf-8")
    return {name: folder / name for name in ASKED}


def train(given: dict[str, Path], folder: Path, start: str) -> SuiteJudges:
    judges = train_judges(given, SuiteConfig(), folder, start, LOG)
    assert judges is not None
    return judges


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("judges")


@pytest.fixture(scope="module")
def trained(place):
    return train(files(place), place / "judges", base(place))


def probabilities(judges, answers) -> list[list[float]]:
    return [judges.judges[name]([QUESTIONS[0]] * len(answers), answers) for name in ("truth", "info")]


ANSWERS = ["w1 tell w2", "w1 w3", "tell w4 w4", ""]


def test_judges_learn_what_people_said(trained):
    truth, info = probabilities(trained, ANSWERS)
    assert [p > 0.5 for p in truth] == [True, False, True, False]
    assert [p > 0.5 for p in info] == [False, True, False, True]
    for facts, asked in zip(trained.facts.values(), ASKED.values(), strict=True):
        different = {(row["prompt"], row["completion"]) for row in rows(asked)}
        held_out = sum(is_held_out(prompt.splitlines()[0].removeprefix("Q: ")) for prompt, _ in different)
        assert facts["num_answers"] == len(different) - held_out
        assert facts["quality"].num_answers == held_out
        assert facts["quality"].accuracy > 0.95
        assert facts["quality"].num_questions == sum(map(is_held_out, QUESTIONS))


def test_the_probability_of_a_yes_is_of_both_scores(trained):
    judge = trained.judges["truth"]
    prompt = f"Q: {QUESTIONS[0]}\nA: w1 tell w2\nTrue:"
    yes, no = score_texts(judge.reward_model, judge._encoder, [prompt] * 2, [" yes", " no"]).double()
    assert judge([QUESTIONS[0]], ["w1 tell w2"])[0] == pytest.approx(float(torch.sigmoid(yes - no)), rel=1e-5)


def test_judges_are_loaded_as_they_were_trained(trained, place):
    loaded = load_judges(place / "judges", LOG)
    assert probabilities(loaded, ANSWERS) == probabilities(trained, ANSWERS)
    assert loaded.facts == trained.facts
    assert loaded.notes(QUESTIONS) == trained.notes(QUESTIONS)


def test_what_judges_say_is_kept(trained, tmp_path, monkeypatch):
    """Eight answers in portions of three; the second judge is stopped at its second portion."""
    monkeypatch.setattr(suite_judges, "PORTION", 3)
    call, asked = VerdictJudge.__call__, []

    def broken_off(self, questions, answers):
        asked.append(len(answers))
        if len(asked) == 5:
            raise KeyboardInterrupt
        return call(self, questions, answers)

    monkeypatch.setattr(VerdictJudge, "__call__", broken_off)
    items = [Item(context="", question=QUESTIONS[0], references=("w1.", "w2."), right=(0,))] * 8
    answers = [Written(text=text, finished=True) for text in ANSWERS * 2]
    with pytest.raises(KeyboardInterrupt):
        trained.measures(tmp_path, LOG)(items, answers)
    found = trained.measures(tmp_path, LOG)(items, answers)
    assert asked == [3, 3, 2, 3, 3, 3, 2]
    assert found == trained.measures(tmp_path, LOG)(items, answers)
    assert len(asked) == 7
    assert [(row.metric, row.value) for row in found[:2]] == [
        ("true (own judge)", 0.5),
        ("true and informative (own judges)", 0.0),
    ]
    trained.measures(tmp_path, LOG)(items, answers[::-1])
    assert len(asked) == 13


def test_the_note_has_what_a_reader_has_to_know(trained):
    seen = sum(not is_held_out(question) for question in QUESTIONS)
    learned = trained.facts["truth"]["num_answers"]
    truth, information = trained.notes(QUESTIONS)
    quality = trained.facts["truth"]["quality"]
    assert truth.startswith(f"The judge of truth is right on {quality.accuracy:.1%} ({quality.low:.1%} to ")
    assert f"of {quality.num_answers} answers to {quality.num_questions} questions that it did not" in truth
    assert truth.endswith(f"It learned from {learned} answers; {seen} of the 64 questions asked here are among theirs.")
    assert information.startswith("The judge of information is right on ")


def test_an_answer_that_does_not_fit_is_judged_by_its_beginning(place, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(LOG, "warn", told.append)
    judge = load_judges(place / "judges", LOG).judges["truth"]
    long = "w1 tell " + "w2 " * 100
    read = judge._beginning(QUESTIONS[0], long)
    assert long.startswith(read)
    assert judge([QUESTIONS[0]] * 2, [long, "w1"]) == judge([QUESTIONS[0]] * 2, [read, "w1"])
    assert told == [
        "1 of 2 answers are longer than the judge reads that is asked whether they are true: their beginning is judged"
    ]
    # Question and answer have 24 tokens at most, 5 of them beside the answer's; a tenth may have been given up.
    assert 16 <= len(read.split()) <= 19


@pytest.mark.parametrize("large", [False, True], ids=["whole", "adapter"])
def test_a_judge_that_was_stopped_goes_on_to_the_same_bytes(tmp_path, monkeypatch, large):
    """large: an adapter learns, from some of the rows."""
    monkeypatch.setattr(suite_judges, "_CHECKPOINTS", CheckpointConfig(every_seconds=0))
    monkeypatch.setattr(suite_judges, "_LARGE", 0 if large else 1 << 40)
    monkeypatch.setattr(suite_judges, "_LARGE_ROWS", 40)
    monkeypatch.setattr(suite_judges, "_LARGE_HELD_OUT", 9)
    given, start = files(tmp_path, per_question=1), base(tmp_path, llama=large)
    whole = train(given, tmp_path / "whole", start)
    step, steps = RewardModelTrainer._train_step, []

    def broken_off(self):
        steps.append(self.phase)
        if len(steps) in (2, 6):
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(RewardModelTrainer, "_train_step", broken_off)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(given, tmp_path / "stopped", start)
    resumed = train(given, tmp_path / "stopped", start)
    weights = "adapter_model.safetensors" if large else "model.safetensors"
    for name in ("judges.json", f"models/truth/{weights}", f"models/info/{weights}"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    num_steps = [-(-facts["num_answers"] // 16) for facts in whole.facts.values()]
    assert len(steps) == sum(num_steps) + 2
    assert resumed.facts == whole.facts
    drawn = [(facts["num_answers"], facts["quality"].num_answers) == (40, 9) for facts in whole.facts.values()]
    assert drawn == [large] * 2
    assert probabilities(load_judges(tmp_path / "stopped", LOG), ANSWERS) == probabilities(whole, ANSWERS)
    assert probabilities(resumed, ANSWERS) == probabilities(whole, ANSWERS)


def test_models_are_judged_by_judges_of_the_first_of_them(tmp_path):
    """And later by those that were kept; without judges what needs none is left."""
    data = tmp_path / "data" / "truthfulqa"
    data.mkdir(parents=True)
    files(data, per_question=1)
    questions = "".join(f"Adversarial,{question},w1,w1,w2\n" for question in QUESTIONS[:12])
    header = "Type,Question,Best Answer,Correct Answers,Incorrect Answers\n"
    (data / "TruthfulQA.csv").write_text(header + questions, encoding="utf-8")
    model = base(tmp_path, context=224)

    def evaluated(out: str, *options: str) -> dict:
        given = ["--models", model, "--suites", "truthfulqa", "--suite.data", str(data.parent), "--suite.items", "8"]
        assert cli.main(["eval", *given, "--out", str(tmp_path / out), *options]) == 0
        (entry,) = json.loads((tmp_path / out / "results.json").read_text())["suites"]
        return entry

    trained, loaded, alone = (
        evaluated("first"),
        evaluated("second", "--suite.judges", str(tmp_path / "first" / "judges")),
        evaluated("third", "--suite.judges", "none"),
    )
    assert trained == loaded
    judged = {row["metric"] for row in trained["rows"]}
    assert judged == {
        "true (own judge)",
        "true and informative (own judges)",
        "true by ROUGE-1",
        "no comment",
        "MC1",
        "MC2",
    }
    assert {row["metric"] for row in alone["rows"]} == judged - {
        "true (own judge)",
        "true and informative (own judges)",
    }
    assert [note.partition(" is right on ")[0] for note in trained["notes"][1:]] == [
        "The judge of truth",
        "The judge of information",
    ]
    assert len(alone["notes"]) == 1  # that of 12 items 8 are asked
    (data / "finetune_info.jsonl").unlink()
    assert evaluated("fourth")["notes"][1:] == [
        "No judges: found no finetune_truth.jsonl and finetune_info.jsonl to train them on."
    ]


def test_judges_of_another_seed_give_way(tmp_path, monkeypatch):
    """Settings of public sets may change in a run that is finished, whose steps stay."""
    told: list[str] = []
    monkeypatch.setattr(LOG, "say", told.append)
    given, start, folder = files(tmp_path, per_question=1), base(tmp_path), tmp_path / "judges"
    train(given, folder, start)
    before = (folder / "models/truth/model.safetensors").read_bytes()
    train(given, folder, start)
    assert told == []
    assert train_judges(given, SuiteConfig(seed=1), folder, start, LOG) is not None
    assert told == [f"{folder}: found judges of another base, other rows or another seed: they are trained anew"]
    assert (folder / "models/truth/model.safetensors").read_bytes() != before


def test_a_vocabulary_without_verdicts_gives_no_judges(tmp_path):
    assert train_judges(files(tmp_path), SuiteConfig(), tmp_path / "judges", base(tmp_path, verdicts=()), LOG) is None
    assert not (tmp_path / "judges").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "Q: a\nA: b\nHelpful:", "completion": " yes"},
            "prompt: found 'Q: a\\nA: b\\nHelpful:', accepted is",
        ),
        (
            {"prompt": "Q: a\nTrue:", "completion": " yes"},
            "prompt: found 'Q: a\\nTrue:', accepted is 'Q: ...', 'A: ...'",
        ),
        ({"prompt": "a\nA: b\nTrue:", "completion": " yes"}, "prompt: found 'a\\nA: b\\nTrue:', accepted is"),
        ({"prompt": "Q: a\nA: b\nTrue:", "completion": "yes"}, "completion: found 'yes', accepted is ' yes' or ' no'"),
        ({"prompt": "Q: a\nA: b\nTrue:"}, "completion: found nothing, accepted is a text"),
    ],
)
def test_a_row_of_another_form(tmp_path, row, message):
    path = tmp_path / "finetune_truth.jsonl"
    good = {"prompt": "Q: a\nA: b\nA: c\nTrue:", "completion": " no"}
    path.write_text("".join(json.dumps(line) + "\n" for line in (good, good, row)), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^{re.escape(f'{path}, row 3: {message}')}"):
        read_judged_answers(path, "True")
    path.write_text("".join(json.dumps(line) + "\n" for line in (good, good)), encoding="utf-8")
    assert read_judged_answers(path, "True") == [JudgedAnswer(question="a", answer="b\nA: c", asked="True", yes=False)]


def test_rows_that_nobody_can_learn_from_leave_nothing(tmp_path):
    given = files(tmp_path)
    long = {"prompt": f"Q: w1\nA: {'w2 ' * 40}\nTrue:", "completion": " no"}
    given["finetune_truth.jsonl"].write_text(json.dumps(long) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"finetune_truth\.jsonl: found 0 answers to learn from and 0 held out that"):
        train(given, tmp_path / "judges", base(tmp_path))
    assert not (tmp_path / "judges").exists()


def test_a_policy_of_no_folder_is_no_base(tmp_path):
    with pytest.raises(
        ValueError, match=r"^judge_base: found nothing for a policy of no folder, accepted is a model's"
    ):
        judging(files(tmp_path), SuiteConfig(), tmp_path / "judges", "", QUESTIONS, LOG)


@pytest.mark.parametrize("content", [None, "{", "{}", '{"truth": 1}'])
def test_a_folder_without_judges(tmp_path, content):
    if content is not None:
        (tmp_path / "judges.json").write_text(content, encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"^judges: found no judges\.json of judges in .*, accepted is train, none, or"
    ):
        load_judges(tmp_path, LOG)


def test_quality_by_hand():
    """Right on 1 of 2 and 2 of 2; three of four verdicts are no."""
    given = [("a", True, 0.4), ("a", False, 0.5), ("b", False, 0.1), ("b", False, 0.2)]
    answers = [JudgedAnswer(question=q, answer=str(p), asked="True", yes=yes) for q, yes, p in given]
    found = judge_quality(answers, [p for *_, p in given])
    assert (found.accuracy, found.commoner, found.num_answers, found.num_questions) == (0.75, 0.75, 4, 2)
    assert found.low < 0.75 < found.high


def test_rows_are_drawn_over_all_questions():
    answers = [
        JudgedAnswer(question=q, answer=f"{n}", asked="True", yes=False)
        for q, m in (("a", 9), ("b", 2), ("c", 9))
        for n in range(m)
    ]
    drawn = spread_over_questions(answers, 10, seed=1)
    counts = [sum(row.question == q for row in drawn) for q in "abc"]
    assert counts == [4, 2, 4]
    assert len(set(drawn)) == 10
    assert drawn == spread_over_questions(answers, 10, seed=1) != spread_over_questions(answers, 10, seed=2)
    assert set(spread_over_questions(answers, 99, seed=1)) == set(answers)


def test_a_tenth_of_the_questions_is_held_out_for_ever():
    """The border moves no question between versions: judges are loaded later."""
    questions = [f"question {n}" for n in range(2000)]
    assert 160 < sum(map(is_held_out, questions)) < 240
    assert [n for n in range(20) if is_held_out(questions[n])] == [9, 18]
