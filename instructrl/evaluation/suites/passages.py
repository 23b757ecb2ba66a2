"""Files of DROP, QuAC and SQuADv2 as texts with their questions: as their authors publish them, or as rows of the set's
table on the Hugging Face hub."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from instructrl.evaluation.suites import metrics
from instructrl.evaluation.suites.layouts import (
    LayoutError,
    json_file,
    json_rows,
    list_at,
    object_at,
    rows_at,
    text_at,
    texts_at,
)

_NOT_THERE = "CANNOTANSWER"  # what QuAC's files have for an answer, and at the end of each text


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A question about a text. answer: that stands behind it in a prompt. references: what an answer is compared with;
    of DROP each line is a span. Both are empty where the text does not answer it."""

    question: str
    answer: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A text, which may have a title, and the questions about it."""

    text: str
    turns: tuple[Turn, ...]
    title: str = ""


# ---- DROP


def drop_file(path: Path) -> list[Passage]:
    """`drop_dataset_dev.json`: passages by name, each with its pairs of question and answer."""
    passages = []
    for name, value in json_file(path).items():
        place = f"{path}, {name}"
        row = object_at({name: value}, name, str(path))
        turns = tuple(_drop_turn(pair, where) for where, pair in rows_at(row, "qa_pairs", place))
        passages.append(_passage(text_at(row, "passage", place), turns, place))
    return _some(passages, path)


def _drop_turn(pair: Mapping[str, Any], place: str) -> Turn:
    given = [(f"{place}, answer", object_at(pair, "answer", place))]
    if "validated_answers" in pair:
        given += rows_at(pair, "validated_answers", place)
    answers = [spans for where, answer in given if (spans := _drop_spans(answer, where))]
    # The official script counts a question of which every answer is empty, which none is right for.
    references = tuple(dict.fromkeys("\n".join(spans) for spans in answers)) or ("",)
    answer = ", ".join(answers[0]) if answers else ""
    return Turn(question=text_at(pair, "question", place), answer=answer, references=references)


def _drop_spans(answer: Mapping[str, Any], place: str) -> list[str]:
    """A number, texts, or a date; the first of them that is not empty, none where all are."""
    number = answer.get("number", "")
    if isinstance(number, bool) or not isinstance(number, str | int | float):
        raise LayoutError(f"{place}: number: found {repr(number)[:60]}, accepted is a number or a text")
    if str(number).strip():
        return [str(number)]
    if spans := (texts_at(answer, "spans", place) if "spans" in answer else []):
        return spans
    date = object_at(answer, "date", place)
    parts = [str(date[part]) for part in ("day", "month", "year") if date.get(part)]
    return [" ".join(parts)] if parts else []


def drop_rows(path: Path) -> list[Passage]:
    """The hub's `ucinlp/drop`: a question a row. Where it is not told which spans are one answer, each is one."""
    return _by_text(path, "passage", lambda row, place: _drop_row(row, place, joined=False))


def drop_training_rows(path: Path) -> list[Passage]:
    """The same, of the split in which all spans of a row are one answer."""
    return _by_text(path, "passage", lambda row, place: _drop_row(row, place, joined=True))


def _drop_row(row: Mapping[str, Any], place: str, *, joined: bool) -> Turn:
    spans = texts_at(object_at(row, "answers_spans", place), "spans", f"{place}, answers_spans")
    if not spans:
        raise LayoutError(f"{place}: answers_spans: found no spans, accepted is at least one")
    return Turn(
        question=text_at(row, "question", place),
        answer=", ".join(spans) if joined else spans[0],
        references=("\n".join(spans),) if joined else tuple(dict.fromkeys(spans)),
    )


# ---- QuAC


def quac_file(path: Path) -> list[Passage]:
    """`val_v0.2.json`: pages, each with its dialogues."""
    passages = []
    for page, value in rows_at(json_file(path), "data", str(path)):
        title = f"{text_at(value, 'title', page)} - {text_at(value, 'section_title', page)}"
        for place, row in rows_at(value, "paragraphs", page):
            turns = tuple(_quac_file_turn(turn, where) for where, turn in rows_at(row, "qas", place))
            passages.append(_passage(_without_marker(text_at(row, "context", place)), turns, place, title))
    return _some(passages, path)


def _quac_file_turn(turn: Mapping[str, Any], place: str) -> Turn:
    texts = [text_at(answer, "text", where) for where, answer in rows_at(turn, "answers", place)]
    gold = object_at(turn, "orig_answer", place)
    return _quac_turn(text_at(turn, "question", place), text_at(gold, "text", f"{place}, orig_answer"), texts, place)


