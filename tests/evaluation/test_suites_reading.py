"""DROP, QuAC and SQuADv2: their files in both layouts, whole prompts, and scores worked out by hand."""

import json

import pytest
from suite_files import drop, drop_rows, lines, quac, quac_rows, says, squad, squad_rows, tasks, write

from instructrl.evaluation.suites.layouts import LayoutError

AUTHORS = {
    "drop": {"drop_dataset_dev.json": drop("dev"), "drop_dataset_train.json": drop("train")},
    "quac": {"val_v0.2.json": quac("dev"), "train_v0.2.json": quac("train")},
    "squad_v2": {"dev-v2.0.json": squad("dev"), "train-v2.0.json": squad("train")},
}
HUB = {
    "drop": {"validation.jsonl": drop_rows("dev"), "train.jsonl": drop_rows("train")},
    "quac": {"validation.jsonl": quac_rows("dev"), "train.jsonl": quac_rows("train")},
    "squad_v2": {"validation.jsonl": squad_rows("dev"), "train.jsonl": squad_rows("train")},
}
ZERO = {
    "drop": "Answer each question using information in the preceding passage.\n\n"
    "Passage: dev pear text.\nQuestion: Who or when, pear?\nAnswer:",
    "quac": "Answer each question using information in the preceding background paragraph.\n"
    'If there is not enough information provided, answer with "I don\'t know."\n\n'
    "TITLE: Pears - History\nPARAGRAPH: dev pear text.\n\n"
    "Q: What about the pear?\nA: pear trees\nQ: When was that?\nA:",
    "squad_v2": "Answer each question using information in the preceding background paragraph.\n"
    'If there is not enough information provided, answer with "Not in background."\n\n'
    "Title: Pear_tree\nBackground: dev pear text.\n\n"
    "Q: How many pears?\nA: 1 pears\nQ: Whose are they?\nA:",
}
FEW = {
    "drop": "Answer each question using information in the preceding passage.\n\n"
    "Passage: train fig text.\nQuestion: Who or when, fig?\nAnswer: Ann, Bob\n\n"
    "Passage: train apple text.\nQuestion: Who or when, apple?\nAnswer: May 1900\n\n"
    "Passage: train plum text.\nQuestion: Who or when, plum?\nAnswer: May 1902\n\n"
    "Passage: train lemon text.\nQuestion: Who or when, lemon?\nAnswer: May 1904\n\n"
    "Passage: dev apple text.\nQuestion: How many apple trees?\nAnswer:",
    "quac": "Answer each question using information in the preceding background paragraph.\n"
    'If there is not enough information provided, answer with "I don\'t know."\n\n'
    "TITLE: Figs - History\nPARAGRAPH: train fig text.\n\n"
    "Q: What about the fig?\nA: fig trees\nQ: When was that?\nA: I don't know.\n\n"
    "TITLE: Pears - History\nPARAGRAPH: train pear text.\n\n"
    "Q: What about the pear?\nA: pear trees\nQ: When was that?\nA: I don't know.\n\n"
    "TITLE: Apples - History\nPARAGRAPH: dev apple text.\n\n"
    "Q: What about the apple?\nA:",
    "squad_v2": "Answer each question using information in the preceding background paragraph.\n"
    'If there is not enough information provided, answer with "Not in background."\n\n'
    "Title: Apple_tree\nBackground: train apple text.\n\n"
    "Q: How many apples?\nA: 0 apples\nQ: Whose are they?\nA: Not in background.\n\n"
    "Title: Pear_tree\nBackground: train pear text.\n\n"
    "Q: How many pears?\nA: 1 pears\nQ: Whose are they?\nA: Not in background.\n\n"
    "Title: Plum_tree\nBackground: train plum text.\n\n"
    "Q: How many plums?\nA: 2 plums\nQ: Whose are they?\nA: Not in background.\n\n"
    "Title: Lemon_tree\nBackground: train lemon text.\n\n"
    "Q: How many lemons?\nA: 4 lemons\nQ: Whose are they?\nA: Not in background.\n\n"
    "Title: Apple_tree\nBackground: dev apple text.\n\n"
    "Q: How many apples?\nA:",
}
SHOTS = {"drop": 4, "quac": 2, "squad_v2": 4}


def made(folder, files):
    for suite, contents in files.items():
        texts = {n: lines(value) if isinstance(value, list) else json.dumps(value) for n, value in contents.items()}
        write(folder / suite, texts)
    return folder


@pytest.mark.parametrize("suite", ZERO)
@pytest.mark.parametrize("files", [AUTHORS, HUB], ids=["authors", "hub"])
def test_prompts(tmp_path, suite, files):
    zero, few = tasks(suite, made(tmp_path, files), shots="both")
    assert (zero.shots, few.shots) == (0, SHOTS[suite])
    assert zero.items[3].context == ZERO[suite]
    assert few.items[0].context == FEW[suite]
    assert len(zero.items) == len(few.items) == 10
    assert zero.stop == ("\n",)
    assert zero.is_written


