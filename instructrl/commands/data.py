"""`instructrl data`: the paper's hygiene, and a look at every row of a file."""

from instructrl.commands.settings import CheckCommand
from instructrl.data.prepare import prepare
from instructrl.data.readers import check, read_comparisons, read_corpus, read_demonstrations, read_prompts
from instructrl.data.settings import PrepareConfig

_READERS = {
    "demonstrations": read_demonstrations,
    "comparisons": read_comparisons,
    "prompts": read_prompts,
    "corpus": read_corpus,
}


def main(config: PrepareConfig | CheckCommand) -> int:
    """Carry out `instructrl data`. Returns the exit code."""
    if isinstance(config, PrepareConfig):
        print(prepare(config).markdown())
    else:
        print(f"{check(_READERS[config.kind](config.file)):,} rows are good")
    return 0
