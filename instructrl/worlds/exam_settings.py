"""Settings of exams."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamMix:
    """Shares of the exams among the documents of the corpus that are exams (any positive scale)."""

    reading: float = 1.0
    counting: float = 1.0
    translation: float = 1.5
    reviews: float = 1.0
    endings: float = 1.0
    pronouns: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0.0:
                raise ValueError(f"{field.name}: found {getattr(self, field.name)}, accepted are shares from 0")
        if not any(getattr(self, field.name) for field in fields(self)):
            raise ValueError("mix: found only shares of 0, accepted is at least one positive share")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamConfig:
    """How hard exams are, and how much is asked."""

    # shares of the exams in documents
    mix: ExamMix = ExamMix()
    # questions of each exam that models are asked
    items: int = 200
    # examples in front of a question, each an examination of its own
    shots: tuple[int, ...] = (0, 3)
    # questions of a document, at least and at most; long ones are fewer
    min_questions: int = 3
    max_questions: int = 8
    # share of all questions that no document holds, from which those that are asked are taken
    reserved: float = 0.2
    # share of the questions about a passage that it does not answer
    unanswerable: float = 0.2
    # numbers are added and subtracted from one to this
    max_number: int = 5
    # share of the questions about numbers that need no arithmetic
    lookups: float = 0.4
    # share of reviews with a `not` or a `but`
    mixed_reviews: float = 0.4
    # share of stories that are of one animal alone
    plain_stories: float = 0.5

    def __post_init__(self) -> None:
        if self.items < 1:
            raise ValueError(f"items: found {self.items}, accepted is at least 1")
        if not self.shots or len(set(self.shots)) < len(self.shots) or not all(0 <= shots <= 3 for shots in self.shots):
            raise ValueError(f"shots: found {self.shots}, accepted are different numbers from 0 to 3")
        if not 1 <= self.min_questions <= self.max_questions:
            found = f"{self.min_questions} to {self.max_questions}"
            raise ValueError(f"max_questions: found {found}, accepted are numbers from 1, the fewest first")
        if not 2 <= self.max_number <= 5:
            raise ValueError(f"max_number: found {self.max_number}, accepted are 2 to 5")
        if not 0.0 < self.reserved < 1.0:
            raise ValueError(f"reserved: found {self.reserved}, accepted are numbers between 0 and 1")
        for name in ("unanswerable", "lookups", "mixed_reviews", "plain_stories"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: found {getattr(self, name)}, accepted is 0 to 1")
