"""Tasks of lm-eval in `instructrl eval`: opened before the models, asked in portions, a suite of the results."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from instructrl.commands.settings import EvalCommand
from instructrl.runs.portions import Portions
from instructrl.runs.steps import Workspace
from instructrl.runs.suites import Examinee

if TYPE_CHECKING:
    from instructrl.integrations.lm_eval.tasks import Asked


def open_asked(config: EvalCommand) -> "list[Asked]":
    """Tasks with their data. Raises ValueError as `open_tasks` does."""
    if not config.lm_eval:
        return []
    from instructrl.integrations.lm_eval.tasks import open_tasks

    return open_tasks(config.lm_eval, config.lm_eval_tasks)


def check_drawing(examinee: Examinee, opened: "Sequence[Asked]") -> None:
    """Raise ValueError for tasks that the model cannot be asked, as far as that is known before it is."""
    if opened:
        from instructrl.integrations.lm_eval import model

        for asked in opened:
            model.check_drawing(examinee.policy, asked.tasks)


def ask_tasks(work: Workspace, examinee: Examinee, opened: "Sequence[Asked]", config: EvalCommand) -> dict[str, list]:
    """Rows and notes of a model. What was asked for by a name is done once: an evaluation that was stopped goes on."""
    from importlib.metadata import version

    from instructrl.integrations.lm_eval.results import measured, model_rows

    name, policy, encoder = examinee.name, examinee.policy, examinee.encoder
    how: Any = {"limit": config.lm_eval_limit, "seed": config.seed}
    found: dict[str, list] = {"rows": [], "notes": []}
    with work.log.phase(f"lm-eval: {name}", len(opened), "tasks") as bar:
        for asked in opened:
            given = (examinee.known, name, asked.known, how, version("lm_eval"))
            portions = Portions(work.folder, work.log, f"{examinee.number:02d}-lm-eval", *given)
            slug = "".join(letter if letter.isalnum() else "-" for letter in asked.name)
            part = portions.once(slug, lambda asked=asked: model_rows(name, measured(policy, encoder, asked, **how)))
            for kind, rows in part.items():
                found[kind] += rows
            bar.advance(note=asked.name)
    for note in found["notes"]:
        work.log.warn(note)
    return found


def lm_eval_results(answered: Sequence[Mapping[str, list]]) -> list[dict[str, Any]]:
    """What is added to the `suites` of the results. answered: of each model that was asked."""
    if not answered:
        return []
    from instructrl.integrations.lm_eval.results import suite_entry

    return [suite_entry(answered)]
