"""Files of options, folders to write into, and results to report on."""

from pathlib import Path

from table import Row, edited, rows, text

_YAML = "--config my.yaml"


def _file(what: str, content: str | bytes, message: str) -> Row:
    return Row(what=what, step="smoke", options=_YAML, make=text("my.yaml", content), message=message)


FILES = [
    Row(
        what="missing file of options",
        step="smoke",
        options=_YAML,
        message="my.yaml: found no such file or directory, accepted is a YAML file",
    ),
    Row(
        what="folder for a file of options",
        step="smoke",
        options="--config model",
        message="model: found a folder, accepted is a YAML file",
    ),
    _file(
        "no YAML", "seed: [1\n", message="my.yaml: found invalid YAML at line 2 (…), accepted are options and values"
    ),
    _file(
        "a tab in YAML",
        "recipe:\n\tseed: 1\n",
        message="my.yaml: found invalid YAML at line 2 (…), accepted are options and values",
    ),
    _file("a list of options", "- seed\n", message="my.yaml: found a list, accepted is a mapping of options to values"),
    _file(
        "unknown key",
        "learning_rate_of_everything: 1\n",
        message="my.yaml: found the unknown key learning_rate_of_everything, accepted are …",
    ),
    _file(
        "misspelt key",
        "recipe:\n  sft:\n    epoch: 4\n",
        message="my.yaml: found the unknown key recipe.sft.epoch, did you mean 'epochs'?",
    ),
    _file(
        "key twice",
        "seed: 1\nseed: 2\n",
        message="my.yaml: found invalid YAML at line 2 (the key seed twice), accepted are options and values",
    ),
    _file(
        "wrong type",
        "recipe:\n  sft:\n    epochs: many\n",
        message="my.yaml: recipe.sft.epochs: found 'many', accepted is a whole number",
    ),
    _file("True for a number", "seed: true\n", message="my.yaml: seed: found 'True', accepted is a whole number"),
    _file(
        "null where something is needed",
        "seed: null\n",
        message="my.yaml: seed: found null, accepted is a whole number",
    ),
    _file("list for a value", "seed: [1, 2]\n", message="my.yaml: seed: found '1', '2', accepted is a whole number"),
    _file(
        "mapping in a list", "seed: [{a: 1}]\n", message="my.yaml: seed: found {'a': 1} in a list, accepted are values"
    ),
    _file("mapping for a value", "seed: {a: 1}\n", message="my.yaml: seed: found {'a': 1}, accepted is a value"),
    _file("value for a mapping", "recipe:\n  sft: 3\n", message="my.yaml: recipe.sft: found 3, accepted is a mapping"),
    _file(
        "value out of range",
        "recipe:\n  sft:\n    adam:\n      lr: -1.0\n",
        message="my.yaml: recipe.sft.adam.lr: found -1.0, accepted are positive numbers",
    ),
    _file(
        "no such day", "seed: 2024-13-45\n", message="my.yaml: found invalid YAML (…), accepted are options and values"
    ),
    Row(
        what="NUL in a path",
        step="sft",
        options=_YAML,
        make=text("my.yaml", 'corpus: "a\\0b"\n'),
        message="my.yaml: corpus: found 'a\\x00b', accepted is a text of at least one character, without NUL",
    ),
    _file(
        "control character", "seed: \x01\n", message="my.yaml: found invalid YAML (…), accepted are options and values"
    ),
    _file("UTF-16", "seed: 1\n".encode("utf-16"), message="my.yaml: found the byte 0xff at byte 1, accepted is UTF-8"),
    _file(
        "nesting without end",
        "[" * 1500,
        message="my.yaml: found YAML nested too deep, accepted is a mapping of options to values",
    ),
]

FOLDERS = [
    Row(
        what="file for a folder",
        step="sft",
        options="--out corpus.jsonl",
        message="corpus.jsonl: found the file corpus.jsonl, accepted is a folder",
    ),
    Row(
        what="folder below a file",
        step="rm",
        options="--out corpus.jsonl/run",
        message="corpus.jsonl/run: found the file corpus.jsonl, accepted is a folder",
    ),
    Row(
        what="file for the folder of a run",
        step="smoke",
        options="--out corpus.jsonl",
        message="corpus.jsonl: found the file corpus.jsonl, accepted is a folder",
    ),
    Row(
        what="file for the folder of prepared data",
        step="prepare",
        options="--out corpus.jsonl",
        message="out: found the file corpus.jsonl, accepted is a folder",
    ),
    Row(
        what="folder that is no run",
        step="ppo",
        options="--out model",
        message="model: found a folder that is no run, accepted is a new one or one of an earlier run",
    ),
    Row(
        what="model among those that the run would remove",
        step="sft",
        options="--out out --model out/models/sft",
        message="out: found out/models/sft among the models that are removed from it, accepted is another",
    ),
    Row(
        what="folder of a run with other settings",
        step="sft",
        options="--fresh False",
        message="out: found a run with other settings (…); accepted are the same ones, another --out, or --fresh …",
    ),
    Row(
        what="folder of a run whose settings are damaged",
        step="rm",
        options="--fresh False",
        make=text("out/config.yaml", "seed: [1\n"),
        message="out/config.yaml: found no settings (…), accepted is the file as written",
    ),
    Row(
        what="report of nothing",
        options="report nowhere",
        message="run_folder: found no results.json in nowhere and no metrics.jsonl, accepted is the folder of a "
        "run or a step",
    ),
    Row(
        what="results that are no JSON",
        step="report",
        make=text("finished/results.json", "{'a"),
        message="finished/results.json: found …, accepted is a JSON object",
    ),
    Row(
        what="results that are a list",
        step="report",
        make=text("finished/results.json", "[1]"),
        message="finished/results.json: found a JSON list, accepted is a JSON object",
    ),
    Row(
        what="results in UTF-16",
        step="report",
        make=text("finished/results.json", "{}".encode("utf-16")),
        message="finished/results.json: found the byte 0xff at byte 1, accepted is UTF-8",
    ),
    Row(
        what="results of another shape",
        step="report",
        make=edited("finished/results.json", models=3),
        message="finished: found results or metrics that no run writes (…), accepted are the files of a finished run",
    ),
    Row(
        what="metrics cut off in a row",
        step="report",
        make=rows('{"step": 1', name="finished/metrics.jsonl"),
        message="finished/metrics.jsonl, line 1: found …, accepted is a JSON object",
    ),
    Row(
        what="picture of another kind",
        step="report",
        options="--figure rates.png",
        message="figure: found 'rates.png', accepted is a path that ends in .svg",
    ),
    Row(
        what="picture into no folder",
        step="report",
        options="--figure nowhere/rates.svg",
        message="figure: found no folder nowhere, accepted is a file in a folder that is there",
    ),
    Row(
        what="picture of a run without win rates",
        step="report",
        options="--figure rates.svg",
        make=edited("finished/results.json", models=[]),
        message="run_folder: found no win rates in finished, accepted is the folder of a finished run",
    ),
    Row(
        what="folder in place of results.json",
        step="report",
        make=lambda: [Path("finished/results.json").unlink(), Path("finished/results.json").mkdir()],
        message="run_folder: found no results.json in finished and no metrics.jsonl, accepted is the folder of a "
        "run or a step",
    ),
]

ROWS = [*FILES, *FOLDERS]
