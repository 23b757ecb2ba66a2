"""DROP, QuAC and SQuADv2: questions about a text, answered in writing (paper, appendix D, figures 18 to 20).

The prompts are the paper's. Questions of a SQuADv2 paragraph and of a QuAC dialogue that come before the one that is
asked stay in the prompt with their gold answers; those of a DROP passage do not. An example is another text with its
questions, the last one of a DROP passage. QuAC's title is that of the page and of its section, as in GPT-3's figure of
it. The answer to a question that the text does not answer is the sentence that the instruction asks for: it scores 1
there and 0 elsewhere, and everything else, silence included, scores 0 there.

Dua et al. 2019, arXiv 1903.00161; Choi et al. 2018, arXiv 1808.07036; Rajpurkar et al. 2018, arXiv 1806.03822.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from instructrl.evaluation.suites import metrics
from instructrl.evaluation.suites.passages import (
    Passage,
    Turn,
    drop_file,
    drop_rows,
    drop_training_rows,
    quac_file,
    quac_rows,
    squad_file,
    squad_rows,
)
from instructrl.evaluation.suites.prompts import Form, Question
from instructrl.evaluation.suites.protocol import Item, Measure, Suite, Written

# (answer, references) -> what the answer is worth, 0 to 1; None where the metric leaves the question out
Metric = Callable[[str, Sequence[str]], float | None]
ANSWERED, NOT_ANSWERED = "answerable", "not answerable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a text and its questions become prompts and scores. heads: names of title and text. not_there: the answer
    where the text has none. measured: metrics by name."""

    measured: Mapping[str, Metric]
    heads: tuple[str, str] = ("", "")
    not_there: str = ""

    def questions(self, read: Callable[[Path], list[Passage]], path: Path) -> list[Question]:
        """All questions of a file; those about one text are a cluster."""
        return [
            self._question(passage, place, f"text {number}")
            for number, passage in enumerate(read(path))
            for place in range(len(passage.turns))
        ]

    def last_questions(self, read: Callable[[Path], list[Passage]], path: Path) -> list[Question]:
        """The last question of each text of a file, which has the others before it where they stay."""
        return [self._question(passage, len(passage.turns) - 1, "") for passage in read(path)]

    def _question(self, passage: Passage, place: int, cluster: str) -> Question:
        turn = passage.turns[place]
        item = Item(
            context="",
            references=turn.references or (self.not_there,),
            question=turn.question,
            group=(ANSWERED if turn.references else NOT_ANSWERED) if self.not_there else "",
            cluster=cluster,
        )
        return Question(block=self._block(passage, place), answer=self._gold(turn), text=passage.text, item=item)

    def _block(self, passage: Passage, place: int) -> str:
        question = passage.turns[place].question
        if not self.not_there:
            return f"Passage: {passage.text}\nQuestion: {question}\nAnswer:"
        title, text = self.heads
        before = "".join(f"Q: {turn.question}\nA: {self._gold(turn)}\n" for turn in passage.turns[:place])
        return f"{title}: {passage.title}\n{text}: {passage.text}\n\n{before}Q: {question}\nA:"

    def _gold(self, turn: Turn) -> str:
        return turn.answer or self.not_there

    def _score(self, metric: Metric, item: Item, answer: Written) -> float | None:
        """What an answer is worth, None where the metric leaves the item out."""
        text = answer.text.strip().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        says_nothing = metrics.exact_match(text, self.not_there)
        if item.group == NOT_ANSWERED:
            return says_nothing
        return metric("" if says_nothing else text, item.references)

    def measures(self, items: Sequence[Item], answers: Sequence[Written]) -> list[Measure]:
        """Each metric over all items, and the first one over those that are answerable and those that are not."""
        found = [self._measure(name, items, answers) for name in self.measured]
        first = next(iter(self.measured))
        for group in sorted({item.group for item in items} - {""}):
            of_group = [pair for pair in zip(items, answers, strict=True) if pair[0].group == group]
            found += [self._measure(first, *zip(*of_group, strict=True), group=group)]
        return [measure for measure in found if measure is not None]

    def _measure(self, name: str, items: Sequence[Item], answers: Sequence[Written], group: str = "") -> Measure | None:
        """A metric of items, None where it leaves all of them out."""
        scores = [self._score(self.measured[name], *pair) for pair in zip(items, answers, strict=True)]
        counted = [(item, score) for item, score in zip(items, scores, strict=True) if score is not None]
        return metrics.mean_points(name, *zip(*counted, strict=True), group=group) if counted else None


_F1 = partial(metrics.best, metrics.token_f1)
_BACKGROUND = "Answer each question using information in the preceding background paragraph.\n"
_SENTENCE = 'If there is not enough information provided, answer with "{}"\n\n'
# name of a file -> (its path) -> its texts
Files = Mapping[str, Callable[[Path], list[Passage]]]


def _suite(title: str, what: str, form: Form, reading: Reading, evaluated: Files, trained: Files) -> Suite:
    return form.as_suite(
        title,
        what,
        {name: partial(reading.questions, read) for name, read in evaluated.items()},
        {name: partial(reading.last_questions, read) for name, read in trained.items()},
    )


def _drop() -> Suite:
    reading = Reading(measured={"F1": _F1, "DROP F1": partial(metrics.best, metrics.drop_f1)})
    return _suite(
        "DROP",
        "numbers, dates and names from a passage, in F1 of tokens",
        Form(
            suite="drop",
            instruction="Answer each question using information in the preceding passage.\n\n",
            shots=4,
            measures=reading.measures,
        ),
        reading,
        {"drop_dataset_dev.json": drop_file, "validation.jsonl": drop_rows},
        {"drop_dataset_train.json": drop_file, "train.jsonl": drop_training_rows},
    )


def _quac() -> Suite:
    reading = Reading(
        measured={"F1": _F1, "QuAC F1": metrics.quac_f1}, heads=("TITLE", "PARAGRAPH"), not_there="I don't know."
    )
    return _suite(
        "QuAC",
        "questions of a dialogue about a section of an article, in F1 of tokens",
        Form(
            suite="quac",
            instruction=_BACKGROUND + _SENTENCE.format(reading.not_there),
            shots=2,
            measures=reading.measures,
        ),
        reading,
        {"val_v0.2.json": quac_file, "validation.jsonl": quac_rows},
        {"train_v0.2.json": quac_file, "train.jsonl": quac_rows},
    )


def _squad() -> Suite:
    reading = Reading(
        measured={"F1": _F1, "exact match": partial(metrics.best, metrics.exact_match)},
        heads=("Title", "Background"),
        not_there="Not in background.",
    )
    return _suite(
        "SQuADv2",
        "questions that a paragraph answers or not, in F1 of tokens",
        Form(
            suite="squad_v2",
            instruction=_BACKGROUND + _SENTENCE.format(reading.not_there),
            shots=4,
            measures=reading.measures,
        ),
        reading,
        {"dev-v2.0.json": squad_file, "validation.jsonl": squad_rows},
        {"train-v2.0.json": squad_file, "train.jsonl": squad_rows},
    )


DROP, QUAC, SQUAD_V2 = _drop(), _quac(), _squad()
