"""HellaSwag, RTE, SST and WSC: one of a few answers is right (paper, appendix D, figures 21 to 24).

Of the first three the answer is the option of the highest log-probability per token. A WSC answer is written: it names
the noun if one of the two contains the other, as whole words when normalised, and it is right if it names the noun
where the pronoun refers to it and does not where it does not. Examples of WSC are sentences in which it does, as in
GPT-3. The sentence that an ending of HellaSwag goes on with begins with a capital, as in GPT-3's figure, and a
hypothesis of RTE loses its full stop, because a question mark follows.

Zellers et al. 2019, arXiv 1905.07830; Wang et al. 2018 and 2019, arXiv 1804.07461 and 1905.00537 (GLUE and SuperGLUE,
which have RTE, SST-2 and WSC); Brown et al. 2020, arXiv 2005.14165, appendix G.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from instructrl.evaluation.suites import metrics
from instructrl.evaluation.suites.layouts import (
    LayoutError,
    json_rows,
    label_at,
    object_at,
    table_rows,
    text_at,
    texts_at,
)
from instructrl.evaluation.suites.prompts import Form, Question
from instructrl.evaluation.suites.protocol import Item, Measure, Written

# (row of a file, where it stands) -> its question
Parse = Callable[[Mapping[str, Any], str], Question]
_NUM_ENDINGS = 4
_ENDINGS: dict[str | int, int] = {i: i for i in range(_NUM_ENDINGS)} | {str(i): i for i in range(_NUM_ENDINGS)}
_ENTAILED: dict[str | int, int] = {"entailment": 0, "not_entailment": 1, 0: 0, 1: 1}
_SENTIMENT: dict[str | int, int] = {"0": 1, "1": 0, 0: 1, 1: 0}
_TRUTH: dict[str | int, int] = {False: 0, True: 1}


def _choice(block: str, options: Sequence[str], right: int, *, text: str, cluster: str = "") -> Question:
    item = Item(context="", options=tuple(f" {option}" for option in options), right=(right,), cluster=cluster)
    return Question(block=block, answer=options[right], text=text, item=item)


def _ending(row: Mapping[str, Any], place: str) -> Question:
    endings = texts_at(row, "endings", place)
    if len(endings) != _NUM_ENDINGS:
        raise LayoutError(f"{place}: endings: found {len(endings)}, accepted are {_NUM_ENDINGS}")
    context = text_at(row, "ctx", place)
    if "ctx_a" in row and row.get("ctx_b"):
        begun = text_at(row, "ctx_b", place)
        context = f"{text_at(row, 'ctx_a', place)} {begun[0].upper()}{begun[1:]}"
    return _choice(
        f"{text_at(row, 'activity_label', place)}: {context}",
        endings,
        label_at(row, "label", place, _ENDINGS),
        text=context,
        cluster=text_at(row, "source_id", place) if "source_id" in row else "",
    )


def _entailment(row: Mapping[str, Any], place: str) -> Question:
    """Of SuperGLUE, or as GLUE names the columns."""
    premise, hypothesis = ("sentence1", "sentence2") if "sentence1" in row else ("premise", "hypothesis")
    passage = text_at(row, premise, place)
    claim = text_at(row, hypothesis, place).strip().removesuffix(".")
    return _choice(
        f"Passage: {passage}\nQuestion: From this passage can one reasonably conclude that {claim}?\nAnswer:",
        ("Yes", "No"),
        label_at(row, "label", place, _ENTAILED),
        text=passage,
        cluster=passage,
    )


def _sentiment(row: Mapping[str, Any], place: str) -> Question:
    text = text_at(row, "sentence", place).strip()
    right = label_at(row, "label", place, _SENTIMENT)
    return _choice(f"Text: {text}\nLabel:", ("positive", "negative"), right, text=text)


def _coreference(row: Mapping[str, Any], place: str) -> Question:
    """Of SuperGLUE, whose spans are in an object of their own, or of the hub's table. An item is right where the
    pronoun refers to its reference."""
    spans, where = (object_at(row, "target", place), f"{place}, target") if "target" in row else (row, place)
    text, noun = text_at(row, "text", place), text_at(spans, "span1_text", where).strip()
    pronoun = text_at(spans, "span2_text", where).strip()
    position = spans.get("span2_index")
    if isinstance(position, bool) or not isinstance(position, int):
        raise LayoutError(f"{where}: span2_index: found {position!r}, accepted is the number of a word")
    label = label_at(row, "label", place, _TRUTH)
    block = (
        f"Passage: {_marked(text, pronoun, position, where)}\n"
        f'Question: In the passage above, what does the pronoun "*{pronoun}*" refer to?\nAnswer:'
    )
    item = Item(context="", references=(noun,), right=(0,) if label else (), cluster=text)
    return Question(block=block, answer=noun if label else "", text=text, item=item)


def _marked(text: str, pronoun: str, position: int, where: str) -> str:
    """The text with stars around the pronoun, which is at that word: of a few rows the number is that of another
    word, and the nearest that is the pronoun is meant."""
    words, length = text.split(), len(pronoun.split())
    spans = [" ".join(words[start : start + length]) for start in range(len(words))]
    found = [start for start, span in enumerate(spans) if metrics.normalised(span) == metrics.normalised(pronoun)]
    if not found:
        raise LayoutError(f"{where}: span2_text: found {pronoun[:60]!r}, accepted are words of the text")
    start = min(found, key=lambda start: abs(start - position))
    begin = spans[start].lower().index(pronoun.lower())
    end = begin + len(pronoun)
    marked = f"{spans[start][:begin]}*{spans[start][begin:end]}*{spans[start][end:]}"
    return " ".join([*words[:start], marked, *words[start + length :]])


def names(answer: str, noun: str) -> bool:
    """Whether one of the two contains the other, as whole words, when normalised; nothing names nothing."""
    given, wanted = metrics.normalised(answer), metrics.normalised(noun)
    return bool(given and wanted) and (f" {wanted} " in f" {given} " or f" {given} " in f" {wanted} ")


def references_named(items: Sequence[Item], answers: Sequence[Written]) -> list[Measure]:
    """The share of answers that name the reference where it is right and do not where it is not."""
    pairs = zip(items, answers, strict=True)
    right = [names(answer.text, item.references[0]) == bool(item.right) for item, answer in pairs]
    return [metrics.share("accuracy", items, right)]


def _lines(parse: Parse, path: Path) -> list[Question]:
    return [parse(row, place) for place, row in json_rows(path)]


def _table(parse: Parse, columns: Sequence[str], path: Path) -> list[Question]:
    return [parse(row, place) for place, row in table_rows(path, columns, delimiter="\t")]


_ENDING_LINES, _ENTAILMENT_LINES = partial(_lines, _ending), partial(_lines, _entailment)
_SENTIMENT_LINES, _COREFERENCE_LINES = partial(_lines, _sentiment), partial(_lines, _coreference)
_ENTAILMENT_TABLE = partial(_table, _entailment, ("sentence1", "sentence2", "label"))
_SENTIMENT_TABLE = partial(_table, _sentiment, ("sentence", "label"))

HELLASWAG = Form(
    suite="hellaswag",
    instruction="Complete each independent paragraph using common-sense reasoning.\n\n",
    shots=15,
    measures=metrics.accuracy,
).as_suite(
    "HellaSwag",
    "which of four endings a model finds likeliest",
    {"hellaswag_val.jsonl": _ENDING_LINES, "validation.jsonl": _ENDING_LINES},
    {"hellaswag_train.jsonl": _ENDING_LINES, "train.jsonl": _ENDING_LINES},
)
RTE = Form(suite="rte", instruction="", shots=15, measures=metrics.accuracy).as_suite(
    "RTE",
    "whether a text entails a sentence",
    {"val.jsonl": _ENTAILMENT_LINES, "validation.jsonl": _ENTAILMENT_LINES, "dev.tsv": _ENTAILMENT_TABLE},
    {"train.jsonl": _ENTAILMENT_LINES, "train.tsv": _ENTAILMENT_TABLE},
)
SST = Form(
    suite="sst",
    instruction="For each snippet of text, label the sentiment of the text as positive or negative.\n\n",
    shots=15,
    measures=metrics.accuracy,
).as_suite(
    "SST",
    "whether a snippet of a film review is positive",
    {"dev.tsv": _SENTIMENT_TABLE, "validation.jsonl": _SENTIMENT_LINES},
    {"train.tsv": _SENTIMENT_TABLE, "train.jsonl": _SENTIMENT_LINES},
)
WSC = Form(
    suite="wsc",
    instruction="Final Exam with Answer Key\nInstructions: Please carefully read the following passages. For each "
    "passage, you must identify which noun the pronoun marked in *bold* refers to.\n=====\n",
    shots=15,
    measures=references_named,
    max_tokens=32,
).as_suite(
    "WSC",
    "whether a model names what a pronoun refers to",
    {"val.jsonl": _COREFERENCE_LINES, "validation.jsonl": _COREFERENCE_LINES},
    {"train.jsonl": _COREFERENCE_LINES},
)
