"""The scores that PPO maximises."""

from torch import Tensor


def penalize_unfinished(scores: Tensor, finished: Tensor, missing_eos_score: float | None) -> Tensor:
    """A fixed score for every response that was cut at the length limit; None keeps the reward model's.

    scores: [B] float. finished: [B] bool. The rule and its value -1 are the predecessor's (lm-human-preferences).
    """
    return scores if missing_eos_score is None else scores.masked_fill(~finished, missing_eos_score)
