"""The table of bad inputs as a page: `python tests/bad_input/render.py` writes docs/bad_input.md."""

import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # as pytest has them

import accepted  # noqa: E402
import rows_adapters  # noqa: E402
import rows_baselines  # noqa: E402
import rows_chat  # noqa: E402
import rows_configs  # noqa: E402
import rows_data  # noqa: E402
import rows_data_in_steps  # noqa: E402
import rows_engines  # noqa: E402
import rows_judge  # noqa: E402
import rows_model_names  # noqa: E402
import rows_models  # noqa: E402
import rows_ops  # noqa: E402
import rows_ops_advantages  # noqa: E402
import rows_ops_ranking  # noqa: E402
import rows_options  # noqa: E402
import rows_other_models  # noqa: E402
import rows_python  # noqa: E402
import rows_sets  # noqa: E402
import rows_studies  # noqa: E402
import rows_suites  # noqa: E402
import rows_unused  # noqa: E402

FAMILIES = [
    ("Options", rows_options.ROWS),
    ("Files of options, folders, reports", rows_configs.ROWS),
    ("Data, by themselves", rows_data.ROWS),
    ("Data, in a step", rows_data_in_steps.ROWS),
    ("Names of models", rows_model_names.ROWS),
    ("Adapters", rows_adapters.ROWS),
    ("Engines, trackers, devices", rows_engines.ROWS),
    ("Left unused, of another kind, left over", rows_unused.ROWS),
    ("Models", rows_models.ROWS),
    ("Tokenizers and reward models", rows_other_models.ROWS),
    ("Chat templates", rows_chat.ROWS),
    ("Baselines and sizes of the miniature", rows_baselines.ROWS),
    ("Public test sets", [*rows_suites.ROWS, *rows_sets.ROWS]),
    ("Studies", rows_studies.ROWS),
    ("Verdicts and benchmarks of reward models", rows_judge.ROWS),
]

_OP_ROWS = [*rows_ops.ROWS, *rows_ops_advantages.ROWS, *rows_ops_ranking.ROWS]

_INTRODUCTION = """# Bad input, and what is said about it

The tests in `tests/bad_input/` carry out every row. A command ends with exit code 2 and one line on standard error. The
line begins with `instructrl: error:`, then says what was found and what is accepted; `--debug` shows the traceback.
Nothing is written, removed or changed, not even an earlier run that `--fresh` would replace. In a message, … stands for
words of another library or for other numbers; in a command, for options that are right.
`python tests/bad_input/render.py` writes this page.
"""


def page() -> str:
    """The page as text."""
    parts = [_INTRODUCTION]
    for title, rows in FAMILIES:
        parts += [f"## {title}\n", _table(["what is wrong", "command", "message"], _shown(rows))]
    parts += [
        "## Arguments of the ops\n",
        "`X` is [2, 3], `LOGITS` [2, 3, 7], `HIDDEN` [2, 3, 5], `WEIGHT` [7, 5]; `op_row.py` has all names.\n",
        _table(
            ["what is wrong", "call", "message"],
            ([r.what, _code(r.call), _code(r.message)] for r in _OP_ROWS),
        ),
        "## Calls from Python\n",
        "`rows_python.py` has what the names are short for.\n",
        _table(
            ["what is wrong", "call", "message"],
            ([r.what, _code(r.call), _code(r.message)] for r in rows_python.ROWS),
        ),
        "## What is accepted\n",
        "Input that looks wrong and is not, and what comes of it.\n",
        _table(["input", "what happens"], ([row.what, row.happens] for row in accepted.ROWS)),
    ]
    return "\n".join(parts)


def _shown(rows: Iterable) -> Iterable[list[str]]:
    return ([row.what, _code(row.shown), _code(row.message)] for row in rows)


def _table(head: list[str], lines: Iterable[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _code(text: str) -> str:
    """A code span; a text with backticks takes more of them."""
    fence = "``" if "`" in text else "`"
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}".replace("|", "\\|")


if __name__ == "__main__":
    (HERE.parents[1] / "docs/bad_input.md").write_text(page(), encoding="utf-8")
