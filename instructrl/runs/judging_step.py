"""The miniature's labelers judge all contenders, blind, and what they say is kept.

FOLDER/judged_tasks.jsonl    what was shown, without names
FOLDER/judged_keys.jsonl     who wrote what
FOLDER/judged.jsonl          one label of each task by a training labeler, and one by a held-out one
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructrl import distributed, progress
from instructrl.data.labels import write_labels
from instructrl.evaluation.blind import as_judged, blind_tasks
from instructrl.evaluation.contenders import Performance
from instructrl.evaluation.judged import Panel, judged
from instructrl.types import Prompt
from instructrl.worlds.labelers import taking_turns
from instructrl.worlds.miniature import GROUPS, MiniatureWorld
from instructrl.worlds.overlap import is_unseen

JUDGES = {"training": "training labelers", "heldout": "held-out labelers"}
CONTROL = "rubric"
TASKS, KEYS, LABELS = "judged_tasks.jsonl", "judged_keys.jsonl", "judged.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """All contenders before labelers of both groups. seed: of the orders in which outputs are shown, and of who judges
    what. folder: where tasks, keys and labels are written."""

    world: MiniatureWorld
    prompts: Sequence[Prompt]
    seed: int
    folder: Path
    baseline: str = "SFT"

    def __call__(self, performances: Sequence[Performance]) -> tuple[list[Performance], dict[str, Any]]:
        """The performances as training labelers judge them, and the entry of all judges (`evaluation/judged.py`).

        performances: as the rubric judges them, which is the control.
        """
        tasks, keys = blind_tasks(self.prompts, performances, self.seed)
        panels, labels = [], []
        for group in GROUPS:
            labelers = self.world.labelers(group)
            turns = taking_turns(labelers, len(tasks), f"{self.seed} {group}")
            pairs = zip(turns, progress.through(f"judging: {JUDGES[group]}", tasks), strict=True)
            answers = [labeler.answer(task) for labeler, task in pairs]
            panels.append(
                Panel(
                    judge=JUDGES[group],
                    performances=as_judged(performances, keys, answers),
                    num_labelers=len({answer.labeler for answer in answers}),
                )
            )
            labels += answers
        if distributed.is_main():
            for name, records in ((TASKS, tasks), (KEYS, keys), (LABELS, labels)):
                write_labels(self.folder / name, records)
        control = Panel(judge=CONTROL, performances=performances)
        entry = judged([*panels, control], self.prompts, self._groupings(), baseline=self.baseline)
        return list(panels[0].performances), entry

    def _groupings(self) -> dict[str, list[str]]:
        return {
            "distribution": ["gpt" if prompt.source == "gpt" else "instruct" for prompt in self.prompts],
            "use case": [prompt.category for prompt in self.prompts],
            "task": ["unseen" if is_unseen(prompt.text) else "seen" for prompt in self.prompts],
        }
