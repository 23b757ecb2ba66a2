"""The data of the run on a chat model: public sets as messages, in parts that have no question in common."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from instructrl.data import hygiene, public, tables
from instructrl.data.encoding import Encoder, pack_documents
from instructrl.evaluation.reward_quality import annotators_agreement
from instructrl.rollout.randomness import take_disjoint
from instructrl.runs.chat_settings import ChatRunConfig
from instructrl.runs.steps import seed_for
from instructrl.types import Comparison, Conversation, Demonstration, Message, Prompt

RecordT = TypeVar("RecordT", Prompt, Demonstration, Comparison)

# Of the questions and dialogues: what the reward model, PPO and SFT learn from; what the judge does; what settings are
# chosen by; what is reported.
SHARES: Mapping[str, float] = {"train": 0.45, "judge": 0.3, "validation": 0.1, "test": 0.15}
# Rows of these sets are never shown: they are there to offend.
UNSHOWN = ("hh",)
# The set that is for measuring only.
PANDALM = "pandalm"
_ANY_LENGTH = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMaterial:
    """The data of a run. held_out: name of a set to comparisons that are measured and never trained on. annotators: how
    often those of PandaLM agree among themselves. blocks: [N, L] int64 of plain text. data: for the results."""

    demonstrations: Sequence[Demonstration]
    validation: Sequence[Demonstration]
    comparisons: Sequence[Comparison]
    judge_comparisons: Sequence[Comparison]
    held_out: Mapping[str, Sequence[Comparison]]
    annotators: dict[str, Any] | None
    ppo_prompts: Sequence[str]
    test: Sequence[Prompt]
    blocks: Tensor
    data: dict[str, Any]


def read_material(config: ChatRunConfig, encoder: Encoder) -> ChatMaterial:
    """Every row that the run uses. Raises DataError where a set is not there, ValueError where too little is left."""
    return _Reading(config, encoder).material()


class _Reading:
    def __init__(self, config: ChatRunConfig, encoder: Encoder) -> None:
        self.config, self.encoder, self.folder = config, encoder, Path(config.data)
        self.removed: list[dict[str, Any]] = []

    def material(self) -> ChatMaterial:
        config, held_out_split = self.config, self.config.evaluate
        qa, tasks = self.folder / "finegrained_qa_feedback_k4", self.folder / "self_instruct"
        written = [
            *public.finegrained_qa_demonstrations(qa, max_passage_words=0).records,
            *public.self_instruct_demonstrations(tasks).records,
        ]
        compared = [
            *public.finegrained_qa_comparisons(qa, max_passage_words=0).records,
            *public.hh_conversations(self.folder / "hh_rlhf_harmless_test").records,
        ]
        asked = [replace(row, category="instruction") for row in public.self_instruct_prompts(tasks).records]
        instructions = self._fitting("instructions", asked)
        measured = public.pandalm_majority(self.folder / "pandalm_testset").records
        demonstrations = self._split("demonstrations", written)
        different = hygiene.drop_equal_pairs(self._fitting("comparisons", compared), self.encoder)
        comparisons = self._split("comparisons", different.records, fits=True)
        reserved = [*comparisons["validation"], *comparisons["test"], *instructions, *map(in_messages, measured)]
        reserved += [*demonstrations["validation"], *demonstrations["test"]]
        train = self._training("demonstrations", demonstrations["train"], [*reserved, *comparisons["judge"]])
        rewarded = self._training("comparisons", comparisons["train"], [*reserved, *comparisons["judge"]])
        judged = self._training("judge's comparisons", comparisons["judge"], reserved)
        compared_held_out = comparisons[held_out_split][: config.held_out_comparisons]
        held_out = {name: [row for row in compared_held_out if row.source == name] for name in ("qa-feedback", "hh")}
        test = self._prompts(comparisons[held_out_split])
        if held_out_split == "test":
            test += [row for row in instructions if self._short(row.text)]
            held_out[PANDALM] = self._fitting(PANDALM, measured)[: config.pandalm]
        used = {
            "demonstrations": train[: config.demonstrations],
            "validation": demonstrations["validation"],
            "comparisons": rewarded[: config.comparisons],
            "judge_comparisons": judged[: config.judge_comparisons],
        }
        prompts = self._prompts(rewarded)[: config.ppo_prompts]
        test = self._shuffled(test, "test")[: config.test_prompts]
        for name, rows in {**used, "ppo_prompts": prompts, "test_prompts": test}.items():
            if not rows:
                raise ValueError(f"{name}: found none left of {config.data}, accepted are limits under which some are")
        splits = {
            "SFT": {"train": used["demonstrations"], "valid": used["validation"]},
            "RM": {"train": used["comparisons"], "judge": used["judge_comparisons"], "test": compared_held_out},
            "PPO": {"train": prompts, "test": test},
        }
        return ChatMaterial(
            **used,
            held_out={name: rows for name, rows in held_out.items() if rows},
            annotators=annotators_agreement(public.pandalm_comparisons(self.folder / "pandalm_testset").records),
            ppo_prompts=[row.text for row in prompts],
            test=test,
            blocks=self._blocks(),
            data={"sizes": tables.size_rows(splits), "lengths": self._lengths(splits), "hygiene": self.removed},
        )

    def _split(self, name: str, records: Sequence[RecordT], *, fits: bool = False) -> dict[str, list[RecordT]]:
        rows = records if fits else self._fitting(name, records)
        parts = hygiene.split_by_user(rows, fractions=SHARES, seed=self.config.seed, group=opening)
        return {split: self._shuffled(part, f"{name} {split}") for split, part in parts.items()}

    def _fitting(self, name: str, records: Iterable[RecordT]) -> list[RecordT]:
        """As messages, those within the limits; of a comparison, the responses that are."""
        rows = [in_messages(row) for row in records]
        kept = [row for row in rows if self.encoder.fits(hygiene.prompt_text(row))]
        short = hygiene.limit_lengths(
            kept,
            self.encoder.tokenizer,
            max_prompt_tokens=_ANY_LENGTH,
            max_response_tokens=self.encoder.limits.max_response_tokens,
        )
        self._count(f"{name}: length", len(rows) - len(short.records), len(short.records))
        return short.records

    def _training(self, name: str, records: Sequence[RecordT], reserved: Sequence[hygiene.Record]) -> list[RecordT]:
        """Without prompts that are held out, and without personal data."""
        apart = hygiene.drop_overlap(records, reserved)
        self._count(f"{name}: prompt also held out", apart.removed, len(apart.records))
        clean = hygiene.remove_personal_data(apart.records)
        self._count(f"{name}: personal data", clean.removed, len(clean.records))
        return clean.records

    def _count(self, step: str, removed: int, left: int) -> None:
        self.removed.append({"step": step, "removed": removed, "left": left})

    def _prompts(self, comparisons: Sequence[Comparison]) -> list[Prompt]:
        """What was asked in them, each once and where it is short."""
        rows = {row.prompt: row for row in comparisons if self._short(row.prompt)}.values()
        return [Prompt(text=row.prompt, source=row.source, category=row.category) for row in rows]

    def _short(self, prompt: str) -> bool:
        return len(self.encoder.prompt(prompt)) <= self.config.max_ppo_prompt_tokens

    def _shuffled(self, rows: Sequence[RecordT], what: str) -> list[RecordT]:
        return [rows[i] for i in take_disjoint(len(rows), [len(rows)], seed_for(self.config.seed, what))[0]]

    def _blocks(self) -> Tensor:
        novels = public.novel_documents(self.folder / "english_novels_pre1900").records
        order = take_disjoint(len(novels), [len(novels)], seed_for(self.config.seed, "documents"))[0]
        documents = (novels[i] for i in order[: self.config.blocks])
        return pack_documents(documents, self.encoder.tokenizer, self.config.recipe.block_tokens)[: self.config.blocks]

    def _lengths(self, splits: tables.Splits) -> list[dict[str, Any]]:
        """Of the prompts, with what the template puts around them."""
        return [
            {
                "set": name,
                "split": split,
                **tables.length_row([len(self.encoder.prompt(hygiene.prompt_text(row))) for row in rows]),
            }
            for name, by_split in splits.items()
            for split, rows in by_split.items()
            if rows
        ]


def in_messages(record: RecordT) -> RecordT:
    """The record with its prompt as a message of the user, if it is not messages already."""
    prompt = hygiene.prompt_text(record)
    if isinstance(prompt, Conversation):
        return record
    asked = Conversation([Message("user", prompt)])
    return replace(record, text=asked) if isinstance(record, Prompt) else replace(record, prompt=asked)


def opening(record: hygiene.Record) -> str:
    """What a dialogue begins with: those that begin alike are one group."""
    prompt = hygiene.prompt_text(record)
    return prompt.messages[0].content if isinstance(prompt, Conversation) else prompt
