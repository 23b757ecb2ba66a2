"""`instructrl data`: the paper's hygiene, and a look at every row of a file."""

from collections.abc import Sequence

from instructrl.commands import options
from instructrl.data.prepare import PrepareConfig, prepare
from instructrl.data.readers import check, read_comparisons, read_corpus, read_demonstrations, read_prompts

_READERS = {
    "demonstrations": read_demonstrations,
    "comparisons": read_comparisons,
    "prompts": read_prompts,
    "corpus": read_corpus,
}

_USAGE = """usage: instructrl data prepare [OPTIONS]
       instructrl data check {demonstrations,comparisons,prompts,corpus} FILE

prepare: duplicates by long common prefix, cap per user, split by user, personal data out of the training split, length
limits; writes the splits and a report of counts and lengths. check: reads every row and names those that are wrong."""


def main(arguments: Sequence[str]) -> int:
    """Carry out `instructrl data`. Returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    if arguments[0] == "prepare":
        config = options.parse(
            PrepareConfig, arguments[1:], program="instructrl data prepare", description="The paper's data hygiene."
        )
        print(prepare(config).markdown())
        return 0
    if arguments[0] == "check":
        parser = options.Parser(prog="instructrl data check", description="Read every row of a file.")
        parser.add_argument("kind", choices=_READERS)
        parser.add_argument("file")
        chosen = parser.parse_args(arguments[1:])
        print(f"{check(_READERS[chosen.kind](chosen.file)):,} rows are good")
        return 0
    raise ValueError(f"data: found {arguments[0]!r}, accepted are prepare and check")
