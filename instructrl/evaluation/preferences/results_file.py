"""The responses and scores in a `results.json` of ours, as outputs and judgements."""

import json
import math
from pathlib import Path
from typing import Any

from instructrl.evaluation.preferences.alpaca_eval import Outputs
from instructrl.evaluation.preferences.judgements import Judgement, of_scores
from instructrl.evaluation.suites.layouts import LayoutError, json_file, rows_at


def read_results(path: str | Path) -> tuple[list[Outputs], list[Judgement]]:
    """Outputs of each model, the baseline's first, and the verdicts of the judge's scores on all pairs of them.

    There are no verdicts where a response has no score. Raises LayoutError where the file holds no responses, or not
    one of every model to every prompt.
    """
    content = json_file(Path(path))
    if not content.get("samples"):
        raise LayoutError(f"{path}: found no samples, accepted are the results of `instructrl eval` with win rates")
    rows = rows_at(content, "samples", str(path))
    answers = [_answers(row, where) for where, row in rows]
    models = list(answers[0])
    for (where, _), row in zip(rows, answers, strict=True):
        if set(row) != set(models):
            raise LayoutError(
                f"{where}: found responses of {', '.join(row)}, accepted are those of {', '.join(models)}"
            )
    run = content.get("run") or {}
    models.sort(key=lambda name: name != run.get("baseline"))
    prompts = tuple(row["prompt"] for _, row in rows)
    datasets = tuple(str(row.get("category") or "") for _, row in rows)
    texts = {name: [row[name][0] for row in answers] for name in models}
    outputs = [
        Outputs(model=name, instructions=prompts, texts=tuple(texts[name]), datasets=datasets) for name in models
    ]
    scores = {name: [row[name][1] for row in answers] for name in models}
    if any(not math.isfinite(score) for found in scores.values() for score in found):
        return outputs, []
    return outputs, of_scores(prompts, texts, scores, str(run.get("judge") or "score"), datasets)


def _answers(row: dict[str, Any], where: str) -> dict[str, tuple[str, float]]:
    """Of each model its response and score, NaN where there is none."""
    responses = row.get("responses")
    if not isinstance(row.get("prompt"), str) or not isinstance(responses, dict) or not responses:
        raise LayoutError(f"{where}: found {json.dumps(row)[:60]}, accepted are a prompt and responses")
    found = {}
    for name, response in responses.items():
        if not isinstance(response, dict) or not isinstance(response.get("text"), str):
            raise LayoutError(f"{where}: {name}: found {json.dumps(response)[:60]}, accepted is a response with a text")
        score = response.get("score")
        found[name] = (response["text"], float(score) if isinstance(score, (int, float)) else math.nan)
    return found
