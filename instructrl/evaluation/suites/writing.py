"""WMT15 French to English in BLEU; CNN/DailyMail and TL;DR in ROUGE-L (paper, appendix D, figures 25 to 27).

The paper's figures of summaries promise 15 examples, in words that are those of translation, and its table 14 has one
number for both sets: they are asked without examples, of which 15 articles would fit no model of the paper's. A Reddit
post is asked without its title. Examples of translation come from the development set of the same year.

Bojar et al. 2015 (newsdiscusstest2015); See et al. 2017, arXiv 1704.04368; Stiennon et al. 2020, arXiv 2009.01325.
"""

import html
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from instructrl.evaluation.suites import metrics
from instructrl.evaluation.suites.layouts import LayoutError, json_rows, object_at, text_at, text_lines
from instructrl.evaluation.suites.prompts import Form, Question
from instructrl.evaluation.suites.protocol import Item

_SEGMENT = re.compile(r"<seg\b[^>]*>(.*?)</seg\s*>", re.DOTALL | re.IGNORECASE)
# The file of sentences -> that of their translations.
_TEST_FILES = {
    "newsdiscusstest2015-fren-src.fr.sgm": "newsdiscusstest2015-fren-ref.en.sgm",
    "newsdiscusstest2015-fren-src.fr": "newsdiscusstest2015-fren-ref.en",
}
_DEV_FILES = {
    "newsdiscussdev2015-fren-src.fr.sgm": "newsdiscussdev2015-fren-ref.en.sgm",
    "newsdiscussdev2015-fren-src.fr": "newsdiscussdev2015-fren-ref.en",
}
# What is summarised, and its summary: of the publisher, of Webis-TLDR-17, and of two tables of the hub.
_ARTICLE_COLUMNS = (("article", "highlights"),)
_POST_COLUMNS = (("post", "summary"), ("content", "summary"), ("prompt", "completion"), ("prompt", "label"))
_ENDING = "TL;DR:"  # that a column `prompt` has


def _translation(french: str, english: str) -> Question:
    item = Item(context="", references=(english,))
    return Question(block=f"French: {french}\nEnglish:", answer=english, text=french, item=item)


def _sentence_files(translations: str, path: Path) -> list[Question]:
    """Sentences and their translations in two files: a sentence a line, or each in an element `seg`."""
    other = path.with_name(translations)
    if not other.is_file():
        raise LayoutError(f"{other}: found no file, accepted is that of the translations of {path.name}")
    french, english = _sentences(path), _sentences(other)
    if len(french) != len(english):
        raise LayoutError(
            f"{other}: found {len(english)} sentences, accepted is one for each of the {len(french)} of {path.name}"
        )
    return [_translation(*pair) for pair in zip(french, english, strict=True)]


def _sentences(path: Path) -> list[str]:
    lines = text_lines(path)
    if path.suffix == ".sgm":
        found = [" ".join(html.unescape(text).split()) for text in _SEGMENT.findall("\n".join(lines))]
        if not found:
            raise LayoutError(f"{path}: found no element seg, accepted is an SGML file of sentences")
    else:
        found = [line.strip() for line in lines]
    empty = next((number for number, text in enumerate(found, 1) if not text), None)
    if empty is not None:
        raise LayoutError(f"{path}, row {empty}: found an empty sentence, accepted is a text")
    return found


def _sentence_rows(path: Path) -> list[Question]:
    """The hub's `wmt15`, of `fr-en`."""
    found = []
    for place, row in json_rows(path):
        pair = object_at(row, "translation", place)
        found.append(_translation(*(text_at(pair, name, f"{place}, translation") for name in ("fr", "en"))))
    return found


def _summaries(columns: Sequence[tuple[str, str]], path: Path) -> list[Question]:
    """columns: names of the text and of its summary; the first pair of which both are there counts."""
    found = []
    for place, row in json_rows(path):
        names = next((pair for pair in columns if set(pair) <= set(row)), None)
        if names is None:
            accepted = " or ".join(" and ".join(pair) for pair in columns)
            raise LayoutError(f"{place}: found {', '.join(map(repr, row))[:80]}, accepted are {accepted}")
        text, summary = (text_at(row, name, place).strip() for name in names)
        text = text.removesuffix(_ENDING).rstrip() if names[0] == "prompt" else text
        item = Item(context="", references=(summary,))
        found.append(Question(block=f"{text}\n\n{_ENDING}", answer=summary, text=text, item=item))
    return found


def _both(pairs: dict[str, str]) -> dict[str, Callable[[Path], list[Question]]]:
    return {name: partial(_sentence_files, other) for name, other in pairs.items()}


_ARTICLES, _POSTS = partial(_summaries, _ARTICLE_COLUMNS), partial(_summaries, _POST_COLUMNS)

WMT15_FR_EN = Form(
    suite="wmt15_fr_en",
    instruction="Translate the following sentences from French into English.\n\n",
    shots=15,
    measures=metrics.bleu,
    max_tokens=128,
    library="sacrebleu",
).as_suite(
    "WMT15 Fr-En",
    "translation from French into English, in BLEU",
    {**_both(_TEST_FILES), "test.jsonl": _sentence_rows},
    {**_both(_DEV_FILES), "validation.jsonl": _sentence_rows, "train.jsonl": _sentence_rows},
    others=(*_TEST_FILES.values(), *_DEV_FILES.values()),
)
CNN_DM = Form(
    suite="cnn_dm", instruction="", shots=0, measures=metrics.rouge_l, max_tokens=128, library="rouge_score"
).as_suite(
    "CNN/DailyMail",
    "summaries of news, in ROUGE-L",
    {"test.jsonl": _ARTICLES, "validation.jsonl": _ARTICLES},
    {},
)
TLDR = Form(
    suite="tldr", instruction="", shots=0, measures=metrics.rouge_l, max_tokens=128, library="rouge_score"
).as_suite(
    "TL;DR",
    "summaries of Reddit posts, in ROUGE-L",
    {"test.jsonl": _POSTS, "validation.jsonl": _POSTS, "valid.jsonl": _POSTS},
    {},
)