@pytest.mark.parametrize("suite", ["quac", "squad_v2"])
def test_both_layouts_say_the_same(tmp_path, suite):
    authors, hub = (tasks(suite, made(tmp_path / name, files))[0] for name, files in (("a", AUTHORS), ("h", HUB)))
    assert authors.items == hub.items


def test_references_of_drop(tmp_path):
    """A number of each annotator, a date in words, and spans that are one answer; the hub's table has spans alone."""
    (authors,) = tasks("drop", made(tmp_path / "authors", AUTHORS))
    assert [item.references for item in authors.items[:4]] == [("2", "3"), ("May 1900",), ("3", "4"), ("Ann\nBob",)]
    (hub,) = tasks("drop", made(tmp_path / "hub", HUB))
    assert [item.references for item in hub.items[:4]] == [("2", "3"), ("May 1900",), ("3", "4"), ("Ann", "Bob")]


def test_references_of_quac(tmp_path):
    """People who find no answer do not count where most of them find one; where half find none, there is none."""
    (task,) = tasks("quac", made(tmp_path, AUTHORS))
    assert [(item.references, item.group) for item in task.items[:4]] == [
        (("apple trees", "the apple trees", "x"), "answerable"),
        (("in 1900",), "answerable"),
        (("pear trees", "the pear trees", "x"), "answerable"),
        (("I don't know.",), "not answerable"),
    ]
    assert len({item.cluster for item in task.items}) == 5


def measured(task, *texts):
    return {(row.metric, row.group): row for row in task.measures(task.items[: len(texts)], says(*texts))}


def test_scores_of_squad(tmp_path):
    """Of 4 answers: `0 apples here` against `the 0 apples in all` and `0 apples` is 2 * 2 / (3 + 2) = 0.8; the sentence
    where there is no answer 1; silence where there is one, and where there is none, 0."""
    (task,) = tasks("squad_v2", made(tmp_path, AUTHORS))
    found = measured(task, " 0 apples here", "not in the background", "", "")
    assert found["F1", ""].value == pytest.approx(100 * 1.8 / 4, rel=1e-12)
    assert found["F1", "answerable"].value == pytest.approx(40, rel=1e-12)
    assert found["F1", "not answerable"].value == 50
    assert found["exact match", ""].value == 25
    assert found["F1", ""].num_items == 4
    # sums of two texts 1.8 and 0, each of 2: residuals 0.9 and -0.9, and sqrt(2 * 1.62) / 4 as standard error
    assert found["F1", ""].high == pytest.approx(100 * min(1, 0.45 + 1.959963984540054 * (2 * 1.62) ** 0.5 / 4))
    # the sentence is no answer to what has one, though it shares a word with it
    assert measured(task, "Not in background.")["F1", ""].value == 0


def test_scores_of_quac(tmp_path):
    """`apple trees` against all three references is 1; of 2 at a time, where it is left out, `the apple trees` is as
    good. People: 1, 1 and 0, so 2 / 3, above 0.4."""
    (task,) = tasks("quac", made(tmp_path, AUTHORS))
    found = measured(task, "Apple trees.", "I don\N{RIGHT SINGLE QUOTATION MARK}t know", "trees", "I don't know.")
    # third: 2 * 1 / (1 + 2) against either; left out one by one always 2 / 3
    assert found["F1", ""].value == pytest.approx(100 * (1 + 0 + 2 / 3 + 1) / 4, rel=1e-12)
    assert found["QuAC F1", ""].value == pytest.approx(100 * (1 + 0 + 2 / 3 + 1) / 4, rel=1e-12)


def test_scores_of_drop(tmp_path):
    """Against `Ann` and `Bob`: as one bag 2 * 1 / (1 + 2), as two spans the half. A number of another value is 0."""
    (task,) = tasks("drop", made(tmp_path, AUTHORS))
    found = measured(task, "3.0", "1900", "5", "Bob")
    assert found["F1", ""].value == pytest.approx(100 * (0 + 2 / 3 + 0 + 2 / 3) / 4, rel=1e-12)
    assert found["DROP F1", ""].value == pytest.approx(100 * (1 + 0.67 + 0 + 0.5) / 4, rel=1e-12)


@pytest.mark.parametrize("suite", ZERO)
def test_examples_are_never_evaluated(tmp_path, suite):
    """A training file in which the evaluated texts stand too: they are passed over, and too few are told."""
    names = list(AUTHORS[suite])
    folder = made(tmp_path, {suite: {names[0]: AUTHORS[suite][names[0]], names[1]: AUTHORS[suite][names[0]]}})
    with pytest.raises(LayoutError, match=f"^{suite}: found 0 examples that are not evaluated themselves, accepted"):
        tasks(suite, folder, shots="few")


