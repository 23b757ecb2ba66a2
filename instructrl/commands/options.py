"""Options from typed dataclasses, a YAML file and the command line, in that order of precedence."""

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

ConfigT = TypeVar("ConfigT")


def parse(default: ConfigT | type[ConfigT], arguments: Sequence[str], *, program: str, description: str) -> ConfigT:
    """A config from its defaults, then `--config FILE`, then the other arguments.

    default: an instance, or a dataclass where some options are required. Prints and exits with 2 for what tyro
    rejects. Raises ValueError for a key of the file that the config does not have.
    """
    pre = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    pre.add_argument("--config", type=Path)
    known, rest = pre.parse_known_args(list(arguments))
    kind = default if isinstance(default, type) else type(default)
    given = [] if known.config is None else _arguments_from(known.config, kind, default)
    return tyro.cli(
        kind,
        default=tyro.MISSING_NONPROP if isinstance(default, type) else default,
        args=[*given, *rest],
        prog=program,
        description=f"{description}\n\nA YAML file with any of the options: --config FILE.",
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )


def _arguments_from(path: Path, kind: type, default: Any) -> list[str]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: found invalid YAML, {str(error).splitlines()[0]}") from None
    if content is None:
        return []
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: found a {type(content).__name__}, accepted is a mapping of options to values")
    return _flatten(content, default if not isinstance(default, type) else kind, str(path), "")


def _flatten(content: Mapping[str, Any], target: Any, path: str, prefix: str) -> list[str]:
    """The entries of a mapping as arguments; `tyro` then checks their types.

    target: a config, or its class. A section that the config leaves out (null) cannot be put in, nor the reverse: which
    steps a run has is the run's own choice.
    """
    defaults = _defaults(target)
    taken: list[str] = []
    for key, value in content.items():
        if key not in defaults:
            close = difflib.get_close_matches(str(key), defaults, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"accepted are {', '.join(defaults)}"
            raise ValueError(f"{path}: found the unknown key {prefix}{key}, {hint}")
        inner = defaults[key]
        if is_dataclass(inner) != isinstance(value, Mapping):
            accepted = "a mapping" if is_dataclass(inner) else "a value"
            raise ValueError(f"{path}: {prefix}{key}: found {value!r}, accepted is {accepted}")
        if isinstance(value, Mapping):
            taken += _flatten(value, inner, path, f"{prefix}{key}.")
        elif isinstance(value, list):
            taken += [f"--{prefix}{key}", *map(str, value)]
        elif value is not None or inner is not None:
            taken += [f"--{prefix}{key}", str(value)]
    return taken


def _defaults(target: Any) -> dict[str, Any]:
    if isinstance(target, type):
        return {field.name: field.default for field in fields(target)}
    return {field.name: getattr(target, field.name) for field in fields(target)}
