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


PEERS: dict[str, dict[str, Callable[[Arguments], object]]] = {
    "logprobs.token_logprobs": {"trl": _trl_logprobs},
}
"""By op: library -> what it makes of a case's arguments."""
