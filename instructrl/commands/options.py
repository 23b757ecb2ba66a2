"""Options from typed dataclasses, a YAML file and the command line, in that order of precedence."""

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
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
        default=tyro.MISSING if isinstance(default, type) else default,
        args=[*given, *rest],
        prog=program,
        description=f"{description}\n\nA YAML file with any of the options: --config FILE.",
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )


def as_yaml(config: Any) -> str:
    """A config as a file that `--config` takes."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False)


def flag(arguments: list[str], name: str) -> bool:
    """Take a flag out of the arguments. Returns whether it was there."""
    found = name in arguments
    if found:
        arguments.remove(name)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


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
    """The entries of a mapping as arguments; `tyro` then checks their types."""
    names = [field.name for field in fields(target)]
    taken: list[str] = []
    for key, value in content.items():
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"accepted are {', '.join(names)}"
            raise ValueError(f"{path}: found the unknown key {prefix}{key}, {hint}")
        inner = getattr(target, key, None)
        if isinstance(value, Mapping):
            if not is_dataclass(inner):
                raise ValueError(f"{path}: {prefix}{key}: found a mapping, accepted is a value")
            taken += _flatten(value, inner, path, f"{prefix}{key}.")
        elif isinstance(value, list):
            taken += [f"--{prefix}{key}", *map(str, value)]
        else:
            taken += [f"--{prefix}{key}", str(value)]
    return taken


def out_folder(folder: Path) -> Path:
    """A new folder for a run, or the folder of an earlier run, which is then replaced.

    Raises ValueError for a folder with other things in it.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder}: found a folder that is no run, accepted is a new one or one of an earlier run")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def note(text: str) -> None:
    """A line for the person at the terminal; standard output is for results."""
    print(text, file=sys.stderr)
