"""`instructrl data`: the paper's hygiene, and a look at every row of a file."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from instructrl.commands.settings import CheckCommand
from instructrl.data.prepare import prepare
from instructrl.data.readers import Records, check, read_comparisons, read_corpus, read_demonstrations, read_prompts
from instructrl.data.settings import PrepareConfig
from instructrl.types import Comparison

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
    print(f"{check(records):,} rows are good")
    if config.kind == "comparisons":
        _tell_of_equal_pairs(records)
    return 0


def _tell_of_equal_pairs(comparisons: Sequence[Comparison]) -> None:
    """A line where preferences are between equal texts. Texts that are equal once they are cut are seen by `rm`."""
    pairs = [row.completions[i] == row.completions[j] for row in comparisons for i, j in row.preferred]
    if any(pairs):
        print(f"{sum(pairs):,} of {len(pairs):,} preferred pairs are of equal texts: `rm` leaves them out")
