"""The report: inert, self-contained, complete where data is, silent where it is not, the same bytes every time."""

import copy
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from synthetic_run import HOSTILE, MODELS, make_metrics, make_profile, make_results, write_run

from instructrl.evaluation import plots, suite_views
from instructrl.evaluation.figures import tax_plots
from instructrl.evaluation.formatting import DASH, Estimate
from instructrl.evaluation.report import render, write_report
from instructrl.evaluation.style import INK

VOID = {"meta", "br", "hr", "img", "input", "link"}
DOCUMENT_TAGS = {"html", "head", "meta", "title", "style", "body", "header", "main", "nav", "section", "article"}
TEXT_TAGS = {"h1", "h2", "h3", "h4", "p", "ul", "li", "a", "i", "small", "span", "div", "dl", "dt", "dd"}
TABLE_TAGS = {"table", "thead", "tbody", "tr", "th", "td", "details", "summary", "figure", "figcaption"}
ALLOWED_TAGS = DOCUMENT_TAGS | TEXT_TAGS | TABLE_TAGS | {"svg", "g", "path", "use", "defs", "clippath", "rect", "text"}
SECTION_IDS = [
    *("models", "pairings", "quality", "samples", "suites", "reward-model", "baselines", "optimisation"),
    *("tax", "training", "policies", "data", "run"),
]


