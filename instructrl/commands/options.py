"""Options from typed dataclasses, a YAML file and the command line, in that order of precedence.

tyro writes the help. The values are read here, so that each mistake is one line that names the option, or the file and
the option in it, what was found and what is accepted.
"""

import argparse
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

import tyro
import yaml

ConfigT = TypeVar("ConfigT")


class Parser(argparse.ArgumentParser):
    """Raises ValueError where argparse prints its usage and exits."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}")


@dataclass(frozen=True, slots=True)
class _Given:
    """A value that was asked for. file: where, "" for the command line."""

    value: Any
    file: str = ""


def parse(default: ConfigT | type[ConfigT], arguments: Sequence[str], *, program: str, description: str) -> ConfigT:
    """A config from its defaults, then `--config FILE`, then the other arguments.

    default: an instance, or a dataclass where some options are required. Prints and exits with 0 where help is asked
    for. Raises ValueError for options that the config does not have, for values that it does not take, and where a
    required option is missing.
    """
    pre = Parser(prog=program, add_help=False, allow_abbrev=False)
    pre.add_argument("--config", type=Path)
    known, rest = pre.parse_known_args(list(arguments))
    if "-h" in rest or "--help" in rest:
        _print_help(default, program, description)
    given = {} if known.config is None else _from_mapping(_read_yaml(known.config), default, str(known.config), "")
    given |= _from_words(rest, default, program)
    return _built(default, given, "")


def _print_help(default: Any, program: str, description: str) -> NoReturn:
    tyro.cli(
        default if isinstance(default, type) else type(default),
        default=tyro.MISSING_NONPROP if isinstance(default, type) else default,
        args=["--help"],
        prog=program,
        description=f"{description}\n\nOptions can also be in a YAML file: --config FILE.",
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )
    raise AssertionError("tyro exits after the help")


# ---- a YAML file


class _UniqueKeys(yaml.SafeLoader):
    """YAML forbids a key twice in a mapping; the loader would take the last and say nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value} twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> Mapping[str, Any]:
    """The mapping that a file holds. Raises ValueError with the file, and the line where it is not YAML."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise ValueError(f"{path}: found {_reason(error)}, accepted is a YAML file") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"{path}: found the byte 0x{byte:02x} at byte {error.start + 1}, accepted is UTF-8") from None
    except RecursionError:
        raise ValueError(f"{path}: found YAML nested too deep, accepted is a mapping of options to values") from None
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" at line {error.problem_mark.line + 1}"
        found = " ".join(str(error.problem or error.context).split())
        raise ValueError(f"{path}: found invalid YAML{line} ({found}), accepted are options and values") from None
    except (yaml.YAMLError, ValueError) as error:  # the latter for such values as the 13th month
        found = str(error).splitlines()[0]
        raise ValueError(f"{path}: found invalid YAML ({found}), accepted are options and values") from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: found a {type(content).__name__}, accepted is a mapping of options to values")
    return content


def _reason(error: OSError) -> str:
    text = error.strerror or type(error).__name__
    return "a folder" if isinstance(error, IsADirectoryError) else text[0].lower() + text[1:]


def _from_mapping(content: Mapping[str, Any], target: Any, path: str, prefix: str) -> dict[str, _Given]:
    """The entries of a mapping by dotted name.

    target: a config, or its class. A section that the config leaves out (null) cannot be put in, nor the reverse: which
    steps a run has is the run's own choice.
    """
    defaults = _defaults(target)
    kinds = {field.name: field.type for field in fields(target)}
    given: dict[str, _Given] = {}
    for key, value in content.items():
        if key not in defaults:
            shown = " ".join(str(key).split())[:60]
            raise ValueError(f"{path}: found the unknown key {prefix}{shown}, {_hint(str(key), defaults)}")
        name, inner = f"{prefix}{key}", defaults[key]
        place = f"{path}: {name}"
        if is_dataclass(inner) != isinstance(value, Mapping):
            accepted = "a mapping" if is_dataclass(inner) else "a value"
            raise ValueError(f"{place}: found {_shown(value)}, accepted is {accepted}")
        if isinstance(value, Mapping):
            given |= _from_mapping(value, inner, path, f"{name}.")
        else:
            words = value if isinstance(value, list) else [value]
            strange = [word for word in words if isinstance(word, list | Mapping | set)]
            if strange:
                raise ValueError(f"{place}: found {_shown(strange[0])} in a list, accepted are values")
            texts = [None if word is None else str(word) for word in words]
            given[name] = _Given(_converted(kinds[key], texts, place), path)
    return given


# ---- the command line


def _from_words(words: Sequence[str], target: Any, program: str) -> dict[str, _Given]:
    """`--option VALUE ...` and `--option=VALUE` by dotted name, `--option` for a truth; of those that stand twice, the
    last."""
    kinds = _kinds(target, "")
    given: dict[str, _Given] = {}
    place = 0
    while place < len(words):
        flag, equals, value = words[place].partition("=")
        place += 1
        if not flag.startswith("--"):
            raise ValueError(f"{program}: found {flag!r} behind no option, accepted are --OPTION VALUE")
        values = [value] if equals else []
        while not equals and place < len(words) and not words[place].startswith("--"):
            values.append(words[place])
            place += 1
        name = flag[2:].replace("-", "_")
        if name not in kinds:
            hint = _hint(name, kinds, lambda close: f"--{close.replace('_', '-')}", f"those of {program} --help")
            raise ValueError(f"{program}: found the unknown option {flag}, {hint}")
        if not values and kinds[name] is bool:
            values = ["True"]
        texts = [None if text == "None" else text for text in values]
        given[name] = _Given(_converted(kinds[name], texts, flag))
    return given


def _kinds(target: Any, prefix: str) -> dict[str, Any]:
    """Dotted name -> type, of every option that is no section."""
    defaults = _defaults(target)
    kinds: dict[str, Any] = {}
    for field in fields(target):
        inner = defaults[field.name]
        if is_dataclass(inner):
            kinds |= _kinds(inner, f"{prefix}{field.name}.")
        else:
            kinds[f"{prefix}{field.name}"] = field.type
    return kinds


_WHOLE = "accepted in eval and generate alone: PPO's ratios are those of the whole distribution"
# What people look for and will not find.
_REFUSED = {
    "repetition_penalty": "accepted is none: a sample is of the model's own distribution",
    **dict.fromkeys(("top_k", "top_p", "min_p", "stop"), _WHOLE),
}


def _hint(name: str, known: Any, form: Any = repr, others: str = "") -> str:
    asked = name.rpartition(".")[2]
    same = [other for other in known if other.rpartition(".")[2] == asked]
    if asked in _REFUSED and not same:
        return _REFUSED[asked]
    close = same[:1] or difflib.get_close_matches(name, known, n=1)
    return f"did you mean {form(close[0])}?" if close else f"accepted are {others or ', '.join(known)}"


# ---- values


def _converted(kind: Any, words: Sequence[str | None], place: str) -> Any:
    """words: of the value; None stands for null. Raises ValueError where they are none of that type."""
    choices = get_args(kind) if get_origin(kind) not in (tuple, Literal) else ()
    if NoneType in choices:
        if list(words) == [None]:
            return None
        (kind,) = (choice for choice in choices if choice is not NoneType)
    texts = [word for word in words if word is not None]
    try:
        if len(texts) < len(words):
            raise ValueError("null")
        if get_origin(kind) is tuple:
            return tuple(map(_VALUES.get(get_args(kind)[0], _text), texts))
        (text,) = texts
        return _VALUES[kind](text) if kind in _VALUES else _choice(text, get_args(kind))
    except ValueError:
        found = ", ".join("null" if word is None else _shown(word) for word in words) or "no value"
        raise ValueError(f"{place}: found {found}, accepted is {_accepted(kind)}") from None


def _accepted(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return "one whole number or more" if get_args(kind)[0] is int else "one text or more"
    return _ACCEPTED.get(kind) or " or ".join(map(str, get_args(kind))) or "null: this run does without it"


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[_choice(text.lower(), ("true", "false"))]


def _text(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError
    return text


def _choice(text: str, accepted: Sequence[str]) -> str:
    if text not in accepted:
        raise ValueError
    return text


_VALUES: Mapping[Any, Any] = {int: int, float: _finite, bool: _truth, str: _text}
_ACCEPTED: Mapping[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "a text of at least one character, without NUL",
}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


# ---- the config


def _built(target: Any, given: Mapping[str, _Given], prefix: str) -> Any:
    """The config with what was given, its sections first."""
    values: dict[str, Any] = {}
    for name, inner in _defaults(target).items():
        if is_dataclass(inner):
            values[name] = _built(inner, given, f"{prefix}{name}.")
        elif prefix + name in given:
            values[name] = given[prefix + name].value
    missing = [name for name, inner in _defaults(target).items() if inner is MISSING and name not in values]
    if missing:
        options = ", ".join(f"--{(prefix + name).replace('_', '-')}" for name in missing)
        raise ValueError(f"{options}: missing, required")
    try:
        return target(**values) if isinstance(target, type) else replace(target, **values)
    except ValueError as error:
        named = given.get(prefix + str(error).partition(":")[0])
        file = f"{named.file}: " if named is not None and named.file else ""
        raise ValueError(f"{file}{prefix}{error}") from error


def _defaults(target: Any) -> dict[str, Any]:
    if isinstance(target, type):
        return {field.name: field.default for field in fields(target)}
    return {field.name: getattr(target, field.name) for field in fields(target)}
