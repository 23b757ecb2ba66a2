"""Studies on a tiny base run: what is used again, what is refused, and that a kill between points changes nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_runs import MINIATURE

from instructrl.evaluation.study_report import write_study
from instructrl.runs.folder import open_folder
from instructrl.runs.miniature import run_miniature
from instructrl.runs.settings import MINIATURE as REAL
from instructrl.runs.studies import carry_out, policies, table
from instructrl.runs.studies.base import BaseRun
from instructrl.runs.studies.carry_out import is_base, run_study
from instructrl.runs.studies.estimate import plan
from instructrl.runs.studies.measures import has_diverged, metric
from instructrl.runs.studies.points import GPT, Point, StudyConfig, at, units, varied
from instructrl.runs.studies.reward_models import fold, groups_of_labelers, split_prompts
from instructrl.runs.studies.table import NUM_FOLDS, STUDIES
from instructrl.trainers.checkpoints import json_digest
from instructrl.trainers.log import RunLog
from instructrl.trainers.settings import PPOConfig
from instructrl.types import Comparison
from instructrl.worlds.exam_settings import ExamConfig

BASE = replace(MINIATURE, world=replace(MINIATURE.world, exams=ExamConfig(items=3, shots=(0,))))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("base")
    open_folder(folder, BASE)
    run_miniature(BASE, folder, RunLog(folder))
    return folder


@pytest.fixture
def two_rates(monkeypatch):
    """A study of three points: the base run's own, and two learning rates of which one is absurd."""
    points = [
        Point(label="own", series="rates", x=1.0),
        Point(label="fast", series="rates", x=2.0, settings=(("ppo_ptx.policy_adam.lr", 0.02),)),
        Point(label="absurd", series="rates", x=3.0, settings=(("ppo_ptx.policy_adam.lr", 1e38),)),
    ]
    study = replace(STUDIES["learning_rate"], points=lambda config: points)
    monkeypatch.setitem(table.STUDIES, "learning_rate", study)
    return "learning_rate"


def carried_out(name: str, base: Path, folder: Path, seeds: int = 1) -> dict:
    config = StudyConfig(study=name, seeds=seeds, base=BASE)
    open_folder(folder, config)
    return run_study(config, base, folder, RunLog(folder, continued=True))


def selection(base: Path) -> list[dict]:
    """Of the SFT baseline, by epoch."""
    return json.loads((base / "results.json").read_text())["sft_selection"]


def content(folder: Path) -> dict[str, tuple[int, int]]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in found}


def test_a_study_of_policies_from_end_to_end(base, two_rates, tmp_path, monkeypatch):
    before = content(base)
    results = carried_out(two_rates, base, tmp_path / "whole")
    assert content(base) == before
    own, fast, absurd = results["rows"]
    assert [row["label"] for row in results["rows"]] == ["own", "fast", "absurd"]
    assert (own["diverged"], absurd["diverged"], absurd["metrics"]) == (False, True, {})
    assert own["metrics"].keys() == fast["metrics"].keys() >= {"gold", "likert", "reward", "kl", "win_rate", "reading"}
    assert own["metrics"]["corpus_loss"] != fast["metrics"]["corpus_loss"]
    assert not (tmp_path / "whole" / "points" / "00-0" / "models").exists(), "the base run has that policy"
    assert (tmp_path / "whole" / "points" / "01-0" / "models" / "ppo_ptx").is_dir()
    assert list(results["references"]) == ["GPT", "SFT", "PPO start"]
    assert results["references"]["SFT"]["win_rate"]["value"] == 0.5
    assert results["references"]["PPO start"]["kl"]["value"] == 0.0

    rows_of, carried = policies.rows_of, []

    def killed(base, work, point, *, unchanged):
        if len(carried) == 2:
            raise KeyboardInterrupt
        carried.append(point.label)
        return rows_of(base, work, point, unchanged=unchanged)

    monkeypatch.setattr(policies, "rows_of", killed)
    with pytest.raises(KeyboardInterrupt):
        carried_out(two_rates, base, tmp_path / "killed")
    carried.clear()
    carried_out(two_rates, base, tmp_path / "killed")
    assert carried == ["absurd"]
    name = carry_out.RESULTS
    assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    page = write_study(tmp_path / "whole").read_text()
    assert "Diverged: rates, absurd" in page
    assert "every rate above 8.05e-6 diverged" in page
    assert (tmp_path / "whole" / "figure.svg").read_text().startswith("<svg")


