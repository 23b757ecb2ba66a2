"""The parts of the report: which plots, tables and texts belong together, and what introduces them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from instructrl.evaluation import (
    baseline_views,
    claims,
    data_tables,
    exam_views,
    figures,
    judged_views,
    pairing_views,
    quality_views,
    run_views,
    verdict_views,
)
from instructrl.evaluation.figures import Plot
from instructrl.evaluation.formatting import (
    DASH,
    Estimate,
    count,
    decimal,
    estimate,
    finite,
    label,
    percent,
    percent_range,
)
from instructrl.evaluation.narrative import ACCURACIES, win_rates
from instructrl.evaluation.style import model_indices
from instructrl.evaluation.suite_views import models_of, suite_plot, suite_tables
from instructrl.evaluation.table import Cell, TableView, main_columns

Record = Mapping[str, Any]
NUM_OPEN_SAMPLES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Highlight:
    """One number in large type."""

    value: str
    text: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one model said. text is shown as it is."""

    model: str
    colour: int
    text: str
    marks: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A prompt with every model's answer."""

    prompt: str
    category: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading with what stands under it; `more` is collapsed."""

    id: str
    title: str
    lead: str = ""
    legend: tuple[tuple[str, int], ...] = ()
    plots: tuple[Plot, ...] = ()
    more: tuple[Plot, ...] = ()
    tables: tuple[TableView, ...] = ()
    samples: tuple[Sample, ...] = ()
    settings: tuple[tuple[str, str], ...] = field(default=())

    @property
    def empty(self) -> bool:
        return not (self.plots or self.more or self.tables or self.samples or self.settings)


def all_sections(results: Record, metrics: Sequence[Record], profile: Sequence[Record]) -> list[Section]:
    """The sections that have something to show, in reading order."""
    made = [
        _claims(results),
        _models(results),
        _by_judge(results),
        _conduct(results),
        _exams(results),
        _pairings(results),
        _judges(results),
        _preferences(results),
        _samples(results),
        _suites(results),
        _reward_model(results),
        _baselines(results),
        _optimisation(results, metrics),
        _tax(results),
        _language_models(metrics),
        _policies(results, metrics),
        _data(results),
        _run(results, profile),
    ]
    return [section for section in made if not section.empty]


def highlights(results: Record) -> list[Highlight]:
    """Up to four numbers that sum the run up."""
    found = []
    baseline = (results.get("run") or {}).get("baseline")
    rates = {name: rate for name, rate in win_rates(results).items() if name != baseline}
    if rates:
        name, rate = max(rates.items(), key=lambda item: item[1].value)
        text = f"win rate of {name} against {baseline}"
        found.append(Highlight(value=percent(rate.value), text=text, detail=_within(rate)))
    record = results.get("reward_model") or {}
    if accuracy := estimate(record.get("accuracy_judge")):
        text = "of pairs it was not trained on: the judge ranks them as they were ranked"
        found.append(Highlight(value=percent(accuracy.value), text=text, detail=_within(accuracy)))
    for kind, whose in ACCURACIES.items():
        if accuracy := estimate(record.get(f"accuracy_{kind}")):
            agreement = estimate(record.get(f"agreement_{kind}"))
            details = [_within(accuracy)]
            details += [f"two labelers agree on {percent(agreement.value)}"] if agreement else []
            text = f"of pairs of {whose}: the reward model ranks them as they were ranked"
            found.append(Highlight(value=percent(accuracy.value), text=text, detail="; ".join(filter(None, details))))
            break
    tax = results.get("alignment_tax") or {}
    if (recovered := estimate(tax.get("recovered"))) and recovered.low is not None and recovered.low > 0:
        text = "of the alignment tax given back by PPO-ptx"
        found.append(Highlight(value=percent(recovered.value, 0), text=text, detail=_within(recovered)))
    return found


def _within(rate: Estimate) -> str:
    return f"95% interval {percent_range(rate)}" if rate.low is not None else ""


def _legend(results: Record, names: Iterable[str]) -> tuple[tuple[str, int], ...]:
    indices = model_indices(figures.all_models(results))
    return tuple((name, indices[name]) for name in names if name in indices)


def _model_table(
    title: str, results: Record, headings: Sequence[tuple[str, str]], columns: Sequence[Sequence[Cell]]
) -> TableView:
    """One row a model, its colour beside its name."""
    names = [str(model.get("name", "")) for model in results.get("models") or []]
    indices = model_indices(figures.all_models(results))
    rows = tuple((Cell(main=name), *cells) for name, *cells in zip(names, *columns, strict=True))
    return TableView(
        title=title, headings=(("Model", ""), *headings), rows=rows, colours=tuple(indices[name] for name in names)
    )


def _claims(results: Record) -> Section:
    tables = (claims.claims_table([results]),) if claims.is_measured(results) else ()
    return Section(id="claims", title="What the paper claims", lead=claims.RULE, tables=tables)


def _models(results: Record) -> Section:
    columns = main_columns(results)
    tables = ()
    if columns:
        headings = [(column.heading, column.unit) for column in columns]
        tables = (_model_table("", results, headings, [column.cells for column in columns]),)
    return Section(id="models", title="All models", tables=tables)


def _pairings(results: Record) -> Section:
    plots = tuple(plot for plot in (pairing_views.ratings_plot(results), pairing_views.length_plot(results)) if plot)
    table = pairing_views.matrix_table(results)
    return Section(id="pairings", title="Model against model", plots=plots, tables=(table,) if table.rows else ())


def _judges(results: Record) -> Section:
    tables = (
        verdict_views.agreements_table(results),
        verdict_views.judges_table(results),
        *verdict_views.benchmark_tables(results),
    )
    return Section(id="judges", title="Judges", tables=tuple(table for table in tables if table.rows))


def _by_judge(results: Record) -> Section:
    names = [str(model["name"]) for judge in judged_views.judge_rows(results)[:1] for model in judge["models"]]
    tables = (*judged_views.label_tables(results), judged_views.paper_table(results))
    return Section(
        id="judged",
        title="By judge",
        lead=judged_views.LEAD,
        legend=_legend(results, names),
        plots=tuple(judged_views.judged_plots(results)),
        tables=tuple(table for table in tables if table.rows),
    )


def _conduct(results: Record) -> Section:
    return Section(
        id="conduct",
        title="Truth and toxicity",
        lead=exam_views.CONDUCT_LEAD,
        legend=exam_views.legend(results),
        plots=tuple(exam_views.conduct_plots(results)),
        tables=tuple(exam_views.conduct_tables(results)),
    )


def _exams(results: Record) -> Section:
    plots = (*exam_views.tax_plots(results), *exam_views.skill_plots(results))
    legend = exam_views.legend(results)
    return Section(id="exams", title="Exams", lead=exam_views.TAX_LEAD, legend=legend, plots=plots)


def _preferences(results: Record) -> Section:
    models = results.get("models") or []
    plots = tuple(plot for plot in (figures.category_plot(results), figures.likert_plot(results)) if plot)
    # Where several judges have labelled, each has a table of its own.
    labelled = [] if results.get("judged") else models
    flags = list(dict.fromkeys(flag for model in labelled for flag in model.get("metadata") or {}))
    columns, headings = [], []
    for flag in flags:
        rates = [estimate((model.get("metadata") or {}).get(flag)) for model in models]
        if any(rates):
            headings.append((label(flag), ""))
            totals = [((model.get("metadata") or {}).get(flag) or {}).get("total") for model in models]
            columns.append([_share(rate, total) for rate, total in zip(rates, totals, strict=True)])
    title = "Labels, share of the responses that they apply to"
    tables = (_model_table(title, results, headings, columns),) if columns else ()
    names = [str(model.get("name", "")) for model in models]
    return Section(
        id="quality",
        title="Preference and quality",
        legend=_legend(results, names) if plots else (),
        plots=plots,
        tables=tables,
    )


def _share(rate: Estimate | None, total: Any) -> Cell:
    """A share with its interval, and of how many."""
    if rate is None:
        return Cell(main=DASH)
    of = f" of {count(total)}" if finite(total) is not None else ""
    return Cell(main=percent(rate.value), detail=f"{percent_range(rate, DASH)}{of}")


def _samples(results: Record) -> Section:
    indices = model_indices(figures.all_models(results))
    samples = []
    for sample in results.get("samples") or []:
        answers = []
        for name, response in (sample.get("responses") or {}).items():
            marks = [f"Likert {decimal(response['likert'], 1)}"] if finite(response.get("likert")) is not None else []
            marks += [f"reward {decimal(response['score'])}"] if finite(response.get("score")) is not None else []
            text = str(response.get("text", ""))
            answers.append(Answer(model=name, colour=indices[name], text=text, marks=" · ".join(marks)))
        prompt, category = str(sample.get("prompt", "")), label(str(sample.get("category") or ""))
        samples.append(Sample(prompt=prompt, category=category, answers=tuple(answers)))
    kind = str((results.get("run") or {}).get("prompts") or "held-out prompts")
    lead = f"The same {kind}, answered by every model. Long answers scroll."
    return Section(id="samples", title="Samples", lead=lead, samples=tuple(samples))


def _suites(results: Record) -> Section:
    entries = results.get("suites") or []
    indices = model_indices(figures.all_models(results))
    drawn = [suite_plot(entry, indices) for entry in entries]
    names = list(dict.fromkeys(name for entry in entries for name in models_of(entry)))
    return Section(
        id="suites",
        title="Public test sets",
        lead="Dots with 95% intervals; what each set says of a model, and of how many items.",
        legend=_legend(results, names),
        plots=tuple(plot for plot in drawn if plot),
        tables=tuple(table for entry in entries for table in suite_tables(entry)),
    )


def _reward_model(results: Record) -> Section:
    record = results.get("reward_model") or {}
    agreement = (figures.reward_model_plot(results), quality_views.agreement_plot(record))
    plots = [plot for plot in agreement if plot] + figures.selection_plots(results)
    facts = [
        ("Comparisons (prompts)", count(record.get("num_comparisons")), record.get("num_comparisons")),
        ("Preferred pairs", count(record.get("num_pairs")), record.get("num_pairs")),
        ("Pairs tied", percent(record.get("tied_fraction")), record.get("tied_fraction")),
        ("Bias added to the score", decimal(record.get("bias"), 3), record.get("bias")),
        (
            "Mean score of demonstrations",
            decimal(record.get("mean_demonstration_score"), 3),
            record.get("mean_demonstration_score"),
        ),
    ]
    rows = tuple((Cell(main=name), Cell(main=text)) for name, text, value in facts if finite(value) is not None)
    facts_table = TableView(title="Training data and normalisation", headings=(), rows=rows, wide=False)
    tables = tuple(table for table in (quality_views.length_table(record), facts_table) if table.rows)
    return Section(id="reward-model", title="Reward model", plots=tuple(plots), tables=tables)


def _baselines(results: Record) -> Section:
    drawn = tuple(baseline_views.mixture_plots(results))
    table = baseline_views.prefix_table(results)
    return Section(
        id="baselines",
        title="Baselines",
        lead=baseline_views.LEAD,
        legend=_legend(results, baseline_views.mixture_names(results)) if drawn else (),
        plots=drawn,
        tables=(table,) if table.rows else (),
    )


def _optimisation(results: Record, metrics: Sequence[Record]) -> Section:
    plots = tuple(figures.optimisation_plots(results, metrics))
    judged = any(finite(row.get("gold")) is not None for row in results.get("over_optimisation") or [])
    scores = "its reward and its gold score" if judged else "its reward"
    lead = f"The distance of each policy from its start, and {scores} there. Points are means of noisy batches."
    names = [name for name in figures.all_models(results) if name in figures.by_model(results.get("over_optimisation"))]
    names += [name for name in figures.policies(metrics) if name not in names]
    return Section(
        id="optimisation",
        title="Reward and KL",
        lead=lead,
        legend=_legend(results, names),
        plots=plots,
    )


def _tax(results: Record) -> Section:
    plots = tuple(figures.tax_plots(results))
    lead = "The loss on text like that of the pretraining, and the change of it."
    return Section(id="tax", title="Alignment tax", lead=lead, plots=plots)


def _language_models(metrics: Sequence[Record]) -> Section:
    plots = tuple(figures.language_model_plots(metrics))
    lead = "Solid: training batches, faint as logged under their moving average. Dashed: validation data."
    return Section(id="training", title="Training", lead=lead, plots=plots)


def _policies(results: Record, metrics: Sequence[Record]) -> Section:
    names = figures.policies(metrics)
    indices = model_indices(figures.all_models(results) + names)
    colour = {name: figures.MODEL_COLOURS[indices[name]] for name in names}
    more = figures.POLICY_DETAILS | figures.other_policy_metrics(metrics)
    return Section(
        id="policies",
        title="Reinforcement learning",
        legend=tuple((name, indices[name]) for name in names),
        plots=tuple(figures.policy_plots(metrics, colour, figures.POLICY_METRICS)),
        more=tuple(figures.policy_plots(metrics, colour, more)),
    )


def _data(results: Record) -> Section:
    data = results.get("data") or {}
    tables = [
        data_tables.sizes(data.get("sizes") or []),
        data_tables.hygiene(data.get("hygiene") or []),
        data_tables.overlap(data.get("overlap") or []),
        data_tables.lengths(data.get("lengths") or []),
    ]
    return Section(id="data", title="Data", tables=tuple(table for table in tables if table.rows))


def _run(results: Record, profile: Sequence[Record]) -> Section:
    versions = tuple(
        (Cell(main=str(name)), Cell(main=str(version))) for name, version in (results.get("versions") or {}).items()
    )
    tables = [
        run_views.timings(profile),
        run_views.parts(profile),
        TableView(title="Versions", headings=(), rows=versions, wide=False),
    ]
    return Section(
        id="run",
        title="Run",
        tables=tuple(table for table in tables if table.rows),
        settings=tuple(run_views.flat(results.get("config") or {})),
    )