class Page(HTMLParser):
    """Tags, attributes and texts as a browser reads them, and whether every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def style(self) -> str:
        return next(text for text in self.texts if ":root" in text)

    @property
    def text(self) -> str:
        return "".join(text for text in self.texts if ":root" not in text)

    def ids(self, tag: str) -> list[str]:
        return [attributes["id"] for name, attributes in self.tags if name == tag and "id" in attributes]


@pytest.fixture(scope="module")
def html() -> str:
    return render(make_results(), make_metrics(), make_profile())


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def assert_inert(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag in ALLOWED_TAGS
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in {"src", "srcset", "srcdoc", "action", "formaction", "data", "background", "poster"}
            if name in {"href", "xlink:href", "clip-path"}:
                assert re.fullmatch(r"#[\w-]+|url\(#[\w-]+\)", value)
            if name == "style":
                assert "url(" not in value
    assert "@import" not in page.style
    assert "url(" not in page.style
    assert "<" not in page.style


def test_nothing_runs_and_nothing_is_fetched(page):
    assert_inert(page)
    policy = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_hostile_text_is_shown_as_text(page):
    answers = sum(
        response["text"] == HOSTILE for s in make_results()["samples"] for response in s["responses"].values()
    )
    # One more in a prompt; of public sets a note, and the title, model, prompt and metric of another; the name of a
    # prefix in its row, and its name and text in a note.
    assert page.text.count(HOSTILE) == answers + 1 + 5 + 3


def poison(value):
    """Every text of a document replaced by hostile text; keys of free choice too."""
    if isinstance(value, dict):
        free = {"PPO": HOSTILE, "chat": HOSTILE, "hallucination": HOSTILE, "torch": HOSTILE, "model": "model"}
        return {free.get(key, key): poison(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poison(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_every_text_of_the_input_may_be_hostile():
    metrics = [row | {"phase": HOSTILE, HOSTILE: 1.0} for row in make_metrics()[:5]]
    metrics += [row | {HOSTILE: 1.0} for row in make_metrics()[-5:]]
    page = Page(render(poison(make_results()), metrics, [{"phase": HOSTILE, "seconds": 1.0}]))
    assert_inert(page)
    # Outside of the drawings, which shorten long labels, the text stands as it was given.
    assert page.text.count(HOSTILE) > 40


def test_strange_characters_neither_break_nor_vanish(tmp_path):
    results = make_results()
    results["samples"][0]["prompt"] = "bell \x07, null \x00, half \ud800, $x^2$, 日本語, \u202ebackwards"
    results["run"]["name"] = "$\\alpha$ 日本"
    results["models"][0]["name"] = "$\\frac{x$ 日本"
    text = write_report(write_run(tmp_path, results)).read_text(encoding="utf-8")
    assert "bell ␇, null ␀, half \\ud800, $x^2$, 日本語" in text
    assert "$\\frac{x$ 日本" in text


def test_same_input_same_bytes_in_another_process(tmp_path):
    results = {key: make_results()[key] for key in ("run", "models", "over_optimisation", "samples", "config")}
    folder = write_run(tmp_path, results, make_metrics()[-40::20], make_profile())
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    code = "import sys; from instructrl.evaluation.report import write_report; write_report(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=_other_environment())
    assert (folder / "report.html").read_bytes() == first


def _other_environment() -> dict[str, str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return os.environ | {"PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo", "PYTHONPATH": path}


def test_everything_that_is_there_is_shown(page):
    assert page.ids("section") == SECTION_IDS
    for expected in ("54.4%", "52.2", "12,725", "33,207", "ppo.kl_coef", "[0.9, 0.95]", "1 h 14 min", "5.23.0"):
        assert expected in page.text
    for name in MODELS:
        assert name in page.text


def test_public_sets_stand_beside_the_paper(page):
    for expected in (
        "QA: true (own judge)",
        "0.500",
        f"0.470{DASH}0.530",
        "QA, not adversarial: true (own judge)",
        "814",
    ):
        assert expected in page.text
    for expected in ("Paper: PPO-ptx", "1.3B (6B, 175B)", "0.297", "(0.476, 0.712)", "of another scale"):
        assert expected in page.text


def test_notes_of_public_sets_stand_below_their_tables():
    entry = {"suite": "own", "title": "Own", "what": "it", "notes": ["ppo_ptx: a note"], "rows": []}
    (table,) = suite_views.suite_tables(entry)
    assert table.notes == ("ppo_ptx: a note",)


def test_labels_of_groups_are_broken_into_lines():
    estimate = (Estimate(value=0.5, low=0.4, high=0.6), INK)
    group = plots.Group(label="instruction: true and informative (own judges)", estimates=(estimate,))
    drawn = plots.interval_groups([group], name="x", what="it", write=str, reference=None)
    assert ("informative (own judges)" in drawn, "…" in drawn) == (True, False)


def test_every_plot_says_what_it_shows(page):
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) > 15
    for attributes in drawings:
        assert attributes["role"] == "img"
        assert re.search(r"\d", attributes["aria-label"])
    labels = " ".join(attributes["aria-label"] for attributes in drawings)
    assert "PPO 54.4% (52.2% to 56.6%)" in labels


def test_ids_are_unique(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_drawings_take_their_colours_from_the_page(page):
    styles = [a.get("style", "") for tag, a in page.tags if tag in {"path", "use", "text", "g", "rect"}]
    assert not [style for style in styles if re.search(r"#[0-9a-f]{3}", style)]
    used = {name for style in styles for name in re.findall(r"var\((--[\w-]+)\)", style)}
    light, dark = page.style.split("prefers-color-scheme: dark")
    assert used
    for name in used:
        assert f"{name}:" in light
        assert f"{name}:" in dark


@pytest.mark.parametrize(
    ("missing", "sections"),
    [
        ("models", ["models", "quality"]),
        ("reward_model", []),  # SFT selection stays in that section
        ("samples", ["samples"]),
        ("alignment_tax", ["tax"]),
        ("data", ["data"]),
    ],
)
def test_missing_parts_disappear(missing, sections):
    page = Page(render(make_results() | {missing: None}))
    without_metrics = [*sections, "training", "policies"]
    assert [name for name in SECTION_IDS if name not in page.ids("section")] == sorted(
        without_metrics, key=SECTION_IDS.index
    )
    assert not re.search(r"\b(nan|None|inf)\b", page.text, re.IGNORECASE)


def strip_to_real_data(results: dict) -> dict:
    """What a run on real data has not: a gold score, Likert, metadata, facts, labelers in two groups."""
    results = copy.deepcopy(results)
    for model in results["models"]:
        model |= {"likert": None, "metadata": {}, "fact_accuracy": None, "win_rate_by_category": {}}
    for row in results["over_optimisation"]:
        row["gold"] = None
    for key in ("accuracy_heldout_labelers", "agreement_heldout_labelers", "agreement_training_labelers"):
        results["reward_model"][key] = None
    results["alignment_tax"]["facts"] = {}
    results["samples"][0]["responses"]["PPO"] |= {"likert": None, "score": None}
    return results


def test_real_data_has_no_empty_places():
    results = strip_to_real_data(make_results())
    results["config"] = {}
    page = Page(render(results))
    assert "quality" not in page.ids("section")
    labels = " ".join(attributes.get("aria-label", "") for _, attributes in page.tags)
    for absent in ("hallucination", "gold score", "Facts", "held-out labelers", "nan", "None", "null"):
        assert not re.search(rf"\b{absent}\b", page.text + labels, re.IGNORECASE)
    headings = "".join(page.texts[page.texts.index("All models") :][:40])
    assert "Likert" not in headings
    assert "71.2%" in labels


def test_not_a_number_is_an_absent_number(tmp_path):
    results, metrics = make_results(), make_metrics()[:9]
    results["models"][3] |= {"score": float("nan"), "kl": float("inf")}
    metrics[3]["loss"] = float("nan")
    text = Page(write_report(write_run(tmp_path, results, metrics)).read_text(encoding="utf-8")).text
    assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE)


def test_an_empty_run_is_a_page():
    assert "no results yet" in Page(render({})).text


def test_a_run_in_progress_may_end_in_half_a_row(tmp_path):
    folder = write_run(tmp_path, {}, make_metrics()[:3])
    whole = write_report(folder).read_bytes()
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"phase": "ppo", "st')
    assert write_report(folder).read_bytes() == whole


def test_errors_say_where(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run_folder: found no results\.json"):
        write_report(tmp_path)
    write_run(tmp_path, make_results())
    (tmp_path / "metrics.jsonl").write_text('{"phase": "ppo"}\nnot json\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: found Expecting value"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match="found a JSON list, accepted is a JSON object"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("phases", "sections", "curves"),
    [
        (("sft",), ["training"], ["Supervised fine-tuning: loss"]),
        (("reward_model",), ["training"], ["Reward model: loss", "Reward model: accuracy"]),
        (("ppo_ptx",), ["optimisation", "policies"], ["Score against KL while training", "Entropy, nats a token"]),
        (("pretraining", "sft"), ["training"], ["Pretraining: loss"]),
    ],
)
def test_a_single_step_has_a_page_of_its_curves(tmp_path, phases, sections, curves):
    folder = tmp_path / "my step"
    folder.mkdir()
    rows = [row for row in make_metrics() if row["phase"] in phases]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert Page(write_report(folder).read_text(encoding="utf-8")).ids("section") == sections
    (folder / "config.yaml").write_text(f"seed: 7\nsft: {{epochs: 2}}\nnote: {json.dumps(HOSTILE)}\n")
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert_inert(page)
    assert page.ids("section") == [*sections, "run"]
    assert all(text in page.text for text in ("my step", "Seed 7", "sft.epochs", HOSTILE))
    drawn = " ".join(attributes["aria-label"] for tag, attributes in page.tags if tag == "svg")
    assert all(f"{curve}: " in drawn for curve in curves), drawn


@pytest.mark.parametrize(("settings", "found"), [("{", "no settings"), ("- 1\n", "a list"), ("\xff", "the byte 0xff")])
def test_settings_that_are_none_are_refused(tmp_path, settings, found):
    (tmp_path / "metrics.jsonl").write_text('{"phase": "sft", "step": 0, "loss": 1.0}\n')
    (tmp_path / "config.yaml").write_bytes(settings.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"config\.yaml: found {found}"):
        write_report(tmp_path)


@pytest.mark.parametrize("tax", [(0.316, 0.017), (0.0021, 0.0004), (-3e-5, 1e-5), (0.0, 0.0), (12.5, -4.0)])
def test_every_mark_of_the_tax_reads_otherwise(tax):
    results = make_results()
    taxes = {
        name: {"mean": value, "low": value - abs(value) / 5, "high": value + abs(value) / 5}
        for name, value in zip(("PPO", "PPO-ptx"), tax, strict=True)
    }
    results["alignment_tax"] |= {"tax": taxes, "facts": {}}
    (plot,) = tax_plots(results)
    written = [text.strip() for text in Page(plot.svg).texts if re.fullmatch(r"[\d.,−-]+", text.strip())]  # noqa: RUF001
    marks, values = written[:-2], written[-2:]
    assert len(set(marks)) == len(marks) > 1
    assert len(set(values)) == len(set(tax))


def test_a_split_that_a_run_has_not_is_no_split_of_none():
    rows = [
        {"set": name, "split": split, "source": source, "num_prompts": 5}
        for name, split in (("SFT", "train"), ("SFT", "valid"), ("PPO", "train"), ("PPO", "test"))
        for source in ("customer", "labeler")
    ]
    page = Page(render(make_results() | {"data": {"sizes": rows}}))
    table = page.text[page.text.index("Prompts that the run uses") :][:400].split()
    assert "0" not in table
    assert table.count("10") == 4
