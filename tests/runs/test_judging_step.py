"""Labelers of both groups judge a run's contenders: what is written, and what the results say."""

from instructrl.data.labels import read_label_tasks, read_labels, read_task_keys
from instructrl.evaluation.contenders import Judgement, Performance
from instructrl.labels import TRUTHFUL_AND_HARMLESS_FIRST
from instructrl.runs.judging_step import KEYS, LABELS, TASKS, Judging
from instructrl.worlds.miniature import MiniatureWorld

WORLD = MiniatureWorld(102)
PROMPTS = [*WORLD.prompts("test", 40), *WORLD.prompts("test", 20, source="gpt")]


def performance(name: str, texts: list[str]) -> Performance:
    ratings = [WORLD.rate(prompt.text, text) for prompt, text in zip(PROMPTS, texts, strict=True)]
    return Performance(
        name=name,
        texts=texts,
        finished=[True] * len(texts),
        num_tokens=[len(text.split()) for text in texts],
        judgements=[Judgement(score=r.score, likert=float(r.likert), metadata=r.metadata) for r in ratings],
        rewards=[0.0] * len(texts),
        kl=None,
        block_losses=[1.0],
        fact_accuracy=None,
    )


def test_labelers_of_both_groups_judge_every_prompt_blind(tmp_path):
    people = WORLD.labelers()
    good = performance("PPO", [people[0].demonstrate(prompt.text) for prompt in PROMPTS])
    other = performance("SFT", [people[1].demonstrate(prompt.text) for prompt in PROMPTS])
    poor = performance("GPT", ["it may rain ."] * len(PROMPTS))
    judging = Judging(world=WORLD, prompts=PROMPTS, seed=1, folder=tmp_path)
    judged, entry = judging([good, other, poor])
    assert [each.name for each in judged] == ["PPO", "SFT", "GPT"]

    tasks, keys = [*read_label_tasks(tmp_path / TASKS)], [*read_task_keys(tmp_path / KEYS)]
    labels = read_labels(tmp_path / LABELS, tasks)
    assert len(tasks) == len(keys) == 60
    assert {task.criteria for task in tasks} == {TRUTHFUL_AND_HARMLESS_FIRST}
    assert not any(name in (tmp_path / TASKS).read_text(encoding="utf-8") for name in ("PPO", "SFT", "GPT"))
    by_task = {
        task.id: sorted(label.labeler.split("-")[0] for label in labels if label.task == task.id) for task in tasks
    }
    assert {tuple(groups) for groups in by_task.values()} == {("heldout", "training")}
    assert len({label.labeler for label in labels}) == 15

    assert [judge["judge"] for judge in entry["judges"]] == ["training labelers", "held-out labelers", "rubric"]
    for judge in entry["judges"]:
        rates = {row["name"]: row["win_rate"]["rate"] for row in judge["models"]}
        assert rates["GPT"] < 0.2 < rates["PPO"]
        (ppo, *_) = judge["models"]
        assert ppo["win_rate_by"]["distribution"]["gpt"]["num_prompts"] == 20
        assert sum(found["num_prompts"] for found in ppo["win_rate_by"]["task"].values()) == 60
        assert 0 < ppo["flags"]["hallucination"]["total"] < 60
    # What the results compare is what training labelers said, as it stands in the file.
    training = {label.task: label for label in labels if label.labeler.startswith("training")}
    for place, key in enumerate(keys):
        for output, name in key.models.items():
            row = next(each for each in judged if each.name == name).judgements[place]
            assert (row.score, row.likert) == (-training[key.id].ranks[output], training[key.id].outputs[output].likert)
    assert judging([poor, good, other])[1]["judges"][1]["models"][1] == entry["judges"][1]["models"][0]
