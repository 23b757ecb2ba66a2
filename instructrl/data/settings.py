"""Settings of the data: lengths, and how raw files become splits."""

from dataclasses import dataclass
from typing import Literal

from instructrl.settings import require_positive

GROUPINGS = ("user", "source")
# What becomes of rows whose prompt is longer than the limit: left out and counted, or refused.
LongPrompts = Literal["drop", "error"]
# Which turns of the assistant are learned from a conversation.
Turns = Literal["all", "last"]
# The day that it is for every chat template that asks.
DATE = "2025-01-01"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Length limits in tokens (paper, C: prompts above 1k are filtered out, responses are limited to 1k)."""

    # rows with a longer prompt are left out or, by long_prompts, refused
    max_prompt_tokens: int = 1024
    # a longer response is cut and then has no end-of-text token; `judge` leaves it out
    max_response_tokens: int = 1024

    def __post_init__(self) -> None:
        require_positive(self, "max_prompt_tokens", "max_response_tokens")

    @property
    def total(self) -> int:
        """Positions that the longest prompt with the longest response takes."""
        return self.max_prompt_tokens + self.max_response_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareConfig:
    """What to prepare and how. The defaults are the paper's where it gives a number."""

    # folder for the result; made if missing; an earlier preparation of the same sets is replaced
    out: str
    # tokenizer that counts tokens: a model's name or folder, or a folder with encoder.json and vocab.bpe
    tokenizer: str
    # files for SFT (docs/formats.md), or hub:NAME
    demonstrations: tuple[str, ...] = ()
    # files for the reward model
    comparisons: tuple[str, ...] = ()
    # files for PPO
    prompts: tuple[str, ...] = ()
    # the column by which prompts are capped and split: "user" or "source" (such as the organisation)
    group_by: str = "user"
    # of prompts with this many first characters in common, one is kept (the paper gives no number)
    min_prefix_chars: int = 200
    # prompts that one user may have in each set
    cap_per_user: int = 200
    # share of the users in the validation split
    valid_fraction: float = 0.1
    # share of the users in the test split
    test_fraction: float = 0.1
    # seed of the split
    seed: int = 0
    # remove personal data from the training split
    personal_data: bool = True
    # countries (ISO 3166) whose national phone numbers count as personal data
    phone_regions: tuple[str, ...] = ("US",)
    # template with which prompts that are messages are counted: auto (the tokenizer's, if it has one), none, or a Jinja
    # file
    chat_template: str = "auto"
    # today's date, for a template that asks for it
    chat_date: str = DATE
    # longer prompts are left out
    max_prompt_tokens: int = 1024
    # longer responses are left out; the end-of-text token counts
    max_response_tokens: int = 1024

    def __post_init__(self) -> None:
        if not (self.demonstrations or self.comparisons or self.prompts):
            raise ValueError("prepare: found no sources, accepted are demonstrations, comparisons or prompts")
        for name in ("demonstrations", "comparisons", "prompts", "phone_regions"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name}: found the text {getattr(self, name)!r}, accepted is a tuple of texts")
        if self.group_by not in GROUPINGS:
            raise ValueError(f"group_by: found {self.group_by!r}, accepted are {', '.join(GROUPINGS)}")
        for name in ("min_prefix_chars", "cap_per_user", "max_prompt_tokens", "max_response_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, accepted are positive numbers")
        shares = self.valid_fraction, self.test_fraction
        if not (min(shares) >= 0 and sum(shares) < 1):
            raise ValueError(
                f"valid_fraction, test_fraction: found {shares}, accepted are shares that leave some train"
            )

    @property
    def fractions(self) -> dict[str, float]:
        """Share of the users by split."""
        train = 1 - self.valid_fraction - self.test_fraction
        return {"train": train, "valid": self.valid_fraction, "test": self.test_fraction}
