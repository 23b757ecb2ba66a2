"""From raw files to the splits that training reads, in the paper's order (3.2, A.2, C).

long common prefixes -> cap per user -> split by user -> prompts that are also in valid or test -> personal data in the
training split -> lengths. All three sets take the same way with the same seed, so that a user lands in the same split
everywhere. All records are held in memory at once.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from instructrl import durable
from instructrl.data import hygiene, tables
from instructrl.data.chat import template_of
from instructrl.data.encoding import Encoder
from instructrl.data.hygiene import Kept
from instructrl.data.personal_data import check_regions
from instructrl.data.readers import (
    DataError,
    Records,
    at_row,
    check_no_comparisons,
    read_comparisons,
    read_demonstrations,
    read_prompts,
    write_jsonl,
)
from instructrl.data.settings import Limits, PrepareConfig
from instructrl.data.tokenizers import load_tokenizer

SPLITS = ("train", "valid", "test")
GROUPS: dict[str, hygiene.Group] = {"user": hygiene.user_of, "source": hygiene.source_of}
FILES = {"SFT": "demonstrations", "RM": "comparisons", "PPO": "prompts"}
READERS: dict[str, Callable[[str], Records[Any]]] = {
    "SFT": read_demonstrations,
    "RM": read_comparisons,
    "PPO": read_prompts,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareReport:
    """What came out. sizes, lengths (prompts), completions (their lengths), hygiene: rows as in tables.py.

    files: paths written, by set and split. personal_data: training records removed, by set and kind of data.
    """

    sizes: list[dict[str, Any]]
    lengths: list[dict[str, Any]]
    completions: list[dict[str, Any]]
    hygiene: list[dict[str, Any]]
    personal_data: dict[str, dict[str, int]]
    files: dict[str, str]

    def markdown(self) -> str:
        """The report as a page."""
        return "\n".join(
            [
                "# Prepared data\n",
                "## Prompts by split and source\n",
                tables.sizes_markdown(self.sizes),
                "## Prompts, lengths in tokens\n",
                tables.lengths_markdown(self.lengths),
                "## Completions, lengths in tokens\n",
                tables.lengths_markdown(self.completions),
                "## Cleaning, in records\n",
                tables.hygiene_markdown(self.hygiene),
            ]
        )


@dataclass(slots=True)
class _Cleaning:
    """The rows of the report, while the steps run."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    personal_data: dict[str, dict[str, int]] = field(default_factory=dict)

    def take(self, step: str, kept: Kept[Any]) -> list[Any]:
        self.rows.append({"step": step, "removed": kept.removed, "left": len(kept.records)})
        return kept.records


def prepare(config: PrepareConfig) -> PrepareReport:
    """Clean and split, and write `<out>/{demonstrations,comparisons,prompts}.{train,valid,test}.jsonl`, `report.json`
    and `report.md`. An empty split gives an empty file. Raises DataError for rows that cannot be read, and where
    nothing is left to train on."""
    check_regions(config.phone_regions)
    out = Path(config.out)
    solid = next((path for path in (out, *out.parents) if path.exists()), out)
    if solid.exists() and not solid.is_dir():
        raise ValueError(f"out: found the file {solid}, accepted is a folder")
    sources = {"SFT": config.demonstrations, "RM": config.comparisons, "PPO": config.prompts}
    _check_left_over(out, [FILES[name] for name, paths in sources.items() if not paths])
    for source in config.prompts:
        check_no_comparisons(source)
    tokenizer = load_tokenizer(config.tokenizer)
    chat = template_of(tokenizer, config.chat_template, config.chat_date)
    encoder = Encoder(tokenizer, Limits(), chat)
    cleaning = _Cleaning()
    splits = {
        name: _cleaned_and_split(name, [row for path in paths for row in _read(name, path, encoder)], config, cleaning)
        for name, paths in sources.items()
        if paths
    }
    _filter_training(splits, config, cleaning)
    _limit(splits, encoder, config, cleaning)
    for name, by_split in splits.items():
        if not by_split["train"]:
            raise DataError(f"{FILES[name]}: found no record left for training, accepted is at least one")
    return _written(splits, tokenizer, config, cleaning)


