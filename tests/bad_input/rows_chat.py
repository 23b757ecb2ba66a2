"""Chat templates, and messages that they do not take."""

import json
from collections.abc import Callable
from pathlib import Path

from table import Row, both, rows, text

_SAYS = "{% for m in messages %}{{ m.role }} {{ m.content }} {{ eos_token }} {% endfor %}"
_NO_W3 = "{% if 'w3' in messages | map(attribute='content') %}{{ raise_exception('w3 is\ntoo much') }}{% endif %}"
_RAISES = "chat template: found messages for which it raises w3 is too much, accepted are those that it takes"
_GOOD = {"messages": [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]}
_CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "w1", "arguments": {}}}]}
_CALLED = [{"role": "user", "content": "w1"}, _CALL, {"role": "tool", "content": "w2"}]
_ASKED_W3 = {"prompt": [{"role": "user", "content": "w3"}]}


def _says(content: str, answer: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def _own(template: str, *folders: str) -> Callable[[], object]:
    """The template of a model."""
    return lambda: [Path(folder, "chat_template.jinja").write_text(template, encoding="utf-8") for folder in folders]


_FILE = text("chat.jinja", _NO_W3 + _SAYS)
_WITH_FILE = "--chat-template chat.jinja --data rows.jsonl"

ROWS = [
    Row(
        what="missing template",
        step="sft",
        options="--chat-template nowhere.jinja",
        message="chat_template: found no such file nowhere.jinja, accepted are auto, none, or a file",
    ),
    Row(
        what="template that is no text",
        step="sft",
        options="--chat-template chat.jinja",
        make=text("chat.jinja", b"\xff"),
        message="chat_template: found no text in chat.jinja, accepted is a file in UTF-8",
    ),
    Row(
        what="template that is no Jinja",
        step="rm",
        options="--chat-template chat.jinja",
        make=text("chat.jinja", "{% for %}"),
        message="chat template: line 1: found TemplateSyntaxError: …, accepted is a Jinja template",
    ),
    Row(
        what="template with a variable that nobody gives",
        step="sft",
        make=_own(_SAYS + "{{ mood }}{{ places[0].name }}", "model"),
        message=(
            "chat template: found the variables mood, places, which it is not given; accepted are messages, tools, "
            "documents, add_generation_prompt, strftime_now and the special tokens"
        ),
    ),
    Row(
        what="template with such a variable in `run files`",
        step="files",
        make=_own(_SAYS + "{{ mood }}", "model"),
        message=(
            "chat template: found the variable mood, which it is not given; accepted are messages, tools, documents, "
            "add_generation_prompt, strftime_now and the special tokens"
        ),
    ),
    Row(
        what="template that fails on every message",
        step="eval",
        options="--chat-template chat.jinja",
        make=text("chat.jinja", "{{ messages[7].content }}"),
        message="chat template: found messages for which it raises UndefinedError: …, accepted are those that it takes",
    ),
    Row(
        what="template for contents that are lists",
        step="ppo",
        options="--chat-template chat.jinja",
        make=text(
            "chat.jinja", "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
        ),
        message=(
            "chat template: found one that leaves out what a user says, accepted is one for contents that are texts"
        ),
    ),
    Row(
        what="thoughts beside a message",
        step="sft",
        options="--data rows.jsonl",
        make=rows({"messages": [*_GOOD["messages"][:1], {**_GOOD["messages"][1], "reasoning_content": "w3"}]}),
        message=(
            "rows.jsonl:1: messages[1].reasoning_content: found str 'w3', accepted are messages with text and "
            "tool_calls"
        ),
    ),
    Row(
        what="several templates, none of them the default",
        step="sft",
        make=lambda: _named_templates("model"),
        message="chat template: found tool_use, rag and no default in the tokenizer, accepted is one, or a file",
    ),
    Row(
        what="day that is none",
        step="ppo",
        options="--chat-template chat.jinja --chat-date 2025-13-01",
        make=_FILE,
        message="chat_date: found '2025-13-01', accepted is a day such as 2025-01-01",
    ),
    Row(
        what="prompt that the template refuses",
        step="sft",
        options=_WITH_FILE,
        make=both(_FILE, rows(_GOOD, _says("w3", "w1"))),
        message=f"rows.jsonl:2: {_RAISES}",
    ),
    Row(
        what="answer that the template refuses",
        step="sft",
        options=_WITH_FILE,
        make=both(_FILE, rows(_GOOD, _GOOD, _says("w1", "w3"))),
        message=f"rows.jsonl:3: {_RAISES}",
    ),
    Row(
        what="completion that the template refuses",
        step="rm",
        options=f"{_WITH_FILE} --validation none",
        make=both(_FILE, rows({"prompt": [{"role": "user", "content": "w1"}], "chosen": "w3", "rejected": "w1"})),
        message=f"rows.jsonl:1: {_RAISES}",
    ),
    Row(
        what="prompt that the template refuses, answered",
        options="generate --model model --data rows.jsonl --chat-template chat.jinja",
        make=both(_FILE, rows(_ASKED_W3)),
        message=f"rows.jsonl:1: {_RAISES}",
    ),
    Row(
        what="prompt that the template refuses, looked at",
        options="data check prompts rows.jsonl --model model --chat-template chat.jinja",
        make=both(_FILE, rows(_ASKED_W3)),
        message=f"rows.jsonl:1: {_RAISES}",
    ),
    Row(
        what="tool turns without a template",
        step="ppo",
        options="--data rows.jsonl",
        make=rows({"prompt": "w1"}, {"prompt": _CALLED}),
        message=(
            "rows.jsonl:2: messages: found tool turns and no chat template in force, accepted is a tokenizer with one, "
            "or --chat-template FILE"
        ),
    ),
    Row(
        what="tools without a template",
        step="sft",
        options="--data rows.jsonl --chat-template none",
        make=both(_own(_SAYS, "model"), rows({**_GOOD, "tools": [{"name": "w1"}]})),
        message=(
            "rows.jsonl:1: messages: found tools and no chat template in force, accepted is a tokenizer with one, or "
            "--chat-template FILE"
        ),
    ),
    Row(
        what="tool turns to prepare without a template",
        step="prepare",
        options="--prompts rows.jsonl",
        make=rows({"prompt": "w1"}, {"prompt": _CALLED}),
        message=(
            "rows.jsonl:2: messages: found tool turns and no chat template in force, accepted is a tokenizer with one, "
            "or --chat-template FILE"
        ),
    ),
    Row(
        what="judge without the template",
        step="ppo",
        make=_own(_SAYS, "model"),
        message=(
            "reward: found no chat template, accepted is a model with the same one, or --chat-template FILE or none "
            "for all"
        ),
    ),
    Row(
        what="another template in a compared model",
        step="eval",
        make=both(_own(_SAYS, "model", "reward"), _own(_SAYS + "w1", "other")),
        message=(
            "other: found another chat template than the model's, accepted is a model with the same one, or "
            "--chat-template FILE or none for all"
        ),
    ),
    Row(
        what="model to look at plain text with",
        step="corpus",
        options="--model model",
        make=rows({"text": "w1"}),
        message="model: found one for plain text, accepted is one for data with prompts",
    ),
    Row(
        what="template to look at rows with, and no model",
        options="data check prompts prompts.jsonl --chat-template none",
        message="chat_template: found none, which nothing uses without model; accepted is both, or neither",
    ),
    Row(
        what="run on a chat model without one",
        options="run chat",
        message="model: found nothing, this run needs --model, a chat model with its tokenizer and template",
    ),
    Row(
        what="a mix in a run that has none",
        options="run chat --model model --recipe.ppo.ptx-coef 1",
        message="recipe.ppo.ptx_coef: found 1.0, accepted is 0: there is no mix in this run",
    ),
    Row(
        what="a run on a chat model that is none",
        options="run chat --model model --data . --out out --fresh",
        message="model model: found a tokenizer without a chat template, accepted is one with it, or --chat-template "
        "FILE or none",
    ),
    Row(
        what="public data that are not there",
        options="run chat --model model --chat-template none --data splits --out out --fresh "
        "--recipe.limits.max-prompt-tokens 12 --recipe.limits.max-response-tokens 8 --recipe.ppo.max-response-tokens 8 "
        "--recipe.block-tokens 16",
        message="splits/finegrained_qa_feedback_k4/dev_feedback.json: found no such file, accepted is the folder of "
        "the published data set",
    ),
]


def _named_templates(folder: str) -> None:
    path = Path(folder, "tokenizer_config.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    content["chat_template"] = [{"name": name, "template": _SAYS} for name in ("tool_use", "rag")]
    path.write_text(json.dumps(content), encoding="utf-8")