@pytest.mark.parametrize("suite", ZERO)
def test_examples_need_a_training_file(tmp_path, suite):
    evaluated, training = AUTHORS[suite]
    folder = made(tmp_path, {suite: {evaluated: AUTHORS[suite][evaluated]}})
    assert [task.shots for task in tasks(suite, folder)] == [0]
    with pytest.raises(
        LayoutError, match=rf"{suite}: found no {training} or train.jsonl, accepted is one of them, whi"
    ):
        tasks(suite, folder, shots="both")


@pytest.mark.parametrize("suite", ZERO)
def test_a_set_that_is_not_there(tmp_path, suite):
    with pytest.raises(
        LayoutError, match=rf"^the folder of {suite}: found no {next(iter(AUTHORS[suite]))} or validation.jsonl, acc"
    ):
        tasks(suite, tmp_path)


def changed(value, path, new):
    """A copy of nested JSON with another value at a path; None removes it."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    if copy[path[0]] is None:
        del copy[path[0]]
    return copy


PAIR = ("dev_1", "qa_pairs", 0)
DIALOGUE = ("data", 2, "paragraphs", 0, "qas", 1)
BAD_AUTHORS = [
    ("drop", ("dev_1", "passage"), None, "dev_1: passage: found nothing, accepted is a text"),
    ("drop", ("dev_1", "qa_pairs"), [], "dev_1: found no questions, accepted is at least one"),
    ("drop", ("dev_1",), 3, "dev_1: found 3, accepted is a JSON object"),
    ("drop", (*PAIR, "answer"), None, "dev_1, qa_pairs 1: answer: found nothing, accepted is a JSON object"),
    ("drop", (*PAIR, "answer", "number"), [4], "qa_pairs 1, answer: number: found [4], accepted is a number or a text"),
    ("drop", (*PAIR, "question"), 4, "dev_1, qa_pairs 1: question: found 4, accepted is a text"),
    ("quac", ("data",), {}, "data: found {}, accepted is a list"),
    ("quac", ("data", 2, "section_title"), None, "data 3: section_title: found nothing, accepted is a text"),
    ("quac", (*DIALOGUE, "answers"), [], "data 3, paragraphs 1, qas 2: answers: found none, accepted is at least one"),
    ("quac", (*DIALOGUE, "answers"), ["in May"], "qas 2: answers 1: found 'in May', accepted is a JSON object"),
    ("quac", (*DIALOGUE, "orig_answer"), None, "qas 2: orig_answer: found nothing, accepted is a JSON object"),
    ("squad_v2", ("data",), [], "found no texts, accepted is at least one"),
    ("squad_v2", (*DIALOGUE, "is_impossible"), None, "qas 2: found no answers, accepted are some, or is_impossible tr"),
    ("squad_v2", ("data", 2, "paragraphs", 0, "context"), "", "data 3, paragraphs 1: context: found '', accepted is a"),
]


@pytest.mark.parametrize(("suite", "path", "new", "message"), BAD_AUTHORS)
def test_another_layout_of_the_authors(tmp_path, suite, path, new, message):
    name = next(iter(AUTHORS[suite]))
    with pytest.raises(LayoutError) as caught:
        tasks(suite, made(tmp_path, {suite: {name: changed(AUTHORS[suite][name], path, new)}}))
    assert str(tmp_path / suite / name) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_HUB = [
    ("drop", ("answers_spans", "spans"), [], "row 3: answers_spans: found no spans, accepted is at least one"),
    ("drop", ("answers_spans",), ["4"], "row 3: answers_spans: found ['4'], accepted is a JSON object"),
    ("quac", ("questions",), ["Why?"], "row 3: found 1 questions, 2 orig_answers and 2 answers, accepted is one of ea"),
    ("quac", ("answers", "texts"), [["a"], []], "row 3: answers: found none, accepted is at least one"),
    ("squad_v2", ("answers",), None, "row 3: answers: found nothing, accepted is a JSON object"),
    ("squad_v2", ("title",), None, "row 3: title: found nothing, accepted is a text"),
]


@pytest.mark.parametrize(("suite", "path", "new", "message"), BAD_HUB)
def test_another_layout_of_the_hub(tmp_path, suite, path, new, message):
    rows = changed(HUB[suite]["validation.jsonl"], (2,), changed(HUB[suite]["validation.jsonl"][2], path, new))
    with pytest.raises(LayoutError) as caught:
        tasks(suite, made(tmp_path, {suite: {"validation.jsonl": rows}}))
    assert f"validation.jsonl, {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_json(tmp_path):
    for text, found in (("[]", "found list"), ("{", "found no JSON"), ("[" * 100_000, "found no JSON")):
        write(tmp_path / "drop", {"drop_dataset_dev.json": text})
        with pytest.raises(LayoutError, match=found):
            tasks("drop", tmp_path)