def _read(name: str, path: str, encoder: Encoder) -> list[Any]:
    """All records of a source. Raises DataError for one that the chat template does not take."""
    records = READERS[name](path)
    found = list(records)
    for place, record in enumerate(found):
        with at_row(records, place):
            encoder.check(hygiene.prompt_text(record), hygiene.completion_texts(record))
    return found


def _check_left_over(out: Path, others: Sequence[str]) -> None:
    """Raise ValueError where files of sets that are not prepared now lie in the folder: split otherwise, their training
    rows may be this one's test rows."""
    for path in (out / f"{name}.{split}.jsonl" for name in others for split in SPLITS):
        if path.exists():
            raise ValueError(
                f"out: found {path} of another preparation, which this one does not replace; accepted is another "
                "folder, or all sets prepared at once: only then is no training prompt in another split"
            )


Splits = dict[str, dict[str, list[Any]]]


def _cleaned_and_split(
    name: str, records: list[Any], config: PrepareConfig, cleaning: _Cleaning
) -> dict[str, list[Any]]:
    group = GROUPS[config.group_by]
    cleaning.rows.append({"step": f"{name}: read", "removed": 0, "left": len(records)})
    unique = hygiene.drop_common_prefixes(records, min_prefix_chars=config.min_prefix_chars)
    records = cleaning.take(f"{name}: long common prefix", unique)
    capped = hygiene.cap_per_user(records, limit=config.cap_per_user, group=group)
    records = cleaning.take(f"{name}: at most {config.cap_per_user} prompts a {config.group_by}", capped)
    return hygiene.split_by_user(records, fractions=config.fractions, seed=config.seed, group=group)


def _filter_training(splits: Splits, config: PrepareConfig, cleaning: _Cleaning) -> None:
    held_out = [record for by_split in splits.values() for split in SPLITS[1:] for record in by_split[split]]
    for name, by_split in splits.items():
        disjoint = hygiene.drop_overlap(by_split["train"], held_out, min_prefix_chars=config.min_prefix_chars)
        by_split["train"] = cleaning.take(f"{name} train: prompt also in valid or test", disjoint)
        if config.personal_data:
            clean = hygiene.remove_personal_data(by_split["train"], phone_regions=config.phone_regions)
            by_split["train"] = cleaning.take(f"{name} train: personal data", clean)
            cleaning.personal_data[name] = dict(clean.reasons)


def _limit(splits: Splits, encoder: Encoder, config: PrepareConfig, cleaning: _Cleaning) -> None:
    fit = partial(
        hygiene.limit_lengths,
        tokenizer=encoder.tokenizer,
        chat=encoder.chat,
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
    )
    for name, by_split in splits.items():
        for split in SPLITS:
            by_split[split] = cleaning.take(f"{name} {split}: length", fit(by_split[split]))


def _written(
    splits: Splits, tokenizer: PreTrainedTokenizerBase, config: PrepareConfig, cleaning: _Cleaning
) -> PrepareReport:
    out = Path(config.out)
    durable.make_folder(out)
    files = {}
    for name, by_split in splits.items():
        for split, records in by_split.items():
            path = out / f"{FILES[name]}.{split}.jsonl"
            write_jsonl(path, records)
            if not records:
                warnings.warn(
                    f"{path}: no rows; the fractions are met on average, and there are too few of {config.group_by} "
                    "for them: raise the fraction of this split",
                    stacklevel=2,
                )
            files[f"{name} {split}"] = str(path)
    report = PrepareReport(
        sizes=tables.size_rows(splits),
        lengths=tables.prompt_length_rows(splits, tokenizer),
        completions=tables.completion_length_rows(splits, tokenizer),
        hygiene=cleaning.rows,
        personal_data=cleaning.personal_data,
        files=files,
    )
    written = json.dumps({**asdict(report), "config": asdict(config)}, indent=2, ensure_ascii=False)
    for name, text in (("report.json", written + "\n"), ("report.md", report.markdown())):
        durable.write_text(out / name, text)
    return report
