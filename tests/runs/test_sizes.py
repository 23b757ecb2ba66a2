"""The miniature with policies of all sizes: what is added to a run of one size, which stays what it was."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tiny_runs import MINIATURE

from instructrl import cli
from instructrl.evaluation.contenders import Contender
from instructrl.models.policy import Policy
from instructrl.runs import miniature, steps
from instructrl.runs.folder import open_folder
from instructrl.runs.named import RUNS
from instructrl.trainers.checkpoints import fingerprint
from instructrl.trainers.ppo import PPOTrainer

SIZED = ["GPT", "GPT (prompted)", "SFT", "PPO", "PPO-ptx"]
PLAIN = [*SIZED, "FLAN-like", "T0-like"]
WIDTHS = {"XS": 48, "M": 144}
ALL = replace(MINIATURE, sizes="all")


class LeftError(Exception):
    """Nothing catches it."""


class LeavesXS(PPOTrainer):
    """Leaves in the middle of PPO-ptx of XS. widths: of each policy and its value function."""

    widths: ClassVar[list[tuple[int, int]]] = []

    def _train_step(self) -> tuple[dict[str, float], float]:
        width = self.policy.lm.config.hidden_size
        self.widths.append((width, self.value_function.network.config.hidden_size))
        if width == WIDTHS["XS"] and self.phase == "ppo_ptx" and self.step == 1:
            raise LeftError
        return super()._train_step()


def run(folder: Path, *more: str) -> None:
    arguments = ["--config", str(folder.parent / "settings" / "config.yaml"), "--out", str(folder)]
    assert cli.main(["run", "miniature", *arguments, *more]) == 0


def copied(run: Path, folder: Path) -> Path:
    """That run elsewhere, with the file of its settings beside it."""
    shutil.copytree(run.parent, folder, dirs_exist_ok=True)
    return folder / run.name


def files(folder: Path) -> dict[str, bytes]:
    """What a run determines."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("profile.jsonl", "report.html")
    }


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """A run of one size."""
    folder = tmp_path_factory.mktemp("one")
    open_folder(folder / "settings", MINIATURE)
    run(folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def every(one, tmp_path_factory) -> tuple[Path, list[Contender]]:
    """The same run, to which the other sizes are added, with a stop in the middle of XS; and who was examined."""
    folder, asked = copied(one, tmp_path_factory.mktemp("every")), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "PPOTrainer", LeavesXS)
        with pytest.raises(LeftError):
            run(folder, "--sizes", "all")
    with pytest.MonkeyPatch.context() as patch:
        examine = miniature.examine

        def seen(work, exam, contenders, *more, **named):
            asked.extend(contenders)
            return examine(work, exam, contenders, *more, **named)

        patch.setattr(miniature, "examine", seen)
        run(folder, "--sizes", "all")
    return folder, asked


def test_all_contenders_are_in_one_evaluation(every):
    found = results(every[0])
    names = [*PLAIN, *(f"{size} {name}" for size in WIDTHS for name in SIZED)]
    assert [row["name"] for row in found["models"]] == names
    assert all([row["name"] for row in judge["models"]] == names for judge in found["judged"]["judges"])
    assert {size: about["models"] for size, about in found["sizes"].items()} == {
        "S": PLAIN,
        **{size: [f"{size} {name}" for name in SIZED] for size in WIDTHS},
    }
    assert {size: found["sizes"][size]["width"] for size in WIDTHS} == WIDTHS
    counts = [found["sizes"][size]["num_parameters"] for size in ("XS", "M")]
    assert counts[0] < counts[1]
    assert found["run"]["description"].endswith("of size S")
    assert found["run"]["baseline"] == "SFT"
    assert "M PPO-ptx" in (every[0] / "report.html").read_text(encoding="utf-8")


def test_the_plain_models_are_the_same_bytes_as_without_other_sizes(one, every):
    before, after = files(one), files(every[0])
    shared = {name: content for name, content in before.items() if name.startswith(("models/", "state/evaluation/"))}
    assert len(shared) > 50
    assert {name: after[name] for name in shared} == shared
    assert after["metrics.jsonl"] == before["metrics.jsonl"]
    old, new = results(one), results(every[0])
    for entry in ("over_optimisation", "alignment_tax", "sft_selection", "baselines", "reward_model", "data"):
        assert new[entry] == old[entry]
    for exam in ("tax", "truth", "toxicity"):
        assert new["exams"][exam] == old["exams"][exam]
    assert old["exams"]["sizes"] == {}
    measured = ("score", "kl", "corpus_loss", "fact_accuracy", "response_tokens", "finished")
    for row, again in zip(old["models"], new["models"], strict=False):
        assert [again[name] for name in measured] == [row[name] for name in measured]


