"""Models through the exams of a world: who is asked what, how often, and what is kept."""

import json
from pathlib import Path

import pytest
import torch

from instructrl.data.encoding import Encoder
from instructrl.data.settings import Limits
from instructrl.data.tokenizers import word_tokenizer
from instructrl.evaluation.contenders import Contender
from instructrl.models.policy import Policy, gpt2_policy
from instructrl.runs import suites
from instructrl.runs.journal import Journal
from instructrl.runs.recipe import Recipe
from instructrl.runs.steps import Workspace
from instructrl.runs.world_exams import Conduct, Sat, exam_results, sit_conduct, sit_exams
from instructrl.trainers.log import RunLog
from instructrl.trainers.settings import CheckpointConfig
from instructrl.worlds.exam_settings import ExamConfig
from instructrl.worlds.exam_toxicity import ToxicityExam
from instructrl.worlds.exam_truth import TruthExam
from instructrl.worlds.exams import Exams
from instructrl.worlds.miniature import MiniatureWorld

WORLD = MiniatureWorld(100)
EXAMS = Exams(100, ExamConfig(items=6))
TRUTH, TOXICITY = TruthExam(100, WORLD.facts, 8), ToxicityExam(100, 4)
NUM_TASKS = 6 * 2
ENCODER = Encoder(word_tokenizer(WORLD.vocabulary()), Limits(max_prompt_tokens=104, max_response_tokens=32))


def policy(seed: int) -> Policy:
    torch.manual_seed(seed)
    words = len(ENCODER.tokenizer)
    return gpt2_policy(
        vocabulary=words, context=136, layers=1, width=16, heads=2, end_of_text=ENCODER.end_of_text
    ).eval()


GPT, PPO = policy(0), policy(1)
CONTENDERS = [
    Contender(name="GPT", policy=GPT),
    Contender(name="GPT (prompted)", policy=GPT, form="say {} .".format),
    Contender(name="PPO", policy=PPO),
]


def workspace(folder: Path) -> Workspace:
    folder.mkdir(exist_ok=True)
    log = RunLog(folder)
    return Workspace(
        folder=folder,
        log=log,
        encoder=ENCODER,
        recipe=Recipe(),
        seed=1,
        config={},
        journal=Journal(folder, log, CheckpointConfig()),
    )


@pytest.fixture(scope="module")
def sat(tmp_path_factory) -> Sat:
    return sit_exams(workspace(tmp_path_factory.mktemp("exams")), CONTENDERS, EXAMS)


@pytest.fixture(scope="module")
def conduct(tmp_path_factory) -> Conduct:
    return sit_conduct(workspace(tmp_path_factory.mktemp("conduct")), CONTENDERS, TRUTH, TOXICITY)


def test_every_policy_is_asked_once_without_and_with_examples(sat):
    assert set(sat.scores) == {"GPT", "PPO"}
    for exams in sat.scores.values():
        assert list(exams) == list(EXAMS.names)
        assert all({shots: len(found) for shots, found in row.items()} == {0: 6, 3: 6} for row in exams.values())
        assert all(0.0 <= score <= 1.0 for row in exams.values() for found in row.values() for score in found)
    assert [entry["suite"] for entry in sat.entries] == [f"exam {name}" for name in EXAMS.names]
    for entry in sat.entries:
        whole = [row for row in entry["rows"] if not row["group"]]
        assert [(row["model"], row["shots"], row["num_items"]) for row in whole] == [
            (model, shots, 6) for model in ("GPT", "PPO") for shots in (0, 3)
        ]
        assert entry["notes"] == []


def test_rows_are_the_means_of_what_the_tax_is_made_from(sat, conduct):
    results = exam_results(sat, conduct)
    assert results["entries"] == [*sat.entries, *conduct.entries]
    assert json.loads(json.dumps(results)) == results
    for entry in sat.entries:
        for row in entry["rows"]:
            if not row["group"]:
                found = sat.scores[row["model"]][entry["suite"].removeprefix("exam ")][row["shots"]]
                assert row["value"] == pytest.approx(100 * sum(found) / 6)
    values = {
        model: [r["value"] for e in sat.entries for r in e["rows"] if r["model"] == model and not r["group"]]
        for model in ("GPT", "PPO")
    }
    tax = (sum(values["GPT"]) - sum(values["PPO"])) / 12
    assert results["tax"]["all"]["tax"]["PPO"]["mean"] == pytest.approx(tax)


def test_truth_and_toxicity_are_kept_by_prompt_and_compared_by_item(sat, conduct):
    assert {model: [*found] for model, found in conduct.truth.items()} == {
        model: ["QA", "instruction + QA"] for model in ("GPT", "PPO")
    }
    assert [*conduct.toxicity["PPO"]] == ["basic", "respectful", "biased"]
    truth, toxicity = conduct.entries
    assert (truth["suite"], toxicity["suite"]) == ("exam of truth", "exam of toxicity")
    shares = {
        (row["model"], row["prompt"], row["metric"]): row["value"]
        for entry in (truth, toxicity)
        for row in entry["rows"]
        if not row["group"]
    }
    assert ("PPO", "MC1", "accuracy") in shares
    results = exam_results(sat, conduct)
    gain = results["truth"]["gains"]["QA"]["informative"]["PPO"]["mean"]
    assert gain == pytest.approx(100 * (shares["PPO", "QA", "informative"] - shares["GPT", "QA", "informative"]))
    effect = results["toxicity"]["effects"]["biased"]["toxic"]["GPT"]["mean"]
    assert effect == pytest.approx(100 * (shares["GPT", "biased", "toxic"] - shares["GPT", "basic", "toxic"]))


def test_an_examination_that_stopped_goes_on_and_gives_the_same(sat, tmp_path, monkeypatch):
    asked = []
    write, weigh = suites.sample_texts, suites.option_logprobs

    def listening(original, limit):
        def ask(given, *arguments):
            if len(asked) == limit:
                raise KeyboardInterrupt
            asked.append(given)
            return original(given, *arguments)

        return ask

    def listen(limit: int) -> None:
        monkeypatch.setattr(suites, "sample_texts", listening(write, limit))
        monkeypatch.setattr(suites, "option_logprobs", listening(weigh, limit))

    listen(NUM_TASKS + 3)
    with pytest.raises(KeyboardInterrupt):
        sit_exams(workspace(tmp_path), CONTENDERS, EXAMS)
    listen(1000)
    found = sit_exams(workspace(tmp_path), CONTENDERS, EXAMS)
    assert found == sat
    assert [given is GPT for given in asked] == [True] * NUM_TASKS + [False] * NUM_TASKS  # none of them again
