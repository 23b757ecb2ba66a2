"""The named runs of `instructrl run`: a table of a configuration and the function that carries it out.

What carries them out is imported when it is called: the table itself needs no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructrl.runs.chat_settings import CHAT_DESCRIPTION, ChatRunConfig, check_chat
from instructrl.runs.plan import LAST_EPOCH, PlanRow, concerns, plan, plan_chat, with_baselines, with_sizes
from instructrl.runs.recipe import PAPER_1_3B, PAPER_6B, PAPER_175B
from instructrl.runs.settings import (
    MINIATURE,
    MINIATURE_DESCRIPTION,
    PATHS,
    PUBLIC,
    PUBLIC_DESCRIPTION,
    SMOKE,
    FilesConfig,
    MiniatureConfig,
    PublicConfig,
    check_paths,
)

if TYPE_CHECKING:
    from instructrl.trainers.log import RunLog

# Mean length of a document with its end of text, for the plan.
_DOCUMENT_TOKENS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedRun:
    """config: the run's own configuration with its defaults. check: raises ValueError for options that are missing.
    read: (config) -> the input of carry_out; raises ValueError for input that cannot be used, before anything is
    written. carry_out: (input, folder, log) -> results. counts: what is known of the data before they are read.
    reward_start: (config) -> what the reward model starts from. steps: (config) -> a plan in place of the usual one.
    """

    description: str
    config: Any
    carry_out: "Callable[[Any, Path, RunLog], dict[str, Any]]"
    counts: Callable[[Any], Mapping[str, int | None]]
    read: Callable[[Any], Any] = lambda config: config
    check: Callable[[Any], None] = lambda config: None
    reward_start: Callable[[Any], str] = lambda config: LAST_EPOCH
    steps: Callable[[Any], list[PlanRow]] | None = None

    def plan(self, config: Any) -> list[PlanRow]:
        """The steps that `config` asks for."""
        if self.steps is not None:
            return self.steps(config)
        return plan(config.recipe, self.counts(config), self.reward_start(config))

    def concerns(self, config: Any) -> list[str]:
        """What is to be said of the settings before the run."""
        return concerns(config.recipe, self.counts(config))


def _read_files(config: FilesConfig) -> Any:
    from instructrl.runs import files

    return files.read_files(config)


def _run_files(given: Any, folder: Path, log: "RunLog") -> dict[str, Any]:
    from instructrl.runs import files

    return files.run_files(given, folder, log)


def _read_public(config: PublicConfig) -> Any:
    from instructrl.runs import public

    return public.read_public(config)


def _run_public(given: Any, folder: Path, log: "RunLog") -> dict[str, Any]:
    from instructrl.runs import public

    return public.run_public(given, folder, log)


def _read_chat(config: ChatRunConfig) -> Any:
    from instructrl.runs import chat

    return chat.read_chat(config)


def _run_chat(given: Any, folder: Path, log: "RunLog") -> dict[str, Any]:
    from instructrl.runs import chat

    return chat.run_chat(given, folder, log)


def _run_miniature(config: MiniatureConfig, folder: Path, log: "RunLog") -> dict[str, Any]:
    from instructrl.runs import miniature

    return miniature.run_miniature(config, folder, log)


def _read_miniature(config: MiniatureConfig) -> MiniatureConfig:
    """As it is, where the file that it names can be read."""
    from instructrl.runs.selection import read_prefixes

    if config.baselines.prefixes is not None:
        read_prefixes(config.baselines.prefixes)
    return config


def _miniature_steps(config: MiniatureConfig) -> list[PlanRow]:
    rows = with_baselines(plan(config.recipe, _miniature_counts(config)), config.baselines)
    return with_sizes(rows, config.other_sizes)


def _miniature_counts(config: MiniatureConfig) -> dict[str, int | None]:
    """The sizes of the data, known before they are made."""
    amounts = config.amounts
    return {
        "blocks": amounts.documents * _DOCUMENT_TOKENS // config.recipe.block_tokens,
        "demonstrations": amounts.demonstrations,
        "comparisons": amounts.comparisons,
        "ppo_prompts": amounts.ppo_prompts,
        "test": amounts.test,
    }


def _public_counts(config: PublicConfig) -> dict[str, int | None]:
    """What is known of the sizes before the data are read."""
    return {
        "blocks": config.blocks,
        "demonstrations": config.demonstrations,
        "ppo_prompts": config.ppo_prompts,
        "test": config.test_prompts,
    }


def _from_files(description: str, config: FilesConfig) -> NamedRun:
    return NamedRun(
        description=description,
        config=config,
        carry_out=_run_files,
        counts=lambda config: {"test": None},
        read=_read_files,
        check=check_paths,
        reward_start=lambda config: config.reward_base or LAST_EPOCH,
    )


def _beside_6b(description: str, config: FilesConfig) -> NamedRun:
    """A run of another size than 6B: its reward model and value function are 6B all the same (paper, C.2)."""
    return replace(
        _from_files(description, config),
        check=partial(check_paths, needed=(*PATHS, "reward_base")),
        reward_start=lambda config: config.reward_base or "--reward-base, a 6B model",
    )


def _miniature(description: str, config: MiniatureConfig) -> NamedRun:
    return NamedRun(
        description=description,
        config=config,
        carry_out=_run_miniature,
        counts=_miniature_counts,
        read=_read_miniature,
        steps=_miniature_steps,
    )


RUNS: Mapping[str, NamedRun] = {
    "miniature": _miniature(MINIATURE_DESCRIPTION, MINIATURE),
    "smoke": _miniature("the miniature, cut down to show that every step works", SMOKE),
    "public": NamedRun(
        description=PUBLIC_DESCRIPTION,
        config=PUBLIC,
        carry_out=_run_public,
        counts=_public_counts,
        read=_read_public,
    ),
    "chat": NamedRun(
        description=CHAT_DESCRIPTION,
        config=ChatRunConfig(),
        carry_out=_run_chat,
        counts=lambda config: {},
        read=_read_chat,
        check=check_chat,
        steps=plan_chat,
    ),
    "files": _from_files("all steps on your own files and model", FilesConfig()),
    "instructgpt_1_3b": _beside_6b("the paper's hyperparameters for 1.3B", FilesConfig(recipe=PAPER_1_3B)),
    "instructgpt_6b": _from_files("the paper's hyperparameters for 6B", FilesConfig(recipe=PAPER_6B)),
    "instructgpt_175b": _beside_6b("the paper's hyperparameters for 175B", FilesConfig(recipe=PAPER_175B)),
}
