"""Public data sets, from the files as their authors published them to records.

Each function takes the folder of a data set and returns `Converted`: the records, and how many rows were left out and
why. Nothing is downloaded. Check each licence before use; some sets are meant for evaluation alone, as said below.
"""

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Generic, TypeVar

from instructrl.data.columns import ASSISTANT_TURN, split_transcripts
from instructrl.data.messages import ColumnError
from instructrl.data.rows import DataError
from instructrl.types import Comparison, Conversation, Demonstration, Document, Message, Prompt

RecordT = TypeVar("RecordT", Prompt, Demonstration, Comparison, Document)


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted(Generic[RecordT]):
    """Records of a data set. dropped: rows that gave none, by reason."""

    records: list[RecordT]
    dropped: dict[str, int]


def finegrained_qa_demonstrations(folder: str | Path, *, max_passage_words: int = 300) -> Converted[Demonstration]:
    """QA-Feedback (Wu et al. 2023): 500 questions with Wikipedia passages and the answer of a person.

    The prompt is the question, then the passages, cut to max_passage_words words in all (0: the question alone). From
    `dev_feedback.json`; `dev.json` holds the same questions, with answers that differ in 29 of them.
    """
    records = [
        Demonstration(
            prompt=_question_with_passages(row, max_passage_words),
            completion=row["gold"],
            source="qa-feedback",
            category="closed qa",
        )
        for row in _json(folder, "dev_feedback.json")
    ]
    return Converted(records=records, dropped={})


def finegrained_qa_comparisons(folder: str | Path, *, max_passage_words: int = 300) -> Converted[Comparison]:
    """QA-Feedback: four answers of models to each of 500 questions, with a person's verdict on all six pairs.

    Verdicts may be ties, which are no equivalence: in 22 comparisons a = b and b = c but not a = c, so that no ranking
    agrees with them. They are kept as they are. Prompts as in the demonstrations.
    """
    records = []
    for row in _json(folder, "dev_feedback.json"):
        verdicts = zip(combinations(range(4), 2), row["preference"], strict=True)
        preferred = {(i, j) if verdict == 1 else (j, i) for (i, j), verdict in verdicts if verdict}
        records.append(
            Comparison(
                prompt=_question_with_passages(row, max_passage_words),
                completions=tuple(row[f"prediction {number}"] for number in range(1, 5)),
                preferred=frozenset(preferred),
                source="qa-feedback",
                category="closed qa",
            )
        )
    return Converted(records=records, dropped={})


def _question_with_passages(row: dict[str, Any], max_words: int) -> str:
    passages = "\n".join(chain.from_iterable(row["passages"]))
    return f"{row['question']}\n\n{first_words(passages, max_words)}".rstrip()


def first_words(text: str, max_words: int) -> str:
    """A text up to its `max_words`-th word, with its spaces and line breaks."""
    words = text.split(maxsplit=max_words)
    return text[: text.rindex(words[-1])].rstrip() if len(words) > max_words else text.rstrip()


def gsm8k_demonstrations(folder: str | Path, *, split: str = "train") -> Converted[Demonstration]:
    """GSM8K (Cobbe et al. 2021): grade school mathematics; the answer ends with `#### number`. split: train or test."""
    records = [
        Demonstration(prompt=row["question"], completion=row["answer"], source="gsm8k", category="mathematics")
        for row in _json_lines(folder, f"{split}.jsonl")
    ]
    return Converted(records=records, dropped={})


def gsm8k_comparisons(folder: str | Path) -> Converted[Comparison]:
    """GSM8K: four models' solutions to each **test** question; right ones are preferred to wrong ones.

    Do not evaluate on `test.jsonl` after training on these. Questions all of whose solutions are alike have no
    preferred pair.
    """
    records = []
    for row in _json_lines(folder, "example_model_solutions.jsonl"):
        solutions = [value for value in row.values() if isinstance(value, dict)]
        records.append(
            Comparison(
                prompt=row["question"],
                completions=tuple(solution["solution"] for solution in solutions),
                preferred=Comparison.pairs_from_ranks([not solution["is_correct"] for solution in solutions]),
                source="gsm8k",
                category="mathematics",
            )
        )
    return Converted(records=records, dropped={})


def hh_comparisons(folder: str | Path) -> Converted[Comparison]:
    """Anthropic HH (Bai et al. 2022), every `*.jsonl.gz` in the folder: pairs of transcripts. Some offend."""
    records: list[Comparison] = []
    dropped: Counter[str] = Counter()
    for row in (row for path in sorted(Path(folder).glob("*.jsonl.gz")) for row in _json_lines(folder, path.name)):
        try:
            prompt, chosen, rejected = split_transcripts(row["chosen"], row["rejected"])
        except ColumnError:
            dropped["nothing in common"] += 1
            continue
        # Identical transcripts say nothing about which is better.
        preferred = frozenset({(0, 1)} if chosen != rejected else ())
        records.append(
            Comparison(prompt=prompt, completions=(chosen, rejected), preferred=preferred, source="hh", category="chat")
        )
    if not records:
        raise DataError(f"{folder}: found no transcripts, accepted is a folder with *.jsonl.gz")
    return Converted(records=records, dropped=dict(dropped))


