"""All steps on your own files: what `instructrl data prepare` wrote, plain text, and a pretrained model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from instructrl.data import tables
from instructrl.data.encoding import Encoder, pack_documents
from instructrl.data.readers import read_comparisons, read_corpus, read_demonstrations, read_prompts
from instructrl.data.tokenizers import load_tokenizer
from instructrl.models.backbone import check_context
from instructrl.models.policy import Policy
from instructrl.runs.experiment import Material, run_experiment
from instructrl.runs.recipe import Recipe
from instructrl.runs.steps import Workspace
from instructrl.trainers.log import RunLog

# Share of the plain text that is held out to measure the alignment tax: every so many-th document.
_HELD_OUT_EVERY = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesConfig:
    """All steps on files."""

    # of everything random
    seed: int = 0
    # folder that `instructrl data prepare` wrote
    data: str | None = None
    # plain text for the pretraining mix: a path or hub:NAME
    corpus: str | None = None
    # the pretrained model: a transformers folder or name
    model: str | None = None
    # what the reward model starts from, with the same tokenizer; None is the last SFT epoch
    reward_base: str | None = None
    # test prompts that the models are compared on
    test_prompts: int = 1_000
    # what each step does
    recipe: Recipe = Recipe()


def run_files(config: FilesConfig, folder: Path, log: RunLog) -> dict[str, Any]:
    """All steps. Writes models and `results.json` into `folder`; returns the results.

    Raises ValueError where a path is missing.
    """
    if config.data is None or config.corpus is None or config.model is None:
        missing = [name for name in ("data", "corpus", "model") if getattr(config, name) is None]
        raise ValueError(f"{', '.join(missing)}: found nothing, this run needs --data, --corpus and --model")
    tokenizer = load_tokenizer(config.model)
    recipe = config.recipe
    work = Workspace(
        folder=folder,
        log=log,
        encoder=Encoder(tokenizer, recipe.limits),
        recipe=recipe,
        seed=config.seed,
        config=asdict(config),
    )
    material = _material(config, Path(config.data), config.corpus, work)
    gpt = Policy.load(config.model)
    check_context(gpt.lm, max(recipe.limits.total, recipe.block_tokens))
    reward_base = None if config.reward_base is None else Policy.load(config.reward_base)
    run = {"name": "files", "seed": config.seed, "description": f"all steps on {config.data}"}
    return run_experiment(work, material, gpt, run, reward_base)


def _material(config: FilesConfig, data: Path, corpus: str, work: Workspace) -> Material:
    demonstrations = {
        split: read_demonstrations(data / f"demonstrations.{split}.jsonl") for split in ("train", "valid")
    }
    comparisons = {split: read_comparisons(data / f"comparisons.{split}.jsonl") for split in ("train", "valid")}
    prompts = {split: read_prompts(data / f"prompts.{split}.jsonl") for split in ("train", "test")}
    splits = {"SFT": demonstrations, "RM": comparisons, "PPO": prompts}
    tokenizer, length = work.encoder.tokenizer, work.recipe.block_tokens
    documents = read_corpus(corpus)
    numbers = range(len(documents))
    held_out = numbers[:: min(_HELD_OUT_EVERY, max(len(numbers) // 2, 1))]
    train = sorted(set(numbers) - set(held_out)) or list(numbers)
    return Material(
        demonstrations=demonstrations["train"],
        validation=demonstrations["valid"],
        comparisons=comparisons["train"],
        held_out_comparisons=comparisons["valid"],
        ppo_prompts=[prompt.text for prompt in prompts["train"]],
        test=_first(prompts["test"], config.test_prompts),
        blocks=pack_documents((documents[i] for i in train), tokenizer, length),
        held_out_blocks=pack_documents((documents[i] for i in held_out), tokenizer, length),
        tables={
            "sizes": tables.size_rows(splits),
            "lengths": tables.prompt_length_rows(splits, tokenizer),
            "hygiene": [],
        },
    )


def _first(rows: Sequence, count: int) -> list:
    return [rows[i] for i in range(min(count, len(rows)))]
