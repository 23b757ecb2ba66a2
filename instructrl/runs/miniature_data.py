"""What the miniature's steps work with: disjoint prompts of each group of users, and what training texts hold of the
test."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from instructrl.data import hygiene, tables
from instructrl.rollout.randomness import keyed_seed, take_disjoint
from instructrl.runs import steps
from instructrl.runs.settings import MiniatureAmounts
from instructrl.types import Demonstration, Document, Prompt
from instructrl.worlds.miniature import MiniatureWorld
from instructrl.worlds.overlap import Quotes, is_unseen, num_known_tasks, task_key, tasks_found

# Where prompts come from; the paper's PPO prompts are customers' alone, its demonstrations mostly labelers'.
SOURCE_SHARES = {"customer": 0.8, "labeler": 0.2}
# Raw prompts drawn for each that is needed: hygiene removes about a third, since many ask the same.
RAW_EXCESS = 2.0

# Prompts with the few-shot prefix still fit.
MAX_RAW_PROMPT_TOKENS = 30
# What counts as a long common prefix: prompts have 133 characters at most, half of them fewer than 50. Of 26,000 raw
# ones of training users 575 go by this length, half of them a task with other constraints; none would by the usual 200.
MIN_PREFIX_CHARS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSets:
    """Disjoint prompts of training users for each step, and those of held-out users."""

    sft: list[Prompt]
    comparisons: list[Prompt]
    ppo: list[Prompt]
    validation: list[Prompt]
    held_out: list[Prompt]
    test: list[Prompt]

    def of_held_out_users(self) -> list[str]:
        """What the corpus must not hold."""
        return [prompt.text for prompt in (*self.validation, *self.held_out, *self.test)]


def collect_prompts(
    world: MiniatureWorld, work: steps.Workspace, amounts: MiniatureAmounts
) -> tuple[PromptSets, dict[str, Any]]:
    """Raw prompts of each group of users through the paper's hygiene, then disjoint sets for the steps.

    The groups of users are disjoint by construction, so splitting by user is already done. Two users may still ask
    the same thing: what test users ask is taken out of the other groups, then what validation users ask out of the
    training group. Nobody is asked what the few-shot prompt gives as an example.
    """
    counts = {
        "test": (amounts.test,),
        "validation": (amounts.validation, amounts.held_out_comparisons),
        "train": (amounts.demonstrations, amounts.comparisons, amounts.ppo_prompts),
    }
    taken: dict[str, list[list[Prompt]]] = {}
    steps_taken: list[dict[str, Any]] = []
    for split, wanted in counts.items():
        held_out = [prompt for subsets in taken.values() for subset in subsets for prompt in subset]
        quotes, examples = Quotes(prompt.text for prompt in held_out), world.few_shot_prompt("")
        raw = [
            prompt
            for source, share in _source_shares(split, world.config.gpt_style).items()
            for prompt in world.raw_prompts(split, round(share * RAW_EXCESS * sum(wanted)), source=source)
            if not quotes.stand_in(prompt.text) and not Quotes([prompt.text]).stand_in(examples)
        ]
        clean = _clean(raw, held_out, work, steps_taken, split=split)
        subsets = take_disjoint(len(clean), wanted, keyed_seed(work.seed_for("prompts"), *split.encode()))
        taken[split] = [[clean[i] for i in subset] for subset in subsets]
    sets = PromptSets(
        sft=taken["train"][0],
        comparisons=taken["train"][1],
        ppo=taken["train"][2],
        validation=taken["validation"][0],
        held_out=taken["validation"][1],
        test=taken["test"][0],
    )
    splits = {
        "SFT": {"train": sets.sft, "valid": sets.validation},
        "RM": {"train": sets.comparisons, "valid": sets.held_out},
        "PPO": {"train": sets.ppo, "test": sets.test},
    }
    return sets, {
        "sizes": tables.size_rows(splits),
        "lengths": tables.prompt_length_rows(splits, work.encoder.tokenizer),
        "hygiene": steps_taken,
    }


def _source_shares(split: str, gpt_style: float) -> dict[str, float]:
    """Of the prompts of a split; those of models of plain text are met by test users alone."""
    if split != "test":
        return SOURCE_SHARES
    return {**{source: share * (1.0 - gpt_style) for source, share in SOURCE_SHARES.items()}, "gpt": gpt_style}


def _clean(
    prompts: list[Prompt], held_out: list[Prompt], work: steps.Workspace, counts: list[dict[str, Any]], *, split: str
) -> list[Prompt]:
    """The paper's order: duplicates, cap, prompts also held out, personal data (training split only), lengths."""
    filters = {
        "duplicates by common prefix": partial(hygiene.drop_common_prefixes, min_prefix_chars=MIN_PREFIX_CHARS),
        "cap per user": hygiene.cap_per_user,
        "prompt also held out": lambda rows: hygiene.drop_overlap(rows, held_out, min_prefix_chars=MIN_PREFIX_CHARS),
        "personal data": hygiene.remove_personal_data,
        "length": lambda rows: hygiene.limit_lengths(
            rows,
            work.encoder.tokenizer,
            max_prompt_tokens=MAX_RAW_PROMPT_TOKENS,
            max_response_tokens=work.recipe.limits.max_response_tokens,
        ),
    }
    if split != "train":
        del filters["personal data"]
    for step, keep in filters.items():
        kept = keep(prompts)
        prompts = kept.records
        row = {"step": f"{split}: {step}", "removed": kept.removed, "left": len(prompts)}
        counts.append({**row, "reasons": dict(kept.reasons)})
    return prompts


def overlap(
    world: MiniatureWorld, documents: Sequence[Document], demonstrations: Sequence[Demonstration], sets: PromptSets
) -> list[dict[str, Any]]:
    """What training texts hold of the test: prompts word for word, and tasks in any of their wordings.

    demonstrations: all that any model is taught, those of mixtures included.
    """
    test = [prompt.text for prompt in sets.test]
    training = [prompt.text for prompt in (*sets.sft, *sets.comparisons, *sets.ppo)]
    read = [*(document.text for document in documents), world.few_shot_prompt(""), *training]
    read += [text for row in demonstrations for text in (row.prompt, row.completion)]
    unseen = [prompt for prompt in test if is_unseen(prompt)]
    counts = {
        "test prompts word for word in a training text": (len(Quotes(test).found_in(read)), len(test)),
        "tasks of test prompts meant to be unseen, in any wording, in a training text": (
            len(tasks_found(unseen, read)),
            len(set(map(task_key, unseen))),
        ),
        "questions of exams, with their answers, in a training text": (
            world.exams.num_leaked(read),
            len(world.exams.item_texts()),
        ),
        "test prompts for the task of a training prompt, in whatever words": (
            num_known_tasks(test, training),
            len(test),
        ),
    }
    return [{"what": what, "count": count, "total": total} for what, (count, total) in counts.items()]
