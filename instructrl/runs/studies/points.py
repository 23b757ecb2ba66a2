"""What a study is: a row of a table, with the points that it measures. Nothing here needs torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from instructrl.runs.settings import MiniatureConfig
from instructrl.settings import DeviceName, require_positive
from instructrl.trainers.settings import CheckpointConfig

# What the KL of PPO is measured from.
START, GPT = "PPO start", "GPT"
Kind = Literal["policies", "folds", "passes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One place at which a study measures.

    label: for people. series: the line that it is on. x: where on it. settings: dotted names in the recipe and their
    values. first: the first step of the run that changes. phase: the settings of PPO, "ppo" or "ppo_ptx". reference:
    what its KL is measured from. keep: iterations at which the policy is measured too. fold: the group of labelers that
    the reward model does not learn from.
    """

    label: str
    series: str
    x: float
    settings: tuple[tuple[str, Any], ...] = ()
    first: str = "ppo"
    phase: str = "ppo_ptx"
    reference: str = START
    keep: tuple[int, ...] = ()
    fold: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """title: of its figure. paper: where the paper has it. what: is varied, and what one sees, a sentence. points: of a
    base run with these settings. x_label: what x is. kind: who carries the points out. shown: metrics in the order in
    which they are drawn, with their titles. against: the metric that they are drawn over; "" is x. seeds: of each
    point."""

    title: str
    paper: str
    what: str
    points: Callable[[MiniatureConfig], list[Point]]
    x_label: str
    shown: Mapping[str, str]
    kind: Kind = "policies"
    against: str = ""
    log_x: bool = True
    seeds: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyConfig:
    """A study of one base run, as it is kept in the study's folder."""

    # its name in the table
    study: str
    # of each point; the first is the base run's own
    seeds: int
    # the settings of the base run
    base: MiniatureConfig
    # where networks lie and run: auto is a CUDA GPU where there is one, else the CPU (docs/devices.md)
    device: DeviceName = "auto"
    # how often a point is saved
    checkpoints: CheckpointConfig = CheckpointConfig()

    def __post_init__(self) -> None:
        require_positive(self, "seeds")


def varied(target: Any, settings: tuple[tuple[str, Any], ...]) -> Any:
    """A configuration with other values at dotted names; those of one section change together, then it is checked."""
    own: dict[str, Any] = {}
    sections: dict[str, list[tuple[str, Any]]] = {}
    for name, value in settings:
        first, _, rest = name.partition(".")
        if rest:
            sections.setdefault(first, []).append((rest, value))
        else:
            own[first] = value
    inner = {first: varied(getattr(target, first), tuple(rows)) for first, rows in sections.items()}
    return replace(target, **own, **inner)


def at(target: Any, name: str) -> Any:
    """The value at a dotted name."""
    for part in name.split("."):
        target = getattr(target, part)
    return target


def units(study: Study, config: StudyConfig) -> list[tuple[str, Point, int]]:
    """What is carried out, one after the other: a name, a point and the number of its seed."""
    points = study.points(config.base)
    return [(f"{i:02d}-{seed}", point, seed) for seed in range(config.seeds) for i, point in enumerate(points)]
