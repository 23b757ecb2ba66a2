"""What lm-eval finds of a model, as what a suite gives of one."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from instructrl.data.encoding import Encoder
from instructrl.evaluation.statistics import Z95
from instructrl.evaluation.suites.protocol import Measure
from instructrl.integrations.lm_eval import package
from instructrl.integrations.lm_eval.model import PolicyLM
from instructrl.integrations.lm_eval.tasks import OF_A_TASK, Asked, one_line
from instructrl.models.policy import Policy

# Draws of the standard errors that have no formula.
_RESAMPLED = 1000
# The units of lm-eval's metrics, where they are other than a plain number.
_UNITS = {
    **dict.fromkeys(("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "acc_all", "exact_match", "f1"), "share"),
    "bits_per_byte": "bits",
    **dict.fromkeys(("bleu", "chrf", "chrf++", "ter"), "points"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """task: its name, or that of a group. shots: examples in each context."""

    task: str
    shots: int
    measure: Measure


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResults:
    """Of one model. notes: what people have to know of it, a line each."""

    rows: tuple[TaskResult, ...]
    notes: tuple[str, ...]


def measured(
    policy: Policy,
    encoder: Encoder,
    asked: Asked,
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    seed: int = 0,
) -> TaskResults:
    """As `lm_eval_results`, of a name that was opened; it can be put to one model after the other.

    Raises ValueError for a task that asks for what is not known here, and where its own functions fail.
    """
    lm = PolicyLM(policy, encoder, seed)
    for task in asked.tasks.values():
        if num_fewshot is not None:
            task.set_config(key="num_fewshot", value=num_fewshot)
        task.set_fewshot_seed(seed=seed)
    with package.untouched():
        try:
            found = package.module("lm_eval").evaluate(
                lm=lm,
                task_dict={"tasks": asked.tasks, "groups": asked.groups},
                limit=limit,
                bootstrap_iters=_RESAMPLED,
                log_samples=False,
                apply_chat_template=encoder.chat is not None,
                fewshot_as_multiturn=True,
            )
        except OF_A_TASK as error:
            raise ValueError(f"lm_eval: {asked.name}: found {one_line(error)}") from error
    return TaskResults(rows=tuple(_rows(found, asked)), notes=tuple(_notes(lm)))


def _rows(found: Mapping[str, Any], asked: Asked) -> list[TaskResult]:
    """Of a group, its own numbers first, and then those of its tasks as parts of it."""
    is_group = asked.name in asked.groups
    names = [asked.name, *asked.tasks] if is_group else [*asked.tasks]
    return [
        TaskResult(
            task=asked.name if is_group else name,
            shots=int(found["n-shot"].get(name) or 0),
            measure=measure,
        )
        for name in names
        for measure in _measures(found["results"].get(name, {}), name if is_group and name != asked.name else "")
    ]


def _measures(found: Mapping[str, Any], group: str) -> list[Measure]:
    """found: values and their standard errors by `metric,filter`, beside what a task is called and has."""
    measures = []
    for key, value in found.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        unit = _UNITS.get(metric, "")
        error = found.get(f"{metric}_stderr,{chosen}")
        low, high = _interval(float(value), float(error), unit) if isinstance(error, int | float) else (None, None)
        measures.append(
            Measure(
                metric=metric if chosen == "none" else f"{metric} ({chosen})",
                value=float(value),
                low=low,
                high=high,
                num_items=int(found["sample_len"]),
                unit=unit,
                group=group,
            )
        )
    return measures


def _interval(value: float, error: float, unit: str) -> tuple[float, float]:
    low, high = value - Z95 * error, value + Z95 * error
    return (max(low, 0.0), min(high, 1.0)) if unit == "share" else (low, high)


def _notes(lm: PolicyLM) -> list[str]:
    notes = [
        f"{task}: {count} of the requests are longer than the model reads; their beginning was cut off"
        for task, count in lm.cut.items()
        if count
    ]
    if lm.moved_system_messages:
        notes.append(
            f"{lm.moved_system_messages} system messages stand before what the user says: the chat template takes none"
        )
    return notes


def joined(parts: Sequence[TaskResults]) -> TaskResults:
    """Of several names that one model was asked."""
    return TaskResults(
        rows=tuple(row for part in parts for row in part.rows),
        notes=tuple(note for part in parts for note in part.notes),
    )


def model_rows(model: str, results: TaskResults) -> dict[str, list]:
    """As `results.json` has the rows and the notes of a model."""
    rows = [
        {"model": model, "prompt": row.task, "shots": row.shots, "num_left_out": 0, **asdict(row.measure)}
        for row in results.rows
    ]
    return {"rows": rows, "notes": [f"{model}: {note}" for note in results.notes]}


def suite_entry(answered: Sequence[Mapping[str, list]]) -> dict[str, Any]:
    """As `results.json` has a suite. answered: what `model_rows` gave."""
    return {
        "suite": "lm-eval",
        "title": "lm-evaluation-harness",
        "what": f"tasks of lm-eval {version('lm_eval')}, answered as everything is here",
        "notes": [note for found in answered for note in found["notes"]],
        "rows": [row for found in answered for row in found["rows"]],
    }
