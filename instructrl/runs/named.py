"""The named runs of `instructrl run`: a table of a configuration and the function that carries it out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructrl.runs import files, miniature, public
from instructrl.runs.plan import PlanRow, plan
from instructrl.runs.recipe import PAPER_1_3B, PAPER_6B, PAPER_175B
from instructrl.trainers.log import RunLog


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedRun:
    """config: the run's own configuration with its defaults. read: (config) -> the input of carry_out; raises
    ValueError for input that cannot be used, before anything is written. carry_out: (input, folder, log) -> results.
    counts: what is known of the data before they are read."""

    description: str
    config: Any
    carry_out: Callable[[Any, Path, RunLog], dict[str, Any]]
    counts: Callable[[Any], Mapping[str, int | None]]
    read: Callable[[Any], Any] = lambda config: config

    def plan(self, config: Any) -> list[PlanRow]:
        """The steps that `config` asks for."""
        return plan(config.recipe, self.counts(config))


def _from_files(description: str, config: files.FilesConfig) -> NamedRun:
    return NamedRun(
        description=description,
        config=config,
        carry_out=files.run_files,
        counts=lambda config: {"test": None},
        read=files.read_files,
    )


def _miniature(description: str, config: miniature.MiniatureConfig) -> NamedRun:
    return NamedRun(description=description, config=config, carry_out=miniature.run_miniature, counts=miniature.counts)


RUNS: Mapping[str, NamedRun] = {
    "miniature": _miniature(miniature.DESCRIPTION, miniature.MINIATURE),
    "smoke": _miniature("the miniature, cut down to show that every step works", miniature.SMOKE),
    "public": NamedRun(
        description=public.DESCRIPTION,
        config=public.PUBLIC,
        carry_out=public.run_public,
        counts=public.counts,
        read=public.read_public,
    ),
    "files": _from_files("all steps on your own files and model", files.FilesConfig()),
    "instructgpt_1_3b": _from_files("the paper's hyperparameters for 1.3B", files.FilesConfig(recipe=PAPER_1_3B)),
    "instructgpt_6b": _from_files("the paper's hyperparameters for 6B", files.FilesConfig(recipe=PAPER_6B)),
    "instructgpt_175b": _from_files("the paper's hyperparameters for 175B", files.FilesConfig(recipe=PAPER_175B)),
}
