"""`instructrl sft`: step 1 on files."""

from collections.abc import Sequence
from dataclasses import dataclass

from instructrl.commands import options
from instructrl.data.encoding import Limits
from instructrl.data.readers import read_demonstrations
from instructrl.models.backbone import set_residual_dropout
from instructrl.runs.recipe import Recipe
from instructrl.runs.standalone import check_rows, load_start, open_workspace, read_blocks
from instructrl.runs.steps import finetune
from instructrl.trainers.checkpoints import CheckpointConfig
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
    # start over where `out` holds an earlier run; without it the same command goes on where it was left
    fresh: bool = False
    # of everything random
    seed: int = 0
    # length of a block of plain text
    block_tokens: int = 2048
    # of prompts and responses, in tokens
    limits: Limits = Limits()
    # of the training
    sft: SFTConfig = SFTConfig()
    # how often the run is saved
    checkpoints: CheckpointConfig = CheckpointConfig()


def main(arguments: Sequence[str]) -> int:
    """Carry out `instructrl sft`. Returns the exit code."""
    config = options.parse(
        SFTCommand, arguments, program="instructrl sft", description="Step 1: supervised fine-tuning."
    )
    recipe = Recipe(limits=config.limits, block_tokens=config.block_tokens, sft=config.sft)
    block_tokens = 0 if config.corpus is None else config.block_tokens
    encoder, policy = load_start(config.model, recipe, config, block_tokens)
    set_residual_dropout(policy.lm, config.sft.residual_dropout)  # the trainer does it too: here it can refuse in time
    train, valid = read_demonstrations(config.data), read_demonstrations(config.validation)
    check_rows(train, encoder)
    check_rows(valid, encoder)
    mixed = "sft.pretraining_fraction" if config.sft.num_pretraining else None
    blocks = read_blocks(config.corpus, encoder, block_tokens, mixed)
    work = open_workspace(encoder, recipe, config, config.checkpoints)
    _, epochs = finetune(work, policy, train, valid, phase="sft", blocks=blocks)
    for epoch in epochs:
        print(f"epoch {epoch.epoch:2}  validation loss {epoch.validation_loss:.4f}  {epoch.policy_folder}")
    return 0
