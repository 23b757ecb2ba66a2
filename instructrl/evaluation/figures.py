"""Which plots the report draws from which results; a plot without data is None."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from instructrl.evaluation import plots
from instructrl.evaluation.formatting import decimal, estimate, finite, label, percent
from instructrl.evaluation.narrative import by_model, win_rates
from instructrl.evaluation.style import ACCENT, INK, MODEL_COLOURS, MUTED, model_indices

Record = Mapping[str, Any]

PHASE_MODELS = {"ppo": "PPO", "ppo_ptx": "PPO-ptx"}
PHASE_TITLES = {
    "pretraining": "Pretraining",
    "sft": "Supervised fine-tuning",
    "ppo_start": "PPO start",
    "reward_model": "Reward model",
}
# What a reader looks at first, then the rest; a metric in neither is drawn last.
POLICY_METRICS = {"score": "Reward score", "kl": "KL, nats a response", "entropy": "Entropy, nats a token"}
POLICY_DETAILS = {
    "ptx_loss": "Loss on the pretraining mix",
    "response_tokens": "Response length, tokens",
    "finished": "Finished responses",
    "kl_coef": "KL coefficient",
    "clip_fraction": "Clipped ratios",
    "policy_loss": "Policy loss",
    "value_loss": "Value loss",
    "gradient_norm": "Gradient norm",
    "lr": "Learning rate",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A titled drawing and what to know when reading it."""

    title: str
    svg: Markup
    caption: str = ""


def whole_percent(value: float) -> str:
    return percent(value, 0)


def all_models(results: Record) -> list[str]:
    """Every model that any part of the results names, those of the main table first."""
    names = [str(model.get("name", "")) for model in results.get("models") or []]
    names += by_model(results.get("over_optimisation"))
    names += [str(name) for name in results.get("baselines") or {} if name != "prefixes"]
    tax = results.get("alignment_tax") or {}
    for key in ("losses", "tax", "facts"):
        names += tax.get(key) or {}
    for sample in results.get("samples") or []:
        names += sample.get("responses") or {}
    return list(dict.fromkeys(names))


def colours(results: Record) -> dict[str, str]:
    return {name: MODEL_COLOURS[index] for name, index in model_indices(all_models(results)).items()}


def win_rate_plot(results: Record) -> Plot | None:
    rates, colour = win_rates(results), colours(results)
    baseline = str((results.get("run") or {}).get("baseline", ""))
    if not rates:
        return None
    records = {str(model.get("name")): model.get("win_rate") or {} for model in results.get("models") or []}
    rows = []
    for name, rate in rates.items():
        outer = finite(records[name].get("bootstrap_low")), finite(records[name].get("bootstrap_high"))
        exact = name == baseline
        known = None if exact or outer[0] is None or outer[1] is None else (outer[0], outer[1])
        rows.append(plots.Row(label=name, estimate=rate, colour=colour[name], outer=known, exact=exact))
    values = [v for row in rows for v in (row.estimate.value, row.estimate.low, row.estimate.high) if v is not None]
    limits = (0.0 if min(values) < 0.3 else 0.25, max(0.75, *values))
    svg = plots.interval_rows(
        rows,
        name="win-rate",
        what=f"Win rate against {baseline}",
        scale=plots.Scale(write=percent, tick=whole_percent, reference=0.5, limits=limits),
    )
    users = " Thin lines: the same from resampling users." if any(row.outer for row in rows) else ""
    caption = f"Share of prompts on which the model is preferred to {baseline}. Bars: 95% intervals.{users}"
    return Plot(title=f"Win rate against {baseline}", svg=svg, caption=caption)


def category_plot(results: Record) -> Plot | None:
    colour = colours(results)
    baseline = (results.get("run") or {}).get("baseline")
    models = [model for model in results.get("models") or [] if model.get("name") != baseline]
    categories = list(dict.fromkeys(key for model in models for key in model.get("win_rate_by_category") or {}))
    groups = []
    for category in categories:
        found = [
            (rate, colour[str(model["name"])])
            for model in models
            if (rate := estimate((model.get("win_rate_by_category") or {}).get(category)))
        ]
        if found:
            groups.append(plots.Group(label=label(category), estimates=tuple(found)))
    if not groups:
        return None
    svg = plots.interval_groups(
        groups, name="category", what="Win rate by category", write=whole_percent, reference=0.5
    )
    return Plot(title="Win rate by category", svg=svg, caption=f"Against {baseline}, with 95% intervals.")


def likert_plot(results: Record) -> Plot | None:
    colour = colours(results)
    rows = [
        plots.Row(label=str(model["name"]), estimate=mean, colour=colour[str(model["name"])])
        for model in results.get("models") or []
        if (mean := estimate(model.get("likert")))
    ]
    if not rows:
        return None
    scale = plots.Scale(write=decimal, tick=whole, limits=(1.0, 7.0), marks=tuple(float(mark) for mark in range(1, 8)))
    svg = plots.interval_rows(rows, name="likert", what="Mean Likert score", scale=scale)
    return Plot(title="Overall quality, 1 to 7", svg=svg, caption="Mean Likert score with its 95% interval.")


