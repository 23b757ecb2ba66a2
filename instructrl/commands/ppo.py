"""`instructrl ppo`: step 3 on files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from instructrl.commands import options
from instructrl.data.encoding import Limits
from instructrl.data.readers import read_prompts
from instructrl.rollout.engines import EngineName, open_engine
from instructrl.runs.recipe import Recipe
from instructrl.runs.standalone import check_rows, load_judge, load_start, open_workspace, read_blocks
from instructrl.runs.steps import optimize_policy
from instructrl.trainers.checkpoints import CheckpointConfig
from instructrl.trainers.ppo import PPOConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOCommand:
    """PPO against a reward model; PPO-ptx where ppo.ptx_coef is positive."""

    # the policy it starts from, also the reference of the KL: a transformers folder or name
    model: str
    # a folder that `instructrl rm` wrote, with the same tokenizer
    reward_model: str
    # prompts: a .jsonl, .jsonl.gz or .parquet file, or hub:NAME
    data: str
    # folder for the model and metrics
    out: str
    # plain text for the pretraining mix
    corpus: str | None = None
    # start over where `out` holds an earlier run; without it the same command goes on where it was left
    fresh: bool = False
    # of everything random
    seed: int = 0
    # samples the responses; vllm has random numbers of its own: other tokens, and not the same ones in every run
    engine: EngineName = "builtin"
    # length of a block of plain text
    block_tokens: int = 2048
    # of prompts and responses, in tokens
    limits: Limits = Limits()
    # of the training
    ppo: PPOConfig = PPOConfig()
    # how often the run is saved
    checkpoints: CheckpointConfig = CheckpointConfig()


def main(arguments: Sequence[str]) -> int:
    """Carry out `instructrl ppo`. Returns the exit code."""
    config = options.parse(
        PPOCommand, arguments, program="instructrl ppo", description="Step 3: proximal policy optimisation."
    )
    phase = "ppo_ptx" if config.ppo.ptx_coef > 0 else "ppo"
    recipe = replace(Recipe(limits=config.limits, block_tokens=config.block_tokens), **{phase: config.ppo})
    block_tokens = 0 if config.corpus is None else config.block_tokens
    encoder, policy = load_start(config.model, recipe, config, block_tokens)
    reward_model = load_judge(config.reward_model, encoder)
    records = read_prompts(config.data)
    check_rows(records, encoder)
    blocks = read_blocks(config.corpus, encoder, block_tokens, "ppo.ptx_coef" if config.ppo.ptx_coef > 0 else None)
    engine = open_engine(config.engine, config.model, config.limits, precision=config.ppo.passes.precision)
    work = open_workspace(encoder, recipe, config, config.checkpoints)
    prompts = [prompt.text for prompt in records]
    optimize_policy(work, policy, reward_model, prompts, phase=phase, blocks=blocks, engine=engine)
    print(work.folder / "models" / phase)
    return 0
