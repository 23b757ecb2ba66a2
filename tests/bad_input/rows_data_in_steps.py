"""Data as the steps find it: what is wrong in it is said before anything is written."""

from pathlib import Path

from table import Row, rows

_GOOD = {"prompt": "w1", "completion": "w2"}
_PAIR = {"prompt": "w1", "completions": ["w2", "w3"]}
_LONG = {"prompt": " ".join(["w1"] * 13), "completion": "w2"}

ROWS = [
    Row(
        what="bad last row, SFT",
        step="sft",
        options="--data rows.jsonl",
        make=rows(_GOOD, _GOOD, {"prompt": 3}),
        message="rows.jsonl:3: prompt: found int 3, accepted is a text",
    ),
    Row(
        what="bad row in the validation",
        step="sft",
        options="--validation rows.jsonl",
        make=rows(_GOOD, "{"),
        message="rows.jsonl:2: found … at character 2, accepted is one JSON object a line",
    ),
    Row(
        what="prompt over the limit, SFT",
        step="sft",
        options="--data rows.jsonl --long-prompts error",
        make=rows(_GOOD, _LONG),
        message=(
            "rows.jsonl:2: found a prompt of more than 12 tokens, accepted are up to 12; --long-prompts drop leaves "
            "such rows out"
        ),
    ),
    Row(
        what="prompt over the limit, comparisons",
        step="rm",
        options="--data rows.jsonl --long-prompts error",
        make=rows({**_PAIR, "ranks": [1, 2]}, {**_LONG, **_PAIR, "prompt": _LONG["prompt"], "ranks": [1, 2]}),
        message=(
            "rows.jsonl:2: found a prompt of more than 12 tokens, accepted are up to 12; --long-prompts drop leaves "
            "such rows out"
        ),
    ),
    Row(
        what="prompt over the limit, behind a blank line",
        step="ppo",
        options="--data rows.jsonl --long-prompts error",
        make=rows({"prompt": "w1"}, "", _LONG),
        message=(
            "rows.jsonl:3: found a prompt of more than 12 tokens, accepted are up to 12; --long-prompts drop leaves "
            "such rows out"
        ),
    ),
    Row(
        what="prompt of 10,000 words",
        step="eval",
        options="--data rows.jsonl",
        make=rows({"prompt": "w1 " * 10_000}),
        message=(
            "rows.jsonl: found prompts of more than 12 tokens alone, in 1 rows; accepted is at least one that is not "
            "longer"
        ),
    ),
    Row(
        what="all ties",
        step="rm",
        options="--data rows.jsonl",
        make=rows(*({**_PAIR, "prompt": f"w{number}", "ranks": [1, 1]} for number in range(3))),
        message="rows.jsonl: found ties alone in 2 comparisons, accepted is at least one preferred completion",
    ),
    Row(
        what="one prompt, of which none can be held out",
        step="rm",
        options="--data rows.jsonl",
        make=rows(*[{**_PAIR, "ranks": [1, 2]}] * 3),
        message="validation: found one prompt in rows.jsonl, accepted is a file, or none",
    ),
    Row(
        what="responses that are equal once they are cut",
        step="rm",
        options="--data rows.jsonl",
        make=rows({"prompt": "w1", "chosen": "w2 " * 9, "rejected": "w2 " * 10}),
        message=(
            "rows.jsonl: found equal responses in 1 of 1 pairs (cut at 8 tokens), accepted is at least one pair that "
            "differs"
        ),
    ),
    Row(
        what="word for what is done with long prompts",
        step="ppo",
        options="--long-prompts cut",
        message="--long-prompts: found 'cut', accepted is drop or error",
    ),
    Row(
        what="comparisons for demonstrations",
        step="rm",
        options="--demonstrations comparisons.jsonl",
        message=("comparisons.jsonl:1: completion: found the columns prompt, completions, preferences, accepted are …"),
    ),
    Row(
        what="demonstrations for comparisons",
        step="rm",
        options="--data demonstrations.jsonl",
        message=(
            "demonstrations.jsonl:1: completions: found the columns prompt, completion, accepted are prompt (or …"
        ),
    ),
    Row(
        what="bad row in the validation, reward model",
        step="rm",
        options="--validation rows.jsonl",
        make=rows("{}"),
        message=("rows.jsonl:1: completions: found the columns (none), accepted are prompt (or …"),
    ),
    Row(
        what="corpus shorter than a block",
        step="sft",
        options="--corpus rows.jsonl --block-tokens 20 --sft.pretraining-fraction 0.25",
        make=rows({"text": "w1 w2"}),
        message="corpus: found 3 tokens, accepted is at least one block of 20",
    ),
    Row(
        what="corpus of empty texts",
        step="ppo",
        options="--corpus rows.jsonl --block-tokens 16 --ppo.ptx-coef 1",
        make=rows({"text": ""}),
        message="corpus: found 1 tokens, accepted is at least one block of 16",
    ),
    Row(
        what="missing corpus",
        step="ppo",
        options="--corpus nowhere.jsonl --block-tokens 16 --ppo.ptx-coef 1",
        message="nowhere.jsonl: found no such file, accepted is a readable file",
    ),
    Row(
        what="split that is missing",
        step="files",
        make=lambda: Path("splits/prompts.test.jsonl").unlink(),
        message="splits/prompts.test.jsonl: found no such file, accepted is a readable file",
    ),
    Row(
        what="bad row in a split",
        step="files",
        make=rows({"prompt": "w1"}, {"prompt": []}, name="splits/prompts.test.jsonl"),
        message="splits/prompts.test.jsonl:2: prompt: found list [], accepted is a list of at least one message",
    ),
    Row(
        what="all ties in a split",
        step="files",
        make=rows({**_PAIR, "ranks": [2, 2]}, name="splits/comparisons.valid.jsonl"),
        message=(
            "splits/comparisons.valid.jsonl: found ties alone in 1 comparisons, accepted is at least one "
            "preferred completion"
        ),
    ),
    Row(
        what="plain text for one block alone",
        step="files",
        options="--corpus rows.jsonl",
        make=rows({"text": "w1 " * 20}),
        message="rows.jsonl: found one block of 16 tokens, accepted are two: one is held out",
    ),
    Row(
        what="bad row to prepare",
        step="prepare",
        options="--prompts rows.jsonl",
        make=rows({"prompt": "w1"}, "[]"),
        message="rows.jsonl:2: found JSON of type list, accepted is one JSON object a line",
    ),
    Row(
        what="nothing left to train on",
        step="prepare",
        options="--prompts rows.jsonl",
        make=rows({"prompt": "mail me at me@example.com"}),
        message="prompts: found no record left for training, accepted is at least one",
    ),
]