def test_reward_models_of_folds_and_passes(base, tmp_path):
    results = carried_out("labelers", base, tmp_path / "labelers")
    assert [row["x"] for row in results["rows"]] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert all(row["metrics"].keys() <= {"held_in", "held_out"} for row in results["rows"])
    assert "over 5 reward models" in write_study(tmp_path / "labelers").read_text()
    rows = carried_out("pairs_as_rows", base, tmp_path / "pairs")["rows"]
    ends = {row["series"]: row for row in rows}
    assert list(ends) == ["prompts as rows", "pairs, as many steps", "pairs, as many rows a step"]
    assert all(row["x"] == 1.0 for row in ends.values())
    assert len({row["metrics"]["loss"]["value"] for row in ends.values()}) > 1
    assert "footnote 5" in write_study(tmp_path / "pairs").read_text()


def test_a_policy_is_measured_on_the_way(base, tmp_path):
    config = replace(BASE, recipe=replace(BASE.recipe, ppo_ptx=replace(BASE.recipe.ppo_ptx, num_episodes=16)))
    (point,) = STUDIES["length"].points(config)
    assert point.keep == (1, 2)
    rows = carried_out("length", base, tmp_path)["rows"]
    assert [row["x"] for row in rows] == [8, 16, 32.0]
    assert len({row["metrics"]["corpus_loss"]["value"] for row in rows}) == 3


def test_a_base_that_was_changed_is_refused(base, tmp_path, two_rates):
    carried_out(two_rates, base, tmp_path / "study")
    other = tmp_path / "base"
    shutil.copytree(base, other)
    weights = other / "models" / "gpt" / "model.safetensors"
    tensors = load_file(weights)
    tensors["gpt_neox.embed_in.weight"] = tensors["gpt_neox.embed_in.weight"] + 1.0
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"found other content of the model than its step sft was carried out with"):
        BaseRun(BASE, other).last_sft  # noqa: B018
    shutil.copytree(base / "models" / "gpt", other / "models" / "gpt", dirs_exist_ok=True)
    (unselected,) = (f"sft_epoch_{row['epoch']:02d}" for row in selection(base) if not row["selected"])
    shutil.copytree(base / "models" / unselected, other / "models" / "sft", dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"of a run with other content of the SFT; accepted is what it was"):
        carried_out(two_rates, other, tmp_path / "study")
    with pytest.raises(ValueError, match=r"found a run with other settings \(base.seed was 3, is 4\)"):
        open_folder(tmp_path / "study", StudyConfig(study=two_rates, seeds=1, base=replace(BASE, seed=4)))


