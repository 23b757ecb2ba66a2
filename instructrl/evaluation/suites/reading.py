"""DROP, QuAC and SQuADv2: questions about a text, answered in writing (paper, appendix D, figures 18 to 20).

The prompts are the paper's. Questions of a SQuADv2 paragraph and of a QuAC dialogue that come before the one that is
asked stay in the prompt with their gold answers; those of a DROP passage do not. An example is another text with its
questions, the last one of a DROP passage. QuAC's title is that of the page and of its section, as in GPT-3's figure of
it. The answer to a question that the text does not answer is the sentence that the instruction asks for: it scores 1
there and 0 elsewhere, and everything else, silence included, scores 0 there.

Dua et al. 2019, arXiv 1903.00161; Choi et al. 2018, arXiv 1808.07036; Rajpurkar et al. 2018, arXiv 1806.03822.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from instructrl.evaluation.suites import metrics
from instructrl.evaluation.suites.examples import Readers, draw, optional, read_first, shot_counts
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
from instructrl.evaluation.suites.protocol import Item, Measure, Suite, Task, Written
from instructrl.evaluation.suites.settings import SuiteConfig

# (answer, references) -> what the answer is worth, 0 to 1; None where the metric leaves the question out
Metric = Callable[[str, Sequence[str]], float | None]
ANSWERED, NOT_ANSWERED = "answerable", "not answerable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a set is asked. heads: names of title and text. not_there: the answer where the text has none. measured:
    metrics by name."""

    suite: str
    instruction: str
    shots: int
    measured: Mapping[str, Metric]
    heads: tuple[str, str] = ("", "")
    not_there: str = ""

    def block(self, passage: Passage, place: int) -> str:
        """The text and its question at `place`, up to its answer."""
        turn = passage.turns[place]
        if not self.not_there:
            return f"Passage: {passage.text}\nQuestion: {turn.question}\nAnswer:"
        title, text = self.heads
        before = "".join(f"Q: {turn.question}\nA: {self.answer(turn)}\n" for turn in passage.turns[:place])
        return f"{title}: {passage.title}\n{text}: {passage.text}\n\n{before}Q: {turn.question}\nA:"

    def answer(self, turn: Turn) -> str:
        """The gold answer, as a prompt has it."""
        return turn.answer or self.not_there

    def example(self, passage: Passage) -> str:
        """The text with its last question answered."""
        return f"{self.block(passage, len(passage.turns) - 1)} {self.answer(passage.turns[-1])}"

    def items(self, passage: Passage, number: int, opening: str) -> Iterable[Item]:
        """All questions of a text, which is the cluster `number`, behind the opening of the prompt."""
        for place, turn in enumerate(passage.turns):
            yield Item(
                context=f"{opening}\n\n{self.block(passage, place)}",
                references=turn.references or (self.not_there,),
                question=turn.question,
                group=(ANSWERED if turn.references else NOT_ANSWERED) if self.not_there else "",
                cluster=f"text {number}",
            )

    def score(self, metric: Metric, item: Item, answer: Written) -> float | None:
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
        scores = [self.score(self.measured[name], *pair) for pair in zip(items, answers, strict=True)]
        counted = [(item, score) for item, score in zip(items, scores, strict=True) if score is not None]
        return metrics.mean_points(name, *zip(*counted, strict=True), group=group) if counted else None

    def tasks(self, evaluated: Readers, trained: Readers, files: Mapping[str, Path], config: SuiteConfig) -> list[Task]:
        """One task for each number of examples that is asked for."""
        passages: list[Passage] = read_first(evaluated, files, self.suite)
        made = []
        for shots in shot_counts(config, self.shots):
            blocks = []
            if shots:
                candidates: list[Passage] = read_first(trained, files, self.suite, ", which examples are drawn from")
                usable = [passage for passage in candidates if self.answer(passage.turns[-1])]
                own = {passage.text for passage in passages}
                drawn = draw(usable, shots, lambda passage: passage.text, own, task=self.suite, seed=config.seed)
                blocks = [self.example(passage) for passage in drawn]
            opening = "\n\n".join([self.instruction, *blocks])
            items = [item for i, passage in enumerate(passages) for item in self.items(passage, i, opening)]
            made.append(Task(suite=self.suite, items=tuple(items), measures=self.measures, shots=shots))
        return made


def _suite(form: Form, title: str, what: str, evaluated: Readers, trained: Readers) -> Suite:
    return Suite(
        title=title, what=what, files=optional(evaluated, trained), tasks=partial(form.tasks, evaluated, trained)
    )


_F1 = partial(metrics.best, metrics.token_f1)
DROP_FORM = Form(
    suite="drop",
    instruction="Answer each question using information in the preceding passage.",
    shots=4,
    measured={"F1": _F1, "DROP F1": partial(metrics.best, metrics.drop_f1)},
)
QUAC_FORM = Form(
    suite="quac",
    instruction="Answer each question using information in the preceding background paragraph.\n"
    'If there is not enough information provided, answer with "I don\'t know."',
    shots=2,
    measured={"F1": _F1, "QuAC F1": metrics.quac_f1},
    heads=("TITLE", "PARAGRAPH"),
    not_there="I don't know.",
)
SQUAD_FORM = Form(
    suite="squad_v2",
    instruction="Answer each question using information in the preceding background paragraph.\n"
    'If there is not enough information provided, answer with "Not in background."',
    shots=4,
    measured={"F1": _F1, "exact match": partial(metrics.best, metrics.exact_match)},
    heads=("Title", "Background"),
    not_there="Not in background.",
)

DROP = _suite(
    DROP_FORM,
    "DROP",
    "numbers, dates and names from a passage, in F1 of tokens",
    {"drop_dataset_dev.json": drop_file, "validation.jsonl": drop_rows},
    {"drop_dataset_train.json": drop_file, "train.jsonl": drop_training_rows},
)
QUAC = _suite(
    QUAC_FORM,
    "QuAC",
    "questions of a dialogue about a section of an article, in F1 of tokens",
    {"val_v0.2.json": quac_file, "validation.jsonl": quac_rows},
    {"train_v0.2.json": quac_file, "train.jsonl": quac_rows},
)
SQUAD_V2 = _suite(
    SQUAD_FORM,
    "SQuADv2",
    "questions that a paragraph answers or not, in F1 of tokens",
    {"dev-v2.0.json": squad_file, "validation.jsonl": squad_rows},
    {"train-v2.0.json": squad_file, "train.jsonl": squad_rows},
)
