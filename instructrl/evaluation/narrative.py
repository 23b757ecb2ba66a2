"""What was run and what came out, in sentences made from the numbers.

Nothing is said that the results do not hold: a sentence whose numbers are missing is left out, and a difference is put
in words only where an interval excludes that there is none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from instructrl.evaluation.formatting import (
    Estimate,
    beyond,
    count,
    decimal,
    decimal_range,
    estimate,
    finite,
    listing,
    percent,
    percent_range,
    spelled,
)
from instructrl.evaluation.statistics import mean_change

# Figure 1 of the paper: models of one level are not ordered by it (PPO and PPO-ptx are close at every size).
PAPER_LEVELS = {"GPT": 0, "GPT (prompted)": 1, "SFT": 2, "PPO": 3, "PPO-ptx": 3}
# Parts of a training in which the gold score is averaged, to see it fall through the noise of its batches.
NUM_WINDOWS = 8


# Whose pairs the reward model's accuracy is told of, the first that is there, and what they are called.
ACCURACIES = {
    "heldout_labelers": "held-out labelers",
    "heldout_comparisons": "held-out comparisons",
    "training_labelers": "labelers",
}


def sentences(results: Mapping[str, Any]) -> list[str]:
    """The introduction of the report."""
    parts = (_best, _setting, _order, _reward_model, _length, judge_sentence, _over_optimisation, _tax)
    return [sentence for part in parts if (sentence := part(results))]


def win_rates(results: Mapping[str, Any]) -> dict[str, Estimate]:
    """Name to win rate, in the order of the results; the baseline's is one half, exactly."""
    return _rates(results, estimate)


def claimable(results: Mapping[str, Any]) -> dict[str, Estimate]:
    """`win_rates` with the wider of the two intervals, of prompts and of users: what is said has to hold in both."""
    return _rates(results, _widest)


def _rates(results: Mapping[str, Any], read: Callable[[Any], Estimate | None]) -> dict[str, Estimate]:
    baseline = (results.get("run") or {}).get("baseline")
    rates = {}
    for model in results.get("models") or []:
        rate = read(model.get("win_rate"))
        if model.get("name") == baseline:
            rate = Estimate(value=0.5, low=0.5, high=0.5)
        if rate is not None:
            rates[str(model.get("name"))] = rate
    return rates


def _widest(record: Any) -> Estimate | None:
    rate = estimate(record)
    if rate is None or rate.low is None or rate.high is None:
        return rate
    low, high = finite(record.get("bootstrap_low")), finite(record.get("bootstrap_high"))
    return Estimate(
        value=rate.value,
        low=rate.low if low is None else min(rate.low, low),
        high=rate.high if high is None else max(rate.high, high),
    )


def num_prompts(results: Mapping[str, Any]) -> float | None:
    """The most prompts that any model was judged on."""
    records = [model.get("win_rate") or {} for model in results.get("models") or []]
    numbers = [number for record in records if (number := finite(record.get("num_prompts"))) is not None]
    return max(numbers, default=None)


def prompts(results: Mapping[str, Any]) -> str:
    """How many prompts of what kind: `1,000 held-out prompts`, where the run does not say that they were others."""
    most, kind = num_prompts(results), str((results.get("run") or {}).get("prompts") or "held-out prompts")
    return f"the {kind}" if most is None else f"{count(most)} {kind}"


def _setting(results: Mapping[str, Any]) -> str:
    run = results.get("run") or {}
    baseline, judge = run.get("baseline"), run.get("judge")
    num_models = len(results.get("models") or [])
    if not num_models or num_prompts(results) is None:
        return ""
    sentence = f"{spelled(num_models)} model{'s' * (num_models > 1)} answered {prompts(results)}"
    if judge and baseline:
        sentence += f", and the {judge} compared every answer with that of {baseline}"
    return sentence + "; a tie counts half."


def _best(results: Mapping[str, Any]) -> str:
    baseline = (results.get("run") or {}).get("baseline")
    others = {name: rate for name, rate in claimable(results).items() if name != baseline}
    if not others or baseline is None:
        return ""
    clear = {name: rate for name, rate in others.items() if beyond(rate, 0.5) > 0}
    name, rate = max((clear or others).items(), key=lambda item: item[1].value)
    over = "" if rate == win_rates(results)[name] else " over prompts and users"
    interval = f" (95% interval{over} {percent_range(rate)})" if rate.low is not None else ""
    where = f"{percent(rate.value)} of {prompts(results)}{interval}"
    if clear:
        level = [other for other in others if other != name and not _ahead(rate, others[other])]
        if level:
            return f"{name} was preferred to {baseline} on {where}. It does not differ clearly from {listing(level)}."
        return f"{name} did best: it was preferred to {baseline} on {where}."
    if all(beyond(rate, 0.5) < 0 for rate in others.values()):
        return f"{baseline} was preferred to every other model: the highest win rate is that of {name}, {where}."
    return f"No model differs clearly from {baseline} for the better: the highest win rate is that of {name}, {where}."


