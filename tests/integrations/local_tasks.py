"""Tasks of lm-eval with their data, written into a folder: one for each kind of request."""

import json
import random
from pathlib import Path

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
