"""Tasks of lm-eval by name: its own, and those of a folder of YAML files.

A YAML file may name functions (`!function`) of a Python file beside it, which is run: a folder of tasks is a program.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from instructrl.integrations.lm_eval import package

# What lm-eval, a task's file, its functions and its data can raise.
OF_A_TASK = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, NameError, SyntaxError),
    *(RuntimeError, AssertionError, ArithmeticError, yaml.YAMLError, jinja2.TemplateError),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A name that was asked for. tasks, groups: what stands behind it, lm-eval's own objects by their names."""

    name: str
    tasks: dict[str, Any]
    groups: dict[str, Any]

    @property
    def known(self) -> str:
        """What decides the requests, as JSON: settings with the sources of their functions, and which data."""
        about = {
            name: [task.dump_config(), {split: _version(rows) for split, rows in task.dataset.items()}]
            for name, task in self.tasks.items()
        }
        return json.dumps(about, sort_keys=True, default=str)


def _version(rows: Any) -> str:
    """Of data as the library datasets has read them, of others how many there are."""
    return getattr(rows, "_fingerprint", f"{len(rows)} rows")


def open_tasks(names: Sequence[str], folder: str | Path | None = None) -> list[Asked]:
    """Tasks with their data, before any model is needed.

    names: of tasks, groups or tags. folder: of YAML files, whose names come first; lm-eval's own are looked at where a
    name is not among them. Data are where a task says: a task of lm-eval's own asks a hub for them. Raises ValueError
    where lm-eval is not installed, for an unknown name, and for a task that cannot be opened.
    """
    if folder is not None and not Path(folder).is_dir():
        raise ValueError(f"lm_eval_tasks: found no folder {folder}, accepted is one with YAML files of tasks")
    manager_of = package.module("lm_eval.tasks").TaskManager
    with package.untouched():
        try:
            manager = None if folder is None else manager_of(include_path=str(folder), include_defaults=False)
            if manager is None or any(not manager.match_tasks([name]) for name in names):
                manager = manager_of(include_path=None if folder is None else str(folder))
        except OF_A_TASK as error:
            raise ValueError(f"lm_eval_tasks: found {one_line(error)} in {folder}, accepted are tasks") from error
        unknown = [name for name in names if not manager.match_tasks([name])]
        if unknown or not names:
            raise ValueError(
                f"lm_eval: found {', '.join(map(repr, unknown)) or 'no name'}, accepted are the names that `lm-eval ls "
                f"tasks` lists{'' if folder is None else f' and those of {folder}'}"
            )
        return [_load(manager, name) for name in dict.fromkeys(names)]


def _load(manager: Any, name: str) -> Asked:
    try:
        with _known_metrics():
            loaded = manager.load(manager.match_tasks([name]))
    except OF_A_TASK as error:
        raise ValueError(
            f"lm_eval: {name}: found {one_line(error)}, accepted is a task whose file is right and whose data are here "
            "or can be fetched"
        ) from error
    for task in loaded["tasks"].values():
        _check(name, task)
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return Asked(name=name, tasks=loaded["tasks"], groups=loaded["groups"])


@contextmanager
def _known_metrics() -> Iterator[None]:
    """A name that lm-eval does not know stays unknown: it would fetch a program of that name and run it."""
    module, known = package.module("lm_eval.api.task"), package.module("lm_eval.api.registry").metric_registry
    own = module.get_metric
    module.get_metric = lambda name, fetched=False: own(name, fetched) if fetched or name in known else None
    try:
        yield
    finally:
        module.get_metric = own


def _check(name: str, task: Any) -> None:
    """Raise ValueError for a task that cannot be carried out here."""
    found = task.task_name
    missing = [str(metric) for metric, function in getattr(task, "_metric_fn_list", {}).items() if function is None]
    if missing and task.config.process_results is None:
        raise ValueError(f"lm_eval: {found}: found the metric {missing[0]!r}, accepted are those of lm-eval")
    if getattr(task, "UNSAFE_CODE", False):
        raise ValueError(f"lm_eval: {name}: found {found}, which runs code that models write: accepted are others")
    if getattr(task, "MULTIMODAL", False):
        raise ValueError(f"lm_eval: {name}: found {found}, which has more than text: accepted are tasks of text alone")


def one_line(error: BaseException) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:200]}" if said else type(error).__name__
