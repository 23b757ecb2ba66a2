"""Functions of other libraries that compute what an op computes, where they are installed (`pip install '.[bench]'`).

A peer takes the arguments of a case and returns what the op returns, or raises ImportError where it is not here. Only
cases without a mask, at temperature 1, are given to it.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

Arguments = dict[str, Any]


def _trl_logprobs(arguments: Arguments) -> Tensor:
    from trl.trainer.utils import selective_log_softmax

    return selective_log_softmax(arguments["logits"], arguments["tokens"])


def _torchrl_advantages(arguments: Arguments) -> tuple[Tensor, Tensor]:
    import torch
    from torchrl.objectives.value.functional import vec_generalized_advantage_estimate

    rewards, values = (arguments[name].unsqueeze(-1) for name in ("rewards", "values"))
    ends = torch.zeros_like(values, dtype=torch.bool)
    ends[:, -1] = True
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    found = vec_generalized_advantage_estimate(1.0, 0.95, values, following, rewards, done=ends, terminated=ends)
    return found[0].squeeze(-1), found[1].squeeze(-1)


PEERS: dict[str, dict[str, Callable[[Arguments], object]]] = {
    "logprobs.token_logprobs": {"trl": _trl_logprobs},
    "advantages.generalized_advantages": {"torchrl": _torchrl_advantages},
}
"""By op: library -> what it makes of a case's arguments."""
