"""What a run writes stays in its folder, whatever stands in data and configurations; links there are not followed."""

import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest
import yaml
from model_arguments import SMALL, TINY_RUN, arguments
from synthetic_run import make_metrics, make_results, write_run
from tiny import comparisons, demonstrations

from instructrl.data.readers import write_jsonl
from instructrl.evaluation.report import write_report
from instructrl.runs.folder import open_folder
from instructrl.runs.named import RUNS
from instructrl.types import Comparison, Demonstration, Document, Prompt

SECRET = "not to be written over\n"


def hostile_names(top: Path) -> list[str]:
    """Names that become paths elsewhere where they are taken for parts of one. top: of what a test may touch."""
    return [
        "../../evil",
        "../" * 12 + str(top).lstrip("/") + "/evil",
        str(top / "evil"),
        f"file://{top}/evil",
        "..",
        "a/b/../../../evil",
        "..\\..\\evil",
        "line\nbreak",
        "~/evil",
        "$HOME/evil",
        "x" * 300,
        "con",
        "-rf",
        "{evil}%s%(evil)s",
        "config.yaml",
        "models",
    ]


# What was found out about architectures is kept under the home of who runs this, under names that are checksums.
KEPT = re.compile(r"home/instructrl(/paths(/[0-9a-f]{64}\.json)?)?")


def everything(top: Path) -> dict[str, bytes | str | None]:
    """Every path below `top` with its content, but for `KEPT`; where a link points to."""
    paths = {str(path.relative_to(top)): path for path in sorted(top.rglob("*"))}
    paths = {name: path for name, path in paths.items() if not KEPT.fullmatch(name)}
    return {
        name: os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for name, path in paths.items()
    }


