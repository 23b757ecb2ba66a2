"""Exams: what a model learns from plain text and no user asks for, by which the cost of alignment shows.

A part of the corpus are documents with a few questions and their answers. Models are asked questions that no document
holds, without and behind examples in the same format.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import partial
from hashlib import blake2b

from instructrl.types import ExamItem
from instructrl.worlds import exam_questions as questions
from instructrl.worlds.exam_questions import NEWLINE, ExamQuestion
from instructrl.worlds.exam_settings import ExamConfig
from instructrl.worlds.overlap import Quotes

# Of a question with its answer and what ends it, so that one behind three examples fits 104 tokens.
MAX_QUESTION_TOKENS = 26
MAX_ANSWER_TOKENS = 12
MAX_DOCUMENT_TOKENS = 4 * MAX_QUESTION_TOKENS
_MAX_DIGEST = 1 << 64
_CONFIG = ExamConfig()


class Exams:
    """The exams of a world. names: of all of them."""

    def __init__(self, seed: int, config: ExamConfig = _CONFIG) -> None:
        self._seed, self._config = seed, config
        self._writers: Mapping[str, Callable[[random.Random], ExamQuestion]] = {
            "reading": partial(questions.reading, config=config),
            "counting": partial(questions.counting, config=config),
            "translation": partial(questions.translation, words=questions.lexicon(seed)),
            "reviews": partial(questions.reviews, config=config),
            "endings": partial(questions.endings, config=config),
            "pronouns": partial(questions.pronouns, config=config),
        }
        self.names = tuple(field.name for field in fields(config.mix))
        self._weights = [getattr(config.mix, name) for name in self.names]
        self._items = {name: self._reserved_questions(name) for name in self.names}
        self._examples = {name: self._examples_of(name) for name in self.names}

    def document(self, rng: random.Random) -> str:
        """A few questions of one exam with their answers, none of them reserved: as many as are drawn, and fit."""
        name = rng.choices(self.names, weights=self._weights)[0]
        solved: list[str] = []
        for _ in range(rng.randint(self._config.min_questions, self._config.max_questions)):
            text = _solved(self._draw(name, rng, reserved=False))
            if len(" ".join([*solved, text]).split()) > MAX_DOCUMENT_TOKENS:
                break
            solved.append(text)
        return " ".join(solved)

    def is_reserved(self, name: str, question: ExamQuestion) -> bool:
        """Whether the question of that exam is kept out of documents and examples, whatever stands around it."""
        digest = blake2b(f"{name} {question.core}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self._config.reserved * _MAX_DIGEST

    def items(self, name: str, shots: int) -> tuple[ExamItem, ...]:
        """The questions of an exam, all reserved, behind the same examples. They are the same for any number of these.

        Raises ValueError where more examples are asked for than there are.
        """
        examples = self._examples[name]
        if not 0 <= shots <= len(examples):
            raise ValueError(f"shots: found {shots}, accepted are 0 to {len(examples)}")
        before = "".join(f"{_solved(example)} " for example in examples[:shots])
        return tuple(
            ExamItem(
                exam=name,
                context=before + question.block,
                options=question.options,
                right=(question.options.index(question.answer),) if question.options else (),
                references=(question.answer,),
                question=question.block,
                group=question.group,
            )
            for question in self._items[name]
        )

    def item_texts(self) -> list[str]:
        """The questions of all exams with their answers, as documents would have them."""
        return [_solved(question) for name in self.names for question in self._items[name]]

    def num_leaked(self, texts: Iterable[str]) -> int:
        """How many of the questions stand in a text, word for word."""
        return len(Quotes(self.item_texts()).found_in(texts))

    @staticmethod
    def vocabulary() -> set[str]:
        """All tokens of documents, contexts and answers; the same for all seeds."""
        return questions.words_of_exams()

    def _draw(self, name: str, rng: random.Random, *, reserved: bool) -> ExamQuestion:
        while True:
            question = self._writers[name](rng)
            fits = len(_solved(question).split()) <= MAX_QUESTION_TOKENS
            if fits and self.is_reserved(name, question) == reserved:
                return question

    def _reserved_questions(self, name: str) -> list[ExamQuestion]:
        """Different ones."""
        rng = random.Random(f"exam {self._seed} {name}")
        found: dict[str, ExamQuestion] = {}
        while len(found) < self._config.items:
            question = self._draw(name, rng, reserved=True)
            found.setdefault(question.block, question)
        return [*found.values()]

    def _examples_of(self, name: str) -> list[ExamQuestion]:
        """As many as are ever shown, with at least two different answers."""
        rng = random.Random(f"examples of exam {self._seed} {name}")
        while True:
            found = [self._draw(name, rng, reserved=False) for _ in range(max(self._config.shots))]
            if len({question.answer for question in found}) > 1 or len(found) < 2:
                return found


def _solved(question: ExamQuestion) -> str:
    return f"{question.block} {question.answer} {NEWLINE}"
