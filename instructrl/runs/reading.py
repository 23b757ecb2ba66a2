"""The rows of a step's data that it can use: what is left out of them, and what is held out of them."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from instructrl import progress
from instructrl.data.encoding import Encoder
from instructrl.data.hygiene import completion_texts, prompt_hash, prompt_text
from instructrl.data.readers import Records, at_row, read_comparisons, read_demonstrations, read_prompts
from instructrl.data.settings import LongPrompts
from instructrl.types import Comparison, Conversation, Demonstration, Prompt

RecordT = TypeVar("RecordT", Prompt, Demonstration, Comparison)

# Of the prompts, where no validation data are given: as `data prepare` does it.
HELD_OUT_SHARE = 0.1
NO_VALIDATION = "none"


class Reader:
    """Reads sources, every row of them. notes: what a person should know of the rows that are not used, a line each.

    long_prompts: what happens to rows whose prompt is above the limit: "drop" leaves them out, "error" refuses them.
    All methods raise DataError for a row that is wrong, and ValueError where nothing is left.
    """

    def __init__(self, encoder: Encoder, long_prompts: LongPrompts) -> None:
        self.encoder, self.long_prompts = encoder, long_prompts
        self.notes: list[str] = []
        self._told_of_texts = False

    def demonstrations(self, source: str | Path) -> Records[Demonstration]:
        """Those whose prompts fit."""
        return self._fitting(source, read_demonstrations(source))

    def prompts(self, source: str | Path) -> Records[Prompt]:
        """Those that fit."""
        return self._fitting(source, read_prompts(source))

    def comparisons(self, source: str | Path) -> Records[Comparison]:
        """Those whose prompts fit, without the pairs of equal responses, and without rows that had no other pairs."""
        records = self._fitting(source, read_comparisons(source))
        places, num_pairs, num_left = [], 0, 0
        for place, row in enumerate(progress.through(f"pairs of {source}", records)):
            left = self.encoder.without_equal_pairs(row)
            num_pairs, num_left = num_pairs + len(row.preferred), num_left + len(left.preferred)
            if left.preferred or not row.preferred:
                places.append(place)
        if num_left == num_pairs:
            return records
        equal = f"equal responses in {num_pairs - num_left:,} of {num_pairs:,} pairs"
        limit = f"cut at {self.encoder.limits.max_response_tokens:,} tokens"
        if not num_left:
            raise ValueError(f"{source}: found {equal} ({limit}), accepted is at least one pair that differs")
        rows = f" and {len(records) - len(places):,} rows that have no others" if len(places) < len(records) else ""
        self.notes.append(f"{source}: {equal} ({limit}): these pairs{rows} are left out, for they teach nothing")
        return records.at(places).changed(self.encoder.without_equal_pairs)

    def with_validation(
        self, source: str, validation: str | None, read: Callable[[str | Path], Records[RecordT]]
    ) -> tuple[Records[RecordT], Records[RecordT] | None]:
        """The rows to train on, and those to validate on.

        validation: their source; NO_VALIDATION for none; None holds out a share of the first source, by the hash of the
        prompt: the same rows every time, and no prompt on both sides. read: one of the methods above.
        """
        records = read(source)
        if validation == NO_VALIDATION:
            return records, None
        if validation is not None:
            return records, read(validation)
        hashes = [prompt_hash(row) for row in records]
        ordered = sorted(set(hashes))
        if len(ordered) < 2:
            raise ValueError(f"validation: found one prompt in {source}, accepted is a file, or {NO_VALIDATION}")
        last = ordered[max(round(len(ordered) * HELD_OUT_SHARE), 1) - 1]
        held_out = [place for place, value in enumerate(hashes) if value <= last]
        self.notes.append(
            f"{source}: {len(held_out):,} of {len(records):,} rows are held out for validation, by the hash of their "
            f"prompt (--validation {NO_VALIDATION} holds out none)"
        )
        return records.at([place for place, value in enumerate(hashes) if value > last]), records.at(held_out)

    def _fitting(self, source: str | Path, records: Records[RecordT]) -> Records[RecordT]:
        limit = self.encoder.limits.max_prompt_tokens
        places, texts = [], 0
        for place, row in enumerate(progress.through(f"reading {source}", records)):
            texts += not isinstance(prompt_text(row), Conversation)
            with at_row(records, place):
                self.encoder.check(prompt_text(row), completion_texts(row))
                fits = self.encoder.fits(prompt_text(row))
            if fits:
                places.append(place)
            elif self.long_prompts == "error":
                raise ValueError(
                    f"{records.where(place)}: found a prompt of more than {limit} tokens, accepted are up to {limit}; "
                    "--long-prompts drop leaves such rows out"
                )
        self._tell_of_texts(source, texts, len(records))
        if not places:
            raise ValueError(
                f"{source}: found prompts of more than {limit} tokens alone, in {len(records):,} rows; accepted is at "
                "least one that is not longer"
            )
        if len(places) == len(records):
            return records
        num_long = len(records) - len(places)
        self.notes.append(
            f"{source}: {num_long:,} of {len(records):,} rows are left out, their prompts have more than {limit:,} "
            "tokens (--long-prompts error refuses them)"
        )
        return records.at(places)

    def _tell_of_texts(self, source: str | Path, texts: int, rows: int) -> None:
        """Once: what holds for one file of texts holds for the others."""
        if self.encoder.chat is None or not texts or self._told_of_texts:
            return
        self._told_of_texts = True
        end = self.encoder.tokenizer.convert_ids_to_tokens(self.encoder.end_of_text)
        self.notes.append(
            f"{source}: {texts:,} of {rows:,} prompts are texts, which the tokenizer's chat template does not render, "
            f"though responses end with its {end}: write them as messages (role user), or leave the template out "
            "(--chat-template none)"
        )


def check_preferences(name: str, comparisons: Records[Comparison]) -> None:
    """Raise ValueError where no comparison prefers anything: there is nothing to learn from. name: of the data."""
    if not any(row.preferred for row in comparisons):
        raise ValueError(
            f"{name}: found ties alone in {len(comparisons)} comparisons, accepted is at least one preferred completion"
        )
