"""Counts and lengths of data sets as rows of plain values, and those rows as markdown (paper, tables 6, 9, 11)."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from instructrl.data.hygiene import Record, completion_texts, prompt_text
from instructrl.data.tokenizers import encode_text

SETS = ("SFT", "RM", "PPO")
Splits = Mapping[str, Mapping[str, Sequence[Record]]]
"""Name of the set (one of SETS) to name of the split to records."""


def size_rows(splits: Splits) -> list[dict[str, Any]]:
    """Different prompts by set, split and source (table 6). Rows: set, split, source, num_prompts.

    The source of a record without one is "". An empty split gives a row with 0 prompts.
    """
    rows = []
    for name, by_split in splits.items():
        for split, records in by_split.items():
            counts = Counter(source for source, _ in {(record.source, prompt_text(record)) for record in records})
            for source, num_prompts in sorted(counts.items()) or [("", 0)]:
                rows.append({"set": name, "split": split, "source": source, "num_prompts": num_prompts})
    return rows


def prompt_length_rows(splits: Splits, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Lengths of the prompts in tokens by set and split (table 9, which holds prompts alone: see `length_row`)."""
    return [
        {"set": name, "split": split, **length_row(num_tokens(map(prompt_text, records), tokenizer))}
        for name, by_split in splits.items()
        for split, records in by_split.items()
        if records
    ]


def completion_length_rows(splits: Splits, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Lengths of demonstrations and compared completions in tokens by set and split (as in table 11)."""
    rows = []
    for name, by_split in splits.items():
        for split, records in by_split.items():
            texts = [text for record in records for text in completion_texts(record)]
            if texts:
                rows.append({"set": name, "split": split, **length_row(num_tokens(texts, tokenizer))})
    return rows


def num_tokens(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of each text, without an end-of-text token."""
    return [len(encode_text(tokenizer, text)) for text in texts]


def length_row(lengths: Sequence[int]) -> dict[str, Any]:
    """count, mean, std (n - 1; 0 for one length), min, p25, p50, p75 (linear between neighbours), max of lengths.

    Raises ValueError where there are none.
    """
    if not lengths:
        raise ValueError("lengths: found none, accepted is at least one")
    values = np.asarray(lengths, dtype=np.float64)
    p25, p50, p75 = np.percentile(values, [25, 50, 75]).tolist()
    return {
        "count": len(lengths),
        "mean": values.mean().item(),
        "std": values.std(ddof=1).item() if len(lengths) > 1 else 0.0,
        "min": int(values.min()),
        "p25": p25,
        "p50": p50,
        "p75": p75,
        "max": int(values.max()),
    }


def sizes_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `size_rows` in the shape of table 6: a line a split and source, a column a set, totals."""
    names = list(dict.fromkeys(row["set"] for row in rows))
    counts: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        if row["num_prompts"]:
            counts[row["split"], row["source"] or "(unknown)", row["set"]] += row["num_prompts"]
    lines = []
    for split in dict.fromkeys(row["split"] for row in rows):
        sources = sorted({source for of, source, _ in counts if of == split})
        for source in sources:
            lines.append([split, source, *(counts[split, source, name] or "-" for name in names)])
        totals = [sum(counts[split, source, name] for source in sources) for name in names]
        lines.append([split, "**total**", *(f"**{total:,}**" for total in totals)])
    return _table(["split", "source", *names], lines)


def lengths_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `prompt_length_rows` or `completion_length_rows` in the shape of table 9."""
    columns = ["count", "mean", "std", "min", "p25", "p50", "p75", "max"]
    head = ["set", *(f"{column[1:]}%" if column[0] == "p" else column for column in columns)]
    lines = [[f"{row['set']} {row['split']}", *(round(row[column]) for column in columns)] for row in rows]
    return _table(head, lines)


def hygiene_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of step, removed and left."""
    return _table(["step", "removed", "left"], [[row["step"], row["removed"], row["left"]] for row in rows])


def _table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    numeric = ["---:" if place and column != "source" else "---" for place, column in enumerate(head)]
    rows = [head, numeric, *lines]
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in rows) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    # A source is text from the data: it must neither end the cell or the line nor begin a tag or a link.
    return re.sub(r"([\\|<\[])", r"\\\1", " ".join(str(value).split()))