def _ahead(first: Estimate, second: Estimate) -> bool:
    """Whether the whole interval of the first lies above the second's."""
    return first.low is not None and second.high is not None and first.low > second.high


def _order(results: Mapping[str, Any]) -> str:
    rates = claimable(results)
    pairs = [
        (lower, higher)
        for lower, higher in combinations([name for name in PAPER_LEVELS if name in rates], 2)
        if PAPER_LEVELS[lower] < PAPER_LEVELS[higher]
    ]
    if len(pairs) < 2:
        return ""
    ordered = sorted(rates.items(), key=lambda item: item[1].value)
    sentence = "Win rates from low to high: " + ", ".join(f"{name} {percent(rate.value)}" for name, rate in ordered)
    same = [pair for pair in pairs if _ahead(rates[pair[1]], rates[pair[0]])]
    if len(same) == len(pairs):
        return sentence + ", which is the order of the paper’s figure 1."  # noqa: RUF001
    swapped = [f"{lower} ahead of {higher}" for lower, higher in pairs if _ahead(rates[lower], rates[higher])]
    counts = [f"{len(same)} stand as there"] if same else []
    counts += [f"{len(swapped)} the other way round ({listing(swapped)})"] if swapped else []
    unclear = len(pairs) - len(same) - len(swapped)
    counts += [f"{unclear} cannot be told apart: their intervals meet"] if unclear else []
    return f"{sentence}. Of the {len(pairs)} pairs that the paper’s figure 1 orders, {listing(counts)}."  # noqa: RUF001


def _reward_model(results: Mapping[str, Any]) -> str:
    record = results.get("reward_model") or {}
    for kind, whose in ACCURACIES.items():
        if accuracy := estimate(record.get(f"accuracy_{kind}")):
            agreement = estimate(record.get(f"agreement_{kind}"))
            sentence = f"The reward model orders {_measured(accuracy)} of the pairs of {whose} as they were ranked"
            if beyond(accuracy, 0.5) <= 0:
                sentence += ", which is not clearly better than chance"
            sentence += f"; two labelers agree on {_measured(agreement)}." if agreement else "."
            return sentence
    return ""


def _length(results: Mapping[str, Any]) -> str:
    """Where the reward model's scores go up or down with length."""
    found = []
    for row in (results.get("reward_model") or {}).get("held_out") or []:
        correlation = estimate(row.get("length_correlation"))
        if row.get("model") == "reward model" and correlation and (side := beyond(correlation, 0.0)):
            more = "higher" if side > 0 else "lower"
            value, bounds = decimal(correlation.value), decimal_range(correlation)
            found.append(f"{more} on {row.get('data')} (correlation {value}, 95% interval {bounds})")
    return f"Of two responses to a prompt the longer one tends to score {listing(found)}." if found else ""


def judge_sentence(results: Mapping[str, Any]) -> str:
    """What the verdicts are worth, where a model gives them."""
    run = results.get("run") or {}
    accuracy = estimate((results.get("reward_model") or {}).get("accuracy_judge"))
    sentence = ""
    if accuracy is not None:
        sentence = f"The judge orders {_measured(accuracy)} of pairs that it was not trained on as they were ranked"
        sentence += ": its verdicts may be no better than chance." if beyond(accuracy, 0.5) <= 0 else "."
    return f"{sentence} {run.get('judge_note') or ''}".strip()


