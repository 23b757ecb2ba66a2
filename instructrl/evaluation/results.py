"""The numbers of a run as one JSON document: what the report, the terminal's table and other programs read."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructrl import __version__
from instructrl.evaluation.contenders import Performance
from instructrl.evaluation.preferences.entries import all_by_scores, length_controlled
from instructrl.evaluation.preferences.length_control import NoOptimumError
from instructrl.evaluation.statistics import (
    mean_interval,
    outcomes_from_scores,
    pair_agreement,
    proportion,
    reward_accuracy,
    tax_recovery,
    win_rate,
)
from instructrl.rollout.generate import Samples
from instructrl.types import Comparison, Prompt

# In the table of the tax, beside the contenders.
START = "PPO start"
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


def compare(performances: Sequence[Performance], prompts: Sequence[Prompt], baseline: str) -> list[dict[str, Any]]:
    """The `models` entry: each contender against the baseline on the same prompts.

    Raises ValueError where no contender has the baseline's name.
    """
    names = [performance.name for performance in performances]
    if baseline not in names:
        raise ValueError(f"baseline: found {baseline!r}, accepted are {names}")
    reference = performances[names.index(baseline)]
    return [_model_row(performance, reference, prompts) for performance in performances]


def identities(of: Performance | Samples) -> list[tuple[str, bool]]:
    """What tells responses apart: the text, and whether it ended by itself."""
    return list(zip(of.texts, of.finished, strict=True))


def _model_row(performance: Performance, reference: Performance, prompts: Sequence[Prompt]) -> dict[str, Any]:
    scores = [judgement.score for judgement in performance.judgements]
    won = outcomes(performance, reference)
    users = [prompt.user for prompt in prompts]
    categories = np.array([prompt.category for prompt in prompts])
    by_category = {}
    for category in sorted(set(categories.tolist()) - {""}):
        chosen = np.flatnonzero(categories == category)
        by_category[category] = asdict(win_rate(won[chosen], [users[i] for i in chosen]))
    likerts = [judgement.likert for judgement in performance.judgements if judgement.likert is not None]
    return {
        "name": performance.name,
        "win_rate": asdict(win_rate(won, users)),
        "length_controlled": _length_controlled(won, performance.texts, reference.texts),
        "win_rate_by_category": by_category,
        "judge_score": asdict(mean_interval(scores)),
        "likert": asdict(mean_interval(likerts)) if likerts else None,
        "metadata": label_rates(performance),
        "score": float(np.mean(performance.rewards)),
        "kl": performance.kl,
        "corpus_loss": performance.corpus_loss,
        "fact_accuracy": performance.fact_accuracy,
        "response_tokens": float(np.mean(performance.num_tokens)),
        "finished": float(np.mean(performance.finished)),
    }


def _length_controlled(*given: Any) -> dict[str, Any] | None:
    """None also where a run has too few verdicts for a fit: its other numbers stand without this one."""
    try:
        return length_controlled(*given)
    except NoOptimumError:
        return None


def outcomes(performance: Performance, reference: Performance) -> NDArray[np.float64]:
    """What the judgements of two contenders say per prompt: 1 where the first wins, 0.5 a tie; equal responses tie."""
    same = [a == b for a, b in zip(identities(performance), identities(reference), strict=True)]
    ours, theirs = ([judgement.score for judgement in of.judgements] for of in (performance, reference))
    return outcomes_from_scores(ours, theirs, same)


def label_rates(performance: Performance) -> dict[str, Any]:
    """Rate of each yes/no label among the responses for which the judge answered it."""
    answers: dict[str, list[bool]] = {}
    for judgement in performance.judgements:
        for flag, value in judgement.metadata.items():
            answers.setdefault(flag, []).append(value)
    rows = {flag: asdict(proportion(sum(values), len(values))) for flag, values in sorted(answers.items())}
    return rows


def alignment_tax(
    performances: Sequence[Performance],
    start: Sequence[float],
    *,
    pretrained: str = "GPT",
    ppo: str = "PPO",
    ppo_ptx: str = "PPO-ptx",
) -> dict[str, Any]:
    """What alignment costs on pretraining text, as the paper has it: against the pretrained model, in nats a token.

    start: block losses of the model that PPO started from, which has paid a part of the tax. A tax is the mean over
    blocks of the loss above the pretrained model's, with its interval; models of the same weights have none.
    recovered: the share of PPO's tax that PPO-ptx did not pay, None where PPO's is not clearly positive.
    """
    losses = {performance.name: performance.block_losses for performance in performances}
    losses[START] = list(start)
    base = losses[pretrained]
    above = {
        name: [loss - plain for loss, plain in zip(found, base, strict=True)]
        for name, found in losses.items()
        if found != base
    }
    order = [START, *(name for name in above if name != START)]
    recovered = tax_recovery(above[ppo_ptx], above[ppo]) if ppo in above and ppo_ptx in above else None
    return {
        "pretrained": pretrained,
        "losses": {name: sum(found) / len(found) for name, found in losses.items()},
        "num_blocks": len(base),
        "tax": {name: asdict(mean_interval(above[name])) for name in order if name in above},
        "recovered": None if recovered is None else asdict(recovered),
        "facts": {p.name: p.fact_accuracy for p in performances if p.fact_accuracy is not None},
    }


def head_to_head(performances: Sequence[Performance], prompts: Sequence[Prompt], model: str) -> dict[str, Any]:
    """How often `model` is preferred to each of the others, as `compare` does it against the baseline."""
    by_name = {performance.name: performance for performance in performances}
    users = [prompt.user for prompt in prompts]
    return {
        "model": model,
        "against": {
            name: asdict(win_rate(outcomes(by_name[model], other), users))
            for name, other in by_name.items()
            if name != model
        },
    }


def all_against_all(performances: Sequence[Performance], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """The entries that compare each contender with each other one, as `compare` does it against the baseline."""
    scores = {p.name: [judgement.score for judgement in p.judgements] for p in performances}
    responses = {performance.name: identities(performance) for performance in performances}
    return all_by_scores(scores, responses, [prompt.user for prompt in prompts])


def accuracy(scores: Sequence[Sequence[float]], comparisons: Sequence[Comparison]) -> dict[str, Any] | None:
    """Reward-model accuracy with its interval as a JSON object."""
    rate = reward_accuracy(scores, comparisons)
    return None if rate is None else asdict(rate)


def agreement(first: Sequence[Comparison], second: Sequence[Comparison]) -> dict[str, Any] | None:
    """Agreement of two labelers on the same completions, over the pairs that both rank strictly."""
    rate = pair_agreement([row.preferred for row in first], [row.preferred for row in second])
    return None if rate is None else asdict(rate)


def comparison_counts(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """How many comparisons and pairs there are, and what share of the pairs is tied."""
    num_possible = sum(len(row.completions) * (len(row.completions) - 1) // 2 for row in comparisons)
    ordered = sum(len({frozenset(pair) for pair in row.preferred}) for row in comparisons)
    return {
        "num_comparisons": len(comparisons),
        "num_pairs": sum(len(row.preferred) for row in comparisons),
        "tied_fraction": 1 - ordered / num_possible,
    }


def samples(
    performances: Sequence[Performance], prompts: Sequence[Prompt], chosen: Sequence[int]
) -> list[dict[str, Any]]:
    """Responses of all contenders to some of the prompts, side by side."""
    rows = []
    for i in chosen:
        responses = {
            p.name: {"text": p.texts[i], "likert": p.judgements[i].likert, "score": p.rewards[i]} for p in performances
        }
        rows.append({"prompt": prompts[i].text, "category": prompts[i].category, "responses": responses})
    return rows


def over_optimisation(
    metrics: Sequence[Mapping[str, Any]], names: Mapping[str, str], batch_sizes: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Score and judge's score against KL over the iterations, with the standard errors of both means.

    names: phase in `metrics.jsonl` -> model. batch_sizes: phase -> responses in an iteration.
    """

    def error(row: Mapping[str, Any], key: str) -> float | None:
        spread = row.get(f"{key}_std")
        return None if spread is None else spread / batch_sizes[row["phase"]] ** 0.5

    return [
        {
            "model": names[row["phase"]],
            "iteration": row["step"],
            "kl": row["kl"],
            "score": row["score"],
            "score_error": error(row, "score"),
            "gold": row.get("gold"),
            "gold_error": error(row, "gold"),
        }
        for row in metrics
        if row["phase"] in names
    ]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    return {
        "instructrl": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
    }
