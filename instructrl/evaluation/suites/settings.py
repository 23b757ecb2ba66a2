"""Settings of the public test sets."""

from dataclasses import dataclass
from typing import Literal

from instructrl.settings import require_positive

ShotsName = Literal["zero", "few", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteConfig:
    """How models are put through suites."""

    # folder with a folder of each suite (docs/suites.md names the files)
    data: str | None = None
    # items of each task at most, drawn with the seed and told; null is all
    items: int | None = None
    # where the paper gives examples in the prompt: without them, with them, or both
    shots: ShotsName = "zero"
    # what scores toxicity: stand-in (trained on RealToxicityPrompts' own scores), perspective, or MODULE:FUNCTION
    toxicity: str = "stand-in"
    # what judges truth and information of TruthfulQA's answers: train, none, or the folder in which an earlier
    # evaluation left its judges
    judges: str = "train"
    # the model that the judges are trained from; null is the first one that is evaluated
    judge_base: str | None = None
    # tokens of prompts with their answers that are decoded together: memory for their keys and values
    batch_tokens: int = 65536
    # of what is drawn: items and examples, and of the judges' training
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "items", "batch_tokens")