def test_a_size_that_was_left_in_the_middle_gives_the_same_as_one_that_was_not(one, every, tmp_path, monkeypatch):
    folder = copied(one, tmp_path)

    def leave(*_: object) -> None:
        raise LeftError

    monkeypatch.setattr(miniature, "_exams", leave)  # every size is there by then
    with pytest.raises(LeftError):
        run(folder, "--sizes", "all")
    whole, resumed = files(folder / "sizes"), files(every[0] / "sizes")
    assert {name.split("/")[0] for name in whole} == {*WIDTHS}
    assert "M/models/ppo_ptx/model.safetensors" in whole
    assert resumed == whole
    assert files(folder)["state/steps.json"] == files(every[0])["state/steps.json"]


def test_policies_have_their_width_and_values_and_scores_that_of_s(every):
    assert {width: value for width, value in LeavesXS.widths} == {48: MINIATURE.model.width}
    for size, width in WIDTHS.items():
        own = [contender for contender in every[1] if contender.name.startswith(f"{size} ")]
        assert {contender.policy.lm.config.hidden_size for contender in own} == {width}
        assert not (every[0] / "sizes" / size / "models" / "reward_model").exists()


def test_a_kl_is_that_from_the_start_of_the_same_size(every):
    folder, asked = every
    assert [contender.start for contender in asked[: len(PLAIN)]] == [None] * len(PLAIN)
    for contender in asked[len(PLAIN) :]:
        size = contender.name.split(" ")[0]
        start = Policy.load(folder / "sizes" / size / "models" / "ppo_start")
        assert contender.start is not None
        assert fingerprint(contender.start) == fingerprint(start)
    kl = {row["name"]: row["kl"] for row in results(folder)["models"]}
    assert [name for name, value in kl.items() if value is None] == [name for name in kl if "prompted" in name]


def test_prompted_models_of_all_sizes_have_one_prefix(every):
    forms = {contender.name: contender.form("w1") for contender in every[1] if "prompted" in contender.name}
    assert len(forms) == 3
    assert len({*forms.values()}) == 1


def test_a_tax_is_what_is_lost_to_the_pretrained_model_of_the_same_size(every):
    exams = results(every[0])["exams"]
    assert {*exams["tax"]["all"]["tax"]} == {name for name in PLAIN if name not in ("GPT", "GPT (prompted)")}
    rows = [row for entry in exams["entries"][:6] for row in entry["rows"] if not row["group"]]
    for size in WIDTHS:
        found = exams["sizes"][size]
        assert found["tax"]["pretrained"] == found["truth"]["pretrained"] == f"{size} GPT"
        means = {
            name: sum(values) / len(values)
            for name in (f"{size} GPT", f"{size} PPO")
            if (values := [row["value"] for row in rows if row["model"] == name])
        }
        tax = found["tax"]["all"]["tax"]
        assert {*tax} == {f"{size} {name}" for name in ("SFT", "PPO", "PPO-ptx")}
        assert tax[f"{size} PPO"]["mean"] == pytest.approx(means[f"{size} GPT"] - means[f"{size} PPO"])


def test_the_seconds_of_each_size_are_in_the_profile_of_the_run(every):
    rows = [json.loads(line) for line in (every[0] / "profile.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["phase"] for row in rows if row["phase"].startswith("size ")] == ["size XS", "size XS", "size M"]


def test_the_plan_tells_of_the_sizes():
    named = RUNS["miniature"]
    before, after = named.plan(MINIATURE), named.plan(ALL)
    assert [row for row in after if row not in before][:-1] == [row for row in after if row.step.startswith("size ")]
    assert [row.step for row in after[-3:]] == ["size XS", "size M", "evaluation"]
    assert after[-1].work == f"{before[-1].work}, and 5 each of XS and M"


def test_other_sizes_read_as_far_as_the_own():
    shapes = replace(ALL, model=replace(ALL.model, context=200)).other_sizes
    assert {name: (shape.layers, shape.width, shape.context) for name, shape in shapes.items()} == {
        "XS": (1, 48, 200),
        "M": (2, 144, 200),
    }
    assert MINIATURE.other_sizes == {}
