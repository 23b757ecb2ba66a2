"""Files of verdicts, responses and benchmarks, and what `instructrl judge` cannot do with them."""

import json
from collections.abc import Callable

from table import Row, both, rows, text

_PAIR = {"instruction": "w1", "output_1": "w2", "output_2": "w3", "preference": 1}
_NAMED = {**_PAIR, "generator_1": "a", "generator_2": "b"}
_OUTPUT = {"instruction": "w1", "output": "w2", "generator": "a"}
_TIED = {"prompt": "w1", "chosen": ["w2", "w3"], "rejected": ["w4"], "subset": "Ties", "id": "tied:1"}


def _file(*found: object, name: str = "a.json") -> Callable[[], object]:
    return text(name, json.dumps(found))


def _annotations(what: str, message: str, *found: object, options: str = "") -> Row:
    return Row(what=what, step="judge", options=options, make=_file(*found), message=message)


def _benchmark(what: str, message: str, *found: object) -> Row:
    return Row(what=what, step="benchmark", make=rows(*found), message=message)


ROWS = [
    Row(
        what="nothing to judge",
        options="judge",
        message="annotations, outputs, results, benchmark: found none of them, accepted is at least one",
    ),
    Row(
        what="outputs without a judge",
        options="judge --outputs a.json b.json",
        message="outputs: found files and no reward_model, which has to judge them; accepted are both",
    ),
    Row(
        what="outputs of one model",
        options="judge --outputs a.json --reward-model reward",
        message="outputs: found one file, accepted are at least two, of different models",
    ),
    Row(
        what="reward model with nothing to judge",
        options="judge --results finished/results.json --reward-model reward",
        message="reward_model: found one with nothing to judge, accepted is one with annotations, outputs or benchmark",
    ),
    Row(
        what="limits without a reward model",
        step="judge",
        options="--limits.max-prompt-tokens 5",
        message="limits.max_prompt_tokens: found 5, which nothing uses without reward_model; accepted is both, or "
        "neither",
    ),
    Row(
        what="annotations that are not there",
        step="judge",
        message="a.json: found no such file or directory, accepted is a path that can be used",
    ),
    Row(
        what="annotations that are no JSON",
        step="judge",
        make=text("a.json", "{"),
        message="a.json: found no JSON (Expecting property name …), accepted is a list of objects",
    ),
    Row(
        what="annotations that are one object",
        step="judge",
        make=text("a.json", "{}"),
        message="a.json: found dict, accepted is a list of objects",
    ),
    _annotations("no annotations", "a.json: found an empty list, accepted is a list of objects"),
    _annotations("annotation that is no object", "a.json, row 2: found int, accepted is an object", _PAIR, 7),
    _annotations(
        "annotation without a response",
        "a.json, row 1: output_2: found nothing, accepted is a text",
        {key: value for key, value in _PAIR.items() if key != "output_2"},
    ),
    _annotations(
        "preference out of range",
        "a.json, row 2: preference: found 3, accepted is 1 to 2, 0 (a tie) or null",
        _PAIR,
        {**_PAIR, "preference": 3},
    ),
    _annotations(
        "preference in words",
        "a.json, row 1: preference: found '2', accepted is 1 to 2, 0 (a tie) or null",
        {**_PAIR, "preference": "2"},
    ),
    _annotations(
        "one model of a pair",
        "a.json, row 1: found one of generator_1 and generator_2, accepted are both or none",
        {**_PAIR, "generator_1": "a"},
    ),
    _annotations("unknown baseline", "baseline: found 'z', accepted are a, b", _NAMED, options="--baseline z"),
    Row(
        what="folder of something else for the results",
        step="judge",
        options="--out out",
        make=_file(_NAMED),
        message="out: found files in out, accepted is a new folder, or --fresh True for one of judge",
    ),
    Row(
        what="table of difficulties without a column",
        step="judge",
        options="--gamed g.csv",
        make=both(_file(*[_NAMED] * 5), text("g.csv", "index,preference\n0,1\n")),
        message="g.csv: found 'index', 'preference', accepted is a header with preference, index, std_delta_len, "
        "instruction_difficulty",
    ),
    Row(
        what="results without responses",
        options="judge --results finished/results.json",
        message="finished/results.json: found no samples, accepted are the results of `instructrl eval` with win rates",
    ),
    Row(
        what="outputs of other instructions",
        step="outputs",
        make=both(_file(_OUTPUT), _file({**_OUTPUT, "instruction": "w9", "generator": "b"}, name="b.json")),
        message="b.json: found other instructions than 'a' has, accepted are the same ones",
    ),
    Row(
        what="outputs of the same model",
        step="outputs",
        make=both(_file(_OUTPUT), _file(_OUTPUT, name="b.json")),
        message="b.json: found the model 'a' again, accepted are different ones",
    ),
    Row(
        what="outputs of two models in a file",
        step="outputs",
        make=_file(_OUTPUT, {**_OUTPUT, "generator": "b"}),
        message="a.json, row 2: generator: found 'b' after 'a', accepted is one model a file",
    ),
    Row(
        what="instruction twice",
        step="outputs",
        make=_file(_OUTPUT, _OUTPUT),
        message="a.json, row 2: found the instruction of row 1 again, accepted is each once",
    ),
    _benchmark(
        "benchmark of another layout", "rows.jsonl:1: prompt: found nothing, accepted is a text", {"text": "w1"}
    ),
    _benchmark(
        "pair that is judged to be a tie",
        "rows.jsonl:1: label: found 'A=B', accepted is A>B or B>A",
        {"question": "w1", "response_A": "w2", "response_B": "w3", "label": "A=B"},
    ),
    _benchmark(
        "prompt of Ties without its twin", "rows.jsonl:1: id: found tied:1 without ref:1, accepted are both", _TIED
    ),
    _benchmark(
        "benchmark of long responses alone",
        "rows.jsonl: found nothing but rows longer than the limits, accepted is at least one that fits",
        {"prompt": "w1", "chosen": " ".join(["w2"] * 20), "rejected": "w3"},
    ),
]
