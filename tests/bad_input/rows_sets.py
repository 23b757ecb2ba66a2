"""Files of the sets of appendix D that are of another layout, or lack what they are asked for."""

import json
from collections.abc import Callable
from pathlib import Path

from table import Row

_RTE = {"premise": "w1", "hypothesis": "w2.", "label": "entailment", "idx": 0}
_QUESTION = {"query_id": "q", "question": "w1?"}


def _files(suite: str, files: dict[str, str]) -> Callable[[], object]:
    """Writes them into the folder of a suite."""

    def make() -> None:
        folder = Path("sets") / suite
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")

    return make


def _row(what: str, suite: str, files: dict[str, object], message: str, options: str = "") -> Row:
    """files: contents by name, values as JSON."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in files.items()}
    return Row(
        what=what,
        step="suites",
        options=f"--suites {suite} {options}".strip(),
        make=_files(suite, texts),
        message=message,
    )


ROWS = [
    _row(
        "set whose folder has none of its files",
        "drop",
        {"readme.txt": "w1"},
        "the folder of drop: found no drop_dataset_dev.json or validation.jsonl, accepted is one of them",
    ),
    _row(
        "examples of a set without its training file",
        "rte",
        {"val.jsonl": _RTE},
        "sets/rte: found no train.jsonl or train.tsv, accepted is one of them, which examples are drawn from",
        "--suite.shots few",
    ),
    _row(
        "fewer examples than a prompt has",
        "rte",
        {"val.jsonl": _RTE, "train.jsonl": _RTE | {"premise": "w3"}},
        "rte: found 1 examples that are not evaluated themselves, accepted are at least 15",
        "--suite.shots both",
    ),
    _row(
        "set in a file that is no JSON",
        "squad_v2",
        {"dev-v2.0.json": "w1"},
        "sets/squad_v2/dev-v2.0.json: found no JSON (Expecting value: line 1 column 1 (char 0)), accepted is an object",
    ),
    _row(
        "question of DROP without an answer",
        "drop",
        {"drop_dataset_dev.json": {"nfl_1": {"passage": "w1", "qa_pairs": [_QUESTION]}}},
        "sets/drop/drop_dataset_dev.json, nfl_1, qa_pairs 1: answer: found nothing, accepted is a JSON object",
    ),
    _row(
        "answer of DROP of another type",
        "drop",
        {"drop_dataset_dev.json": {"nfl_1": {"passage": "w1", "qa_pairs": [_QUESTION | {"answer": {"number": [3]}}]}}},
        "sets/drop/drop_dataset_dev.json, nfl_1, qa_pairs 1, answer: number: found [3], accepted is a number or a text",
    ),
    _row(
        "turns of QuAC without their answers",
        "quac",
        {
            "validation.jsonl": {
                "wikipedia_page_title": "w1",
                "section_title": "w2",
                "context": "w3",
                "questions": ["w4", "w5"],
                "answers": {"texts": [["w6"]]},
                "orig_answers": {"texts": ["w6", "w7"]},
            }
        },
        "sets/quac/validation.jsonl, row 1: found 2 questions, 2 orig_answers and 1 answers, accepted is one of each "
        "for each question",
    ),
    _row(
        "question of SQuADv2 with neither answers nor is_impossible",
        "squad_v2",
        {
            "dev-v2.0.json": {
                "data": [{"title": "w1", "paragraphs": [{"context": "w2", "qas": [{"question": "w3", "answers": []}]}]}]
            }
        },
        "sets/squad_v2/dev-v2.0.json, data 1, paragraphs 1, qas 1: found no answers, accepted are some, or "
        "is_impossible true",
    ),
    _row(
        "label of RTE's test split",
        "rte",
        {"validation.jsonl": _RTE | {"label": -1}},
        "sets/rte/validation.jsonl, row 1: label: found -1, accepted are 'entailment', 'not_entailment', 0, 1",
    ),
    _row(
        "pronoun of WSC that its text does not have",
        "wsc",
        {"val.jsonl": {"text": "w1 w2", "span1_text": "w1", "span2_text": "it", "span2_index": 1, "label": 1}},
        "sets/wsc/val.jsonl, row 1: span2_text: found 'it', accepted are words of the text",
    ),
    _row(
        "sentences of WMT15 without their translations",
        "wmt15_fr_en",
        {"newsdiscusstest2015-fren-src.fr": "w1\n"},
        "sets/wmt15_fr_en/newsdiscusstest2015-fren-ref.en: found no file, accepted is that of the translations of "
        "newsdiscusstest2015-fren-src.fr",
    ),
    _row(
        "article without a summary",
        "cnn_dm",
        {"test.jsonl": {"article": "w1", "id": "1"}},
        "sets/cnn_dm/test.jsonl, row 1: found 'article', 'id', accepted are article and highlights",
    ),
]
