"""What was run and what came out, in sentences made from the numbers.

Nothing is said that the results do not hold: a sentence whose numbers are missing is left out.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from instructrl.evaluation.formatting import (
    Estimate,
    count,
    decimal,
    estimate,
    finite,
    listing,
    percent,
    percent_range,
    spelled,
)

# Figure 1 of the paper: models of one level are not ordered by it (PPO and PPO-ptx are close at every size).
PAPER_LEVELS = {"GPT": 0, "GPT (prompted)": 1, "SFT": 2, "PPO": 3, "PPO-ptx": 3}
MOST_NAMED = 3  # reversed pairs; more are counted


def sentences(results: Mapping[str, Any]) -> list[str]:
    """The introduction of the report."""
    parts = (_best, _setting, _order, _reward_model, _over_optimisation, _tax)
    return [sentence for part in parts if (sentence := part(results))]


def win_rates(results: Mapping[str, Any]) -> dict[str, Estimate]:
    """Name to win rate, in the order of the results; the baseline's is one half, exactly."""
    baseline = (results.get("run") or {}).get("baseline")
    rates = {}
    for model in results.get("models") or []:
        rate = estimate(model.get("win_rate"))
        if model.get("name") == baseline:
            rate = Estimate(value=0.5, low=0.5, high=0.5)
        if rate is not None:
            rates[str(model.get("name"))] = rate
    return rates


def num_prompts(results: Mapping[str, Any]) -> float | None:
    """The most prompts that any model was judged on."""
    records = [model.get("win_rate") or {} for model in results.get("models") or []]
    numbers = [number for record in records if (number := finite(record.get("num_prompts"))) is not None]
    return max(numbers, default=None)


def reversed_pairs(rates: Mapping[str, Estimate]) -> list[tuple[str, str, bool]]:
    """Pairs that stand the other way round than in the paper: (lower in the paper, higher there, beyond doubt).

    Beyond doubt means that the two 95% intervals do not touch.
    """
    found = []
    for first, second in combinations([name for name in PAPER_LEVELS if name in rates], 2):
        lower, higher = rates[first], rates[second]
        if PAPER_LEVELS[first] < PAPER_LEVELS[second] and lower.value > higher.value:
            known = lower.low is not None and higher.high is not None
            found.append((first, second, known and lower.low > higher.high))  # pyright: ignore[reportOperatorIssue]
    return found


def _setting(results: Mapping[str, Any]) -> str:
    run = results.get("run") or {}
    baseline, judge = run.get("baseline"), run.get("judge")
    num_models, most = len(results.get("models") or []), num_prompts(results)
    if not num_models or most is None:
        return ""
    sentence = f"{spelled(num_models)} model{'s' * (num_models > 1)} answered {count(most)} held-out prompts"
    if judge and baseline:
        sentence += f", and the {judge} compared every answer with that of {baseline}"
    return sentence + "; a tie counts half."


def _best(results: Mapping[str, Any]) -> str:
    rates = win_rates(results)
    baseline = (results.get("run") or {}).get("baseline")
    others = {name: rate for name, rate in rates.items() if name != baseline}
    if not others or baseline is None:
        return ""
    name, rate = max(others.items(), key=lambda item: item[1].value)
    interval = f" (95% interval {percent_range(rate)})" if rate.low is not None else ""
    most = num_prompts(results)
    prompts = f"{count(most)} held-out prompts" if most is not None else "the held-out prompts"
    where = f"{percent(rate.value)} of {prompts}{interval}"
    if rate.value <= 0.5:
        return f"No model was preferred to {baseline}: {name} came closest, at {where}."
    if rate.low is not None and rate.low <= 0.5:
        return f"No model was clearly preferred to {baseline}: {name} came out highest, at {where}."
    return f"{name} did best: it was preferred to {baseline} on {where}."