def whole(value: float) -> str:
    return decimal(value, 0)


def reward_model_plot(results: Record) -> Plot | None:
    record = results.get("reward_model") or {}
    kinds = (
        ("accuracy_training_labelers", "Model, training", ACCENT),
        ("agreement_training_labelers", "Labelers, training", MUTED),
        ("accuracy_heldout_labelers", "Model, held-out", ACCENT),
        ("agreement_heldout_labelers", "Labelers, held-out", MUTED),
        ("accuracy_heldout_comparisons", "Reward model", ACCENT),
        ("accuracy_judge", "Judge", INK),
    )
    rows = [
        plots.Row(label=text, estimate=rate, colour=colour)
        for key, text, colour in kinds
        if (rate := estimate(record.get(key)))
    ]
    if not rows:
        return None
    lowest = min(row.estimate.value if row.estimate.low is None else row.estimate.low for row in rows)
    svg = plots.interval_rows(
        rows,
        name="reward-model",
        what="Agreement on preferred pairs",
        scale=plots.Scale(write=percent, tick=whole_percent, reference=0.5, limits=(min(0.45, lowest), 1.0)),
    )
    title = "Reward model beside labelers"
    caption = (
        "Share of strictly ranked pairs on which the reward model agrees with a labeler, beside how often two labelers "
        "agree."
    )
    if estimate(record.get("accuracy_judge")):
        title = "Reward model and judge"
        caption = (
            "Share of strictly ranked pairs that each ranks as they were ranked, on comparisons that it was not "
            "trained on"
        ) + (", and the other one neither." if record.get("held_out") else ": those that the other one was.")
    caption += " Dashed: chance. Intervals take prompts, not pairs, as independent."
    return Plot(title=title, svg=svg, caption=caption)


def selection_plots(results: Record) -> list[Plot]:
    """Reward score and validation loss by SFT epoch, the chosen epoch ringed."""
    rows = results.get("sft_selection") or []
    found = []
    for key, title in (("score", "SFT: reward score by epoch"), ("validation_loss", "SFT: validation loss by epoch")):
        kept = [row for row in rows if finite(row.get(key)) is not None and finite(row.get("epoch")) is not None]
        if len(kept) < 2:
            continue
        chosen = [index for index, row in enumerate(kept) if row.get("selected")]
        line = _line(title, kept, "epoch", key, MODEL_COLOURS[2], ringed=chosen[0] if chosen else None)
        svg = plots.lines([line], name=f"selection-{key}", what=title, x_label="epoch")
        note = f"Ringed: epoch {kept[chosen[0]]['epoch']}, the one selected." if chosen else ""
        found.append(Plot(title=title, svg=svg, caption=note))
    return found


def optimisation_plots(results: Record, metrics: Sequence[Record]) -> list[Plot]:
    """Reward and gold score against KL; where the results hold neither, the score while training."""
    colour = colours(results)
    measured = by_model(results.get("over_optimisation"))
    known = any(finite(row.get("score")) is not None for rows in measured.values() for row in rows)
    found = [] if known else [_training_frontier(metrics, colour)]
    for key, title, caption in (
        ("score", "What PPO optimises: reward", "Reward-model score of the responses."),
        ("gold", "What it is for: gold score", "The judge’s own score of the same responses."),  # noqa: RUF001
    ):
        series = []
        for name, rows in measured.items():
            kept = [row for row in rows if finite(row.get("kl")) is not None and finite(row.get(key)) is not None]
            if len(kept) > 1:
                # An estimate of a KL near zero may lie below it.
                rooted = [{**row, "kl": math.sqrt(max(row["kl"], 0.0))} for row in kept]
                series.append(_line(name, rooted, "kl", key, colour[name], path=True))
        if series:
            svg = plots.lines(series, name=f"frontier-{key}", what=title, x_label="√KL, nats a response")
            found.append(Plot(title=title, svg=svg, caption=f"{caption} Open dot: start; full dot: end."))
    return [plot for plot in found if plot is not None]


def _training_frontier(metrics: Sequence[Record], colour: Mapping[str, str]) -> Plot | None:
    series = []
    for phase, name in PHASE_MODELS.items():
        rows = [row for row in metrics if row.get("phase") == phase]
        kept = [row for row in rows if finite(row.get("kl")) is not None and finite(row.get("score")) is not None]
        if len(kept) > 1:
            series.append(_line(name, kept, "kl", "score", colour.get(name, INK), path=True))
    if not series:
        return None
    title = "Score against KL while training"
    svg = plots.lines(series, name="frontier-training", what=title, x_label="KL, nats a response")
    return Plot(title=title, svg=svg, caption="Batch means in training order. Open dot: start; full dot: end.")