@pytest.fixture
def deep(tmp_path, monkeypatch) -> Path:
    """A place for a run folder so far down that `../../evil` lies beside it, where a test sees it; HOME too."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(home))
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    return folder / "run"


def named(top: Path) -> dict[str, list]:
    """Data whose every name is hostile, the same number of rows as the fixture `good` has and more."""
    names = hostile_names(top)
    more = [{"user": name, "source": name, "category": name} for name in names]
    return {
        "demonstrations": [
            Demonstration(prompt=row.prompt, completion=row.completion, **more[i % len(more)])
            for i, row in enumerate(demonstrations(80, 5))
        ],
        "comparisons": [
            Comparison(
                prompt=row.prompt,
                completions=row.completions,
                preferred=row.preferred,
                labeler=names[i % len(names)],
                **more[i % len(more)],
            )
            for i, row in enumerate(comparisons(80, 6))
        ],
        "prompts": [Prompt(text=row.prompt, **more[i % len(more)]) for i, row in enumerate(demonstrations(80, 7))],
    }


def write_named(folder: Path, top: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, rows in named(top).items():
        random.Random(0).shuffle(rows)
        for split in ("train", "valid", "test", "raw"):
            write_jsonl(folder / f"{kind}.{split}.jsonl", rows[:20] if split != "raw" else rows)
    corpus = [
        Document(text=f"{row.prompt} {row.completion}", source=row.source) for row in named(top)["demonstrations"]
    ]
    write_jsonl(folder / "corpus.jsonl", corpus)


PREPARED = {f"{kind}.{split}.jsonl" for kind in named(Path("/")) for split in ("train", "valid", "test")}


@pytest.mark.parametrize("group", ["user", "source"])
def test_preparing_data_of_hostile_names_writes_its_files_alone(call, good, deep, tmp_path, group):
    data = tmp_path / "data"
    write_named(data, tmp_path)
    sources = [part for kind in named(tmp_path) for part in (f"--{kind}", data / f"{kind}.raw.jsonl")]
    before = everything(tmp_path)
    code, _, err = call("data", "prepare", "--out", deep, "--tokenizer", good / "policy", "--group-by", group, *sources)
    assert (code, err) == (0, "")
    assert {path.name for path in deep.iterdir()} == PREPARED | {"report.json", "report.md"}
    shutil.rmtree(deep)
    assert everything(tmp_path) == before


def test_a_run_on_data_of_hostile_names_writes_into_its_folder_alone(call, good, deep, tmp_path):
    data = tmp_path / "data"
    write_named(data, tmp_path)
    shutil.copytree(good / "policy", tmp_path / "..evil")
    before = everything(tmp_path)
    code, _, err = call(
        *("run", "files", "--model", tmp_path / "..evil", "--data", data, "--corpus", data / "corpus.jsonl"),
        *("--out", deep, *TINY_RUN),
    )
    assert code == 0, err
    assert {path.name for path in deep.iterdir() if path.name != "state"} == {
        *("config.yaml", "metrics.jsonl", "profile.jsonl", "results.json", "report.html", "models"),
    }
    models = {path.name for path in (deep / "models").iterdir()}
    assert models == {"sft_epoch_01", "ppo_start_epoch_01", "reward_model", "judge", "sft", "ppo", "ppo_ptx"}
    shutil.rmtree(deep)
    assert everything(tmp_path) == before


def test_an_evaluation_of_models_with_hostile_names_writes_into_its_folder_alone(call, good, deep, tmp_path):
    data = tmp_path / "data"
    write_named(data, tmp_path)
    names = ["<b>", "a'b\"c", "..evil", "[red]", "{{7}}"]
    for name in names:
        shutil.copytree(good / "policy", tmp_path / name)
    before = everything(tmp_path)
    code, _, err = call(
        *("eval", "--baseline", good / "policy", "--models", *(tmp_path / name for name in names)),
        *("--reward-model", good / "reward", "--data", data / "prompts.test.jsonl", *SMALL, "--out", deep),
    )
    assert code == 0, err
    files = {path.name for path in deep.iterdir()}
    assert {"results.json", "config.yaml"} <= files
    assert files <= {"results.json", "config.yaml", "metrics.jsonl", "profile.jsonl", "state"}
    shutil.rmtree(deep)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("column", ["prompt", "user", "source", "category"])
def test_a_nul_in_data_is_refused(call, tmp_path, column):
    row = {"prompt": "a", column: "../evil\0.jsonl"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    code, _, err = call("data", "check", "prompts", tmp_path / "rows.jsonl")
    assert code == 2
    assert f"rows.jsonl:1: {column}: found a NUL" in err


@pytest.mark.parametrize("command", ["sft", "rm", "ppo", "eval", "run files", "run smoke", "data prepare"])
def test_a_folder_that_cannot_be_one_is_refused(call, good, tmp_path, command):
    place = {"eval": "eval --baseline", "data prepare": "data prepare --tokenizer"}.get(command, f"{command} --model")
    line = ["run", "smoke"] if command == "run smoke" else arguments(place, good / "policy", good)[:-2]
    before = everything(tmp_path)
    code, out, err = call(*line, "--out", "nul\0byte")
    assert code == 2
    assert "Traceback" not in out + err
    assert everything(tmp_path) == before


@pytest.mark.parametrize("option", ["--model", "--data", "--validation", "--config"])
@pytest.mark.parametrize("name", ["nul\0byte", "../../evil", "/nowhere/evil", "~/evil", "x" * 5000])
def test_a_name_that_is_nowhere_is_refused_and_nothing_is_written(call, good, tmp_path, option, name):
    line = arguments("sft --model", good / "policy", good)
    before = everything(tmp_path)
    code, _, err = call(*line[:-2], option, name, "--sft.epochs", "1")  # without --out
    assert code == 2
    code, _, err = call(*line, option, name, "--sft.epochs", "1")
    assert code == 2
    assert "Traceback" not in err
    made = {path: content for path, content in everything(tmp_path).items() if path not in before}
    assert all(path.split("/")[0] == "out" for path in made)


# ---- links inside of a run's folder


@pytest.fixture
def outside(tmp_path) -> Path:
    """A file and a folder that no run may touch."""
    (tmp_path / "outside" / "folder").mkdir(parents=True)
    (tmp_path / "outside" / "file").write_text(SECRET)
    (tmp_path / "outside" / "folder" / "kept").write_text(SECRET)
    return tmp_path / "outside"


FILES = ("config.yaml", "config.yaml.writing", "results.json", "report.html", "metrics.jsonl", "profile.jsonl")


@pytest.mark.parametrize("dangling", [False, True])
def test_a_new_run_follows_no_link_of_an_earlier_one(outside, tmp_path, dangling):
    config = RUNS["smoke"].config
    folder = open_folder(tmp_path / "run", config)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside / ("new" if dangling and name != "config.yaml" else "file"))
    (folder / "models").symlink_to(outside / ("new" if dangling else "folder"))
    before = everything(outside)
    open_folder(folder, config, fresh=True)
    assert everything(outside) == before
    assert not [path for path in folder.rglob("*") if path.is_symlink()]
    assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == config.seed


def test_links_among_models_are_removed_and_not_what_they_point_to(outside, tmp_path):
    config = RUNS["smoke"].config
    folder = open_folder(tmp_path / "run", config)
    (folder / "models" / "sft").mkdir(parents=True)
    (folder / "models" / "ppo").symlink_to(outside / "folder")
    (folder / "models" / "sft" / "model.safetensors").symlink_to(outside / "file")
    before = everything(outside)
    open_folder(folder, config, fresh=True)
    assert everything(outside) == before
    assert not (folder / "models").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "models", "models/sft/model.safetensors", "state/ppo"])
def test_a_run_does_not_go_on_through_links(outside, tmp_path, name):
    config = RUNS["smoke"].config
    folder = open_folder(tmp_path / "run", config)
    assert open_folder(folder, config) == folder
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(outside / ("file" if "." in name else "folder"))
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=rf"{name}: found a link, accepted are files and folders"):
        open_folder(folder, config)
    assert everything(tmp_path) == before


def test_a_run_folder_may_be_a_link_itself(outside, tmp_path):
    """To a larger disk: that is its owner's choice."""
    (tmp_path / "run").symlink_to(outside / "new")
    (outside / "new").mkdir()
    open_folder(tmp_path / "run", RUNS["smoke"].config)
    assert (outside / "new" / "config.yaml").is_file()


@pytest.mark.parametrize("target", ["file", "new"])
def test_the_report_of_a_folder_from_elsewhere_follows_no_link(outside, tmp_path, target):
    folder = write_run(tmp_path / "run", make_results(), make_metrics()[:4])
    (folder / "report.html").symlink_to(outside / target)
    before = everything(outside)
    page = write_report(folder)
    assert everything(outside) == before
    assert not page.is_symlink()
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>") or "<html" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("target", ["file", "new"])
def test_preparing_data_follows_no_link(call, good, outside, tmp_path, target):
    out = tmp_path / "out"
    out.mkdir()
    written = {name for name in PREPARED if name.startswith("prompts")} | {"report.json", "report.md"}
    for name in {*written, *(f"{name}.writing" for name in written)}:
        (out / name).symlink_to(outside / target)
    before = everything(outside)
    write_named(tmp_path / "data", tmp_path)
    code, _, err = call(
        *("data", "prepare", "--out", out, "--tokenizer", good / "policy"),
        *("--prompts", tmp_path / "data" / "prompts.raw.jsonl"),
    )
    assert (code, err) == (0, "")
    assert everything(outside) == before
    assert not [name for name in written if (out / name).is_symlink()]