def _order(results: Mapping[str, Any]) -> str:
    rates = win_rates(results)
    if sum(name in PAPER_LEVELS for name in rates) < 3:
        return ""
    ordered = sorted(rates.items(), key=lambda item: item[1].value)
    sentence = "From least to most preferred: " + ", ".join(f"{name} {percent(rate.value)}" for name, rate in ordered)
    swapped = reversed_pairs(rates)
    if not swapped:
        return sentence + ", which is the order of the paper’s figure 1."  # noqa: RUF001
    if len(swapped) > MOST_NAMED:
        pairs = sum(
            PAPER_LEVELS[a] != PAPER_LEVELS[b] for a, b in combinations([n for n in rates if n in PAPER_LEVELS], 2)
        )
        beyond = spelled(sum(certain for *_, certain in swapped)).lower()
        sentence += f". This is not the order of the paper’s figure 1: {len(swapped)} of {pairs} pairs stand the other "  # noqa: RUF001
        return sentence + f"way round, {beyond} of them by more than the intervals."
    clear = [f"{first} ahead of {second}" for first, second, certain in swapped if certain]
    open_ = [f"{first} ahead of {second}" for first, second, certain in swapped if not certain]
    sentence += ". This is not the order of the paper’s figure 1: "  # noqa: RUF001
    parts = [f"here {listing(clear)}"] if clear else []
    if open_:
        parts.append(f"{'and' if clear else 'here'} {listing(open_)}, where the intervals overlap")
    return sentence + " ".join(parts) + "."


def _reward_model(results: Mapping[str, Any]) -> str:
    record = results.get("reward_model") or {}
    accuracy = estimate(record.get("accuracy_heldout_labelers"))
    agreement = estimate(record.get("agreement_heldout_labelers"))
    whose = "held-out labelers"
    if accuracy is None:
        accuracy = estimate(record.get("accuracy_training_labelers"))
        agreement = estimate(record.get("agreement_training_labelers"))
        whose = "labelers"
    if accuracy is None:
        return ""
    sentence = f"The reward model orders {percent(accuracy.value)} of the pairs of {whose} as they did"
    if agreement is not None:
        sentence += f"; the labelers agree with each other on {percent(agreement.value)}"
    return f"{sentence}.{_set_by_hand(record)}"


def _set_by_hand(record: Mapping[str, Any]) -> str:
    """What is made and not found: a group of labelers that is quieter than the other because it was made so."""
    noise = record.get("labeler_noise") or {}
    training, heldout = finite(noise.get("training")), finite(noise.get("heldout"))
    if training is None or heldout is None or heldout >= training:
        return ""
    sentence = (
        f" That held-out labelers agree more is set by hand: the noise of their opinions is {decimal(heldout, 1)} "
        f"points where that of training labelers is {decimal(training, 1)}"
    )
    seen, unseen = (estimate(record.get(f"accuracy_{group}_labelers")) for group in ("training", "heldout"))
    if seen and unseen and unseen.value > seen.value:
        sentence += (
            f"; and so the reward model is right on {percent(unseen.value)} of their pairs and on "
            f"{percent(seen.value)} of those of training labelers, where the paper’s is right more often on training "  # noqa: RUF001
            "labelers, 72.4% against 69.6%"
        )
    return sentence + "."


def _over_optimisation(results: Mapping[str, Any]) -> str:
    """Says of the model with the largest fall how far the gold score fell from its peak while the reward rose."""
    falls = []
    for name, points in by_model(results.get("over_optimisation")).items():
        scored = [p for p in points if None not in (finite(p.get("gold")), finite(p.get("score")), finite(p.get("kl")))]
        if len(scored) < 3:
            continue
        peak = max(range(len(scored)), key=lambda index: scored[index]["gold"])
        top, last = scored[peak], scored[-1]
        if last["gold"] < top["gold"] and last["score"] > top["score"]:
            falls.append((top["gold"] - last["gold"], name, top, last))
    if not falls:
        return ""
    _, name, top, last = max(falls, key=lambda fall: fall[0])
    return (
        f"{name} was over-optimised: past {decimal(top['kl'], 1)} nats its reward still rose "
        f"({decimal(top['score'])} to {decimal(last['score'])}) while the gold score fell "
        f"({decimal(top['gold'])} to {decimal(last['gold'])})."
    )


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
    if recovered := estimate(record.get("recovered")):
        sentence += f", so the mix gave back {percent(recovered.value, 0)} ({percent_range(recovered)})"
    return sentence + "."


def _nats(tax: Estimate) -> str:
    interval = f" (95% interval {decimal(tax.low, 3)} to {decimal(tax.high, 3)})" if tax.low is not None else ""
    return f"{decimal(tax.value, 3)} nats a token{interval}"
