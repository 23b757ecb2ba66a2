"""Tasks of lm-eval with their data, written into a folder, one for each kind of request; and policies for them."""

import json
import random
from pathlib import Path

import torch
from chats import tokenizer_of
from models.architectures import make_lm

from instructrl.data.chat import template_of
from instructrl.data.encoding import Encoder
from instructrl.data.settings import Limits
from instructrl.models.policy import Policy

_WORDS = ("the", "sky", "is", "blue", "at", "dusk", "red", "grey", "black", "name", "three", "colours", "and", "why")


def _text(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(rng.randint(low, high)))


def rows(count: int = 5, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    return [
        {
            "question": _text(rng, 1, 9),
            "options": [_text(rng, 1, 4) for _ in range(3)],
            "right": rng.randrange(3),
            "text": _text(rng, 3, 90),
        }
        for _ in range(count)
    ]


TASKS = {
    "local_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}\\nAnswer:"
doc_to_choice: "{{options}}"
doc_to_target: "{{right}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "local_few": """
output_type: multiple_choice
description: "Say what is right.\\n"
num_fewshot: 2
fewshot_split: test
doc_to_text: "{{question}}\\nAnswer:"
doc_to_choice: "{{options}}"
doc_to_target: "{{right}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "local_next": """
output_type: loglikelihood
doc_to_text: "{{question}} "
doc_to_target: "{{options[0]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "local_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
""",
    "local_write": """
output_type: generate_until
doc_to_text: "{{question}}\\n"
doc_to_target: "{{options[0]}}"
generation_kwargs: {until: ["w", "y", "\\n\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "local_begun": """
output_type: generate_until
gen_prefix: "Well, the"
doc_to_text: "{{question}}"
doc_to_target: "{{options[0]}}"
generation_kwargs: {until: ["\\n"], max_new_tokens: 9}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


def write(folder: Path, tasks: dict[str, str] | None = None) -> Path:
    """The folder with a file of each task, and the data of all."""
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    source = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {folder / "cache"}}}
test_split: test
"""
    for name, text in (TASKS if tasks is None else tasks).items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{source}{text}", encoding="utf-8")
    return folder


def make(family: str, style: str, backend: str, chat: str = "none") -> tuple[Policy, Encoder]:
    tokenizer = tokenizer_of(style, backend)
    lm = make_lm(family, vocab_size=len(tokenizer))
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(1)
        lm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for head in {
            id(part.weight): part for part in (lm.get_input_embeddings(), lm.get_output_embeddings())
        }.values():
            head.weight.normal_(0, 0.5)
    lm.generation_config.eos_token_id, lm.generation_config.pad_token_id = tokenizer.eos_token_id, 0
    return Policy(lm, len(tokenizer)).eval(), Encoder(tokenizer, Limits(), template_of(tokenizer, chat))
