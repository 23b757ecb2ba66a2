"""Ten made-up rows of each set of appendix D, in the layout of its authors and in that of the hub's table."""

import json
from pathlib import Path

from instructrl.evaluation.suites.protocol import Task, Written
from instructrl.evaluation.suites.settings import SuiteConfig
from instructrl.evaluation.suites.table import SUITES

FRUITS = ("apple", "pear", "plum", "fig", "lemon", "peach", "cherry", "melon", "grape", "quince")


def write(folder: Path, files: dict[str, str]) -> Path:
    """The folder, with these files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def lines(rows: list) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def tasks(suite: str, folder: Path, **settings) -> list[Task]:
    """Of a suite whose files lie in a folder of its name."""
    names = [name.removeprefix("?") for name in SUITES[suite].files]
    there = {name: folder / suite / name for name in names if (folder / suite / name).is_file()}
    return SUITES[suite].tasks(there, SuiteConfig(data=str(folder), **settings))


def says(*texts: str) -> list[Written]:
    return [Written(text=text, finished=True) for text in texts]


# ---- DROP


def drop_answer(number: str = "", spans: tuple[str, ...] = (), date: dict[str, str] | None = None) -> dict:
    return {"number": number, "spans": list(spans), "date": date or {"day": "", "month": "", "year": ""}}


def drop(begin: str) -> dict:
    """Five passages of two questions: a number of two answers, then spans, or a date."""
    passages = {}
    for i, fruit in enumerate(FRUITS[:5]):
        last = drop_answer(spans=("Ann", "Bob")) if i % 2 else drop_answer(date={"month": "May", "year": f"190{i}"})
        passages[f"{begin}_{i}"] = {
            "passage": f"{begin} {fruit} text.",
            "qa_pairs": [
                {
                    "query_id": f"{begin} {i} a",
                    "question": f"How many {fruit} trees?",
                    "answer": drop_answer(number=f"{i + 2}"),
                    "validated_answers": [drop_answer(number=f"{i + 3}"), drop_answer(number="")],
                },
                {"query_id": f"{begin} {i} b", "question": f"Who or when, {fruit}?", "answer": last},
            ],
        }
    return passages


def drop_rows(begin: str) -> list[dict]:
    """The same, a question a row."""
    rows = []
    for name, passage in drop(begin).items():
        for pair in passage["qa_pairs"]:
            answers = [pair["answer"], *pair.get("validated_answers", [])] if begin == "dev" else [pair["answer"]]
            spans = [text for answer in answers for text in _spans(answer)]
            row = {"section_id": name, "query_id": pair["query_id"], "passage": passage["passage"]}
            rows.append({**row, "question": pair["question"], "answers_spans": {"spans": spans, "types": ["-"]}})
    return rows


def _spans(answer: dict) -> list[str]:
    date = " ".join(part for part in answer["date"].values() if part)
    return [answer["number"]] if answer["number"] else answer["spans"] or ([date] if date else [])


# ---- QuAC


def quac(begin: str) -> dict:
    """Five dialogues of two questions; the second of every other one has no answer."""
    pages = []
    for i, fruit in enumerate(FRUITS[:5]):
        first, second = f"{fruit} trees", "CANNOTANSWER" if i % 2 else f"in 190{i}"
        paragraph = {
            "id": f"C_{i}",
            "context": f"{begin} {fruit} text. CANNOTANSWER",
            "qas": [
                _quac_turn(
                    f"C_{i}_q#0", f"What about the {fruit}?", first, [first, f"the {fruit} trees", "x", "CANNOTANSWER"]
                ),
                _quac_turn(f"C_{i}_q#1", "When was that?", second, [second, "in May"] if i % 2 else [second]),
            ],
        }
        page = {"title": f"{fruit.title()}s", "section_title": "History", "background": "", "paragraphs": [paragraph]}
        pages.append(page)
    return {"data": pages}


def _quac_turn(name: str, question: str, gold: str, texts: list[str]) -> dict:
    answers = [{"text": text, "answer_start": 0} for text in texts]
    return {
        "id": name,
        "question": question,
        "followup": "n",
        "yesno": "x",
        "orig_answer": answers[0] | {"text": gold},
        "answers": answers,
    }


def quac_rows(begin: str) -> list[dict]:
    """The same, a dialogue a row."""
    rows = []
    for page in quac(begin)["data"]:
        for paragraph in page["paragraphs"]:
            turns = paragraph["qas"]
            rows.append(
                {
                    "dialogue_id": paragraph["id"],
                    "wikipedia_page_title": page["title"],
                    "section_title": page["section_title"],
                    "context": paragraph["context"],
                    "questions": [turn["question"] for turn in turns],
                    "answers": {"texts": [[answer["text"] for answer in turn["answers"]] for turn in turns]},
                    "orig_answers": {"texts": [turn["orig_answer"]["text"] for turn in turns]},
                }
            )
    return rows


# ---- SQuADv2


def squad(begin: str) -> dict:
    """Five paragraphs of two questions; the second has no answer."""
    pages = []
    for i, fruit in enumerate(FRUITS[:5]):
        answers = [
            {"text": f"{i} {fruit}s", "answer_start": 0},
            {"text": f"the {i} {fruit}s in all", "answer_start": 0},
        ]
        qas = [
            {"id": f"{i}a", "question": f"How many {fruit}s?", "answers": answers, "is_impossible": False},
            {"id": f"{i}b", "question": "Whose are they?", "answers": [], "is_impossible": True},
        ]
        paragraphs = [{"context": f"{begin} {fruit} text.", "qas": qas}]
        pages.append({"title": f"{fruit.title()}_tree", "paragraphs": paragraphs})
    return {"version": "v2.0", "data": pages}


def squad_rows(begin: str) -> list[dict]:
    """The same, a question a row."""
    rows = []
    for page in squad(begin)["data"]:
        for paragraph in page["paragraphs"]:
            for turn in paragraph["qas"]:
                texts = [answer["text"] for answer in turn["answers"]]
                row = {"id": turn["id"], "title": page["title"], "context": paragraph["context"]}
                rows.append({**row, "question": turn["question"], "answers": {"text": texts, "answer_start": [0]}})
    return rows


# ---- HellaSwag, RTE, SST, WSC: as many rows as asked for, so that there are enough examples


def table(columns: tuple[str, ...], rows: list[dict]) -> str:
    return "".join("\t".join(cells) + "\n" for cells in [columns, *([str(row[c]) for c in columns] for row in rows)])


def hellaswag(begin: str, count: int) -> list[dict]:
    rows = []
    for i in range(count):
        row = {
            "ind": i,
            "activity_label": f"Picking {begin}s",
            "ctx_a": f"A {begin} {i} hangs high.",
            "ctx_b": "the man",
        }
        row |= {"ctx": f"A {begin} {i} hangs high. the man", "split": "val", "split_type": "indomain", "label": i % 4}
        rows.append({**row, "endings": [f"{verb} it." for verb in ("eats", "sees", "paints", "sells")]})
    return rows


def rte(begin: str, count: int) -> list[dict]:
    labels = ("entailment", "not_entailment")
    return [
        {"premise": f"{begin} {i} is ripe.", "hypothesis": f"{begin} {i} is red.", "label": labels[i % 2], "idx": i}
        for i in range(count)
    ]


def sst(begin: str, count: int) -> list[dict]:
    return [{"sentence": f"a {begin} of {i} films ", "label": i % 2} for i in range(count)]


def wsc(begin: str, count: int) -> list[dict]:
    """Of each text two rows: what the pronoun refers to, and what it does not."""
    rows = []
    for i in range(count):
        spans = {"span1_index": 0, "span1_text": "Ann" if i % 2 else "the tree", "span2_index": 5, "span2_text": "it"}
        text = f"Ann saw the tree {begin} {i // 2} it, which was tall."
        rows.append({"text": text, "target": {**spans, "span2_index": 6}, "idx": i, "label": i % 2 == 0})
    return rows


# ---- WMT15, CNN/DailyMail, TL;DR


def sgm(sentences: list[str], kind: str) -> str:
    """As the workshop publishes them: documents of segments, with entities."""
    inside = "".join(f'<seg id="{i}">{s.replace("&", "&amp;")}</seg>\n' for i, s in enumerate(sentences, 1))
    return f'<{kind} setid="x" srclang="any">\n<doc docid="1">\n<p>\n{inside}</p>\n</doc>\n</{kind}>\n'


def french(begin: str, count: int) -> list[str]:
    return [f"Le {begin} & {i} pommes." for i in range(count)]


def english(begin: str, count: int) -> list[str]:
    return [f"The {begin} & {i} apples." for i in range(count)]


def wmt15(begin: str, count: int) -> dict[str, str]:
    """Two files of sentences."""
    return {
        f"newsdiscuss{begin}2015-fren-src.fr.sgm": sgm(french(begin, count), "srcset"),
        f"newsdiscuss{begin}2015-fren-ref.en.sgm": sgm(english(begin, count), "refset"),
    }


def wmt15_rows(begin: str, count: int) -> list[dict]:
    pairs = zip(french(begin, count), english(begin, count), strict=True)
    return [{"translation": {"fr": one, "en": other}} for one, other in pairs]


def cnn_dm(count: int = 10) -> list[dict]:
    return [{"article": f"News {i}.\n\nMore.", "highlights": f"Line {i}.\nEnd.", "id": f"{i}"} for i in range(count)]


def tldr(count: int = 10) -> list[dict]:
    return [
        {"id": f"{i}", "subreddit": "r", "title": "T", "post": f"I ate {i}.", "summary": f"{i}."} for i in range(count)
    ]