def quac_rows(path: Path) -> list[Passage]:
    """The hub's `allenai/quac`: a dialogue a row."""
    passages = []
    for place, row in json_rows(path):
        title = f"{text_at(row, 'wikipedia_page_title', place)} - {text_at(row, 'section_title', place)}"
        questions = texts_at(row, "questions", place)
        golds = texts_at(object_at(row, "orig_answers", place), "texts", f"{place}, orig_answers")
        given = list_at(object_at(row, "answers", place), "texts", f"{place}, answers")
        if not len(questions) == len(golds) == len(given):
            found = f"{len(questions)} questions, {len(golds)} orig_answers and {len(given)} answers"
            raise LayoutError(f"{place}: found {found}, accepted is one of each for each question")
        turns = tuple(
            _quac_turn(question, gold, texts_at({"texts": texts}, "texts", f"{place}, answers {i}"), place)
            for i, (question, gold, texts) in enumerate(zip(questions, golds, given, strict=True), 1)
        )
        passages.append(_passage(_without_marker(text_at(row, "context", place)), turns, place, title))
    return _some(passages, path)


def _quac_turn(question: str, gold: str, texts: Sequence[str], place: str) -> Turn:
    """Where as many people as not found no answer there is none; else theirs do not count (QuAC's official script)."""
    if not texts:
        raise LayoutError(f"{place}: answers: found none, accepted is at least one")
    answers = tuple(text for text in texts if text != _NOT_THERE)
    return Turn(
        question=question,
        answer="" if gold == _NOT_THERE else gold,
        references=answers if 2 * len(answers) > len(texts) else (),
    )


def _without_marker(text: str) -> str:
    return text.removesuffix(_NOT_THERE).rstrip()


# ---- SQuADv2


def squad_file(path: Path) -> list[Passage]:
    """`dev-v2.0.json`: pages, each with its paragraphs."""
    passages = []
    for page, value in rows_at(json_file(path), "data", str(path)):
        title = text_at(value, "title", page)
        for place, row in rows_at(value, "paragraphs", page):
            turns = tuple(_squad_file_turn(turn, where) for where, turn in rows_at(row, "qas", place))
            passages.append(_passage(text_at(row, "context", place), turns, place, title))
    return _some(passages, path)


def _squad_file_turn(turn: Mapping[str, Any], place: str) -> Turn:
    texts = [text_at(answer, "text", where) for where, answer in rows_at(turn, "answers", place)]
    if not texts and turn.get("is_impossible") is not True:
        raise LayoutError(f"{place}: found no answers, accepted are some, or is_impossible true")
    return _squad_turn(text_at(turn, "question", place), texts)


def squad_rows(path: Path) -> list[Passage]:
    """The hub's `rajpurkar/squad_v2`: a question a row."""

    def turn(row: Mapping[str, Any], place: str) -> Turn:
        texts = texts_at(object_at(row, "answers", place), "text", f"{place}, answers")
        return _squad_turn(text_at(row, "question", place), texts)

    return _by_text(path, "context", turn, title="title")


def _squad_turn(question: str, texts: Sequence[str]) -> Turn:
    # As the official script does: an answer of which nothing is left when normalised is none.
    references = tuple(text for text in texts if metrics.normalised(text))
    return Turn(question=question, answer=references[0] if references else "", references=references)


# ---- all three


def _passage(text: str, turns: tuple[Turn, ...], place: str, title: str = "") -> Passage:
    if not turns:
        raise LayoutError(f"{place}: found no questions, accepted is at least one")
    return Passage(text=text, turns=turns, title=title)


def _some(passages: list[Passage], path: Path) -> list[Passage]:
    if not passages:
        raise LayoutError(f"{path}: found no texts, accepted is at least one")
    return passages


def _by_text(
    path: Path, text: str, turn: Callable[[Mapping[str, Any], str], Turn], *, title: str = ""
) -> list[Passage]:
    """Rows of which those that follow each other and have the same text are its questions."""
    rows = [
        (text_at(row, text, place), text_at(row, title, place) if title else "", turn(row, place))
        for place, row in json_rows(path)
    ]
    return [
        Passage(text=key[0], title=key[1], turns=tuple(row[2] for row in same))
        for key, same in groupby(rows, key=lambda row: row[:2])
    ]
