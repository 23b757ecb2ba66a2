"""Options that do nothing where another one is not set: a value given to one of them is a mistake, and is refused."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from instructrl.commands.settings import (
    CheckCommand,
    EvalCommand,
    JudgeCommand,
    PPOCommand,
    RewardModelCommand,
    RunCommand,
    SFTCommand,
)
from instructrl.data.settings import PrepareConfig
from instructrl.evaluation.suites.settings import SuiteConfig
from instructrl.rollout.settings import VLLMConfig
from instructrl.runs.chat_settings import ChatRunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Unused:
    """option: its dotted name. without: what makes it do something. when: (settings) -> whether it does nothing."""

    option: str
    without: str
    when: Callable[[Any], bool]


_BLOCKS = Unused(option="block_tokens", without="corpus", when=lambda settings: settings.corpus is None)


def _of_adapters(prefix: str, owner: Callable[[Any], Any]) -> tuple[Unused, ...]:
    return tuple(
        Unused(
            option=f"{prefix}adapter.{name}",
            without=f"{prefix}adapter.rank",
            when=lambda settings: owner(settings).adapter.rank is None,
        )
        for name in ("alpha", "targets", "base_dtype")
    )


def _horizon(prefix: str, phase: str, recipe: Callable[[Any], Any]) -> Unused:
    return Unused(
        option=f"{prefix}{phase}.kl_horizon",
        without=f"{prefix}{phase}.kl_target",
        when=lambda settings: getattr(recipe(settings), phase).kl_target is None,
    )


_OF_A_STEP = _of_adapters("", lambda settings: settings)
_OF_SUITES = tuple(
    Unused(option=f"suite.{field.name}", without="suites", when=lambda settings: not settings.suites)
    for field in fields(SuiteConfig)
)
_RULES: Mapping[type, tuple[Unused, ...]] = {
    EvalCommand: (
        *_OF_SUITES,
        *(
            Unused(option=name, without="baseline", when=lambda settings: settings.baseline is None)
            for name in ("temperature", "sampling", "long_prompts", "limits")
        ),
        *(
            Unused(option=name, without="lm_eval", when=lambda settings: not settings.lm_eval)
            for name in ("lm_eval_tasks", "lm_eval_limit")
        ),
    ),
    RewardModelCommand: _OF_A_STEP,
    PPOCommand: (
        *_OF_A_STEP,
        *(
            Unused(option=option, without="ppo.ptx_coef", when=lambda settings: settings.ppo.ptx_coef == 0)
            for option in ("corpus", "ppo.ptx_examples_per_episode")
        ),
        _BLOCKS,
        _horizon("", "ppo", lambda settings: settings),
        *(
            Unused(option=f"vllm.{field.name}", without="engine vllm", when=lambda settings: settings.engine != "vllm")
            for field in fields(VLLMConfig)
        ),
        *(
            Unused(
                option=f"vllm.{name}",
                without="an engine in this process, which vllm.server stands in for",
                when=lambda settings: settings.vllm.server is not None,
            )
            for name in ("kv_cache_gib", "tensor_parallel", "enforce_eager")
        ),
    ),
    SFTCommand: (
        *_OF_A_STEP,
        Unused(
            option="corpus",
            without="sft.pretraining_fraction",
            when=lambda settings: settings.sft.pretraining_fraction == 0,
        ),
        _BLOCKS,
    ),
    JudgeCommand: (
        *(
            Unused(option=option, without="reward_model", when=lambda settings: settings.reward_model is None)
            for option in (
                *("weights", "chat_template", "chat_date", "device"),
                *("limits.max_prompt_tokens", "limits.max_response_tokens"),
            )
        ),
        Unused(option="gamed", without="annotations", when=lambda settings: not settings.annotations),
        Unused(option="fresh", without="out", when=lambda settings: settings.out is None),
    ),
    CheckCommand: tuple(
        Unused(option=option, without="model", when=lambda settings: settings.model is None)
        for option in ("chat_template", "chat_date", "turns")
    ),
    ChatRunConfig: (
        *_OF_SUITES,
        _horizon("recipe.", "ppo", lambda settings: settings.recipe),
        Unused(
            option="recipe.ppo.ptx_examples_per_episode",
            without="a mix, which this run does not have",
            when=lambda settings: True,
        ),
    ),
    PrepareConfig: (
        Unused(option="phone_regions", without="personal_data", when=lambda settings: not settings.personal_data),
    ),
}
_OF_A_RUN = (
    *_OF_SUITES,
    *_of_adapters("recipe.", lambda settings: settings.recipe),
    *(_horizon("recipe.", phase, lambda settings: settings.recipe) for phase in ("ppo", "ppo_ptx")),
    Unused(
        option="recipe.ppo.ptx_examples_per_episode",
        without="recipe.ppo.ptx_coef, which recipe.ppo_ptx alone has",
        when=lambda settings: True,
    ),
)


def check_used(settings: Any) -> None:
    """Raise ValueError for an option that has another value than its default and would not be used.

    settings: what a command line asks for. What a run leaves behind as its settings has all defaults in it, and is
    taken back: a default is never refused.
    """
    if isinstance(settings, RunCommand):
        _check(settings.config, settings.named.config, _RULES.get(type(settings.config), _OF_A_RUN))
    else:
        _check(settings, type(settings), _RULES.get(type(settings), ()))


def _check(settings: Any, default: Any, rules: Iterable[Unused]) -> None:
    for rule in rules:
        found = _member(settings, rule.option)
        if found != _member(default, rule.option) and rule.when(settings):
            raise ValueError(
                f"{rule.option}: found {found}, which nothing uses without {rule.without}; accepted is both, or neither"
            )


def _member(target: Any, name: str) -> Any:
    """A value by its dotted name; of a class the default."""
    for part in name.split("."):
        defaults = {field.name: field.default for field in fields(target)} if isinstance(target, type) else {}
        target = defaults[part] if part in defaults else getattr(target, part)
    return target
