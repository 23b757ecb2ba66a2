"""What a wrong call of an op is, and the names that its arguments have."""

from dataclasses import dataclass

import torch

from instructrl.ops import (
    advantages,
    aggregation,
    candidates,
    likelihood,
    logprobs,
    ppo,
    ranking,
    sampling,
    statistics,
    vocab_parallel,
)
from instructrl.ops.logit_settings import LogitSettings
from instructrl.ops.ppo_settings import KLSettings, PolicySettings, PPOSettings, ValueSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRow:
    """A wrong call. what: is wrong, in words. call: in terms of the names below. message: as in `table.Row`."""

    what: str
    call: str
    message: str

    def run(self) -> object:
        return eval(self.call, NAMES)


INF, NAN = float("inf"), float("nan")
B, T, D, V = 2, 3, 5, 7
NAMES = {
    "torch": torch,
    "advantages": advantages,
    "aggregation": aggregation,
    "candidates": candidates,
    "likelihood": likelihood,
    "logprobs": logprobs,
    "ppo": ppo,
    "ranking": ranking,
    "sampling": sampling,
    "statistics": statistics,
    "vocab_parallel": vocab_parallel,
    "KLSettings": KLSettings,
    "LogitSettings": LogitSettings,
    "PolicySettings": PolicySettings,
    "PPOSettings": PPOSettings,
    "ValueSettings": ValueSettings,
    "INF": INF,
    "NAN": NAN,
    "B": B,
    "T": T,
    "V": V,
    # [B, T]
    "X": torch.zeros(B, T),
    "META": torch.zeros(B, T, device="meta"),
    "MASK": torch.ones(B, T, dtype=torch.bool),
    "TOKENS": torch.zeros(B, T, dtype=torch.int64),
    # tokens as other frameworks mark them: padding is -100, which shows a mask that is upside down
    "PADDED": torch.tensor([[1, 2, -100], [3, -100, -100]]),
    "COUNTS": torch.tensor([[True, True, False], [True, False, False]]),
    # [B, T, V], [B, T, D], [V, D], [B, T, T]
    "LOGITS": torch.zeros(B, T, V),
    "HIDDEN": torch.zeros(B, T, D),
    "WEIGHT": torch.zeros(V, D),
    "PREFERRED": torch.zeros(B, T, T, dtype=torch.bool),
}
