"""Texts that would run script on a page that does not escape them, and a run whose every text is one of them."""

import re
from html.parser import HTMLParser
from typing import Any

from synthetic_run import make_metrics, make_results

# What the script of every text does: a browser's copy of the page then says so.
MARK = "data-went-off"
_RUN = f"document.documentElement.setAttribute(`{MARK}`,1)"

PAYLOADS = {
    "script": f"<script>{_RUN}</script>",
    "end of a script": f"</script><script>{_RUN}</script>",
    "JSON in a script": f'{{"text": "</script><script>{_RUN}</script>", "x": "\\u003c"}}\'"\\"',
    "image": f"<img src=x: onerror={_RUN}>",
    "drawing": f"<svg onload={_RUN}></svg>",
    "end of a drawing": f"</text></svg></style></title></textarea></details><script>{_RUN}</script>",
    "comment": f"--><!--><script>{_RUN}</script><!--",
    "CDATA": f"]]><script>{_RUN}</script>",
    "double quote": f'"><script>{_RUN}</script>',
    "attribute": f"\" onfocus={_RUN} autofocus tabindex=1 x=\"' onfocus={_RUN} autofocus tabindex=1 x='",
    "link": f"<a href='javascript:{_RUN}'>a</a> [a](javascript:{_RUN}) javascript:{_RUN}",
    "frame": f"<iframe srcdoc='<script>parent.{_RUN}</script>'></iframe><iframe src='javascript:parent.{_RUN}'>",
    "refresh": f"<meta http-equiv=refresh content='0;url=javascript:{_RUN}'><base href=//evil.example/>",
    "form": f"<form action=javascript:{_RUN}><input onfocus={_RUN} autofocus><button formaction=javascript:{_RUN}>",
    "entities": f"&lt;script&gt;{_RUN}&lt;/script&gt;&#60;script&#62;{_RUN}&#60;/script&#62;",
    "template": "{{7*7}}{% for a in b %}{{ cycler.__init__.__globals__ }}{# #}${7*7}<%= 7*7 %>",
    "line separators": f"\u2028<script>{_RUN}</script>\u2029\x85\x0b\x0c",
    "direction": f"\u202e<script>{_RUN}</script>\u202d\u2066\u2069\u200f",
    "NUL": f"<scr\0ipt>{_RUN}</scr\0ipt>\0<script>{_RUN}</script>",
    "half a character": f"\ud800<script>{_RUN}</script>\udfff",
    "style": "</style><style>*{background:url(//evil.example)}</style>} @import '//evil.example';",
    "markdown": "![x](//evil.example) `</code>` <//evil.example>",
}
ALL = "".join(PAYLOADS.values())
LONG = "<script>" * 131_072  # 1 MB

_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "nav", "section", "article", "details"),
    *("h1", "h2", "h3", "h4", "p", "ul", "li", "a", "i", "small", "span", "div", "dl", "dt", "dd", "summary"),
    *("table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption"),
    *("svg", "g", "path", "use", "defs", "clippath", "rect", "text", "tspan"),
}
# Attributes of theirs that are fixed text, numbers or escaped labels. Every other one is unexpected.
_ATTRIBUTES = {
    *("lang", "charset", "name", "content", "http-equiv", "class", "id", "style", "dir", "tabindex", "role", "scope"),
    *("aria-label", "aria-labelledby", "viewbox", "d", "x", "y", "width", "height", "transform", "href", "clip-path"),
    *("clippathunits", "xml:space", "version", "preserveaspectratio", "rx", "ry", "xmlns"),
}
POLICY = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self.texts: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open.append(tag)
        if tag not in _TAGS:
            self.found.append(f"<{tag}>")
        for name, value in attrs:
            if name not in _ATTRIBUTES:
                self.found.append(f"<{tag} {name}>")
            if name in {"href", "clip-path"} and not re.fullmatch(r"#[\w-]+|url\(\"?#[\w-]+\"?\)", value or ""):
                self.found.append(f"<{tag} {name}={value!r}>")
            if name == "style" and re.search(r"url\(|@|expression|<", value or ""):
                self.found.append(f"<{tag} style={value!r}>")
            if name == "http-equiv" and value != "Content-Security-Policy":
                self.found.append(f"<{tag} {name}={value!r}>")

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            if re.search(r"url\(|@import|<", data):
                self.found.append("a style that fetches")
        else:
            self.texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_comment(self, data: str) -> None:
        self.found.append("a comment")

    def unknown_decl(self, data: str) -> None:
        self.found.append("a declaration")

    def handle_pi(self, data: str) -> None:
        self.found.append("an instruction")


def unexpected(html: str) -> list[str]:
    """Elements and attributes of a page that the report does not have by itself; script and handlers are among them."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.found


def shown(html: str) -> str:
    """The text of a page, styles left out."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return "".join(reader.texts)


def with_text(value: Any, text: str) -> Any:
    """A document with every text in it, and every key of free choice, replaced."""
    if isinstance(value, dict):
        free = dict.fromkeys(("PPO", "chat", "hallucination", "torch", "width"), text)
        return {free.get(key, key): with_text(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [with_text(item, text) for item in value]
    return text if isinstance(value, str) else value


def hostile_run(text: str) -> tuple[dict, list[dict], list[dict]]:
    """Results, metrics and profile in which every text is this one."""
    rows = make_metrics()
    metrics = [row | {"phase": text, text: 1.0} for row in rows[:4]]
    metrics += [row | {text: 1.0, f"{text}2": 2.0} for row in rows[-4:]]
    results = with_text(make_results(), text)
    results["run"]["seed"] = text
    return results, metrics, [{"phase": text, "seconds": 1.0, "parts": {text: 0.5}}, {"phase": "ppo", "seconds": text}]


def small_run(text: str) -> tuple[dict, list[dict], list[dict]]:
    """A few places with this text, which may be of a megabyte."""
    sample = {"prompt": text, "category": "a", "responses": {"PPO": {"text": text, "likert": 1.0, "score": 0.0}}}
    return {"run": {"name": text}, "samples": [sample], "config": {"a": text}}, [], []


def samples_of_each() -> list[dict]:
    """A sample for each hostile text, which is its prompt, its category, a model's name and its answer."""
    return [
        {"prompt": text, "category": text, "responses": {text: {"text": text, "likert": 1.0, "score": 0.0}}}
        for text in PAYLOADS.values()
    ]