def test_a_base_on_its_way_serves_for_what_it_has_done(base, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(base, half)
    path = half / "state" / "steps.json"
    steps = json.loads(path.read_text())["steps"]
    done = [entry for entry in steps if entry["name"] in ("pretraining", "sft")]
    path.write_text(json.dumps({"steps": done, "sha256": json_digest(done)}))
    read = BaseRun(BASE, half)
    assert read.last_sft is not None
    with pytest.raises(ValueError, match="has not done the step ppo_start"):
        read.start  # noqa: B018


def test_groups_of_labelers_are_disjoint_and_about_equal():
    rows = [
        Comparison(prompt=f"p{i}", completions=("a", "b"), preferred=frozenset({(0, 1)}), labeler=f"l{i % 11 % 8}")
        for i in range(100)
    ]
    groups = groups_of_labelers(rows, NUM_FOLDS)
    people = [labeler for group in groups for labeler in group]
    assert sorted(people) == sorted(set(people)) == [f"l{i}" for i in range(8)]
    pairs = [sum(row.labeler in group for row in rows) for group in groups]
    busiest = max(sum(row.labeler == name for row in rows) for name in people)
    assert max(pairs) - min(pairs) <= busiest
    for number in range(NUM_FOLDS):
        own, strangers = fold(rows, number, NUM_FOLDS)
        assert len(own) + len(strangers) == len(rows)
        assert not {row.labeler for row in own} & {row.labeler for row in strangers}
        learned, held_in = split_prompts(own, seed=1)
        assert not {row.prompt for row in learned} & {row.prompt for row in held_in}
        assert len(held_in) == len(own) // 10
    with pytest.raises(ValueError, match="labelers: found 8 in the comparisons, accepted are at least 9"):
        groups_of_labelers(rows, 9)


@pytest.mark.parametrize("name", STUDIES)
def test_points_of_every_study_are_settings_that_a_run_takes(name):
    """At the miniature's own sizes, and none twice."""
    study = STUDIES[name]
    config = StudyConfig(study=name, seeds=2, base=REAL)
    found = units(study, config)
    assert len({unit for unit, _, _ in found}) == len(found)
    for point in study.points(REAL):
        recipe = varied(REAL.recipe, point.settings)
        assert isinstance(at(recipe, point.phase), PPOConfig)
        assert (recipe == REAL.recipe) == (not point.settings)
        if point.keep:
            assert max(point.keep) < recipe.ppo_ptx.num_iterations
    assert sum(is_base(point, 0) for point in study.points(REAL)) == {
        "ptx": 2, "kl_remedy": 1, "length": 0, "kl": 1, "initial_mix": 1, "learning_rate": 2, "batch": 1,
        "pairs_as_rows": 1, "over_optimisation": 0, "labelers": 5,
    }[name]  # fmt: skip


def test_the_paper_grid_of_the_reference():
    points = STUDIES["kl_remedy"].points(BASE)
    by_reference = {name: [p.x for p in points if p.reference == name] for name in ("PPO start", GPT)}
    assert by_reference["PPO start"] == by_reference[GPT]
    assert all(varied(BASE.recipe, p.settings).ppo.kl_coef == p.x for p in points)


def test_minutes_by_hand():
    """2 s an episode of PPO, 3 s with 0.5 blocks beside it: a block costs 2 s. 4 validation prompts at 0.1 s each."""
    ppo = BASE.recipe.ppo
    profile = [
        {"phase": "ppo", "seconds": 1.5 * ppo.num_episodes},
        {"phase": "ppo", "seconds": 0.5 * ppo.num_episodes},  # it was stopped once
        {"phase": "ppo_ptx", "seconds": 3.0 * ppo.num_episodes},
        {"phase": "evaluation", "seconds": 6.0, "responses": 60},
    ]
    config = StudyConfig(study="ptx", seeds=1, base=BASE)
    planned = {row.point.label: row for row in plan(STUDIES["ptx"], config, profile, ["ppo", "ppo_ptx"])}
    measuring = 3 * 4 * 0.1
    assert planned["0 x"].minutes == pytest.approx(measuring / 60)
    assert planned["1 x"].minutes == pytest.approx(measuring / 60)
    assert planned["3 x"].minutes == pytest.approx((3.0 * ppo.num_episodes + measuring) / 60)
    alone = {row.point.label: row for row in plan(STUDIES["ptx"], config, profile[:2], [])}
    assert alone["0 x"].minutes == pytest.approx(2.0 * ppo.num_episodes / 60)
    assert plan(STUDIES["ptx"], config, [], [])[0].minutes is None


def test_a_policy_that_went_too_far_or_got_worse_has_diverged():
    start = [3.9, 4.0, 4.1, 4.0]

    def metrics(kl: float, gold: tuple[float, float, float]) -> dict:
        return {"kl": metric(kl), "response_tokens": metric(10.0), "gold": metric(*gold)}

    assert not has_diverged(metrics(9.9, (4.0, 3.9, 4.1)), start)
    assert has_diverged(metrics(10.1, (4.0, 3.9, 4.1)), start)
    assert has_diverged(metrics(1.0, (3.0, 2.9, 3.1)), start)
    assert not has_diverged(metrics(1.0, (3.0, 2.0, 4.0)), start), "the intervals meet"


def test_the_busiest_labelers_are_put_into_groups_first():
    """5, 4 and 3 pairs begin the groups; 3 more join the 3, 3 the 4, and 2 the 5: sums of 7, 7 and 6."""
    pairs = {"f": 5, "e": 4, "d": 3, "c": 3, "b": 3, "a": 2}
    rows = [
        Comparison(prompt=f"{name}{i}", completions=("a", "b"), preferred=frozenset({(0, 1)}), labeler=name)
        for name, number in pairs.items()
        for i in range(number)
    ]
    assert groups_of_labelers(rows, 3) == [{"f", "a"}, {"e", "d"}, {"b", "c"}]


def test_a_reference_and_a_seed_reach_the_training(base, tmp_path, monkeypatch):
    points = [
        Point(label=name, series="kl", x=1.0, phase="ppo", settings=(("ppo.kl_coef", 50.0),), reference=name)
        for name in ("PPO start", GPT)
    ]
    monkeypatch.setitem(table.STUDIES, "kl_remedy", replace(STUDIES["kl_remedy"], points=lambda config: points))
    carried_out("kl_remedy", base, tmp_path, seeds=2)
    first = [
        json.loads((tmp_path / "points" / unit / "metrics.jsonl").read_text().splitlines()[0])
        for unit in ("00-0", "01-0", "00-1")
    ]
    assert first[0]["kl"] == 0.0
    assert first[1]["kl"] != 0.0
    assert first[2]["score"] != first[0]["score"]


def test_minutes_of_reward_models_by_hand():
    """2 or 3 completions of a prompt: in rows of pairs each is read 1.5 times."""
    config = StudyConfig(study="pairs_as_rows", seeds=2, base=BASE)
    planned = plan(STUDIES["pairs_as_rows"], config, [{"phase": "reward_model", "seconds": 60.0}], [])
    assert [(row.num_seeds, row.minutes) for row in planned] == [(2, 2.0), (2, 3.0), (2, 3.0)]
