"""What the report shows of several judges, and of a world's exams: every number that is there, beside the paper's."""

import re

from synthetic_run import make_results

from instructrl.evaluation import exam_views, judged_views, sections
from instructrl.evaluation.figures import optimisation_plots

JUDGES = ("training labelers", "held-out labelers", "rubric")


def mean(value: float) -> dict:
    return {"mean": value, "low": value - 0.1, "high": value + 0.1}


def rate(value: float, **more) -> dict:
    return {"rate": value, "low": value - 0.03, "high": value + 0.03, **more}


def judged() -> dict:
    def model(name: str, value: float) -> dict:
        both = {"gpt": rate(value - 0.1), "instruct": rate(value + 0.1)}
        flags = {"hallucination": rate(value / 2, total=82)}
        by = {"distribution": both}
        return {"name": name, "win_rate": rate(value), "likert": mean(10 * value), "win_rate_by": by, "flags": flags}

    rows = [("GPT", 0.2), ("SFT", 0.5), ("PPO", 0.6)]
    return {"baseline": "SFT", "judges": [{"judge": name, "models": [model(*row) for row in rows]} for name in JUDGES]}


def entry(suite: str, **values: float) -> dict:
    """Rows of two models; values: what is measured under `QA`, by metric, and 0.1 more of PPO."""
    rows = [
        {"model": model, "prompt": "QA", "shots": 0, "metric": name.replace("_", " "), "group": "", "unit": "share",
         "value": value + more, "low": value + more - 0.05, "high": value + more + 0.05, "num_items": 120}
        for model, more in (("GPT", 0.0), ("PPO", 0.1)) for name, value in values.items()
    ]  # fmt: skip
    return {"suite": suite, "title": suite.capitalize(), "what": "what it is", "notes": [], "rows": rows}


def exams() -> dict:
    way = {"tax": {"PPO": mean(13.0), "PPO-ptx": mean(1.0)}, "exams": {"reading": {"PPO": mean(20.0)}}}
    tax = {"pretrained": "GPT", "unit": "points", "0-shot": {**way, "recovered": None}, "all": {**way, "recovered": {
        "mean": 0.92, "low": 0.85, "high": 0.99}}}  # fmt: skip
    truth = entry("exam of truth", true=0.4, true_and_informative=0.3, myth=0.2)
    return {"entries": [entry("exam reading", F1=0.5), truth], "tax": tax}


def described(svg: str) -> str:
    found = re.search(r"<desc[^>]*>(.*?)</desc>|aria-label=\"(.*?)\"", svg, re.DOTALL)
    assert found is not None
    return found[1] or found[2]


def test_each_judge_has_its_win_rates_and_the_baseline_none():
    rates, split, likert = judged_views.judged_plots(make_results() | {"judged": judged()})
    assert "Training labelers 20%, 60%; Held-out labelers 20%, 60%; Rubric 20%, 60%" in described(rates.svg)
    told = described(split.svg)
    assert told.index("Rubric, instructions 30%, 70%") < told.index("Training labelers, for plain text 10%, 50%")
    assert "Training labelers 2.00, 5.00, 6.00" in described(likert.svg)


def test_labels_tell_of_how_many_responses():
    tables = judged_views.label_tables({"judged": judged()})
    assert [table.title for table in tables] == [f"Labels by the {name}" for name in JUDGES]
    assert [(row[0].main, row[1].main, row[1].detail[-5:]) for row in tables[0].rows] == [
        ("GPT", "10.0%", "of 82"),
        ("SFT", "25.0%", "of 82"),
        ("PPO", "30.0%", "of 82"),
    ]
    quality = {made.id: made for made in sections.all_sections(make_results() | {"judged": judged()}, [], [])}
    assert quality["quality"].tables == ()


def test_the_tax_stands_by_number_of_examples_and_by_exam():
    whole, each = exam_views.tax_plots(make_results() | {"exams": exams()})
    assert "0-shot 13, 1; All 13, 1" in described(whole.svg)
    assert "all 92% (85.0 to 99.0%)" in whole.caption
    assert "0-shot" not in whole.caption
    assert "Reading 20" in described(each.svg)


def test_truth_stands_beside_the_papers():
    results = make_results() | {"exams": exams()}
    (plot,) = exam_views.conduct_plots(results)
    assert "QA: true 0.40, 0.50; QA: true and informative 0.30, 0.40" in described(plot.svg)
    assert "myth" not in described(plot.svg)
    ours, papers = exam_views.conduct_tables(results)
    assert [row[0].main for row in ours.rows] == ["QA: true", "QA: true and informative", "QA: myth"]
    assert [row[0].main for row in papers.rows] == ["QA: true", "QA: true and informative"]
    assert (papers.rows[0][1].main, papers.rows[0][3].main) == ("0.312", "0.546")  # table 14, GPT and PPO, 1.3B
    assert len(exam_views.skill_plots(results)) == 1


def test_groups_of_questions_have_what_is_drawn_alone():
    truth = entry("exam of truth", true=0.4, myth=0.2)
    rare = [row | {"group": "rare"} for row in truth["rows"]]
    tables = exam_views.conduct_tables({"exams": {"entries": [truth | {"rows": truth["rows"] + rare}]}})
    assert [[row[0].main for row in table.rows] for table in tables if "paper" not in table.title] == [
        ["QA: true", "QA: myth"],
        ["QA, rare: true"],
    ]


def test_sections_are_there_where_their_data_is():
    def ids(results: dict) -> list[str]:
        return [made.id for made in sections.all_sections(results, [], [])]

    assert ids(make_results() | {"judged": judged(), "exams": exams()})[:5] == [
        "claims", "models", "judged", "conduct", "exams"
    ]  # fmt: skip
    assert not {"claims", "judged", "conduct", "exams"} & {*ids(make_results())}
    assert ids(make_results() | {"judged": {}, "exams": {}}) == ids(make_results())


def test_scores_stand_over_the_root_of_the_kl():
    rows = [{"model": "PPO", "kl": kl, "score": kl, "gold": 3.0} for kl in (-1e-9, 4.0, 9.0)]
    reward, gold = optimisation_plots({"over_optimisation": rows}, [])
    assert "PPO from 0.00 at √KL, nats a response 0 to 9.00 at √KL, nats a response 3" in described(reward.svg)
    assert "nats a response 3" in described(gold.svg)
