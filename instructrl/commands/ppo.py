"""`instructrl ppo`: step 3 on files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from instructrl.commands import options
from instructrl.data.encoding import Limits, pack_documents
from instructrl.data.readers import read_corpus, read_prompts
from instructrl.models.scoring import RewardModel
from instructrl.runs.recipe import Recipe
from instructrl.runs.standalone import check_tokenizer, open_workspace
from instructrl.runs.steps import optimize_policy
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
    # of everything random
    seed: int = 0
    # length of a block of plain text
    block_tokens: int = 2048
    # of prompts and responses, in tokens
    limits: Limits = Limits()
    # of the training
    ppo: PPOConfig = PPOConfig()


def main(arguments: Sequence[str]) -> int:
    """Carry out `instructrl ppo`. Returns the exit code."""
    config = options.parse(
        PPOCommand, arguments, program="instructrl ppo", description="Step 3: proximal policy optimisation."
    )
    phase = "ppo_ptx" if config.ppo.ptx_coef > 0 else "ppo"
    recipe = replace(Recipe(limits=config.limits, block_tokens=config.block_tokens), **{phase: config.ppo})
    work, policy = open_workspace(
        Path(config.out), config.model, recipe, config, 0 if config.corpus is None else config.block_tokens
    )
    reward_model = RewardModel.load(config.reward_model)
    check_tokenizer(config.reward_model, work.encoder)
    blocks = None
    if config.corpus is not None:
        blocks = pack_documents(read_corpus(config.corpus), work.encoder.tokenizer, config.block_tokens)
    prompts = [prompt.text for prompt in read_prompts(config.data)]
    work.encoder.check_prompts(config.data, prompts)
    optimize_policy(work, policy, reward_model, prompts, phase=phase, blocks=blocks)
    print(work.folder / "models" / phase)
    return 0
