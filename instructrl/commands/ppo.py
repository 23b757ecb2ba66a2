"""`instructrl ppo`: step 3 on files."""

from dataclasses import replace
from pathlib import Path

from instructrl.commands.settings import PPOCommand
from instructrl.commands.tracked import tracked
from instructrl.data.readers import check_no_comparisons
from instructrl.rollout.engines import open_engine
from instructrl.runs.folder import settled_config
from instructrl.runs.reading import Reader
from instructrl.runs.recipe import Recipe
from instructrl.runs.standalone import load_judge, load_start, open_workspace, read_blocks
from instructrl.runs.steps import optimize_policy


def main(config: PPOCommand) -> int:
    """Carry out `instructrl ppo`. Returns the exit code."""
    config = settled_config(config, Path(config.out), fresh=config.fresh)
    phase = "ppo_ptx" if config.ppo.ptx_coef > 0 else "ppo"
    recipe = Recipe(limits=config.limits, block_tokens=config.block_tokens, adapter=config.adapter)
    recipe = replace(recipe, **{phase: config.ppo})
    block_tokens = 0 if config.corpus is None else config.block_tokens
    encoder, policy = load_start(config.model, recipe, config, block_tokens)
    reward_model = load_judge(config.reward_model, encoder, config.adapter, in_parts=recipe.in_parts)
    check_no_comparisons(config.data)
    reader = Reader(encoder, config.long_prompts)
    records = reader.prompts(config.data)
    blocks = read_blocks(config.corpus, encoder, block_tokens, "ppo.ptx_coef" if config.ppo.ptx_coef > 0 else None)
    engine = open_engine(
        config.engine, config.model, config.limits, precision=config.ppo.passes.products, vllm=config.vllm
    )
    sources = {
        "model": config.model,
        "reward model": config.reward_model,
        "prompts": config.data,
        "plain text": config.corpus,
    }
    work = open_workspace(reader, recipe, config, config.checkpoints, sources)
    prompts = [prompt.text for prompt in records]
    with tracked(config.track, work.log, work.folder, config):
        optimize_policy(work, policy, reward_model, prompts, phase=phase, blocks=blocks, engine=engine)
    work.journal.tell_if_done()
    print(work.folder / "models" / phase)
    return 0
