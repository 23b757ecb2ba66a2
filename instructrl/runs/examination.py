"""The last step of every run: all models on the same prompts, and `results.json`."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from instructrl import distributed, durable, progress
from instructrl.evaluation import results as assemble
from instructrl.evaluation.contenders import Contender, Exam, Performance, block_losses
from instructrl.models.base import source_of
from instructrl.runs.portions import Portions
from instructrl.runs.steps import Workspace
from instructrl.runs.suites import Examinee, ask, read_suites, suite_results, with_judges
from instructrl.tracking.masking import masked_values
from instructrl.trainers.checkpoints import fingerprint
from instructrl.types import Prompt

PPO_NAMES = {"ppo": "PPO", "ppo_ptx": "PPO-ptx"}
NUM_SHOWN_SAMPLES = 24

# From all performances, as the exam judged them, to those that the results compare, and the results' `judged` entry.
Panel = Callable[[Sequence[Performance]], tuple[list[Performance], dict[str, Any]]]


def examine(
    work: Workspace,
    exam: Exam,
    contenders: Sequence[Contender],
    prompts: Sequence[Prompt],
    parts: Mapping[str, Any],
    *,
    pretrained: str = "GPT",
    favourite: str = "PPO-ptx",
    shown: Sequence[int] | None = None,
    panel: Panel | None = None,
) -> dict[str, Any]:
    """The last step: put every contender through the exam and write `results.json`.

    prompts: those of the exam, with users and categories. parts: entries of the results that earlier steps made.
    pretrained: the contender whose loss on plain text the others' is compared with. favourite: the one that is compared
    with each of the others. shown: of which prompts the responses may be shown, in their order; None: of all.
    panel: judges all performances together, once more.
    """
    performances = []
    work.journal.tell_if_done()
    with progress.wait("evaluation: a digest of data and models"):
        given = [exam.reward_model, exam.start, exam.judged_by, exam.prompts, exam.blocks, exam.questions]
        common = fingerprint(*given, exam.sampling, work.rendering)
    with work.log.phase("evaluation", len(contenders) + 1, "responses") as bar:
        for number, contender in enumerate(contenders):
            given = (common, contender.policy, exam.asked(contender), contender.start)
            portions = Portions(work.folder, work.log, f"{number:02d}", *given)
            performances.append(exam.take(contender, portions.once))
            bar.advance(units=len(prompts), note=contender.name)
        portions = Portions(work.folder, work.log, "start", common)
        start = portions.once("text", lambda: block_losses(exam.start, exam.blocks))
        bar.advance(note="")
    if panel is not None:
        performances, judged = panel(performances)
        parts = {**parts, "judged": judged}
    with progress.wait("comparing the models"):
        models = assemble.compare(performances, prompts, baseline="SFT")
        head_to_head = assemble.head_to_head(performances, prompts, favourite)
        pairings = assemble.all_against_all(performances, prompts)
    trained = [phase for phase in PPO_NAMES if hasattr(work.recipe, phase)]
    batch_sizes = {phase: getattr(work.recipe, phase).rollout_batch for phase in trained}
    samples = list(range(len(prompts)) if shown is None else shown)[:NUM_SHOWN_SAMPLES]
    results = {
        **parts,
        "models": models,
        "head_to_head": head_to_head,
        **pairings,
        "alignment_tax": assemble.alignment_tax(_of_one_start(performances, contenders), start, pretrained=pretrained),
        "over_optimisation": assemble.over_optimisation(work.log.read_metrics(), PPO_NAMES, batch_sizes),
        "samples": assemble.samples(performances, prompts, samples),
        "config": masked_values(work.config),
        "versions": assemble.versions(),
    }
    if work.suites:
        results["suites"] = _suites(work, contenders)
    text = json.dumps(results, indent=1, allow_nan=False)
    if distributed.is_main():
        durable.write_text(work.folder / "results.json", text + "\n")
    return json.loads(text)  # as whoever reads the file has them


def _of_one_start(performances: Sequence[Performance], contenders: Sequence[Contender]) -> list[Performance]:
    """Without models with a start of their own: what these lose is not what they lose to the exam's start, or to the
    pretrained model that it was."""
    return [row for row, contender in zip(performances, contenders, strict=True) if contender.start is None]


def _suites(work: Workspace, contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    """The models through public test sets. A model that is given its prompts in another form is no other model."""
    base = source_of(contenders[0].policy.lm)
    suites = with_judges(read_suites(work.suites, work.suite), work.suite, work.folder, base, work.log)
    seen, asked = [], []
    for number, contender in enumerate(contenders):
        if contender.policy not in seen:
            seen.append(contender.policy)
            examinee = Examinee.of(contender.name, number, contender.policy, work.encoder)
            asked.append(ask(examinee, suites, work.suite, work.folder, work.log))
    return suite_results(suites, asked)
