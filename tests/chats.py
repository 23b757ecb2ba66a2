"""Chat templates in the manner of those in use, and small tokenizers of the kinds that have them."""

import json
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from instructrl.types import Conversation, Message

TEXTS = [
    "Name three colours of the sky, and say why.",
    "The sky is blue; at dusk it is red > grey < black.",
    "system user assistant tool model\n\n  two  spaces\n",
]

CHATML = """\
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- set said = messages[0].content | trim if messages[0].role == 'system' else '' %}
{%- set rest = messages[1:] if messages[0].role == 'system' else messages %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + date_string + '\\n\\n' + said + '<|eot_id|>' }}
{%- for m in rest %}
    {%- if m.tool_calls %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' + (m.tool_calls[0] | tojson) + '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) + '<|end_header_id|>\\n\\n' }}
        {{- m.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

GEMMA = """\
{{ bos_token }}
{%- set first = messages[0].content.strip() + '\\n\\n' if messages[0].role == 'system' else '' -%}
{%- for m in (messages[1:] if messages[0].role == 'system' else messages) -%}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Roles must alternate user/assistant/user/...") }}
    {%- endif -%}
    {{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
    {{- (first if loop.first else '') + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

MISTRAL = """\
{{- bos_token }}
{%- set first = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}
{%- for m in (messages[1:] if messages[0].role == 'system' else messages) %}
    {%- if m.role == 'user' %}{{ '[INST] ' + (first if loop.first else '') + m.content + ' [/INST]' }}
    {%- elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}
    {%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}
{%- endfor %}"""

QWEN3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' + (messages[0].content + '\\n\\n' if messages[0].role == 'system' else '') }}
    {{- '<tools>' }}
    {%- for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}{{ '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- set said = m.content.split('</think>')[-1].lstrip('\\n') %}
        {%- set thought = m.content.split('</think>')[0].split('<think>')[-1] if '</think>' in m.content else '' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and loop.last %}
            {{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + said }}
        {%- else %}{{ said }}{% endif %}
        {%- for call in m.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}{{ '<|im_end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- elif m.role == 'user' or not loop.first %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

PLAIN = """\
{%- for m in messages %}{{ m.role | capitalize + ': ' + m.content + '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""


@dataclass(frozen=True)
class Style:
    """A template with the tokens that its tokenizer has: special ones by roles, others that control, and words."""

    template: str
    special: dict[str, str]
    control: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    rstrip: bool = False


STYLES = {
    "chatml": Style(CHATML, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, ("<|im_start|>",)),
    "llama3": Style(
        LLAMA3,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|reserved_special_token_0|>"),
    ),
    "gemma": Style(
        GEMMA,
        {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"},
        ("<start_of_turn>", "<end_of_turn>", "<h1>"),
        ("\n\n", "  "),
    ),
    "mistral": Style(
        MISTRAL,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        ("[INST]", "[/INST]", "[TOOL_CALLS]"),
    ),
    "qwen3": Style(
        QWEN3,
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        ("<|im_start|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    ),
    "plain": Style(PLAIN, {"eos_token": "</s>"}),
}


def _byte_level() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(show_progress=False, vocab_size=330, initial_alphabet=alphabet)
    )
    return backend


def _metaspace(scheme: str) -> Tokenizer:
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(show_progress=False, vocab_size=400, special_tokens=special))
    content = json.loads(backend.to_str())
    content["added_tokens"] = content["added_tokens"][:3]  # bytes are tokens of the vocabulary
    return Tokenizer.from_str(json.dumps(content))


def _normalised() -> Tokenizer:
    """Gemma's: white space is replaced before the text is looked at."""
    backend = _metaspace("never")
    backend.normalizer = normalizers.Replace(" ", "▁")
    return backend


BACKENDS = {
    "byte level": _byte_level,
    "metaspace, first": lambda: _metaspace("first"),
    "metaspace, always": lambda: _metaspace("always"),
    "replaced spaces": _normalised,
}


def tokenizer_of(style: str, backend: str) -> PreTrainedTokenizerBase:
    """With the template; of its control tokens every second is not special, as `<think>` is not."""
    found = STYLES[style]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=BACKENDS[backend](), clean_up_tokenization_spaces=False, **found.special
    )
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in found.control[1::2]])
    tokenizer.add_tokens([AddedToken(name, special=True) for name in found.control[::2]], special_tokens=True)
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in found.plain])
    tokenizer.chat_template = found.template
    return tokenizer


def conversation(*turns: str) -> Conversation:
    """Of turns "s:...", "u:...", "a:..."."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return Conversation([Message(roles[turn[0]], turn[2:]) for turn in turns])
