"""HellaSwag, RTE, SST and WSC: their files in each layout, whole prompts, and scores worked out by hand."""

import pytest
from suite_files import hellaswag, lines, rte, says, sst, table, tasks, write, wsc

from instructrl.evaluation.suites.choices import names
from instructrl.evaluation.suites.layouts import LayoutError
from instructrl.rollout.options import Likelihoods


def rows_of_glue(rows):
    return [{"index": row["idx"], "sentence1": row["premise"], "sentence2": row["hypothesis"], **row} for row in rows]


def numbered(rows, labels):
    return [{**row, "label": labels.index(row["label"])} for row in rows]


def flat(rows):
    return [{**row["target"], "text": row["text"], "idx": row["idx"], "label": int(row["label"])} for row in rows]


RTE_LABELS = ["entailment", "not_entailment"]
GLUE = ("index", "sentence1", "sentence2", "label")


def layouts(kind, count):
    """Files of a split by suite and layout. kind: dev or train."""
    val, validation = ("val", "validation") if kind == "dev" else ("train", "train")
    swag, entailments, reviews, pronouns = (make(kind, count) for make in (hellaswag, rte, sst, wsc))
    return {
        ("hellaswag", "authors"): {f"hellaswag_{val}.jsonl": lines(swag)},
        ("hellaswag", "hub"): {f"{validation}.jsonl": lines([row | {"label": str(row["label"])} for row in swag])},
        ("rte", "authors"): {f"{val}.jsonl": lines(entailments)},
        ("rte", "glue"): {f"{kind}.tsv": table(GLUE, rows_of_glue(entailments))},
        ("rte", "hub"): {f"{validation}.jsonl": lines(rows_of_glue(numbered(entailments, RTE_LABELS)))},
        ("sst", "authors"): {f"{kind}.tsv": table(("sentence", "label"), reviews)},
        ("sst", "hub"): {f"{validation}.jsonl": lines(reviews)},
        ("wsc", "authors"): {f"{val}.jsonl": lines(pronouns)},
        ("wsc", "hub"): {f"{validation}.jsonl": lines(flat(pronouns))},
    }


DEV, TRAIN = layouts("dev", 10), layouts("train", 40)
ZERO = {
    "hellaswag": "Complete each independent paragraph using common-sense reasoning.\n\n"
    "Picking devs: A dev 1 hangs high. The man",
    "rte": "Passage: dev 1 is ripe.\nQuestion: From this passage can one reasonably conclude that dev 1 is red?\n"
    "Answer:",
    "sst": "For each snippet of text, label the sentiment of the text as positive or negative.\n\n"
    "Text: a dev of 1 films\nLabel:",
    "wsc": "Final Exam with Answer Key\nInstructions: Please carefully read the following passages. For each "
    "passage, you must identify which noun the pronoun marked in *bold* refers to.\n=====\n"
    "Passage: Ann saw the tree dev 0 *it*, which was tall.\n"
    'Question: In the passage above, what does the pronoun "*it*" refer to?\nAnswer:',
}
OPTIONS = {
    "hellaswag": ((" eats it.", " sees it.", " paints it.", " sells it."), (1,)),
    "rte": ((" Yes", " No"), (1,)),
    "sst": ((" positive", " negative"), (0,)),
    "wsc": ((), ()),
}
# Each example, of the number of its row and its answer; which rows are drawn; the answers by number.
EXAMPLES = {
    "hellaswag": (
        "Picking trains: A train {} hangs high. The man {} it.",
        (17, 22, 31, 33, 24, 11, 12, 7, 20, 34, 10, 30, 0, 6, 5),
        ("eats", "sees", "paints", "sells"),
    ),
    "rte": (
        "Passage: train {0} is ripe.\nQuestion: From this passage can one reasonably conclude that train {0} is red?\n"
        "Answer: {1}",
        (6, 4, 34, 24, 8, 28, 25, 19, 1, 21, 18, 12, 3, 10, 31),
        ("Yes", "No"),
    ),
    "sst": (
        "Text: a train of {} films\nLabel: {}",
        (24, 17, 39, 33, 2, 14, 27, 22, 19, 18, 8, 38, 3, 31, 1),
        ("negative", "positive"),
    ),
    "wsc": (
        "Passage: Ann saw the tree train {} *it*, which was tall.\n"
        'Question: In the passage above, what does the pronoun "*it*" refer to?\nAnswer: {}',
        (7, 4, 17, 15, 16, 18, 6, 5, 19, 10, 3, 0, 12, 11, 14),
        ("the tree",),
    ),
}


