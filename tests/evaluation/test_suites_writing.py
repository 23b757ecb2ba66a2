"""WMT15, CNN/DailyMail and TL;DR: their files in each layout, whole prompts, BLEU and ROUGE-L worked out by hand."""

import math
import sys

import pytest
from suite_files import cnn_dm, english, french, lines, says, tasks, tldr, wmt15, wmt15_rows, write

from instructrl.evaluation.suites import metrics
from instructrl.evaluation.suites.layouts import LayoutError
from instructrl.evaluation.suites.protocol import Item

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")


def plain(kind, count):
    names = (f"newsdiscuss{kind}2015-fren-src.fr", f"newsdiscuss{kind}2015-fren-ref.en")
    return {names[0]: "\n".join(french(kind, count)) + "\n", names[1]: "\n".join(english(kind, count)) + "\n"}


WMT15 = {
    "sgm": wmt15("test", 10) | wmt15("dev", 30),
    "plain": plain("test", 10) | plain("dev", 30),
    "hub": {"test.jsonl": lines(wmt15_rows("test", 10)), "validation.jsonl": lines(wmt15_rows("dev", 30))},
}
DRAWN = (9, 17, 11, 19, 25, 27, 0, 13, 14, 23, 15, 8, 16, 22, 29)


@pytest.mark.parametrize("layout", WMT15)
def test_prompts_of_translation(tmp_path, layout):
    write(tmp_path / "wmt15_fr_en", WMT15[layout])
    zero, few = tasks("wmt15_fr_en", tmp_path, shots="both")
    begin, end = (
        "Translate the following sentences from French into English.\n\n",
        "French: Le test & 2 pommes.\nEnglish:",
    )
    assert zero.items[2].context == begin + end
    assert zero.items[2].references == ("The test & 2 apples.",)
    shown = "".join(f"French: Le dev & {i} pommes.\nEnglish: The dev & {i} apples.\n\n" for i in DRAWN)
    assert few.items[2].context == begin + shown + end
    assert (few.shots, len(few.items)) == (15, 10)


def test_prompts_of_summaries(tmp_path):
    """Neither set has examples, whatever is asked for."""
    write(tmp_path / "cnn_dm", {"test.jsonl": lines(cnn_dm())})
    (task,) = tasks("cnn_dm", tmp_path, shots="both")
    assert task.items[3].context == "News 3.\n\nMore.\n\nTL;DR:"
    assert task.items[3].references == ("Line 3.\nEnd.",)
    assert (task.shots, len(task.items), task.stop) == (0, 10, ("\n",))
    write(tmp_path / "tldr", {"test.jsonl": lines(tldr())})
    (task,) = tasks("tldr", tmp_path, shots="few")
    assert task.items[3].context == "I ate 3.\n\nTL;DR:"
    assert (task.items[3].references, task.shots) == (("3.",), 0)


@pytest.mark.parametrize(
    "row",
    [
        {"content": "I ate.", "summary": "Ate."},
        {"prompt": "I ate.\n\nTL;DR:", "completion": " Ate."},
        {"prompt": "I ate.\nTL;DR:", "label": "Ate."},
    ],
)
def test_other_columns_of_posts(tmp_path, row):
    write(tmp_path / "tldr", {"valid.jsonl": lines([row])})
    (task,) = tasks("tldr", tmp_path)
    assert (task.items[0].context, task.items[0].references) == ("I ate.\n\nTL;DR:", ("Ate.",))


def asked(*references):
    return [Item(context="", references=(text,)) for text in references]


def test_bleu_by_hand():
    """`the cat sat on it` against `the cat sat on mats`, and one that is the same: 10 of 11 tokens, 8 of 9 pairs."""
    (found,) = metrics.bleu(asked("the cat sat on mats", "a b c d e f"), says(" the cat sat on it", "a b c d e f"))
    # n-grams in common: 4 + 6, 3 + 5, 2 + 4, 1 + 3; written: 5 + 6, 4 + 5, 3 + 4, 2 + 3; as long as the references
    product = (10 / 11) * (8 / 9) * (6 / 7) * (4 / 5)
    assert found.value == pytest.approx(100 * product**0.25, rel=1e-12)
    assert (found.metric, found.unit, found.num_items) == ("BLEU", "points", 2)
    assert found.low <= found.value <= found.high == 100


def test_bleu_of_what_is_too_short():
    """Four of six words: all n-grams are right, and the penalty for brevity is exp(1 - 6 / 4)."""
    (found,) = metrics.bleu(asked("a b c d e f"), says("a b c d"))
    assert found.value == pytest.approx(100 * math.exp(-0.5), rel=1e-12)


