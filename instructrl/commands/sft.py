"""`instructrl sft`: step 1 on files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from instructrl.commands import options
from instructrl.data.encoding import Limits, pack_documents
from instructrl.data.readers import read_corpus, read_demonstrations
from instructrl.runs.recipe import Recipe
from instructrl.runs.standalone import open_workspace
from instructrl.runs.steps import finetune
from instructrl.trainers.sft import SFTConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTCommand:
    """Fine-tune a language model on demonstrations; every epoch is kept as a transformers folder."""

    # the pretrained model: a transformers folder or name
    model: str
    # demonstrations: a .jsonl, .jsonl.gz or .parquet file, or hub:NAME
    data: str
    # demonstrations for the validation loss
    validation: str
    # folder for models and metrics
    out: str
    # plain text, where sft.pretraining_fraction asks for it
    corpus: str | None = None
    # of everything random
    seed: int = 0
    # length of a block of plain text
    block_tokens: int = 2048
    # of prompts and responses, in tokens
    limits: Limits = Limits()
    # of the training
    sft: SFTConfig = SFTConfig()


def main(arguments: Sequence[str]) -> int:
    """Carry out `instructrl sft`. Returns the exit code."""
    config = options.parse(
        SFTCommand, arguments, program="instructrl sft", description="Step 1: supervised fine-tuning."
    )
    recipe = Recipe(limits=config.limits, block_tokens=config.block_tokens, sft=config.sft)
    work, policy = open_workspace(
        Path(config.out), config.model, recipe, config, 0 if config.corpus is None else config.block_tokens
    )
    blocks = None
    if config.corpus is not None:
        blocks = pack_documents(read_corpus(config.corpus), work.encoder.tokenizer, config.block_tokens)
    train, valid = read_demonstrations(config.data), read_demonstrations(config.validation)
    _, epochs = finetune(work, policy, train, valid, phase="sft", blocks=blocks)
    for epoch in epochs:
        print(f"epoch {epoch.epoch:2}  validation loss {epoch.validation_loss:.4f}  {epoch.policy_folder}")
    return 0
