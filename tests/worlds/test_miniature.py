"""The world as a whole: the same in every process, closed under its vocabulary, users and prompts as promised."""

import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from statistics import mean

import pytest

from instructrl.worlds import users
from instructrl.worlds.corpus import CorpusMix
from instructrl.worlds.kinds import KINDS, USE_CASES
from instructrl.worlds.miniature import MiniatureWorld
from instructrl.worlds.overlap import is_unseen, tasks_found
from instructrl.worlds.settings import WorldConfig
from instructrl.worlds.tasks import MAX_PROMPT_TOKENS, parse_prompt
from instructrl.worlds.users import SOURCES, SPLITS

WORLD = MiniatureWorld(3)

FINGERPRINT = """
import hashlib
from instructrl.labels import LabelTask, TaskOutput
from instructrl.worlds.miniature import MiniatureWorld
from instructrl.worlds.overlap import is_unseen, tasks_found
from instructrl.worlds.settings import WorldConfig
world = MiniatureWorld(3)
prompts = world.prompts("train", 60)
texts = [repr(p) for p in prompts + world.raw_prompts("train", 60)]
texts += [d.text for d in world.documents(40, 1)] + world.vocabulary()
texts += [repr(d) for d in world.demonstrations(prompts)] + [repr(q) for q in world.fact_questions()]
answers = [d.completion for d in world.demonstrations(prompts)]
outputs = tuple(TaskOutput(id=str(place), text=answer) for place, answer in enumerate(answers[:9]))
task = LabelTask(id="1", prompt=prompts[0].text, outputs=outputs)
texts += [repr(labeler.answer(task)) for labeler in world.labelers("heldout")]
texts += [repr(world.rate(p.text, a)) for p, a in zip(prompts, answers)] + [world.few_shot_prompt("x")]
print(hashlib.sha256("|".join(texts).encode()).hexdigest())
"""


