"""All steps on your own files: what `instructrl data prepare` wrote, plain text, and a pretrained model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from instructrl.data import tables
from instructrl.data.encoding import Encoder, pack_documents
from instructrl.data.readers import check_no_comparisons, read_corpus
from instructrl.models.backbone import check_context, set_residual_dropout
from instructrl.models.policy import Policy
from instructrl.models.roles import load_policy
from instructrl.models.scoring import check_scalar_head
from instructrl.runs.experiment import Material, run_experiment
from instructrl.runs.reading import Reader, check_preferences
from instructrl.runs.settings import FilesConfig, check_paths
from instructrl.runs.standalone import load_encoder, load_other_policy
from instructrl.runs.steps import Workspace
from instructrl.trainers.log import RunLog

# What of the plain text is held out to measure the alignment tax: every so many-th block.
_HELD_OUT_EVERY = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesInput:
    """What a run on files works with, read and found good. notes: of rows that are not used."""

    config: FilesConfig
    encoder: Encoder
    material: Material
    gpt: Policy
    reward_base: Policy | None
    notes: tuple[str, ...]


def read_files(config: FilesConfig) -> FilesInput:
    """Read the models and every row. Raises ValueError for input that cannot be used; writes nothing."""
    check_paths(config)
    assert config.data is not None
    assert config.corpus is not None
    assert config.model is not None
    recipe = config.recipe
    encoder = load_encoder(config.model, recipe.limits, config)
    reader = Reader(encoder, config.long_prompts)
    material = _material(config, Path(config.data), config.corpus, reader)
    gpt = load_policy(config.model, encoder.tokenizer, recipe.adapter, in_parts=recipe.in_parts)
    check_context(gpt.lm, recipe.limits.total)
    check_context(gpt.lm, recipe.block_tokens, "recipe.block_tokens")
    for probability in (recipe.sft.residual_dropout, recipe.ppo_start.residual_dropout, 0.0):
        set_residual_dropout(gpt.lm, probability)  # the trainers do it too: here it can refuse in time
    reward_base = None
    if config.reward_base is not None:
        reward_base = load_other_policy(config.reward_base, encoder, recipe.adapter, in_parts=recipe.in_parts)
    check_scalar_head(reward_base or gpt)
    return FilesInput(
        config=config,
        encoder=encoder,
        material=material,
        gpt=gpt,
        reward_base=reward_base,
        notes=tuple(reader.notes),
    )


def run_files(given: FilesInput, folder: Path, log: RunLog) -> dict[str, Any]:
    """All steps. Writes models and `results.json` into `folder`; returns the results."""
    config = given.config
    for note in given.notes:
        log.warn(note)
    work = Workspace.of_run(config, given.encoder, folder, log, _sources(config))
    run = {"name": "files", "seed": config.seed, "description": f"all steps on {config.data}"}
    return run_experiment(work, given.material, given.gpt, run, given.reward_base)


def _sources(config: FilesConfig) -> dict[str, str | None]:
    files = {
        "demonstrations": "demonstrations.train.jsonl",
        "validation": "demonstrations.valid.jsonl",
        "comparisons": "comparisons.train.jsonl",
        "comparisons of judge": "comparisons.valid.jsonl",
        "prompts": "prompts.train.jsonl",
    }
    folder = Path(config.data or "")
    return {"model": config.model, "plain text": config.corpus, **{what: str(folder / f) for what, f in files.items()}}


def _material(config: FilesConfig, data: Path, corpus: str, reader: Reader) -> Material:
    demonstrations = {
        split: reader.demonstrations(data / f"demonstrations.{split}.jsonl") for split in ("train", "valid")
    }
    comparisons = {split: reader.comparisons(data / f"comparisons.{split}.jsonl") for split in ("train", "valid")}
    check_no_comparisons(data / "prompts.train.jsonl")
    prompts = {split: reader.prompts(data / f"prompts.{split}.jsonl") for split in ("train", "test")}
    splits = {"SFT": demonstrations, "RM": comparisons, "PPO": prompts}
    for split, records in comparisons.items():
        check_preferences(str(data / f"comparisons.{split}.jsonl"), records)
    tokenizer, length = reader.encoder.tokenizer, config.recipe.block_tokens
    blocks = pack_documents(read_corpus(corpus), tokenizer, length)
    held_out = torch.zeros(len(blocks), dtype=torch.bool)
    held_out[:: min(_HELD_OUT_EVERY, len(blocks))] = True
    if bool(held_out.all()):
        raise ValueError(f"{corpus}: found one block of {length} tokens, accepted are two: one is held out")
    return Material(
        demonstrations=demonstrations["train"],
        validation=demonstrations["valid"],
        comparisons=comparisons["train"],
        held_out_comparisons=comparisons["valid"],
        ppo_prompts=[prompt.text for prompt in prompts["train"]],
        test=_first(prompts["test"], config.test_prompts),
        blocks=blocks[~held_out],
        held_out_blocks=blocks[held_out],
        tables={
            "sizes": tables.size_rows(splits),
            "lengths": tables.prompt_length_rows(splits, tokenizer),
            "hygiene": [],
        },
    )


def _first(rows: Sequence, count: int) -> list:
    return [rows[i] for i in range(min(count, len(rows)))]
