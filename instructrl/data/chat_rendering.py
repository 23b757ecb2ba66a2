"""Jinja templates of chats: from messages to a text. A template is a stranger's program, and is run in a sandbox.

What a template may use is what transformers gives one (its filters, its extensions, `raise_exception`), but for the
time: `strftime_now` tells one fixed date, so that a text is the same on every day.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import date
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# What a template and the data together can raise in the sandbox, beside Jinja's own.
_OF_A_RENDERING = (
    *(jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError),
    *(ArithmeticError, RecursionError, MemoryError),
)
# Beside the special tokens by their names. `documents` is always empty.
_GIVEN = ("messages", "tools", "documents", "add_generation_prompt")


class ChatTemplateError(ValueError):
    """A template that cannot be used, or not for these messages. `str()` is one line."""


class _Generation(Extension):
    """`{% generation %}` stands around what a model says, for those who learn from that: here it changes nothing."""

    tags = frozenset({"generation"})  # pyright: ignore[reportAssignmentType]

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _PlainNamespace(Namespace):
    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.TemplateError(f"the attribute {name!r} of a namespace")
        super().__setitem__(name, value)


def _raise(message: Any) -> None:
    raise jinja2.TemplateError(str(message))


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _dict(*values: Any, **items: Any) -> dict[Any, Any]:
    return dict(*values, **items)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    found = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    found.filters["tojson"] = _to_json
    found.globals.update(raise_exception=_raise, dict=_dict, namespace=_PlainNamespace)
    return found


@lru_cache(maxsize=8)
def compiled(text: str) -> jinja2.Template:
    """A template. Raises ChatTemplateError where it is none."""
    try:
        return _environment().from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"chat template: line {error.lineno}: found {_one_line(error)}, accepted is a Jinja template"
        ) from None


def check_variables(text: str, given: Sequence[str]) -> None:
    """Raise ChatTemplateError where a template cannot do without a variable that it is not given.

    given: names beside those that every template has. A name that the template tests, or has a default for, is one
    that it can do without.
    """
    compiled(text)
    tree = _environment().parse(text)
    known = {*_GIVEN, *given, "strftime_now", *_environment().globals}
    missing = meta.find_undeclared_variables(tree) - known - _tested(tree) - _made(tree)
    if missing:
        several = "s" if len(missing) > 1 else ""
        raise ChatTemplateError(
            f"chat template: found the variable{several} {', '.join(sorted(missing))}, which it is not given; accepted "
            f"are {', '.join(_GIVEN)}, strftime_now and the special tokens"
        )


@lru_cache(maxsize=8)
def looked_for(text: str) -> frozenset[str]:
    """Names, of keys and of values, that a template looks for in what it is given."""
    tree = _environment().parse(text)
    names = [found.attr for found in tree.find_all(nodes.Getattr)]
    names += [found.value for found in tree.find_all(nodes.Const) if isinstance(found.value, str)]
    return frozenset(filter(str.isidentifier, names))


def _tested(tree: nodes.Template) -> set[str]:
    """Names in conditions, and those with a default."""
    conditions: list[nodes.Node] = [found.test for found in tree.find_all((nodes.If, nodes.CondExpr))]
    conditions += [found.node for found in tree.find_all(nodes.Test)]
    conditions += [
        found.node for found in tree.find_all(nodes.Filter) if found.name in ("default", "d") and found.node is not None
    ]
    conditions += [found.left for found in tree.find_all(nodes.Or)]
    names = [name.name for part in conditions for name in part.find_all(nodes.Name)]
    return {*names, *(part.name for part in conditions if isinstance(part, nodes.Name))}


def _made(tree: nodes.Template) -> set[str]:
    """Names that the template gives a value itself, in whichever branch."""
    found = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    return found | {macro.name for macro in tree.find_all(nodes.Macro)}


def render(
    text: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Any,
    special_tokens: Mapping[str, str],
    today: date,
    *,
    add_generation_prompt: bool,
) -> str:
    """The text of messages. Raises ChatTemplateError for what the template raises, and where it fails."""
    try:
        return compiled(text).render(
            messages=list(messages),
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            strftime_now=lambda form: today.strftime(form),
            **special_tokens,
        )
    except _OF_A_RENDERING as error:
        raise ChatTemplateError(
            f"chat template: found messages for which it raises {_one_line(error)}, accepted are those that it takes"
        ) from None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    kind = "" if type(error) is jinja2.TemplateError else f"{type(error).__name__}: "
    return f"{kind}{text[:200]}" or type(error).__name__
