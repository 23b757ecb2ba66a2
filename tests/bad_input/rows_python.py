"""Calls from Python that are wrong: functions as rewards, and trainers by the names that TRL had for them."""

from dataclasses import dataclass
from typing import Any

import torch
from op_row import OpRow
from tiny import tiny_encoder, tiny_policy

from instructrl import PPOConfig, PPOTrainer
from instructrl.integrations import trl, trl_legacy
from instructrl.models.scoring import RewardModel

ENCODER = tiny_encoder()
IDS = torch.tensor([1, 2, 3])
SCORE = torch.tensor(1.0)
NAN = float("nan")


def rewarded(reward: Any) -> None:
    """A step of PPO with a function as the reward."""
    config = PPOConfig(num_episodes=4, rollout_batch=4, minibatch=4, warmup_iterations=0)
    PPOTrainer(tiny_policy(ENCODER), None, ["w1", "w2"], ENCODER, config, reward=reward).train_step()


def stepped(queries: Any, responses: Any, scores: Any) -> None:
    """A `step` of two rows."""
    model = trl_legacy.AutoModelForCausalLMWithValueHead(tiny_policy(ENCODER).lm)
    config = trl_legacy.PPOConfig(batch_size=2, mini_batch_size=2)
    trl_legacy.PPOTrainer(config, model, None, ENCODER.tokenizer).step(queries, responses, scores)


def trained(rows: Any, **given: Any) -> None:
    """TRL's `PPOTrainer` on rows."""
    lm, config = tiny_policy(ENCODER).lm, trl.PPOConfig(response_length=4)
    given = {"ref_model": None, "reward_model": len, **given}
    trl.PPOTrainer(config, ENCODER.tokenizer, lm, train_dataset=rows, **given).train()


def ranked(*rows: Any) -> None:
    """TRL's `RewardTrainer` on rows."""
    network = RewardModel.from_policy(tiny_policy(ENCODER), torch.Generator().manual_seed(0)).network
    trl.RewardTrainer(network, trl.RewardConfig(), train_dataset=rows, processing_class=ENCODER.tokenizer)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRow(OpRow):
    """A wrong call in terms of the names of this module."""

    def run(self) -> object:
        return eval(self.call, globals())


_REWARD = "accepted are 4 numbers, one for each response"
ROWS = [
    CallRow(
        what="a function that gives fewer rewards than there are responses",
        call="rewarded(lambda prompts, responses: [1.0])",
        message="reward: found 1 numbers for 4 responses, accepted is one for each",
    ),
    CallRow(
        what="a function that gives NaN for a response",
        call="rewarded(lambda prompts, responses: [0.0, NAN, 0.0, 0.0])",
        message="reward: found nan for response 1, accepted are finite numbers",
    ),
    CallRow(
        what="a function that gives a word for a reward",
        call="rewarded(lambda prompts, responses: ['good'] * 4)",
        message="reward: found 'good' for response 0, accepted are finite numbers",
    ),
    CallRow(
        what="a function that gives nothing",
        call="rewarded(lambda prompts, responses: None)",
        message=f"reward: found NoneType, {_REWARD}",
    ),
    CallRow(
        what="a function that gives one number for all responses",
        call="rewarded(lambda prompts, responses: 1.0)",
        message=f"reward: found float, {_REWARD}",
    ),
    CallRow(
        what="TRL: an argument that nothing here does",
        call="trl.PPOConfig(neftune_noise_alpha=5.0)",
        message="neftune_noise_alpha: found 5.0, accepted is None: this trainer has no such thing",
    ),
    CallRow(
        what="TRL: half precision that needs a scaled loss",
        call="trl.PPOConfig(fp16=True)",
        message="fp16: found True, accepted is False, with bf16, which needs no scaling of the loss",
    ),
    CallRow(
        what="TRL: rows without prompts",
        call="trained([{'text': 'w1'}])",
        message="train_dataset, row 0: found the columns text, accepted are input_ids, or prompt",
    ),
    CallRow(
        what="TRL: callbacks",
        call="trained([{'prompt': 'w1'}], callbacks=[print])",
        message="callbacks: found some, accepted is None: output_dir/metrics.jsonl has a line a step",
    ),
    CallRow(
        what="TRL: a comparison without a rejected completion",
        call="ranked({'prompt': 'w1', 'chosen': 'w2'})",
        message="train_dataset, row 0: rejected: found none beside chosen, accepted are both",
    ),
    CallRow(
        what="TRL: fewer ranks than completions",
        call="ranked({'prompt': 'w1', 'completions': ['w2', 'w3'], 'ranks': [0]})",
        message="train_dataset, row 0: ranks: found 1 for 2 completions, accepted is one for each",
    ),
    CallRow(
        what="TRL up to 0.11: fewer responses than batch_size",
        call="stepped([IDS, IDS], [IDS], [SCORE, SCORE])",
        message="responses: found 1 rows, accepted is a list of config.batch_size, 2",
    ),
    CallRow(
        what="TRL up to 0.11: a score that is NaN",
        call="stepped([IDS, IDS], [IDS, IDS], [SCORE, NAN])",
        message="scores: found nan for response 1, accepted are finite numbers",
    ),
]