def tax_plots(results: Record) -> list[Plot]:
    record = results.get("alignment_tax") or {}
    colour = colours(results)
    found = []
    rows = [
        plots.Row(label=name, estimate=tax, colour=colour[name])
        for name, value in (record.get("tax") or {}).items()
        if (tax := estimate(value))
    ]
    if rows:
        ends = [v for row in rows for v in (row.estimate.value, row.estimate.low, row.estimate.high) if v is not None]
        written, marked = max(3, _digits(ends, 2)), _digits(ends, 3)
        scale = plots.Scale(
            write=lambda value: decimal(value, written),
            tick=lambda value: decimal(value, marked),
            limits=(min(0.0, *ends), max(0.0, *ends) if any(ends) else 1.0),
            reference=0.0,
        )
        svg = plots.interval_rows(rows, name="tax", what="Alignment tax, nats a token", scale=scale)
        caption = (
            f"Loss on held-out text like that of the pretraining above the loss of {record.get('pretrained')}, the "
            "pretrained model, nats a token. Bars: 95% intervals over blocks of text."
        )
        found.append(Plot(title="Alignment tax", svg=svg, caption=caption))
    facts = [(name, number, colour[name]) for name, value in (record.get("facts") or {}).items()
             if (number := finite(value)) is not None]  # fmt: skip
    if facts:
        svg = plots.bars(facts, name="facts", what="Facts answered right", write=whole_percent, full=1.0)
        caption = "Share of questions about the pretraining text that the model answers right."
        found.append(Plot(title="Facts", svg=svg, caption=caption))
    return found


def _digits(numbers: Iterable[float], shown: int) -> int:
    """Decimals that show so many digits of the largest number."""
    largest = max(map(abs, numbers))
    return max(shown - 1 - math.floor(math.log10(largest)), 1) if largest else shown


def language_model_plots(metrics: Sequence[Record]) -> list[Plot]:
    """Loss, and accuracy where there is one, of every phase that is not reinforcement learning."""
    found = []
    phases = dict.fromkeys(str(row.get("phase")) for row in metrics)
    for phase in (phase for phase in phases if phase not in PHASE_MODELS):
        rows = [row for row in metrics if row.get("phase") == phase]
        for metric in ("loss", "accuracy"):
            series = []
            for key, text, dashed in ((metric, "training", False), (f"validation_{metric}", "validation", True)):
                kept = [row for row in rows if finite(row.get(key)) is not None and finite(row.get("step")) is not None]
                if kept:
                    colour = ACCENT if not dashed else INK
                    series.append(_line(text, kept, "step", key, colour, dashed=dashed))
            if series:
                title = f"{PHASE_TITLES.get(phase, label(phase))}: {metric}"
                svg = plots.lines(series, name=f"curve-{phase}-{metric}", what=title, x_label="step")
                found.append(Plot(title=title, svg=svg))
    return found


def policy_plots(metrics: Sequence[Record], colour: Mapping[str, str], names: Mapping[str, str]) -> list[Plot]:
    """One panel a metric with a line a policy. names: metric to title."""
    found = []
    for metric, title in names.items():
        series = []
        for phase, name in PHASE_MODELS.items():
            rows = [row for row in metrics if row.get("phase") == phase]
            kept = [row for row in rows if finite(row.get(metric)) is not None and finite(row.get("step")) is not None]
            if kept:
                series.append(_line(name, kept, "step", metric, colour.get(name, INK)))
        if series:
            svg = plots.lines(series, name=f"policy-{metric}", what=title, x_label="step", height=200)
            found.append(Plot(title=title, svg=svg))
    return found


def other_policy_metrics(metrics: Sequence[Record]) -> dict[str, str]:
    """Metrics of the policy phases that have no place of their own, with a title each."""
    keys = dict.fromkeys(key for row in metrics if row.get("phase") in PHASE_MODELS for key in row)
    placed = {"phase", "step", *POLICY_METRICS, *POLICY_DETAILS}
    return {key: label(key) for key in keys if key not in placed}


def policies(metrics: Sequence[Record]) -> list[str]:
    """The models whose reinforcement learning the metrics record."""
    phases = {row.get("phase") for row in metrics}
    return [name for phase, name in PHASE_MODELS.items() if phase in phases]


def _line(
    text: str,
    rows: Sequence[Record],
    x: str,
    y: str,
    colour: str,
    *,
    dashed: bool = False,
    path: bool = False,
    ringed: int | None = None,
) -> plots.Line:
    xs, ys = [float(row[x]) for row in rows], [float(row[y]) for row in rows]
    return plots.Line(label=text, xs=xs, ys=ys, colour=colour, dashed=dashed, path=path, ringed=ringed)
