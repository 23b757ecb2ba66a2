"""`instructrl data`: the paper's hygiene, and a look at every row of a file."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from instructrl.commands.generate import show
from instructrl.commands.settings import CheckCommand
from instructrl.data.encoding import LEARNED, as_read
from instructrl.data.prepare import prepare
from instructrl.data.readers import Records, check, read_comparisons, read_corpus, read_demonstrations, read_prompts
from instructrl.data.settings import Limits, PrepareConfig
from instructrl.runs.reading import Reader
from instructrl.runs.standalone import load_encoder
from instructrl.types import Comparison

# Tokens: here nothing is too long.
_MANY = 1 << 30
_READERS: Mapping[str, Callable[[str], Records[Any]]] = {
    "demonstrations": read_demonstrations,
    "comparisons": read_comparisons,
    "prompts": read_prompts,
    "corpus": read_corpus,
}


def main(config: PrepareConfig | CheckCommand) -> int:
    """Carry out `instructrl data`. Returns the exit code."""
    if isinstance(config, PrepareConfig):
        print(prepare(config).markdown())
        return 0
    records = _READERS[config.kind](config.file)
    count = check(records)
    shown = () if config.model is None else _first(config, config.model)
    print(f"{count:,} rows are good")
    if config.kind == "comparisons":
        _tell_of_equal_pairs(records)
    for text in shown:
        show(text)
    return 0


def _first(config: CheckCommand, model: str) -> list[str]:
    """Render every row. Returns what there is to say, with the first row as the model reads it."""
    if config.kind == "corpus":
        raise ValueError("model: found one for plain text, accepted is one for data with prompts")
    encoder = load_encoder(model, Limits(max_prompt_tokens=_MANY, max_response_tokens=_MANY), config)
    reader = Reader(encoder, "error")
    first = getattr(reader, config.kind)(config.file)[0]
    text, num_tokens, num_learned = as_read(first, encoder, config.turns)
    learned = f", {num_learned:,} of them, between {LEARNED[0]} and {LEARNED[1]}, learned" if num_learned else ""
    return [*reader.notes, f"the first row, {num_tokens:,} tokens{learned}:", *text.split("\n")]


def _tell_of_equal_pairs(comparisons: Sequence[Comparison]) -> None:
    """A line where preferences are between equal texts. Texts that are equal once they are cut are seen by `rm`."""
    pairs = [row.completions[i] == row.completions[j] for row in comparisons for i, j in row.preferred]
    if any(pairs):
        print(f"{sum(pairs):,} of {len(pairs):,} preferred pairs are of equal texts: `rm` leaves them out")
