"""The results of the README: every number from the runs, the paper's beside, and no sentence that they do not carry."""

import copy
import json
import re
from pathlib import Path

import pytest
from synthetic_run import make_results

from benchmarks.end_to_end import seeds

ROOT = Path(__file__).parents[2]


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


def test_sentences_follow_the_numbers(run):
    def said(changed: dict) -> str:
        return seeds.section([changed], [Path("runs/miniature-0")], "Made:").replace("\n", " ")

    assert "set by hand" in said(run)
    assert "the reverse of the paper" not in said(run)
    better, seen = copy.deepcopy(run), copy.deepcopy(run)
    better["reward_model"]["accuracy_heldout_labelers"]["rate"] = 0.9
    assert "labelers, though by less than the intervals are wide: the reverse of the paper" in said(better)
    better["reward_model"]["accuracy_heldout_labelers"] |= {"low": 0.88, "high": 0.92}
    assert "than of training labelers: the reverse of the paper" in said(better)
    seen["data"]["overlap"][0]["count"] = 320
    seen["alignment_tax"]["recovered"] = None
    assert "320 of them stand word for word in a training set" in said(seen)
    assert "| of PPO's tax, given back by the mix | - |" in said(seen)


def test_one_command_fills_the_readme(run, tmp_path, monkeypatch):
    folder = tmp_path / "runs/miniature-0"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(run))
    page = tmp_path / "README.md"
    page.write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / seeds.FIGURE.parent).mkdir(parents=True)
    for _ in range(2):
        monkeypatch.setattr("sys.argv", ["seeds.py", str(folder), "--write", str(page)])
        seeds.main()
    (between,) = re.findall(r"<!-- results:begin -->\n(.*?)<!-- results:end -->", page.read_text(), re.DOTALL)
    assert between.count("| paper |") == 1
    assert "Made on" in between
    assert page.read_text().split("<!-- results")[0] == (ROOT / "README.md").read_text().split("<!-- results")[0]
    assert (tmp_path / seeds.FIGURE).read_text().startswith("<svg")