def _measured(rate: Estimate) -> str:
    """`71.2% (95% interval 70.1 to 72.3%)`."""
    return percent(rate.value) + (f" (95% interval {percent_range(rate)})" if rate.low is not None else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldChange:
    """From a part of a training to its last part: by how much both scores changed, and the mean KL in both parts."""

    model: str
    kl: tuple[float, float]
    gold: Estimate
    score: Estimate

    @property
    def is_fall(self) -> bool:
        """Whether the gold score clearly fell while the reward clearly rose."""
        return beyond(self.gold, 0.0) < 0 < beyond(self.score, 0.0)


def gold_changes(rows: Any) -> dict[str, list[GoldChange]]:
    """Model -> the changes from each earlier part of its training to the last one; models without any left out.

    rows: `over_optimisation` of the results. The place of a change is looked for: the intervals hold for all places, of
    both scores, at the same time.
    """
    trainings = {name: _windows(found) for name, found in by_model(rows).items()}
    num_looks = 2 * sum(max(len(windows) - 1, 0) for windows in trainings.values())
    return {
        name: [
            GoldChange(
                model=name,
                kl=(_mean_kl(before), _mean_kl(windows[-1])),
                gold=_change(before, windows[-1], "gold", num_looks),
                score=_change(before, windows[-1], "score", num_looks),
            )
            for before in windows[:-1]
        ]
        for name, windows in trainings.items()
        if len(windows) > 1
    }


def _over_optimisation(results: Mapping[str, Any]) -> str:
    """Says of the model with the largest fall how far the gold score fell while the reward rose."""
    trainings = gold_changes(results.get("over_optimisation"))
    if not trainings:
        return ""
    falls = [change for changes in trainings.values() for change in changes if change.is_fall]
    if not falls:
        return "In no training did the gold score clearly fall while the reward rose."
    worst = min(falls, key=lambda change: change.gold.value)
    near, far = (decimal(kl, 1) for kl in worst.kl)
    return (
        f"{worst.model} was over-optimised: from {near} to {far} nats its reward rose by {decimal(worst.score.value)} "
        f"(95% interval {decimal_range(worst.score)}) while the gold score fell by {decimal(-worst.gold.value)} "
        f"({decimal_range(_negated(worst.gold))})."
    )


def _mean_kl(rows: Sequence[Mapping[str, Any]]) -> float:
    return sum(row["kl"] for row in rows) / len(rows)


def _windows(rows: Sequence[Mapping[str, Any]]) -> list[Sequence[Mapping[str, Any]]]:
    """Iterations of one training that have both scores with errors, in NUM_WINDOWS parts of almost one size."""
    keys = ("kl", "score", "score_error", "gold", "gold_error")
    known = [row for row in rows if all(finite(row.get(key)) is not None for key in keys)]
    number = min(NUM_WINDOWS, len(known))
    return [known[part * len(known) // number : (part + 1) * len(known) // number] for part in range(number)]


def _change(before: Sequence[Mapping], after: Sequence[Mapping], key: str, num_looks: int) -> Estimate:
    means = [[(row[key], row[f"{key}_error"]) for row in rows] for rows in (before, after)]
    change = mean_change(*means, num_looks=num_looks)
    return Estimate(value=change.mean, low=change.low, high=change.high)


def _negated(interval: Estimate) -> Estimate:
    assert interval.low is not None
    assert interval.high is not None
    return Estimate(value=-interval.value, low=-interval.high, high=-interval.low)


def by_model(rows: Any) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by their "model", both in order of appearance."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows or []:
        grouped.setdefault(str(row.get("model", "")), []).append(row)
    return grouped


def _tax(results: Mapping[str, Any]) -> str:
    record = results.get("alignment_tax") or {}
    taxes = {name: found for name, value in (record.get("tax") or {}).items() if (found := estimate(value))}
    ppo, ptx, base = taxes.get("PPO"), taxes.get("PPO-ptx"), record.get("pretrained")
    if ppo is None or not base:
        return ""
    high = f"{_nats(ppo)} on pretraining text, from that of {base}"
    if ppo.low is None or ppo.high is None or ppo.low <= 0 <= ppo.high:
        return f"Whether PPO paid an alignment tax is not clear: its loss changed by {high}."
    if ppo.high < 0:
        return f"PPO paid no alignment tax: its loss changed by {high}."
    sentence = f"PPO paid an alignment tax: its loss rose by {high}"
    if ptx is not None:
        sentence += f"; that of PPO-ptx changed by {_nats(ptx)}"
    if beyond(recovered := estimate(record.get("recovered")), 0.0) > 0 and recovered is not None:
        sentence += f", so the mix gave back {percent(recovered.value, 0)} ({percent_range(recovered)})"
    return sentence + "."


def _nats(tax: Estimate) -> str:
    interval = f" (95% interval {decimal(tax.low, 3)} to {decimal(tax.high, 3)})" if tax.low is not None else ""
    return f"{decimal(tax.value, 3)} nats a token{interval}"
