"""The results of docs/results.md: every number from the runs, the paper's beside, and no sentence without them."""

import copy
import json
import re
from pathlib import Path

import pytest
from synthetic_run import make_results

from benchmarks.end_to_end import seeds

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "numbers", "docs/results.md": "results"}


def marked(page: str, marker: str) -> list[str]:
    return re.findall(rf"<!-- {marker}:begin -->\n(.*?)<!-- {marker}:end -->", page, re.DOTALL)


@pytest.fixture
def run() -> dict:
    results = make_results()
    rate = results["models"][0]["win_rate"]
    results["head_to_head"] = {"model": "PPO-ptx", "against": {"GPT": rate | {"rate": 0.9}, "SFT": rate}}
    label = {"rate": 0.2, "low": 0.15, "high": 0.25, "total": 143}
    for model in results["models"]:
        model["metadata"] = {"hallucination": label, "satisfies constraint": label | {"total": 600}}
        model["kl"] = model["kl"] or 0.0
    results["data"]["overlap"] = [
        {"what": "in the corpus", "count": 0, "total": 1000},
        {"what": "for the task", "count": 770, "total": 1000},
    ]
    return results


def test_numbers_stand_beside_the_papers(run):
    text = seeds.section([run], [Path("runs/miniature-0")], "Made:")
    assert "One seed, 1,000 prompts of test users" in text.replace("\n", " ")
    assert "None stands word for word" in text
    assert "77% of them ask" in text.replace("\n", " ")
    assert "| PPO-ptx: win rate | 51.7 ± 2.2% | 73.4 ± 2% |" in text
    assert "| PPO-ptx: hallucination | 20.0 ± 5.0% of 143 | 21% |" in text
    assert "| training labelers' agreement | 76.8 ± 1.0% | 72.6 ± 1.5% |" in text
    assert "| alignment tax of PPO, nats a token | +0.316 ± 0.004 |  |" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120


def test_claims_of_several_seeds_come_first(run):
    other = copy.deepcopy(run)
    other["run"]["seed"] = 2
    run["exams"], other["exams"] = ({"tax": {"all": {"tax": {"PPO": entry}}}} for entry in (
        {"mean": 6.0, "low": 5.0, "high": 7.0}, {"mean": 3.0, "low": 2.0, "high": 4.0}))  # fmt: skip
    text = seeds.section([run, other], [Path("runs/miniature-0"), Path("runs/miniature-2")], "Made:")
    assert "| claim | in the paper | measured, seeds 0 / 2 | verdict |" in text
    assert text.index("| claim |") < text.index("| seed 0 | seed 2 | paper |")
    assert (
        "| points: 6.0 (5.0 to 7.0) / 3.0 (2.0 to 4.0) | not shown (holds in 1 of 2, does not hold in 1 of 2) |" in text
    )
    assert "All seeds have to agree." in text.replace("\n", " ")


def test_sentences_follow_the_numbers(run):
    def said(changed: dict) -> str:
        return seeds.section([changed], [Path("runs/miniature-0")], "Made:").replace("\n", " ")

    seen = copy.deepcopy(run)
    seen["data"]["overlap"][0]["count"] = 320
    seen["alignment_tax"]["recovered"] = None
    assert "320 of them stand word for word in a training set" in said(seen)
    assert "| of PPO's tax, given back by the mix | - |" in said(seen)


def test_one_command_fills_both_pages(run, tmp_path, monkeypatch):
    folder = tmp_path / "runs/miniature-0"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(run))
    for path in (*PAGES, seeds.FIGURE):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    for page in PAGES:
        (tmp_path / page).write_text((ROOT / page).read_text(encoding="utf-8"), encoding="utf-8")
    for _ in range(2):
        monkeypatch.setattr("sys.argv", ["seeds.py", str(folder), "--write", str(tmp_path)])
        seeds.main()
    pages = {page: (tmp_path / page).read_text(encoding="utf-8") for page in PAGES}
    for page, marker in PAGES.items():
        (between,) = marked(pages[page], marker)
        assert between.count("| paper |") == 1
        assert between.count("| claim | in the paper | measured, seed 0 | verdict |") == 1
        assert ("Made on" in between) == (page == "docs/results.md")
        assert "| PPO-ptx: win rate | 51.7 ± 2.2% | 73.4 ± 2% |" in between
        assert pages[page].split(between) == (ROOT / page).read_text().split(
            marked((ROOT / page).read_text(), marker)[0]
        )
    assert (tmp_path / seeds.FIGURE).read_text().startswith("<svg")


def test_the_readme_shows_rows_of_the_results():
    few, whole = (marked((ROOT / page).read_text(encoding="utf-8"), marker)[0] for page, marker in PAGES.items())
    rows = [line for line in few.splitlines() if line and not line.startswith("| ---")]
    few_rows, all_rows = (
        [label for line in text.splitlines() if (label := line.split(" | ")[0][2:]) in seeds.FEW]
        for text in (few, whole)
    )
    assert few_rows == all_rows
    assert len(few_rows) == len(seeds.FEW)
    assert set(rows) <= set(whole.splitlines())