@pytest.mark.parametrize(("suite", "layout"), DEV)
def test_prompts(tmp_path, suite, layout):
    write(tmp_path / suite, DEV[suite, layout] | TRAIN[suite, layout])
    zero, few = tasks(suite, tmp_path, shots="both")
    item = zero.items[1]
    assert item.context == ZERO[suite]
    assert (item.options, item.right) == OPTIONS[suite]
    assert (len(zero.items), len(few.items), zero.shots, few.shots) == (10, 10, 0, 15)
    form, drawn, answers = EXAMPLES[suite]
    shown = "\n\n".join(form.format(i, answers[i % len(answers)]) for i in drawn)
    start = ZERO[suite].rindex({"hellaswag": "Picking", "sst": "Text:"}.get(suite, "Passage:"))
    assert few.items[1].context == f"{ZERO[suite][:start]}{shown}\n\n{ZERO[suite][start:]}"


@pytest.mark.parametrize("suite", ["hellaswag", "rte", "sst", "wsc"])
def test_all_layouts_say_the_same(tmp_path, suite):
    given = [files for (name, _), files in DEV.items() if name == suite]
    found = []
    for number, files in enumerate(given):
        write(tmp_path / f"{number}" / suite, files)
        found += tasks(suite, tmp_path / f"{number}")
    assert all(task.items == found[0].items for task in found)


def test_accuracy_is_that_of_the_mean_over_tokens(tmp_path):
    """Of 4 endings that of the highest mean; rows 0 and 1 are right by it, row 2 by the total alone."""
    write(tmp_path / "hellaswag", DEV["hellaswag", "authors"])
    (task,) = tasks("hellaswag", tmp_path)
    answers = [
        Likelihoods(totals=(-4.0, -3.0, -9.0, -9.0), num_tokens=(4, 2, 3, 3)),
        Likelihoods(totals=(-9.0, -4.0, -3.0, -9.0), num_tokens=(3, 4, 1, 3)),
        Likelihoods(totals=(-9.0, -4.0, -3.0, -9.0), num_tokens=(3, 4, 1, 3)),
    ]
    (found,) = task.measures(task.items[:3], answers)
    assert (found.metric, found.value, found.unit) == ("accuracy", pytest.approx(2 / 3), "share")


@pytest.mark.parametrize(
    ("answer", "noun", "named"),
    [
        (" The tree.", "the tree", True),
        ("It refers to the old Tree!", "the old tree", True),
        ("tree", "the old tree", True),  # the other way round
        ("trees", "tree", False),  # whole words
        ("Ann", "the tree", False),
        ("", "the tree", False),
        ("the", "the tree", False),  # nothing is left of it
    ],
)
def test_naming_a_noun(answer, noun, named):
    assert names(answer, noun) is named


def test_scores_of_wsc(tmp_path):
    """Named where it is right and not named where it is wrong: 3 of 4, in the clusters of two texts 2 and 1."""
    write(tmp_path / "wsc", DEV["wsc", "authors"])
    (task,) = tasks("wsc", tmp_path)
    assert [(item.references, bool(item.right)) for item in task.items[:2]] == [
        (("the tree",), True),
        (("Ann",), False),
    ]
    (found,) = task.measures(task.items[:4], says("the tree", "it is the tree", "tree", "Ann"))
    assert (found.metric, found.value, found.num_items) == ("accuracy", 0.75, 4)
    # residuals 2 - 1.5 and 1 - 1.5: squares 0.5, times 2, root, over 4
    assert found.low == pytest.approx(0.75 - 1.959963984540054 / 4, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "pronoun", "position", "marked"),
    [
        ("She said: (it, there)", "it", 2, "She said: (*it*, there)"),
        ("it fell and it broke", "it", 3, "it fell and *it* broke"),
        ("it fell and it broke", "it", 4, "it fell and *it* broke"),  # the number of a neighbour
        ("he gave her his own hat", "his own", 3, "he gave her *his own* hat"),
        ("It with 'his' hat", "his", 2, "It with '*his*' hat"),
    ],
)
def test_the_pronoun_is_marked(tmp_path, text, pronoun, position, marked):
    target = {"span1_text": "Ann", "span1_index": 0, "span2_text": pronoun, "span2_index": position}
    write(tmp_path / "wsc", {"val.jsonl": lines([{"text": text, "target": target, "label": True}])})
    (task,) = tasks("wsc", tmp_path)
    assert f'Passage: {marked}\nQuestion: In the passage above, what does the pronoun "*{pronoun}*" refer to?' in (
        task.items[0].context
    )


