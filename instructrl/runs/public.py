"""All steps on real public data: human rankings of four answers, human demonstrations, a novel, the GPT-2 tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from instructrl.data import hygiene, tables
from instructrl.data.encoding import Encoder, pack_documents
from instructrl.data.public import (
    finegrained_qa_comparisons,
    finegrained_qa_demonstrations,
    gsm8k_comparisons,
    gsm8k_demonstrations,
    novel_documents,
    squality_documents,
)
from instructrl.data.tokenizers import gpt2_tokenizer, load_tokenizer
from instructrl.models.backbone import check_context
from instructrl.models.policy import Policy
from instructrl.models.scoring import check_scalar_head
from instructrl.rollout.randomness import keyed_seed, take_disjoint
from instructrl.runs import steps
from instructrl.runs.experiment import Material, run_experiment
from instructrl.runs.settings import PUBLIC_DESCRIPTION, PublicConfig
from instructrl.trainers.log import RunLog
from instructrl.types import Comparison, Demonstration, Prompt

RecordT = TypeVar("RecordT", Demonstration, Comparison)

# The key of the split, beside those of the steps, which are their names.
_SPLIT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicInput:
    """What a run on public data works with, read and found good. gpt: None where it is to be made."""

    config: PublicConfig
    encoder: Encoder
    material: Material
    gpt: Policy | None


def read_public(config: PublicConfig) -> PublicInput:
    """Read the data and the model. Raises ValueError for input that cannot be used; writes nothing."""
    data = Path(config.data)
    tokenizer = gpt2_tokenizer(data / "gpt2_bpe") if config.model is None else load_tokenizer(config.model)
    encoder = Encoder(tokenizer, config.recipe.limits)
    gpt = None if config.model is None else Policy.load(config.model, tokenizer, in_parts=config.recipe.in_parts)
    if gpt is not None:
        check_context(gpt.lm, max(config.recipe.limits.total, config.recipe.block_tokens))
        check_scalar_head(gpt)
    return PublicInput(config=config, encoder=encoder, material=_material(config, data, encoder), gpt=gpt)


def run_public(given: PublicInput, folder: Path, log: RunLog) -> dict[str, Any]:
    """All steps. Writes models and `results.json` into `folder`; returns the results."""
    config, gpt = given.config, given.gpt
    work = steps.Workspace.of_run(config, given.encoder, folder, log)
    if gpt is None:
        gpt = steps.new_policy(work, config.shape)
        check_context(gpt.lm, max(config.recipe.limits.total, config.recipe.block_tokens))
        gpt = steps.pretrain(work, gpt, given.material.blocks)
    run = {"name": "public", "seed": config.seed, "description": PUBLIC_DESCRIPTION}
    return run_experiment(work, given.material, gpt, run)


def _material(config: PublicConfig, data: Path, encoder: Encoder) -> Material:
    qa, mathematics = data / "finegrained_qa_feedback_k4", data / "gsm8k"
    converted = [
        gsm8k_demonstrations(mathematics),
        finegrained_qa_demonstrations(qa, max_passage_words=config.max_passage_words),
    ]
    ranked = [
        finegrained_qa_comparisons(qa, max_passage_words=config.max_passage_words),
        gsm8k_comparisons(mathematics),
    ]
    removed: list[dict[str, Any]] = []
    demonstrations = _splits([row for part in converted for row in part.records], "SFT", config, encoder, removed)
    different = hygiene.drop_equal_pairs((row for part in ranked for row in part.records), encoder)
    removed.append({"step": "RM: equal responses", "removed": different.removed, "left": len(different.records)})
    comparisons = _splits(different.records, "RM", config, encoder, removed)
    prompts = _prompts(comparisons, config)
    documents = [
        *novel_documents(data / "english_novels_pre1900").records,
        *squality_documents(data / "squality").records,
    ]
    order = take_disjoint(len(documents), [len(documents)], steps.seed_for(config.seed, "documents"))[0]
    blocks = pack_documents((documents[i] for i in order), encoder.tokenizer, config.recipe.block_tokens)
    num_held_out = min(100, len(blocks) // 10)
    splits = {"SFT": demonstrations, "RM": comparisons, "PPO": prompts}
    return Material(
        demonstrations=demonstrations["train"][: config.demonstrations],
        validation=demonstrations["valid"][: config.test_prompts],
        comparisons=comparisons["train"],
        held_out_comparisons=comparisons["valid"],
        ppo_prompts=[prompt.text for prompt in prompts["train"]],
        test=prompts["test"],
        blocks=blocks[num_held_out:][: config.blocks],
        held_out_blocks=blocks[:num_held_out],
        tables={
            "sizes": tables.size_rows(splits),
            "lengths": tables.prompt_length_rows(splits, encoder.tokenizer),
            "hygiene": removed,
        },
    )


def _splits(
    records: list[RecordT], name: str, config: PublicConfig, encoder: Encoder, removed: list[dict[str, Any]]
) -> dict[str, list[RecordT]]:
    """Hygiene, then a split in which a question is in one part only, in random order.

    These sets name no users, so that every prompt is its own group.
    """
    limits = config.recipe.limits
    kept = hygiene.limit_lengths(
        records,
        encoder.tokenizer,
        max_prompt_tokens=limits.max_prompt_tokens,
        max_response_tokens=limits.max_response_tokens,
    )
    removed.append({"step": f"{name}: length", "removed": kept.removed, "left": len(kept.records)})
    parts = hygiene.split_by_user(
        kept.records, fractions={"train": 0.6, "valid": 0.3, "test": 0.1}, seed=keyed_seed(config.seed, _SPLIT)
    )
    clean = hygiene.remove_personal_data(parts["train"])
    removed.append({"step": f"{name}: personal data", "removed": clean.removed, "left": len(clean.records)})
    parts["train"] = clean.records
    return {split: _shuffled(rows, steps.seed_for(config.seed, f"{name} {split}")) for split, rows in parts.items()}


def _prompts(comparisons: dict[str, list[Comparison]], config: PublicConfig) -> dict[str, list[Prompt]]:
    """PPO takes the questions of the training comparisons; the test questions are in no other set."""
    wanted = {"train": config.ppo_prompts, "test": config.test_prompts}
    return {
        split: [
            Prompt(text=row.prompt, source=row.source, category=row.category) for row in comparisons[split][:number]
        ]
        for split, number in wanted.items()
    }


def _shuffled(rows: Sequence[RecordT], seed: int) -> list[RecordT]:
    return [rows[i] for i in take_disjoint(len(rows), [len(rows)], seed)[0]]