def hh_conversations(folder: str | Path) -> Converted[Comparison]:
    """The pairs of `hh_comparisons` as messages: the dialogue is the prompt, with no space around what is said.

    Pairs that part before the last answer, and dialogues in which one side speaks twice in a row, are dropped.
    """
    pairs = hh_comparisons(folder)
    dropped = Counter(pairs.dropped)
    records = []
    for row in pairs.records:
        messages = _turns(row.prompt.removesuffix(ASSISTANT_TURN))
        if any(_TURN.search(text) for text in row.completions):
            dropped["part before the last answer"] += 1
        elif [message.role for message in messages] != ["user", "assistant"] * (len(messages) // 2) + ["user"]:
            dropped["turns that do not alternate"] += 1
        else:
            texts = tuple(text.strip() for text in row.completions)
            preferred = row.preferred if len(set(texts)) > 1 else frozenset()
            records.append(replace(row, prompt=Conversation(messages), completions=texts, preferred=preferred))
    return Converted(records=records, dropped=dict(dropped))


_TURN = re.compile(r"\n\n(Human|Assistant):")


def _turns(transcript: str) -> list[Message]:
    _, *parts = _TURN.split(transcript)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [Message(roles[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]


def squality_demonstrations(
    folder: str | Path, *, split: str = "train", max_story_words: int = 600
) -> Converted[Demonstration]:
    """SQuALITY (Wang et al. 2022): four writers' answers to each question about a story. split: train or dev.

    The prompt is the question, then the story, cut to max_story_words words. The answers are about the whole story:
    short prompts make demonstrations that cannot be derived from them.
    """
    records = []
    for row in _json_lines(folder, f"{split}.jsonl"):
        story = first_words(row["document"].strip(), max_story_words)
        for question in row["questions"]:
            records += [
                Demonstration(
                    prompt=f"{question['question_text']}\n\n{story}",
                    completion=response["response_text"].strip(),
                    source="squality",
                    category="summarization",
                )
                for response in question["responses"]
            ]
    return Converted(records=records, dropped={})


PLOT_QUESTION = "What is the plot of the story?"
"""The first question about every story of SQuALITY."""


def squality_comparisons(folder: str | Path) -> Converted[Comparison]:
    """SQuALITY: three answers (two models, one person) to the first question of each of 20 stories, ranked by each of
    three reviewers. The stories and the other questions are not in the published file: those rankings are dropped."""
    records = []
    dropped = 0
    for row in _json_lines(folder, "human_eval_all_responses.jsonl"):
        for number, answers in row["questions"].items():
            reviews = [
                {review["worker_id"]: review["overall-rank"] for review in a["reviews"]} for a in answers.values()
            ]
            reviewers = [name for name in reviews[0] if all(name in ranks for ranks in reviews)]
            if number != "0":
                dropped += len(reviewers)
                continue
            records += [
                Comparison(
                    prompt=PLOT_QUESTION,
                    completions=tuple(answer["response"] for answer in answers.values()),
                    preferred=Comparison.pairs_from_ranks([ranks[name] for ranks in reviews]),
                    user=row["passage-id"],
                    source="squality",
                    category="summarization",
                    labeler=name,
                )
                for name in reviewers
            ]
    return Converted(records=records, dropped={"question not published": dropped})


def squality_documents(folder: str | Path, *, max_chars: int = 8000) -> Converted[Document]:
    """SQuALITY: the stories of train and dev (Project Gutenberg), in pieces of whole paragraphs."""
    stories = [row["document"] for split in ("train", "dev") for row in _json_lines(folder, f"{split}.jsonl")]
    pieces = [piece for story in stories for piece in paragraph_pieces(story, max_chars=max_chars)]
    return Converted(records=[Document(text=piece, source="squality") for piece in pieces], dropped={})


def novel_documents(folder: str | Path, *, max_chars: int = 8000) -> Converted[Document]:
    """Every `*.txt` of a folder, in pieces of whole paragraphs; the source is the name of the file."""
    paths = sorted(path for path in Path(folder).glob("*.txt") if path.name != "LICENSE_NOTE.txt")
    records = [
        Document(text=piece, source=path.stem)
        for path in paths
        for piece in paragraph_pieces(_text(folder, path.name), max_chars=max_chars)
    ]
    if not records:
        raise DataError(f"{folder}: found no text, accepted is a folder with *.txt")
    return Converted(records=records, dropped={})


def paragraph_pieces(text: str, *, max_chars: int) -> list[str]:
    """A text in pieces of whole paragraphs, each as long as `max_chars` allows; a longer paragraph is a piece alone.

    Paragraphs end at blank lines; in a text with hardly any, at line breaks.
    """
    lines = text.split("\n")
    num_blank = sum(not line.strip() for line in lines)
    border = "\n\n" if 20 * num_blank > len(lines) else "\n"
    pieces: list[str] = []
    for paragraph in "\n".join(line if line.strip() else "" for line in lines).split(border):
        paragraph = paragraph.strip("\n")
        if pieces and paragraph and len(pieces[-1]) + len(border) + len(paragraph) <= max_chars:
            pieces[-1] += border + paragraph
        elif paragraph:
            pieces.append(paragraph)
    return pieces


def self_instruct_demonstrations(folder: str | Path) -> Converted[Demonstration]:
    """Self-Instruct (Wang et al. 2022): the 175 seed tasks with their first instance."""
    records = [
        Demonstration(
            prompt=_with_input(row["instruction"], row["instances"][0]["input"]),
            completion=row["instances"][0]["output"],
            source="self-instruct",
            category="classification" if row["is_classification"] else "",
        )
        for row in _json_lines(folder, "seed_tasks.jsonl")
    ]
    return Converted(records=records, dropped={})


def self_instruct_prompts(folder: str | Path) -> Converted[Prompt]:
    """Self-Instruct: the 252 user-oriented instructions, **for evaluation only**; the user is the application."""
    records = [
        Prompt(
            text=_with_input(row["instruction"], row["instances"][0]["input"]),
            user=row["motivation_app"],
            source="self-instruct",
        )
        for row in _json_lines(folder, "user_oriented_instructions.jsonl")
    ]
    return Converted(records=records, dropped={})


def pandalm_comparisons(folder: str | Path) -> Converted[Comparison]:
    """PandaLM (Wang et al. 2023) test set, **for measuring only**: pairs judged by three people, a record for each.

    The instructions are mostly Self-Instruct's 252. A tie is a comparison without a preferred pair. Some responses
    are empty, and stay; those that are no text (a few are booleans) are dropped, with their three records.
    """
    records: list[Comparison] = []
    dropped: Counter[str] = Counter()
    for row in _json(folder, "testset-v1.json"):
        responses = (row["response1"], row["response2"])
        if not all(isinstance(response, str) for response in responses):
            dropped["response is no text"] += 3
            continue
        for annotator in ("annotator1", "annotator2", "annotator3"):
            verdict = int(row[annotator])
            records.append(
                Comparison(
                    prompt=_with_input(row["instruction"], row["input"]),
                    completions=responses,
                    preferred=frozenset({(verdict - 1, 2 - verdict)} if verdict else ()),
                    user=row["motivation_app"],
                    source="pandalm",
                    labeler=annotator,
                )
            )
    return Converted(records=records, dropped=dict(dropped))


def pandalm_majority(folder: str | Path) -> Converted[Comparison]:
    """PandaLM test set, **for measuring only**: each instruction once, with its different responses and the pairs in
    which more than half of the annotators prefer the same one.

    Three judged each pair of models; where several models gave the same response, all who judged it count.
    """
    rows = pandalm_comparisons(folder)
    responses: dict[str, dict[str, int]] = {}
    judged: Counter[tuple[str, int, int]] = Counter()
    wins: Counter[tuple[str, int, int]] = Counter()
    for row in rows.records:
        if len(set(row.completions)) == 1:
            continue
        place = responses.setdefault(row.prompt, {})
        first, second = (place.setdefault(text, len(place)) for text in row.completions)
        judged.update([(row.prompt, first, second), (row.prompt, second, first)])
        wins.update((row.prompt, (first, second)[i], (first, second)[j]) for i, j in row.preferred)
    preferred = {prompt: set[tuple[int, int]]() for prompt in responses}
    for (prompt, winner, loser), count in wins.items():
        if 2 * count > judged[prompt, winner, loser]:
            preferred[prompt].add((winner, loser))
    records = [
        Comparison(prompt=prompt, completions=tuple(place), preferred=frozenset(preferred[prompt]), source="pandalm")
        for prompt, place in responses.items()
    ]
    return Converted(records=records, dropped=rows.dropped)


def _with_input(instruction: str, text: str) -> str:
    return f"{instruction}\n\n{text}" if text else instruction


def _json(folder: str | Path, name: str) -> list[dict[str, Any]]:
    return next(_parsed(folder, name, [_text(folder, name)]))


def _json_lines(folder: str | Path, name: str) -> Iterator[dict[str, Any]]:
    # Not splitlines: the texts hold line separators that are no ends of JSON lines.
    return _parsed(folder, name, (line for line in _text(folder, name).split("\n") if line))


def _parsed(folder: str | Path, name: str, texts: Iterable[str]) -> Iterator[Any]:
    for number, text in enumerate(texts, start=1):
        try:
            yield json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{Path(folder) / name}:{number}: found {error.msg}, accepted is JSON") from None


def _text(folder: str | Path, name: str) -> str:
    path = Path(folder) / name
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: found no such file, accepted is the folder of the published data set") from None
    return content.decode("utf-8-sig")