BAD = [
    ("hellaswag", "endings", ["a", "b"], "row 3: endings: found 2, accepted are 4"),
    ("hellaswag", "label", 4, "row 3: label: found 4, accepted are 0, 1, 2, 3, '0', '1', '2', '3'"),
    ("hellaswag", "activity_label", None, "row 3: activity_label: found nothing, accepted is a text"),
    ("rte", "label", -1, "row 3: label: found -1, accepted are 'entailment', 'not_entailment', 0, 1"),
    ("rte", "label", True, "row 3: label: found True, accepted are 'entailment', 'not_entailment', 0, 1"),
    ("hellaswag", "ctx", "half \ud83d", "row 3: ctx: found 'half \\ud83d', accepted is a text"),
    ("wsc", "target", {"span1_text": "a", "span2_text": "it", "span2_index": True}, "span2_index: found True, acc"),
    ("rte", "label", ["entailment"], "row 3: label: found ['entailment'], accepted are 'entailment', 'not_ent"),
    ("rte", "premise", "", "row 3: premise: found '', accepted is a text"),
    ("wsc", "target", None, "row 3: span1_text: found nothing, accepted is a text"),
    ("wsc", "target", {"span1_text": "a", "span2_text": "he", "span2_index": 1}, "span2_text: found 'he', accepted ar"),
    ("wsc", "target", {"span1_text": "a", "span2_text": "it"}, "target: span2_index: found None, accepted is the n"),
    ("wsc", "label", "true", "row 3: label: found 'true', accepted are False, True"),
]


@pytest.mark.parametrize(("suite", "column", "value", "message"), BAD)
def test_another_layout(tmp_path, suite, column, value, message):
    name = {"hellaswag": "hellaswag_val.jsonl"}.get(suite, "val.jsonl")
    rows = {"hellaswag": hellaswag, "rte": rte, "wsc": wsc}[suite]("dev", 4)
    rows[2] = {key: old for key, old in (rows[2] | {column: value}).items() if old is not None}
    write(tmp_path / suite, {name: lines(rows)})
    with pytest.raises(LayoutError) as caught:
        tasks(suite, tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path / suite / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_layout_of_a_table(tmp_path):
    write(tmp_path / "sst", {"dev.tsv": "text\tlabel\nfine\t1\n"})
    with pytest.raises(LayoutError, match=r"found 'text', 'label', accepted is a header with sentence, label"):
        tasks("sst", tmp_path)
    write(tmp_path / "sst", {"dev.tsv": "sentence\tlabel\nfine\tgood\n"})
    with pytest.raises(LayoutError, match=r"row 1: label: found 'good', accepted are '0', '1', 0, 1"):
        tasks("sst", tmp_path)


def test_too_few_examples(tmp_path):
    """Of 20 rows of WSC ten are right, two rows a text."""
    write(tmp_path / "wsc", {"val.jsonl": lines(wsc("dev", 4)), "train.jsonl": lines(wsc("train", 20))})
    with pytest.raises(LayoutError, match=r"^wsc: found 10 examples that are not evaluated themselves, accepted are a"):
        tasks("wsc", tmp_path, shots="few")


@pytest.mark.parametrize("suite", ["hellaswag", "rte", "sst", "wsc"])
def test_examples_need_a_training_file(tmp_path, suite):
    write(tmp_path / suite, DEV[suite, "authors"])
    with pytest.raises(LayoutError, match=rf"{suite}: found no .*train.*, accepted is one of them, which examples"):
        tasks(suite, tmp_path, shots="few")
