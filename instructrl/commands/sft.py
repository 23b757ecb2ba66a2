"""`instructrl sft`: step 1 on files."""

from pathlib import Path

from instructrl.commands.settings import SFTCommand
from instructrl.commands.tracked import tracked
from instructrl.models.backbone import set_residual_dropout
from instructrl.runs.folder import settled_config
from instructrl.runs.reading import NO_VALIDATION, Reader
from instructrl.runs.recipe import Recipe
from instructrl.runs.standalone import load_start, open_workspace, read_blocks
from instructrl.runs.steps import finetune


def main(config: SFTCommand) -> int:
    """Carry out `instructrl sft`. Returns the exit code."""
    config = settled_config(config, Path(config.out), fresh=config.fresh)
    recipe = Recipe(limits=config.limits, block_tokens=config.block_tokens, adapter=config.adapter, sft=config.sft)
    block_tokens = 0 if config.corpus is None else config.block_tokens
    encoder, policy = load_start(config.model, recipe, config, block_tokens)
    set_residual_dropout(policy.lm, config.sft.residual_dropout)  # the trainer does it too: here it can refuse in time
    reader = Reader(encoder, config.long_prompts)
    train, valid = reader.with_validation(config.data, config.validation, reader.demonstrations)
    mixed = "sft.pretraining_fraction" if config.sft.num_pretraining else None
    blocks = read_blocks(config.corpus, encoder, block_tokens, mixed)
    sources = {
        "model": config.model,
        "demonstrations": config.data,
        "validation": None if config.validation == NO_VALIDATION else config.validation,
        "plain text": config.corpus,
    }
    work = open_workspace(reader, recipe, config, config.checkpoints, sources)
    with tracked(config.track, work.log, work.folder, config):
        _, kept = finetune(work, policy, train, valid, phase="sft", blocks=blocks)
    work.journal.tell_if_done()
    for row in kept:
        loss = "" if row.validation_loss is None else f"validation loss {row.validation_loss:.4f}  "
        learned = f"epoch {row.epoch:2}" if config.sft.keep_every_examples is None else f"{row.examples:9,} examples"
        print(f"{learned}  {loss}{work.saved(row.name)}")
    return 0
