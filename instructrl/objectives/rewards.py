"""The scores that PPO maximises."""

from torch import Tensor


def penalize_unfinished(scores: Tensor, finished: Tensor, missing_eos_score: float | None) -> Tensor:
    """A fixed score for every response that was cut at the length limit; None keeps the reward model's.

    scores: [B] float. finished: [B] bool. The rule is the predecessor's (lm-human-preferences), with a value of -1 for
    rewards of mean 0 and standard deviation 1. The scores of the paper's reward model have a scale of their own, on
    which a fixed value can as well reward a cut as punish it: the value has to be chosen for the reward model.
    """
    return scores if missing_eos_score is None else scores.masked_fill(~finished, missing_eos_score)