def test_bleu_counts_over_the_corpus():
    """Not the mean of sentences: an empty answer leaves the n-grams as they are, and costs brevity."""
    (found,) = metrics.bleu(asked("a b c d", "e f g h"), says("a b c d", ""))
    assert found.value == pytest.approx(100 * math.exp(1 - 8 / 4), rel=1e-12)


def test_bleu_splits_as_13a():
    """The full stop is a token of its own, so that 4 of 5 tokens are common; case counts."""
    (found,) = metrics.bleu(asked("a b c d."), says("a b c d!"))
    assert found.value == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25, rel=1e-12)
    (found,) = metrics.bleu(asked("a b c d"), says("A B C D"))
    assert found.value == 0


def test_rouge_l_by_hand():
    """`the cats sat there` and `the cat lay there today`: the, cat and there in this order, of 4 and 5 tokens."""
    items = asked("the cat lay there today", "one two", "one two")
    (found,) = metrics.rouge_l(items, says("The cats sat there.", "one two", "three"))
    values = [2 * 3 / (4 + 5), 1, 0]
    mean = sum(values) / 3
    assert (found.metric, found.unit, found.num_items) == ("ROUGE-L", "share", 3)
    assert found.value == pytest.approx(mean, rel=1e-12)
    assert (found.low, found.high) == (0, 1)  # the interval of three such numbers is wider than what they can be
    (found,) = metrics.rouge_l(asked("one two three", "one two three four"), says("one two", "one two"))
    deviation = (4 / 5 - 4 / 6) / 2
    assert found.high == pytest.approx((4 / 5 + 4 / 6) / 2 + 1.959963984540054 * deviation, rel=1e-12)


@pytest.mark.parametrize(
    ("suite", "files", "message"),
    [
        (
            "wmt15_fr_en",
            {"newsdiscusstest2015-fren-src.fr": "Un.\n"},
            "fren-ref.en: found no file, accepted is that of",
        ),
        (
            "wmt15_fr_en",
            {"newsdiscusstest2015-fren-src.fr": "Un.\nDeux.\n", "newsdiscusstest2015-fren-ref.en": "One.\n"},
            "fren-ref.en: found 1 sentences, accepted is one for each of the 2 of newsdiscusstest2015-fren-src.fr",
        ),
        (
            "wmt15_fr_en",
            {"newsdiscusstest2015-fren-src.fr": "Un.\nDeux.\n", "newsdiscusstest2015-fren-ref.en": "One.\n\n"},
            "fren-ref.en, row 2: found an empty sentence, accepted is a text",
        ),
        (
            "wmt15_fr_en",
            {"newsdiscusstest2015-fren-src.fr.sgm": "Un.\n", "newsdiscusstest2015-fren-ref.en.sgm": "One.\n"},
            "fr.sgm: found no element seg, accepted is an SGML file of sentences",
        ),
        (
            "wmt15_fr_en",
            {"test.jsonl": lines([{"translation": {"fr": "Un."}}])},
            "test.jsonl, row 1, translation: en: found nothing, accepted is a text",
        ),
        (
            "wmt15_fr_en",
            {"test.jsonl": lines([{"fr": "Un."}])},
            "row 1: translation: found nothing, accepted is a JSON",
        ),
        (
            "cnn_dm",
            {"test.jsonl": lines([{"article": "A."}])},
            "row 1: found 'article', accepted are article and highl",
        ),
        (
            "cnn_dm",
            {"test.jsonl": lines([{"article": "A.", "highlights": ""}])},
            "row 1: highlights: found '', accepted",
        ),
        (
            "tldr",
            {"test.jsonl": lines([{"post": "A."}])},
            "accepted are post and summary or content and summary or prom",
        ),
        (
            "tldr",
            {},
            "the folder of tldr: found no test.jsonl or validation.jsonl or valid.jsonl, accepted is one of the",
        ),
    ],
)
def test_another_layout(tmp_path, suite, files, message):
    write(tmp_path / suite, files)
    with pytest.raises(LayoutError) as caught:
        tasks(suite, tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("suite", "library"), [("wmt15_fr_en", "sacrebleu"), ("tldr", "rouge_score")])
def test_a_missing_library_is_told_before_the_models_are_asked(tmp_path, monkeypatch, suite, library):
    write(tmp_path / suite, WMT15["plain"] if suite == "wmt15_fr_en" else {"test.jsonl": lines(tldr())})
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        ValueError, match=rf"^suites: found no {library}, accepted is with it: pip install instructrl\[su"
    ):
        tasks(suite, tmp_path)