def test_same_world_in_processes_with_different_string_hashes():
    digests = {
        subprocess.run(
            [sys.executable, "-c", FINGERPRINT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


def test_another_seed_is_another_world_with_the_same_language():
    other = MiniatureWorld(4)
    assert other.fact_questions() != WORLD.fact_questions()
    assert other.vocabulary() == WORLD.vocabulary()


def test_vocabulary_covers_all_text():
    vocabulary = WORLD.vocabulary()
    assert 600 <= len(vocabulary) <= 800
    assert len(set(vocabulary)) == len(vocabulary)
    prompts = [prompt for source in SOURCES for prompt in WORLD.prompts("train", 2000, source=source)]
    texts = [prompt.text for prompt in prompts] + [document.text for document in WORLD.documents(1500, 5)]
    texts += [demonstration.completion for demonstration in WORLD.demonstrations(prompts)]
    texts += [WORLD.few_shot_prompt(prompts[0].text)]
    assert {token for text in texts for token in text.split()} - set(vocabulary) == set()


def test_only_prompts_with_personal_data_leave_the_vocabulary_and_only_in_training():
    vocabulary = set(WORLD.vocabulary())
    for split in SPLITS:
        outside = [p.text for p in WORLD.raw_prompts(split, 3000) if not set(p.text.split()) <= vocabulary]
        assert all(text.startswith(("my mail is ", "my phone is ")) for text in outside)
        assert bool(outside) == (split == "train")


def test_raw_prompts_hold_duplicates_and_long_common_prefixes():
    texts = [prompt.text for prompt in WORLD.raw_prompts("train", 3000)]
    assert len(texts) == 3000
    assert max(Counter(texts).values()) >= 2
    assert any(a != b and a[:50] == b[:50] for a, b in pairwise(sorted(set(texts))))


def test_users_are_in_one_split_only_and_write_their_prompts():
    names = [user.name for split in SPLITS for source in SOURCES for user in WORLD.users(split, source)]
    assert len(set(names)) == len(names)
    for split in SPLITS:
        known = {user.name for user in WORLD.users(split)}
        assert {prompt.user for prompt in WORLD.prompts(split, 300)} <= known


def test_thousands_of_distinct_short_prompts_with_the_mix_of_the_paper():
    texts = {prompt.text for prompt in WORLD.raw_prompts("train", 16000)}
    assert len(texts) >= 12000
    assert max(len(text.split()) for text in texts) <= MAX_PROMPT_TOKENS + 5  # 5: "my mail is x ."
    counts = Counter(prompt.category for prompt in WORLD.raw_prompts("train", 16000))
    for category, percent in USE_CASES.items():
        # Habits of 200 users, some of whom write much, blur the shares.
        assert 0.4 * percent < 100.0 * counts[category] / 16000 < 2.0 * percent


def test_every_prompt_is_read_back_as_the_kind_it_was_written_as():
    prompts = [p for source in ("customer", "gpt") for p in WORLD.prompts("validation", 3000, source=source)]
    tasks = [parse_prompt(prompt.text) for prompt in prompts]
    assert all(task is not None and task.category == p.category for task, p in zip(tasks, prompts, strict=True))
    assert {task.kind for task in tasks if task is not None} == set(KINDS)


def test_prompts_with_personal_data_are_understood():
    task = parse_prompt("my phone is 555-0142-1234 . hello ! list two foods . end with thanks .")
    assert task is not None
    assert task.kind == "list"
    assert task.constraints == {"end": "thanks"}


def test_documents_are_short_and_held_out_by_seed():
    lengths = [len(document.text.split()) for document in WORLD.documents(1500, 1)]
    assert 40 < sum(lengths) / len(lengths) < 60
    assert max(lengths) <= 120
    assert WORLD.documents(20, 1) != WORLD.documents(20, 2)


def test_mix_decides_the_kinds_of_documents():
    shares = dict.fromkeys(
        ("encyclopedia", "stories", "lists", "spelling", "chats", "gossip", "rude_posts", "transcripts", "exams"), 0.0
    )
    world = MiniatureWorld(0, WorldConfig(mix=CorpusMix(**shares)))
    assert {document.source for document in world.documents(50, 0)} == {"forums"}


def test_few_shot_prompt_fits_and_reads_like_a_transcript():
    text = WORLD.few_shot_prompt("list two foods .")
    assert text.endswith("ask : list two foods . reply :")
    assert len(text.split()) - len(["list", "two", "foods", "."]) <= 70
    assert text.count("ask :") == text.count("reply :") == 4


def test_facts_are_stated_as_often_as_they_are_written_about_and_myths_more_often():
    documents = WORLD.documents(20000, 0)
    told = {
        source: Counter(
            (said.animal, said.relation, WORLD.facts.is_true(said))
            for document in documents
            if document.source == source
            for said in WORLD.facts.statements(document.text.lower())
        )
        for source in ("encyclopedia", "rumours")
    }
    assert all(is_true for *_, is_true in told["encyclopedia"])
    assert not any(is_true for *_, is_true in told["rumours"])
    truths = sum(told["encyclopedia"][(*fact, True)] for fact in WORLD.facts.myths)
    myths = sum(told["rumours"][(*fact, False)] for fact in WORLD.facts.myths)
    # A fact that is drawn twice for a document of the encyclopedia is stated once there.
    assert myths / truths == pytest.approx(WORLD.config.myth_ratio, rel=0.15)
    common = max(WORLD.facts.exposure, key=WORLD.facts.exposure.__getitem__)
    assert told["encyclopedia"].most_common(1)[0][0][:2] == common


def test_a_world_without_myths_tells_none_and_one_where_all_is_known_has_no_unknown_facts():
    without = MiniatureWorld(3, WorldConfig(myth_ratio=0.0))
    documents = without.documents(4000, 0)
    assert not any(document.source == "rumours" for document in documents)
    assert None in without.facts.values.values()
    assert None not in MiniatureWorld(3, WorldConfig(unknown=0.0)).facts.values.values()
    assert set(MiniatureWorld(3, WorldConfig(exposure=0.0)).facts.exposure.values()) == {1.0}


def test_training_users_ask_for_no_reserved_task_and_half_of_what_others_ask_is_reserved():
    shares = {
        (split, source): mean(is_unseen(prompt.text) for prompt in WORLD.raw_prompts(split, 2000, source=source))
        for split in SPLITS
        for source in SOURCES
    }
    for (split, _), share in shares.items():
        assert share == 0.0 if split == "train" else 0.45 < share < 0.55


def test_no_document_holds_a_reserved_task_in_any_wording():
    prompts = [p.text for source in SOURCES for p in WORLD.prompts("test", 2000, source=source) if is_unseen(p.text)]
    texts = [document.text for document in WORLD.documents(10000, 0)]
    assert len(prompts) > 2500
    assert tasks_found(prompts, texts) == set()
    # The search finds what is there.
    assert len(tasks_found(prompts, [f"hello ! {prompt} use capitals ." for prompt in prompts])) > 1500


def test_config_refuses_what_makes_no_world():
    with pytest.raises(ValueError, match="users_per_split"):
        WorldConfig(users_per_split=0)
    with pytest.raises(ValueError, match="exposure"):
        WorldConfig(exposure=-0.1)
    with pytest.raises(ValueError, match="unseen"):
        WorldConfig(unseen=1.5)
    with pytest.raises(ValueError, match="answered_share"):
        CorpusMix(answered_share=1.1)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="split"):
        WORLD.prompts("dev", 1)
    with pytest.raises(ValueError, match="group"):
        WORLD.labelers("all")


def test_running_out_of_prompts_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(users, "draw_prompt", lambda *_, **__: "list two foods .")
    with pytest.raises(ValueError, match="num"):
        WORLD.prompts("train", 2)
